"""A catalogue to register into: handlers on a real database, with small lineage events for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

import psycopg
from pyroaring import BitMap64

from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.domain import events, lineage
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.words import Grade, Kind, Relation, Role
from expunge.ports import Delivery, Refused
from expunge.stages.register import Register
from tests.scopes import OneBucket, SeedSigner

AT = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
KEY = b"s" * 32
SPACE = UUID("99999999-9999-4999-8999-999999999999")
REGISTRAR = SeedSigner(Role.REGISTER, 3)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def subject(number: int) -> Any:
    return f"k1.subject{number:012d}"


def source(name: str = "studio") -> lineage.SourceRegistered:
    return lineage.SourceRegistered(
        source=name, supplier="S", agreement="A-1", licence="L", consent_basis=lineage.ConsentBasis.CONTRACT,
        acquired_on=date(2020, 1, 1), approved_by="role:data",
    )  # fmt: skip


def artifact(key: str, kind: Any = Kind.IMAGE, purposes: Sequence[str] = ("training",)) -> lineage.ArtifactRecord:
    return lineage.ArtifactRecord(
        kind=kind, store="photos", unit=f"{kind}s", locator=f"{key}.jpg", purposes=tuple(purposes), digest=digest(key)
    )


def image(key: str, *people: int, **options: Any) -> lineage.ImageRecord:
    artifacts = options.pop("artifacts", (artifact(key),))
    return lineage.ImageRecord(
        key=key, subjects=tuple(subject(one) for one in people), digest=digest(options.pop("content", key)),
        acquired_on=date(2020, 1, 2), artifacts=artifacts,
    )  # fmt: skip


def images(*records: lineage.ImageRecord, source: str = "studio", batch: str | None = None) -> lineage.ImagesRegistered:
    batch_id = lineage.BatchId(batch or str(uuid4()))
    return lineage.ImagesRegistered(source=source, batch_id=batch_id, images=records)


def committed(name: str, keys: Sequence[str], purpose: str = "training", **options: Any) -> lineage.SnapshotCommitted:
    given = {"grade": Grade.COMMITTED, **options}
    return lineage.SnapshotCommitted(
        snapshot=name, purpose=purpose, members_by_key=(lineage.SourceKeys(source="studio", keys=tuple(keys)),), **given
    )


def model(name: str, trained_on: Sequence[str], **options: Any) -> lineage.ModelRegistered:
    parents = tuple(
        lineage.ModelParent(model=parent, relation=relation) for parent, relation in options.pop("parents", ())
    )
    place = lineage.WeightsLocation(store="models", unit="files", locator=name)
    given = {"purpose": "training", "weights": place, "metrics": {"auc": 0.5, "count": 3.0}, **options}
    return lineage.ModelRegistered(
        model=name, weights_digest=digest(f"weights {name}"), trained_on=tuple(trained_on), parents=parents,
        code_digest=digest("code"), params_digest=digest("params"), created_at=AT, **given,
    )  # fmt: skip


def delivery(event: lineage.Lineage | events.Event, number: int = 0) -> Delivery:
    name = str(uuid5(SPACE, event.model_dump_json()))
    cloud: CloudEvent
    if isinstance(event, tuple(lineage.LINEAGE_TYPES.values())):
        cloud = lineage.to_cloudevent(event, name, "test")  # type: ignore[arg-type] # just checked
        return Delivery("expunge.lineage", 0, number, cloud)
    cloud = events.to_cloudevent(event, name, "test")  # type: ignore[arg-type] # the other kind
    return Delivery("expunge.retrain", 0, number, cloud)


@dataclass
class Catalogue:
    """One database and its register handler."""

    dsn: str
    ledger: PostgresLedger
    keys: OneBucket = field(default_factory=OneBucket)
    ticks: int = 0

    def __post_init__(self) -> None:
        self.register = Register(keys=self.keys, signer=REGISTRAR, clock=self.clock, suppression_key=KEY)

    def clock(self) -> datetime:
        """A microsecond later at each call."""
        self.ticks += 1
        return AT + timedelta(microseconds=self.ticks)

    async def take(self, *taken: lineage.Lineage) -> Sequence[Refused]:
        """Handle lineage events as one batch."""
        acted = await self.register.act([delivery(event, number) for number, event in enumerate(taken)])
        async with self.ledger.transaction() as tx:
            return await self.register.commit(acted, tx)

    def sql(self, query: str, *parameters: object) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def said(self, kind: type[Any]) -> list[Any]:
        """Events of a type in the outbox, in order."""
        wanted = kind.model_fields["type"].default
        rows = self.sql("select value from outbox order by id")
        return [events.parse_event(bytes(value)) for (value,) in rows if json.loads(value)["type"] == wanted]

    def logged(self) -> list[Any]:
        """Predicates in the log, in order."""
        from expunge.domain import dsse, statement

        rows = self.sql("select entry from log_entry order by index")
        return [statement.parse(dsse.parse(bytes(entry)).payload).predicate for (entry,) in rows]

    def ordinals(self, *keys: str) -> list[int]:
        return [self.sql("select ordinal from image where key = %s", key)[0][0] for key in keys]

    def bitmap(self, query: str, *parameters: object) -> set[int]:
        return set(BitMap64.deserialize(self.sql(query, *parameters)[0][0]))


FINE_TUNED = Relation.FINE_TUNED_FROM
