"""Intake: a signed request from `expunge.requests` becomes a row, a suppression, or an answer that says why not.

Order of checks: signature, key scope, schema, replay; suppression is written (journal, then rows) before the request
counts as accepted. What is not authentic gets no rejection event, because anyone could forge one about somebody else's
request: it goes to the dead letter.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

import numpy as np
from pyroaring import BitMap64

from expunge.domain import dsse, events, request, statement, suppression
from expunge.domain.errors import Rejected
from expunge.domain.leaf import derive_key
from expunge.domain.lifecycle import FINAL, RequestState, SweepState
from expunge.domain.policy import Policy
from expunge.domain.request import (
    Approved,
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
from expunge.domain.scopefile import ScopeFile, unpack_columns
from expunge.domain.sweep import ALL_PURPOSES
from expunge.domain.words import Role
from expunge.ports import Clock, Delivery, Journal, KeyStore, Ledger, Refused, SealedStore, Signer, Tx
from expunge.record import emit, log

WORKER: Final = "coordinate"
OF_SUBJECT: Final = (DeletionRequested, RetentionExpired, ConsentWithdrawn)
"""Requests about one person that end in a sweep."""

EVERYTHING: Final = "*"
"""The purpose of a suppression entry that refuses a subject altogether."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A registered key: what it may sign. `scope`: types, sources, purposes allowed (absent: all) and quota per day."""

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
class Judged:
    """What `act` found: authentic requests, answers to give, dead letters, and purposes known."""

    accepted: list[Authentic]
    rejected: list[tuple[RequestId, str]]
    refused: list[Refused]
    at: datetime


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
        async with self._ledger.transaction() as tx:
            keys = {row[0]: _trusted(row) for row in await tx.fetch("intake_keys")}
        judged = Judged(accepted=[], rejected=[], refused=[], at=self._clock())
        for delivery in deliveries:
            try:
                authentic = self._authenticate(delivery, keys)
            except Rejected as error:
                judged.refused.append(Refused(delivery, error.code, later=False))
                continue
            try:
                self._admit(authentic, judged.at)
            except Rejected as error:
                judged.rejected.append((authentic.request.id, error.code))
            else:
                judged.accepted.append(authentic)
        records = [
            suppression.Record("subject", action, suppression.purpose_digest(purpose), mac)
            for one in judged.accepted
            for action, purpose, mac in self._entries(one.request)
        ]
        if records:
            self._keys.bucket(judged.at.date(), create=True)
            await asyncio.to_thread(self._journal.append, suppression.encode(records))
        return judged

    def _authenticate(self, delivery: Delivery, keys: Mapping[str, TrustedKey]) -> Authentic:
        envelope = dsse.parse(delivery.event.data)
        for signature in envelope.signatures:
            key = keys.get(signature.key_id)
            if key is None:
                continue
            try:
                payload = dsse.verify(envelope, key.public, request.PAYLOAD_TYPE)
            except Exception as error:
                code = "bad-signature"
                raise Rejected(code, "expected a signature that verifies") from error
            parsed = request.parse_request(payload)
            request.check_agrees(parsed, delivery.event)
            return Authentic(delivery, parsed, signature.key_id, key, payload)
        code = "unknown-key" if envelope.signatures else "unsigned"
        raise Rejected(code, "expected a signature by a registered key")

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
        match one:
            case DeletionRequested() | RetentionExpired(purposes=None):
                entries = [(suppression.Action.ADD, EVERYTHING)]
            case ConsentWithdrawn(purposes=purposes) | RetentionExpired(purposes=tuple(purposes)):
                entries = [(suppression.Action.ADD, purpose) for purpose in purposes]
            case ConsentGiven(purposes=purposes):
                entries = [(suppression.Action.LIFT, purpose) for purpose in (EVERYTHING, *purposes)]
            case _:
                return
        for action, purpose in entries:
            mac = suppression.mac(self._journal.key, "subject", purpose, one.subject_ref.encode())
            yield action, purpose, mac

    async def commit(self, judged: Judged, tx: Tx) -> Sequence[Refused]:
        """Insert requests, apply holds, cancels, releases and approvals, answer the rest."""
        refused = list(judged.refused)
        rejected = list(judged.rejected)
        out: list[events.Event] = []
        await self._suppress(judged, tx)
        out += await self._insert(judged, rejected, tx)
        for one in judged.accepted:
            try:
                match one.request:
                    case HoldPlaced():
                        await self._hold(one.request, judged.at, tx)
                    case HoldReleased():
                        await self._release(one.request, judged.at, tx)
                    case Cancelled():
                        await self._cancel(one.request, tx)
                    case Approved():
                        await self._approve(one, judged.at, tx)
                    case _:
                        continue
                out.append(events.RequestAccepted(request_id=one.request.id, at=judged.at))
            except Rejected as error:
                if error.code == "unknown-request":
                    # It may still be on its way: another partition, a later offset.
                    refused.append(Refused(one.delivery, error.code, later=True))
                else:
                    rejected.append((one.request.id, error.code))
        out += [events.RequestRejected(request_id=request_id, code=code, at=judged.at) for request_id, code in rejected]
        await emit(tx, WORKER, out, at=judged.at)
        return refused

    async def _suppress(self, judged: Judged, tx: Tx) -> None:
        adds: list[bytes] = []
        lifts: list[bytes] = []
        for one in judged.accepted:
            for action, _purpose, mac in self._entries(one.request):
                (adds if action is suppression.Action.ADD else lifts).append(mac)
        if adds or lifts:
            await tx.execute("intake_lock")
        if adds:
            await tx.execute("intake_suppress", macs=sorted(set(adds)))
        if lifts:
            await tx.execute("intake_lift", macs=sorted(set(lifts)), at=judged.at)

    async def _insert(self, judged: Judged, rejected: list[tuple[RequestId, str]], tx: Tx) -> list[events.Event]:
        """Requests that will be planned, as rows. Duplicates are answered, replays rejected."""
        planned = [one for one in judged.accepted if _is_planned(one.request)]
        consents = [one.request for one in judged.accepted if isinstance(one.request, ConsentGiven | ConsentWithdrawn)]
        if not planned and not consents:
            return []
        bits = {name: bit for bit, name in await tx.fetch("intake_purposes")}
        subjects = sorted({str(one.request.subject_ref) for one in planned if isinstance(one.request, OF_SUBJECT)})
        known = {row[0] for row in await tx.fetch("intake_known_subjects", subjects=subjects)}
        held = {row[0] for row in await tx.fetch("intake_held_subjects", subjects=subjects, at=judged.at)}
        over = await self._over_quota(planned, judged.at, tx)
        rows: list[tuple[Any, ...]] = []
        out: list[events.Event] = []
        sources: dict[str, str] = {}
        for one in planned:
            try:
                if one.key_id in over:
                    raise Rejected("over-quota", "expected no more requests than the key's daily quota")
                rows.append(await self._row(one, bits, known, held, sources, judged.at, tx))
            except Rejected as error:
                rejected.append((one.request.id, error.code))
        inserted: set[str] = set()
        if rows:
            names = ("ids", "types", "classes", "states", "subjects", "purposes", "regulations", "bodies", "digests",
                     "key_ids", "nonces", "due")  # fmt: skip
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            bucket = judged.at.date()
            for (request_id,) in await tx.fetch("intake_insert", **columns, at=judged.at, bucket=bucket):
                inserted.add(str(request_id))
            digests = {row[0]: row[8] for row in rows}
            missing = [request_id for request_id in digests if request_id not in inserted]
            existing = (
                {str(row[0]): row[1] for row in await tx.fetch("intake_existing", ids=missing)} if missing else {}
            )
            for request_id in missing:
                if existing.get(request_id) == digests[request_id]:
                    out.append(events.RequestAccepted(request_id=request_id, at=judged.at))
                else:
                    rejected.append((request_id, "replayed"))
        for request_id, source in sources.items():
            if request_id in inserted:
                await tx.execute("intake_close_source", name=source, request_id=UUID(request_id), at=judged.at)
        out += [
            events.RequestAccepted(request_id=one.request.id, at=judged.at)
            for one in planned
            if isinstance(one.request, OrderIssued) and one.request.id in inserted
        ]
        if consents:
            await tx.execute(
                "intake_consent",
                ids=[one.id for one in consents],
                subjects=[one.subject_ref for one in consents],
                purposes=[_mask(one.purposes, bits, strict=False) for one in consents],
                given=[isinstance(one, ConsentGiven) for one in consents],
                at=[one.issued_at for one in consents],
            )
        out += [
            events.RequestAccepted(request_id=one.id, at=judged.at) for one in consents if isinstance(one, ConsentGiven)
        ]
        return out

    async def _over_quota(self, planned: Sequence[Authentic], at: datetime, tx: Tx) -> set[str]:
        limited = {one.key_id: int(one.key.scope["quota"]) for one in planned if "quota" in one.key.scope}
        if not limited:
            return set()
        used: dict[str, int] = {
            row[0]: row[1] for row in await tx.fetch("intake_used_quota", keys=sorted(limited), at=at)
        }
        asked = {key: sum(one.key_id == key for one in planned) for key in limited}
        return {key for key, quota in limited.items() if used.get(key, 0) + asked[key] > quota}

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
            file = self._open(sweep_id, bucket)
            for tree, indices in _leaves_of(file, ordinals):
                found += len(indices)
                kept += await self._exclude(tx, sweep_id, tree, indices, "held", UUID(hold.id))
        if found and not kept:
            raise Rejected("too-late", "expected a hold before the erasure began; it stands for what comes later")

    async def _release(self, release: HoldReleased, at: datetime, tx: Tx) -> None:
        rows = await tx.fetch("intake_release", hold_id=UUID(release.hold_id), at=at)
        if not rows:
            raise Rejected("unknown-request", "expected a hold that is in force")
        ((subject, _source_no),) = rows
        await tx.execute("intake_release_waiting", subject=subject, at=at)

    async def _cancel(self, cancel: Cancelled, tx: Tx) -> None:
        rows = await tx.fetch("intake_cancel", request_id=UUID(cancel.request_id))
        if not rows:
            raise Rejected("unknown-request", "expected a request that was accepted")
        ((state, sweep_id, leaf, bucket, _sweep_state, _class),) = rows
        if RequestState(state) in FINAL or state == RequestState.DATA_CERTIFIED:
            raise Rejected("too-late", "expected a request that is still open")
        if sweep_id is not None:
            file = self._open(sweep_id, bucket)
            found, kept = 0, 0
            for tree, indices in _only_claimed_by(file, leaf):
                found += len(indices)
                kept += await self._exclude(tx, sweep_id, tree, indices, "cancelled", UUID(cancel.request_id))
            if found != kept:
                raise Rejected("too-late", "expected a cancel before the erasure began")
        await tx.execute("intake_cancelled", request_id=UUID(cancel.request_id))

    async def _exclude(
        self, tx: Tx, sweep_id: UUID, tree: int, indices: np.ndarray[Any, Any], reason: str, cause: UUID
    ) -> int:  # fmt: skip
        """Keep executors away from leaves whose run has not begun; how many that is. The sweep's row is locked."""
        keep = np.ones(len(indices), bool)
        for begun, first, end in await tx.fetch("intake_begun", sweep_id=sweep_id):
            if begun == tree:
                keep &= (indices // 1024 < first) | (indices // 1024 >= end)
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
        if state not in {SweepState.SEALED, SweepState.AWAITING_APPROVAL}:
            raise Rejected("not-awaiting-approval", "expected a scope that awaits approval")
        if bytes.fromhex(approval.scope_root) != scope_digest:
            raise Rejected("wrong-scope", "expected the digest of this request's scope statement")
        if one.key_id == publisher:
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

    def _open(self, sweep_id: UUID, bucket: Any) -> ScopeFile:  # noqa: ANN401 - a date from the database
        key = derive_key(self._keys.bucket(bucket), "sweep", sweep_id.bytes)
        return ScopeFile.open(self._sealed.open(f"{sweep_id}.scope"), key)


def _trusted(row: tuple[Any, ...]) -> TrustedKey:
    _key_id, role, public, scope, valid_from, valid_to = row
    return TrustedKey(dsse.PublicKey(bytes(public)), Role(role), scope, valid_from, valid_to)


def _asked(one: Request) -> dict[str, set[str]]:
    asked: dict[str, set[str]] = {"types": {one.type}}
    match one:
        case ConsentGiven(purposes=purposes) | ConsentWithdrawn(purposes=purposes):
            asked["purposes"] = set(purposes)
        case OrderIssued(selection=selection) if getattr(selection, "source", None) is not None:
            asked["sources"] = {str(getattr(selection, "source", ""))}
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


def _only_claimed_by(file: ScopeFile, leaf: int) -> Iterable[tuple[int, np.ndarray[Any, Any]]]:
    """Leaf indices that this request claims and no other, per tree."""
    columns = unpack_columns(file.section("claims"))
    for tree in range(len(cast("list[Any]", file.header["trees"]))):
        indices = np.frombuffer(columns[f"indices/{tree}"], "<u4").astype(np.int64)
        offsets = np.frombuffer(columns[f"offsets/{tree}"], "<u8").astype(np.int64)
        mine = indices[offsets[leaf] : offsets[leaf + 1]]
        others = np.concatenate((indices[: offsets[leaf]], indices[offsets[leaf + 1] :]))
        alone = mine[~np.isin(mine, others)]
        if len(alone):
            yield tree, alone
