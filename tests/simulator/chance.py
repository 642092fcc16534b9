"""Every decision of a schedule, drawn from its seed and written down. Nothing else in a schedule is left to chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

T = TypeVar("T")

FAULTS: Final = (
    "kill",  # a worker's process is gone, at any point between two of its effects
    "pause",  # a step waits while others go on: slow stores, slow threads, a worker that lost its turn
    "rebalance",  # partitions move while their old owner still works on them
    "lost-ack",  # a batch was handled, its offsets were not committed
    "repeat",  # a producer sends a message again
    "database-away",  # a transaction fails before its commit
    "commit-unanswered",  # a transaction commits and its worker is told that it failed
    "broker-away",  # nothing of a publish arrives
    "publish-unanswered",  # some or all of it arrives, and the worker is told that it failed
    "store-away",  # a store call fails before it does anything
    "store-unanswered",  # a store call has its effect and fails
    "partial",  # a store erases some and answers "try again" for others
    "blocked",  # a store refuses some, for a while
    "blocked-for-good",
    "lying",  # a store says "gone" and keeps, for a while
    "lying-for-good",
    "stale-listing",  # a store shows what it erased already, for a while
    "log-files-away",  # tiles or checkpoint cannot be written
    "clock-ahead",  # one clock jumps up to 40 days ahead
    "clock-back",  # or back
)  # fmt: skip
"""What can go wrong by itself. What people do (holds, cancels, forgeries) is in `company.py`."""

_RATES: Final = {
    "kill": 0.02,
    "pause": 0.3,
    "rebalance": 0.05,
    "lost-ack": 0.15,
    "repeat": 0.08,
    "database-away": 0.03,
    "commit-unanswered": 0.03,
    "broker-away": 0.1,
    "publish-unanswered": 0.1,
    "store-away": 0.1,
    "store-unanswered": 0.2,
    "partial": 0.2,
    "blocked": 0.06,
    "blocked-for-good": 0.03,
    "lying": 0.03,
    "lying-for-good": 0.02,
    "stale-listing": 0.1,
    "log-files-away": 0.1,
    "clock-ahead": 0.03,
    "clock-back": 0.03,
}
"""How often, each time it could, where a schedule has the fault at all."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much happens in a schedule. `steps`: decisions of the scheduler while there may be faults; `deeds`: what is
    planned to be asked; `people`, `photos`: who and what is there from the start; `doubled`: how likely a worker has a
    second process. Each pair: least and most."""

    steps: tuple[int, int]
    deeds: tuple[int, int]
    people: tuple[int, int]
    photos: tuple[int, int]
    doubled: float


SMALL: Final = Size(steps=(10, 60), deeds=(1, 2), people=(1, 3), photos=(1, 3), doubled=0.2)
LARGE: Final = Size(steps=(40, 160), deeds=(2, 6), people=(1, 4), photos=(2, 5), doubled=0.25)
LARGE_SHARE: Final = 0.5
"""Half of each, as neither finds more for its CPU time: of three bugs put back (1, 2 and 4 of BUGS.md), small ones found 9
in 135 s and large ones 8 in 121 s, but the large ones most of the first and the small ones most of the second."""


class Chance:
    """The dice of one schedule. `trace`: what they decided, in words; `faults`: how often each fault happened.

    Each schedule has a random half of the faults, so that rare combinations are not drowned by common ones (swarm
    testing: Groce et al., ISSTA 2012)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.trace: list[str] = []
        self.faults: Counter[str] = Counter()
        self.calm = True
        self.size = LARGE if self.random.random() < LARGE_SHARE else SMALL
        chosen = [one for one in FAULTS if self.random.random() < 0.5]
        self.rates: Mapping[str, float] = {one: _RATES[one] * self.random.choice((0.3, 1, 2)) for one in chosen}

    def note(self, what: str) -> None:
        """Write down what was decided or happened."""
        self.trace.append(what)

    def fault(self, kind: str, where: str) -> bool:
        """Whether this fault happens now."""
        rate = 0.0 if self.calm else self.rates.get(kind, 0.0)
        if not rate or self.random.random() >= rate:
            return False
        self.happened(kind, where)
        return True

    def happened(self, kind: str, where: str) -> None:
        """Count a fault."""
        self.faults[kind] += 1
        self.trace.append(f"! {kind} {where}")

    def likely(self, rate: float) -> bool:
        return self.random.random() < rate

    def pick(self, options: Sequence[T]) -> T:
        return options[self.random.randrange(len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        """Between one and `most` of them."""
        return self.random.sample(options, self.random.randint(1, min(most, len(options))))

    def between(self, bounds: tuple[int, int]) -> int:
        """One of the numbers from the least to the most, both included."""
        return self.random.randint(*bounds)

    def uuid(self) -> UUID:
        """As `uuid4`."""
        return UUID(int=self.random.getrandbits(128), version=4)
