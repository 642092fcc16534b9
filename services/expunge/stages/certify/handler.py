"""Certify: arithmetic over rescans decides which requests are done; rows about a person go last.

A request's data provision is done when every leaf it claims has a final absence outcome and taint is known; its models
provision when every model it taints was replaced or destroyed. Done requests of a sweep share one completion statement
per round. The certificate itself is boxed under the request's key; the row says where.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from expunge import metrics
from expunge.chunks.scopes import open_scope
from expunge.crashing import crash_point
from expunge.domain import dsse, events, statement
from expunge.domain import sweep as sweeps
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.events import SweepId
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.request import RequestId
from expunge.domain.scopefile import ScopeFile, unpack_views
from expunge.domain.statement import PAYLOAD_TYPE
from expunge.domain.words import Outcome, Provision, Step
from expunge.ports import Clock, Delivery, KeyStore, Outgoing, Row, SealedStore, Signer, Tx
from expunge.record import log, outgoing
from expunge.stages.certify.finished import (
    Finished,
    Sweep,
    box,
    certificates,
    finished_data,
    finished_models,
    round_file,
    state_after,
    taint_of,
)  # fmt: skip
from expunge.stages.certify.rows import ABSENT, Dropping, drop_rows
from expunge.tasks import Commit, Lease

ORDER: Final = "order"

SILENT: Final = ABSENT | (np.arange(256) == Outcome.EXCLUDED)
"""Last words after which nothing is known to be there."""

_KEPT: Final = (Outcome.FAILED, Outcome.BLOCKED)


class Certify:
    """Handler of `expunge.outcomes`, after dispatch has handled the same batch in the same transaction.

    `not_covered`: what every certificate says it says nothing about (backups, recipients), in plain words.
    """

    dedupe = True
    task_kind: Final = "certify"

    def __init__(
        self, *, sealed: SealedStore, keys: KeyStore, signer: Signer, clock: Clock, issuer: str, not_covered: Sequence[str]
    ) -> None:  # fmt: skip
        self._sealed = sealed
        self._keys = keys
        self._signer = signer
        self._clock = clock
        self._issuer = issuer
        self._not_covered = tuple(not_covered)
        self._dropping = Dropping()
        self._accepted: list[tuple[str, datetime]] = []
        """Class and acceptance of the requests whose data certificate `issue` gave last."""

    async def act(self, deliveries: Sequence[Delivery]) -> list[UUID]:
        """Which sweeps may have finished requests now."""
        found: set[str] = set()
        for delivery in deliveries:
            try:
                event = events.from_cloudevent(delivery.event)
            except Rejected:
                continue  # dispatch, which has the same batch, refuses it
            match event:
                case events.AbsenceVerified(sweep_id=sweep_id) | events.ResidueFound(sweep_id=sweep_id):
                    found.add(sweep_id)
                case events.TaintResolved(sweep_id=sweep_id):
                    found.add(sweep_id)
                case events.ModelsResolved(sweep_ids=sweep_ids):
                    found.update(sweep_ids)
                case _:
                    pass
        return sorted(map(UUID, found))

    async def commit(self, sweep_ids: Sequence[UUID], tx: Tx) -> None:
        """Certify what is done."""
        if sweep_ids:
            await self.check(sweep_ids, tx)

    async def stale(self, tx: Tx, *, age: float) -> list[UUID]:
        """Sweeps that have not moved for `age` seconds and may only lack a look."""
        return [row[0] for row in await tx.fetch("certify_sweeps_to_check", age=age)]

    async def check(self, sweep_ids: Sequence[UUID], tx: Tx) -> None:
        """Certify every request of people's sweeps that is done; leave orders to `task`. Repeats change nothing."""
        orders = []
        for row in await tx.fetch("certify_sweeps", ids=list(sweep_ids)):
            if row[1] == ORDER:
                orders.append(row[0])
            elif row[8] == "resolved" and (row[4] > 1 or row[9]):
                await self._certify(row, tx)
        if orders:
            tx.deferred = True
            await tx.execute("certify_defer", kind=self.task_kind, sweeps=orders)

    async def task(self, lease: Lease) -> Commit:
        """An order: take out the rows of what is verified absent, beside the runs that are still under way; when the
        last one ended, certify."""
        sweep_id = UUID(str(lease.input["sweep"]))
        async with lease.ledger.transaction() as tx:
            rows = await tx.fetch("certify_sweep_seen", id=sweep_id)
            if not rows:
                return _nothing
            seen = (rows[0][8], rows[0][10])
            sweep = await self._load(rows[0], tx)
        dropped = await self._dropping.drop(lease, sweep)
        return partial(self._settle, sweep_id, seen, dropped)

    async def _settle(self, sweep_id: UUID, seen: tuple[str, int], dropped: int, tx: Tx) -> None:
        """The end of the task. What moved while it ran is looked at by another."""
        for row in await tx.fetch("certify_sweeps", ids=[sweep_id]):
            if (row[8], row[10]) != seen:
                await tx.execute("certify_defer", kind=self.task_kind, sweeps=[sweep_id])
            elif row[8] == "resolved" and row[9]:
                await self._certify(row, tx, dropped)

    async def _certify(self, row: Row, tx: Tx, dropped: int = 0) -> None:
        """Certify every request of a sweep that is done. `dropped`: how many images' rows are out already."""
        open_requests = await tx.fetch("certify_open", sweep_id=row[0])
        if not open_requests:
            if row[9]:  # all were cancelled or are held
                await tx.execute("certify_sweep_done", sweep_id=row[0])
            return
        sweep = await self._load(row, tx)
        if any(np.isin(codes, _KEPT).any() for codes in sweep.outcomes):
            await tx.execute("certify_residue", sweep_id=sweep.sweep_id)
        taints = [taint_of(one) for one in await tx.fetch("certify_taints", sweep_id=sweep.sweep_id)]
        data = [one for one in open_requests if one[4] is None]
        rounds = sweep.rounds
        if data:
            done = await asyncio.to_thread(finished_data, sweep, data, taints)
            if done:
                await drop_rows(sweep, done, tx, dropped)
                crash_point("certify.dropped")
                await self._round(sweep, rounds, Provision.DATA, done, tx)
                rounds += 1
        models = [one for one in await tx.fetch("certify_open", sweep_id=sweep.sweep_id) if one[4] is not None]
        closed = finished_models(models, taints)
        if closed:
            await self._round(sweep, rounds, Provision.MODELS, closed, tx)
        await tx.execute("certify_sweep_done", sweep_id=sweep.sweep_id)

    async def _load(self, row: Row, tx: Tx) -> Sweep:
        sweep_id, sweep_class, last_artifact, bucket, _requests, trees, scope_digest, rounds, *_, others = row
        said = await _said(tx, sweep_id, trees, dated=bool(others))
        file, key = open_scope(self._keys, self._sealed, sweep_id, bucket)
        claims = unpack_views(file.section("claims"))
        absent = [ABSENT[codes] for codes in said.outcomes]
        if others:
            await self._doubt(tx, file, said, absent, others)
        return Sweep(
            sweep_id, sweep_class, last_artifact, bucket, key, scope_digest, rounds, trees, file, claims, said.outcomes,
            absent, said.newest,
        )  # fmt: skip

    async def _doubt(
        self, tx: Tx, file: ScopeFile, said: Said, absent: Sequence[NDArray[np.bool_]], others: Sequence[UUID]
    ) -> None:
        """Take out of `absent` what another sweep that holds it too has found since: its row is all by which what is left
        of it can be asked for again."""
        for other_id, bucket, trees in await tx.fetch("certify_others", ids=list(others)):
            try:
                other, _ = open_scope(self._keys, self._sealed, other_id, bucket)
            except Rejected:
                continue  # its key was destroyed after it had ended
            theirs = await _said(tx, other_id, trees, dated=True)
            for tree, mine in enumerate(absent):
                if (shared := sweeps.shared(file, tree, other)) is not None and len(shared.here):
                    found = ~SILENT[theirs.outcomes[shared.tree][shared.there]]
                    later = theirs.at[shared.tree][shared.there] > said.at[tree][shared.here]
                    mine[shared.here[found & later]] = False

    async def _round(
        self, sweep: Sweep, number: int, provision: Provision, done: Sequence[Finished], tx: Tx
    ) -> None:  # fmt: skip
        """One completion statement for many requests, and a boxed certificate for each."""
        at = statement.instant(self._clock())
        root, made = await asyncio.to_thread(
            certificates, sweep, number, provision, done, issuer=self._issuer, not_covered=self._not_covered
        )
        buckets = {day: self._keys.bucket(day) for day in {one.bucket for one in done}}
        boxes = [box(buckets[one.bucket], one, number, data) for one, data in zip(done, made, strict=True)]
        blob = b"".join(boxes)
        file_digest = hashlib.sha256(blob).digest()
        await asyncio.to_thread(self._sealed.write, round_file(sweep.sweep_id, number, file_digest), [blob])
        crash_point("certify.boxed")
        results: dict[str, int] = dict(sorted(Counter(one.result for one in done).items()))
        predicate = statement.Completion(
            sweep=str(sweep.sweep_id), scope=sweep.scope_digest.hex(), round=number, provision=provision,
            requests=len(done), root=root.hex(), results=results, at=at,
        )  # fmt: skip
        payload = statement.payload(predicate, {"completions": root.hex()})
        envelope = self._signer.sign(payload, PAYLOAD_TYPE)
        ends = np.cumsum([len(box) for box in boxes]).tolist()
        await tx.execute(
            "certify_put_certificates", provision=provision, sweep_id=sweep.sweep_id, round=number,
            ids=[one.request_id for one in done], results=[one.result for one in done],
            digests=[hashlib.sha256(data).digest() for data in made],
            positions=[end - len(box) for end, box in zip(ends, boxes, strict=True)], lengths=[len(box) for box in boxes],
        )  # fmt: skip
        if provision is Provision.DATA and sweep.sweep_class == ORDER:
            await tx.execute("certify_reconcile", sweep_id=sweep.sweep_id)
        states = [state_after(provision, one) for one in done]
        await tx.execute(
            "certify_data" if provision is Provision.DATA else "certify_models", round=number,
            ids=[one.request_id for one in done], results=[one.result for one in done], states=states,
        )  # fmt: skip
        (index,) = await log(tx, [(predicate.type, envelope)])
        if provision is Provision.DATA:  # nothing comes to the log any more before this is in it
            ((newer,),) = await tx.fetch("certify_newer", sweep_id=sweep.sweep_id, newest=sweep.newest)
            if newer:
                raise Retryable("something was erased or looked for anew meanwhile")
        await tx.execute(
            "certify_put_round", sweep_id=sweep.sweep_id, round=number, provision=provision, requests=len(done),
            envelope=envelope, index=index, file_digest=file_digest, at=at,
        )  # fmt: skip
        await tx.execute("certify_count_rounds", sweep_id=sweep.sweep_id)
        crash_point("certify.counted")

    async def overdue(self, tx: Tx) -> int:
        """Say once, in the log, of each provision of a sweep whose date was missed; how many statements."""
        at = self._clock()
        rows = await tx.fetch("certify_overdue", at=at)
        for sweep_id, provision, due, scope_digest in rows:
            predicate = statement.Overdue(
                sweep=str(sweep_id), provision=Provision(provision), due=due, at=statement.instant(at)
            )
            payload = statement.payload(predicate, {"scope": scope_digest.hex()})
            (index,) = await log(tx, [(predicate.type, self._signer.sign(payload, PAYLOAD_TYPE))])
            said = "certify_overdue_data" if provision == Provision.DATA else "certify_overdue_models"
            await tx.execute(said, sweep_id=sweep_id, at=at, index=index)
        return len(rows)

    async def destroy_buckets(self, before: date, tx: Tx) -> list[date]:
        """Destroy the keys of buckets before a day whose requests are all closed, and say so; which days."""
        gone = await _destroyed(tx)
        found = []
        for (day,) in await tx.fetch("certify_buckets", before=before):
            if day not in gone and not await _needs(tx, day):
                await destroy_bucket(tx, self._keys, self._signer, day, at=self._clock())
                found.append(day)
        return found

    async def issue(self, tx: Tx) -> list[Outgoing]:
        """Messages that announce the certificates of every round under a published checkpoint, which count as issued once
        `tx` commits: publish them first. The rounds' rows are their outbox. A repeat gives the same messages."""
        rows = await tx.fetch("certify_unissued")
        if rows:
            await tx.execute("certify_issued", sweeps=[row[0] for row in rows], rounds=[row[1] for row in rows])
        self._accepted.clear()
        return [one for row in rows for one in await self._announce(row, tx)]

    def announced(self) -> None:
        """What `issue` gave last is with Kafka, and counts as announced from now on."""
        at = self._clock()
        for sweep_class, accepted_at in self._accepted:
            metrics.CERTIFIED_SECONDS.labels(sweep_class).observe(max(0.0, (at - accepted_at).total_seconds()))
        self._accepted.clear()

    async def _announce(self, row: Row, tx: Tx) -> list[Outgoing]:
        sweep_id, number, provision, at = row
        certified = await tx.fetch("certify_certificates", sweep_id=sweep_id, round=number)
        if provision == Provision.DATA:
            self._accepted += [(sweep_class, accepted_at) for *_, sweep_class, accepted_at, _ in certified]
        return [one for certificate in certified for one in _messages(sweep_id, number, provision, at, certificate)]


def _messages(sweep_id: UUID, number: int, provision: str, at: datetime, certified: Row) -> list[Outgoing]:
    """What is said of one certificate. `certified`: a row of `certify_certificates`."""
    request_id, result, digest, completes, _, _, trace = certified
    issued = events.CertificateIssued(
        request_id=RequestId(str(request_id)), provision=Provision(provision), sweep_id=SweepId(str(sweep_id)),
        round=number, result=events.Result(result), certificate_digest=digest.hex(), at=at,
    )  # fmt: skip
    said: list[events.Event] = [issued]
    if completes:
        said.append(events.RequestCompleted(request_id=RequestId(str(request_id)), at=at))
    return [outgoing(one, at=at, traceparent=trace)[1] for one in said]


@dataclass(slots=True)
class Said:
    """The last word of step absence about each leaf, per tree; and where in the log it is (-1: nowhere yet), if asked.
    `newest`: where the last statement is that counted (mutable)."""

    outcomes: list[NDArray[np.uint8]]
    at: list[NDArray[np.int64]]
    newest: int = -1


async def _said(tx: Tx, sweep_id: UUID, trees: Sequence[Mapping[str, Any]], *, dated: bool) -> Said:
    said = Said(
        [np.zeros(tree["leaves"], np.uint8) for tree in trees],
        [np.full(tree["leaves"], -1, np.int64) for tree in trees] if dated else [],
    )
    for tree, chunk, step, attempt, packed, index in await tx.fetch("certify_outcomes", sweep_id=sweep_id):
        place = slice(chunk * CHUNK_LEAVES, chunk * CHUNK_LEAVES + len(packed))
        part, told = said.outcomes[tree][place], np.frombuffer(packed, np.uint8)
        said.newest = index
        if step == Step.ERASE:
            part[told != Outcome.OPEN] = Outcome.OPEN  # until it is looked for anew: as who replays the log counts
            continue
        part[:] = sweeps.last_outcomes([part, told])
        if dated:
            said.at[tree][place][(told != Outcome.OPEN) | (attempt == 0)] = index
    return said


async def _nothing(_: Tx) -> None:
    """What an order's task leads to whose sweep is no more under way."""


async def destroy_bucket(tx: Tx, keys: KeyStore, signer: Signer, day: date, *, at: datetime) -> int:
    """Destroy one bucket's key for good and say so in the log; the statement's index. A repeat gives the same index.

    The key goes first: a statement never claims what a crash undid. Raises `Rejected("bucket-open")`.
    """
    if needed := await _needs(tx, day):
        raise Rejected("bucket-open", f"expected a bucket whose requests are all closed, {needed} still need its key")
    if day >= at.date():
        raise Rejected("bucket-open", "expected a day that is over: its key may still be drawn from")
    if (known := (await _destroyed(tx)).get(day)) is not None:
        return known
    await asyncio.to_thread(keys.destroy, day)
    crash_point("certify.key-destroyed")
    predicate = statement.KeyDestroyed(bucket=day, at=statement.instant(at))
    payload = statement.payload(predicate, {"bucket": hashlib.sha256(day.isoformat().encode()).hexdigest()})
    (index,) = await log(tx, [(predicate.type, signer.sign(payload, PAYLOAD_TYPE))])
    return index


async def _needs(tx: Tx, day: date) -> int:
    ((needed,),) = await tx.fetch("certify_bucket_open", day=day)
    return int(needed)


async def _destroyed(tx: Tx) -> dict[date, int]:
    """Buckets that the log says are gone, and where."""
    found = {}
    for index, entry in await tx.fetch("certify_destroyed"):
        said = statement.parse(dsse.parse(bytes(entry)).payload).predicate
        if isinstance(said, statement.KeyDestroyed):
            found[said.bucket] = index
    return found
