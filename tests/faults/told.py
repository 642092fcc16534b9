"""A run on real servers as a history (`tests/history/FORMAT.md`): what the publisher sent, what the stores held, what the
topics, the ledger and the log said. Written by the test's side alone; judged by a checker that knows none of the product.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from kafka import KafkaConsumer, TopicPartition
from psycopg import sql

from expunge.adapters.stores.faiss import faiss
from expunge.client import Publisher
from expunge.domain import dsse, topics
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.trust import Trust
from tests.history.judge import check
from tests.history.recorder import Recorder

STORES: Final = ("photos", "shards", "faces", "vectors", "models")


class ToldPublisher(Publisher):
    """Writes what it is about to send, and what was acknowledged."""

    recorder: Recorder | None = None
    signer: str = ""
    sent: list[str]

    def tell(self, recorder: Recorder, signer: str) -> None:
        """From now on."""
        self.recorder, self.signer, self.sent = recorder, signer, []

    def _send(self, topic: topics.Topic, event: CloudEvent) -> None:
        if self.recorder is not None and topic is topics.REQUESTS:
            body = json.loads(dsse.parse(event.data).payload)
            self.recorder.published(body, signer=self.signer)
            self.sent.append(body["id"])
        super()._send(topic, event)

    def flush(self, seconds: float = 30.0) -> None:
        super().flush(seconds)
        if self.recorder is not None:
            sent, self.sent = self.sent, []
            for one in sent:
                self.recorder.acknowledged(one)


def artifact_of(store: str, image: str) -> str:
    return f"{store}/{image}"


class Told:
    """Records one deployment. `places`: by store, the artifact of each (unit, locator)."""

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.recorder = Recorder.to_file(path, who="test")
        self.recorder.meta(run)
        self._places: dict[str, dict[tuple[str, str], str]] = {store: {} for store in STORES}

    def trust(self, trusted: Trust, log_key: bytes) -> None:
        """What an auditor pins."""
        keys = [(one.role.value, one.store, dsse.PublicKey.from_base64(one.public).raw) for one in trusted.keys]
        self.recorder.trust(origin=trusted.origin, log_key=log_key, keys=keys)

    def image(
        self,
        image: str,
        source: str,
        day: str,
        subject: str,
        places: Iterable[tuple[str, str, str, str, tuple[str, ...]]],
    ) -> list[str]:
        """One image and its artifacts: (kind, store, unit, locator, purposes)."""
        made = []
        for kind, store, unit, locator, purposes in places:
            artifact = artifact_of(store, image)
            self._places[store][unit, locator] = artifact
            self.recorder.artifact(
                artifact, store=store, unit=unit, locator=locator, kind=kind, image=image, source=source, day=day,
                subjects=[subject], purposes=purposes,
            )  # fmt: skip
            made.append(artifact)
        return made

    def model(self, model: str, unit: str, locator: str, images: Iterable[str]) -> None:
        artifact = artifact_of("models", model)
        self._places["models"][unit, locator] = artifact
        self.recorder.artifact(
            artifact,
            store="models",
            unit=unit,
            locator=locator,
            kind="model",
            purposes=["training"],
            images=list(images),
        )
        self.recorder.insert([artifact])

    def finish(self, small: Any) -> list[str]:
        """Everything at the end, and what the judge says."""
        recorder = self.recorder
        recorder.phase("end")
        for header, value in _events(small.kafka):
            recorder.event(header["ce_id"].decode(), header["ce_type"].decode(), value)
        recorder.ledger(
            small.sql("select request_id::text, state, data_result, models_result from request"), complete=True
        )
        recorder.dead(small.sql("select event_id, reason from dead_letter"))
        log = small.embedded.settings.data / "log"
        recorder.log(0, [bytes(row[0]) for row in small.sql("select entry from log_entry order by index")])
        recorder.checkpoint((log / "checkpoint").read_bytes())
        for request, provision in small.announced():
            recorder.certificate(small.bundle(request, provision)["certificate.json"])
        for store, found in self.contents(small).items():
            recorder.contents(store, found)
        return [str(one) for one in check(self.path.read_bytes().splitlines())]

    def contents(self, small: Any) -> Mapping[str, list[str]]:
        """What each store holds, read behind everybody's back."""
        found: dict[str, set[tuple[str, str]]] = {store: set() for store in STORES}
        for store in ("photos", "models"):
            root = small.product / store
            found[store] = {
                (path.parent.relative_to(root).as_posix(), path.name) for path in root.rglob("*") if path.is_file()
            }
        for path in (small.product / "shards").glob("*.tar"):
            with tarfile.open(path) as tar:
                found["shards"] |= {(path.name, name.rpartition(".")[0]) for name in tar.getnames()}
        for path in (small.product / "faces").glob("*.index"):
            index = faiss.read_index(str(path))
            found["faces"] |= {(path.name, str(one)) for one in faiss.vector_to_array(index.id_map).tolist()}
        with psycopg.connect(small.product_dsn) as connection:
            rows = connection.execute(sql.SQL("select id from {}").format(sql.Identifier("face"))).fetchall()
        found["vectors"] = {("face", str(row[0])) for row in rows}
        return {
            store: [self._places[store][one] for one in places if one in self._places[store]]
            for store, places in found.items()
        }


def _events(bootstrap: str) -> list[tuple[dict[str, bytes], bytes]]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        parts = [
            TopicPartition(topic.name, number)
            for topic in (topics.PROOFS, topics.RETRAINING, topics.DEAD_LETTER)
            for number in range(topic.partitions)
        ]
        consumer.assign(parts)
        ends = consumer.end_offsets(parts)
        found = []
        while any(consumer.position(part) < ends[part] for part in parts):
            for records in consumer.poll(timeout_ms=500).values():
                found += [(dict(one.headers), one.value) for one in records]
        return found
    finally:
        consumer.close()
