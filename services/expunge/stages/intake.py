"""Intake: a signed request from `expunge.requests` becomes a row, a suppression, or an answer that says why not.

Order of checks: signature, key scope, schema, replay; suppression is written (journal, then rows) before the request
counts as accepted. What is not authentic gets no rejection event, because anyone could forge one about somebody else's
request: it goes to the dead letter.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

import numpy as np
from pyroaring import BitMap64

from expunge.chunks.scopes import open_scope
from expunge.crashing import crash_point
from expunge.domain import canonical, dsse, events, request, statement, suppression
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.lifecycle import FINAL, RequestState, SweepState
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.policy import Policy
from expunge.domain.request import (
    Approved,
    ByList,
    BySource,
    BySubject,
    Cancelled,
    ConsentGiven,
    ConsentWithdrawn,
    DeletionRequested,
    HoldPlaced,
    HoldReleased,
    OrderIssued,
    Request,
    RequestId,
    RetentionExpired,
)
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.sweep import ALL_PURPOSES
from expunge.domain.words import Role
from expunge.ports import Clock, Delivery, Journal, KeyStore, Ledger, Refused, Row, SealedStore, Signer, Tx
from expunge.record import emit, log

WORKER: Final = "coordinate"
OF_SUBJECT: Final = (DeletionRequested, RetentionExpired, ConsentWithdrawn)
"""Requests about one person that end in a sweep."""

EVERYTHING: Final = "*"
"""The purpose of a suppression entry that refuses a subject altogether."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A registered key: whose it is, what it may sign. `scope`: types, sources, purposes allowed (absent: all) and quota
    per day."""

    holder: str
    public: dsse.PublicKey
    role: Role
    scope: Mapping[str, Any]
    valid_from: datetime
    valid_to: datetime | None


@dataclass(frozen=True, slots=True)
class Authentic:
    """A request whose signature, key and schema hold."""

    delivery: Delivery
    request: Request
    key_id: str
    key: TrustedKey
    payload: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """The answer to a request by a registered key. `digest`: of its payload; `type` is empty where that is no request."""

    request_id: RequestId
    code: str
    digest: bytes
    key_id: str
    type: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What `act` found: requests that stand, rejections to send, dead letters."""

    accepted: list[Authentic]
    rejected: list[Rejection]
    refused: list[Refused]
    at: datetime


class UnreadableError(Exception):
    """A payload that a registered key signed and that is no request, but says which it would be."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.code)
        self.rejection = rejection


class Intake:
    """Handler of `expunge.requests`."""

    dedupe = False  # the request table knows duplicates, and they get an answer

    def __init__(
        self,
        *,
        ledger: Ledger,
        journal: Journal,
        keys: KeyStore,
        sealed: SealedStore,
        scope_signer: Signer,
        clock: Clock,
        policy: Policy,
        audience: str,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._keys = keys
        self._sealed = sealed
        self._scope_signer = scope_signer
        self._clock = clock
        self._policy = policy
        self._audience = audience

    async def act(self, deliveries: Sequence[Delivery]) -> Judged:
        """Verify each request, and write the suppression journal for those that stand."""
        keys = {row[0]: _trusted(row) for row in await self._ledger.fetch("intake_keys")}
        judged = Judged(accepted=[], rejected=[], refused=[], at=self._clock())
        for delivery in deliveries:
            try:
                authentic = self._authenticate(delivery, keys)
            except Rejected as error:
                judged.refused.append(Refused(delivery, error.code, later=False))
                continue
            except UnreadableError as error:
                judged.rejected.append(error.rejection)
                continue
            try:
                self._admit(authentic, judged.at)
            except Rejected as error:
                judged.rejected.append(_rejection(authentic, error.code))
            else:
                judged.accepted.append(authentic)
        self._keys.bucket(judged.at.date(), create=True)
        await self._write_journal(judged.accepted)
        return judged

    async def _write_journal(self, accepted: Sequence[Authentic]) -> None:
        """Journal what these requests change, by the rule of the queries `intake_suppress` and `intake_lift`: what was
        issued last counts, so that a consent that comes late or twice brings nobody back."""
        adds, lifts, purposes = self._changes(accepted)
        if not purposes:
            return
        rows = await self._ledger.fetch("intake_suppressed", macs=sorted(purposes))
        now = {bytes(mac): (at, lifted) for mac, at, lifted in rows}
        records = []
        for mac, purpose in purposes.items():
            at, lifted = now.get(mac, (None, None))
            added = max((one for one in (at, adds.get(mac)) if one is not None), default=None)
            if added is None:
                continue  # a consent of someone who never was suppressed
            latest = max((one for one in (lifted, lifts.get(mac)) if one is not None), default=None)
            stands = latest is None or latest <= added
            if at is None or stands != (lifted is None):
                action = suppression.Action.ADD if stands else suppression.Action.LIFT
                records.append(suppression.Record("subject", action, suppression.purpose_digest(purpose), mac))
        if records:
            await asyncio.to_thread(self._journal.append, suppression.encode(records))
            crash_point("intake.journaled")

    def _changes(
        self, accepted: Sequence[Authentic]
    ) -> tuple[dict[bytes, datetime], dict[bytes, datetime], dict[bytes, str]]:
        """By MAC: when it was last added, when last lifted, and its purpose."""
        adds: dict[bytes, datetime] = {}
        lifts: dict[bytes, datetime] = {}
        purposes: dict[bytes, str] = {}
        for one in accepted:
            for action, purpose, mac in self._entries(one.request):
                times = adds if action is suppression.Action.ADD else lifts
                times[mac] = max(times.get(mac, one.request.issued_at), one.request.issued_at)
                purposes[mac] = purpose
        return adds, lifts, purposes

    def _authenticate(self, delivery: Delivery, keys: Mapping[str, TrustedKey]) -> Authentic:
        envelope = _envelope(delivery.event.data)
        for signature in envelope.signatures:
            key = keys.get(signature.key_id)
            if key is None:
                continue
            try:
                payload = dsse.verify(envelope, key.public, request.PAYLOAD_TYPE)
            except Tampered as error:
                raise Rejected("bad-signature", "expected a signature that verifies") from error
            try:
                parsed = request.parse_request(payload)
            except Rejected as error:
                request_id = _named(payload)
                if request_id is None:
                    raise
                digest = hashlib.sha256(payload).digest()
                raise UnreadableError(Rejection(request_id, error.code, digest, signature.key_id, "")) from None
            request.check_agrees(parsed, delivery.event)
            return Authentic(delivery, parsed, signature.key_id, key, payload)
        raise Rejected("unknown-key", "expected a signature by a registered key")

    def _admit(self, authentic: Authentic, at: datetime) -> None:
        """Key scope, audience, times. Raises `Rejected` with the code that the publisher is told."""
        one, key = authentic.request, authentic.key
        wanted = Role.APPROVER if isinstance(one, Approved) else Role.PUBLISHER
        if key.role is not wanted:
            raise Rejected("wrong-role", f"expected a key of role {wanted}, got {key.role}")
        if not key.valid_from <= at or (key.valid_to is not None and at >= key.valid_to):
            raise Rejected("key-not-valid", "expected a key within its validity")
        if one.audience != self._audience:
            raise Rejected("wrong-audience", "expected a request made for this deployment")
        if one.expires_at <= at:
            raise Rejected("expired", "expected a request that has not expired")
        if one.issued_at > at + self._policy.clock_skew:
            raise Rejected("issued-in-future", "expected a time of issue that has passed")
        for name, asked in _asked(one).items():
            allowed = key.scope.get(name)
            if allowed is not None and not asked <= set(allowed):
                raise Rejected("out-of-key-scope", f"expected {name} that this key may ask for")

    def _entries(self, one: Request) -> Iterable[tuple[suppression.Action, str, bytes]]:
        """Suppression entries of a request: (add or lift, purpose, MAC)."""
        subjects: tuple[str, ...]
        purposes: tuple[str, ...] = (EVERYTHING,)
        action = suppression.Action.ADD
        match one:
            case DeletionRequested(subject_ref=subject) | RetentionExpired(subject_ref=subject, purposes=None):
                subjects = (subject,)
            case OrderIssued(selection=ByList(subjects=subjects)):
                pass
            case ConsentWithdrawn(subject_ref=subject, purposes=tuple(purposes)):
                subjects = (subject,)
            case RetentionExpired(subject_ref=subject, purposes=tuple(purposes)):
                subjects = (subject,)
            case ConsentGiven(subject_ref=subject, purposes=given):
                action, subjects, purposes = suppression.Action.LIFT, (subject,), (EVERYTHING, *given)
            case _:
                return
        for subject in subjects:
            for purpose in purposes:
                yield action, purpose, suppression.mac(self._journal.key, "subject", purpose, subject.encode())

    async def commit(self, judged: Judged, tx: Tx) -> Sequence[Refused]:
        """Insert requests, apply holds, cancels, releases and approvals, answer the rest."""
        refused = list(judged.refused)
        rejected = list(judged.rejected)
        done = [one for one in judged.accepted if isinstance(one.request, ConsentGiven)]
        out: list[events.Event] = []
        if any(isinstance(one.request, HoldPlaced) for one in judged.accepted):
            await tx.execute("intake_plan_lock")
        await self._suppress(judged.accepted, tx)
        out += await self._insert(judged, rejected, tx)
        crash_point("intake.inserted")
        for one in judged.accepted:
            try:
                match one.request:
                    case HoldPlaced():
                        await self._hold(one.request, judged.at, tx)
                    case HoldReleased():
                        await self._release(one.request, judged.at, tx)
                    case Cancelled():
                        await self._cancel(one.request, judged.at, tx)
                    case Approved():
                        await self._approve(one, judged.at, tx)
                    case _:
                        continue
                out.append(events.RequestAccepted(request_id=one.request.id, at=judged.at))
                done.append(one)
            except Rejected as error:
                if error.code == "unknown-request":
                    # It may still be on its way: another partition, a later offset.
                    refused.append(Refused(one.delivery, error.code, later=True))
                else:
                    rejected.append(_rejection(one, error.code))
        out += await self._answers(rejected, judged.at, tx)
        await self._carried_out(done, judged.at, tx)
        await emit(tx, WORKER, out, at=judged.at)
        return refused

    async def _answers(self, rejected: Sequence[Rejection], at: datetime, tx: Tx) -> list[events.Event]:
        """Rejections. What was accepted before, byte for byte, is accepted still: a repeat may come after its expiry."""
        if not rejected:
            return []
        known = await self._known([one.request_id for one in rejected], tx)
        await _remember(
            tx,
            [
                (one.request_id, one.key_id, one.type or None, one.code)
                for one in rejected
                if known.get(one.request_id) != one.digest
            ],
            at,
        )
        return [
            events.RequestAccepted(request_id=one.request_id, at=at)
            if known.get(one.request_id) == one.digest
            else events.RequestRejected(request_id=one.request_id, code=one.code, at=at)
            for one in rejected
        ]

    async def _carried_out(self, done: Sequence[Authentic], at: datetime, tx: Tx) -> None:
        """Requests that have no row: what the read API answers about them."""
        await _remember(tx, [(one.request.id, one.key_id, one.request.type, None) for one in done], at)

    async def _known(self, ids: Sequence[RequestId], tx: Tx) -> dict[str, bytes]:
        """Requests that have a row: the digests of their payloads."""
        rows = await tx.fetch("intake_existing", ids=[UUID(one) for one in ids])
        return {str(request_id): bytes(digest) for request_id, digest, _state in rows}

    async def _suppress(self, accepted: Sequence[Authentic], tx: Tx) -> None:
        adds, lifts, purposes = self._changes(accepted)
        if purposes or any(isinstance(one.request, OrderIssued) for one in accepted):
            # What register does now comes before, and is planned; what it does later finds the entry, the source closed.
            await tx.execute("intake_lock")
        for query, times in (("intake_suppress", adds), ("intake_lift", lifts)):
            if times:
                macs = sorted(times)
                await tx.execute(query, macs=macs, at=[times[mac] for mac in macs])

    async def _insert(self, judged: Judged, rejected: list[Rejection], tx: Tx) -> list[events.Event]:
        """Requests that will be planned, as rows. Duplicates are answered, replays rejected."""
        planned = [one for one in judged.accepted if _is_planned(one.request)]
        consents = [one.request for one in judged.accepted if isinstance(one.request, ConsentGiven | ConsentWithdrawn)]
        if not planned and not consents:
            return []
        bits = {name: bit for bit, name in await tx.fetch("intake_purposes")}
        subjects = sorted({str(one.request.subject_ref) for one in planned if isinstance(one.request, OF_SUBJECT)})
        known = {row[0] for row in await tx.fetch("intake_known_subjects", subjects=subjects)}
        held = {row[0] for row in await tx.fetch("intake_held_subjects", subjects=subjects, at=judged.at)}
        rows, sources = await self._rows(planned, rejected, (bits, known, held), judged.at, tx)
        inserted: set[str] = set()
        if rows:
            names = ("ids", "types", "classes", "states", "subjects", "purposes", "regulations", "bodies", "digests",
                     "key_ids", "nonces", "due", "traces")  # fmt: skip
            columns = dict(zip(names, map(list, zip(*rows.values(), strict=True)), strict=True))
            bucket = judged.at.date()
            for (request_id,) in await tx.fetch("intake_insert", **columns, at=judged.at, bucket=bucket):
                inserted.add(str(request_id))
        # An id that is new and got no row: its key used the nonce before.
        rejected += [
            Rejection(request_id, "replayed", row[8], row[9], row[1])
            for request_id, row in rows.items()
            if request_id not in inserted
        ]
        for name, source in sources.items():
            if name in inserted:
                await tx.execute("intake_close_source", name=source, request_id=UUID(name), at=judged.at)
        if consents:
            await tx.execute(
                "intake_consent",
                ids=[one.id for one in consents],
                subjects=[one.subject_ref for one in consents],
                purposes=[_mask(one.purposes, bits, strict=False) for one in consents],
                given=[isinstance(one, ConsentGiven) for one in consents],
                at=[one.issued_at for one in consents],
            )
        # A person's request is answered by its certificate: one message less for each.
        told = [one.request for one in planned if isinstance(one.request, OrderIssued) and one.request.id in inserted]
        return [
            events.RequestAccepted(request_id=one.id, at=judged.at)
            for one in (*told, *(one for one in consents if isinstance(one, ConsentGiven)))
        ]

    async def _rows(
        self, planned: Sequence[Authentic], rejected: list[Rejection], world: tuple[Mapping[str, int], set[str], set[str]],
        at: datetime, tx: Tx,
    ) -> tuple[dict[RequestId, tuple[Any, ...]], dict[str, str]]:  # fmt: skip
        """Rows for what is new, and the source that each order closes. `world`: purposes, subjects known, subjects held."""
        before = await self._known([one.request.id for one in planned], tx)
        left = await self._quota_left(planned, at, tx)
        rows: dict[RequestId, tuple[Any, ...]] = {}
        sources: dict[str, str] = {}
        for one in planned:
            request_id, key_id = one.request.id, one.key_id
            if request_id in before or request_id in rows:
                rejected.append(_rejection(one, "replayed"))  # unless it is a repeat: see `_answers`
            elif left.get(key_id, 1) <= 0:
                rejected.append(_rejection(one, "over-quota"))
            else:
                try:
                    rows[request_id] = await self._row(one, *world, sources, at, tx)
                except Rejected as error:
                    rejected.append(_rejection(one, error.code))
                else:
                    left[key_id] = left.get(key_id, len(planned) + 1) - 1
        return rows, sources

    async def _quota_left(self, planned: Sequence[Authentic], at: datetime, tx: Tx) -> dict[str, int]:
        """By key that has a quota: how many more requests it may make today."""
        limited = {one.key_id: int(one.key.scope["quota"]) for one in planned if "quota" in one.key.scope}
        if not limited:
            return {}
        used: dict[str, int] = {
            row[0]: row[1] for row in await tx.fetch("intake_used_quota", keys=sorted(limited), at=at)
        }
        return {key: quota - used.get(key, 0) for key, quota in limited.items()}

    async def _row(
        self, one: Authentic, bits: Mapping[str, int], known: set[str], held: set[str], sources: dict[str, str],
        at: datetime, tx: Tx,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The columns of `intake_insert` for one request."""
        body = one.request
        subject: str | None = None
        mask, regulation, kind, state = ALL_PURPOSES, "other", "people", RequestState.ACCEPTED
        match body:
            case OrderIssued(selection=selection):
                kind = "order"
                name = getattr(selection, "source", None)
                if name is not None:
                    if not await tx.fetch("intake_source", name=name):
                        raise Rejected("unknown-source", "expected a source that is registered")
                    sources[body.id] = name
            case DeletionRequested() | RetentionExpired() | ConsentWithdrawn():
                subject = body.subject_ref
                if subject not in known:
                    raise Rejected(
                        "unknown-subject", "expected a subject with at least one image; suppressed all the same"
                    )
                purposes = getattr(body, "purposes", None)
                mask = ALL_PURPOSES if purposes is None else _mask(purposes, bits, strict=True)
                regulation = str(getattr(body, "regulation", "other"))
                state = RequestState.HELD if subject in held else RequestState.ACCEPTED
        return (
            body.id, body.type, kind, state, subject, mask, regulation, one.payload,
            hashlib.sha256(one.payload).digest(), one.key_id, body.nonce, self._policy.due(body, at),
            one.delivery.event.traceparent,
        )  # fmt: skip

    async def _hold(self, hold: HoldPlaced, at: datetime, tx: Tx) -> None:
        subject: str | None = None
        source_no: int | None = None
        packed: bytes | None = None
        match hold.target:
            case BySubject():
                subject = hold.target.subject_ref
                ((packed,),) = await tx.fetch("intake_hold_ordinals", subject=subject)
                await tx.execute("intake_hold_waiting", subject=subject)
            case BySource(source=name):
                rows = await tx.fetch("intake_source", name=name)
                if not rows:
                    raise Rejected("unknown-source", "expected a source that is registered")
                source_no = rows[0][0]
                ((packed,),) = await tx.fetch("intake_source_ordinals", source_no=source_no)
        await tx.execute(
            "intake_hold", hold_id=UUID(hold.id), subject=subject, source_no=source_no, until=hold.until, at=at
        )
        ordinals = np.frombuffer(packed or b"", ">i8").astype(np.int64)
        found, kept = 0, 0
        for sweep_id, bucket, touched in await tx.fetch("intake_open_sweeps"):
            if not BitMap64(ordinals).intersect(BitMap64.deserialize(touched)):
                continue
            file, _ = open_scope(self._keys, self._sealed, sweep_id, bucket)
            for tree, indices in _leaves_of(file, ordinals):
                found += len(indices)
                kept += await self._exclude(tx, sweep_id, tree, indices, "held", UUID(hold.id))
        if found and not kept:
            raise Rejected("too-late", "expected a hold before the erasure began; it stands for what comes later")

    async def _release(self, release: HoldReleased, at: datetime, tx: Tx) -> None:
        """What it held is planned again as soon as nothing else holds it: see `Dispatch.expire`."""
        if not await tx.execute("intake_release", hold_id=UUID(release.hold_id), at=at):
            raise Rejected("unknown-request", "expected a hold that was placed")

    async def _cancel(self, cancel: Cancelled, at: datetime, tx: Tx) -> None:
        request_id = UUID(cancel.request_id)
        rows = await tx.fetch("intake_cancel", request_id=request_id)
        if not rows:
            raise Rejected("unknown-request", "expected a request that was accepted")
        ((state, sweep_id, leaf),) = rows
        if state == RequestState.CANCELLED:
            return
        if RequestState(state) in FINAL or state == RequestState.DATA_CERTIFIED:
            raise Rejected("too-late", "expected a request that is still open")
        if sweep_id is not None:
            await self._cancel_planned(request_id, sweep_id, leaf, at, tx, held=state != RequestState.PLANNED)
        await tx.execute("intake_cancelled", request_id=request_id)

    async def _cancel_planned(
        self, request_id: UUID, sweep_id: UUID, leaf: int, at: datetime, tx: Tx, *, held: bool
    ) -> None:  # fmt: skip
        """Take a request out of its sweep, if nothing was done to any artifact of it. `held`: it was certified as held."""
        ((bucket, state, sweep_class, scope_digest),) = await tx.fetch("intake_lock_sweep", sweep_id=sweep_id)
        if sweep_class == "order" and state != SweepState.PUBLISHED and not held:
            predicate = statement.ScopeVoid(
                sweep=str(sweep_id), scope=scope_digest.hex(), reason="cancelled", at=statement.instant(at)
            )
            payload = statement.payload(predicate, {"scope": scope_digest.hex()})
            await tx.execute("intake_void_sweep", sweep_id=sweep_id)
            await log(tx, [(predicate.type, self._scope_signer.sign(payload, statement.PAYLOAD_TYPE))])
            return
        file, _ = open_scope(self._keys, self._sealed, sweep_id, bucket)
        if _took_purposes(file, leaf):
            # What artifacts were kept for before, nobody knows any more; and what was asked since has built on it.
            raise Rejected("too-late", "expected a cancel before purposes were withdrawn from artifacts that stay")
        if held:
            return  # what was not done by then is no run's any more
        cancelled = {row[0] for row in await tx.fetch("intake_cancelled_leaves", sweep_id=sweep_id)}
        alone = list(_only_claimed_by(file, leaf, cancelled))
        begun = await tx.fetch("intake_begun", sweep_id=sweep_id)
        if not all(_untouched(tree, indices, begun).all() for tree, indices in alone):
            raise Rejected("too-late", "expected a cancel before the erasure began")
        for tree, indices in alone:
            await self._exclude(tx, sweep_id, tree, indices, "cancelled", request_id)

    async def _exclude(
        self, tx: Tx, sweep_id: UUID, tree: int, indices: np.ndarray[Any, Any], reason: str, cause: UUID
    ) -> int:
        """Keep executors away from leaves whose run has not begun; how many that is. The sweep's row is locked."""
        keep = _untouched(tree, indices, await tx.fetch("intake_begun", sweep_id=sweep_id))
        if keep.any():
            packed = indices[keep].astype("<u4").tobytes()
            await tx.execute("intake_exclude", sweep_id=sweep_id, tree=tree, reason=reason, cause=cause, indices=packed)
        return int(keep.sum())

    async def _approve(self, one: Authentic, at: datetime, tx: Tx) -> None:
        approval = one.request
        assert isinstance(approval, Approved)  # noqa: S101 - for the type checker; `commit` matched it
        request_id = UUID(approval.request_id)
        rows = await tx.fetch("intake_approving", request_id=request_id)
        if not rows or rows[0][1] is None:
            raise Rejected("unknown-request", "expected a request whose scope is sealed")
        ((publisher, sweep_id, scope_digest, state),) = rows
        named = {"request_id": request_id, "key_id": one.key_id, "scope_root": bytes.fromhex(approval.scope_root)}
        if await tx.fetch("intake_approved_before", **named):
            return
        if state not in {SweepState.SEALED, SweepState.AWAITING_APPROVAL}:
            raise Rejected("not-awaiting-approval", "expected a scope that awaits approval")
        if bytes.fromhex(approval.scope_root) != scope_digest:
            raise Rejected("wrong-scope", "expected the digest of this request's scope statement")
        if one.key.holder == publisher:
            raise Rejected("self-approval", "expected an approver other than the requester")
        await tx.execute("intake_approve", request_id=request_id, key_id=one.key_id, scope_root=scope_digest, at=at)
        approvers = [
            row[0] for row in await tx.fetch("intake_approvers", request_id=request_id, scope_root=scope_digest)
        ]
        if len(approvers) < self._policy.approvers:
            return
        predicate = statement.ScopeApproved(
            sweep=str(sweep_id), scope=scope_digest.hex(), approvers=tuple(approvers), at=statement.instant(at)
        )
        payload = statement.payload(predicate, {"scope": scope_digest.hex()})
        envelope = self._scope_signer.sign(payload, statement.PAYLOAD_TYPE)
        (index,) = await log(tx, [(predicate.type, envelope)])
        await tx.execute("intake_approved", sweep_id=sweep_id, index=index)


def _trusted(row: tuple[Any, ...]) -> TrustedKey:
    _key_id, role, holder, public, scope, valid_from, valid_to = row
    return TrustedKey(holder, dsse.PublicKey(bytes(public)), Role(role), scope, valid_from, valid_to)


def _rejection(one: Authentic, code: str) -> Rejection:
    return Rejection(one.request.id, code, hashlib.sha256(one.payload).digest(), one.key_id, one.request.type)


async def _remember(tx: Tx, answers: Sequence[tuple[RequestId, str, str | None, str | None]], at: datetime) -> None:
    """Keep answers for the read API: request, key, type, and the code of a rejection."""
    if answers:
        ids, keys, types, codes = map(list, zip(*answers, strict=True))
        await tx.execute("intake_remember", ids=ids, key_ids=keys, types=types, codes=codes, at=at)


def _envelope(data: bytes) -> dsse.Envelope:
    """Raises `Rejected`: `unsigned` for what is no envelope but JSON of its own, or one without signatures."""
    try:
        return dsse.parse(data)
    except Rejected:
        value = canonical.loads(data)
        if isinstance(value, dict) and not value.get("signatures"):
            raise Rejected("unsigned", "expected a signed envelope, got one without signatures, or none") from None
        raise


def _named(payload: bytes) -> RequestId | None:
    """The id that a payload gives itself, if it is one."""
    try:
        value = canonical.loads(payload)
        return RequestId(str(UUID(str(value["id"])))) if isinstance(value, dict) else None
    except (Rejected, KeyError, ValueError):
        return None


def _untouched(tree: int, indices: np.ndarray[Any, Any], begun: Sequence[Row]) -> np.ndarray[Any, Any]:
    """Where no run of chunks that holds the leaf has begun. `begun`: rows of tree, first chunk, end chunk."""
    keep = np.ones(len(indices), bool)
    for other, first, end in begun:
        if other == tree:
            keep &= (indices // CHUNK_LEAVES < first) | (indices // CHUNK_LEAVES >= end)
    return keep


def _asked(one: Request) -> dict[str, set[str]]:
    asked: dict[str, set[str]] = {"types": {one.type}}
    match one:
        case ConsentGiven(purposes=purposes) | ConsentWithdrawn(purposes=purposes):
            asked["purposes"] = set(purposes)
        case DeletionRequested() | RetentionExpired(purposes=None):
            asked["purposes"] = {EVERYTHING}
        case RetentionExpired(purposes=tuple(purposes)):
            asked["purposes"] = set(purposes)
        case OrderIssued(selection=selection):
            # What names no source takes from all: a key for some may not ask for it.
            asked["sources"] = {getattr(selection, "source", None) or EVERYTHING}
            asked["purposes"] = {EVERYTHING}
        case HoldPlaced(target=BySource(source=source)):
            asked["sources"] = {source}
    return asked


def _is_planned(one: Request) -> bool:
    return isinstance(one, DeletionRequested | RetentionExpired | ConsentWithdrawn | OrderIssued)


def _mask(purposes: Sequence[str], bits: Mapping[str, int], *, strict: bool) -> int:
    unknown = set(purposes) - set(bits)
    if unknown and strict:
        raise Rejected("unknown-purpose", "expected purposes that some artifact was registered with")
    return sum(1 << bits[purpose] for purpose in set(purposes) - unknown)


def _leaves_of(file: ScopeFile, ordinals: np.ndarray[Any, Any]) -> Iterable[tuple[int, np.ndarray[Any, Any]]]:
    """Leaf indices of these images, per tree."""
    for tree, described in enumerate(cast("list[dict[str, Any]]", file.header["trees"])):
        found = []
        for chunk in range(-(-described["leaves"] // 1024)):
            column = np.frombuffer(unpack_columns(file.section(f"{tree}/{chunk}"))["ordinal"], "<u8").astype(np.int64)
            found.append(np.flatnonzero(np.isin(column, ordinals)) + chunk * 1024)
        indices = np.concatenate(found) if found else np.zeros(0, np.int64)
        if len(indices):
            yield tree, indices


def _took_purposes(file: ScopeFile, leaf: int) -> bool:
    """Whether sealing took purposes, for this request, from artifacts that stay for others."""
    bodies = unpack_strings(unpack_columns(file.section("requests"))["bodies"])
    return bool(json.loads(bodies[leaf])["retained"])


def _only_claimed_by(
    file: ScopeFile, leaf: int, cancelled: Collection[int]
) -> Iterable[tuple[int, np.ndarray[Any, Any]]]:
    """Leaf indices that go because this request claims them, per tree: no other that stands withdraws everything of them.

    Whether the purposes that others withdraw would do without it, the scope file does not say: their requests are planned
    again, as after a hold."""
    columns = unpack_columns(file.section("claims"))
    purposes = np.frombuffer(columns["purposes"], "<i8")
    whole = [one for one in np.flatnonzero(purposes == ALL_PURPOSES).tolist() if one != leaf and one not in cancelled]
    for tree in range(len(cast("list[Any]", file.header["trees"]))):
        indices = np.frombuffer(columns[f"indices/{tree}"], "<u4").astype(np.int64)
        offsets = np.frombuffer(columns[f"offsets/{tree}"], "<u8").astype(np.int64)
        mine = indices[offsets[leaf] : offsets[leaf + 1]]
        others = [indices[offsets[one] : offsets[one + 1]] for one in whole]
        alone = mine[~np.isin(mine, np.concatenate(others))] if others else mine
        if len(alone):
            yield tree, alone
