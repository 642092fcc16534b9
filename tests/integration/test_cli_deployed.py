"""Commands that ask a deployment, on a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from expunge.adapters.ledger.postgres import migrate
from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.domain import topics
from expunge.settings import Settings
from expunge.wiring import Deployment
from expunge.workers.delivery import Record

NOBODY = "00000000-0000-4000-8000-000000000000"

Ask = Callable[..., Any]


@pytest.fixture
def deployment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    (tmp_path / "photos").mkdir()
    settings = Settings(
        database=database, kafka="127.0.0.1:9", data=tmp_path / "data", audience="expunge:test",
        stores={"photos": f"file://{tmp_path / 'photos'}"},
    )  # fmt: skip
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    migrate(database)
    found = Deployment(settings)
    found.prepare()
    return found


@pytest.fixture
def ask(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with --json; what it printed. Fails on another exit code."""

    def run(*arguments: str, code: Exit = Exit.OK) -> Any:
        assert main([*arguments, "--json"]) == code, capsys.readouterr().err
        shown = capsys.readouterr().out
        return json.loads(shown) if shown else None

    return run


def test_an_empty_deployment_answers(ask: Ask) -> None:
    assert ask("models", "list") == []
    assert ask("dead-letter", "list") == []
    assert ask("migrate") == {"migrations": 0}
    assert ask("stores", "check") == [
        {"store": "photos", "scheme": "file", "rewrites_unit": False, "max_level": "L2", "remarks": []}
    ]


@pytest.mark.parametrize(
    "command",
    [
        ("status", NOBODY),
        ("models", "show", "face@1"),
        ("models", "gate", "face@1"),
        ("certificate", NOBODY, "--out", "never"),
        ("dead-letter", "retry", "1"),
        ("dead-letter", "drop", "1"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_bad_input(ask: Ask, command: tuple[str, ...]) -> None:
    assert ask(*command, code=Exit.USAGE) is None


def test_a_key_is_registered_once_with_its_scope(ask: Ask, deployment: Deployment, tmp_path: Path) -> None:
    drawn = ask("keys", "generate", "--dir", str(tmp_path / "keys"), "--store", "photos")["keys"]
    register = (
        "keys",
        "register",
        str(tmp_path / "keys" / "publisher.key"),
        "--role",
        "publisher",
        "--name",
        "accounts",
    )
    added = ask(*register, "--quota", "5", "--source", "studio")
    assert added == {"key_id": drawn["publisher"], "role": "publisher", "added": True}
    assert ask(*register)["added"] is False
    with psycopg.connect(deployment.settings.database) as connection:
        rows = connection.execute("select role, name, scope from trusted_key").fetchall()
    assert rows == [("publisher", "accounts", {"quota": 5, "sources": ["studio"]})]


def test_a_public_key_is_enough_to_register(ask: Ask, tmp_path: Path) -> None:
    from expunge.domain.dsse import SigningKey

    public = SigningKey.from_seed(bytes(32)).public
    for name, text in (("pem", public.to_pem()), ("base64", public.to_base64())):
        (tmp_path / name).write_text(text)
        found = ask("keys", "register", str(tmp_path / name), "--role", "approver", "--name", "counsel")
        assert found["key_id"] == public.key_id


def test_an_import_with_one_bad_row_loads_nothing_and_says_which(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "catalogue.csv"
    file.write_text(
        "source,key,subjects,digest,acquired_on,kind,store,unit,locator,purposes,artifact_digest\n"
        f"studio,a,,{'0' * 64},2024-01-01,image,photos,u,a.pgm,account,\n"
        "studio,b,,nonsense,2024-01-01,image,photos,u,b.pgm,account,\n"
    )
    found = ask("catalogue", "import", str(file), code=Exit.USAGE)
    assert found == {"loaded": False, "bad_rows": [{"file": str(file), "line": 3, "reason": "bad-digest"}]}


def test_a_dead_letter_is_listed_retried_or_dropped_and_its_bytes_stay_sealed(
    ask: Ask, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    readable = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t")]
    for offset, headers in enumerate((readable, [], [])):
        _bury(deployment, Record(topics.REQUESTS.name, 0, offset, b"key", b"secret", headers))
    listed = ask("dead-letter", "list")
    assert [(one["offset"], one["reason"]) for one in listed] == [(0, "bad"), (1, "bad"), (2, "bad")]
    assert "secret" not in json.dumps(listed)
    first, second, third = (str(one["id"]) for one in listed)
    assert ask("dead-letter", "retry", first) == {"ids": [int(first)], "retried": True}
    ask("dead-letter", "retry", second, code=Exit.USAGE)  # it could never be read
    ask("dead-letter", "drop", code=Exit.USAGE)  # nobody drops everything by leaving the id out
    assert ask("dead-letter", "drop", "--reason", "nowhere")["ids"] == []
    assert ask("dead-letter", "drop", third) == {"ids": [int(third)], "dropped": True}
    assert [str(one["id"]) for one in ask("dead-letter", "list")] == [second]
    with psycopg.connect(deployment.settings.database) as connection:
        rows = connection.execute('select worker, event_id, "offset" from retry').fetchall()
    assert rows == [("coordinate", f"dead-letter-{first}", 0)]


def _bury(deployment: Deployment, record: Record) -> None:
    with psycopg.connect(deployment.settings.database) as connection:
        connection.execute(
            'insert into dead_letter (worker, topic, partition, "offset", reason, sealed) values (%s, %s, %s, %s, %s, %s)',
            (
                "coordinate", record.topic, record.partition, record.offset, "bad", deployment.parking().seal(record),
            ),
        )  # fmt: skip
