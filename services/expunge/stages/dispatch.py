"""Dispatch: published scopes become work orders, and each run of chunks goes from step to step.

A run is a stretch of chunks of one tree. It travels alone: presence, hide (only where erasing rewrites a unit), erase,
absence, done. Nothing is ordered before its scope is published (and witnessed and time-stamped, as far as the policy
asks), and an order's not before it is approved. Statements that executors signed are put into the log here, in the
transaction that orders the next step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import numpy as np
from pyroaring import BitMap64

from expunge import metrics
from expunge.breaker import Asking, Breaker
from expunge.crashing import crash_point
from expunge.domain import events, statement, topics
from expunge.domain.errors import Rejected
from expunge.domain.events import SweepId
from expunge.domain.lifecycle import SweepState
from expunge.domain.policy import Policy
from expunge.domain.request import RequestId
from expunge.domain.sweep import last_outcomes
from expunge.domain.topics import Topic
from expunge.domain.words import Kind, Outcome, Step
from expunge.ports import Clock, Delivery, Refused, Signer, Tx
from expunge.record import emit, log

WORKER: Final = "coordinate"
DONE: Final = "done"
UNSETTLED: Final = (Outcome.OPEN, Outcome.PRESENT)
_CHUNK: Final = "urn:expunge:chunk:v1"

Run = tuple[UUID, int, int, int, str, int]
"""sweep, tree, first chunk, end chunk, step, attempt."""


@dataclass(frozen=True, slots=True)
class Acted:
    """Work that executors report as done."""

    done: list[events.WorkDone]
    refused: list[Refused]


class Dispatch:
    """Handler of `expunge.outcomes`, and what prove calls when a checkpoint is out.

    `rewrites_unit`: by store, whether hide is a step of its own.
    """

    dedupe = True

    def __init__(
        self, *, signer: Signer, clock: Clock, policy: Policy, rewrites_unit: Mapping[str, bool]
    ) -> None:  # fmt: skip
        self._signer = signer
        self._clock = clock
        self._policy = policy
        self._rewrites_unit = rewrites_unit
        self._breaker = Breaker(policy)

    async def published(self, size: int, tx: Tx) -> int:
        """Order the first step of every sweep whose scope the checkpoint of `size` covers; how many sweeps that is.
        Orders that lack approval ask for it. Where the policy asks for witnesses or a time stamp, orders wait for them,
        and people a set time."""
        at = self._clock()
        attested, cosigned = await self._attested(size, tx)
        go, ask, alone = [], [], []
        people: list[Asking] = []
        for sweep_id, kind, state, digest, images, trees, scope_index, sealed_at, approved, ordinals in await tx.fetch(
            "dispatch_publishable", size=size
        ):
            if kind == "people":
                people.append(_asking(sweep_id, scope_index, _trees(trees), ordinals))
                if scope_index < attested:
                    go.append(sweep_id)
                elif at - sealed_at >= self._policy.witness_wait:
                    alone.append((sweep_id, digest))
            elif approved is not None and approved < size:
                if scope_index < attested:
                    go.append(sweep_id)
            elif state == SweepState.SEALED:
                ask.append((sweep_id, digest, images, trees))
        go += [one[0] for one in alone]
        through = {*await self._breaker.let_through(tx, [one for one in people if one.sweep_id in go], at)}
        held = {one.sweep_id for one in people} - through
        go = [one for one in go if one not in held]
        alone = [one for one in alone if one[0] not in held]
        for sweep_id, digest, images, trees in ask:
            ((request_id,),) = await tx.fetch("dispatch_request_of", sweep_id=sweep_id)
            counts = tuple(
                events.ScopeCount(kind=Kind(one["kind"]), store=one["store"], artifacts=one["leaves"])
                for one in _trees(trees)
            )
            awaited = events.ApprovalAwaited(
                request_id=RequestId(str(request_id)),
                sweep_id=SweepId(str(sweep_id)),
                scope_root=digest.hex(),
                counts=counts,
                images=images,
                at=at,
            )
            await emit(tx, WORKER, [awaited], at=at)
        await self._set(tx, [one[0] for one in ask], SweepState.AWAITING_APPROVAL, at)
        await self._set(tx, go, SweepState.PUBLISHED, at)
        if go:
            await emit(tx, WORKER, [events.TaintOrdered(sweep_id=SweepId(str(one))) for one in go])
            runs = [
                (*row, Step.PRESENCE, 0)
                for row in await tx.fetch("dispatch_start", ids=go)
            ]  # fmt: skip
            await self._order(tx, runs)
        await self._log_unwitnessed(tx, alone, cosigned, at)
        return len(go)

    async def newly_attested(self, tx: Tx) -> int:
        """As `published`, for what waited for witnesses or the time stamp and need not wait any more."""
        ((size,),) = await tx.fetch("dispatch_published_size")
        return await self.published(size, tx)

    async def _attested(self, size: int, tx: Tx) -> tuple[int, int]:
        """Size of the newest checkpoint that has what the policy asks for, and the cosignatures of the newest."""
        if not (self._policy.witness_quorum or self._policy.timestamped):
            return size, 0
        ((attested, cosigned),) = await tx.fetch("dispatch_attested")
        return attested, cosigned

    async def _log_unwitnessed(self, tx: Tx, sweeps: Sequence[tuple[UUID, bytes]], cosigned: int, at: datetime) -> None:
        """Say of people's sweeps that they did not wait any longer."""
        entries = []
        for sweep_id, digest in sweeps:
            predicate = statement.ScopeUnwitnessed(
                sweep=str(sweep_id), scope=digest.hex(), quorum=self._policy.witness_quorum, cosigned=cosigned,
                timestamped=False, at=statement.instant(at),
            )  # fmt: skip
            payload = statement.payload(predicate, {"scope": digest.hex()})
            entries.append((predicate.type, self._signer.sign(payload, statement.PAYLOAD_TYPE)))
        await log(tx, entries)

    async def _set(self, tx: Tx, ids: Sequence[UUID], state: SweepState, at: datetime) -> None:
        if ids:
            await tx.execute("dispatch_set_state", ids=list(ids), state=state, at=at)

    async def act(self, deliveries: Sequence[Delivery]) -> Acted:
        """Nothing outside the database."""
        acted = Acted([], [])
        for delivery in deliveries:
            try:
                event = events.from_cloudevent(delivery.event)
            except Rejected as error:
                acted.refused.append(Refused(delivery, error.code, later=False))
                continue
            if isinstance(event, events.WorkDone):
                acted.done.append(event)
        return acted

    async def commit(self, acted: Acted, tx: Tx) -> list[Refused]:
        """Log the statements and order the next step."""
        if acted.done:
            await self._done(tx, [_run(event) for event in acted.done])
        return acted.refused

    async def _done(self, tx: Tx, runs: Sequence[Run]) -> None:
        sweep_ids, trees, first, *_ = map(list, zip(*runs, strict=True))
        now = {
            (row[0], row[1], row[2]): row
            for row in await tx.fetch("dispatch_runs", sweeps=sweep_ids, trees=trees, first=first)
        }
        kinds = await self._kinds(tx, sweep_ids)
        after: dict[tuple[UUID, int, int], tuple[Run, float]] = {}
        told: list[Run] = []
        for run in runs:  # in order: what was hidden may have been erased in the same batch
            before, _ = after.get(run[:3], (now.get(run[:3], (None,) * 6), 0.0))
            # What hides also erases, and tells of both. If the first message was quarantined, the second says it as well:
            # were it ordered anew, the answer would be the same message again, and be known.
            implied = run[4] == Step.ERASE and before[4:6] == (Step.HIDE, run[5])
            told += [(*run[:4], Step.HIDE, run[5]), run] if implied else [run]
            if before[4:6] != run[4:6] and not implied:
                continue  # answered before: this is a repeat
            step, attempt, delay = await self._next(tx, run, kinds[run[0]][run[1]])
            after[run[:3]] = (*run[:4], step, attempt), delay
        moved = [run for run, _ in after.values()]
        delays = [delay for _, delay in after.values()]
        if moved:
            await tx.execute(
                "dispatch_advance", sweeps=[one[0] for one in moved], trees=[one[1] for one in moved],
                first=[one[2] for one in moved], steps=[one[4] for one in moved], attempts=[one[5] for one in moved],
                delays=delays,
            )  # fmt: skip
            ready = [one for one, delay in zip(moved, delays, strict=True) if one[4] != DONE and not delay]
            await self._order(tx, ready, kinds)
            crash_point("dispatch.advanced")
        await self._log(tx, kinds, told)

    async def _next(self, tx: Tx, run: Run, tree: Mapping[str, Any]) -> tuple[str, int, float]:
        """What comes after a step: the step, its attempt, and how long to wait first (seconds)."""
        step, attempt = run[4], run[5]
        if step == Step.PRESENCE:
            return (Step.HIDE if self._rewrites_unit.get(tree["store"], False) else Step.ERASE), 0, 0.0
        if step == Step.HIDE:
            return Step.ERASE, attempt, 0.0
        if step == Step.ERASE:
            return Step.ABSENCE, attempt, 0.0
        rows = await tx.fetch("dispatch_absence", sweep_id=run[0], tree=run[1], first=run[2], end=run[3])
        # An attempt has no row for a chunk that was settled before it.
        settled = all(
            not np.isin(last_outcomes([np.frombuffer(row[1], np.uint8) for row in chunk]), UNSETTLED).any()
            for _, chunk in groupby(rows, key=itemgetter(0))
        )
        if not settled and attempt + 1 < self._policy.attempts:
            return Step.ERASE, attempt + 1, min(60.0, 0.5 * 4.0**attempt)
        return DONE, attempt, 0.0

    async def _log(self, tx: Tx, kinds: Mapping[UUID, Sequence[Mapping[str, Any]]], runs: Sequence[Run]) -> None:
        sweeps, trees, first, end, steps, attempts = map(list, zip(*runs, strict=True))
        rows = await tx.fetch(
            "dispatch_done_outcomes", sweeps=sweeps, trees=trees, steps=steps, attempts=attempts, first=first, end=end
        )
        if not rows:
            return
        for (sweep_id, tree, step), some in groupby(rows, key=itemgetter(0, 1, 3)):
            outcomes = b"".join([row[6] for row in some])
            for code, count in enumerate(np.bincount(np.frombuffer(outcomes, np.uint8)).tolist()):
                if count:
                    outcome = Outcome(code).name.lower()
                    metrics.ARTIFACTS.labels(kinds[sweep_id][tree]["store"], step, outcome).inc(count)
        indices = await log(tx, [(_CHUNK, row[5]) for row in rows])
        await tx.execute(
            "dispatch_logged", sweeps=[row[0] for row in rows], trees=[row[1] for row in rows],
            chunks=[row[2] for row in rows], steps=[row[3] for row in rows], attempts=[row[4] for row in rows],
            indices=indices,
        )  # fmt: skip
        crash_point("dispatch.logged")

    async def redrive(self, tx: Tx, *, age: float) -> int:
        """Order again what has not moved for `age` seconds, and what was to wait until now; how many runs and taints."""
        ((released,),) = await tx.fetch("breaker_released")
        if released:
            await self.newly_attested(tx)
        runs: list[Run] = [*await tx.fetch("dispatch_due")]
        stalled: list[Run] = [*await tx.fetch("dispatch_stalled", age=age)]
        runs += [run for run in stalled if run not in runs]
        if runs:
            await tx.execute(
                "dispatch_advance", sweeps=[one[0] for one in runs], trees=[one[1] for one in runs],
                first=[one[2] for one in runs], steps=[one[4] for one in runs], attempts=[one[5] for one in runs],
                delays=[0.0] * len(runs),
            )  # fmt: skip
            await self._order(tx, runs)
        untold = await tx.fetch("dispatch_untold", age=age)
        await emit(tx, WORKER, [events.TaintOrdered(sweep_id=SweepId(str(sweep_id))) for (sweep_id,) in untold])
        return len(runs) + len(untold)

    async def expire(self, tx: Tx) -> int:
        """What ends by time alone: void scopes that were not approved, with a statement each; plan again what no hold keeps
        any more. How many of both."""
        at = self._clock()
        rows = await tx.fetch("dispatch_expired", at=at)
        entries = []
        for sweep_id, digest in rows:
            predicate = statement.ScopeVoid(
                sweep=str(sweep_id), scope=digest.hex(), reason="approval-expired", at=statement.instant(at)
            )
            payload = statement.payload(predicate, {"scope": digest.hex()})
            entries.append((predicate.type, self._signer.sign(payload, statement.PAYLOAD_TYPE)))
            await tx.execute("dispatch_void", sweep_id=sweep_id)
        await log(tx, entries)
        return len(rows) + await self._wake(tx, at)

    async def _wake(self, tx: Tx, at: datetime) -> int:
        """Requests whose hold was released or ran out, or whose artifacts a store blocks no more, back to where plan
        finds them."""
        woken = await tx.execute("dispatch_wake_people", at=at)
        woken += await tx.execute("dispatch_wake_blocked", at=at)
        orders = await tx.fetch("dispatch_held_orders")
        if not orders:
            return woken
        ((packed,),) = await tx.fetch("plan_held", at=at)
        held = BitMap64(np.frombuffer(packed or b"", ">i8").astype(np.uint64))
        ranges = await tx.fetch("plan_held_ranges", at=at)
        free = []
        for request_id, ordinals in orders:
            images = BitMap64.deserialize(ordinals)
            if not images.intersect(held) and not any(images.intersect(BitMap64(range(*run))) for run in ranges):
                free.append(request_id)
        return woken + (await tx.execute("dispatch_wake", ids=free) if free else 0)

    async def _kinds(self, tx: Tx, sweep_ids: Sequence[UUID]) -> dict[UUID, list[Mapping[str, Any]]]:
        rows = await tx.fetch("dispatch_trees", ids=sorted(set(sweep_ids)))
        return {row[0]: _trees(row[1]) for row in rows}

    async def _order(
        self, tx: Tx, runs: Sequence[Run], kinds: Mapping[UUID, Sequence[Mapping[str, Any]]] | None = None
    ) -> None:  # fmt: skip
        if not runs:
            return
        kinds = kinds or await self._kinds(tx, [run[0] for run in runs])
        by_topic: dict[Topic, list[events.Event]] = {}
        for sweep_id, tree, first, end, step, attempt in runs:
            topic = topic_of_work(Step(step), Kind(kinds[sweep_id][tree]["kind"]))
            by_topic.setdefault(topic, []).append(
                events.WorkOrdered(
                    step=Step(step),
                    sweep_id=SweepId(str(sweep_id)),
                    tree=tree,
                    first_chunk=first,
                    end_chunk=end,
                    attempt=attempt,
                )
            )
        for topic, ordered in by_topic.items():
            await emit(tx, WORKER, ordered, topic=topic)


def topic_of_work(step: Step, kind: Kind) -> Topic:
    """Which worker does this step for artifacts of this kind."""
    if step in {Step.PRESENCE, Step.ABSENCE}:
        return topics.RESCAN
    return topics.INVALIDATE if kind is Kind.EMBEDDING else topics.PURGE


def _asking(sweep_id: UUID, scope_index: int, trees: Sequence[Mapping[str, Any]], ordinals: bytes) -> Asking:
    stores: dict[str, int] = {}
    for tree in trees:
        stores[tree["store"]] = stores.get(tree["store"], 0) + int(tree["leaves"])
    return Asking(sweep_id, scope_index, stores, bytes(ordinals))


def _run(event: events.WorkDone) -> Run:
    return (UUID(event.sweep_id), event.tree, event.first_chunk, event.end_chunk, event.step, event.attempt)


def _trees(value: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 - jsonb, decoded or not
    return json.loads(value) if isinstance(value, str | bytes) else value  # type: ignore[no-any-return]
