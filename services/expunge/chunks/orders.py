"""Work orders: which are to be done, which were done already, which are refused; and the signed outcome of each chunk.

Attempt 0 of a step covers every leaf of its chunks; attempt n covers exactly the leaves that are not settled yet (open,
blocked, or found again by step absence) and names the statement before it. A chunk with nothing left has no statement
in attempt n. The functions on outcomes are pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import numpy as np
import structlog

from expunge.chunks.scopes import OpenScope, Run, Sweep
from expunge.domain import dsse, statement
from expunge.domain.errors import Rejected
from expunge.domain.events import WorkOrdered, from_cloudevent
from expunge.domain.words import FINAL_ABSENT, Level, Outcome, Step
from expunge.ports import Delivery, Outcomes, Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expunge.ports import Signer, Tx

UNSETTLED: Final = (Outcome.OPEN, Outcome.BLOCKED, Outcome.PRESENT)
"""Outcomes after which a later attempt covers the leaf again."""

_IS_UNSETTLED: Final = np.isin(np.arange(256), UNSETTLED)
_IS_ABSENT: Final = np.isin(np.arange(256), list(FINAL_ABSENT))

DEFER_SECONDS: Final = 1.0
"""How long what met with trouble waits at first."""

log = structlog.get_logger(__name__)

_ORDER: Final = {step: number for number, step in enumerate(Step)}
_TOUCHED: Final = ("published", "done")
"""States of sweeps of which something may have been carried out."""


@dataclass(frozen=True, slots=True)
class Past:
    """One recorded outcome row. `envelope` is read only where a successor needs it."""

    step: Step
    attempt: int
    outcomes: Outcomes
    envelope: bytes | None


@dataclass(frozen=True, slots=True)
class Claim:
    """An order to be done. `excluded`: leaves of the tree that must not be touched. `past`: per chunk."""

    order: WorkOrdered
    sweep: Sweep
    excluded: NDArray[np.uint32]
    past: dict[int, list[Past]]


@dataclass(frozen=True, slots=True)
class Other:
    """A sweep under way, or that was, which shares artifacts with one of ours. `runs`: by tree, the first chunks of its
    runs, ascending."""

    sweep: Sweep
    runs: dict[int, list[int]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An order whose outcome rows exist: `outcomes` of the leaves that its attempt covered, all chunks together."""

    order: WorkOrdered
    outcomes: Outcomes


@dataclass(frozen=True, slots=True)
class Refusal:
    """An order that is not carried out, and why (a reason code). `later`: that may pass."""

    order: WorkOrdered
    code: str
    later: bool = False


class Inbox:
    """A batch's orders, and which delivery each came in. What is no order is refused."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.orders: list[WorkOrdered] = []
        self._refused: list[Refused] = []
        self._deliveries: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            try:
                event = from_cloudevent(delivery.event)
            except Rejected as rejected:
                self._refused.append(Refused(delivery, rejected.code, later=False))
                continue
            if isinstance(event, WorkOrdered):
                self.orders.append(event)
                self._deliveries.setdefault(key_of(event), []).append(delivery)
            else:
                self._refused.append(Refused(delivery, "unexpected-type", later=False))

    def refused(self, refusals: Iterable[Refusal]) -> list[Refused]:
        """By delivery, for the host."""
        return self._refused + [
            Refused(delivery, one.code, one.later)
            for one in refusals
            for delivery in self._deliveries.get(key_of(one.order), ())
        ]


@dataclass(frozen=True, slots=True)
class Sorted:
    """What became of a batch's orders when they were claimed."""

    claims: list[Claim] = field(default_factory=list)
    recorded: list[Recorded] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a chunk statement says beside its outcomes."""

    level: Level
    method: str
    residue: tuple[str, ...]
    sampled: int = 0


NOTHING_DONE: Final = Finding(Level.ACKNOWLEDGED, "none", ())


@dataclass(frozen=True, slots=True)
class Row:
    """One row of table `outcome`."""

    sweep_id: UUID
    tree: int
    chunk: int
    step: Step
    attempt: int
    outcomes: bytes
    envelope: bytes


def key_of(order: WorkOrdered) -> str:
    """What makes two orders the same."""
    return f"{order.sweep_id}/{order.tree}/{order.first_chunk}-{order.end_chunk}/{order.step}/{order.attempt}"


async def claim(tx: Tx, orders: Sequence[WorkOrdered], *, effects: bool) -> Sorted:
    """Sort orders, in the transaction that precedes their first effect.

    1. lock the sweeps, so that none is voided meanwhile, and the work rows, so that a hold comes before or after
    2. what has outcome rows already is answered from them, whatever the sweep's state is now
    3. refuse what is not published, or not what the work row is at
    4. note the intent, then read the exclusions: none can be added after that

    Without `effects` (the rescanner) nothing is locked and no intent noted.
    """
    orders = list({key_of(order): order for order in orders}.values())
    if not orders:
        return Sorted()
    at = _arrays(orders)
    sweep_rows = await tx.fetch("execute_lock_sweeps" if effects else "execute_sweeps", sweeps=at["sweeps"])
    sweeps = {row[0]: (str(row[1]), _sweep_of(row)) for row in sweep_rows}
    work_rows = await tx.fetch("execute_lock_work" if effects else "execute_work", **at)
    work = {row[0]: (row[1], row[2]) for row in work_rows}
    past: dict[int, dict[int, list[Past]]] = {}
    for n, chunk, step, attempt, outcomes, envelope in await tx.fetch(
        "execute_history", **at, steps=[order.step.value for order in orders]
    ):
        one = Past(Step(step), attempt, np.frombuffer(outcomes, np.uint8), envelope)
        past.setdefault(n, {}).setdefault(chunk, []).append(one)
    found = Sorted()
    fresh: list[tuple[WorkOrdered, Sweep, dict[int, list[Past]]]] = []
    for n, order in enumerate(orders, start=1):
        history = past.get(n, {})
        if n not in work:
            found.refusals.append(Refusal(order, "unknown-work"))
        elif (answer := _answer(order, history)) is not None:
            found.recorded.append(Recorded(order, answer))
        elif (code := _refusal(order, sweeps.get(UUID(order.sweep_id)), work[n], history)) is not None:
            found.refusals.append(Refusal(order, code))
        else:
            fresh.append((order, sweeps[UUID(order.sweep_id)][1], history))
    excluded = await _excluded(tx, [order for order, _, _ in fresh], intent=effects)
    nothing = np.zeros(0, np.uint32)
    found.claims.extend(
        Claim(order, sweep, excluded.get((sweep.sweep_id, order.tree), nothing), history)
        for order, sweep, history in fresh
    )
    return found


async def others(tx: Tx, claims: Iterable[Claim]) -> dict[UUID, Other]:
    """Sweeps that share artifacts with the claimed ones and may have touched them. Mostly there are none to ask for."""
    ids = sorted({other for claimed in claims for other in claimed.sweep.others})
    if not ids:
        return {}
    runs: dict[UUID, dict[int, list[int]]] = {}
    for sweep_id, tree, first in await tx.fetch("rescan_runs", sweeps=ids):
        runs.setdefault(sweep_id, {}).setdefault(tree, []).append(first)
    rows = await tx.fetch("execute_sweeps", sweeps=ids)
    return {row[0]: Other(_sweep_of(row), runs.get(row[0], {})) for row in rows if row[1] in _TOUCHED}


def tell(refusals: Iterable[Refusal]) -> None:
    """Log refusals that no host will hear of."""
    for one in refusals:
        log.error("order refused", action="refuse", reason=one.code, sweep=one.order.sweep_id, step=one.order.step)


async def defer(tx: Tx, kind: str, *, beyond: Sequence[WorkOrdered], later: Sequence[WorkOrdered]) -> None:
    """Leave orders for the task runner: `beyond` the bound, to be done at once, or `later`, because of some trouble.
    One that is there already stays as it is."""
    for orders, seconds in ((beyond, 0.0), (later, DEFER_SECONDS)):
        if orders:
            tx.deferred = True
            await tx.execute(
                "execute_defer",
                kind=kind,
                keys=[key_of(order) for order in orders],
                inputs=[order.model_dump_json() for order in orders],
                seconds=seconds,
            )


async def put(tx: Tx, rows: Sequence[Row]) -> None:
    """Record outcomes. A row that is there already stays as it is: its statement may be in the log."""
    if rows:
        await tx.execute(
            "execute_put",
            sweeps=[row.sweep_id for row in rows],
            trees=[row.tree for row in rows],
            chunks=[row.chunk for row in rows],
            steps=[row.step.value for row in rows],
            attempts=[row.attempt for row in rows],
            outcomes=[row.outcomes for row in rows],
            envelopes=[row.envelope for row in rows],
        )


def merged(past: Iterable[Past], step: Step, leaves: int) -> Outcomes:
    """The last outcome of each leaf in one step; 0 where none."""
    state = np.zeros(leaves, np.uint8)
    for one in sorted((one for one in past if one.step is step), key=lambda one: one.attempt):
        state = np.where(one.outcomes != Outcome.OPEN, one.outcomes, state)
    return state


def standing(past: Iterable[Past], leaves: int) -> Outcomes:
    """How erasing each leaf stands: its last outcome in step erase, open again where step absence then found it, and
    settled where step absence found it gone after all: erasing that anew would put what was verified in doubt."""
    state = np.zeros(leaves, np.uint8)
    for one in sorted(past, key=lambda one: (one.attempt, _ORDER[one.step])):
        if one.step is Step.ERASE:
            state = np.where(one.outcomes != Outcome.OPEN, one.outcomes, state)
        elif one.step is Step.ABSENCE:
            gone = _IS_ABSENT[one.outcomes] & _IS_UNSETTLED[state]
            state = np.where(one.outcomes == Outcome.PRESENT, np.uint8(Outcome.OPEN), state)
            state = np.where(gone, one.outcomes, state)
    return state


def covered(past: Sequence[Past], step: Step, leaves: int) -> NDArray[np.bool_]:
    """The leaves that the next attempt of `step` covers."""
    if not any(one.step is step or (step is Step.ERASE and one.step is Step.ABSENCE) for one in past):
        return np.ones(leaves, np.bool_)
    state = standing(past, leaves) if step is Step.ERASE else merged(past, step, leaves)
    return _IS_UNSETTLED[state]


def unfinished(outcomes: Outcomes) -> bool:
    """Whether some covered leaf is open, blocked, failed, or was found again."""
    return bool((_IS_UNSETTLED[outcomes] | (outcomes == Outcome.FAILED)).any())


def erased(answered: Outcomes, presence: Outcomes) -> Outcomes:
    """What a store's answer means, given what was there before: a leaf that was present and is there no more went by an
    intent of ours (a crash hid the answer); one that was never present keeps what presence said of it."""
    never = (presence == Outcome.ABSENT_BEFORE) | (presence == Outcome.GONE_EARLIER)
    absent = answered == Outcome.ABSENT_BEFORE
    return np.where(absent, np.where(never, presence, np.uint8(Outcome.GONE)), answered).astype(np.uint8)


def verified(
    present: NDArray[np.bool_], presence: Outcomes, stands: Outcomes, *, rewrites_unit: bool = False
) -> Outcomes:
    """The outcome of step absence: what the store shows now, what it showed before, and what the executor said.

    Where erasing rewrites a unit, what is not shown may only be hidden: then nothing is gone of which the executor says
    that it is not."""
    never = (presence == Outcome.ABSENT_BEFORE) | (presence == Outcome.GONE_EARLIER)
    absent = np.where(never & (stands != Outcome.GONE), presence, np.uint8(Outcome.GONE))
    excused = (stands == Outcome.BLOCKED) | (stands == Outcome.FAILED) | (stands == Outcome.OPEN)
    there = np.where(excused, stands, np.uint8(Outcome.PRESENT))
    seen = np.where(present | (excused & rewrites_unit), there, absent)
    return np.where(stands == Outcome.EXCLUDED, stands, seen).astype(np.uint8)


def encoded(outcomes: Outcomes) -> tuple[tuple[Outcome, int], ...]:
    """Run lengths, as `statement.runs` makes them, without a step per leaf."""
    flat = outcomes.tobytes()
    if flat.count(flat[:1]) == len(flat) > 0:  # nearly always
        return ((Outcome(flat[0]), len(flat)),)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(outcomes)) + 1))
    lengths = np.diff(np.append(starts, len(outcomes)))
    return tuple((Outcome(code), n) for code, n in zip(outcomes[starts].tolist(), lengths.tolist(), strict=True))


def rows(
    claimed: Claim,
    scope: OpenScope,
    run: Run,
    *,
    cover: NDArray[np.bool_],
    outcomes: Outcomes,
    findings: Sequence[Finding],
    signer: Signer,
    at: datetime,
) -> list[Row]:
    """Signed outcome rows of one order: `cover` and `outcomes` per leaf of the run, `findings` per chunk."""
    order, made = claimed.order, []
    told = np.where(cover, outcomes, np.uint8(Outcome.OPEN)).astype(np.uint8)
    for chunk, finding in zip(range(order.first_chunk, order.end_chunk), findings, strict=True):
        place = run.positions(chunk)
        if not cover[place].any():
            continue
        predicate = statement.Chunk(
            sweep=order.sweep_id,
            scope=claimed.sweep.scope_digest.hex(),
            tree=order.tree,
            kind=scope.trees[order.tree].kind,
            store=scope.trees[order.tree].store,
            step=order.step,
            attempt=order.attempt,
            start=run.start + place.start,
            end=run.start + place.stop,
            chunk_root=scope.chunk_root(order.tree, chunk).hex(),
            outcomes=encoded(told[place]),
            previous=previous(claimed.past.get(chunk, ()), order.step),
            level=finding.level,
            method=finding.method,
            residue=finding.residue,
            sampled=finding.sampled,
            at=statement.instant(at),
        )
        leaf_hashes = run.digests[chunk - run.first_chunk].hex()
        envelope = signer.sign(statement.payload(predicate, {"leaf-hashes": leaf_hashes}), statement.PAYLOAD_TYPE)
        packed = told[place].tobytes()
        made.append(Row(claimed.sweep.sweep_id, order.tree, chunk, order.step, order.attempt, packed, envelope))
    return made


def previous(past: Iterable[Past], step: Step) -> str | None:
    """SHA-256 (hex) of the payload of the last statement of this step, None if there is none."""
    before = [one for one in past if one.step is step and one.envelope is not None]
    if not before:
        return None
    last = max(before, key=lambda one: one.attempt)
    return hashlib.sha256(dsse.parse(last.envelope or b"").payload).hexdigest()


def _sweep_of(row: tuple[Any, ...]) -> Sweep:
    sweep_id, _state, bucket, scope_digest, scope_index, file_digest, kind, trees, *shared = row
    return Sweep(
        sweep_id=sweep_id,
        bucket=bucket,
        scope_digest=scope_digest,
        scope_index=scope_index,
        file_digest=file_digest,
        roots=tuple(bytes.fromhex(tree["root"]) for tree in trees),
        is_order=kind == "order",
        others=tuple(shared[0]) if shared else (),
    )


def _arrays(orders: Sequence[WorkOrdered]) -> dict[str, list[object]]:
    return {
        "sweeps": [UUID(order.sweep_id) for order in orders],
        "trees": [order.tree for order in orders],
        "firsts": [order.first_chunk for order in orders],
        "ends": [order.end_chunk for order in orders],
    }


def _answer(order: WorkOrdered, history: dict[int, list[Past]]) -> Outcomes | None:
    """Rows of one order are recorded together, so one is as good as all. A leaf that this attempt did not cover keeps
    its earlier outcome in the answer."""
    if not any(one.step is order.step and one.attempt == order.attempt for past in history.values() for one in past):
        return None
    return np.concatenate([covered_outcomes(past, order.step, order.attempt) for _, past in sorted(history.items())])


def covered_outcomes(past: Sequence[Past], step: Step, attempt: int) -> Outcomes:
    """The outcomes that one attempt of `step` recorded for the leaves it covered; empty if it covered none."""
    mine = next((one for one in past if one.step is step and one.attempt == attempt), None)
    if mine is None:
        return np.zeros(0, np.uint8)
    before = [one for one in past if (one.attempt, _ORDER[one.step]) < (attempt, _ORDER[step])]
    return mine.outcomes[covered(before, step, len(mine.outcomes))]


def _refusal(
    order: WorkOrdered, sweep: tuple[str, Sweep] | None, work: tuple[str, int], history: dict[int, list[Past]]
) -> str | None:
    if sweep is None:
        return "unknown-sweep"
    if sweep[0] != "published":
        return "scope-not-published"
    if work != (order.step, order.attempt):
        return "stale-order"
    if order.step is not Step.PRESENCE:
        chunks = range(order.first_chunk, order.end_chunk)
        if not all(any(one.step is Step.PRESENCE for one in history.get(chunk, ())) for chunk in chunks):
            return "presence-not-recorded"
    return None


async def _excluded(
    tx: Tx, orders: Sequence[WorkOrdered], *, intent: bool
) -> dict[tuple[UUID, int], NDArray[np.uint32]]:
    if not orders:
        return {}
    at = _arrays(orders)
    if intent:
        await tx.execute("execute_intent", sweeps=at["sweeps"], trees=at["trees"], firsts=at["firsts"])
    found: dict[tuple[UUID, int], NDArray[np.uint32]] = {}
    for sweep_id, tree, indices in await tx.fetch("execute_excluded", sweeps=at["sweeps"], trees=at["trees"]):
        more = np.frombuffer(indices, "<u4")
        found[sweep_id, tree] = np.union1d(found[sweep_id, tree], more) if (sweep_id, tree) in found else more
    return found
