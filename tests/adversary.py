"""Counts what the tests bend and see refused, by class, for the end of a run: `pytest --mutations` lists them.

A class is a test's name in words. What the verifier's own documentation calls unauthenticated is counted apart.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

REFUSED: Final[Counter[str]] = Counter()
UNAUTHENTICATED: Final[Counter[str]] = Counter()

_running = ["outside of a test"]


def begin(test: str) -> None:
    """What is counted from here on belongs to this test."""
    _running[0] = test.partition("[")[0].removeprefix("test_").replace("_", " ")


def refused(count: int = 1, what: str = "") -> None:
    """So many mutations were tried and seen to be refused."""
    if count:
        REFUSED[_running[0] + what] += count


def let_through(count: int, what: str) -> None:
    """So many mutations of `what` were tried and not refused, because it is documented as unauthenticated."""
    UNAUTHENTICATED[what] += count
