"""Handler of `expunge.retrain`: sweeps to resolve, models to judge, successors to check, files to destroy.

A sweep is resolved once: 1. its withdrawn images become exclusions, 2. every model they are in gets a taint row and a
signed statement, 3. jobs are queued or extended, files without a future are destroyed. A model that comes later is
judged against all exclusions, so neither order of arrival lets one slip.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from mmap import mmap
from typing import Any, Final
from uuid import UUID

import numpy as np
from pyroaring import BitMap, BitMap64

from expunge.crashing import crash_point
from expunge.domain import events, statement, topics
from expunge.domain.errors import Rejected
from expunge.domain.events import SweepId
from expunge.domain.leaf import derive_key
from expunge.domain.request import OrderIssued, parse_request
from expunge.domain.scopefile import ScopeFile, unpack_columns
from expunge.domain.taint import Affected, Claims, affected, claimants, remedy
from expunge.domain.words import ModelStatus, Provision, Remedy
from expunge.ports import Clock, Delivery, KeyStore, Ledger, Refused, SealedStore, Signer, Store, Tx
from expunge.record import emit, log
from expunge.stages.retrain import jobs
from expunge.stages.retrain.weights import Destroyed, destroy
from expunge.stages.retrain.world import GONE, Bitmaps, Entry, World, exclusions

WORKER: Final = "retrain"
STATEMENT_SWEEPS: Final = 800
"""Most sweeps named in one statement: a log entry has 65,535 bytes."""
_EVENT_SWEEPS: Final = 4096
_PATH: Final = 64


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep to resolve. `ordered`: the remedy an order names; `due`: when its models must be clean."""

    sweep_id: UUID
    scope: str
    scope_index: int
    claims: Claims | None
    ordered: Remedy | None
    due: datetime


@dataclass(frozen=True, slots=True)
class Successor:
    """A successor that was found to have nothing of `excluded`, which its job had cut at log size `cut`."""

    model: str
    cut: int
    excluded: BitMap64
    digest: bytes


@dataclass(frozen=True, slots=True)
class Replaced:
    """A model whose file is gone. `by`: the successor that took its place; none for destruction."""

    model: str
    destroyed: Destroyed
    by: Successor | None = None


@dataclass(slots=True)
class Acted:
    """What `act` read and did. `at`: in whole seconds, as statements say it; `now`: not."""

    at: datetime
    now: datetime
    sweeps: list[Sweep] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)
    claims: dict[UUID, Sweep] = field(default_factory=dict)
    gone: list[Replaced] = field(default_factory=list)
    failed: list[tuple[events.SuccessorRegistered, str]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


@dataclass(slots=True)
class Turn:
    """One commit: its transaction, its time, and what it says at its end (`own`: to this stage)."""

    tx: Tx
    at: datetime
    now: datetime
    public: list[events.Event] = field(default_factory=list)
    own: list[events.Event] = field(default_factory=list)


class Retrain:
    """`stores`: the model stores by name. `signer`: role `retrainer`. `max_taint_age`: due where no order says when."""

    dedupe = True

    def __init__(
        self,
        *,
        ledger: Ledger,
        sealed: SealedStore,
        keys: KeyStore,
        stores: Mapping[str, Store],
        signer: Signer,
        clock: Clock,
        max_taint_age: timedelta = timedelta(days=14),
    ) -> None:
        self._ledger = ledger
        self._sealed = sealed
        self._keys = keys
        self._stores = stores
        self._signer = signer
        self._clock = clock
        self._max_taint_age = max_taint_age
        self._bitmaps = Bitmaps()

    # Outside the transaction: read scope files, destroy files.

    async def act(self, deliveries: Sequence[Delivery]) -> Acted:
        """Read claims of sweeps; check successors and destroy what they replace."""
        now = self._clock()
        acted = Acted(statement.instant(now), now)
        for delivery in deliveries:
            try:
                await self._act(delivery, acted)
            except Rejected as error:
                acted.refused.append(Refused(delivery, error.code, later=error.code in {"weights-remain", "no-sweep"}))
        return acted

    async def _act(self, delivery: Delivery, acted: Acted) -> None:
        match events.from_cloudevent(delivery.event):
            case events.TaintOrdered(sweep_id=sweep_id):
                async with self._ledger.transaction() as tx:
                    found = await self._sweeps(tx, [UUID(sweep_id)])
                if not found:
                    raise Rejected("no-sweep", "expected a sweep that is sealed")
                acted.sweeps += found
            case events.ModelArrived(model=model):
                await self._arrive(model, acted)
            case events.SuccessorRegistered() as event:
                await self._succeed(event, acted)
            case events.DestructionOrdered(model=model):
                async with self._ledger.transaction() as tx:
                    world = await self._bitmaps.world(tx)
                    wanted = [row for row in await self._open(tx, world, model) if row[1] == Remedy.DESTROY]
                if wanted:
                    acted.gone.append(Replaced(model, await self._destroy(world.entries[model])))
            case _:
                raise Rejected("unknown-type", "expected an event for stage retrain")

    async def _sweeps(self, tx: Tx, ids: Sequence[UUID]) -> list[Sweep]:
        found = []
        for sweep_id, bucket, scope, index, sealed_at, _ in await tx.fetch("retrain_sweeps", ids=list(ids)):
            key = derive_key(self._keys.bucket(bucket), "sweep", sweep_id.bytes)
            claims = await asyncio.to_thread(self._claims, sweep_id, key)
            due, ordered, dropped = sealed_at + self._max_taint_age, None, []
            for leaf, kind, state, body in await tx.fetch("retrain_requests", sweep_id=sweep_id):
                if state in {"cancelled", "void"}:
                    dropped.append(leaf)
                elif kind == "order":
                    due, ordered = _provision(bytes(body), due)
            claims = claims.without(dropped) if dropped else claims
            found.append(Sweep(sweep_id, bytes(scope).hex(), index, claims, ordered, due))
        return found

    def _claims(self, sweep_id: UUID, key: bytes) -> Claims:
        try:
            buffer = self._sealed.open(f"{sweep_id}.scope")
        except FileNotFoundError as error:
            raise Rejected("scope-lost", "expected the sweep's sealed scope file") from error
        columns = unpack_columns(ScopeFile.open(_mapped(buffer), key).section("claims"))
        return Claims(
            np.frombuffer(columns["purposes"], "<i8").astype(np.int64),
            np.frombuffer(columns["ordinals"], "<u8").astype(np.uint64),
            np.frombuffer(columns["ordinal_offsets"], "<u8").astype(np.uint64),
        )

    async def _arrive(self, model: str, acted: Acted) -> None:
        """Read the claims of the sweeps that a new model is tainted by, while their keys live."""
        async with self._ledger.transaction() as tx:
            world = await self._bitmaps.world(tx)
            if model not in world.entries:
                raise Rejected("unknown-model", "expected a model that is registered")
            names = world.descendants([model])
            for sweep_id in await _touching(tx, world, names):
                try:
                    for sweep in await self._sweeps(tx, [sweep_id]):
                        acted.claims[sweep_id] = sweep
                except Rejected:  # key destroyed: who asked is not known any more, that it is tainted is
                    continue
        acted.arrived.append(model)

    async def _succeed(self, event: events.SuccessorRegistered, acted: Acted) -> None:
        async with self._ledger.transaction() as tx:
            world = await self._bitmaps.world(tx)
            try:
                successor = await self._check(tx, world, event)
            except Rejected as error:
                acted.failed.append((event, error.code))
                successor = None
        await self._arrive(event.model, acted)
        if successor is not None:
            try:
                destroyed = await self._destroy(world.entries[event.replaces])
            except Rejected as error:
                if error.code == "weights-remain":
                    raise
                acted.failed.append((event, error.code))
            else:
                acted.gone.append(Replaced(event.replaces, destroyed, successor))

    async def _check(self, tx: Tx, world: World, event: events.SuccessorRegistered) -> Successor | None:
        """The successor, if it answers its job now. None: not all it names is here yet, or it was taken already.
        Raises `Rejected` with the reason why it never will."""
        successor, old = world.entries.get(event.model), world.entries.get(event.replaces)
        rows = await tx.fetch("retrain_job", job_id=UUID(event.job_id))
        if successor is None or old is None or not rows:
            raise Rejected("unknown-job", "expected a job, a model of it, and a successor that are registered")
        models, _, cut, packed, digest = rows[0]
        if old.number not in models:
            raise Rejected("not-in-job", "expected a model that the job names")
        if old.status in GONE or not successor.linked:
            return None
        if not world.lineage.known(successor.name):
            raise Rejected("unknown-lineage", "expected a successor of which all is on record")
        if successor.digest == old.digest:
            raise Rejected("same-weights", "expected other weights than those replaced")
        excluded = BitMap64.deserialize(packed)
        if not world.lineage.training_set(successor.name, world.snapshots).isdisjoint(excluded):
            raise Rejected("overlap", "expected nothing excluded in the successor's transitive training set")
        return Successor(successor.name, cut, excluded, bytes(digest))

    async def _destroy(self, entry: Entry) -> Destroyed:
        place = entry.weights
        if place is None or place.store not in self._stores:
            raise Rejected("weights-not-located", "expected the model's file in a store that is configured")
        async with self._ledger.transaction() as tx:
            if await tx.fetch(
                "retrain_sharing", store=place.store, unit=place.unit, locator=place.locator, model=entry.name
            ):
                raise Rejected("weights-shared", "expected a file that no other model uses")
            await tx.execute("retrain_remediating", model=entry.name)
            ((fence,),) = await tx.fetch("retrain_fence")
        crash_point("retrain.destroying")
        destroyed = await asyncio.to_thread(destroy, self._stores[place.store], place, fence)
        crash_point("retrain.destroyed")
        return destroyed

    async def _open(self, tx: Tx, world: World, model: str) -> list[Any]:
        if model not in world.entries:
            raise Rejected("unknown-model", "expected a model that is registered")
        return await tx.fetch("retrain_open_taints", model=world.entries[model].number)

    # In the transaction: record it.

    async def commit(self, acted: Acted, tx: Tx) -> Sequence[Refused]:
        """Taint, resolve, queue, judge; under one lock, so that batches of several workers follow each other."""
        turn = Turn(tx, acted.at, acted.now)
        await tx.execute("retrain_lock")
        states: dict[UUID, str] = dict(
            await tx.fetch("retrain_lock_sweeps", ids=[sweep.sweep_id for sweep in acted.sweeps])
        )
        for sweep in {one.sweep_id: one for one in acted.sweeps}.values():
            if states[sweep.sweep_id] != "resolved":
                await self._resolve(turn, sweep)
            turn.public.append(events.TaintResolved(sweep_id=SweepId(str(sweep.sweep_id))))
        for gone in acted.gone:
            await self._gone(turn, gone)
        for event, code in acted.failed:
            await self._refuse(turn, event, code)
        if acted.arrived:
            await self._judge(turn, acted)
        await tx.fetch("retrain_finish_jobs")
        await emit(tx, WORKER, turn.public, at=turn.at)
        await emit(tx, WORKER, turn.own, at=turn.at, topic=topics.RETRAIN)
        return acted.refused

    async def _resolve(self, turn: Turn, sweep: Sweep) -> None:
        assert sweep.claims is not None  # noqa: S101 - `act` reads the claims of sweeps that are to be resolved
        world = await self._bitmaps.world(turn.tx)
        scopes = sweep.claims.scopes([bit for (bit,) in await turn.tx.fetch("retrain_purposes")])
        await turn.tx.execute(
            "retrain_exclude",
            sweep_id=sweep.sweep_id,
            log_index=sweep.scope_index,
            purposes=list(scopes),
            images=[len(scope) for scope in scopes.values()],
            bitmaps=_packed(scopes),
        )
        found = await asyncio.to_thread(affected, world.lineage, world.snapshots, scopes)
        known = {number for (number,) in await turn.tx.fetch("retrain_taints", sweep_id=sweep.sweep_id)}
        chosen = {
            name: remedy(world.lineage, found, name, sweep.ordered)
            for name in found.tainted
            if world.entries[name].status not in GONE and world.entries[name].number not in known
        }
        await self._taint(turn, world, sweep, found, chosen)
        await self._void(turn, world, sweep, found.void)
        await turn.tx.execute("retrain_resolved", sweep_id=sweep.sweep_id)
        crash_point("retrain.resolved")

    async def _taint(
        self, turn: Turn, world: World, sweep: Sweep, found: Affected, chosen: Mapping[str, Remedy]
    ) -> None:  # fmt: skip
        """Rows, statements, jobs and destructions for models that the sweep taints, each with its remedy."""
        if not chosen:
            return
        sweep_id = SweepId(str(sweep.sweep_id))
        taints = {name: found.tainted[name] for name in chosen}
        leaves = claimants(world.lineage, world.snapshots, sweep.claims, found) if sweep.claims else {}
        numbers = [world.entries[name].number for name in chosen]
        await turn.tx.execute(
            "retrain_put_taints",
            sweep_id=sweep.sweep_id,
            due=sweep.due,
            models=numbers,
            requests=[BitMap(leaves.get(name, ())).serialize() for name in chosen],
            images=[taint.images for taint in taints.values()],
            direct=[taint.direct for taint in taints.values()],
            paths=[json.dumps(taint.path) for taint in taints.values()],
            remedies=[one.value for one in chosen.values()],
        )
        await turn.tx.execute("retrain_tainted", models=numbers)
        said = [
            statement.ModelTainted(
                sweep=sweep_id, scope=sweep.scope, model=name, images=taint.images, direct=taint.direct,
                path=taint.path, remedy=chosen[name], due=sweep.due,
            )
            for name, taint in taints.items()
        ]  # fmt: skip
        await self._log(turn, said, sweep.scope)
        turn.public += [
            events.ModelTainted(
                model=name, sweep_id=sweep_id, images=taint.images, by=taint.path[::-1][:_PATH], at=turn.at
            )
            for name, taint in taints.items()
        ]
        again = [name for name in chosen if chosen[name] is not Remedy.DESTROY]
        turn.public += await jobs.queue(turn.tx, world, again, due=sweep.due, at=turn.at)
        turn.own += [
            events.DestructionOrdered(model=name, at=turn.now) for name in chosen if chosen[name] is Remedy.DESTROY
        ]

    async def _void(self, turn: Turn, world: World, sweep: Sweep, void: Mapping[str, int]) -> None:
        fresh = {name: images for name, images in void.items() if not world.entries[name].metric_void}
        await turn.tx.execute("retrain_void", models=[world.entries[name].number for name in fresh])
        said = [
            statement.MetricVoid(
                sweep=str(sweep.sweep_id), scope=sweep.scope, model=name, images=images, at=turn.at
            )
            for name, images in fresh.items()
        ]  # fmt: skip
        await self._log(turn, said, sweep.scope)

    async def _judge(self, turn: Turn, acted: Acted) -> None:
        """Say of models that came, and of what inherits from them, whether they are clean, unknown or tainted. What no
        job will have is not used by anybody: it is destroyed."""
        tx = turn.tx
        world = await self._bitmaps.world(tx)
        line = world.descendants(acted.arrived)
        unused = {event.model for event, _ in acted.failed}
        for sweep_id, scopes in (await _touching(tx, world, line)).items():
            found = affected(world.lineage, world.snapshots, scopes)
            sweep = acted.claims.get(sweep_id)
            if sweep is None:
                ((_, _, scope, index, sealed_at, _),) = await tx.fetch("retrain_sweeps", ids=[sweep_id])
                sweep = Sweep(sweep_id, bytes(scope).hex(), index, None, None, sealed_at + self._max_taint_age)
            known = {number for (number,) in await tx.fetch("retrain_taints", sweep_id=sweep_id)}
            chosen = {
                name: Remedy.DESTROY if name in unused else remedy(world.lineage, found, name, sweep.ordered)
                for name in line
                if name in found.tainted and world.entries[name].number not in known
                if world.entries[name].status not in GONE
            }
            await self._taint(turn, world, sweep, found, chosen)
            await self._void(turn, world, sweep, {name: found.void[name] for name in line if name in found.void})
        ((size,),) = await tx.fetch("retrain_log_size")
        for name in line:
            number, known_whole = world.entries[name].number, world.lineage.known(name)
            if not await tx.fetch("retrain_open_taints", model=number):
                status = ModelStatus.CLEAN if known_whole else ModelStatus.UNKNOWN
                await tx.execute("retrain_judged", model=number, status=status, clean_at=size if known_whole else None)

    async def _gone(self, turn: Turn, gone: Replaced) -> None:
        """A file is destroyed: resolve what its job covered; what came later is the successor's to answer for."""
        world = await self._bitmaps.world(turn.tx)
        old = world.entries[gone.model]
        if old.status in GONE:
            return
        if gone.by is None:
            resolved = [sweep_id for sweep_id, *_ in await self._open(turn.tx, world, old.name)]
            await self._say(turn, _destroyed(old, gone, turn.at), old, resolved)
            await turn.tx.execute("retrain_gone", model=old.number, status=ModelStatus.DESTROYED, successor=None)
            await jobs.repoint(turn.tx, old.number, None)
            turn.public.append(events.ModelDestroyed(model=old.name, level=gone.destroyed.level, at=turn.at))
        else:
            resolved = await self._replace(turn, world, gone, gone.by)
        for at in range(0, len(resolved), _EVENT_SWEEPS):
            ids = tuple(SweepId(str(one)) for one in resolved[at : at + _EVENT_SWEEPS])
            turn.public.append(events.ModelsResolved(model=old.name, sweep_ids=ids, at=turn.at))

    async def _replace(self, turn: Turn, world: World, gone: Replaced, by: Successor) -> list[UUID]:
        """Resolve the old model's taints; the sweeps that were.

        1. those within the job's cut and exclusion: by the job
        2. later ones whose images the successor does not have either: by that fact, cut now
        3. the rest passes to the successor, which `_judge` taints
        """
        tx = turn.tx
        old, successor = world.entries[gone.model], world.entries[by.model]
        withdrawn = {
            sweep_id: BitMap64().union(*scopes.values())
            for sweep_id, scopes in (await exclusions(tx, {old.purpose, successor.purpose})).items()
        }
        touching = await _touching(tx, world, [by.model])
        trained = world.lineage.training_set(by.model, world.snapshots)
        by_job, by_fact, rest = [], [], []
        for sweep_id, _, index in await self._open(tx, world, old.name):
            images = withdrawn.get(sweep_id, BitMap64())
            if index < by.cut and images.issubset(by.excluded):
                by_job.append(sweep_id)
            elif sweep_id not in touching and trained.isdisjoint(images):
                by_fact.append(sweep_id)
            else:
                rest.append(sweep_id)
        await self._say(turn, _replaced(world, gone, by, turn.at), old, by_job)
        if by_fact:
            ((size,),) = await tx.fetch("retrain_log_size")
            wider = by.excluded.union(*(withdrawn[one] for one in by_fact if one in withdrawn))
            wider.run_optimize()
            now = Successor(by.model, size, wider, hashlib.sha256(wider.serialize()).digest())
            await self._say(turn, _replaced(world, gone, now, turn.at), old, by_fact)
        await tx.execute("retrain_pass_on", model=old.number, sweeps=rest)
        await tx.execute("retrain_gone", model=old.number, status=ModelStatus.REPLACED, successor=successor.number)
        await jobs.repoint(tx, old.number, successor.number if rest else None)
        resolved = by_job + by_fact
        if resolved:
            turn.public.append(
                events.ModelReplaced(model=old.name, successor=by.model, sweeps=len(resolved), at=turn.at)
            )
        return resolved

    async def _say(
        self, turn: Turn, base: statement.ModelReplaced | statement.ModelDestroyed, old: Entry, sweeps: list[UUID]
    ) -> None:
        """Log that these sweeps' taint of `old` is resolved, in statements that fit the log, and note where."""
        parts = [sweeps[at : at + STATEMENT_SWEEPS] for at in range(0, len(sweeps), STATEMENT_SWEEPS)] or [[]]
        said = [base.model_copy(update={"sweeps": tuple(str(one) for one in part)}) for part in parts]
        indices = await self._log(turn, said, old.digest.hex())
        await turn.tx.execute(
            "retrain_resolve",
            model=old.number,
            resolution="replaced" if isinstance(base, statement.ModelReplaced) else "destroyed",
            sweeps=sweeps,
            indices=[index for part, index in zip(parts, indices, strict=True) for _ in part],
        )

    async def _refuse(self, turn: Turn, event: events.SuccessorRegistered, code: str) -> None:
        """The job waits again; where no trainer can answer it, it failed."""
        state = "failed" if code in {"weights-not-located", "weights-shared"} else "queued"
        await turn.tx.execute("retrain_requeue", job_id=UUID(event.job_id), state=state)
        turn.public.append(events.SuccessorRefused(model=event.model, job_id=event.job_id, code=code, at=turn.at))

    async def _log(self, turn: Turn, said: Sequence[statement.Predicate], digest: str) -> list[int]:
        entries = [
            (one.type, self._signer.sign(statement.payload(one, {_about(one): digest}), statement.PAYLOAD_TYPE))
            for one in said
        ]
        return await log(turn.tx, entries)


def _mapped(buffer: memoryview) -> bytes | mmap:
    """What the scope file reader takes: the mapping itself where there is one, so that only one section is read."""
    return buffer.obj if isinstance(buffer.obj, mmap) and len(buffer.obj) == len(buffer) else bytes(buffer)


def _about(one: statement.Predicate) -> str:
    return "scope" if isinstance(one, statement.ModelTainted | statement.MetricVoid) else "weights"


def _replaced(world: World, gone: Replaced, by: Successor, at: datetime) -> statement.ModelReplaced:
    return statement.ModelReplaced(
        model=gone.model,
        successor=by.model,
        weights=world.entries[gone.model].digest.hex(),
        successor_weights=world.entries[by.model].digest.hex(),
        snapshots=world.training_roots(by.model),
        cut=by.cut,
        exclusion=by.digest.hex(),
        sweeps=(),
        level=gone.destroyed.level,
        method=gone.destroyed.method,
        at=at,
    )


def _destroyed(old: Entry, gone: Replaced, at: datetime) -> statement.ModelDestroyed:
    return statement.ModelDestroyed(
        model=old.name,
        weights=old.digest.hex(),
        sweeps=(),
        level=gone.destroyed.level,
        method=gone.destroyed.method,
        at=at,
    )


def _provision(body: bytes, due: datetime) -> tuple[datetime, Remedy | None]:
    """An order's date and remedy for models: its earliest, and destruction before any other; else the policy's date."""
    order = parse_request(body)
    wanted = [one for one in getattr(order, "provisions", ()) if one.covers is Provision.MODELS]
    if not isinstance(order, OrderIssued) or not wanted:
        return due, None
    remedies = [one.remedy for one in wanted]
    return min(one.deadline for one in wanted), Remedy.DESTROY if Remedy.DESTROY in remedies else remedies[0]


def _packed(scopes: Mapping[int, BitMap64]) -> list[bytes]:
    """Serialized once per distinct bitmap: most purposes share one."""
    once: dict[int, bytes] = {}
    for scope in scopes.values():
        if id(scope) not in once:
            scope.run_optimize()
            once[id(scope)] = scope.serialize()
    return [once[id(scope)] for scope in scopes.values()]


async def _touching(tx: Tx, world: World, names: Sequence[str]) -> dict[UUID, dict[int, BitMap64]]:
    """Exclusions, by sweep and purpose, of the sweeps whose images are in the training set of any of `names`."""
    reached = {at for name in names for at in world.lineage.ancestry(name)}
    trained: dict[int, BitMap64] = {}
    for at in reached:
        model = world.lineage.nodes[at].model
        trained[model.purpose] = trained.get(model.purpose, BitMap64()).union(
            *(world.snapshots[number] for number in model.snapshots)
        )
    return {
        sweep_id: scopes
        for sweep_id, scopes in (await exclusions(tx, trained)).items()
        if any(not scope.isdisjoint(trained[purpose]) for purpose, scope in scopes.items())
    }
