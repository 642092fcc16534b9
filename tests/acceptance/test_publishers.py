"""Any language can publish: a Go and a JavaScript program, written from schemas/ alone, beside our Python client. Real
servers and workers; what each asks for ends in a certificate that verifies offline. A language that is not on this machine
is skipped aloud."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.codec import has_gzip, has_lz4, has_snappy, has_zstd
from kafka import KafkaProducer

from expunge import verify
from expunge.api.tokens import Scope
from expunge.client import Drawn
from expunge.domain import dsse, lineage, request
from expunge.domain.cloudevents import to_kafka
from expunge.domain.request import Regulation, SubjectRef
from expunge.domain.topics import LINEAGE, REQUESTS
from tests.acceptance.served import AUDIENCE, KEY, SEED, SOURCE, Served
from tests.thirdparty.test_bundles import installed, needs

pytestmark = [pytest.mark.thirdparty, pytest.mark.timeout(600)]

PROGRAMS: Final = Path(__file__).parent / "publishers"
VECTORS: Final = Path(__file__).parents[2] / "schemas" / "vectors" / "partition.json"
CODECS: Final = ("gzip", "snappy", "lz4", "zstd")

Message = dict[str, Any]
Send = Callable[[Served, list[Message]], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Send:
    needs("go")
    built = tmp_path_factory.mktemp("go-publisher") / "publisher"
    # Unoptimised: a Kafka client takes half the time to compile.
    flags = ("-trimpath", "-gcflags=all=-N -l", "-ldflags=-s -w")
    installed("go", "build", *flags, "-o", built, ".", folder=PROGRAMS / "go")
    return partial(_sent, (str(built),))


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Send:
    needs("npm")
    folder = tmp_path_factory.mktemp("node-publisher")
    for name in ("package.json", "package-lock.json", "publish.mjs"):
        shutil.copy(PROGRAMS / "node" / name, folder)
    installed("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=folder)
    return partial(_sent, ("node", str(folder / "publish.mjs")))


@pytest.fixture(params=["go", "node"])
def publisher(request: pytest.FixtureRequest) -> tuple[str, Send]:
    return request.param, request.getfixturevalue(request.param)


def _sent(program: tuple[str, ...], served: Served, messages: list[Message]) -> list[dict[str, Any]]:
    key = served.folder / "publisher.key"
    key.write_text(SEED.hex() + "\n", encoding="ascii")
    key.chmod(0o600)
    done = subprocess.run(
        [*program, served.kafka, AUDIENCE, str(key)],
        input="".join(json.dumps(one) + "\n" for one in messages),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def person(*names: str) -> SubjectRef:
    return SubjectRef(f"k1.{'-'.join(names)}-a-person-of-this-test")


def told(mode: str, batch: dict[str, Any]) -> Message:
    return {"mode": mode, "topic": LINEAGE.name, "key": SOURCE, "data": batch}


def asking(mode: str, subject_ref: str, kind: str, **more: Any) -> Message:
    data = {"type": f"expunge.request.{kind}.v1", "subject_ref": subject_ref, "regulation": "gdpr", **more}
    return {"mode": mode, "topic": REQUESTS.name, "key": subject_ref, "data": data}


def certificates_verify(served: Served, folder: Path, *requests: str) -> None:
    served.until_certified(*requests)
    token = served.token(Scope.PROOFS_READ)
    for one in requests:
        status, _, data = served.proof(token, f"/requests/{one}/certificates/data")
        assert status == 200, data
        (folder / f"{one}.zip").write_bytes(data)
        assert verify.verify(folder / f"{one}.zip", served.embedded.deployment.signers.trust([])).ok


def test_what_a_program_in_another_language_publishes_ends_in_a_certificate(
    served: Served, publisher: tuple[str, Send], tmp_path: Path
) -> None:
    language, send = publisher
    modes = ("binary", "structured")
    people = {mode: [person(language, mode, what) for what in ("leaves", "withdraws")] for mode in modes}
    photos = {mode: served.batch(*people[mode]) for mode in modes}
    send(served, [told(mode, photos[mode]) for mode in modes])
    served.until_known(*(one for both in people.values() for one in both))
    asked = []
    for mode, (leaving, withdrawing) in people.items():
        withdrawal = asking(mode, withdrawing, "consent-withdrawal", purposes=["training", "account"])
        asked += [asking(mode, leaving, "deletion"), withdrawal]
    certificates_verify(served, tmp_path, *(one["id"] for one in send(served, asked)))
    left = [one["key"] for mode in modes for one in photos[mode]["images"]]
    assert [name for name in left if (served.folder / "photos" / name).exists()] == []


def test_so_does_what_our_client_publishes(served: Served, tmp_path: Path) -> None:
    leaving, withdrawing = person("python", "leaves"), person("python", "withdraws")
    with served.client() as client:
        client.lineage(lineage.parse_lineage(json.dumps(served.batch(leaving, withdrawing)).encode()))
        client.flush()
        served.until_known(leaving, withdrawing)
        asked = client.delete(leaving, regulation=Regulation.GDPR)
        other = client.withdraw(withdrawing, ("training", "account"), regulation=Regulation.GDPR)
    certificates_verify(served, tmp_path, asked, other)


def test_a_key_goes_to_one_partition_in_every_language(served: Served, go: Send, node: Send) -> None:
    vectors = [one for one in json.loads(VECTORS.read_text())["keys"] if one["key_text"]]
    messages = [
        {"mode": "binary", "topic": LINEAGE.name, "key": one["key_text"], "data": {"type": "expunge.unknown.v1"}}
        for one in vectors
    ]
    expected = [one["partition_of_12"] for one in vectors]
    for send in (go, node):
        assert [one["partition"] for one in send(served, messages)] == expected
    producer = KafkaProducer(bootstrap_servers=served.kafka)
    try:
        sent = [producer.send(LINEAGE.name, b"{}", one["key_text"].encode()) for one in vectors]
        assert [one.get(timeout=30).partition for one in sent] == expected
    finally:
        producer.close()


def record(subject_ref: SubjectRef) -> tuple[str, dict[str, Any]]:
    """A deletion as a record: its id, and what a producer is given."""
    drawn = Drawn.now()
    asked = request.DeletionRequested(
        id=drawn.id, audience=AUDIENCE, issued_at=drawn.issued_at, expires_at=drawn.expires_at, nonce=drawn.nonce,
        subject_ref=subject_ref, regulation=Regulation.GDPR, received_at=drawn.issued_at,
    )  # fmt: skip
    envelope = dsse.sign(request.dump_request(asked), request.PAYLOAD_TYPE, KEY)
    key, value, headers = to_kafka(request.to_cloudevent(asked, envelope, "urn:expunge:publisher:test"))
    return drawn.id, {"key": key, "value": value, "headers": headers}


def known(served: Served, *people: SubjectRef) -> None:
    with served.client() as client:
        client.lineage(lineage.parse_lineage(json.dumps(served.batch(*people)).encode()))
    served.until_known(*people)


def test_a_record_in_a_partition_that_is_not_its_keys_is_taken_all_the_same(served: Served, tmp_path: Path) -> None:
    somebody = person("other", "partition")
    known(served, somebody)
    request_id, given = record(somebody)
    producer = KafkaProducer(bootstrap_servers=served.kafka, acks="all")
    try:
        right = producer.send(REQUESTS.name, **given).get(timeout=30).partition
        wrong = (right + 1) % len(producer.partitions_for(REQUESTS.name))
        assert producer.send(REQUESTS.name, **given, partition=wrong).get(timeout=30).partition == wrong
        other_id, given = record(somebody)
        producer.send(REQUESTS.name, **given, partition=wrong).get(timeout=30)
    finally:
        producer.close()
    certificates_verify(served, tmp_path, request_id, other_id)


def test_records_of_every_compression_that_kafka_has_are_read(served: Served, tmp_path: Path) -> None:
    readable: Mapping[str, bool] = dict(zip(CODECS, (has_gzip(), has_snappy(), has_lz4(), has_zstd()), strict=True))
    assert all(readable.values()), readable
    people = {codec: person("compressed", codec) for codec in CODECS}
    known(served, *people.values())
    records = {codec: record(somebody) for codec, somebody in people.items()}

    async def publish() -> None:
        for codec, (_, given) in records.items():
            async with AIOKafkaProducer(
                bootstrap_servers=served.kafka, compression_type=codec, acks="all", client_id=f"test-{codec}"
            ) as producer:
                await producer.send_and_wait(REQUESTS.name, **given)

    asyncio.run(publish())
    certificates_verify(served, tmp_path, *(request_id for request_id, _ in records.values()))
