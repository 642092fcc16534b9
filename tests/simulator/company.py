"""What the company and everybody around it does in a schedule: products, publishers, approvers, trainers, forgers.

All of it is drawn from the schedule's chance. It is written into the history before it happens.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid5

from expunge.domain import cloudevents, dsse, lineage, request
from expunge.domain.words import Grade, Provision, Remedy
from expunge.ports import Outgoing
from tests.coordination import (
    ANN,
    BOB,
    MODELS,
    PUBLISHER,
    SPACE,
    Deployment,
    Party,
    Photo,
    batch,
    content,
    digest,
    signed,
    source,
    subject,
)
from tests.history.recorder import Recorder
from tests.simulator.chance import Chance
from tests.simulator.ports import Kafka, Place, Time

STRANGER: Final = Party.named("stranger")
SOURCES: Final = ("studio", "street")
DAYS: Final = (date(2020, 1, 2), date(2021, 6, 7))

DEEDS: Final = (
    "deletion",
    "withdrawal",
    "retention",
    "order by source",
    "order by period",
    "order by list",
    "models destroyed by order",
    "hold",
    "release",
    "cancel",
    "cancel before its request",
    "consent",
    "repeat of a request",
    "same request twice at once",
    "forged request",
    "replayed id",
    "approval of another scope",
    "approval by the publisher",
    "insert while under way",
    "photo of someone erased",
    "model registered",
    "model registered late",
    "successor",
    "photo of several people",
)
"""What people may do. Counted as faults are: each has to occur."""


@dataclass
class Company:
    """`done`: what has been done so far, by kind. `todo`: what may be done at any time from now on."""

    chance: Chance
    time: Time
    kafka: Kafka
    places: dict[str, Place]
    recorder: Recorder
    photos: dict[str, Photo] = field(default_factory=dict)
    batches: dict[str, list[Photo]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    todo: list[Callable[[], None]] = field(default_factory=list)
    asked: list[request.Request] = field(default_factory=list)
    sent: list[Outgoing] = field(default_factory=list)
    models: dict[str, Sequence[Photo]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    """Requests that the ledger has: kept up to date by the schedule."""
    held: dict[str, request.HoldPlaced] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # It only makes requests here: nothing of it runs.
        self._maker = Deployment("", cast("Any", None), Path(), clock=cast("Any", _Now(self.time)))
        self.people = range(1, self.chance.between(self.chance.size.people) + 1)

    # Before anything else

    def found(self) -> None:
        """Register sources, photos, perhaps a model, and put the files where they belong."""
        for name in SOURCES:
            self._lineage(source(name))
        photos = [self._photo() for _ in range(self.chance.between(self.chance.size.photos))]
        for name in SOURCES:
            if mine := [one for one in photos if one.source == name]:
                self.register(mine)
        if self.chance.likely(0.3):
            self.train("face@1", photos)
            self.done["model registered"] += 1

    def plans(self) -> None:
        """Decide what will be asked; when is the scheduler's."""
        chance = self.chance
        deeds = [self._delete, self._delete, self._delete, self._withdraw, self._retention, self._order, self._hold]
        deeds += [self._cancel, self._consent, self._forge, self._replay, self._insert, self._late_model, self._repeat]
        self.todo += [chance.pick(deeds) for _ in range(chance.between(chance.size.deeds))]
        if not any(one in deeds[:6] for one in self.todo):
            self.todo.append(self._delete)

    # Products

    def _photo(self, person: int | None = None) -> Photo:
        chance = self.chance
        people = [chance.pick(self.people) if person is None else person]
        if chance.likely(0.3):
            people += [one for one in chance.some(self.people, 2) if one not in people]
            self.done["photo of several people"] += len(people) > 1
        key = f"p{len(self.photos)}"
        return self.photos.setdefault(
            key,
            Photo(
                key, tuple(people), day=chance.pick(DAYS), source=chance.pick(SOURCES), hashed=chance.likely(0.5)
            ),
        )  # fmt: skip

    def register(self, photos: Sequence[Photo]) -> None:
        """Put photos into the stores, and into the catalogue."""
        for photo in photos:
            names = []
            for one in photo.artifacts:
                name = artifact_name(one.store, one.locator)
                names.append(name)
                self.recorder.artifact(
                    name, store=one.store, unit=one.unit, locator=one.locator, kind=one.kind.value,
                    purposes=one.purposes, image=photo.key, source=photo.source, day=photo.day.isoformat(),
                    subjects=[subject(person) for person in photo.people],
                )  # fmt: skip
            self.recorder.insert(names)
            for one in photo.artifacts:
                space = self.places[one.store].space
                space.insert(one.unit, {one.locator: content(f"{photo.key}/{one.kind}")})
        event = batch(*photos)
        self.batches[event.batch_id] = list(photos)
        self._lineage(event)

    def train(self, name: str, photos: Sequence[Photo], **answers: Any) -> None:
        """Put a model into its store, and into the catalogue with the snapshot that it was trained on."""
        self.models[name] = photos
        self.recorder.artifact(
            artifact_name(MODELS, name), store=MODELS, unit="files", locator=name, kind="model", purposes=["training"],
            images=[photo.key for photo in photos],
        )  # fmt: skip
        self.recorder.insert([artifact_name(MODELS, name)])
        self.places[MODELS].space.insert("files", {name: content(name)})
        keys = {one: tuple(photo.key for photo in photos if photo.source == one) for one in {p.source for p in photos}}
        members = tuple(lineage.SourceKeys(source=one, keys=listed) for one, listed in sorted(keys.items()))
        snapshot = f"snapshot-{name.replace('@', '-')}"
        self._lineage(
            lineage.SnapshotCommitted(
                snapshot=snapshot, purpose="training", members_by_key=members, grade=Grade.COMMITTED
            )
        )
        self._lineage(
            lineage.ModelRegistered(
                model=name, purpose="training", weights_digest=digest(name), trained_on=(snapshot,),
                weights=lineage.WeightsLocation(store=MODELS, unit="files", locator=name), code_digest=digest("code"),
                params_digest=digest("params"), created_at=self.time.now, **answers,
            )
        )  # fmt: skip

    def _insert(self) -> None:
        person = None
        if self.asked and self.chance.likely(0.5):
            refs = [getattr(one, "subject_ref", None) for one in self.asked]
            known = [one for one in self.people if subject(one) in refs]
            person = self.chance.pick(known) if known else None
            self.done["photo of someone erased"] += person is not None
        self.register([self._photo(person)])
        self.done["insert while under way"] += 1

    def _late_model(self) -> None:
        name = f"face@{len(self.models) + 1}"
        self.train(name, self.chance.some(list(self.photos.values()), 3))
        self.done["model registered late"] += 1

    # Publishers

    def ask(self, one: request.Request, by: Party = PUBLISHER, *, sound: bool = True) -> None:
        """Sign and publish."""
        self.recorder.published(request.dump_request(one), signer=by.name, sound=sound)
        self._publish(one, signed(one, by), sound=sound)

    def _publish(self, one: request.Request, event: cloudevents.CloudEvent, *, sound: bool) -> None:
        key, value, headers = cloudevents.to_kafka(event)
        message = Outgoing("expunge.requests", key or b"", value, headers)
        self.chance.note(f"publish {one.type} {one.id}")
        self.kafka.arrive([message])
        if sound:
            self.sent.append(message)
            self.recorder.acknowledged(one.id)

    def _asks(self, one: request.Request, deed: str) -> None:
        self.asked.append(one)
        self.done[deed] += 1
        self.ask(one)
        if self.chance.likely(0.1):
            self.kafka.arrive([self.sent[-1]] * self.chance.random.randint(1, 3))
            self.done["same request twice at once"] += 1

    def _delete(self) -> None:
        self._asks(self._maker.deletion(self.chance.pick(self.people)), "deletion")

    def _withdraw(self) -> None:
        purposes = self.chance.some(["training", "account"], 2)
        self._asks(self._maker.withdrawal(self.chance.pick(self.people), *purposes), "withdrawal")

    def _retention(self) -> None:
        purposes = None if self.chance.likely(0.5) else ("training",)
        person = subject(self.chance.pick(self.people))
        self._asks(request.RetentionExpired(**self._maker.common(subject_ref=person, purposes=purposes)), "retention")

    def _order(self) -> None:
        chance = self.chance
        selection: request.Selection
        match chance.random.randrange(3):
            case 0:
                selection, deed = request.BySource(source=chance.pick(SOURCES)), "order by source"
            case 1:
                name = None if chance.likely(0.5) else chance.pick(SOURCES)
                start = DAYS[0]
                selection = request.ByPeriod(source=name, start=start, end=start + timedelta(days=30))
                deed = "order by period"
            case _:
                people = tuple(subject(one) for one in chance.some(self.people, 2))
                selection, deed = request.ByList(subjects=people), "order by list"
        one = self._maker.order(selection)
        if chance.likely(0.4):
            models = request.OrderProvision(
                number=2, covers=Provision.MODELS, deadline=one.provisions[0].deadline, remedy=Remedy.DESTROY
            )
            one = one.model_copy(update={"provisions": (*one.provisions, models)})
            self.done["models destroyed by order"] += 1
        self._asks(one, deed)

    def _hold(self) -> None:
        target: request.HoldTarget
        if self.chance.likely(0.7):
            target = request.BySubject(subject_ref=subject(self.chance.pick(self.people)))
        else:
            target = request.BySource(source=self.chance.pick(SOURCES))
        hold = self._maker.hold(target)
        self.held[hold.id] = hold
        self.done["hold"] += 1
        self.ask(hold)
        if self.chance.likely(0.8):
            self.todo.append(lambda: self._release(hold))

    def _release(self, hold: request.HoldPlaced) -> None:
        self.done["release"] += 1
        self.ask(self._maker.release(hold))

    def _cancel(self) -> None:
        open_ = [one for one in self.asked if one.type.startswith("expunge.request.")]
        if open_ and self.chance.likely(0.8):
            self.ask(self._maker.cancel(self.chance.pick(open_)))
            self.done["cancel"] += 1
            return
        later = self._maker.deletion(self.chance.pick(self.people))
        self.ask(self._maker.cancel(later))
        self._asks(later, "cancel before its request")

    def _consent(self) -> None:
        person = subject(self.chance.pick(self.people))
        self.done["consent"] += 1
        self.ask(request.ConsentGiven(**self._maker.common(subject_ref=person, purposes=("training",))))

    def _forge(self) -> None:
        one = self._maker.deletion(self.chance.pick(self.people))
        self.done["forged request"] += 1
        if self.chance.likely(0.5):
            self.ask(one, STRANGER, sound=False)
            return
        self.recorder.published(request.dump_request(one), signer=PUBLISHER.name, sound=False)
        other = one.model_copy(update={"subject_ref": subject(99)})
        envelope = dsse.sign(request.dump_request(one), request.PAYLOAD_TYPE, PUBLISHER.key)
        stolen = dsse.parse(dsse.sign(request.dump_request(other), request.PAYLOAD_TYPE, PUBLISHER.key))
        self._publish(one, request.to_cloudevent(one, _with_signature(envelope, stolen), "test"), sound=False)

    def _replay(self) -> None:
        before = [one for one in self.asked if isinstance(one, request.DeletionRequested) and one.id in self.rows]
        if not before:
            return
        self.done["replayed id"] += 1
        other = self._maker.deletion(self.chance.pick(self.people))
        self.ask(other.model_copy(update={"id": self.chance.pick(before).id}), sound=False)

    def _repeat(self) -> None:
        if self.sent:
            self.done["repeat of a request"] += 1
            self.kafka.arrive([self.chance.pick(self.sent)])

    # What they do when they hear something

    def hear(self, type_: str, data: dict[str, Any]) -> None:
        """Somebody saw a public event."""
        match type_:
            case "expunge.proof.approval-awaited.v1":
                self._approvals(data)
            case "expunge.proof.registered.v1" if data["batch_id"] in self.batches:
                photos = self.batches[data["batch_id"]]
                # What of it was refused is not said by name: then none of it is known to be registered.
                if (data["images"], data["artifacts"]) == (len(photos), sum(len(one.artifacts) for one in photos)):
                    self.recorder.registered(
                        [artifact_name(one.store, one.locator) for photo in photos for one in photo.artifacts]
                    )
            case "expunge.retraining.queued.v1":
                self._retrain(data)
            case _:
                pass

    def _approvals(self, data: dict[str, Any]) -> None:
        (wanted,) = [one for one in self.asked if one.id == data["request_id"]]
        chance = self.chance
        if chance.likely(0.2):
            other = hashlib.sha256(wanted.id.encode()).hexdigest()
            self.done["approval of another scope"] += 1
            self.todo.append(lambda: self.ask(self._maker.approval(wanted, other), ANN, sound=False))
        if chance.likely(0.2):
            self.done["approval by the publisher"] += 1
            self.todo.append(lambda: self.ask(self._maker.approval(wanted, data["scope_root"]), PUBLISHER, sound=False))
        parties = [ANN, BOB] if chance.likely(0.85) else [ANN]
        for party in parties:
            self.todo.append(partial(self._approve, wanted, data["scope_root"], party))

    def _approve(self, wanted: request.Request, scope_root: str, by: Party) -> None:
        self.ask(self._maker.approval(wanted, scope_root), by)

    def _retrain(self, data: dict[str, Any]) -> None:
        if self.chance.likely(0.4):
            return
        old = data["models"][0]

        def answer() -> None:
            name = f"face@{len(self.models) + 1}"
            # Some trainers do not look at what is excluded: their successor has to be refused.
            members = list(self.photos.values()) if self.chance.likely(0.2) else self._untouched()
            if members:
                self.done["successor"] += 1
                self.train(name, members, replaces=old, job_id=data["job_id"])

        self.todo.append(answer)

    def _untouched(self) -> list[Photo]:
        refs = {getattr(one, "subject_ref", None) for one in self.asked}
        return [one for one in self.photos.values() if not {subject(person) for person in one.people} & refs]

    def _lineage(self, event: lineage.Lineage) -> None:
        cloud = lineage.to_cloudevent(event, str(uuid5(SPACE, event.model_dump_json())), "test")
        key, value, headers = cloudevents.to_kafka(cloud)
        self.chance.note(f"lineage {event.type}")
        self.kafka.arrive([Outgoing("expunge.lineage", key or b"", value, headers)])


@dataclass
class _Now:
    """What `Deployment` asks of a clock."""

    time: Time

    @property
    def now(self) -> Any:
        return self.time.now

    def __call__(self) -> Any:
        return self.time.tick()


def artifact_name(store: str, locator: str) -> str:
    """The history's name of an artifact: keys are never used twice."""
    return f"{store}/{locator}"


def _with_signature(envelope: bytes, other: dsse.Envelope) -> bytes:
    """An envelope under the signature of another one."""
    value = json.loads(envelope)
    value["signatures"][0]["sig"] = base64.b64encode(other.signatures[0].signature).decode()
    return json.dumps(value, separators=(",", ":")).encode()
