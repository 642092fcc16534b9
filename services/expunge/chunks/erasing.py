"""Hide and erase orders carried out, for the stages purge and invalidate. It writes outcome rows, and emits nothing.

A unit is erased once per batch for every order that wants something of it, under a lease with a fencing token. What
cannot be done at once (too much, leased by another worker, unreachable) becomes a task row, done beside the agent. What is
hidden at once is erased in the same batch, after all that is to be hidden, and both are reported: the order to erase that
follows is then behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

import numpy as np
import structlog

from expunge.chunks import orders as work_orders
from expunge.chunks.circuits import Circuits
from expunge.chunks.orders import Claim, Finding, Recorded, Refusal, Row, erased
from expunge.chunks.units import Doing, UnitWork, around_hostile, call_all, gather
from expunge.crashing import crash_point
from expunge.domain.errors import FencedOff, Misconfigured, Rejected, Retryable
from expunge.domain.events import WorkOrdered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.words import Kind, Level, Outcome, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expunge.chunks.scopes import Scopes
    from expunge.ports import Clock, Ledger, Outcomes, Signer, Store, Tx

LEASE_SECONDS: Final = 120.0
INLINE_LEAVES: Final = 131_072
"""Leaves handled in one batch of events; the rest becomes tasks. At 80 us each (unlinks on a slow disk), 10 s."""

HIDDEN: Final = Finding(Level.UNREACHABLE, "hide", ("the unit's files until the unit is rewritten",))

log = structlog.get_logger(__name__)


class Task(Protocol):
    """What carrying out needs of a leased task row (`tasks.Lease`)."""

    key: str
    input: dict[str, object]
    cursor: dict[str, object]

    async def save(self, cursor: dict[str, object]) -> None:
        """Keep progress. Raises `FencedOff` when the lease is another's by now."""
        ...


@dataclass(frozen=True, slots=True)
class Acted:
    """What a batch came to; `Eraser.record` and the stage's `commit` take it from here. `beyond`: orders that exceed the
    bound; `later`: orders that met with trouble."""

    rows: list[Row] = field(default_factory=list)
    done: list[Recorded] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    beyond: list[WorkOrdered] = field(default_factory=list)
    later: list[WorkOrdered] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    blocked: dict[UUID, datetime] = field(default_factory=dict)
    """Sweeps of which some artifact is blocked until then."""


class Eraser:
    """Carries out hide and erase orders on the stores of one worker, each signed with that store's key.

    `worker` names the task kind; `holder` must differ between processes and be the same after a restart. An order for a
    store that is not in `stores` is a fault of the deployment: it is logged as such and parked.
    """

    def __init__(
        self,
        *,
        worker: str,
        kinds: Collection[Kind],
        ledger: Ledger,
        scopes: Scopes,
        stores: Mapping[str, Store],
        signers: Mapping[str, Signer],
        clock: Clock,
        holder: str,
        lease_seconds: float = LEASE_SECONDS,
        inline_leaves: int = INLINE_LEAVES,
    ) -> None:
        if missing := sorted(stores.keys() - signers.keys()):
            raise Misconfigured(f"expected an executor key for each store of worker {worker}, got none for {missing}")
        self.task_kind: Final = f"{worker}-erase"
        self._kinds = frozenset(kinds)
        self._ledger = ledger
        self._scopes = scopes
        self._stores = stores
        self._signers = signers
        self._clock = clock
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._inline_leaves = inline_leaves
        self._circuits = Circuits(worker)

    async def act(self, ordered: Sequence[WorkOrdered]) -> Acted:
        """Carry out a batch.

        1. claim: intent noted, exclusions read, what was done before answered from its rows
        2. what exceeds the bound is for later
        3. read the runs from the sealed scope files
        4. lease the units; what another worker has is for later
        5. hide all, then erase, once per unit: also what was just hidden
        6. sign
        """
        acted = Acted()
        claims = await self._claim(ordered, acted)
        claims = self._within_bound(claims, acted)
        doings = await asyncio.to_thread(self._read, claims, acted)
        hiding = [doing for doing in doings if doing.order.step is Step.HIDE]
        after = {doing: _erasing(doing) for doing in hiding}
        hides = gather(hiding, _wanted)
        erases = gather([*(doing for doing in doings if doing.order.step is Step.ERASE), *after.values()], _wanted)
        fences = await self._lease([(work.store, work.unit) for work in erases], self._holder)
        acted.tokens.extend(fences.values())
        crash_point("erasing.leased")
        erases = _leased(erases, fences)
        async with self._renewing(fences.values(), self._holder):
            await self._call(Step.HIDE, hides, fences)
            crash_point("erasing.hidden")
            await self._call(Step.ERASE, erases, fences)
            crash_point("erasing.erased")
        _leave_unreached([*hides, *erases])
        # What could not be erased as well has an order of its own still to come, with a task should that fail too.
        done = {hid: erased for hid, erased in after.items() if hid.later is None and erased.later is None}
        await self._sign([one for doing in doings for one in (doing, done.get(doing)) if one is not None], acted)
        crash_point("erasing.signed")
        return acted

    async def carry_out(self, task: Task) -> Acted:
        """Carry out one order that was left for later, by slices of whole units, each kept before the next begins.

        Raises `Retryable` when nothing of a slice could be done; a later run resumes there.
        """
        acted = Acted()
        ordered = WorkOrdered.model_validate_json(json.dumps(task.input))
        claims = await self._claim([ordered], acted)
        for doing in await asyncio.to_thread(self._read, claims, acted):
            works = gather([doing], _wanted)
            at = _resume(doing, task.cursor)
            holder = f"{self._holder}/{task.key}"
            while at < len(works):
                end = _slice_end(works, at, self._inline_leaves)
                await self._slice(doing, works[at:end], holder)
                at = end
                await task.save(_cursor(doing, at))
            await self._sign([doing], acted)
        work_orders.tell(acted.refusals)
        if any(one.later for one in acted.refusals):
            raise Retryable("expected an order for a store of this worker, got one for another")
        return acted

    async def record(self, acted: Acted, tx: Tx) -> None:
        """Outcome rows, tasks, and the end of the leases, in the transaction that emits the events."""
        await work_orders.put(tx, acted.rows)
        await work_orders.defer(tx, self.task_kind, beyond=acted.beyond, later=acted.later)
        if acted.tokens:
            await tx.execute("execute_release", tokens=acted.tokens, holder=self._holder)
        if acted.blocked:
            await tx.execute("execute_blocked", sweeps=list(acted.blocked), until=list(acted.blocked.values()))

    async def _claim(self, ordered: Sequence[WorkOrdered], acted: Acted) -> list[Claim]:
        wrong = [order for order in ordered if order.step not in {Step.HIDE, Step.ERASE}]
        acted.refusals.extend(Refusal(order, "wrong-step") for order in wrong)
        async with self._ledger.transaction() as tx:
            found = await work_orders.claim(tx, [order for order in ordered if order not in wrong], effects=True)
        crash_point("erasing.intended")
        acted.done.extend(found.recorded)
        acted.refusals.extend(found.refusals)
        return found.claims

    def _within_bound(self, claims: list[Claim], acted: Acted) -> list[Claim]:
        inline, leaves = [], 0
        for claim in claims:
            leaves += (claim.order.end_chunk - claim.order.first_chunk) * CHUNK_LEAVES
            if leaves <= self._inline_leaves:
                inline.append(claim)
            else:
                acted.beyond.append(claim.order)
        return inline

    def _read(self, claims: Iterable[Claim], acted: Acted) -> list[Doing]:
        doings = []
        for claim in claims:
            try:
                doing = Doing(claim, self._scopes.open(claim.sweep))
            except Rejected as refused:
                acted.refusals.append(Refusal(claim.order, refused.code))
                continue
            if doing.store not in self._stores:
                log.error("order for a store that this worker does not have", action="park", store=doing.store)
                acted.refusals.append(Refusal(claim.order, "unknown-store", later=True))
            elif doing.kind not in self._kinds:
                acted.refusals.append(Refusal(claim.order, "wrong-kind"))
            elif claim.order.step is Step.HIDE and not self._stores[doing.store].capabilities.rewrites_unit:
                acted.refusals.append(Refusal(claim.order, "cannot-hide"))
            else:
                doings.append(doing)
        return doings

    # --- leases

    async def _lease(self, units: Sequence[tuple[str, str]], holder: str) -> dict[tuple[str, str], int]:
        if not units:
            return {}
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch(
                "execute_lease",
                stores=[store for store, _ in units],
                units=[unit for _, unit in units],
                holder=holder,
                seconds=self._lease_seconds,
            )
        return {(store, unit): token for store, unit, token in rows}

    @asynccontextmanager
    async def _renewing(self, tokens: Iterable[int], holder: str) -> AsyncIterator[None]:
        """Keep leases alive. Should that fail, the fence still protects the unit."""
        held = list(tokens)
        heart = asyncio.create_task(self._renew(held, holder)) if held else None
        try:
            yield
        finally:
            if heart is not None:
                heart.cancel()
                await asyncio.gather(heart, return_exceptions=True)

    async def _renew(self, tokens: list[int], holder: str) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                async with self._ledger.transaction() as tx:
                    await tx.execute("execute_renew", tokens=tokens, holder=holder, seconds=self._lease_seconds)
            except Retryable:
                log.warning("unit leases were not renewed this time", action="renew", units=len(tokens))

    # --- store calls

    async def _slice(self, doing: Doing, works: list[UnitWork], holder: str) -> None:
        units = [(work.store, work.unit) for work in works] if doing.order.step is Step.ERASE else []
        fences = await self._lease(units, holder)
        try:
            if len(fences) < len(units):
                raise Retryable("a unit is leased by another worker")
            async with self._renewing(fences.values(), holder):
                await self._call(doing.order.step, works, fences)
        finally:
            if fences:
                async with self._ledger.transaction() as tx:
                    await tx.execute("execute_release", tokens=list(fences.values()), holder=holder)
        if any(isinstance(work.trouble, FencedOff) for work in works):
            raise Retryable("a unit was taken over by another worker")
        if all(isinstance(work.trouble, Retryable) for work in works):
            raise Retryable("no unit could be reached")

    async def _call(self, step: Step, works: list[UnitWork], fences: Mapping[tuple[str, str], int]) -> None:
        def call(work: UnitWork) -> None:
            if step is Step.HIDE:
                _hide(self._stores[work.store], work)
            else:
                _erase(self._stores[work.store], work, fences[work.store, work.unit])

        await call_all(works, self._circuits.guarded(call), self._stores)
        for work in works:
            _apply(work)

    async def _sign(self, doings: Sequence[Doing], acted: Acted) -> None:
        at = self._clock()
        for doing in doings:
            if doing.later is None:
                doing.outcomes[doing.excluded()] = Outcome.EXCLUDED
                acted.rows.extend(await asyncio.to_thread(doing.rows, self._signers[doing.store], at))
                acted.done.append(Recorded(doing.order, doing.told()))
                if doing.blocked_until is not None:
                    sweep = doing.claim.sweep.sweep_id
                    acted.blocked[sweep] = max(doing.blocked_until, acted.blocked.get(sweep, doing.blocked_until))
            else:
                log.info("order left for later", action="defer", reason=doing.later, sweep=doing.order.sweep_id)
                acted.later.append(doing.order)


def _erasing(hid: Doing) -> Doing:
    """The order to erase that follows an order to hide, to be carried out with it."""
    order = hid.order.model_copy(update={"step": Step.ERASE})
    return Doing(replace(hid.claim, order=order), hid.scope)


def _wanted(doing: Doing) -> NDArray[np.bool_]:
    return doing.cover & ~doing.excluded()


def _leased(works: Iterable[UnitWork], fences: Mapping[tuple[str, str], int]) -> list[UnitWork]:
    """The units that are ours now. An order of which some unit is another's is for later, whole."""
    works = list(works)
    for work in works:
        if (work.store, work.unit) not in fences:
            for part in work.parts:
                part.doing.later = "unit-leased"
    for work in works:
        work.parts = [part for part in work.parts if part.doing.later is None]
    return [work for work in works if work.parts]


def _leave_unreached(works: Iterable[UnitWork]) -> None:
    """An order of which no unit could be reached is for later. Where some could, the rest stays open for an attempt."""
    reached: dict[Doing, bool] = {}
    for work in works:
        for part in work.parts:
            if isinstance(work.trouble, FencedOff):
                part.doing.later = "fenced-off"
            reached[part.doing] = reached.get(part.doing, False) or not isinstance(work.trouble, Retryable)
    for doing, some in reached.items():
        if not some:
            doing.later = "store-unreachable"


def _hide(store: Store, work: UnitWork) -> None:
    locators = work.locators()
    work.spread(locators, around_hostile(locators, lambda some: store.hide(work.unit, some), Outcome.FAILED))
    work.findings.append(HIDDEN)


def _erase(store: Store, work: UnitWork, fence: int) -> None:
    def erase(some: Sequence[str]) -> Outcomes:
        erasure = store.erase(work.unit, some, fence)
        work.findings.append(Finding(erasure.level, erasure.method, erasure.residue))
        work.blocked_until = max(filter(None, (work.blocked_until, erasure.blocked_until)), default=None)
        return erasure.outcomes

    locators = work.locators()
    work.spread(locators, around_hostile(locators, erase, Outcome.FAILED))


def _apply(work: UnitWork) -> None:
    if isinstance(work.trouble, Rejected):
        log.error("the store refused a unit", action="fail", store=work.store, reason=work.trouble.code)
        for part in work.parts:
            part.doing.outcomes[part.at] = Outcome.FAILED
    elif work.trouble is None:
        for part, said in zip(work.parts, work.said, strict=True):
            part.doing.outcomes[part.at] = erased(said, part.doing.presence[part.at])
            until = part.doing.blocked_until, work.blocked_until if Outcome.BLOCKED in said else None
            part.doing.blocked_until = max(filter(None, until), default=None)
            for finding in work.findings:
                for chunk in part.chunks():
                    part.doing.found(chunk, finding)


def _slice_end(works: Sequence[UnitWork], at: int, leaves: int) -> int:
    """At least one unit, and no more than `leaves` if there are several."""
    end, taken = at + 1, works[at].leaves
    while end < len(works) and taken + works[end].leaves <= leaves:
        taken += works[end].leaves
        end += 1
    return end


def _cursor(doing: Doing, at: int) -> dict[str, object]:
    return {
        "units": at,
        "outcomes": [[int(code), count] for code, count in work_orders.encoded(doing.outcomes)],
        "findings": [
            [chunk, int(found.level), found.method, list(found.residue)]
            for chunk, found in enumerate(doing.findings)
            if found is not None
        ],
    }


def _resume(doing: Doing, cursor: Mapping[str, object]) -> int:
    match cursor:
        case {"units": int(at), "outcomes": list(runs), "findings": list(findings)}:
            codes, counts = zip(*runs, strict=True)
            doing.outcomes = np.repeat(np.array(codes, np.uint8), np.array(counts))
            for chunk, level, method, residue in findings:
                doing.findings[chunk] = Finding(Level(level), method, tuple(residue))
            return at
        case _:
            return 0
