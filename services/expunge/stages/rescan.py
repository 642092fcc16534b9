"""Rescan: what is there before anything is touched, and what is there after, read from the stores and not our tables.

It has a key of its own and readers only. Evidence is two-sided: a byte window counts only if the unit's files held it
before. Windows are cut from a sample that follows from the checkpoint that published the scope: `SAMPLE` artifacts of a
chunk, fewer where a run has many chunks (`RUN_SAMPLE`). Each chunk's statement says how many (`sampled`).

An artifact that another sweep holds too may be hidden by the time it is looked for first, and not to be seen means nothing
then: the windows that the other sweep cut are looked for as well, whichever was sealed first.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np
import structlog

from expunge.chunks import orders as work_orders
from expunge.chunks.circuits import Circuits
from expunge.chunks.orders import (
    Claim,
    Finding,
    Inbox,
    Other,
    Past,
    Recorded,
    Refusal,
    Row,
    merged,
    unfinished,
    verified,
)
from expunge.chunks.units import Doing, UnitWork, around_hostile, call_all, gather
from expunge.crashing import crash_point
from expunge.domain import dsse, needles, statement
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.domain.events import AbsenceVerified, PresenceRecorded, ResidueFound, WorkOrdered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.needles import Needle
from expunge.domain.words import FINAL_ABSENT, Level, Outcome, Role, Step
from expunge.record import emit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expunge.chunks.erasing import Task
    from expunge.chunks.scopes import OpenScope, Scopes
    from expunge.ports import Clock, Delivery, Ledger, Refused, SealedStore, Signer, StoreReader, Tx
    from expunge.tasks import Commit

WORKER: Final = "rescan"
SAMPLE: Final = 8
"""Artifacts of each chunk whose bytes are looked for."""
RUN_SAMPLE: Final = 256
"""Artifacts of a run whose bytes are looked for, however many chunks it has; but one of each chunk at least."""
INLINE_LEAVES: Final = 131_072
"""Leaves examined in one batch of events; the rest becomes tasks."""

_UNREADABLE: Final = 2
"""Beside absent (0) and present (1): the store refuses the very name."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Examined:
    """What a batch came to. `beyond`: orders that exceed the bound; `later`: orders that met with trouble."""

    inbox: Inbox
    rows: list[Row] = field(default_factory=list)
    done: list[Recorded] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    beyond: list[WorkOrdered] = field(default_factory=list)
    later: list[WorkOrdered] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Leaves of a run that another sweep's `tree` holds too. `runs`: first chunks of its runs that have them; `positions`:
    from index there to position in our run."""

    sweep_id: UUID
    scope: OpenScope
    tree: int
    runs: Sequence[int]
    positions: Mapping[int, int]


class Rescan:
    """Handler of `expunge.rescan`, and of its task kind. `max_attempts`: residue in the last attempt is FAILED.

    `sealed` takes the needle files. `scan_files`: scan for people's sweeps also where each artifact is a file or object
    of its own, to find copies of its bytes under other names. That reads every file beside the erased one. Orders are
    always scanned. A reader that could erase is refused: the rescanner's word is worth
    something only because it cannot make itself right.
    """

    dedupe = False  # outcome rows know repeats, and a repeat is answered from them
    task_kind: Final = WORKER

    def __init__(
        self,
        *,
        ledger: Ledger,
        scopes: Scopes,
        sealed: SealedStore,
        readers: Mapping[str, StoreReader],
        signer: Signer,
        clock: Clock,
        max_attempts: int,
        sample: int = SAMPLE,
        scan_files: bool = False,
        inline_leaves: int = INLINE_LEAVES,
    ) -> None:
        if able := sorted(name for name, one in readers.items() if hasattr(one, "erase") or hasattr(one, "hide")):
            raise Misconfigured(f"expected readers without erase and hide, got stores: {able}")
        if signer.role is not Role.RESCANNER:
            raise Misconfigured(f"expected a key of role {Role.RESCANNER}, got {signer.role}")
        self._ledger = ledger
        self._scopes = scopes
        self._sealed = sealed
        self._readers = readers
        self._signer = signer
        self._clock = clock
        self._max_attempts = max_attempts
        self._sample = sample
        self._scan_files = scan_files
        self._inline_leaves = inline_leaves
        self._circuits = Circuits(WORKER)

    async def act(self, deliveries: Sequence[Delivery]) -> Examined:
        """Look."""
        inbox = Inbox(deliveries)
        return await self._examine(inbox, inbox.orders, self._inline_leaves)

    async def commit(self, acted: Examined, tx: Tx) -> list[Refused]:
        """Record what was seen, and say so."""
        await work_orders.put(tx, acted.rows)
        await work_orders.defer(tx, self.task_kind, beyond=acted.beyond, later=acted.later)
        await emit(tx, WORKER, [_said(one) for one in acted.done], at=self._clock())
        return acted.inbox.refused(acted.refusals)

    async def task(self, lease: Task) -> Commit:
        """An order that was left for later."""
        order = WorkOrdered.model_validate_json(json.dumps(lease.input))
        examined = await self._examine(Inbox(()), [order], None)
        work_orders.tell(examined.refusals)
        if examined.later or any(one.later for one in examined.refusals):
            raise Retryable("the store could not be read")
        return partial(self._finish, examined)

    async def _finish(self, examined: Examined, tx: Tx) -> None:
        await self.commit(examined, tx)

    async def _examine(self, inbox: Inbox, ordered: Sequence[WorkOrdered], bound: int | None) -> Examined:
        """Examine a batch.

        1. claim: what was done before is answered from its rows; what exceeds the bound is for later
        2. read the runs from the sealed scope files
        3. probe, once per unit
        4. presence: cut needles of the sample, count them in the unit's files, seal them
           absence: open the needles, and those of sweeps that hold the same artifacts, count them again
        5. sign
        """
        examined = Examined(inbox)
        wrong = [order for order in ordered if order.step not in {Step.PRESENCE, Step.ABSENCE}]
        examined.refusals.extend(Refusal(order, "wrong-step") for order in wrong)
        async with self._ledger.transaction() as tx:
            found = await work_orders.claim(tx, [order for order in ordered if order not in wrong], effects=False)
            claims = self._within(found.claims, bound, examined)
            roots = await _checkpoints(tx, claims)
            others = await work_orders.others(tx, claims)
        crash_point("rescan.claimed")
        examined.done.extend(found.recorded)
        examined.refusals.extend(found.refusals)
        doings = await asyncio.to_thread(self._read, claims, examined)
        before = [doing for doing in doings if doing.order.step is Step.PRESENCE]
        after = [doing for doing in doings if doing.order.step is Step.ABSENCE]
        if before:
            await self._presence(before, roots, others)
        if after:
            await self._absence(after, others)
        at = self._clock()
        for doing in doings:
            if doing.later is None:
                examined.rows.extend(await asyncio.to_thread(doing.rows, self._signer, at))
                examined.done.append(Recorded(doing.order, doing.told()))
            else:
                log.info("order left for later", action="defer", reason=doing.later, sweep=doing.order.sweep_id)
                examined.later.append(doing.order)
        crash_point("rescan.signed")
        return examined

    def _within(self, claims: list[Claim], bound: int | None, examined: Examined) -> list[Claim]:
        inline, leaves = [], 0
        for claim in claims:
            leaves += (claim.order.end_chunk - claim.order.first_chunk) * CHUNK_LEAVES
            if bound is None or leaves <= bound:
                inline.append(claim)
            else:
                examined.beyond.append(claim.order)
        return inline

    def _read(self, claims: Iterable[Claim], examined: Examined) -> list[Doing]:
        doings = []
        for claim in claims:
            try:
                doing = Doing(claim, self._scopes.open(claim.sweep))
            except Rejected as refused:
                examined.refusals.append(Refusal(claim.order, refused.code))
                continue
            if doing.store in self._readers:
                doings.append(doing)
            else:
                log.error("order for a store that this worker cannot read", action="park", store=doing.store)
                examined.refusals.append(Refusal(claim.order, "unknown-store", later=True))
        return doings

    # --- before

    async def _presence(self, doings: list[Doing], roots: Mapping[UUID, bytes], others: Mapping[UUID, Other]) -> None:
        seen = await self._probe(doings, {doing: doing.cover for doing in doings})
        crash_point("rescan.probed")
        sampled: dict[Doing, NDArray[np.bool_]] = {}
        for doing in doings:
            overlap = np.zeros(len(doing.cover), np.bool_)
            indices = doing.scope.overlaps(doing.order.tree).astype(np.int64) - doing.run.start
            overlap[indices[(indices >= 0) & (indices < len(overlap))]] = True
            for shared in self._shared(doing, others):
                overlap[list(shared.positions.values())] = True
            absent = np.where(overlap, np.uint8(Outcome.GONE_EARLIER), np.uint8(Outcome.ABSENT_BEFORE))
            told = (absent, np.uint8(Outcome.PRESENT), np.uint8(Outcome.FAILED))
            doing.outcomes = np.choose(seen[doing], told).astype(np.uint8)
            if doing.later is None and self._scans(doing):
                root = roots.get(doing.claim.sweep.sweep_id)
                if root is None:
                    doing.later = "no-checkpoint"
                else:
                    # What is not shown where erasing rewrites a unit may only be hidden: its bytes are there then.
                    hides = self._readers[doing.store].capabilities.rewrites_unit
                    there = (doing.outcomes == Outcome.PRESENT) | (hides & (doing.outcomes != Outcome.FAILED))
                    sampled[doing] = self._drawn(doing, root) & there
        cut = await self._cut(sampled)
        for doing in sampled:
            if doing.later is None:
                cut[doing] = await asyncio.to_thread(self._keep, doing, cut[doing])
        for doing in doings:
            leaves = {needle.index - doing.run.start for needle in cut.get(doing, ())}
            doing.outcomes[list(leaves)] = Outcome.PRESENT
            for chunk, count in enumerate(_by_chunk(leaves, len(doing.findings))):
                doing.found(chunk, Finding(Level.ACKNOWLEDGED, "probe+scan" if count else "probe", (), count))

    def _drawn(self, doing: Doing, root: bytes) -> NDArray[np.bool_]:
        mask = np.zeros(len(doing.cover), np.bool_)
        order, sweep = doing.order, doing.claim.sweep.sweep_id
        count = min(self._sample, max(RUN_SAMPLE // (order.end_chunk - order.first_chunk), 1))
        for chunk in range(order.first_chunk, order.end_chunk):
            place = doing.run.positions(chunk)
            drawn = needles.sample(
                root, sweep, tree=order.tree, chunk=chunk, leaves=place.stop - place.start, count=count
            )
            mask[np.array(drawn, np.intp) + place.start] = True
        return mask

    async def _cut(self, sampled: Mapping[Doing, NDArray[np.bool_]]) -> dict[Doing, list[Needle]]:
        """Needles of the sampled leaves that the unit's own files hold."""
        works = gather(sampled, lambda doing: sampled[doing])
        held: dict[tuple[str, str], dict[str, list[tuple[bytes, int]]]] = {}

        def cut(work: UnitWork) -> None:
            reader, locators = self._readers[work.store], work.locators()
            cuts = reader.needles(work.unit, locators)
            every = list(dict.fromkeys(window for one in cuts for window in one))
            # A unit that artifacts share may hold them encoded, so that no window is ever seen: counted before, or
            # void. Where an artifact is a file of its own, the window was read from that file a moment ago.
            shared = reader.capabilities.rewrites_unit
            before = reader.scan(work.unit, every) if shared and every else [1] * len(every)
            counts = dict(zip(every, before, strict=True))
            held[work.store, work.unit] = {
                locator: [(window, counts[window]) for window in one if counts[window]]
                for locator, one in zip(locators, cuts, strict=True)
            }

        await call_all(works, self._circuits.guarded(cut), self._readers)
        found: dict[Doing, list[Needle]] = {doing: [] for doing in sampled}
        for work in works:
            for part in work.parts:
                if isinstance(work.trouble, Retryable):
                    part.doing.later = "store-unreachable"
                here = held.get((work.store, work.unit), {})
                leaves = np.arange(len(part.doing.cover))[part.at] + part.doing.run.start
                found[part.doing] += [
                    Needle(leaf, count, window)
                    for leaf, locator in zip(leaves.tolist(), part.locators, strict=True)
                    for window, count in here.get(locator, ())
                ]
        return found

    def _keep(self, doing: Doing, cut: list[Needle]) -> list[Needle]:
        """Seal needles. What an earlier run kept before it crashed stands."""
        name = _file_of(doing)
        try:
            self._sealed.write(name, [needles.seal(doing.scope.key, name, cut)])
            crash_point("rescan.needled")
        except FileExistsError:
            return self._kept(doing)
        return cut

    def _kept(self, doing: Doing) -> list[Needle]:
        return self._unsealed(doing.scope.key, _file_of(doing))

    def _unsealed(self, key: bytes, name: str) -> list[Needle]:
        try:
            sealed = bytes(self._sealed.open(name))
        except FileNotFoundError:
            return []
        return needles.unseal(key, name, sealed)

    def _scans(self, doing: Doing) -> bool:
        able = self._readers[doing.store].capabilities
        worth = able.rewrites_unit or doing.claim.sweep.is_order or self._scan_files
        return worth and able.max_level >= Level.FILE_ABSENT

    # --- after

    async def _absence(self, doings: list[Doing], others: Mapping[UUID, Other]) -> None:
        stands = {doing: doing.stands() for doing in doings}
        seen = await self._probe(doings, {doing: doing.cover & (stands[doing] != Outcome.EXCLUDED) for doing in doings})
        for doing in doings:
            rewrites = self._readers[doing.store].capabilities.rewrites_unit
            told = verified(seen[doing] == 1, doing.presence, stands[doing], rewrites_unit=rewrites)
            unreadable = doing.cover & (seen[doing] == _UNREADABLE)
            doing.outcomes = np.where(unreadable, np.uint8(Outcome.FAILED), told).astype(np.uint8)
        looked = await self._look_again([doing for doing in doings if doing.later is None], others)
        for doing in doings:
            self._settle(doing, *looked.get(doing, (set(), set(), set())))

    async def _look_again(
        self, doings: Sequence[Doing], others: Mapping[UUID, Other]
    ) -> dict[Doing, tuple[set[int], set[int], set[int]]]:
        """Positions of leaves whose needles were looked for, of those that were found, and of those in units that could
        not be scanned."""
        kept = {
            doing: await asyncio.to_thread(self._known, doing, others) for doing in doings if self._scans(doing)
        }  # fmt: skip
        asked: dict[Doing, dict[int, list[bytes]]] = {}
        for doing, cut in kept.items():
            gone = np.isin(_final(doing), list(FINAL_ABSENT))
            windows: dict[int, list[bytes]] = {}
            for position, window in cut:
                if gone[position]:
                    windows.setdefault(position, []).append(window)
            asked[doing] = windows
        works = gather(asked, lambda doing: _mask(asked[doing], len(doing.cover)))
        counts: dict[tuple[str, str], dict[bytes, int]] = {}

        def scan(work: UnitWork) -> None:
            every = dict.fromkeys(
                window for part in work.parts for leaf in _leaves(part.at) for window in asked[part.doing].get(leaf, ())
            )
            found = self._readers[work.store].scan(work.unit, list(every))
            counts[work.store, work.unit] = dict(zip(every, found, strict=True))

        await call_all(works, self._circuits.guarded(scan), self._readers)
        looked: dict[Doing, tuple[set[int], set[int], set[int]]] = {doing: (set(), set(), set()) for doing in asked}
        for work in works:
            for part in work.parts:
                scanned, hit, missed = looked[part.doing]
                leaves = [leaf for leaf in _leaves(part.at) if leaf in asked[part.doing]]
                if work.trouble is not None:
                    missed.update(leaves)
                    if isinstance(work.trouble, Retryable):
                        part.doing.later = "store-unreachable"
                    continue
                here = counts[work.store, work.unit]
                scanned.update(leaves)
                hit.update(leaf for leaf in leaves if any(here[window] for window in asked[part.doing][leaf]))
        return looked

    def _known(self, doing: Doing, others: Mapping[UUID, Other]) -> list[tuple[int, bytes]]:
        """Positions and windows of a run's leaves: its own, and those that other sweeps cut of leaves that they share."""
        known = [(needle.index - doing.run.start, needle.window) for needle in self._kept(doing)]
        for shared in self._shared(doing, others):
            for first in shared.runs:
                name = _needle_file(str(shared.sweep_id), shared.tree, first)
                known += [
                    (shared.positions[needle.index], needle.window)
                    for needle in self._unsealed(shared.scope.key, name)
                    if needle.index in shared.positions
                ]
        return known

    def _shared(self, doing: Doing, others: Mapping[UUID, Other]) -> Iterator[_Shared]:
        """What other sweeps hold of a run's leaves. One that ended and whose key was destroyed tells nothing any more."""
        for other in (others[one] for one in doing.claim.sweep.others if one in others):
            try:
                scope = self._scopes.open(other.sweep)
            except Rejected as gone:
                log.info("another sweep's scope is closed", action="pass", reason=gone.code, sweep=doing.order.sweep_id)
                continue
            if (found := doing.scope.shared(doing.order.tree, scope)) is None:
                continue
            here = found.here - doing.run.start
            mine = (here >= 0) & (here < len(doing.cover))
            if mine.any():
                there = found.there[mine].tolist()
                firsts = other.runs.get(found.tree, [])
                runs = sorted({firsts[bisect_right(firsts, at // CHUNK_LEAVES) - 1] for at in there} if firsts else ())
                positions = dict(zip(there, here[mine].tolist(), strict=True))
                yield _Shared(other.sweep.sweep_id, scope, found.tree, runs, positions)

    def _settle(self, doing: Doing, scanned: set[int], hit: set[int], missed: set[int]) -> None:
        """Outcomes and findings, from what the probe and the scan showed."""
        attempt, outcomes = doing.order.attempt, doing.outcomes
        outcomes[sorted(leaf for leaf in hit if doing.cover[leaf])] = Outcome.PRESENT
        if attempt:  # in a later attempt, open would read as not covered
            outcomes[outcomes == Outcome.OPEN] = Outcome.PRESENT
        if attempt + 1 >= self._max_attempts:
            outcomes[(outcomes == Outcome.PRESENT) | (outcomes == Outcome.OPEN)] = Outcome.FAILED
        able = self._readers[doing.store].capabilities
        highest, alone = able.max_level, not able.rewrites_unit
        counts = _by_chunk(scanned, len(doing.findings))
        spoilt = _by_chunk(hit | missed, len(doing.findings))
        for chunk, count in enumerate(counts):
            # Where each artifact is a file or object of its own, a listing without it is the store's files without it.
            clean = (count or alone) and not spoilt[chunk]
            level, residue = _of_executor(doing.claim.past.get(doing.order.first_chunk + chunk, ()))
            reached = min(Level.FILE_ABSENT if clean else Level.UNREACHABLE, highest, level)
            method = ("listing" if alone else "probe") + ("+scan" if count else "")
            doing.found(chunk, Finding(reached, method, residue, count))

    # --- both

    async def _probe(
        self, doings: Sequence[Doing], wanted: Mapping[Doing, NDArray[np.bool_]]
    ) -> dict[Doing, NDArray[np.uint8]]:
        """Per leaf: 1 where the store shows it, 0 where not, or where it was not asked for."""
        works = gather(doings, lambda doing: wanted[doing])

        def probe(work: UnitWork) -> None:
            reader, locators = self._readers[work.store], work.locators()
            said = around_hostile(locators, lambda some: reader.probe(work.unit, some).astype(np.uint8), _UNREADABLE)
            work.spread(locators, said)

        await call_all(works, self._circuits.guarded(probe), self._readers)
        seen = {doing: np.zeros(len(doing.cover), np.uint8) for doing in doings}
        for work in works:
            for n, part in enumerate(work.parts):
                if isinstance(work.trouble, Retryable):
                    part.doing.later = "store-unreachable"
                elif work.trouble is not None:
                    seen[part.doing][part.at] = _UNREADABLE
                else:
                    seen[part.doing][part.at] = work.said[n]
        return seen


async def _checkpoints(tx: Tx, claims: Iterable[Claim]) -> dict[UUID, bytes]:
    sweeps = {claim.sweep.sweep_id: claim.sweep for claim in claims if claim.order.step is Step.PRESENCE}
    if not sweeps:
        return {}
    rows = await tx.fetch(
        "rescan_checkpoints", sweeps=list(sweeps), indices=[sweep.scope_index for sweep in sweeps.values()]
    )
    return {sweep_id: root for sweep_id, root in rows if root is not None}


def _file_of(doing: Doing) -> str:
    return _needle_file(doing.order.sweep_id, doing.order.tree, doing.order.first_chunk)


def _needle_file(sweep_id: str, tree: int, first_chunk: int) -> str:
    return f"{sweep_id}.{tree}.{first_chunk}.needles"


def _final(doing: Doing) -> NDArray[np.uint8]:
    """The outcome of every leaf: of this attempt where it covers the leaf, else of the last that did."""
    before = doing.joined(lambda past, n: merged(past, Step.ABSENCE, n))
    return np.where(doing.cover, doing.outcomes, before).astype(np.uint8)


def _by_chunk(leaves: Collection[int], chunks: int) -> list[int]:
    """How many of a run's positions are in each of its chunks."""
    at = np.fromiter(leaves, np.int64, len(leaves)) // CHUNK_LEAVES
    return np.bincount(at, minlength=chunks).tolist()  # type: ignore[no-any-return] # numpy's tolist


def _mask(leaves: Iterable[int], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[list(leaves)] = True
    return mask


def _leaves(at: slice | NDArray[np.intp]) -> Sequence[int]:
    return range(at.start, at.stop) if isinstance(at, slice) else at.tolist()


def _of_executor(past: Iterable[Past]) -> tuple[Level, tuple[str, ...]]:
    """How far the executor says it came in a chunk, and what it says may remain."""
    level, residue = Level.MEDIA, set[str]()
    for one in past:
        if one.step is Step.ERASE and one.envelope is not None:
            said = statement.parse(dsse.parse(one.envelope).payload).predicate
            if isinstance(said, statement.Chunk) and said.method != work_orders.NOTHING_DONE.method:
                level = min(level, said.level)
                residue.update(said.residue)
    return level, tuple(sorted(residue))


def _said(one: Recorded) -> PresenceRecorded | AbsenceVerified | ResidueFound:
    refs = one.order.model_dump(exclude={"type"})
    if one.order.step is Step.PRESENCE:
        return PresenceRecorded.model_validate(refs)
    return (ResidueFound if unfinished(one.outcomes) else AbsenceVerified).model_validate(refs)
