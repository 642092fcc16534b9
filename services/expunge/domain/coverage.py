"""What the statements about one chunk add up to, folded in log order; the same rules for verifying and for replay.

A step's first statement covers the whole chunk. Each later one names its predecessor and covers only leaves that were
left open: open, blocked, or found again by the rescan. The last outcome counts; erasing anew opens the absence anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from expunge.domain.errors import Tampered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.statement import Chunk, TreeScope
from expunge.domain.words import Outcome, Step

UNSETTLED: Final = bytes([Outcome.OPEN, Outcome.BLOCKED, Outcome.PRESENT])
"""Outcomes after which a later attempt may cover the leaf again."""

DEEDS: Final = frozenset({Step.HIDE, Step.ERASE})
"""Steps that change a store."""


@dataclass(slots=True)
class StepState:
    """The last statement of one step, and the last outcome of each leaf. `digest`: of the statement's payload."""

    attempt: int
    digest: str
    index: int
    outcomes: bytes


@dataclass(slots=True)
class ChunkState:
    """One chunk of `leaves` leaves (mutable: `add` folds). `root`: as its statements say, hex."""

    leaves: int
    root: str
    steps: dict[Step, StepState] = field(default_factory=dict)

    def add(self, chunk: Chunk, digest: str, index: int) -> None:
        """Fold the next statement, at log `index`, `digest` of its payload. Raises `Tampered` saying which rule it
        breaks."""
        told = _told(chunk, self.leaves)
        if chunk.chunk_root != self.root:
            raise Tampered(place(chunk), "expected one chunk root in all statements, got two")
        before = self.steps.get(chunk.step)
        if before is None:
            if chunk.previous is not None:
                raise Tampered(
                    place(chunk), f"expected attempt {chunk.attempt} to follow the statement it names, which is missing"
                )
            if chunk.step in DEEDS and Step.PRESENCE not in self.steps:
                raise Tampered(place(chunk), "expected presence to be recorded before, got none")
            outcomes = told
        else:
            _check_follows(chunk, before)
            outcomes = _merged(before.outcomes, chunk)
        self.steps[chunk.step] = StepState(chunk.attempt, digest, index, outcomes)
        self._open_again(chunk.step, told)

    def _open_again(self, step: Step, told: bytes) -> None:
        """What is erased anew must be rescanned; what the rescan found again may be erased again."""
        if step is Step.ERASE and (absence := self.steps.get(Step.ABSENCE)):
            absence.outcomes = bytes(
                old if new == Outcome.OPEN else Outcome.OPEN for old, new in zip(absence.outcomes, told, strict=True)
            )
        elif step is Step.ABSENCE and Outcome.PRESENT in told and (erase := self.steps.get(Step.ERASE)):
            erase.outcomes = bytes(
                Outcome.OPEN if new == Outcome.PRESENT else old for old, new in zip(erase.outcomes, told, strict=True)
            )


def place(chunk: Chunk) -> str:
    """Where a chunk statement belongs, in words."""
    return f"tree {chunk.tree} chunk {chunk.start // CHUNK_LEAVES} {chunk.step.value} attempt {chunk.attempt}"


def check_place(chunk: Chunk, trees: tuple[TreeScope, ...]) -> None:
    """Check that the statement is about a whole chunk of the tree it names. Raises `Tampered`."""
    if chunk.tree >= len(trees):
        raise Tampered(place(chunk), f"expected a tree below {len(trees)}, got {chunk.tree}")
    tree = trees[chunk.tree]
    if (chunk.kind, chunk.store) != (tree.kind, tree.store):
        raise Tampered(
            place(chunk), f"expected {tree.kind.value} in {tree.store}, got {chunk.kind.value} in {chunk.store}"
        )
    whole = chunk.start % CHUNK_LEAVES == 0 and chunk.start < tree.leaves
    if not whole or chunk.end != min(chunk.start + CHUNK_LEAVES, tree.leaves):
        raise Tampered(
            place(chunk), f"expected a whole chunk of {tree.leaves} leaves, got [{chunk.start}, {chunk.end})"
        )


def _told(chunk: Chunk, leaves: int) -> bytes:
    told = _expanded(chunk.outcomes, leaves)
    if told is None:
        total = sum([count for _, count in chunk.outcomes])
        raise Tampered(place(chunk), f"expected outcomes of {leaves} leaves, got {total}")
    return told


@lru_cache(maxsize=256)
def _expanded(runs: tuple[tuple[Outcome, int], ...], leaves: int) -> bytes | None:
    """Most chunks end alike, so they share their bytes. None for runs of more leaves or fewer, of which nothing is made."""
    if sum([count for _, count in runs]) != leaves:
        return None
    return b"".join(bytes([code]) * count for code, count in runs)


def _check_follows(chunk: Chunk, before: StepState) -> None:
    if chunk.attempt <= before.attempt:
        raise Tampered(place(chunk), f"expected an attempt after {before.attempt}, got {chunk.attempt}")
    if chunk.previous != before.digest:
        raise Tampered(place(chunk), f"expected it to name attempt {before.attempt} as its predecessor, got another")


def _merged(before: bytes, chunk: Chunk) -> bytes:
    after = bytearray(before)
    at = 0
    for code, count in chunk.outcomes:
        if code != Outcome.OPEN:
            if before[at : at + count].translate(None, UNSETTLED):
                raise Tampered(
                    place(chunk), f"expected only leaves left open, got others within [{at}, {at + count}) of the chunk"
                )
            after[at : at + count] = bytes([code]) * count
        at += count
    return bytes(after)
