"""`python -m tests.faults [--only 1,4,7] [--list] [--scale X]`: runs faults on real servers, prints a table, writes JSON.

`--scale`: 1 as in the slow tier; more for longer outages and more runs (`make soak`).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from expunge.embedded import kafka, postgres
from tests.faults.ground import Fault, Ground, NotHere, Report, to_json
from tests.faults.matrix import FAULTS
from tests.versitygw import MODULE


def carried_out(fault: Fault, ground: Ground) -> dict[str, Any]:
    """One row of the table."""
    began = time.monotonic()
    row: dict[str, Any] = {"fault": fault.number, "title": fault.title}
    try:
        report = fault.run(ground)
    except NotHere as missing:
        return row | {"not_run": str(missing)}
    except Exception as error:  # noqa: BLE001 - a scenario that breaks is a result, and the next one runs
        traceback.print_exc()
        report = Report({}, 1, [f"the scenario ended with {type(error).__name__}: {error}"])
    return row | {
        "runs": report.runs,
        "violations": report.violations,
        "figure": report.figure,
        "seconds": round(time.monotonic() - began, 1),
    }


def line(row: dict[str, Any]) -> str:
    head = f"{row['fault']:>2}  {row['title']:<50}"
    if "not_run" in row:
        return f"{head}  NOT RUN: {row['not_run']}"
    return f"{head}  runs {row['runs']:>4}  violations {len(row['violations'])}  {row['seconds']:>6} s  {row['figure']}"


def versions() -> str:
    """What it all runs on."""
    return (
        f"PostgreSQL {postgres.version()}, Kafka {kafka.DEFAULT_VERSION}, {MODULE.rpartition('/')[2]}, Python"
        f" {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="numbers, such as 1,4,7")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--fast", action="store_true", help="without those that take minutes")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--sample", type=float, default=0.0, help="seconds for crash points, drawn; else all of them")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="of the sample")
    parser.add_argument("--record", action="store_true", help="write down which points all crash scenarios pass")
    parser.add_argument("--out", type=Path, default=Path("faults-output/faults.json"))
    wanted = parser.parse_args()
    numbers = {int(one) for one in wanted.only.split(",") if one}
    chosen = [one for one in FAULTS if (not numbers or one.number in numbers) and not (wanted.fast and one.long)]
    if wanted.list:
        for one in FAULTS:
            print(f"{one.number:>2}  {one.title}{'  (minutes)' if one.long else ''}")
        return 0
    rows = []
    print(versions(), flush=True)
    with Ground(wanted.scale, sample=wanted.sample, seed=wanted.seed, record=wanted.record) as ground:
        for one in chosen:
            rows.append(carried_out(one, ground))
            print(line(rows[-1]), flush=True)
            for violation in rows[-1].get("violations", ()):
                print(f"      {violation}", flush=True)
            to_json(rows, wanted.out)
    return 1 if any(row.get("violations") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
