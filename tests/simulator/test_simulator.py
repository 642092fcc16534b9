"""Schedules in the test run: fixed seeds in every one, more of them and fresh ones in the slow tier.

They run as a user would replay them, in a process whose sets of text have a fixed order.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PostgresServer
from tests.simulator.__main__ import own_database
from tests.simulator.chance import FAULTS, Chance
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


def test_a_seed_decides_everything(postgres_server: PostgresServer) -> None:
    database = own_database(postgres_server.dsn)
    try:
        first, _ = run(database, 5)
        run(database, 6)  # what another schedule leaves behind must not matter
        again, _ = run(database, 5)
    finally:
        database.close()
    assert first.chance.trace == again.chance.trace
    assert first.lines == again.lines


def test_each_schedule_has_some_faults_and_not_others() -> None:
    chosen = [frozenset(Chance(seed).rates) for seed in range(200)]
    assert all(any(fault in one for one in chosen) for fault in FAULTS)
    assert len(set(chosen)) > 150
