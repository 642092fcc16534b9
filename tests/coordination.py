"""A whole deployment in one process: real stages on a real database, everything else in memory, time in the test's hands.

Kafka is a list: what the outboxes publish is appended to it, and each worker's `DeliveryHost` takes its topics from
there. `settle` turns the crank until nothing moves. Stores share `Space`s with the test, which can make them misbehave.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

import psycopg

from expunge.adapters.broker.memory import MemoryBroker
from expunge.adapters.journal.memory import MemoryJournal
from expunge.adapters.keys.memory import MemoryKeys, signers
from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.adapters.log.memory import MemoryTiles
from expunge.adapters.sealed.memory import MemorySealed
from expunge.adapters.stores.memory import MemoryReader, MemoryStore, Space
from expunge.chunks.scopes import Scopes
from expunge.domain import cloudevents, dsse, events, lineage, request, scopefile, statement, suppression, verification
from expunge.domain.leaf import derive_key
from expunge.domain.note import NoteKey
from expunge.domain.policy import Policy
from expunge.domain.report import Report
from expunge.domain.request import Regulation, SubjectRef
from expunge.domain.trust import Trust, TrustedKey
from expunge.domain.words import Grade, Kind, Provision, Role
from expunge.pipeline import WORKERS
from expunge.ports import Handler, Outgoing
from expunge.readside import Reader
from expunge.stages.certify import Certify
from expunge.stages.dispatch import Dispatch
from expunge.stages.intake import Intake
from expunge.stages.invalidate import Invalidate
from expunge.stages.plan import Plan
from expunge.stages.prove import Prove
from expunge.stages.purge import Purge
from expunge.stages.reconcile import Reconcile
from expunge.stages.register import Register
from expunge.stages.rescan import Rescan
from expunge.stages.retrain import Retrain
from expunge.tasks import Work, run_one
from expunge.wiring.coordinate import Coordinator
from expunge.workers.delivery import DeliveryHost, InFlight, Parking, Record

AUDIENCE: Final = "acme"
ISSUER: Final = "Acme Ltd"
ORIGIN: Final = "acme.example/log"
START: Final = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
SPACE: Final = UUID("99999999-9999-4999-8999-999999999999")
TURNS: Final = 400
"""More turns of the crank than any test needs: going past it means that something never settles."""

PHOTOS, THUMBS, SHARDS, FACES, MODELS = "photos", "thumbs", "shards", "faces", "models"
REWRITES: Final = {PHOTOS: False, THUMBS: False, SHARDS: True, FACES: True, MODELS: False}


def subject(number: int) -> SubjectRef:
    return SubjectRef(f"k1.subject{number:012d}")


def content(key: str) -> bytes:
    """Bytes of one artifact: distinct, and long enough for needles."""
    return b"".join(hashlib.sha256(f"{key}/{n}".encode()).digest() for n in range(4))


def digest(key: str) -> str:
    return hashlib.sha256(content(key)).hexdigest()


@dataclass
class Clock:
    """Time that passes only when told, but for a microsecond a look."""

    now: datetime = START

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def pass_(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass(frozen=True, slots=True)
class Party:
    """Who signs requests: a publisher or an approver."""

    name: str
    key: dsse.SigningKey

    @classmethod
    def named(cls, name: str) -> Party:
        return cls(name, dsse.SigningKey.from_seed(hashlib.sha256(name.encode()).digest()))


PUBLISHER, ANN, BOB = Party.named("backend"), Party.named("ann"), Party.named("bob")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of some people with its artifacts: the file, a thumbnail, a training row, an embedding."""

    key: str
    people: tuple[int, ...]
    day: date = date(2020, 1, 2)
    source: str = "studio"
    hashed: bool = False
    """Whether the file's digest was taken at ingest too."""

    @property
    def artifacts(self) -> tuple[lineage.ArtifactRecord, ...]:
        album, shard = f"album-{self.people[0] % 3}", f"shard-{self.people[0] % 2}"
        return (
            self._artifact(Kind.IMAGE, PHOTOS, album, ("account", "training")),
            self._artifact(Kind.DERIVATIVE, THUMBS, album, ("account",)),
            self._artifact(Kind.SHARD_ROW, SHARDS, shard, ("training",)),
            self._artifact(Kind.EMBEDDING, FACES, "index", ("training",)),
        )

    def _artifact(self, kind: Any, store: str, unit: str, purposes: tuple[str, ...]) -> lineage.ArtifactRecord:
        taken = digest(self.key) if self.hashed and kind is Kind.IMAGE else None
        return lineage.ArtifactRecord(
            kind=kind, store=store, unit=unit, locator=f"{self.key}.bin", purposes=purposes, digest=taken
        )  # fmt: skip

    @property
    def record(self) -> lineage.ImageRecord:
        return lineage.ImageRecord(
            key=self.key, subjects=tuple(map(subject, self.people)), digest=digest(self.key), acquired_on=self.day,
            artifacts=self.artifacts,
        )  # fmt: skip


@dataclass
class Deployment:
    """One company's Expunge. `directory`: for the workers' in-flight files."""

    dsn: str
    ledger: PostgresLedger
    directory: Path
    policy: Policy = field(default_factory=lambda: Policy(window=timedelta(0), attempts=3))
    clock: Clock = field(default_factory=Clock)
    keys: MemoryKeys = field(default_factory=lambda: MemoryKeys(b"seed"))
    sealed: MemorySealed = field(default_factory=MemorySealed)
    tiles: MemoryTiles = field(default_factory=MemoryTiles)
    journal: MemoryJournal = field(default_factory=lambda: MemoryJournal(b"j" * 32))
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    spaces: dict[str, Space] = field(default_factory=lambda: {name: Space() for name in REWRITES})
    consumed: dict[str, int] = field(default_factory=dict)
    only: frozenset[str] = frozenset(WORKERS)
    """Workers that run; the messages of the others wait."""

    def __post_init__(self) -> None:
        self._signers = signers(b"seed", list(REWRITES))
        self._log_key = dsse.SigningKey.from_seed(b"l" * 32)

    # The parts, each made once.

    @cached_property
    def intake(self) -> Intake:
        return Intake(
            ledger=self.ledger, journal=self.journal, keys=self.keys, sealed=self.sealed,
            scope_signer=self._signers[Role.SCOPE, None], clock=self.clock, policy=self.policy, audience=AUDIENCE,
        )  # fmt: skip

    @cached_property
    def plan(self) -> Plan:
        return self.planner()

    def planner(self) -> Plan:
        """One more planner, as a second coordinate worker would have."""
        return Plan(
            ledger=self.ledger, journal=self.journal, keys=self.keys, sealed=self.sealed,
            signer=self._signers[Role.SCOPE, None], clock=self.clock, policy=self.policy, new_id=uuid4,
            rewrites_unit=REWRITES,
        )  # fmt: skip

    @cached_property
    def prove(self) -> Prove:
        return Prove(ledger=self.ledger, store=self.tiles, key=self._log_key, origin=ORIGIN, clock=self.clock)

    @cached_property
    def dispatch(self) -> Dispatch:
        return Dispatch(
            signer=self._signers[Role.SCOPE, None], clock=self.clock, policy=self.policy, rewrites_unit=REWRITES
        )

    @cached_property
    def certify(self) -> Certify:
        return Certify(
            sealed=self.sealed, keys=self.keys, signer=self._signers[Role.CERTIFIER, None], clock=self.clock,
            issuer=ISSUER, not_covered=["backups until 2027"],
        )  # fmt: skip

    @cached_property
    def executors(self) -> tuple[Purge, Invalidate, Rescan]:
        stores = {name: MemoryStore(space, name, rewrites_unit=REWRITES[name]) for name, space in self.spaces.items()}
        readers = {name: MemoryReader(space, name, rewrites_unit=REWRITES[name]) for name, space in self.spaces.items()}
        signing = {name: self._signers[Role.EXECUTOR, name] for name in REWRITES}
        scopes = Scopes(sealed=self.sealed, keys=self.keys)
        purge, invalidate = (
            made(
                ledger=self.ledger, scopes=scopes, stores=stores, signers=signing, clock=self.clock, holder=made.__name__
            )
            for made in (Purge, Invalidate)
        )  # fmt: skip
        rescan = Rescan(
            ledger=self.ledger, scopes=scopes, sealed=self.sealed, readers=readers,
            signer=self._signers[Role.RESCANNER, None], clock=self.clock, max_attempts=self.policy.attempts,
        )  # fmt: skip
        assert isinstance(purge, Purge)
        assert isinstance(invalidate, Invalidate)
        return purge, invalidate, rescan

    @cached_property
    def reconcile(self) -> Reconcile:
        return self.reconciler()

    def reconciler(self, **options: Any) -> Reconcile:
        readers = {name: MemoryReader(space, name, rewrites_unit=REWRITES[name]) for name, space in self.spaces.items()}
        return Reconcile(
            ledger=self.ledger, scopes=Scopes(sealed=self.sealed, keys=self.keys), readers=readers,
            signer=self._signers[Role.RESCANNER, None], clock=self.clock, **options,
        )  # fmt: skip

    @cached_property
    def hosts(self) -> dict[str, DeliveryHost]:
        """The workers that take topics, as `wiring.build_worker` joins them."""
        purge, invalidate, rescan = self.executors
        retrain = Retrain(
            ledger=self.ledger, sealed=self.sealed, keys=self.keys,
            stores={MODELS: MemoryStore(self.spaces[MODELS], MODELS, rewrites_unit=False)},
            signer=self._signers[Role.RETRAINER, None], clock=self.clock, max_taint_age=self.policy.max_taint_age,
        )  # fmt: skip
        register = Register(
            keys=self.keys, signer=self._signers[Role.REGISTER, None], clock=self.clock,
            suppression_key=self.journal.key,
        )  # fmt: skip
        requests, outcomes = (topic.name for topic in WORKERS["coordinate"].consumes)
        stages: dict[str, dict[str, Sequence[Handler]]] = {
            "register": {"expunge.lineage": [register]},
            "coordinate": {requests: [self.intake], outcomes: [self.dispatch, self.certify]},
            "purge": {"expunge.purge": [purge]},
            "invalidate": {"expunge.invalidate": [invalidate]},
            "rescan": {"expunge.rescan": [rescan]},
            "retrain": {"expunge.retrain": [retrain]},
        }
        return {worker: self.host(worker, handlers) for worker, handlers in stages.items()}

    def host(self, worker: str, handlers: Mapping[str, Sequence[Handler]]) -> DeliveryHost:
        return DeliveryHost(
            worker=worker, ledger=self.ledger, broker=self.broker, handlers=handlers, parking=Parking(b"p" * 32),
            in_flight={topic: InFlight(self.directory / f"{worker}-{topic}") for topic in handlers}, clock=self.clock,
        )  # fmt: skip

    @cached_property
    def coordinator(self) -> Coordinator:
        return Coordinator(
            ledger=self.ledger, plan=self.plan, prove=self.prove, dispatch=self.dispatch, certify=self.certify,
            window_seconds=0, clock=self.clock, publish_emitted=self.hosts["coordinate"].publish_emitted,
            publish=self.broker.publish, in_hand=self.hosts["coordinate"].in_hand,
        )  # fmt: skip

    @cached_property
    def reader(self) -> Reader:
        return Reader(ledger=self.ledger, sealed=self.sealed, keys=self.keys, tiles=self.tiles)

    @cached_property
    def trust(self) -> Trust:
        """What an auditor would pin."""
        since = START - timedelta(days=1)
        ours = [
            TrustedKey(role=role, name=f"{role} {store}", store=store, public=one.public.to_base64(), valid_from=since)
            for (role, store), one in self._signers.items()
        ]
        approvers = [
            TrustedKey(role=Role.APPROVER, name=one.name, public=one.key.public.to_base64(), valid_from=since)
            for one in (ANN, BOB)
        ]
        log_key = NoteKey.log(ORIGIN, self._log_key.public).encode()
        return Trust(issuer=ISSUER, origin=ORIGIN, log_key=log_key, keys=(*ours, *approvers), reconciled_orders=True)

    # Kafka

    async def settle(self) -> None:
        """Turn until nothing moves: messages, turns of the coordinator, tasks, and whatever waits for its time."""
        for _ in range(TURNS):
            moved = await self._deliver() | await self.coordinator.turn() | await self._tasks()
            if not moved and not await self._skip_waits():
                return
        message = "expected the deployment to come to rest"
        raise AssertionError(message)

    async def _deliver(self) -> bool:
        moved = False
        for worker, host in self.hosts.items():
            for topic in host.topics if worker in self.only else ():
                records = self.records(topic)[self.consumed.get(topic, 0) :]
                if records:
                    await host.process(topic, records)
                    self.consumed[topic] = self.consumed.get(topic, 0) + len(records)
                    moved = True
        return moved

    async def _tasks(self) -> bool:
        kinds: dict[str, Work] = {one.task_kind: one.task for one in self.executors if one.task_kind in self.only}
        if "coordinate" in self.only:
            kinds[self.certify.task_kind] = self.certify.task
        if "rescan" in self.only:
            kinds[self.reconcile.task_kind] = self.reconcile.task
        moved = False
        while await run_one(ledger=self.ledger, kinds=kinds, stop=asyncio.Event()):
            moved = True
        for host in self.hosts.values():
            moved |= bool(await host.publish_outbox())
        return moved

    async def _skip_waits(self) -> bool:
        """Bring about the time that something waits for; whether anything did."""
        past = "not_before = clock_timestamp() - interval '1 s'"
        self.sql(
            f"with a as (update retry set {past}), b as (update task set {past} where done_at is null)"
            f" update work set {past} where not_before > clock_timestamp()"
        )
        moved = False
        for worker, host in self.hosts.items():
            moved |= worker in self.only and bool(await host.retry_due())
        return await self.upkeep() or moved or await self._tasks()

    async def upkeep(self, *, age: float = 1e9) -> bool:
        """What the coordinator does from time to time, now; whether it found anything to do."""
        async with self.ledger.transaction() as tx:
            moved = bool(await self.dispatch.redrive(tx, age=age))
            moved |= bool(await self.dispatch.expire(tx))
            stale = await self.certify.stale(tx, age=age)
            await self.certify.check(stale, tx)
        return bool(await self.hosts["coordinate"].publish_outbox()) or moved

    def records(self, topic: str) -> list[Record]:
        """A topic's messages so far, in order."""
        sent = [one for one in self.broker.published if one.topic == topic]
        return [Record(topic, 0, at, one.key, one.value, list(one.headers)) for at, one in enumerate(sent)]

    async def repeat(self, topic: str) -> None:
        """Deliver every message of a topic again, at positions of its own: a publisher's repeat, a relay's repeat."""
        (host,) = [host for host in self.hosts.values() if topic in host.topics]
        again = [replace(record, offset=record.offset + 1_000_000) for record in self.records(topic)]
        await host.process(topic, again)

    def send(self, event: cloudevents.CloudEvent, topic: str) -> None:
        """Publish an event as an outsider does."""
        key, value, headers = cloudevents.to_kafka(event)
        self.broker.published.append(Outgoing(topic, key or b"", value, headers))

    # The catalogue

    async def register(self, *taken: lineage.Lineage) -> None:
        for event in taken:
            self.send(
                lineage.to_cloudevent(event, str(uuid5(SPACE, event.model_dump_json())), "test"), "expunge.lineage"
            )
        await self._deliver()

    async def seed(self, *photos: Photo) -> None:
        """Register photos, and put their artifacts into the stores."""
        sources = sorted({photo.source for photo in photos})
        await self.register(*(source(name) for name in sources))
        for name in sources:
            mine = [photo for photo in photos if photo.source == name]
            for at in range(0, len(mine), 1000):
                await self.register(batch(*mine[at : at + 1000]))
        self.fill(*photos)

    def fill(self, *photos: Photo) -> None:
        for photo in photos:
            for one in photo.artifacts:
                self.spaces[one.store].insert(one.unit, {one.locator: content(f"{photo.key}/{one.kind}")})

    def left(self, store: str) -> set[str]:
        """Locators that a store still holds, hidden ones too."""
        return {name for unit in self.spaces[store].units.values() for name in (*unit.visible, *unit.hidden)}

    async def trained(self, name: str, photos: Sequence[Photo], grade: Grade = Grade.COMMITTED) -> None:
        """Register a model that was trained on photos, and its file."""
        self.spaces[MODELS].insert("files", {name: content(name)})
        keys = {one: tuple(photo.key for photo in photos if photo.source == one) for one in {p.source for p in photos}}
        members = tuple(lineage.SourceKeys(source=one, keys=listed) for one, listed in sorted(keys.items()))
        snapshot = f"snapshot-{name.partition('@')[0]}"
        await self.register(
            lineage.SnapshotCommitted(snapshot=snapshot, purpose="training", members_by_key=members, grade=grade),
            lineage.ModelRegistered(
                model=name, purpose="training", weights_digest=digest(name), trained_on=(snapshot,),
                weights=lineage.WeightsLocation(store=MODELS, unit="files", locator=name), code_digest=digest("code"),
                params_digest=digest("params"), created_at=START,
            ),
        )  # fmt: skip

    # Requests

    def trust_party(self, party: Party, role: Role, *, valid_from: datetime | None = None, **scope: object) -> None:
        """Register a party's key."""
        self.sql(
            "insert into trusted_key (key_id, role, name, public, scope, valid_from) values (%s, %s, %s, %s, %s, %s)"
            " on conflict do nothing",
            party.key.key_id, role, party.name, party.key.public.raw, psycopg.types.json.Jsonb(scope),
            valid_from or START - timedelta(days=1),
        )  # fmt: skip

    def common(self, **changes: object) -> dict[str, Any]:
        """The fields that every request has."""
        request_id = str(uuid4())
        given = {
            "id": request_id, "audience": AUDIENCE, "issued_at": self.clock.now,
            "expires_at": self.clock.now + timedelta(days=1), "nonce": hashlib.md5(request_id.encode()).hexdigest(),  # noqa: S324 - 16 bytes
        }  # fmt: skip
        return given | changes

    def deletion(self, person: int, **changes: object) -> request.DeletionRequested:
        common = {"subject_ref": subject(person), "regulation": Regulation.GDPR, "received_at": self.clock.now}
        return request.DeletionRequested(**self.common(**common, **changes))

    def withdrawal(self, person: int, *purposes: str, **changes: object) -> request.ConsentWithdrawn:
        common = {"subject_ref": subject(person), "regulation": Regulation.GDPR, "received_at": self.clock.now}
        return request.ConsentWithdrawn(**self.common(**common, purposes=purposes or ("training",), **changes))

    def order(self, selection: request.Selection, **changes: object) -> request.OrderIssued:
        due = self.clock.now.replace(microsecond=0) + timedelta(days=30)
        provision = request.OrderProvision(number=1, covers=Provision.DATA, deadline=due)
        common = {"authority": request.Authority.REGULATOR, "reference": "file 1", "provisions": (provision,)}
        return request.OrderIssued(**self.common(selection=selection, **common, **changes))

    def hold(self, target: request.HoldTarget, **changes: object) -> request.HoldPlaced:
        common = {"authority": request.Authority.COURT, "reference": "file 2"}
        return request.HoldPlaced(**self.common(target=target, **common, **changes))

    def release(self, hold: request.HoldPlaced) -> request.HoldReleased:
        return request.HoldReleased(**self.common(hold_id=hold.id))

    def cancel(self, one: request.Request) -> request.Cancelled:
        return request.Cancelled(**self.common(request_id=one.id))

    def approval(self, one: request.Request, scope_root: str | None = None) -> request.Approved:
        return request.Approved(**self.common(request_id=one.id, scope_root=scope_root or self.scope_of(one)))

    def ask(self, *asked: request.Request, by: Party = PUBLISHER) -> None:
        """Publish signed requests."""
        for one in asked:
            self.send(signed(one, by), "expunge.requests")

    async def take(self, *asked: request.Request, by: Party = PUBLISHER) -> None:
        """Publish signed requests, and let intake have them: nothing else moves."""
        self.ask(*asked, by=by)
        await self._deliver()

    async def approve(self, one: request.Request) -> None:
        """Both approvers approve."""
        for party in (ANN, BOB):
            await self.take(self.approval(one), by=party)

    # What came of it

    def sql(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def state(self, one: request.Request) -> str | None:
        rows = self.sql("select state from request where request_id = %s", one.id)
        return str(rows[0][0]) if rows else None

    def result(self, one: request.Request) -> str | None:
        ((result,),) = self.sql("select data_result from request where request_id = %s", one.id)
        return None if result is None else str(result)

    def sweep_of(self, one: request.Request) -> UUID:
        ((sweep_id,),) = self.sql("select sweep_id from request where request_id = %s", one.id)
        assert isinstance(sweep_id, UUID)
        return sweep_id

    def scope_of(self, one: request.Request) -> str:
        ((found,),) = self.sql("select scope_digest from sweep where sweep_id = %s", self.sweep_of(one))
        return bytes(found).hex()

    def said(self, kind: type[Any], about: request.Request | None = None) -> list[Any]:
        """Events of a type that were published, in order."""
        wanted = kind.model_fields["type"].default
        found = [
            events.parse_event(one.value)
            for one in self.broker.published
            if dict(one.headers).get("ce_type") == wanted.encode()
        ]
        return [one for one in found if about is None or getattr(one, "request_id", None) == about.id]

    def codes(self, one: request.Request) -> list[str]:
        """Why a request was rejected, if it was."""
        return [said.code for said in self.said(events.RequestRejected, one)]

    def letters(self) -> list[str]:
        """Reasons of all dead letters, in order."""
        return [reason for (reason,) in self.sql("select reason from dead_letter order by id")]

    def logged(self, kind: type[Any] | None = None) -> list[Any]:
        """Predicates in the log, in order."""
        rows = self.sql("select entry from log_entry order by index")
        found = [statement.parse(dsse.parse(bytes(entry)).payload).predicate for (entry,) in rows]
        return [one for one in found if kind is None or isinstance(one, kind)]

    def scope_file(self, sweep_id: UUID) -> scopefile.ScopeFile:
        ((bucket,),) = self.sql("select bucket from sweep where sweep_id = %s", sweep_id)
        key = derive_key(self.keys.bucket(bucket), "sweep", sweep_id.bytes)
        return scopefile.ScopeFile.open(self.sealed.open(f"{sweep_id}.scope"), key)

    def suppressed(self) -> list[suppression.Record]:
        """The journal."""
        return suppression.decode(self.journal.read())[0]

    async def verify(self, one: request.Request, provision: Provision = Provision.DATA) -> Report:
        """A request's certificate, checked as an outsider does."""
        return verification.verify(await self.reader.certificate(UUID(one.id), provision), self.trust)

    def footprint(self) -> tuple[Any, ...]:
        """What a repeat must not change: log, outcomes, requests, catalogue, certificates."""
        counted = (
            "log_entry",
            "outcome",
            "round",
            "certificate",
            "image",
            "artifact",
            "tombstone",
            "erased",
            "taint",
            "approval",
        )
        counts = [self.sql(f"select count(*) from {table}")[0][0] for table in counted]
        states = self.sql("select request_id, state, data_result, models_result from request order by 1")
        return counts, states, self.sql("select index, leaf_hash from log_entry order by 1")

    def personal(self) -> list[bytes]:
        """Pseudonyms, locators and digests that must not show up outside the catalogue."""
        found = [b"k1.subject", b".bin"]
        for (one,) in self.sql("select distinct digest from image"):
            found += [bytes(one), bytes(one).hex().encode()]
        return found


def source(name: str) -> lineage.SourceRegistered:
    return lineage.SourceRegistered(
        source=name, supplier="S", agreement="A-1", licence="L", consent_basis=lineage.ConsentBasis.CONTRACT,
        acquired_on=date(2020, 1, 1), approved_by="role:data",
    )  # fmt: skip


def batch(*photos: Photo) -> lineage.ImagesRegistered:
    batch_id = lineage.BatchId(str(uuid4()))
    return lineage.ImagesRegistered(
        source=photos[0].source, batch_id=batch_id, images=tuple(one.record for one in photos)
    )


def signed(one: request.Request, by: Party = PUBLISHER) -> cloudevents.CloudEvent:
    envelope = dsse.sign(request.dump_request(one), request.PAYLOAD_TYPE, by.key)
    return request.to_cloudevent(one, envelope, "test")


def album(person: int, count: int = 4, **options: Any) -> list[Photo]:
    """Photos of one person."""
    return [Photo(f"p{person}-{number}", (person,), **options) for number in range(count)]


@asynccontextmanager
async def deployed(dsn: str, directory: Path, **options: Any) -> AsyncIterator[Deployment]:
    """A deployment on an empty database, with its parties known."""
    migrate(dsn)
    ledger = PostgresLedger(dsn)
    await ledger.open()
    try:
        made = Deployment(dsn, ledger, directory, **options)
        made.trust_party(PUBLISHER, Role.PUBLISHER)
        for party in (ANN, BOB):
            made.trust_party(party, Role.APPROVER)
        yield made
    finally:
        await ledger.close()
