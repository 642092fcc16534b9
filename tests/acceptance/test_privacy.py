"""Nothing that Expunge publishes, keeps as evidence, logs or counts names a person.

A whole deployment is fed names, e-mail addresses, pseudonyms, keys, paths and plain digests; then everything that leaves
it or outlives the person is searched for each of them, in plain and encoded, also inside what is encoded.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import os
import re
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from expunge.adapters.stores.faiss import FaissStore
from expunge.adapters.stores.table import open_store
from expunge.client import Publisher
from expunge.domain import canonical, dsse, lineage, opening, request, topics
from expunge.domain.errors import Rejected
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.request import OrderProvision, SubjectRef
from expunge.domain.trust import Trust
from expunge.domain.words import Grade, Kind, Provision, Remedy
from expunge.openings import Wanted
from expunge.pipeline import WORKERS
from expunge.readside import reader, trusted
from expunge.wiring.up import Embedded, register_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PEOPLE = ("Xaverianne", "Yolandinella", "Zebedaeusz", "Wilhelmine", "Valentiniana")
DELETED, WITHDREW, ORDERED, STUCK, BROKEN = range(len(PEOPLE))
PHOTOS = 3
FAMILY = "Canaryfeather"
EMAIL = "x.canaryfeather@privacy-canary.example"
WAIT_SECONDS = 90.0


def subject(person: int) -> SubjectRef:
    return SubjectRef(f"k1.{PEOPLE[person]}-{FAMILY}-pseudonym")


class Canaries:
    """What must not be found, under every spelling; each with the name it is reported by."""

    def __init__(self) -> None:
        self.spelled: dict[bytes, str] = {}

    def text(self, name: str, *texts: str) -> None:
        """The text, and its plain digest."""
        for text in texts:
            self._spell(name, text.encode())
            self.digest(f"SHA-256 of {name}", hashlib.sha256(text.encode()).digest())

    def digest(self, name: str, digest: bytes) -> None:
        self._spell(name, digest)

    def _spell(self, name: str, data: bytes) -> None:
        spellings = {
            "": data,
            " in hex": data.hex().encode(),
        }
        for shift in range(3):  # within longer text that is encoded, a piece has one of three alignments
            inner = base64.b64encode(bytes(shift) + data)[4 if shift else 0 :]
            inner = inner[: (len(data) - (3 - shift) % 3) // 3 * 4]
            spellings |= {
                f" in base64 ({shift})": inner,
                f" in base64url ({shift})": inner.translate(bytes.maketrans(b"+/", b"-_")),
            }
        for how, spelling in spellings.items():
            assert len(spelling) >= 8, "too short to be found only where it was put"
            self.spelled.setdefault(spelling, name + how)

    def found(self, where: str, data: bytes) -> set[str]:
        return {
            f"{name} in {where}"
            for layer in layers(data)
            for spelling, name in self.spelled.items()
            if spelling in layer
        }


def layers(data: bytes, depth: int = 4) -> Iterator[bytes]:
    """The bytes, lower case where that differs, and what any base64 in them holds, and so on."""
    yield data
    if (lower := data.lower()) != data:
        yield lower
    if not depth:
        return
    for run in set(re.findall(rb"[A-Za-z0-9+/_-]{24,}={0,2}", data)):
        plain = run.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            inner = base64.b64decode(plain + b"=" * (-len(plain) % 4))
        except binascii.Error:
            continue
        yield from layers(inner, depth - 1)


def test_a_canary_is_found_under_each_spelling() -> None:
    canaries = Canaries()
    canaries.text("name", "Zebedaeusz Canaryfeather")
    digest = hashlib.sha256(b"photo").digest()
    canaries.digest("photo", digest)
    envelope = base64.b64encode(json.dumps({"who": "Zebedaeusz Canaryfeather", "of": digest.hex()}).encode())
    for data in (
        b"..Zebedaeusz Canaryfeather..",
        json.dumps({"payload": envelope.decode()}).encode(),
        base64.b64encode(json.dumps({"payload": envelope.decode()}).encode()),
    ):
        assert any("name" in one for one in canaries.found("here", data))
    for data in (digest, digest.hex().encode(), base64.b64encode(b"x" + digest), base64.urlsafe_b64encode(digest)):
        assert any("photo" in one for one in canaries.found("here", b"ab" + data + b"cd"))
    assert not canaries.found("here", os.urandom(1 << 16))


class Story:
    """One deployment whose input is full of canaries."""

    def __init__(self, root: Path, embedded: Embedded) -> None:
        self.root, self.embedded, self.canaries = root, embedded, Canaries()
        self.key = dsse.SigningKey.from_seed(os.urandom(32))
        self.digests: dict[tuple[int, int], str] = {}
        self.urls = {
            "photos": f"file://{root}/photos", "faces": f"faiss://{root}/faces", "models": f"file://{root}/models"
        }  # fmt: skip
        self.canaries.text("family name", FAMILY, FAMILY.lower())
        self.canaries.text("e-mail", EMAIL)
        self.canaries.text("folder", str(root))
        for person, name in enumerate(PEOPLE):
            self.canaries.text("subject", subject(person))
            self.canaries.text("first name", name, name.lower())

    def prepare(self) -> None:
        for name in ("photos", "faces", "models"):
            (self.root / name).mkdir()
        (self.root / "models" / self.unit).mkdir()
        (self.root / "models" / self.unit / self.weights).write_bytes(os.urandom(5000))
        self.embedded.use_stores(self.urls)
        faces = open_store(self.urls["faces"], "faces")
        assert isinstance(faces, FaissStore)
        numbers = np.arange(len(PEOPLE) * PHOTOS)
        faces.add(self.index, numbers, np.random.default_rng(0).random((len(numbers), 8), dtype=np.float32))
        (self.root / "faces" / self.broken).write_bytes(f"no index of {FAMILY}'s".encode() * 99)
        self.embedded.start_workers()
        self.sign("publisher", "accounts", self.key)

    unit, weights = f"{FAMILY.lower()}-models", f"{FAMILY.lower()}-face.bin"
    index = f"{FAMILY.lower()}-family.faiss"
    broken = f"{FAMILY.lower()}-broken.faiss"

    def sign(self, role: str, name: str, key: dsse.SigningKey) -> None:
        register_key(self.embedded.settings.database, role=role, name=name, public=key.public.raw, key_id=key.key_id)

    def publisher(self, key: dsse.SigningKey | None = None) -> Publisher:
        return Publisher(self.embedded.kafka.bootstrap, key or self.key, "acme", "privacy")

    def photo(self, person: int, number: int) -> lineage.ImageRecord:
        """A photo in two stores; its names are canaries, and so is its digest."""
        name = PEOPLE[person].lower()
        unit, file = f"{name}-holiday", f"{name}-{number}-{FAMILY}.jpg"
        data = os.urandom(500)
        place = self.root / "photos" / unit / file
        place.parent.mkdir(exist_ok=True)
        if person == STUCK:  # a folder where a file should be: it cannot be erased, and the store says so
            (place / "inside").mkdir(parents=True)
        else:
            place.write_bytes(data)
        key = f"upload/{name}/{FAMILY}/{number:08}"
        self.canaries.text("unit", unit)
        self.canaries.text("locator", file)
        self.canaries.text("image key", key)
        self.canaries.digest("photo digest", hashlib.sha256(data).digest())
        self.digests[person, number] = hashlib.sha256(data).hexdigest()
        digest = hashlib.sha256(data).hexdigest()
        return lineage.ImageRecord(
            key=key,
            subjects=(subject(person),),
            digest=digest,
            acquired_on=date(2026, 1, 1),
            artifacts=(
                lineage.ArtifactRecord(
                    kind=Kind.IMAGE, store="photos", unit=unit, locator=file, purposes=("account", "training"),
                    digest=digest,
                ),
                lineage.ArtifactRecord(
                    kind=Kind.EMBEDDING, store="faces", locator=str(person * PHOTOS + number),
                    unit=self.broken if person == BROKEN else self.index,
                    purposes=("training",),
                ),
            ),
        )  # fmt: skip

    def register(self, publisher: Publisher) -> None:
        keys: dict[str, tuple[str, ...]] = {}
        for source, people in (("studio", (DELETED, WITHDREW, ORDERED)), ("attic", (STUCK, BROKEN))):
            publisher.lineage(
                lineage.SourceRegistered(
                    source=source, supplier=f"{FAMILY} and Sons", agreement=EMAIL, licence=EMAIL,
                    consent_basis=lineage.ConsentBasis.EXPLICIT_CONSENT, acquired_on=date(2026, 1, 1),
                    approved_by=f"Wilhelmine {FAMILY}", declared_interests=(EMAIL,),
                )
            )  # fmt: skip
            images = tuple(self.photo(person, number) for person in people for number in range(PHOTOS))
            publisher.lineage(
                lineage.ImagesRegistered(source=source, batch_id=lineage.BatchId(str(uuid.uuid4())), images=images)
            )
            publisher.flush()
            keys[source] = tuple(image.key for image in images)
            self.until("select count(*) = %s from image", sum(map(len, keys.values())))
        publisher.lineage(
            lineage.SnapshotCommitted(
                snapshot="all-1", purpose="training", grade=Grade.DECLARED,
                members_by_key=(lineage.SourceKeys(source="studio", keys=keys["studio"]),),
            )
        )  # fmt: skip
        publisher.lineage(
            lineage.ModelRegistered(
                model="face@1", weights_digest="ab" * 32, purpose="training", trained_on=("all-1",),
                weights=lineage.WeightsLocation(store="models", unit=self.unit, locator=self.weights),
                code_digest="cd" * 32, params_digest="ef" * 32, created_at=datetime.now(UTC),
            )
        )  # fmt: skip
        publisher.flush()
        self.until("select count(*) = 1 from model")

    def disturb(self) -> int:
        """Messages that no worker can take, each naming somebody; to every topic that is read. How many."""
        envelope = dsse.sign(json.dumps({"type": EMAIL, "subject_ref": subject(0)}).encode(), EMAIL, self.key)
        typed = [
            ("content-type", b"application/json"), ("ce_specversion", b"1.0"), ("ce_id", EMAIL.encode()),
            ("ce_source", EMAIL.encode()), ("ce_type", b"expunge.request.deletion.v1"), ("ce_subject", EMAIL.encode()),
        ]  # fmt: skip
        unknown = [(name, EMAIL.encode() if name == "ce_type" else value) for name, value in typed]
        bad = (
            (EMAIL.encode(), typed),
            (json.dumps({"subject_ref": EMAIL, FAMILY: FAMILY}).encode(), typed),
            (json.dumps([subject(0)] * 3).encode(), unknown),
            (envelope, typed),
            (b"\xff\xfe" + FAMILY.encode(), [(FAMILY, FAMILY.encode())]),
        )
        read = {topic.name for worker in WORKERS.values() for topic in worker.consumes}
        producer = KafkaProducer(bootstrap_servers=self.embedded.kafka.bootstrap, acks="all")
        try:
            for topic in read:
                for value, headers in bad:
                    producer.send(topic, value, FAMILY.encode(), [*headers, ("planted", b"1")]).get(timeout=20)
        finally:
            producer.close()
        with self.publisher(dsse.SigningKey.from_seed(os.urandom(32))) as stranger:
            stranger.delete(subject(ORDERED), regulation=request.Regulation.GDPR)
            stranger.lineage(
                lineage.ImagesRegistered(
                    source=f"{FAMILY.lower()}-unknown",
                    batch_id=lineage.BatchId(str(uuid.uuid4())),
                    images=(self.photo(DELETED, 99),),
                )
            )
        return len(read) * len(bad)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.embedded.settings.database) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def until(self, query: str, *values: object) -> None:
        give_up = time.monotonic() + WAIT_SECONDS
        while not self.rows(query, *values)[0][0]:
            assert time.monotonic() < give_up, (query, self.rows("select request_id, state, data_result from request"))
            time.sleep(0.1)

    def until_said(self, worker: str, words: bytes) -> None:
        give_up = time.monotonic() + WAIT_SECONDS / 4
        while words not in (self.embedded.directory / "logs" / f"{worker}.log").read_bytes():
            assert time.monotonic() < give_up, words
            time.sleep(0.1)

    def policy(self) -> Trust:
        """What an auditor would pin."""
        return asyncio.run(trusted(self.embedded.deployment))

    async def bundles(self, asked: UUID) -> dict[str, bytes]:
        files = {}
        async with reader(self.embedded.deployment) as opened:
            for (provision,) in self.rows("select distinct provision from certificate where request_id = %s", asked):
                for name, data in (await opened.certificate(asked, Provision(provision))).items():
                    files[f"{provision} certificate: {name}"] = data
        return files


def records(bootstrap: str, topic: str) -> list[tuple[bytes, bool]]:
    """Key, headers and value of each record of a topic, as one; and whether it was planted there."""
    found = []
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        while any(consumer.position(part) < ends[part] for part in parts):
            for batch in consumer.poll(timeout_ms=1000).values():
                for one in batch:
                    headers = b"\n".join(name.encode() + b": " + (value or b"") for name, value in one.headers)
                    joined = b"\n".join((one.key or b"", headers, one.value or b""))
                    found.append((joined, ("planted", b"1") in one.headers))
    finally:
        consumer.close()
    return found


class Search:
    """Looks for the canaries, and counts where."""

    def __init__(self, story: Story) -> None:
        self.story, self.embedded = story, story.embedded
        self.found: set[str] = set()
        self.looked: Counter[str] = Counter()
        self.sized: Counter[str] = Counter()

    def look(self, kind: str, name: str, data: bytes) -> None:
        self.looked[kind] += 1
        self.sized[f"{kind} {name}"] += len(data)
        self.found |= self.story.canaries.found(f"{kind} {name}", data)

    def metrics(self) -> None:
        for worker in WORKERS:
            url = f"{self.embedded.health_url(worker)}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback, our own worker
                self.look("metrics", worker, answer.read())

    def bundles(self, asked: list[str]) -> None:
        for request_id in asked:
            for name, data in asyncio.run(self.story.bundles(UUID(request_id))).items():
                self.look("bundle", name, data)

    def topics(self) -> None:
        bootstrap = self.embedded.kafka.bootstrap
        mayhold = {topics.REQUESTS.name, topics.LINEAGE.name}
        for name in topics.TOPICS:
            theirs = [data for data, planted in records(bootstrap, name) if not planted]
            if name in mayhold:  # these may hold pseudonyms, and do: the search works
                assert any(self.story.canaries.found(name, data) for data in theirs)
                continue
            for data in theirs:
                self.look("topic", name, data)

    def tables(self) -> None:
        for table in ("outbox", "dead_letter", "retry", "task"):
            for row in self.story.rows(f"select * from {table}"):
                self.look("table", table, b"\n".join(as_bytes(one) for one in row))

    def files(self) -> None:
        for folder in ("data/log", "logs"):
            for path in (self.embedded.directory / folder).rglob("*"):
                if path.is_file():
                    self.look(folder, path.name, path.read_bytes())


def test_nothing_that_leaves_or_outlives_names_a_person(tmp_path: Path) -> None:
    root = tmp_path / "canary-home"
    root.mkdir()
    with Embedded(tmp_path / "up", audience="acme", durable=False, overrides={"log_level": "debug"}) as embedded:
        story = Story(root, embedded)
        story.prepare()
        asked = played(story)
        search = Search(story)
        search.metrics()
        search.bundles(asked)
        search.topics()
        search.tables()
        kept, shared = receipts(story, UUID(asked[0]), DELETED)
        embedded.stop_workers()
        search.files()
        secrets = Secrets(story)
        assert secrets.found() == {"keys"}, "before they are destroyed, keys are where keys are kept and nowhere else"
        secrets.destroy()
        assert not secrets.found()
        for ask in (UUID(asked[0]), UUID(asked[1]), UUID(asked[3])):
            with pytest.raises(Rejected, match="destroyed"):
                asyncio.run(story.bundles(ask))
        assert opening.verify(kept[0], story.policy(), sweep=shared).ok, "what was given out verifies as before"
    assert not search.found, "\n".join(sorted(search.found))
    assert search.looked.keys() == {"metrics", "bundle", "topic", "table", "data/log", "logs"}
    written = {name for name, size in search.sized.items() if size}
    said = {"proofs", "retraining", "dead-letter", "purge", "invalidate", "rescan", "retrain", "outcomes"}
    assert {f"topic expunge.{name}" for name in said} <= written
    assert {"table dead_letter", "logs invalidate.log"} <= written


def receipts(story: Story, asked: UUID, person: int) -> tuple[list[bytes], dict[str, bytes]]:
    """Receipts of two photos of one person, which share the sweep and its public statements, and nothing of the leaves;
    and the bundle that they were given out with."""

    async def made() -> tuple[list[bytes], dict[str, bytes]]:
        async with reader(story.embedded.deployment) as opened:
            found = [await opened.receipt(asked, Wanted(story.digests[person, number])) for number in range(2)]
            return found, await opened.certificate(asked, Provision.DATA)

    kept, shared = asyncio.run(made())
    first, second = map(json.loads, kept)
    for name in ("nonce", "artifact", "digest"):
        one, other = ({leaf[name] for leaf in found["leaves"]} for found in (first, second))
        other_than_zeros = one & other - ({"0" * 64} if name == "digest" else set())
        assert not other_than_zeros, f"two receipts of one person share a {name}"
    assert all(first[name] == second[name] for name in ("format", "issuer", "sweep", "scope"))
    public = {bytes(row[0]) for row in story.rows("select entry from log_entry")}
    for found in (first, second):
        assert all(canonical.dumps(one["envelope"]) in public for one in found["statements"])
        assert found.keys() == {"format", "issuer", "sweep", "scope", "leaves", "statements", "checkpoint"}
    return kept, shared


class Secrets:
    """Every key from which a leaf, a claim or a certificate of this deployment can be opened; where they are found."""

    def __init__(self, story: Story) -> None:
        self.story, self.keys = story, story.embedded.deployment.keys
        self.days = [row[0] for row in story.rows("select bucket from request union select bucket from sweep")]
        self.values: set[bytes] = set()
        for day, what, name in story.rows(
            "select bucket, 'sweep', sweep_id from sweep union all select bucket, 'request', request_id from request"
        ):
            bucket = self.keys.bucket(day)
            own = derive_key(bucket, what, name.bytes)
            self.values |= {bucket, own}
            if what == "sweep":
                drawn = [derive_key(own, "nonces", tree.to_bytes(2, "big")) for tree in range(8)]
                drawn += [
                    derive_key(own, "requests"),
                    *(derive_key(own, "round", n.to_bytes(4, "big")) for n in range(8)),
                ]
                self.values |= {*drawn, *(nonces(one, 4) for one in drawn), derive_key(own, "handles")}
        assert len(self.values) > 50

    def destroy(self) -> None:
        """For real: in the key store of the deployment."""
        for day in self.days:
            self.keys.destroy(day)

    def found(self) -> set[str]:
        """In which part of what is left: files of servers, workers, keys and evidence, rows, records."""
        directory = self.story.embedded.directory
        where = {"keys"} if self._opens() else set()
        # Servers' files are zeros for the most part: without them, on both sides, the search takes seconds.
        zero = b"\0"
        spelled = [
            spelling.translate(None, zero)
            for one in self.values
            for spelling in (one, one.hex().encode(), base64.b64encode(one))
        ]
        for name, data in self._left(directory):
            dense = data.translate(None, zero)
            where |= {name for one in spelled if one in dense}
        return where

    def _opens(self) -> bool:
        try:
            return all(self.keys.bucket(day) for day in self.days)
        except Rejected:
            return False

    def _left(self, directory: Path) -> Iterator[tuple[str, bytes]]:
        seen = 0
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_symlink():
                seen += 1
                yield str(path.relative_to(directory)), path.read_bytes()
        assert seen > 500, "PostgreSQL, its write-ahead log and Kafka's segments too"
        for (table,) in self.story.rows("select tablename from pg_tables where schemaname = 'public'"):
            for row in self.story.rows(f"select * from {table}"):
                yield f"table {table}", b"\n".join(as_bytes(one) for one in row)
        for name in topics.TOPICS:
            for data, _ in records(self.story.embedded.kafka.bootstrap, name):
                yield f"topic {name}", data


def played(story: Story) -> list[str]:
    """A deletion, a withdrawal and an order, done; somebody whose photos cannot be erased; messages that are refused."""
    with story.publisher() as publisher:
        story.register(publisher)
        refused = story.disturb()
        gdpr = request.Regulation.GDPR
        asked = [
            publisher.delete(subject(DELETED), regulation=gdpr),
            publisher.withdraw(subject(WITHDREW), ("training",), regulation=gdpr),
        ]
        stuck = publisher.delete(subject(STUCK), regulation=gdpr)
        publisher.flush()
        story.until("select count(*) = 2 from request where data_result is not null and request_id = any(%s)",
                    [UUID(one) for one in asked])  # fmt: skip
        deadline = datetime.now(UTC) + timedelta(days=30)
        order = publisher.order(
            request.BySource(source="studio"),
            authority=request.Authority.REGULATOR,
            reference=f"complaint of {EMAIL}",
            provisions=(
                OrderProvision(number=1, covers=Provision.DATA, deadline=deadline),
                OrderProvision(number=2, covers=Provision.MODELS, deadline=deadline, remedy=Remedy.DESTROY),
            ),
        )
        publisher.flush()
        story.until("select count(*) = 1 from sweep where state = 'awaiting-approval'")
        ((scope,),) = story.rows("select encode(scope_digest, 'hex') from sweep where state = 'awaiting-approval'")
    for number in range(2):
        key = dsse.SigningKey.from_seed(os.urandom(32))
        story.sign("approver", f"approver-{number}", key)
        with story.publisher(key) as approver:
            approver.approve(order, scope)
    story.until("select count(*) = 1 from request where data_result is not null and request_id = %s", UUID(order))
    # The model goes with the order, and so do the people's: each has both certificates.
    closed = [UUID(one) for one in (*asked, order)]
    story.until("select count(*) = 3 from request where models_result = 'complete' and request_id = any(%s)", closed)
    story.until("select count(*) = 6 from certificate c join round r using (sweep_id, round)"
                " where c.request_id = any(%s) and r.log_index < (select max(size) from log_checkpoint where note is not null)",
                closed)  # fmt: skip
    story.until("select count(*) >= %s from dead_letter", refused)
    story.until("select data_result = 'partial' from request where request_id = %s", UUID(stuck))
    with story.publisher() as publisher:
        publisher.delete(subject(BROKEN), regulation=gdpr)
    story.until_said("invalidate", b"the store refused")
    return [*asked, stuck, order]


def as_bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
