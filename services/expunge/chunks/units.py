"""Leaves of many orders brought together by unit, and store calls over units: one call per unit, for all its orders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from expunge.chunks.orders import NOTHING_DONE, Claim, Finding, Past, Row, covered, merged, rows, standing
from expunge.chunks.scopes import OpenScope, Run
from expunge.domain.errors import FencedOff, Rejected, Retryable
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.locators import Locators
from expunge.domain.words import Step
from expunge.ports import Outcomes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expunge.ports import Signer, StoreReader

T = TypeVar("T", bound=np.generic)


class Doing:
    """One claimed order while it is worked on (mutable): its run, the leaves its attempt covers, what was there before,
    what came of them (OPEN to begin with), and findings per chunk. `later`: why something of it cannot be done now.
    """

    def __init__(self, claimed: Claim, scope: OpenScope) -> None:
        order = claimed.order
        self.claim = claimed
        self.order = order
        self.scope = scope
        self.run: Run = scope.run(order.tree, order.first_chunk, order.end_chunk)
        self.store = scope.trees[order.tree].store
        self.kind = scope.trees[order.tree].kind
        self.cover: NDArray[np.bool_] = self.joined(lambda past, n: covered(past, order.step, n))
        self.presence: Outcomes = self.joined(lambda past, n: merged(past, Step.PRESENCE, n))
        self.outcomes: Outcomes = np.zeros(len(self.run.unit), np.uint8)
        self.findings: list[Finding | None] = [None] * (order.end_chunk - order.first_chunk)
        self.later: str | None = None
        self.blocked_until: datetime | None = None

    def stands(self) -> Outcomes:
        """How erasing each leaf stands."""
        return self.joined(standing)

    def excluded(self) -> NDArray[np.bool_]:
        """Covered leaves that must not be touched."""
        indices = self.claim.excluded.astype(np.int64) - self.run.start
        mask = np.zeros(len(self.run.unit), np.bool_)
        mask[indices[(indices >= 0) & (indices < len(mask))]] = True
        return mask & self.cover

    def found(self, chunk: int, finding: Finding) -> None:
        """Add what one unit says to what its chunk's statement says."""
        self.findings[chunk] = both(self.findings[chunk], finding)

    def told(self) -> Outcomes:
        """The outcomes of the covered leaves."""
        return self.outcomes[self.cover]

    def rows(self, signer: Signer, at: datetime) -> list[Row]:
        """Signed outcome rows."""
        findings = [finding or NOTHING_DONE for finding in self.findings]
        return rows(
            self.claim, self.scope, self.run, cover=self.cover, outcomes=self.outcomes, findings=findings,
            signer=signer, at=at,
        )  # fmt: skip

    def joined(self, of: Callable[[list[Past], int], NDArray[T]]) -> NDArray[T]:
        """A function of each chunk's past and number of leaves, for all chunks together."""
        past, run = self.claim.past, self.run
        chunks = range(run.first_chunk, run.first_chunk + len(run.digests))
        sizes = [place.stop - place.start for place in map(run.positions, chunks)]
        return np.concatenate([of(past.get(chunk, []), n) for chunk, n in zip(chunks, sizes, strict=True)])


def both(one: Finding | None, other: Finding) -> Finding:
    """What can be said of two units together: the lower level, and all residue."""
    if one is None or one == other:
        return other
    return Finding(
        level=min(one.level, other.level),
        method="+".join(sorted({*one.method.split("+"), *other.method.split("+")})),
        residue=tuple(sorted({*one.residue, *other.residue})),
        sampled=one.sampled + other.sampled,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One order's leaves in one unit, [first, end) of its run; `at` says which of these if not all."""

    doing: Doing
    first: int
    end: int
    at: slice | NDArray[np.intp]
    locators: Locators

    def chunks(self) -> range:
        """The chunks that the unit's leaves are in, counted from the run's first."""
        return range(self.first // CHUNK_LEAVES, (self.end - 1) // CHUNK_LEAVES + 1)


@dataclass(slots=True)
class UnitWork:
    """One unit and all who want something of it (mutable). After the call: what was `said` of each part's leaves, and
    `findings` about the unit; or `trouble`."""

    store: str
    unit: str
    parts: list[Part]
    said: list[NDArray[np.uint8]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    trouble: Exception | None = None
    blocked_until: datetime | None = None

    @property
    def leaves(self) -> int:
        return sum(len(part.locators) for part in self.parts)

    def locators(self) -> Locators:
        """All of them, each once, sorted where several orders meet."""
        if len(self.parts) == 1:
            return self.parts[0].locators
        return Locators.of(sorted({locator for part in self.parts for locator in part.locators}))

    def spread(self, locators: Sequence[str], said: NDArray[np.uint8]) -> None:
        """Give each part what was said of its own among `locators`."""
        if len(self.parts) == 1:
            self.said = [said]
        else:
            place = {locator: n for n, locator in enumerate(locators)}
            self.said = [said[[place[locator] for locator in part.locators]] for part in self.parts]


def gather(doings: Iterable[Doing], wanted: Callable[[Doing], NDArray[np.bool_]]) -> list[UnitWork]:
    """The wanted leaves of all orders by (store, unit), in physical order of the first order that names the unit."""
    found: dict[tuple[str, str], UnitWork] = {}
    for doing in doings:
        mask = wanted(doing)
        everything = bool(mask.all())
        for unit, first, end in doing.run.slices():
            part = _part(doing, mask, first, end, everything=everything)
            if part is not None:
                found.setdefault((doing.store, unit), UnitWork(doing.store, unit, [])).parts.append(part)
    return list(found.values())


def _part(doing: Doing, mask: NDArray[np.bool_], first: int, end: int, *, everything: bool) -> Part | None:
    locators = doing.run.locators[first:end]
    if everything or (here := mask[first:end]).all():
        return Part(doing, first, end, slice(first, end), locators)
    if not here.any():
        return None
    at = np.flatnonzero(here)
    return Part(doing, first, end, at + first, locators.take(at))


async def call_all(
    works: Iterable[UnitWork], call: Callable[[UnitWork], None], stores: Mapping[str, StoreReader]
) -> None:  # fmt: skip
    """`call_each`, in as many threads for each store as it has units worked on at once."""
    by_store: dict[str, list[UnitWork]] = {}
    for work in works:
        by_store.setdefault(work.store, []).append(work)
    await asyncio.gather(
        *(
            asyncio.to_thread(call_each, piece, call)
            for store, some in by_store.items()
            for piece in pieces(some, stores[store].capabilities.units_at_once)
        )
    )


def pieces(works: list[UnitWork], count: int) -> list[list[UnitWork]]:
    """Cut into at most `count` stretches of about the same number of leaves."""
    if not works:
        return []
    ends = np.cumsum([work.leaves for work in works])
    owner = np.minimum((ends - 1) * count // int(ends[-1]), count - 1)
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(works)]
    return [works[a:b] for a, b in pairwise(cuts)]


def call_each(works: Sequence[UnitWork], call: Callable[[UnitWork], None]) -> None:
    """Call once per unit, in order. What one unit's store refuses or postpones is that unit's `trouble`. Blocking."""
    for work in works:
        try:
            call(work)
        except (Retryable, FencedOff, Rejected) as trouble:
            work.trouble = trouble


def around_hostile(locators: Sequence[str], call: Callable[[Sequence[str]], NDArray[np.uint8]], bad: int) -> Outcomes:
    """Call with all locators; if the store refuses some name among them, with halves, so that one hostile name costs
    only itself: it gets `bad`."""
    try:
        return call(locators)
    except Rejected as refused:
        if refused.code != "hostile-locator":
            raise
        if len(locators) == 1:
            return np.full(1, bad, np.uint8)
    middle = len(locators) // 2
    halves = (around_hostile(half, call, bad) for half in (locators[:middle], locators[middle:]))
    return np.concatenate(list(halves))
