"""Schedules in the test run: fixed seeds in every one, more of them and fresh ones in the slow tier.

They run as a user would replay them, in a process whose sets of text have a fixed order.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PostgresServer
from tests.simulator.__main__ import own_database
from tests.simulator.chance import FAULTS, Chance
from tests.simulator.database import Statement, ordered
from tests.simulator.schedule import run

ROOT = Path(__file__).parents[2]


def _simulate(server: PostgresServer, *arguments: str) -> str:
    """What the command said. It has to be content."""
    command = [sys.executable, "-m", "tests.simulator", "--postgres", server.dsn, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_fixed_seeds_hold(postgres_server: PostgresServer) -> None:
    """Some, and those that found bugs: see BUGS.md."""
    assert "0 schedules went wrong" in _simulate(
        postgres_server,
        "--seeds",
        "0:8,8,13,23,107,120,127,147,5389,5432,5537,5686,5689,7008,7217,8287",
        "--processes",
        "1",
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_fixed_seeds_and_fresh_ones_hold(postgres_server: PostgresServer) -> None:
    fresh = secrets.randbelow(2**40)
    print(f"fresh seeds from {fresh}")
    assert "0 schedules went wrong" in _simulate(postgres_server, "--seeds", "1000:1140")
    assert "0 schedules went wrong" in _simulate(postgres_server, "--seeds", f"{fresh}:{fresh + 140}")


def test_a_seed_decides_everything(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither how fast the machine is nor how rows lie: the second time, its clock runs a thousand times as fast, and what
    asks for no order comes the other way round."""
    seeds = (*range(9), 256069294575)  # in 8 leases would be renewed by the real clock, in the last circuits rest
    database = own_database(postgres_server.dsn)
    try:
        first = [run(database, seed)[0] for seed in seeds]
        clock, read = time.monotonic, Statement.read
        monkeypatch.setattr(time, "monotonic", lambda: clock() * 1000)
        monkeypatch.setattr(Statement, "read", lambda one, rows: read(one, rows)[:: 1 if one.ordered else -1])
        again = [run(database, seed)[0] for seed in seeds]
    finally:
        database.close()
    for one, other in zip(first, again, strict=True):
        assert one.chance.trace == other.chance.trace
        assert one.lines == other.lines


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("select a from b order by a limit 3", True),
        ("select a from (select a from b order by a) c", False),
        (
            "with d as (select a from b order by (c + (1)) limit 3 for update) update b set a = 1 from d returning a",
            False,
        ),
        ("select array_agg(a order by a) from b group by c\n-- order by c", False),
    ],
)
def test_what_says_in_which_order_it_wants_its_rows(query: str, *, says: bool) -> None:
    """The simulator shuffles those of the others, by its seed."""
    assert ordered(query) is says


def test_each_schedule_has_some_faults_and_not_others() -> None:
    chosen = [frozenset(Chance(seed).rates) for seed in range(200)]
    assert all(any(fault in one for one in chosen) for fault in FAULTS)
    assert len(set(chosen)) > 150
