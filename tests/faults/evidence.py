"""Faults of clocks, keys and the log: 15, 20, 21, 23."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from expunge import keeping
from expunge.adapters.log.files import FileTiles
from expunge.domain import dsse
from expunge.domain.errors import ExpungeError
from expunge.domain.note import Checkpoint, open_checkpoint, sign_checkpoint
from expunge.domain.words import Role
from expunge.readside import trusted
from expunge.replay import replay
from tests.faults.ground import Ground, NotHere, Report, certified
from tests.faults.small import Small, eventually

FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def clocks(ground: Ground) -> Report:
    """15: a worker's clock is 40 days off: it judges nothing by it, and the others go on."""
    if not FAKETIME.exists():
        raise NotHere("libfaketime is not installed (Debian: apt-get install libfaketime)")
    small, report = ground.small, Report()
    refused: dict[str, bool] = {}
    for skew in ("+40d", "-40d"):
        small._settings["coordinate"] = {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        small.embedded.stop_worker("coordinate")
        request = small.delete(small.register(1)[0])
        small.restart("coordinate", ready=False)
        eventually(lambda: small.ended("coordinate") or None, "the worker with the wrong clock to refuse")
        refused[skew] = small.state(request) is None
        del small._settings["coordinate"]
        small.restart("coordinate")
        certified(small, [request], report)
    wrong = small.one(
        "select count(*) from log_entry where predicate in ('urn:expunge:overdue:v1', 'urn:expunge:scope-void:v1')"
    )
    report.expect(all(refused.values()), f"a request was judged by a wrong clock: {refused}")
    report.expect(wrong == 0, f"{wrong} dates were called missed")
    report.runs = len(refused)
    report.figure = {"wrong_deadline_decisions": wrong + sum(not one for one in refused.values()), "refused": refused}
    return report


def rotated(ground: Ground) -> Report:
    """20: keys are rotated and revoked while requests are under way; old and new certificates verify."""
    small, report = ground.small, Report()
    people = small.register(6)
    old = small.delete(people[0])
    certified(small, [old], report)
    under_way = small.delete_all(people[1:4])
    at = datetime.now(UTC)
    for role, store in ((Role.CERTIFIER, None), (Role.EXECUTOR, "photos"), (Role.RESCANNER, None)):
        asyncio.run(keeping.rotate(small.embedded.deployment, role, store, at=at, grace=timedelta(minutes=5)))
    for worker in ("coordinate", "purge", "rescan"):
        small.embedded.stop_worker(worker)
        small.restart(worker)
    new = small.delete_all(people[4:])
    certified(small, [*under_way, *new], report)
    unverifiable = 0
    for request in (old, *under_way, *new):
        try:
            small.verified(request)
        except ExpungeError as error:
            unverifiable += 1
            report.violations.append(f"a certificate does not verify: {error}")
    report.figure = {"rotated": 3, "certificates": 6, "unverifiable": unverifiable}
    return report


def replayed(ground: Ground) -> Report:
    """21: the log replayed from its first entry by two auditors at once, compared with the live rows; nothing is touched."""
    small, report = ground.small, Report()
    certified(small, [small.delete(small.register(1)[0])], report)
    eventually(lambda: small.one("select count(*) from outbox") == 0 or None, "a standstill")
    before = _state(small)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: small.replayed(), range(2)))
    after = _state(small)
    differ = sum(len(one["differences"]) for one in found)
    report.expect(found[0] == found[1], "the two replays differ")
    report.expect(differ == 0, f"replay and rows differ: {found[0]['differences']}")
    report.expect(before == after, "something changed while the log was replayed")
    report.runs = 2
    report.figure = {"entries": found[0]["entries"], "differences": differ, "side_effects": int(before != after)}
    return report


def _state(small: Small) -> tuple[object, ...]:
    """All files of the product and rows of the ledger, in short."""
    files = sorted((str(path), path.stat().st_mtime_ns) for path in small.product.rglob("*") if path.is_file())
    rows = small.sql(
        "select (select count(*) from outcome), (select count(*) from certificate), (select count(*) from request)"
    )
    return hashlib.sha256(repr(files).encode()).hexdigest(), *rows


def tampered(ground: Ground) -> Report:
    """23: the log's files edited, truncated, forked, signed again: found, and where."""
    small, report = ground.small, Report()
    certified(small, [small.delete(small.register(1)[0])], report)
    policy = asyncio.run(trusted(small.embedded.deployment))
    source = small.embedded.settings.data / "log"
    key = small.embedded.deployment.signers.log_key()
    origin = small.embedded.settings.origin
    where: dict[str, str] = {}

    def attempt(title: str, change: Callable[[Path], None]) -> None:
        copy = ground.folder() / "log"
        shutil.copytree(source, copy)
        change(copy)
        try:
            replay(FileTiles(copy), policy)
        except (ExpungeError, LookupError) as error:
            where[title] = getattr(error, "where", type(error).__name__)
        else:
            report.violations.append(f"{title}: not found")

    attempt("entry edited", lambda log: _flip(_last(log / "tile" / "entries")))
    attempt("tile edited", lambda log: _flip(_last(log / "tile" / "0")))
    attempt("entries truncated", lambda log: _last(log / "tile" / "entries").unlink())
    attempt("checkpoint edited", lambda log: _flip(log / "checkpoint"))
    other = dsse.SigningKey.from_seed(bytes(32))

    def again(log: Path, signing: dsse.SigningKey, *, root: bytes | None) -> None:
        note = (log / "checkpoint").read_bytes()
        found = open_checkpoint(note, policy.log_keys, origin)
        made = Checkpoint(origin, found.size, root or found.root)
        (log / "checkpoint").write_bytes(sign_checkpoint(made, signing, origin))

    attempt("signed again by another key", lambda log: again(log, other, root=None))
    attempt("forked: another root, the log's own key", lambda log: again(log, key, root=bytes(32)))
    report.runs = 6
    report.figure = {"attempted": 6, "detected": len(where), "where": where}
    return report


def _last(folder: Path) -> Path:
    """The newest: a partial tile that a wider one took over from is read by nobody."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
