"""`python -m tests.faults.soak --minutes N`: pairs of crashes, all occurrences of points, long faults and simulator seeds,
one after another until the time is over. Everything is drawn from a seed that is printed, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import time

from tests.faults import crashes
from tests.faults.__main__ import carried_out, line
from tests.faults.crashes import Lab, Tally
from tests.faults.ground import Ground
from tests.faults.matrix import FAULTS


def pairs(lab: Lab, drawn: random.Random, until: float, tally: Tally) -> None:
    """Two points, drawn from all occurrences, until then."""
    clean, points = crashes.survey(lab, crashes.INLINE)
    by_scenario = {title: [one for one in points if one.scenario == title] for title in clean}
    while time.monotonic() < until:
        title = drawn.choice(sorted(clean))
        chosen = drawn.sample(by_scenario[title], 2)
        if chosen[0].worker == chosen[1].worker:
            chosen = chosen[:1]  # a worker's file holds one order
        crashes.crash(lab, chosen, crashes.INLINE[title], clean[title], tally)
    tally.violations += crashes.log_holds(lab)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    began, drawn, bad = time.monotonic(), random.Random(wanted.seed), 0
    with Ground(scale=3.0) as ground:
        tally = Tally()
        pairs(ground.lab, drawn, began + wanted.minutes * 60 / 2, tally)
        print(f"crash pairs: {tally.figures()}", *tally.violations, sep="\n  ", flush=True)
        bad += len(tally.violations)
        several = [one for one in FAULTS if one.number not in {1, 2}]
        drawn.shuffle(several)
        for fault in [*(one for one in several if one.long), *(one for one in several if not one.long)]:
            if time.monotonic() - began > wanted.minutes * 60 * 0.9:
                break
            row = carried_out(fault, ground)
            print(line(row), *row.get("violations", ()), sep="\n  ", flush=True)
            bad += len(row.get("violations", ()))
    left = max(30.0, wanted.minutes * 60 - (time.monotonic() - began))
    if importlib.util.find_spec("tests.simulator") is None:
        print("NOT RUN: simulator seeds, there is no tests/simulator in this tree")
    else:
        ran = subprocess.run([sys.executable, "-m", "tests.simulator", "--minutes", f"{left / 60:.1f}"], check=False)
        bad += ran.returncode != 0
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
