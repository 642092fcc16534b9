"""Handler of `expunge.lineage`: a batch of events is taken in a handful of statements, in the order sources, images,
artifacts, snapshots, models, whatever order they came in: what an event needs may stand behind it in the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from expunge.crashing import crash_point
from expunge.domain import events, statement, topics
from expunge.domain.errors import Rejected
from expunge.domain.events import ModelArrived, Registered, RegistrationRefused, SuccessorRegistered
from expunge.domain.leaf import NO_DIGEST
from expunge.domain.lineage import (
    ArtifactRecord,
    ArtifactsAdded,
    BatchId,
    ImagesRegistered,
    Lineage,
    ModelRegistered,
    SnapshotCommitted,
    SourceRegistered,
    dump_lineage,
    from_cloudevent,
)
from expunge.ports import Clock, Delivery, KeyStore, Refused, Signer, Tx
from expunge.record import NAMESPACE, emit, log
from expunge.stages.register.models import UnknownMember, link, take_model, take_snapshot
from expunge.stages.register.registrar import Load, Offer, OfferedArtifact, Purposes, Registrar, Settled

WORKER: Final = "register"


@dataclass(frozen=True, slots=True)
class Read:
    """A batch of deliveries, decoded. `refused`: those that are no lineage events. `at`: in whole seconds; `now`: not, so
    that a model that arrives again at once is another event."""

    events: list[tuple[Delivery, Lineage]]
    refused: list[Refused]
    at: datetime
    now: datetime


class Register:
    """`signer`: role `register`. `suppression_key`: the journal's key; the journal itself is intake's to write."""

    dedupe = True

    def __init__(self, *, keys: KeyStore, signer: Signer, clock: Clock, suppression_key: bytes) -> None:
        self._registrar = Registrar(keys=keys, signer=signer, suppression_key=suppression_key)
        self._clock = clock

    async def act(self, deliveries: Sequence[Delivery]) -> Read:
        """Decode. There is nothing to do outside the database."""
        now = self._clock()
        read = Read([], [], statement.instant(now), now)
        for delivery in deliveries:
            try:
                read.events.append((delivery, from_cloudevent(delivery.event)))
            except Rejected as error:
                read.refused.append(Refused(delivery, error.code, later=False))
        return read

    async def commit(self, acted: Read, tx: Tx) -> Sequence[Refused]:
        """Take what can be taken; answer the rest with counts by reason."""
        out: list[events.Event] = []
        refused = list(acted.refused)
        load = await self._registrar.open(tx)
        out += await self._sources(tx, acted)
        settled = await self._images(load, acted)
        crash_point("register.staged")
        for delivery, event in acted.events:
            if isinstance(event, SnapshotCommitted):
                try:
                    await take_snapshot(tx, load.purposes, event, acted.at)
                except UnknownMember as error:
                    refused.append(Refused(delivery, error.code, later=True))
                except Rejected as error:
                    out.append(_refusal(delivery, error.code, acted.at))
        refusals, arrived = await self._models(tx, load.purposes, acted)
        out += refusals
        if settled.taken:
            indices = await log(tx, settled.entries)
            crash_point("register.logged")
            await load.record(settled, indices, acted.at)
            out += _answers(settled, acted.at)
        await emit(tx, WORKER, out, at=acted.at)
        await emit(tx, WORKER, arrived, at=acted.at, topic=topics.RETRAIN)
        return refused

    async def _sources(self, tx: Tx, acted: Read) -> list[events.Event]:
        named: dict[str, SourceRegistered] = {}
        offered = [(delivery, event) for delivery, event in acted.events if isinstance(event, SourceRegistered)]
        if not offered:
            return []
        for _, event in offered:
            named.setdefault(event.source, event)
        await tx.fetch(
            "register_sources",
            names=list(named),
            provenance=[dump_lineage(event).decode() for event in named.values()],
        )
        known: dict[str, object] = dict(await tx.fetch("register_sources_known", names=list(named)))
        return [
            _refusal(delivery, "duplicate-source", acted.at)
            for delivery, event in offered
            if known[event.source] != event.model_dump(mode="json", exclude_none=True)
        ]

    async def _images(self, load: Load, acted: Read) -> Settled:
        batches: dict[UUID, ImagesRegistered | ArtifactsAdded] = {}
        for _, event in acted.events:
            if isinstance(event, ImagesRegistered | ArtifactsAdded):
                batches.setdefault(UUID(event.batch_id), event)
        if batches:
            for (batch_id,) in await load.tx.fetch("register_batches_known", ids=list(batches)):
                del batches[batch_id]
        if not batches:
            return Settled([], [])
        offers = [offer for number, event in enumerate(batches.values()) for offer in _offers(number, event)]
        await load.stage(offers)
        return await load.settle(list(batches), acted.at)

    async def _models(self, tx: Tx, purposes: Purposes, acted: Read) -> tuple[list[events.Event], list[events.Event]]:
        """Refusals, and what stage retrain is told."""
        out: list[events.Event] = []
        arrived: list[events.Event] = []
        if not any(isinstance(event, SnapshotCommitted | ModelRegistered) for _, event in acted.events):
            return out, arrived
        fresh: list[str] = []
        for delivery, event in acted.events:
            if isinstance(event, ModelRegistered):
                try:
                    if await take_model(tx, purposes, event, acted.at):
                        fresh.append(event.model)
                except Rejected as error:
                    out.append(_refusal(delivery, error.code, acted.at))
        arrived += [_arrival(manifest, acted.now) for manifest in await link(tx, fresh)]
        return out, arrived


def _arrival(manifest: dict[str, Any], at: datetime) -> ModelArrived | SuccessorRegistered:
    model, replaces, job_id = manifest["model"], manifest.get("replaces"), manifest.get("job_id")
    if replaces is not None and job_id is not None:
        return SuccessorRegistered(model=model, replaces=replaces, job_id=job_id, at=at)
    return ModelArrived(model=model, at=at)


def _refusal(delivery: Delivery, code: str, at: datetime) -> RegistrationRefused:
    """The answer to what has no batch id of its own: one derived from the event's."""
    batch = BatchId(str(uuid5(NAMESPACE, f"{delivery.event.source} {delivery.event.id}")))
    return RegistrationRefused(batch_id=batch, codes={code: 1}, at=at)


def _answers(settled: Settled, at: datetime) -> list[events.Event]:
    out: list[events.Event] = []
    for one in settled.taken:
        batch = BatchId(str(one.batch_id))
        if one.artifacts or not one.codes:
            out.append(Registered(batch_id=batch, images=one.images, artifacts=one.artifacts, at=at))
        if one.codes:
            out.append(RegistrationRefused(batch_id=batch, codes=one.codes, at=at))
    return out


def _offers(number: int, event: ImagesRegistered | ArtifactsAdded) -> list[Offer]:
    if isinstance(event, ImagesRegistered):
        return [
            Offer(
                number, event.source, one.key, one.subjects, bytes.fromhex(one.digest), one.acquired_on,
                [_artifact(artifact) for artifact in one.artifacts],
            )
            for one in event.images
        ]  # fmt: skip
    return [
        Offer(number, one.source, one.image_key, (), None, None, [_artifact(one)], adds=True) for one in event.artifacts
    ]


def _artifact(one: ArtifactRecord) -> OfferedArtifact:
    digest = bytes.fromhex(one.digest) if one.digest else NO_DIGEST
    return OfferedArtifact(one.kind, one.store, one.unit, one.locator, one.purposes, digest)
