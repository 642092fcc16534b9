"""`python -m tests.simulator`: run schedules, say how many a minute, and what went wrong under which seed.

    --seeds A:B,C   these seeds: stretches and single ones
    --seed N        one, with its trace; writes its history to --history FILE if asked
    --minutes M     fresh seeds, for so long
    --processes P   at once (default: one per core)

Exit code 1 where a schedule went wrong, or where a kind of fault or deed never occurred in a run long enough for all.
"""

from __future__ import annotations

import argparse
import gc
import os
import secrets
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from expunge.embedded.postgres import EmbeddedPostgres
from tests.simulator.activity import KILLED_AT
from tests.simulator.chance import FAULTS
from tests.simulator.company import DEEDS
from tests.simulator.database import Database
from tests.simulator.schedule import prepare, run

ENOUGH = 800
"""Schedules after which every kind of fault and deed has to have occurred."""
PIECE = 10
"""Schedules that a process takes at a time."""


@dataclass(slots=True)
class Tally:
    """What came of some schedules. `failures`: by seed, what was wrong."""

    schedules: int = 0
    steps: int = 0
    records: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.records += other.records
        self.faults += other.faults
        self.deeds += other.deeds
        self.kills += other.kills
        self.failures |= other.failures

    @property
    def missing(self) -> list[str]:
        """Kinds that never occurred."""
        return [one for one in FAULTS if not self.faults[one]] + [one for one in DEEDS if not self.deeds[one]]


def simulate(database: Database, seeds: Iterable[int]) -> Tally:
    """Run schedules one after another."""
    tally = Tally()
    for seed in seeds:
        before = Counter(KILLED_AT)
        schedule, outcome = run(database, seed)
        tally.add(
            Tally(
                1,
                schedule.steps,
                len(schedule.lines),
                schedule.chance.faults,
                schedule.company.done,
                Counter(KILLED_AT) - before,
            )
        )
        if isinstance(outcome, BaseException):
            tally.failures[seed] = "".join(traceback.format_exception(outcome)[-3:]).strip()
        elif outcome:
            tally.failures[seed] = "\n".join(map(str, outcome))
    return tally


_database: Database | None = None


def _piece(dsn: str, seeds: list[int]) -> Tally:
    """In a worker process: on a database of its own, made once."""
    global _database  # noqa: PLW0603 - one per process
    if _database is None:
        _database = own_database(dsn)
        # What is imported stays, and a schedule's own is soon gone: looking through all of it again and again is waste.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
    return simulate(_database, seeds)


def own_database(dsn: str) -> Database:
    """A new database on a server, ready for schedules."""
    name = f"simulator_{secrets.token_hex(8)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    database = Database(make_conninfo(dsn, dbname=name))
    prepare(database)
    return database


def many(dsn: str, seeds: Iterator[int], *, processes: int, until: float) -> Tally:
    """Run schedules in several processes until the seeds or the time run out."""
    tally = Tally()
    with ProcessPoolExecutor(processes) as pool:
        pieces = iter(lambda: list(islice(seeds, PIECE)), [])
        while time.monotonic() < until:
            batch = list(islice(pieces, processes * 2))
            if not batch:
                break
            for one in pool.map(partial(_piece, dsn), batch):
                tally.add(one)
                for seed, text in one.failures.items():
                    print(f"\nseed {seed}: {text}\n  replay: python -m tests.simulator --seed {seed}", flush=True)
    return tally


def report(tally: Tally, seconds: float) -> None:
    print(
        f"{tally.schedules} schedules in {seconds:.1f} s: {tally.schedules / seconds * 60:.0f} a minute; "
        f"{tally.steps} decisions, {tally.records} records judged, {len(tally.failures)} schedules went wrong"
    )
    for title, counts in (("faults", tally.faults), ("deeds", tally.deeds), ("kills at", tally.kills)):
        print(f"{title}: " + ", ".join(f"{kind} {number}" for kind, number in counts.most_common()))


def one(dsn: str, seed: int, history: Path | None) -> int:
    """Replay one seed, with everything that was decided."""
    schedule, outcome = run(own_database(dsn), seed)
    print("\n".join(schedule.chance.trace))
    if history is not None:
        history.write_bytes(b"".join(schedule.lines))
    if isinstance(outcome, BaseException):
        traceback.print_exception(outcome)
        return 1
    for violation in outcome:
        print(violation)
    print(f"seed {seed}: {schedule.steps} decisions, {len(schedule.lines)} records, {len(outcome)} violations")
    return 1 if outcome else 0


def _stretch(text: str) -> range:
    first, _, end = text.partition(":")
    return range(int(first), int(end or int(first) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="A:B,C")
    what.add_argument("--seed", type=int)
    what.add_argument("--minutes", type=float)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--history", type=Path)
    parser.add_argument("--postgres", metavar="DSN", help="a server that runs already; its role may create databases")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of text are walked in an order that depends on it: without, a seed would not replay.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulator", *sys.argv[1:]])  # noqa: S606 - ourselves
    with ExitStack() as stack:
        dsn = asked.postgres
        if dsn is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            dsn = stack.enter_context(EmbeddedPostgres.start(directory / "postgres", durable=False)).dsn
        if asked.seed is not None:
            return one(dsn, asked.seed, asked.history)
        start = time.monotonic()
        if asked.seeds is not None:
            seeds: Iterator[int] = chain.from_iterable(map(_stretch, asked.seeds.split(",")))
            until = float("inf")
        else:
            seeds, until = count(secrets.randbelow(2**48)), start + asked.minutes * 60
        tally = many(dsn, seeds, processes=asked.processes, until=until)
        report(tally, time.monotonic() - start)
    if tally.schedules >= ENOUGH and tally.missing:
        print(f"never occurred: {', '.join(tally.missing)}")
        return 1
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
