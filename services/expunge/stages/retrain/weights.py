"""Destroying a model's file and looking for its bytes again. Blocking; idempotent.

After a crash between erasing and recording, the file is absent and its byte windows are lost with the process: the
repeat then claims only that the file cannot be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from expunge.domain.errors import Rejected
from expunge.domain.words import FINAL_ABSENT, Level, Outcome
from expunge.ports import Store
from expunge.stages.retrain.world import Weights

ABSENT_ALREADY: Final = "absent when looked for"


@dataclass(frozen=True, slots=True)
class Destroyed:
    """How far the destruction of a file was verified."""

    level: Level
    method: str


def destroy(store: Store, weights: Weights, fence: int) -> Destroyed:
    """Erase and verify. Raises `Rejected("weights-remain")` when the store refuses or bytes are found again."""
    names = [weights.locator]
    if not store.probe(weights.unit, names)[0]:
        return Destroyed(Level.UNREACHABLE, ABSENT_ALREADY)
    needles = store.needles(weights.unit, names)[0]
    erasure = store.erase(weights.unit, names, fence)
    gone = Outcome(int(erasure.outcomes[0])) in FINAL_ABSENT and not store.probe(weights.unit, names)[0]
    if not gone or any(store.scan(weights.unit, needles)):
        raise Rejected("weights-remain", "expected the file's bytes to be absent after it was erased")
    if not needles:
        return Destroyed(min(erasure.level, Level.UNREACHABLE), erasure.method)
    return Destroyed(min(erasure.level, store.capabilities.max_level), f"{erasure.method}, byte windows looked for")
