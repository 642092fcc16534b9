"""A deployment that other programs publish to and ask: workers, the read API, one publisher's key and one source."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import psycopg

from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.api import tokens
from expunge.api.tokens import Scope
from expunge.client import Publisher
from expunge.domain import dsse, lineage
from expunge.wiring import now
from expunge.wiring.up import Embedded, register_key

AUDIENCE: Final = "expunge:publishers"
SEED: Final = bytes(range(32))
KEY: Final = dsse.SigningKey.from_seed(SEED)
BACKEND: Final = "backend"
"""The name that the key is registered under."""
SOURCE: Final = "studio"
PURPOSES: Final = ("account", "training")
WAIT_SECONDS: Final = 120.0

Answer = tuple[int, dict[str, str], bytes]


class Served:
    """What a product backend sees of a deployment: its Kafka, its API; and where its photos are."""

    def __init__(self, embedded: Embedded, folder: Path) -> None:
        self.embedded = embedded
        self.folder = folder
        self.url = embedded.start_api()
        register_key(self.database, role="publisher", name=BACKEND, public=KEY.public.raw, key_id=KEY.key_id)
        with self.client() as client:
            client.lineage(
                lineage.SourceRegistered(
                    source=SOURCE, supplier="Studio (fictional)", agreement="S-1", licence="account use",
                    consent_basis=lineage.ConsentBasis.EXPLICIT_CONSENT, acquired_on=date(2024, 1, 2), approved_by="dpo",
                )
            )  # fmt: skip

    @property
    def database(self) -> str:
        return self.embedded.settings.database

    @property
    def kafka(self) -> str:
        return self.embedded.settings.kafka

    def client(self) -> Publisher:
        return Publisher(self.kafka, KEY, AUDIENCE, "test")

    def photo(self, subject_ref: str) -> dict[str, Any]:
        """A photo in the store, as the lineage event tells of it."""
        content = subject_ref.encode() * 8
        name = f"{uuid.uuid4().hex}.bin"
        (self.folder / "photos" / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        artifact = {
            "kind": "image", "store": "photos", "unit": ".", "locator": name, "purposes": PURPOSES, "digest": digest,
        }  # fmt: skip
        return {
            "key": name, "subjects": [subject_ref], "digest": digest, "acquired_on": "2024-01-02", "artifacts": [artifact],
        }  # fmt: skip

    def batch(self, *subjects: str) -> dict[str, Any]:
        """The event that registers one photo of each."""
        return {
            "type": "expunge.lineage.images.v1", "source": SOURCE, "batch_id": str(uuid.uuid4()),
            "images": [self.photo(one) for one in subjects],
        }  # fmt: skip

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def until_known(self, *subjects: str) -> None:
        query = "select count(distinct subject_ref) from image_subject where subject_ref = any(%s)"
        until(lambda: self.rows(query, list(subjects)) == [(len(subjects),)], "images were not registered")

    def until_certified(self, *requests: str) -> None:
        """Raises for one that was refused."""

        def all_are() -> bool:
            refused = self.rows("select code from answer where request_id = any(%s::uuid[])", list(requests))
            assert refused == []
            query = "select count(*) from request where request_id = any(%s::uuid[]) and data_result = 'complete'"
            return self.rows(query, list(requests)) == [(len(requests),)]

        until(all_are, "not every request was certified")

    def token(self, *scopes: Scope, publisher: str | None = BACKEND) -> str:
        async def made() -> str:
            async with PostgresLedger(self.database).opened() as ledger:
                created = await tokens.create(
                    ledger, name="t", scopes=scopes, publisher=publisher, at=now(), until=None
                )
            return created[1]

        return asyncio.run(made())

    def ask(self, token: str, path: str, data: bytes | None = None, **headers: str) -> Answer:
        """Status, headers by lower-case name, body. An underscore in a header's name stands for a hyphen."""
        given = {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): one for name, one in headers.items()}}
        asked = urllib.request.Request(self.url + path, data, given)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - loopback
                return answer.status, _lower(dict(answer.headers)), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(dict(error.headers)), error.read()

    def proof(self, token: str, path: str, data: bytes | None = None, **headers: str) -> Answer:
        """As `ask`, again and again while no published checkpoint covers the proof: the commit that certifies a request
        comes before the checkpoint over what it logged."""
        answers: list[Answer] = []

        def there() -> bool:
            answers.append(self.ask(token, path, data, **headers))
            return answers[-1][0] != HTTPStatus.SERVICE_UNAVAILABLE

        until(there, "no checkpoint covers the proof")
        return answers[-1]

    def read(self, token: str, path: str, **headers: str) -> Any:
        """The JSON of an answer that must be 200."""
        status, _, body = self.ask(token, path, None, **headers)
        assert status == 200, body
        return json.loads(body)


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def until(there: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_SECONDS
    while not there():
        assert time.monotonic() < give_up, what
        time.sleep(0.1)
