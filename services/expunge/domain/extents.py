"""How an order's artifacts are read: by units in ascending order, a bounded number at a time, from the ranges of images
in which those units have any. No sort in the database, and memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PAGE_LEAVES: Final = 65_536
"""Artifacts read together, about."""
MOST_LEAVES: Final = 4 * PAGE_LEAVES
"""Where units lie interleaved, so that each read passes over the others' rows too: fewer reads, of so many at most."""


@dataclass(frozen=True, slots=True)
class Extent:
    """One unit's share in an order: how many artifacts, of images from `first` to `last`."""

    unit: int
    artifacts: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Read:
    """Artifacts of units [first_unit, last_unit] that are of images in [first, end)."""

    first_unit: int
    last_unit: int
    first: int
    end: int


def reads(extents: Sequence[Extent]) -> Iterator[Read]:
    """Reads that lead to each artifact once, ordered by (unit, image) from read to read. `extents`: of one tree, ascending
    by unit, each once.

    Units that follow each other are read together up to `PAGE_LEAVES`, those whose images overlap up to `MOST_LEAVES`; a
    unit of more than `PAGE_LEAVES` is cut by images.
    """
    at = 0
    while at < len(extents):
        one = extents[at]
        if one.artifacts > PAGE_LEAVES:
            yield from _cut(one)
            at += 1
            continue
        end, taken, first, last = at + 1, one.artifacts, one.first, one.last
        while end < len(extents):
            more = extents[end]
            apart = more.first >= last
            if taken + more.artifacts > (PAGE_LEAVES if apart else MOST_LEAVES):
                break
            taken += more.artifacts
            first, last = min(first, more.first), max(last, more.last)
            end += 1
        yield Read(one.unit, extents[end - 1].unit, first, last + 1)
        at = end


def _cut(one: Extent) -> Iterator[Read]:
    """A large unit by images, each part of about `PAGE_LEAVES` artifacts where they are spread evenly."""
    parts = -(-one.artifacts // PAGE_LEAVES)
    images = one.last + 1 - one.first
    parts = min(parts, images)
    for part in range(parts):
        first, end = (one.first + images * number // parts for number in (part, part + 1))
        yield Read(one.unit, one.unit, first, end)
