"""What the composition root gives to whom, where nothing else would fail if it did not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from expunge import wiring
from expunge.adapters.ledger.postgres import migrate
from expunge.settings import Settings
from expunge.stages.plan import Plan
from expunge.wiring import Deployment, build_worker, run


@pytest.fixture
def settings(database: str, tmp_path: Path) -> Settings:
    """Of a deployment that is prepared. No worker is started: nothing answers at its Kafka's address."""
    migrate(database)
    (tmp_path / "photos").mkdir()
    made = Settings(
        database=database, kafka="127.0.0.1:9", data=tmp_path / "data", audience="expunge:test",
        stores={"photos": f"file://{tmp_path / 'photos'}"},
    )  # fmt: skip
    Deployment(made).prepare()
    return made


def test_a_plan_writes_its_columns_beside_the_files_they_become(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container what is temporary has room for some 64 MiB, and an order of millions has more columns."""
    given: list[Path | None] = []

    class Seen(Plan):
        def __init__(self, **parts: Any) -> None:
            given.append(parts.get("spools"))
            super().__init__(**parts)

    monkeypatch.setattr(wiring, "Plan", Seen)
    build_worker("coordinate", settings)
    assert given == [settings.data / "sealed"]


def test_a_worker_has_its_memory_given_back_before_it_takes_any(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class StoppedError(Exception):
        """The worker is as far as it has to be."""

    def build(_name: str, _settings: Settings) -> None:
        order.append("build")
        raise StoppedError

    monkeypatch.setattr(run, "configure_logging", lambda _level: None)
    monkeypatch.setattr(run, "give_back", lambda: order.append("give back"))
    monkeypatch.setattr(run, "build_worker", build)
    with pytest.raises(StoppedError):
        run.run_worker("purge", settings)
    assert order == ["give back", "build"]


@pytest.mark.parametrize("name", ["coordinate", "purge", "invalidate", "rescan"])
async def test_what_puts_tasks_wakes_every_loop_that_runs_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each by an event of its own: who waits for one clears it."""
    loops: list[asyncio.Event] = []

    async def run_tasks(*, wake: asyncio.Event, **_: object) -> None:
        loops.append(wake)

    monkeypatch.setattr(wiring, "run_tasks", run_tasks)
    worker = build_worker(name, settings)
    await worker.background[-1]()
    assert len({id(one) for one in loops}) == wiring.TASKS_AT_ONCE.get(name, 1)
    assert not any(one.is_set() for one in loops)
    worker.host._deferred()
    assert all(one.is_set() for one in loops)
