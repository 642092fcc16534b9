"""Many people's deletions, from request to data certificate, against the same erasures done bare."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from expunge.domain import dsse, topics
from expunge.domain.request import PAYLOAD_TYPE, DeletionRequested, parse_request
from tests.bench.corpus import FACES, PER_PERSON, PHOTOS, Corpus, faiss
from tests.bench.orders import rewrite
from tests.bench.rig import FLOOR_IN, FLOOR_OUT, WARM, Proofs, Publishing, Rig, seed_of
from tests.bench.timeline import Requested, stages

WINDOW_SECONDS: Final = 0.02
_SPAWN: Final = get_context("spawn")


def run(rig: Rig, corpus: Corpus, people: range, *, publishers: int, rate: float | None, name: str) -> dict[str, Any]:
    """One deletion per person of `people` through the workers, at once or at `rate` per second."""
    subjects = [corpus.subject(person) for person in people]
    proofs = Proofs(rig.kafka, topics.PROOFS)
    try:
        with (
            Publishing(rig.kafka, publishers) as publishing,
            rig.measured(name, {"publishers": publishing.pid}) as measured,
        ):
            publishing.send(subjects, rate)
            sent = publishing.sent()
            proofs.wait(list(sent), rig=rig, seconds=60 + len(subjects) / 5)
    finally:
        proofs.close()
    found = _figures(sent, proofs)
    if left := set(found.pop("results")) - {"complete"}:
        raise RuntimeError(f"expected complete erasures, got {left}")
    requests = [Requested(one, at, proofs.certified[one][0]) for one, at in sent.items() if one in proofs.certified]
    return measured | found | {"cpu_each": sum(measured["cpu"].values()) / len(sent)} | stages(rig.database, requests)


def _figures(sent: dict[str, float], proofs: Proofs) -> dict[str, Any]:
    """What came of requests that were due at the times in `sent`. A lost one has no certificate when nobody waits longer."""
    seen = [proofs.certified[one] for one in sent if one in proofs.certified]
    taken = np.array([at for at, _ in seen]) - np.array([at for one, at in sent.items() if one in proofs.certified])
    wall = max(at for at, _ in seen) - min(sent.values())
    p50, p99 = np.percentile(taken, [50, 99]).tolist()
    return {
        "requests": len(sent),
        "lost": len(sent) - len(seen),
        "wall": wall,
        "rate": len(sent) / wall,
        "publishing": max(sent.values()) - min(sent.values()),
        "p50": p50,
        "p99": p99,
        "results": sorted({result for _, result in seen}),
    }


def floor(
    rig: Rig, corpus: Corpus, people: range, *, root: Path, dsn: str, publishers: int, sweep: int
) -> dict[str, Any]:
    """The same people on a copy: the same messages, published alike, to one bare process that erases in batches of up
    to `sweep` requests."""
    subjects = [corpus.subject(person) for person in people]
    end, other = _SPAWN.Pipe()
    process = _SPAWN.Process(
        target=_bare, args=(other, rig.kafka, dsn, str(root), corpus, sweep, len(subjects)), daemon=True
    )
    process.start()
    proofs = Proofs(rig.kafka, FLOOR_OUT)
    try:
        if end.recv() != "ready":
            raise RuntimeError("the floor did not start")
        assert process.pid is not None
        with (
            Publishing(rig.kafka, publishers, floor=True) as publishing,
            rig.measured("floor-people", {"publishers": publishing.pid, "floor": process.pid}) as measured,
        ):
            publishing.send(subjects)
            sent = publishing.sent()
            proofs.wait(list(sent), rig=rig, seconds=60 + len(subjects) / 5)
        end.send("done")
    finally:
        proofs.close()
        process.join(10)
        process.kill()
    found = _figures(sent, proofs)
    del found["results"]
    cpu = {name: measured["cpu"].get(name, 0.0) for name in ("floor", "postgres", "kafka", "publishers")}
    return found | {"sweep": sweep, "cpu": cpu, "cpu_each": sum(cpu.values()) / len(sent)}


def _bare(end: Connection, kafka: str, dsn: str, root: str, corpus: Corpus, sweep: int, count: int) -> None:
    """Nothing but the work itself: verify, unlink, delete rows in order, remove vectors, sign, answer."""
    key = dsse.SigningKey.from_seed(seed_of("floor"))
    publisher = dsse.SigningKey.from_seed(seed_of("publisher")).public
    path = Path(root) / FACES / corpus.index
    bare = _Bare(corpus, Path(root), faiss.read_index(str(path)), path)
    consumer = KafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False, fetch_max_wait_ms=20)
    parts = [TopicPartition(FLOOR_IN.name, number) for number in range(FLOOR_IN.partitions)]
    consumer.assign(parts)
    consumer.seek_to_end(*parts)
    for part in parts:
        consumer.position(part)
    producer = KafkaProducer(bootstrap_servers=kafka, enable_idempotence=True, acks="all", linger_ms=5)
    producer.send(WARM.name, b"warm")
    producer.flush()
    with psycopg.connect(dsn) as connection:
        connection.execute("select ordinal, key from image limit 1")
        ordinals: dict[str, int] = dict(
            connection.execute(
                "select i.key, i.ordinal from image i join source using (source_no) where name = %s", (corpus.source,)
            ).fetchall()
        )
        connection.commit()
        end.send("ready")
        done = 0
        while done < count:
            batch = _take(consumer, sweep)
            asked = []
            for record in batch:
                one = parse_request(dsse.verify(dsse.parse(record.value), publisher, PAYLOAD_TYPE))
                assert isinstance(one, DeletionRequested)
                asked.append(one)
            if not batch:
                continue
            bare.erase([one.subject_ref for one in asked], ordinals, connection)
            for one in asked:
                producer.send(
                    FLOOR_OUT.name, dsse.sign(b"erased " + one.id.encode(), "text/plain", key), one.id.encode()
                )
            producer.flush()
            done += len(batch)
        end.recv()  # what it took is read before it ends
    producer.close()
    consumer.close()


def _take(consumer: Any, most: int) -> list[Any]:
    batch: list[Any] = []
    deadline = None
    while len(batch) < most and (deadline is None or time.monotonic() < deadline):
        wait = 100 if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
        for records in consumer.poll(timeout_ms=wait, max_records=most - len(batch)).values():
            batch += records
        if batch and deadline is None:
            deadline = time.monotonic() + WINDOW_SECONDS
        elif deadline is None:
            break
    return batch


class _Bare:
    def __init__(self, corpus: Corpus, root: Path, index: Any, path: Path) -> None:
        self._people = {corpus.subject(person): person for person in range(corpus.images // PER_PERSON)}
        self._corpus = corpus
        self._root = root
        self._index = index
        self._path = path

    def erase(self, subjects: Sequence[str], ordinals: dict[str, int], connection: psycopg.Connection) -> None:
        people = sorted(self._people[one] for one in subjects)
        images = [person * PER_PERSON + number for person in people for number in range(PER_PERSON)]
        unit, directory = None, -1
        for name, locator in self._corpus.places(images):
            if name != unit:
                if directory >= 0:
                    os.close(directory)
                unit, directory = name, os.open(self._root / PHOTOS / name, os.O_RDONLY | os.O_DIRECTORY)
            os.unlink(locator, dir_fd=directory)
        os.close(directory)
        gone = sorted(ordinals[f"{image:08d}"] for image in images)
        for table in ("artifact", "image", "image_subject"):
            connection.execute(f"delete from {table} where ordinal = any(%s::bigint[])", (gone,), binary=True)
        connection.commit()
        rewrite(self._index, np.array(images, np.int64), self._path)
