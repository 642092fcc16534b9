"""A seeded sample of the crash points, for as long as CI has: drawn from the list that the last whole enumeration wrote. What
publisher, stores, topics, ledger and log saw of it is a history, which the checker judges that knows none of the product.
"""

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
from tests.faults.small import Small

RECORDED: Final = Path(__file__).with_name("points.json")
"""[scenario, worker, point], each once. Written by `python -m tests.faults --only 1 --record`."""


def record(points: Iterable[Point]) -> None:
    rows = sorted({(one.scenario, one.worker, one.name) for one in points})
    RECORDED.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="ascii")


def recorded() -> list[Point]:
    """The first passing of each point, by scenario and worker."""
    rows = json.loads(RECORDED.read_text(encoding="ascii"))
    return [Point(scenario, worker, name, 1) for scenario, worker, name in rows]


def sampled(folder: Path, seconds: float, seed: int) -> tuple[Tally, int]:
    """Single points until then, at least one; and how many records the history has."""
    tally, history = Tally(), folder / "history.jsonl"
    with Small(folder / "run", history=history) as small:
        assert small.told is not None
        recorder = small.told.recorder
        lab = Lab(small, reserve=12, first="keys.drawn")
        recorder.phase("faults")
        _draw(lab, tally, time.monotonic() + seconds, seed)
        recorder.phase("calm")
        lab.run(crashes.deletion)
        tally.violations += crashes.log_holds(lab)
        tally.violations += [f"the history: {one}" for one in small.told.finish(small)]
    tally.violations += [f"no scenario reaches {one}" for one in crashes.unreached(recorded())]
    return tally, len(history.read_bytes().splitlines())


def _draw(lab: Lab, tally: Tally, until: float, seed: int) -> None:
    """What a run without a crash comes to is looked at before each scenario's first."""
    # Each once by the scenario that comes first, and only then shuffled: in `parked` a store is away, and a worker killed
    # meanwhile does not come up again before it is back.
    points = crashes.once_each([one for one in recorded() if one.scenario in crashes.INLINE])
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
