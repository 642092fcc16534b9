"""What products tell Expunge about their data: sources, images, artifacts, snapshots, models. Plain CloudEvents data.

These events are not signed: the catalogue that they fill is committed to by logged batch roots, and they can only add.
They hold pseudonyms and locators, so nothing outside `register` keeps them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, NewType, Self, TypeAlias, assert_never

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from expunge.domain.cloudevents import CloudEvent
from expunge.domain.errors import Rejected
from expunge.domain.limits import IMAGES_PER_EVENT
from expunge.domain.request import (
    SUBJECT_REF,
    UUID,
    Day,
    Digest,
    Message,
    Purpose,
    Purposes,
    Reference,
    SourceName,
    SubjectRef,
    Time,
    Unique,
    dump_as,
    parse_as,
    types_of,
)
from expunge.domain.words import Grade, Kind, Relation

LOCATOR_CHARS: Final = 1024
"""Longest unit or locator, characters (an S3 key is at most 1,024 bytes)."""
ROARING_CHARS: Final = 900_000
"""Longest base64 bitmap in one event, characters; larger snapshots go by `expunge catalogue import`."""
KEYS_PER_SOURCE: Final = 10_000
"""Most image keys listed for one source of a snapshot."""

BatchId = NewType("BatchId", str)
JobId = NewType("JobId", str)

ImageKey = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""The product's own id of an image, unique within its source."""
StoreName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Place = Annotated[str, StringConstraints(min_length=1, max_length=LOCATOR_CHARS, pattern=r"^[^\x00]+$")]
"""A unit, or a locator inside one."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}@[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
"""Name and version: `face@1`."""
SnapshotName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
ArtifactKind = Literal[Kind.IMAGE, Kind.DERIVATIVE, Kind.SHARD_ROW, Kind.EMBEDDING]
"""Every kind but a model, which has an event of its own."""


class ConsentBasis(StrEnum):
    """On what ground a source's images may be used, as recorded at acquisition."""

    EXPLICIT_CONSENT = "explicit-consent"
    CONTRACT = "contract"
    LEGITIMATE_INTEREST = "legitimate-interest"
    NONE_RECORDED = "none-recorded"


class SourceRegistered(Message):
    """Where images come from, recorded before the first of them. `approved_by`: a role or an opaque id, never a name.
    `declared_interests`: what those who brought or approved the source gain by it."""

    type: Literal["expunge.lineage.source.v1"] = "expunge.lineage.source.v1"
    source: SourceName
    supplier: Reference
    agreement: Reference
    licence: Reference
    consent_basis: ConsentBasis
    acquired_on: Day
    approved_by: Reference
    declared_interests: Annotated[tuple[Reference, ...], Field(max_length=16)] = ()


class ArtifactRecord(Message):
    """One erasable thing of an image, where it is and why it is kept. `digest`: SHA-256 of its content at ingest."""

    kind: ArtifactKind
    store: StoreName
    unit: Place
    locator: Place
    purposes: Purposes
    digest: Digest | None = None


class ImageRecord(Message):
    """One photo, the people in it, and every artifact made of it so far."""

    key: ImageKey
    subjects: Annotated[tuple[Annotated[SubjectRef, SUBJECT_REF], ...], Field(max_length=16), Unique()]
    digest: Digest
    acquired_on: Day
    artifacts: Annotated[tuple[ArtifactRecord, ...], Field(min_length=1, max_length=64), Unique()]


class ImagesRegistered(Message):
    """A batch of new images of one source. All are taken or none."""

    type: Literal["expunge.lineage.images.v1"] = "expunge.lineage.images.v1"
    source: SourceName
    batch_id: Annotated[BatchId, UUID]
    images: Annotated[tuple[ImageRecord, ...], Field(min_length=1, max_length=IMAGES_PER_EVENT)]

    @model_validator(mode="after")
    def _no_key_twice(self) -> Self:
        if len({image.key for image in self.images}) != len(self.images):
            raise PydanticCustomError("repeated_key", "expected no image key twice")
        return self


class AddedArtifact(ArtifactRecord):
    """An artifact made later of an image that is registered."""

    source: SourceName
    image_key: ImageKey


class ArtifactsAdded(Message):
    """Later derivatives of registered images: embeddings, thumbnails, shard rows."""

    type: Literal["expunge.lineage.artifacts.v1"] = "expunge.lineage.artifacts.v1"
    batch_id: Annotated[BatchId, UUID]
    artifacts: Annotated[tuple[AddedArtifact, ...], Field(min_length=1, max_length=IMAGES_PER_EVENT), Unique()]


class SourceKeys(Message):
    """Images of one source."""

    source: SourceName
    keys: Annotated[tuple[ImageKey, ...], Field(min_length=1, max_length=KEYS_PER_SOURCE), Unique()]


class SnapshotCommitted(Message):
    """An immutable set of images that models are trained on. Members by key, or as a bitmap of ordinals in the portable
    Roaring format (https://github.com/RoaringBitmap/RoaringFormatSpec). `root`: what the trainer computed, if it did.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("members_by_key", "members_roaring")
            ]
        }
    )

    type: Literal["expunge.lineage.snapshot.v1"] = "expunge.lineage.snapshot.v1"
    snapshot: SnapshotName
    purpose: Purpose
    parent: SnapshotName | None = None
    members_by_key: Annotated[tuple[SourceKeys, ...], Field(min_length=1, max_length=256)] | None = None
    members_roaring: (
        Annotated[
            str,
            StringConstraints(
                max_length=ROARING_CHARS, pattern=r"^([A-Za-z0-9+/]{4})+([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
            ),
        ]
        | None
    ) = None
    root: Digest | None = None
    grade: Grade

    @model_validator(mode="after")
    def _members_are_given_once(self) -> Self:
        if (self.members_by_key is None) == (self.members_roaring is None):
            raise PydanticCustomError("members", "expected one of members_by_key and members_roaring")
        if self.members_by_key and len({part.source for part in self.members_by_key}) != len(self.members_by_key):
            raise PydanticCustomError("repeated_source", "expected no source twice")
        if self.parent == self.snapshot:
            raise PydanticCustomError("own_parent", "expected another snapshot as parent")
        return self


class WeightsLocation(Message):
    """Where a model's file is, so that its destruction can be verified."""

    store: StoreName
    unit: Place
    locator: Place


class ModelParent(Message):
    """A model that this one came from."""

    model: ModelName
    relation: Relation


class ModelRegistered(Message):
    """A trained model and everything it came from. A model that names no snapshot is `unknown`, never clean.
    `replaces` and `job_id`: set when it answers a retraining job."""

    type: Literal["expunge.lineage.model.v1"] = "expunge.lineage.model.v1"
    model: ModelName
    weights_digest: Digest
    weights: WeightsLocation | None = None
    purpose: Purpose
    trained_on: Annotated[tuple[SnapshotName, ...], Field(max_length=64), Unique()]
    parents: Annotated[tuple[ModelParent, ...], Field(max_length=64), Unique()] = ()
    metrics: Annotated[dict[MetricName, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=64)] = {}  # noqa: RUF012 - pydantic copies it, and the model is frozen
    replaces: ModelName | None = None
    job_id: Annotated[JobId, UUID] | None = None
    code_digest: Digest
    params_digest: Digest
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=2**53 - 1)], ...], Field(max_length=16)] = ()
    created_at: Time

    @model_validator(mode="after")
    def _not_its_own_ancestor(self) -> Self:
        if self.model in (self.replaces, *(parent.model for parent in self.parents)):
            raise PydanticCustomError("own_parent", "expected other models as parents and as the one replaced")
        return self


Lineage: TypeAlias = Annotated[
    SourceRegistered | ImagesRegistered | ArtifactsAdded | SnapshotCommitted | ModelRegistered,
    Field(discriminator="type"),
]
LINEAGE_ADAPTER: Final[TypeAdapter[Lineage]] = TypeAdapter(Lineage)
LINEAGE_TYPES: Final = types_of(Lineage)


def parse_lineage(data: bytes) -> Lineage:
    """Raises `Rejected`: `malformed`, `unknown-type` or `unknown-version`."""
    return parse_as(LINEAGE_ADAPTER, data)


def dump_lineage(event: Lineage) -> bytes:
    """RFC 8785."""
    return dump_as(event)


def partition_key(event: Lineage) -> str:
    """The Kafka key: what is said of one source stays in order, so that its registration precedes its images."""
    match event:
        case SourceRegistered() | ImagesRegistered():
            return event.source
        case ArtifactsAdded():
            return event.artifacts[0].source
        case SnapshotCommitted():
            return event.snapshot
        case ModelRegistered():
            return event.model
        case _:
            assert_never(event)


def to_cloudevent(event: Lineage, event_id: str, source: str) -> CloudEvent:
    """The event as a record; `event_id` is what `register` removes repeats by."""
    return CloudEvent(
        id=event_id, source=source, type=event.type, data=dump_lineage(event), partitionkey=partition_key(event)
    )


def from_cloudevent(event: CloudEvent) -> Lineage:
    """Raises `Rejected` as `parse_lineage` does, and `header-mismatch` where the record's type is another."""
    lineage = parse_lineage(event.data)
    if lineage.type != event.type:
        raise Rejected("header-mismatch", "expected type of the record to agree with its data")
    return lineage
