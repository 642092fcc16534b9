"""A small real deployment to break: servers, worker processes, six stores on disk, a product that registers people.

Nothing here asks the system how it did: files, the index's own ids, tar members and rows are looked at directly, and
events are read from the public topics.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import numpy as np
import psycopg
from kafka.errors import KafkaTimeoutError
from psycopg import sql
from psycopg.conninfo import make_conninfo

from expunge.adapters.stores.faiss import FaissStore, faiss
from expunge.adapters.stores.pgvector import open_store as open_pgvector
from expunge.adapters.stores.webdataset import WebDatasetStore
from expunge.crashing import VARIABLE
from expunge.demo.proofs import Proofs
from expunge.domain import dsse, events, lineage, verification
from expunge.domain.request import Authority, ByList, OrderProvision, Regulation, RequestId, Selection, SubjectRef
from expunge.domain.words import Grade, Kind, Provision, Remedy, Role
from expunge.pipeline import WORKERS
from expunge.readside import Reader, reader, replay_into, trusted
from expunge.wiring.up import Embedded, register_key
from tests.faults.told import Told, ToldPublisher

T = TypeVar("T")

AUDIENCE: Final = "test:faults"
SOURCE: Final = "album"
PHOTOS: Final = 2
"""Photos of each person; each has a file, a shard row, a vector in FAISS and one in a table."""
PER_SHARD: Final = 25
DIMENSIONS: Final = 8
INDEX: Final = "faces.index"
TABLE: Final = "face"
LIMIT: Final = 180.0
"""Seconds that anything may take to come about on a busy machine before it counts as lost."""
BOTH: Final = ("account", "training")


def key_of(name: str) -> dsse.SigningKey:
    return dsse.SigningKey.from_seed(hashlib.sha256(name.encode()).digest())


def subject(person: int) -> SubjectRef:
    return SubjectRef(f"k1.faults{person:016d}")


def rest() -> None:
    """Nothing to do between two looks."""


def eventually(look: Callable[[], T | None], what: str, seconds: float = LIMIT, beat: Callable[[], None] = rest) -> T:
    """What `look` gives once it gives something. `beat` runs between looks."""
    deadline = time.monotonic() + seconds
    while (found := look()) is None or found is False:
        assert time.monotonic() < deadline, f"expected {what} within {seconds:g} s"
        beat()
        time.sleep(0.05)
    return found


@dataclass(slots=True)
class Resumed:
    """How long after a kill its worker was ready, and its request certified."""

    seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        if not self.seconds:
            return {}
        ordered = sorted(self.seconds)
        at = min(len(ordered) - 1, int(len(ordered) * 0.99))
        return {"median_s": round(ordered[len(ordered) // 2], 2), "p99_s": round(ordered[at], 2)}


class Small:
    """Use as a context manager: servers and workers are up inside. `people`: how many are registered at once."""

    def __init__(
        self, root: Path, *, people: int = 0, workers: Sequence[str] = tuple(WORKERS), armed: bool = True,
        overrides: dict[str, Any] | None = None, settings: dict[str, dict[str, str]] | None = None,
        embedded: type[Embedded] = Embedded, durable: bool = False, history: Path | None = None,
        idle_limit: str | None = None,
    ) -> None:  # fmt: skip
        """`armed`: workers watch crash files. `settings`: variables of single workers, by name. `history`: a file.
        `idle_limit`: how long a worker's transaction may stand still, other than usual."""
        self.root = root
        self.product = root / "product"
        self._people = people
        self._armed = armed
        self._idle_limit = idle_limit
        self._settings = dict(settings or {})
        self.registered = 0
        self.embedded = embedded(
            root / "deployment", audience=AUDIENCE, workers=workers, durable=durable,
            overrides={"audit_seconds": 5.0, "reconcile_hours": 0, **(overrides or {})}, variables=self._variables,
        )  # fmt: skip
        self._numbers = random.Random(1)
        self.told = Told(history, "faults") if history else None
        self.publisher: ToldPublisher
        self.approvers: list[ToldPublisher] = []
        self.proofs: Proofs

    # up and down

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.embedded.stop()
            raise
        return self

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.embedded.start_servers()
        if self._idle_limit:
            limited = make_conninfo(self.dsn, options=f"-c idle_in_transaction_session_timeout={self._idle_limit}")
            self.embedded.settings = self.embedded.settings.model_copy(update={"database": limited})
        self.make_stores()
        for role, name in ((Role.PUBLISHER, "backend"), (Role.APPROVER, "ann"), (Role.APPROVER, "bob")):
            public = key_of(name).public
            register_key(self.dsn, role=role.value, name=name, public=public.raw, key_id=public.key_id)
        self.embedded.start_workers()
        kafka = self.kafka
        self.publisher, *self.approvers = (
            ToldPublisher(kafka, key_of(name), AUDIENCE, name) for name in ("backend", "ann", "bob")
        )
        if self.told is not None:
            for one, name in zip((self.publisher, *self.approvers), ("backend", "ann", "bob"), strict=True):
                one.tell(self.told.recorder, name)
            key = self.embedded.deployment.signers.log_key().public.raw
            self.told.trust(asyncio.run(trusted(self.embedded.deployment)), key)
        self.proofs = Proofs(kafka)
        self.publisher.lineage(
            lineage.SourceRegistered(
                source=SOURCE, supplier="tests", agreement="none", licence="none",
                consent_basis=lineage.ConsentBasis.EXPLICIT_CONSENT, acquired_on=date(2026, 1, 1), approved_by="tests",
            )
        )  # fmt: skip
        self.publisher.flush()
        eventually(lambda: self.one("select count(*) from source") or None, "the source to be registered")
        if self._people:
            self.register(self._people)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(Exception):
            for one in (*self.approvers, self.publisher):
                one.close()
            self.proofs.close()
        self.embedded.stop()

    def _variables(self, key: str) -> dict[str, str]:
        armed = {VARIABLE: str(self.crash_file(key))} if self._armed else {}
        return armed | self._settings.get(key, {})

    def crash_file(self, worker: str) -> Path:
        return self.root / f"crash-{worker}"

    @property
    def dsn(self) -> str:
        return self.embedded.settings.database

    @property
    def kafka(self) -> str:
        return self.embedded.settings.kafka

    def make_stores(self) -> None:
        for name in ("photos", "shards", "faces", "models"):
            (self.product / name).mkdir(parents=True, exist_ok=True)
        (self.product / "photos" / SOURCE).mkdir(exist_ok=True)
        database = self.embedded.postgres.create_database("product")
        with psycopg.connect(database) as connection:
            connection.execute("create extension if not exists vector")
        self.product_dsn = database
        stores = {
            "photos": self.photos_url(),
            "shards": f"wds://{self.product / 'shards'}",
            "faces": f"faiss://{self.product / 'faces'}",
            "vectors": f"pgvector+{database}",
            "models": f"file://{self.product / 'models'}",
        }
        self.embedded.use_stores(stores)
        if not (self.product / "faces" / INDEX).exists():
            FaissStore(str(self.product / "faces"), "faces").create(
                INDEX, faiss.IndexIDMap2(faiss.IndexFlatL2(DIMENSIONS))
            )
            table = open_pgvector(stores["vectors"], "vectors")
            try:
                table.create_table(TABLE, DIMENSIONS)
            finally:
                table.close()

    # the product

    def photos_url(self) -> str:
        """Where photos are. Tests put them elsewhere."""
        return f"file://{self.product / 'photos'}"

    def put_photo(self, name: str, content: bytes) -> None:
        (self.product / "photos" / SOURCE / name).write_bytes(content)

    def has_photo(self, name: str) -> bool:
        return (self.product / "photos" / SOURCE / name).exists()

    def register(
        self, count: int, *, wait: bool = True, source: str = SOURCE, beat: Callable[[], None] = rest
    ) -> range:
        """That many new people, into the stores and then to Expunge."""
        people = range(self.registered, self.registered + count)
        self.registered += count
        images = [(person, number) for person in people for number in range(PHOTOS)]
        content = {one: self._numbers.randbytes(600) for one in images}
        told = self._tell(images, people.start)
        for person in people:
            for number in range(PHOTOS):
                self.put_photo(f"{name(person, number)}.jpg", content[person, number])
        shards = WebDatasetStore(str(self.product / "shards"), "shards")
        for first in range(people.start, people.stop, PER_SHARD):
            part = [one for one in images if first <= one[0] < first + PER_SHARD]
            shards.append(f"{first:06d}.tar", ((name(*one), {"jpg": content[one]}) for one in part))
        self.insert(images)
        batch = str(uuid.uuid4())
        for start in range(0, len(images), 500):
            part = images[start : start + 500]
            batch = str(uuid.uuid4())
            self.publisher.lineage(
                lineage.ImagesRegistered(
                    source=source,
                    batch_id=lineage.BatchId(batch),
                    images=tuple(self._record(one, content[one], people.start) for one in part),
                )
            )
        self.publisher.flush()
        if wait:
            last = people[-1]
            query = "select count(*) from image_subject where subject_ref = %s"
            eventually(lambda: self.one(query, subject(last)) == PHOTOS, "the people to be registered", beat=beat)
            if self.told is not None:
                self.told.recorder.registered(told)
        return people

    def _tell(self, images: Sequence[tuple[int, int]], first: int) -> list[str]:
        if self.told is None:
            return []
        made = []
        for one in images:
            record = self._record(one, b"", first)
            places = [
                (part.kind.value, part.store, part.unit, part.locator, part.purposes) for part in record.artifacts
            ]
            made += self.told.image(record.key, SOURCE, record.acquired_on.isoformat(), subject(one[0]), places)
        self.told.recorder.insert(made)
        return made

    def insert(self, images: Sequence[tuple[int, int]]) -> None:
        """Vectors of these images, as the product inserts them."""
        ids = np.array([vector_id(*one) for one in images], dtype=np.int64)
        drawn = np.random.default_rng(int(ids[0])).standard_normal((len(ids), DIMENSIONS), dtype=np.float32)
        FaissStore(str(self.product / "faces"), "faces").add(INDEX, ids, drawn)
        with psycopg.connect(self.product_dsn) as connection, connection.cursor() as cursor:
            rows = [(one, json.dumps(vector)) for one, vector in zip(ids.tolist(), drawn.tolist(), strict=True)]
            cursor.executemany(
                sql.SQL("insert into {} (id, embedding) values (%s, %s)").format(sql.Identifier(TABLE)), rows
            )

    def _record(self, one: tuple[int, int], content: bytes, first: int) -> lineage.ImageRecord:
        person, number = one
        digest = hashlib.sha256(content).hexdigest()
        shard = f"{first + (person - first) // PER_SHARD * PER_SHARD:06d}.tar"
        places: tuple[tuple[lineage.ArtifactKind, str, str, str, tuple[str, ...]], ...] = (
            (Kind.IMAGE, "photos", SOURCE, f"{name(*one)}.jpg", BOTH),
            (Kind.SHARD_ROW, "shards", shard, name(*one), ("training",)),
            (Kind.EMBEDDING, "faces", INDEX, str(vector_id(*one)), ("training",)),
            (Kind.EMBEDDING, "vectors", TABLE, str(vector_id(*one)), ("training",)),
        )
        return lineage.ImageRecord(
            key=name(*one), subjects=(subject(person),), digest=digest, acquired_on=date(2026, 1, 1 + number),
            artifacts=tuple(
                lineage.ArtifactRecord(kind=kind, store=store, unit=unit, locator=locator, purposes=purposes,
                                       digest=digest if kind is Kind.IMAGE else None)
                for kind, store, unit, locator, purposes in places
            ),
        )  # fmt: skip

    def train(self, model: str, people: Iterable[int], beat: Callable[[], None] = rest) -> None:
        """A model of these people's photos: its file, its snapshot, its registration."""
        folder, _, version = model.partition("@")
        (self.product / "models" / folder).mkdir(exist_ok=True)
        weights = self._numbers.randbytes(900)
        (self.product / "models" / folder / f"{version}.npz").write_bytes(weights)
        keys = tuple(name(person, number) for person in people for number in range(PHOTOS))
        if self.told is not None:
            self.told.model(model, folder, f"{version}.npz", keys)
        self.publisher.lineage(
            lineage.SnapshotCommitted(
                snapshot=f"of-{folder}", purpose="training", grade=Grade.COMMITTED,
                members_by_key=(lineage.SourceKeys(source=SOURCE, keys=keys),),
            )
        )  # fmt: skip
        self.publisher.lineage(
            lineage.ModelRegistered(
                model=model, weights_digest=hashlib.sha256(weights).hexdigest(),
                weights=lineage.WeightsLocation(store="models", unit=folder, locator=f"{version}.npz"),
                purpose="training", trained_on=(f"of-{folder}",), metrics={}, created_at=datetime.now(UTC),
                code_digest="0" * 64, params_digest="0" * 64, seeds=(0,),
            )
        )  # fmt: skip
        self.publisher.flush()
        query = "select count(*) from model where name = %s"
        eventually(lambda: self.one(query, model) or None, "the model", beat=beat)

    # asking

    def delete(self, person: int) -> RequestId:
        request = self.publisher.delete(subject(person), regulation=Regulation.GDPR)
        self.publisher.flush()
        return request

    def delete_all(self, people: Iterable[int]) -> list[RequestId]:
        """At once."""
        requests = [self.publisher.delete(subject(one), regulation=Regulation.GDPR) for one in people]
        self.publisher.flush()
        return requests

    def order(self, people: Iterable[int], remedy: Remedy = Remedy.DESTROY) -> RequestId:
        """An order about these people, with its two approvals."""
        request = self.ordered(ByList(subjects=tuple(map(subject, people))), remedy)
        self.approve(request)
        return request

    def ordered(self, selection: Selection, remedy: Remedy = Remedy.DESTROY) -> RequestId:
        at = datetime.now(UTC).replace(microsecond=0)
        request = self.publisher.order(
            selection, authority=Authority.REGULATOR, reference="1",
            provisions=(
                OrderProvision(number=1, covers=Provision.DATA, deadline=at + timedelta(days=30)),
                OrderProvision(number=2, covers=Provision.MODELS, deadline=at + timedelta(days=90), remedy=remedy),
            ),
        )  # fmt: skip
        self.publisher.flush()
        return request

    def approve(self, request: RequestId, beat: Callable[[], None] = rest) -> None:
        query = (
            "select encode(scope_digest, 'hex') from sweep join request using (sweep_id)"
            " where request_id = %s and sweep.state = 'awaiting-approval'"
        )
        root = eventually(lambda: self.one(query, request), "a scope that awaits approval", beat=beat)
        for approver in self.approvers:
            approver.approve(request, root)
            approver.flush()

    # looking

    def sql(self, query: str, *parameters: object) -> list[Any]:
        """While the database is being started again, once it is."""

        def ask() -> list[Any] | None:
            with suppress(psycopg.OperationalError), psycopg.connect(self.dsn, autocommit=True) as connection:
                cursor = connection.execute(query.encode(), parameters)
                return cursor.fetchall() if cursor.description else []
            return None

        return eventually(ask, "the database to answer")

    def one(self, query: str, *parameters: object) -> Any:
        rows = self.sql(query, *parameters)
        return rows[0][0] if rows else None

    def state(self, request: str) -> str | None:
        return self.one("select state from request where request_id = %s", request)  # type: ignore[no-any-return]

    def done(self, request: str) -> bool:
        """Whether a request has reached its end, and all that goes with it is announced."""
        query = (
            "select r.state = 'completed' and not exists (select from round x where x.sweep_id = r.sweep_id and not issued)"
            " from request r where request_id = %s"
        )
        return bool(self.one(query, request))

    def wait(self, *requests: str, seconds: float = LIMIT, beat: Callable[[], None] = rest) -> None:
        for request in requests:
            eventually(lambda one=request: self.done(one) or None, "a completed request", seconds, beat)  # type: ignore[misc]

    def left(self, person: int) -> dict[str, set[int]]:
        """Which photos of a person each store still has, seen without adapters."""
        numbers = range(PHOTOS)
        index = faiss.read_index(str(self.product / "faces" / INDEX))  # a name: its id_map does not keep it alive
        ids = set(faiss.vector_to_array(index.id_map).tolist())
        names: set[str] = set()
        for path in (self.product / "shards").glob("*.tar"):
            with tarfile.open(path) as tar:
                names.update(member.rpartition(".")[0] for member in tar.getnames())
        with psycopg.connect(self.product_dsn) as connection:
            rows = connection.execute(
                sql.SQL("select id from {} where id = any(%s)").format(sql.Identifier(TABLE)),
                ([vector_id(person, number) for number in numbers],),
            ).fetchall()
        return {
            "photos": {one for one in numbers if self.has_photo(f"{name(person, one)}.jpg")},
            "shards": {one for one in numbers if name(person, one) in names},
            "faces": {one for one in numbers if vector_id(person, one) in ids},
            "vectors": {one for one in numbers if (vector_id(person, one),) in rows},
        }

    def leftovers(self) -> list[str]:
        """Temporary files that a crash left in stores."""
        return [str(path) for path in self.product.rglob("*.new-*")]

    def effects(self, request: str) -> Counter[str]:
        """What a request came to, as counts: statements by type and step, certificates, outcomes, tombstones."""
        sweep = self.one("select sweep_id from request where request_id = %s", request)
        found: Counter[str] = Counter()
        for store, step, attempt, number in self.sql(
            "select s.trees -> o.tree::integer ->> 'store', step, attempt, count(*)"
            " from outcome o join sweep s using (sweep_id) where sweep_id = %s group by 1, 2, 3",
            sweep,
        ):
            found[f"outcome {store} {step} {attempt}"] += number
        for provision, result, number in self.sql(
            "select provision, result, count(*) from certificate where request_id = %s group by 1, 2", request
        ):
            found[f"certificate {provision} {result}"] += number
        for provision, number in self.sql(
            "select provision, count(*) from round where sweep_id = %s group by 1", sweep
        ):
            found[f"round {provision}"] += number
        found["tombstones"] = self.one(
            "select coalesce(sum(images), 0)::bigint from tombstone where sweep_id = %s", sweep
        )
        found["unlogged"] = self.one("select count(*) from outcome where sweep_id = %s and log_index is null", sweep)
        found["open work"] = self.one("select count(*) from work where sweep_id = %s and step <> 'done'", sweep)
        return found

    def announced(self) -> Counter[tuple[str, str]]:
        """Distinct `CertificateIssued` events so far, by request and provision: repeats of one event have its bytes."""
        self.proofs.until(lambda: self._caught_up() or None, "the public topics to be read", LIMIT)
        distinct = {
            (one.request_id, one.provision.value, one.certificate_digest)
            for one in self.proofs.of(events.CertificateIssued)
        }
        return Counter((request, provision) for request, provision, _ in distinct)

    def _caught_up(self) -> bool:
        consumer = self.proofs._consumer
        with suppress(KafkaTimeoutError):  # a broker that has just come back: asked again
            ends = consumer.end_offsets(list(consumer.assignment()))
            return all(consumer.position(part) >= end for part, end in ends.items())
        return False

    def letters(self) -> list[str]:
        return [row[0] for row in self.sql("select reason from dead_letter order by id")]

    def bundle(self, request: str, provision: str) -> dict[str, bytes]:
        """A certificate's bundle."""

        async def ask() -> dict[str, bytes]:
            async with reader(self.embedded.deployment) as opened:
                return await self._certificate(opened, request, Provision(provision))

        return eventually(lambda: _or_none(lambda: asyncio.run(ask())), "a checkpoint that covers the certificate")

    def verified(self, request: str, provision: Provision = Provision.DATA) -> Any:
        """The certificate's bundle, through the offline verifier."""
        files = self.bundle(request, provision)
        report = verification.verify(files, asyncio.run(trusted(self.embedded.deployment)))
        return report.verified()

    @staticmethod
    async def _certificate(opened: Reader, request: str, provision: Provision) -> dict[str, bytes]:
        return await opened.certificate(UUID(request), provision)

    def replayed(self) -> dict[str, Any]:
        """The whole log, replayed from its files and compared with the live rows."""
        policy = asyncio.run(trusted(self.embedded.deployment))
        return asyncio.run(replay_into(self.embedded.deployment, None, policy, compare=True))

    # breaking

    def arm(self, worker: str, point: str, number: int = 1, how: str = "kill") -> None:
        """Let `worker` die (or stop) when it passes `point` for that many-th time from now on."""
        path = self.crash_file(worker)
        new = path.with_suffix(".new")
        new.write_text(f"{point} {number} {how}\n", encoding="ascii")
        new.replace(path)

    def disarm(self, worker: str) -> bool:
        """Whether it was still armed."""
        path = self.crash_file(worker)
        there = path.exists()
        path.unlink(missing_ok=True)
        return there

    def passed(self, worker: str) -> Counter[str]:
        """How often each point was passed since the last call."""
        path = self.crash_file(worker).with_suffix(".passed")
        with suppress(FileNotFoundError):
            found = Counter(path.read_text(encoding="ascii").split())
            path.unlink()
            return found
        return Counter()

    def pid(self, worker: str) -> int:
        return self.embedded._processes[worker].pid

    def signal(self, worker: str, number: signal.Signals) -> None:
        os.kill(self.pid(worker), number)

    def stopped(self, worker: str) -> bool:
        """Whether it is paused by SIGSTOP."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid(worker)}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def ended(self, worker: str) -> bool:
        return worker in self.embedded.ended()

    def restart(self, worker: str, *, ready: bool = True) -> float:
        """Start one that ended again; seconds until it was ready."""
        began = time.monotonic()
        if (ended := self.embedded._processes.pop(worker, None)) is not None:
            ended.stop()  # its pipe is closed with it
        base, _, instance = worker.partition("-")
        self.embedded.start_worker(base, instance or "0")
        if ready:
            self.embedded.wait_ready(base, instance or "0")
        return time.monotonic() - began

    def restart_killed(self, worker: str) -> float:
        """SIGKILL, and a new life; seconds until it is ready."""
        self.embedded.kill_worker(worker)
        return self.restart(worker)

    def let_leases_end(self) -> None:
        """As if the time of every lease had passed."""
        self.sql("update task set lease_until = clock_timestamp() where done_at is null")
        self.sql("update unit_lease set lease_until = clock_timestamp()")


def name(person: int, number: int) -> str:
    return f"p{person:06d}-{number}"


def vector_id(person: int, number: int) -> int:
    return person * 10 + number


def _or_none(ask: Callable[[], T]) -> T | None:
    from expunge.domain.errors import Retryable

    try:
        return ask()
    except Retryable:
        return None
