"""Every command of every runbook runs on a live deployment of its own: some of them change it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from expunge.domain.cloudevents import CloudEvent, to_kafka
from expunge.wiring.up import Embedded
from expunge.workers.delivery import Record
from tests.acceptance.shell import shell
from tests.guards.sources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RUNBOOKS = sorted((ROOT / "ops" / "runbooks").glob("*.md"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    root = tmp_path_factory.mktemp("runbooks")
    (root / "photos").mkdir()
    with Embedded(
        root / "up", audience="acme.example", stores={"photos": f"file://{root / 'photos'}"}, durable=False,
        overrides={"audit_seconds": 5.0, "reconcile_hours": 0.01},
    ) as embedded:  # fmt: skip
        embedded.start_workers()
        embedded.start_api()
        yield embedded


@pytest.fixture(scope="module")
def environment(deployment: Embedded) -> dict[str, str]:
    return shell(deployment)


def commands(path: Path) -> list[str]:
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks]


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_the_commands_of_a_runbook_run(path: Path, environment: dict[str, str], deployment: Embedded) -> None:
    key, text, headers = to_kafka(CloudEvent("e", "somebody", "expunge.work.ordered.v1", b"{}"))
    letter = Record("expunge.purge", 0, 0, key, text, headers)
    with psycopg.connect(deployment.settings.database) as connection:
        connection.execute(
            'insert into dead_letter (id, worker, event_id, topic, partition, "offset", reason, sealed)'
            " overriding system value values (1, 'purge', 'e', 'expunge.purge', 0, 0, 'retryable', %s) on conflict do nothing",
            (deployment.deployment.parking().seal(letter),),
        )
    for command in commands(path):
        ran = subprocess.run(
            ["sh", "-ec", command],
            env=environment,
            cwd=deployment.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"


def test_most_runbooks_have_commands() -> None:
    assert len([path for path in RUNBOOKS if commands(path)]) >= len(RUNBOOKS) - 2
