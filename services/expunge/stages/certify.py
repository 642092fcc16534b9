"""Certify: arithmetic over rescans decides which requests are done; rows about a person go last.

A request's data provision is done when every leaf it claims has a final absence outcome and taint is known; its models
provision when every model it taints was replaced or destroyed. Done requests of a sweep share one completion statement
per round. The certificate itself is boxed under the request's key; the row says where.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap, BitMap64

from expunge.domain import canonical, certificate, dsse, events, merkle, statement
from expunge.domain import sweep as sweeps
from expunge.domain.errors import Rejected
from expunge.domain.events import SweepId
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.lifecycle import RequestState
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.request import RequestId
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.statement import PAYLOAD_TYPE
from expunge.domain.words import FINAL_ABSENT, Outcome, Provision
from expunge.ports import Clock, Delivery, KeyStore, Row, SealedStore, Signer, Tx
from expunge.record import emit, log

WORKER: Final = "coordinate"
_CODES: Final = tuple(Outcome)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as certify needs it: `files` opened, `outcomes` per tree (the last attempt counts)."""

    sweep_id: UUID
    sweep_class: str
    last_artifact: int
    bucket: date
    key: bytes
    scope_digest: bytes
    rounds: int
    trees: Sequence[Mapping[str, Any]]
    file: ScopeFile
    claims: Mapping[str, bytes]
    outcomes: Sequence[NDArray[np.uint8]]

    def indices(self, tree: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Leaf indices claimed in one tree, laid end to end by request, and where each request's begin (r + 1)."""
        leaf = np.frombuffer(self.claims[f"indices/{tree}"], "<u4").astype(np.int64)
        return leaf, np.frombuffer(self.claims[f"offsets/{tree}"], "<u8").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Taint:
    """A model that some requests of the sweep taint. `requests`: their leaves."""

    requests: BitMap
    name: str
    remedy: str
    due: datetime
    resolution: str | None

    def body(self) -> dict[str, Any]:
        """As in `certificate.ModelDue`."""
        due = self.due.isoformat().replace("+00:00", "Z")
        return {"model": self.name, "remedy": self.remedy, "due": due, "resolution": self.resolution or "open"}


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that reached a result in this round."""

    leaf: int
    request_id: UUID
    bucket: date
    result: str
    body: dict[str, Any]


class Certify:
    """Handler of `expunge.outcomes`, after dispatch has handled the same batch in the same transaction.

    `not_covered`: what every certificate says it says nothing about (backups, recipients), in plain words.
    """

    dedupe = True

    def __init__(
        self, *, sealed: SealedStore, keys: KeyStore, signer: Signer, clock: Clock, issuer: str, not_covered: Sequence[str]
    ) -> None:  # fmt: skip
        self._sealed = sealed
        self._keys = keys
        self._signer = signer
        self._clock = clock
        self._issuer = issuer
        self._not_covered = tuple(not_covered)

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
        """Certify every request of these sweeps that is done. Repeats change nothing."""
        for row in await tx.fetch("certify_sweeps", ids=list(sweep_ids)):
            finished_runs, requests, taint = row[9], row[4], row[8]
            if taint != "resolved" or (requests == 1 and not finished_runs):
                continue
            open_requests = await tx.fetch("certify_open", sweep_id=row[0])
            if not open_requests:
                if finished_runs:  # all were cancelled or are held
                    await tx.execute("certify_sweep_done", sweep_id=row[0])
                continue
            sweep = await self._load(row, tx)
            taints = [_taint(one) for one in await tx.fetch("certify_taints", sweep_id=sweep.sweep_id)]
            data = [one for one in open_requests if one[4] is None]
            rounds = sweep.rounds
            if data:
                done = await asyncio.to_thread(_finished_data, sweep, data, taints)
                if done:
                    await self._round(sweep, rounds, Provision.DATA, done, tx)
                    rounds += 1
            models = [one for one in await tx.fetch("certify_open", sweep_id=sweep.sweep_id) if one[4] is not None]
            closed = _finished_models(models, taints)
            if closed:
                await self._round(sweep, rounds, Provision.MODELS, closed, tx)
            await tx.execute("certify_sweep_done", sweep_id=sweep.sweep_id)

    async def _load(self, row: Row, tx: Tx) -> Sweep:
        sweep_id, sweep_class, last_artifact, bucket, _requests, trees, scope_digest, rounds, _taint, _done = row
        outcomes = [np.zeros(tree["leaves"], np.uint8) for tree in trees]
        for tree, chunk, _attempt, packed in await tx.fetch("certify_outcomes", sweep_id=sweep_id):
            part = outcomes[tree][chunk * CHUNK_LEAVES : chunk * CHUNK_LEAVES + len(packed)]
            part[:] = sweeps.last_outcomes([part, np.frombuffer(packed, np.uint8)])
        key = derive_key(self._keys.bucket(bucket), "sweep", sweep_id.bytes)
        file = ScopeFile.open(self._sealed.open(f"{sweep_id}.scope"), key)
        claims = unpack_columns(file.section("claims"))
        return Sweep(
            sweep_id, sweep_class, last_artifact, bucket, key, scope_digest, rounds, trees, file, claims, outcomes
        )

    async def _round(
        self, sweep: Sweep, number: int, provision: Provision, done: Sequence[Finished], tx: Tx
    ) -> None:  # fmt: skip
        """One completion statement for many requests, and a boxed certificate for each."""
        at = statement.instant(self._clock())
        root, certificates = await asyncio.to_thread(self._certificates, sweep, number, provision, done)
        buckets = {day: self._keys.bucket(day) for day in {one.bucket for one in done}}
        boxes = [_box(buckets[one.bucket], one, number, data) for one, data in zip(done, certificates, strict=True)]
        blob = b"".join(boxes)
        file_digest = hashlib.sha256(blob).digest()
        await asyncio.to_thread(self._sealed.write, round_file(sweep.sweep_id, number, file_digest), [blob])
        results = {result: sum(one.result == result for one in done) for result in sorted({one.result for one in done})}
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
            digests=[hashlib.sha256(data).digest() for data in certificates],
            positions=[end - len(box) for end, box in zip(ends, boxes, strict=True)], lengths=[len(box) for box in boxes],
        )  # fmt: skip
        if provision is Provision.DATA:
            await self._drop_rows(sweep, done, tx)
            if sweep.sweep_class == "order":
                await tx.execute("certify_reconcile", sweep_id=sweep.sweep_id)
        states = [_state_after(provision, one) for one in done]
        await tx.execute(
            "certify_data" if provision is Provision.DATA else "certify_models", round=number,
            ids=[one.request_id for one in done], results=[one.result for one in done], states=states,
        )  # fmt: skip
        (index,) = await log(tx, [(predicate.type, envelope)])
        await tx.execute(
            "certify_put_round", sweep_id=sweep.sweep_id, round=number, provision=provision, requests=len(done),
            envelope=envelope, index=index, file_digest=file_digest, at=at,
        )  # fmt: skip
        await tx.execute("certify_count_rounds", sweep_id=sweep.sweep_id)

    def _certificates(
        self, sweep: Sweep, number: int, provision: Provision, done: Sequence[Finished]
    ) -> tuple[bytes, list[bytes]]:  # fmt: skip
        """The completion tree's root, and each request's certificate as canonical JSON."""
        requests = unpack_columns(sweep.file.section("requests"))
        claim_tree = merkle.Tree(requests["hashes"])
        claim_bodies = unpack_strings(requests["bodies"])
        claim_nonces = nonces(derive_key(sweep.key, "requests"), claim_tree.size)
        drawn = nonces(derive_key(sweep.key, "round", number.to_bytes(4, "big")), len(done))
        bodies = [canonical.dumps(one.body) for one in done]
        leaves = b"".join(
            certificate.leaf(drawn[at * 16 : at * 16 + 16], body) for at, body in enumerate(bodies)
        )  # fmt: skip
        tree = merkle.Tree(merkle.leaf_hashes(leaves, certificate.OPENING_BYTES))
        runs = [_runs_by_request(sweep, number) for number in range(len(sweep.trees))]
        made = []
        for at, one in enumerate(done):
            claim: Any = canonical.loads(claim_bodies[one.leaf].encode())
            made.append(
                canonical.dumps(
                    {
                        "version": 1,
                        "issuer": self._issuer,
                        "request": str(one.request_id),
                        "provision": provision,
                        "sweep": str(sweep.sweep_id),
                        "scope": sweep.scope_digest.hex(),
                        "round": number,
                        "claim": claim,
                        "claim_opening": _opening(claim_tree, one.leaf, claim_nonces),
                        "indices": [runs[tree["tree"]](one.leaf) for tree in claim["trees"]],
                        "completed": one.body,
                        "completed_opening": _opening(tree, at, drawn),
                        "not_covered": list(self._not_covered),
                    }
                )
            )
        return tree.root, made

    async def _drop_rows(self, sweep: Sweep, done: Sequence[Finished], tx: Tx) -> None:
        """Turn image rows that nothing holds any more into tombstones; drop artifact and subject rows."""
        chosen = np.array([one.leaf for one in done])
        offsets = np.frombuffer(sweep.claims["ordinal_offsets"], "<u8").astype(np.int64)
        every = np.frombuffer(sweep.claims["ordinals"], "<u8").astype(np.int64)
        ordinals = np.unique(np.concatenate([every[offsets[leaf] : offsets[leaf + 1]] for leaf in chosen.tolist()]))
        runs = sweeps.runs_of(ordinals)
        first, end = [run[0] for run in runs], [run[0] + run[1] for run in runs]
        whole = sweep.sweep_class == "order" and all(np.isin(one, list(FINAL_ABSENT)).all() for one in sweep.outcomes)
        found: dict[int, BitMap64] = {}
        if whole:
            await tx.execute(
                "certify_drop_artifact_ranges", first=first, end=end, last=sweep.last_artifact, sweep_id=sweep.sweep_id,
            )  # fmt: skip
            for source_no, packed in await tx.fetch("certify_drop_image_ranges", first=first, end=end):
                found[source_no] = BitMap64(np.frombuffer(packed, ">i8").astype(np.uint64))
        else:
            gone, ids = await asyncio.to_thread(_gone_artifacts, sweep, chosen)
            if len(gone):
                await tx.execute(
                    "certify_drop_artifacts", ordinals=gone.tolist(), ids=ids.tolist(), sweep_id=sweep.sweep_id
                )
            for ordinal, source_no in await tx.fetch("certify_drop_images", first=first, end=end):
                found.setdefault(source_no, BitMap64()).add(ordinal)
        await tx.execute("certify_drop_subjects", first=first, end=end)
        await tx.execute("certify_drop_consents", ids=[one.request_id for one in done])
        if found:
            for source_no, bitmap in await tx.fetch("certify_tombstone_now", sweep_id=sweep.sweep_id):
                if source_no in found:
                    found[source_no] |= BitMap64.deserialize(bitmap)
        for source_no, bitmap in found.items():
            bitmap.run_optimize()
            await tx.execute(
                "certify_tombstone", sweep_id=sweep.sweep_id, source_no=source_no, images=len(bitmap),
                bitmap=bitmap.serialize(),
            )  # fmt: skip

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

    async def issue(self, size: int, tx: Tx) -> int:
        """Announce the certificates of every round that the checkpoint of `size` covers; how many certificates."""
        rows = await tx.fetch("certify_unissued", size=size)
        at = self._clock()
        out: list[events.Event] = []
        for sweep_id, number, provision, request_id, result, digest, state in rows:
            out.append(
                events.CertificateIssued(
                    request_id=RequestId(str(request_id)),
                    provision=Provision(provision),
                    sweep_id=SweepId(str(sweep_id)),
                    round=number,
                    result=events.Result(result),
                    certificate_digest=digest.hex(),
                    at=at,
                )
            )
            if state == RequestState.COMPLETED:
                out.append(events.RequestCompleted(request_id=RequestId(str(request_id)), at=at))
        if rows:
            await emit(tx, WORKER, out, at=at)
            await tx.execute("certify_issued", size=size)
        return len(rows)


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


def round_file(sweep_id: UUID, number: int, digest: bytes) -> str:
    """Name of a round's file of boxes. It holds its digest, because a round that a crash undid may differ when redone."""
    return f"{sweep_id}.round-{number}-{digest.hex()[:16]}"


def _taint(row: Row) -> Taint:
    requests, name, remedy, due, resolution, _index = row
    return Taint(BitMap.deserialize(requests), name, remedy, due, resolution)


def _finished_data(sweep: Sweep, rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose leaves have a final outcome."""
    counts = [sweeps.tally(sweep.outcomes[tree], *sweep.indices(tree), _CODES) for tree in range(len(sweep.trees))]
    done = []
    for leaf, request_id, bucket, *_ in rows:
        mine = [
            (tree, code, int(number))
            for tree, one in enumerate(counts)
            for code, number in zip(_CODES, one[leaf], strict=True)
            if number
        ]
        if any(code in {Outcome.OPEN, Outcome.PRESENT} for _, code, _ in mine):
            continue
        outcomes: dict[Outcome, int] = {}
        for _, code, number in mine:
            outcomes[code] = outcomes.get(code, 0) + number
        models = [taint for taint in taints if leaf in taint.requests]
        result = certificate.result_of(Provision.DATA, outcomes)
        body = {
            "request": str(request_id),
            "provision": Provision.DATA,
            "result": result,
            "outcomes": [{"tree": tree, "outcome": int(code), "artifacts": number} for tree, code, number in mine],
            "models": [one.body() for one in models],
        }
        done.append(Finished(leaf, request_id, bucket, result, body))
    return done


def _finished_models(rows: Sequence[Row], taints: Sequence[Taint]) -> list[Finished]:
    """Requests all of whose tainted models were replaced or destroyed."""
    done = []
    for leaf, request_id, bucket, state, data_result, *_ in rows:
        if state != RequestState.DATA_CERTIFIED or data_result != "complete":
            continue
        models = [taint for taint in taints if leaf in taint.requests]
        if any(one.resolution is None for one in models):
            continue
        body = {
            "request": str(request_id),
            "provision": Provision.MODELS,
            "result": "complete",
            "outcomes": [],
            "models": [one.body() for one in models],
        }
        done.append(Finished(leaf, request_id, bucket, "complete", body))
    return done


def _state_after(provision: Provision, one: Finished) -> RequestState:
    if one.result == "held":
        return RequestState.HELD
    if one.result == "complete" and (provision is Provision.MODELS or not one.body["models"]):
        # Where no model is tainted, the data certificate says so and nothing is left to prove.
        return RequestState.COMPLETED
    return RequestState.DATA_CERTIFIED


def _box(bucket: bytes, one: Finished, number: int, data: bytes) -> bytes:
    return certificate.seal(derive_key(bucket, "request", one.request_id.bytes), number, data)


def _opening(tree: merkle.Tree, index: int, drawn: bytes) -> dict[str, Any]:
    return {
        "index": index,
        "size": tree.size,
        "nonce": drawn[index * 16 : index * 16 + 16].hex(),
        "path": [one.hex() for one in tree.inclusion_path(index)],
    }


def _runs_by_request(sweep: Sweep, tree: int) -> Any:  # noqa: ANN401 - Callable[[int], list[list[int]]]
    leaf, offset = sweep.indices(tree)
    bounds = offset.tolist()
    return lambda one: [list(run) for run in sweeps.runs_of(leaf[bounds[one] : bounds[one + 1]])]


def _gone_artifacts(sweep: Sweep, chosen: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ordinal, artifact id) of every leaf that a chosen request claims and that is verified absent."""
    ordinals, ids = [], []
    for tree in range(len(sweep.trees)):
        leaf, offset = sweep.indices(tree)
        mine = np.unique(np.concatenate([leaf[offset[one] : offset[one + 1]] for one in chosen.tolist()]))
        mine = mine[np.isin(sweep.outcomes[tree][mine], list(FINAL_ABSENT))]
        for chunk, inner in _by_chunk(mine):
            columns = unpack_columns(sweep.file.section(f"{tree}/{chunk}"))
            ordinals.append(np.frombuffer(columns["ordinal"], "<u8").astype(np.int64)[inner])
            ids.append(sweeps.artifact_ids(columns["artifact_id"])[inner])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(ordinals or empty), np.concatenate(ids or empty)


def _by_chunk(indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for chunk in np.unique(indices // CHUNK_LEAVES).tolist():
        yield chunk, indices[indices // CHUNK_LEAVES == chunk] % CHUNK_LEAVES
