"""A seeded sample of the crash points, for as long as CI has: drawn from the list that the last whole enumeration wrote."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.faults import crashes
from tests.faults.crashes import Lab, Point, Tally

RECORDED: Final = Path(__file__).with_name("points.json")
"""[scenario, worker, point], each once. Written by `python -m tests.faults --only 1 --record`."""


def record(points: Iterable[Point]) -> None:
    rows = sorted({(one.scenario, one.worker, one.name) for one in points})
    RECORDED.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="ascii")


def recorded() -> list[Point]:
    """The first passing of each point, by scenario and worker."""
    rows = json.loads(RECORDED.read_text(encoding="ascii"))
    return [Point(scenario, worker, name, 1) for scenario, worker, name in rows]


def sampled(lab: Lab, seconds: float, seed: int) -> Tally:
    """Single points until then, at least one; what a run without a crash comes to is looked at before each scenario's
    first."""
    until, tally = time.monotonic() + seconds, Tally()
    points = [one for one in recorded() if one.scenario in crashes.INLINE]
    random.Random(seed).shuffle(points)
    clean: dict[str, Counter[str]] = {}
    for point in points:
        scenario = crashes.INLINE[point.scenario]
        if point.scenario not in clean:
            asked, clean[point.scenario] = lab.run(scenario)
            tally.violations += lab.wrong(asked, clean[point.scenario], clean[point.scenario])
        crashes.crash(lab, [point], scenario, clean[point.scenario], tally)
        if time.monotonic() > until:
            break
    tally.violations += crashes.log_holds(lab)
    tally.violations += [f"no scenario reaches {one}" for one in crashes.unreached(recorded())]
    return tally
