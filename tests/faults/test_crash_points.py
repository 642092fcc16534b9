"""Every crash point by kill -9, and the keys' points in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from expunge import crashing
from expunge.adapters.keys.files import FileKeys, read_master_key
from expunge.adapters.ledger.postgres import migrate
from expunge.domain.errors import Rejected
from expunge.settings import Settings
from expunge.wiring import Deployment
from tests.faults import crashes
from tests.faults.crashes import Tally
from tests.faults.sample import recorded

DAY = date(2026, 1, 2)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_every_point_killed_once_leaves_what_a_run_without_a_crash_leaves(tmp_path: Path) -> None:
    tally = Tally()
    points = crashes.whole(tmp_path, tally, crashes.once_by_name)
    print(tally.figures(), tally.missed)
    assert tally.violations == []
    assert crashes.unreached(points) == []


def test_every_point_of_the_list_is_reached_by_a_scenario_or_has_a_test_of_its_own() -> None:
    assert crashes.unreached(recorded()) == []


KILLED = """
import asyncio, sys
from datetime import UTC, date, datetime
from pathlib import Path
from expunge import crashing, keeping
from expunge.settings import Settings
from expunge.wiring import Deployment
crashing.arm(Path(sys.argv[1]))
asyncio.run(keeping.destroy_bucket(Deployment(Settings.read()), date(2026, 1, 2), at=datetime.now(UTC)))
"""


@pytest.mark.parametrize("point", sorted(crashes.KEYS))
def test_destroying_a_key_killed_at_any_point_is_finished_by_the_repeat(
    database: str, tmp_path: Path, point: str
) -> None:
    migrate(database)
    settings = Settings(database=database, kafka="127.0.0.1:9", data=tmp_path / "data", audience="test:keys")
    deployment = Deployment(settings)
    deployment.prepare()
    keys = FileKeys(settings.data / "keys/buckets", read_master_key(settings.data / "keys/master"))
    keys.bucket(DAY, create=True)
    order = tmp_path / "crash"
    environment = {**os.environ, **settings.environment(), crashing.VARIABLE: str(order)}
    command = [sys.executable, "-c", KILLED, str(order)]
    order.write_text(f"{point} 1 kill\n")
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for _ in range(2):
        again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
    with pytest.raises(Rejected, match="destroyed"):
        keys.bucket(DAY, create=True)
    import psycopg

    with psycopg.connect(database) as connection:
        row = connection.execute("select count(*) from log_entry").fetchone()
    assert row == (1,)
    assert datetime.now(UTC).date() != DAY
