"""Receipts, disclosures, exports and key events by command line, on files and a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import psycopg
import pyrage
import pytest
import scitt_cose

from expunge import readside
from expunge.adapters.ledger.postgres import migrate
from expunge.adapters.stores import table
from expunge.adapters.stores.memory import MemoryReader, Space
from expunge.cli.app import main
from expunge.cli.console import Exit
from expunge.domain import bundle, dsse, statement, trust
from expunge.domain.request import BySource
from expunge.domain.statement import KeyDestroyed, KeyEvent
from expunge.domain.words import Role
from expunge.settings import Settings
from expunge.wiring import Deployment
from tests.coordination import ANN, BOB, ORIGIN, REWRITES, START, album, content, deployed

AUDIENCE = ORIGIN.removesuffix("/log")

Ask = Callable[..., Any]


@pytest.fixture
def deployment(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    settings = Settings(
        database=database, kafka="127.0.0.1:9", data=tmp_path / "data", audience=AUDIENCE, stores={"photos": "file:///x"}
    )  # fmt: skip
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    migrate(database)
    found = Deployment(settings)
    found.prepare()
    return found


@pytest.fixture
def ask(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*arguments: object, code: Exit = Exit.OK) -> Any:
        assert main([*map(str, arguments), "--json"]) == code, capsys.readouterr().err
        shown = capsys.readouterr().out
        return json.loads(shown) if shown else None

    return run


class Past:
    """A person's deletion and an order that were carried out, on this deployment's files."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self._folder = folder
        self._deployment = deployment
        self.person, self.order = asyncio.run(self._live())

    async def _live(self) -> tuple[str, str]:
        found = self._deployment
        files: dict[str, Any] = {
            "keys": found.keys,
            "sealed": found.sealed,
            "tiles": found.tiles,
        }
        async with deployed(found.settings.database, self._folder, **files) as world:
            world._log_key = found.signers.log_key()
            await world.seed(*(replace(photo, hashed=True) for photo in (*album(1), *album(2))))
            asked, order = world.deletion(1), world.order(BySource(source="studio"))
            world.ask(asked)
            await world.settle()
            world.ask(order)
            await world.settle()
            for approver in (ANN, BOB):
                await world.take(world.approval(order), by=approver)
            await world.settle()
            (self._folder / "trust.json").write_bytes(trust.dump(world.trust))
            return str(asked.id), str(order.id)


@pytest.fixture
def past(deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Past:
    made = Past(deployment, tmp_path)
    capsys.readouterr()  # what tasks logged meanwhile is no answer
    return made


def logged(deployment: Deployment, kind: type) -> list[Any]:
    with psycopg.connect(deployment.settings.database) as connection:
        rows = connection.execute("select entry from log_entry order by index").fetchall()
    said = [statement.parse(dsse.parse(bytes(row[0])).payload).predicate for row in rows]
    return [one for one in said if isinstance(one, kind)]


def test_a_receipt_is_written_and_verified(ask: Ask, past: Past, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(content("p1-0"))
    assert ask("certificate", past.person, "--out", tmp_path / "bundle.zip")["files"]
    made = ask("receipt", past.person, "--photo", tmp_path / "photo", "--out", tmp_path / "receipt.json")
    assert (made["leaves"], made["bytes"] <= 4096) == (4, True)
    beside = ("--sweep", tmp_path / "bundle.zip", "--trust", tmp_path / "trust.json")
    found = ask("verify", tmp_path / "receipt.json", *beside, "--photo", tmp_path / "photo")
    assert (found["ok"], found["summary"]["scope_checked"]) == (True, True)
    ask("verify", tmp_path / "receipt.json", *beside, "--photo", tmp_path / "trust.json", code=Exit.NEGATIVE)
    one = json.loads((tmp_path / "receipt.json").read_bytes())["leaves"][0]
    alone = ask("receipt", past.person, "--leaf", f"{one['tree']}:{one['index']}", "--out", tmp_path / "one.json")
    assert (alone["leaves"], alone["alone"]) == (1, True)
    assert ask("verify", tmp_path / "one.json", "--trust", tmp_path / "trust.json")["ok"]
    assert ask("receipt", past.person, "--image", "p1-1.bin", "--out", tmp_path / "two.json")["leaves"] == 4
    for wrong in (("--image", "p2-0.bin"), ("--leaf", "99:0"), ("--leaf", "x"), (), ("--photo", tmp_path / "nothing")):
        ask("receipt", past.person, *wrong, "--out", tmp_path / "never", code=Exit.USAGE)
    ask(
        "receipt", past.person, "--image", "p1-1.bin", "--out", tmp_path / "two.json", code=Exit.USAGE
    )  # never overwritten


def test_an_order_is_disclosed_and_opened(ask: Ask, past: Past, tmp_path: Path) -> None:
    regulator = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").touch(mode=0o600)
    (tmp_path / "identity").write_text(str(regulator))
    ask("certificate", past.order, "--out", tmp_path / "order.zip")
    ask("disclose", past.order, "--to", regulator.to_public(), "--out", tmp_path / "disclosed")
    found = ask(
        "disclosed", tmp_path / "disclosed", "--identity", tmp_path / "identity", "--bundle", tmp_path / "order.zip",
        "--trust", tmp_path / "trust.json",
    )  # fmt: skip
    assert found["artifacts"] == {
        f"{kind} in {store}": 4
        for kind, store in (
            ("derivative", "thumbs"),
            ("embedding", "faces"),
            ("image", "photos"),
            ("shard-row", "shards"),
        )
    }
    ask("disclose", past.order, "--to", "age1nobody", "--out", tmp_path / "never", code=Exit.USAGE)


def test_statements_are_exported_with_cose_receipts(
    ask: Ask, past: Past, deployment: Deployment, tmp_path: Path
) -> None:  # fmt: skip
    ask("certificate", past.person, "--format", "scitt", "--out", tmp_path / "scitt")
    pem = deployment.signers.log_key().public.to_pem()
    receipts = sorted((tmp_path / "scitt" / "receipts").iterdir())
    assert len(receipts) > 10
    for path in receipts:
        entry = (tmp_path / "scitt" / "statements" / f"{path.stem}.json").read_bytes()
        assert scitt_cose.verify_receipt(path.read_bytes(), leaf_entry_hex=entry.hex(), log_public_key_pem=pem).ok
    assert (tmp_path / "scitt" / bundle.CERTIFICATE).exists()


class Later(datetime):
    """A clock two days after everything."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp((START + timedelta(days=2)).timestamp(), tz)


def test_a_bucket_is_destroyed_by_command(
    ask: Ask, past: Past, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.cli.keys.datetime", Later)
    day = START.date()
    for wrong in ("yesterday", "9999-01-01"):
        ask("keys", "destroy-bucket", wrong, code=Exit.USAGE)
    ask("receipt", past.person, "--image", "p1-0.bin", "--out", tmp_path / "receipt.json")
    index = ask("keys", "destroy-bucket", day)["log_index"]
    assert ask("keys", "destroy-bucket", day)["log_index"] == index
    assert [one.bucket for one in logged(deployment, KeyDestroyed)] == [day]
    ask("receipt", past.person, "--image", "p1-0.bin", "--out", tmp_path / "never", code=Exit.USAGE)
    ask(
        "disclose",
        past.order,
        "--to",
        pyrage.x25519.Identity.generate().to_public(),
        "--out",
        tmp_path / "never",
        code=Exit.USAGE,
    )


def test_keys_are_listed_rotated_and_revoked(ask: Ask, deployment: Deployment, tmp_path: Path) -> None:
    first = {one["role"]: one for one in ask("keys", "list")["keys"]}
    assert {"scope", "executor", "rescanner", "certifier", "log"} <= set(first)
    made = ask("keys", "rotate", "--role", "scope", "--grace", "2")
    assert made["retired"]["key_id"] == first["scope"]["key_id"] != made["added"]["key_id"]
    gone = ask("keys", "revoke", first["executor"]["key_id"])
    assert (gone["revoked"]["revoked_at_index"], gone["added"]["store"]) == (2, "photos")
    assert len(ask("keys", "list")["keys"]) == len(first) + 2
    said = logged(deployment, KeyEvent)
    assert [(one.event, one.role.value) for one in said] == [
        ("retired", "scope"), ("added", "scope"), ("revoked", "executor"), ("added", "executor"),
    ]  # fmt: skip
    assert said[0].since - said[0].at == timedelta(hours=2)
    assert ask("keys", "policy", "--out", tmp_path / "policy.json")["keys"] == len(first) + 1  # all but the log's
    pinned = {one.key.key_id: one for one in trust.parse((tmp_path / "policy.json").read_bytes()).keys}
    assert pinned[first["executor"]["key_id"]].revoked_at_index == 2
    assert pinned[first["scope"]["key_id"]].valid_to == said[0].since
    for wrong in (("rotate", "--role", "king"), ("revoke", "0" * 64)):
        ask("keys", *wrong, code=Exit.USAGE)
    ask("keys", "rotate", "--role", "log", code=Exit.CONFIGURATION)


def test_a_challenge_is_answered_and_checked_by_command(
    ask: Ask, past: Past, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, answer = tmp_path / "checkpoint", tmp_path / "answer.json"
    point.write_bytes(deployment.tiles.read("checkpoint"))
    drawn = ("--checkpoint-file", point, "--count", 5)
    policy = trust.parse((tmp_path / "trust.json").read_bytes())
    # The past was signed by keys of its own; the answer is signed by this deployment's rescanner.
    ours = next(one for one in deployment.signers.trust().keys if one.role is Role.RESCANNER)
    (tmp_path / "both.json").write_bytes(trust.dump(policy.model_copy(update={"keys": (*policy.keys, ours)})))

    async def pinned(_: Deployment) -> trust.Trust:
        return policy

    monkeypatch.setattr(readside, "trusted", pinned)
    spaces = dict.fromkeys(REWRITES, Space())
    monkeypatch.setattr(table, "open_reader", lambda _, name: MemoryReader(spaces[name], name, rewrites_unit=False))
    monkeypatch.setenv("EXPUNGE_STORES", json.dumps(dict.fromkeys(REWRITES, "file:///none")))
    made = ask("challenge", past.order, *drawn, "--out", answer)
    assert (made["leaves"], made["present"]) == (5, 0)
    ask("challenge", past.order, *drawn, "--out", answer, code=Exit.USAGE)  # never overwritten
    ask("certificate", past.order, "--out", tmp_path / "order.zip")
    beside = ("--bundle", tmp_path / "order.zip", "--trust", tmp_path / "both.json")
    found = ask("answered", answer, *beside, *drawn)
    assert (found["leaves"], found["present"]) == (5, 0)
    ask(
        "answered", answer, *beside[:3], tmp_path / "trust.json", *drawn, code=Exit.NEGATIVE
    )  # a key that it does not pin
    ask("answered", tmp_path / "nothing", *beside, *drawn, code=Exit.USAGE)
    ask("answered", answer, *beside, "--checkpoint-file", point, "--count", 6, code=Exit.NEGATIVE)


def test_a_reconciliation_is_waited_for(ask: Ask, past: Past, deployment: Deployment) -> None:
    assert past.order
    ask("reconcile", "--wait", 0, code=Exit.UNREACHABLE)  # no worker runs here
    with psycopg.connect(deployment.settings.database, autocommit=True) as connection:
        connection.execute(
            "create function done() returns trigger language plpgsql as"
            " 'begin new.done_at := clock_timestamp(); return new; end'"
        )
        connection.execute("create trigger done before insert on task for each row execute function done()")
    assert ask("reconcile", "--source", "studio") == {"counts": []}
