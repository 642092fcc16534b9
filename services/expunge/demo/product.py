"""The pretend product: accounts with photos, thumbnails, training shards, two indexes of vectors, and model files.

It keeps its things where its stores are and tells Expunge of them by lineage events, as any product would; of Expunge it
knows the client library and the events, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
from psycopg import sql

from expunge.adapters.stores.faiss import FaissStore, faiss
from expunge.adapters.stores.pgvector import open_store as open_pgvector
from expunge.adapters.stores.webdataset import WebDatasetStore
from expunge.client import Publisher
from expunge.demo.faces import Photo, pixels, thumbnail
from expunge.demo.training import Embedder, Floats, parameters_digest
from expunge.domain.lineage import (
    AddedArtifact,
    ArtifactKind,
    ArtifactRecord,
    ArtifactsAdded,
    BatchId,
    ConsentBasis,
    ImageRecord,
    ImagesRegistered,
    JobId,
    ModelParent,
    ModelRegistered,
    SnapshotCommitted,
    SourceKeys,
    SourceRegistered,
    WeightsLocation,
)
from expunge.domain.request import SubjectRef
from expunge.domain.words import Grade, Kind, Relation

ACCOUNT: Final = "account"
TRAINING: Final = "training"
BATCH: Final = 100
"""Images per event, and samples per shard."""

INDEX: Final = "faces.index"
TABLE: Final = "face_embedding"

SOURCES: Final = (
    SourceRegistered(
        source="licensed-studio",
        supplier="Licensed Studio Ltd (fictional)",
        agreement="LS-2024-11",
        licence="training and account use, per person and purpose",
        consent_basis=ConsentBasis.EXPLICIT_CONSENT,
        acquired_on=date(2024, 11, 4),
        approved_by="data protection officer",
    ),
    SourceRegistered(
        source="partner-2014",
        supplier="Partner Photos Inc (fictional)",
        agreement="PP-2014-03",
        licence="none on file",
        consent_basis=ConsentBasis.NONE_RECORDED,
        acquired_on=date(2014, 3, 17),
        approved_by="head of growth",
        declared_interests=("the approver held shares in the supplier",),
    ),
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model to register. `weights`: its file's bytes."""

    name: str
    weights: bytes
    trained_on: tuple[str, ...]
    metrics: Mapping[str, float]
    parents: tuple[tuple[str, Relation], ...] = ()
    replaces: str | None = None
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a training shard, as a data loader reads it: the faces in it and whose they are."""

    source: str
    key: str
    pixels: Floats
    people: tuple[int, ...]


class Product:
    """`root`: a directory of its own; `database`: a PostgreSQL URI with pgvector, the product's own."""

    def __init__(self, root: Path, database: str) -> None:
        self.root = root
        self._database = database
        self._identity_key = hashlib.sha256(b"the controller's identity service holds this key").digest()
        for folder in ("photos", "thumbnails", "shards", "index", "models"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        with psycopg.connect(database) as connection:
            connection.execute("create extension if not exists vector")

    @property
    def stores(self) -> dict[str, str]:
        """Store names and URLs, for Expunge's settings."""
        return {
            "photos": f"file://{self.root / 'photos'}",
            "thumbnails": f"file://{self.root / 'thumbnails'}",
            "shards": f"wds://{self.root / 'shards'}",
            "vector-index": f"faiss://{self.root / 'index'}",
            "vector-table": f"pgvector+{self._database}",
            "models": f"file://{self.root / 'models'}",
        }

    def subject(self, person: int) -> SubjectRef:
        """The pseudonym that the identity service gives a person."""
        tag = hmac.digest(self._identity_key, f"person {person}".encode(), "sha256")
        return SubjectRef("k1." + base64.urlsafe_b64encode(tag).decode().rstrip("="))

    # What it keeps

    def keep(self, photos: Sequence[Photo]) -> list[ImagesRegistered]:
        """Store photos and thumbnails and write training shards; the events that tell of them."""
        shards = WebDatasetStore(str(self.root / "shards"), "shards")
        told = []
        for source, ours in groupby(photos, key=lambda photo: photo.source):
            owned = list(ours)
            for number, start in enumerate(range(0, len(owned), BATCH)):
                part, shard = owned[start : start + BATCH], f"{source}-{number:04}.tar"
                shards.write_shard(shard, ((photo.key, _sample(photo)) for photo in part))
                told.append(self._batch(source, [self._keep_one(photo, shard) for photo in part]))
        return told

    def _keep_one(self, photo: Photo, shard: str) -> ImageRecord:
        small = thumbnail(photo.content)
        for store, name, content in (("photos", "pgm", photo.content), ("thumbnails", "png", small)):
            folder = self.root / store / photo.source
            folder.mkdir(exist_ok=True)
            (folder / f"{photo.key}.{name}").write_bytes(content)
        return self.record(photo, photo.key, hashlib.sha256(small).hexdigest(), shard)

    def record(self, photo: Photo, key: str, thumbnail_digest: str, shard: str) -> ImageRecord:
        """A photo as it is registered. Kept for the account and for training; its shard row for training only."""
        both = (ACCOUNT, TRAINING)
        return ImageRecord(
            key=key,
            subjects=tuple(self.subject(person) for person in photo.people),
            digest=photo.digest,
            acquired_on=next(one.acquired_on for one in SOURCES if one.source == photo.source),
            artifacts=(
                _artifact(Kind.IMAGE, "photos", photo.source, f"{key}.pgm", both, photo.digest),
                _artifact(Kind.DERIVATIVE, "thumbnails", photo.source, f"{key}.png", both, thumbnail_digest),
                _artifact(Kind.SHARD_ROW, "shards", shard, key, (TRAINING,), photo.digest),
            ),
        )

    def upload(self, photo: Photo, key: str) -> ImagesRegistered:
        """A photo that somebody uploads as a new one, to `licensed-studio`: asked first, kept if it is taken."""
        record = ImageRecord(
            key=key,
            subjects=(),
            digest=photo.digest,
            acquired_on=datetime.now(UTC).date(),
            artifacts=(_artifact(Kind.IMAGE, "photos", "licensed-studio", f"{key}.pgm", (ACCOUNT,), photo.digest),),
        )
        return self._batch("licensed-studio", [record])

    def index(self, photos: Sequence[Photo], embed: Embedder) -> list[ArtifactsAdded]:
        """Put one vector per photo into both indexes; the events that tell of them."""
        vectors = np.concatenate([embed(pixels(photo.content)[:1]) for photo in photos])
        ids = np.array([_vector_id(photo) for photo in photos], dtype=np.int64)
        flat = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        flat.add_with_ids(vectors, ids)
        FaissStore(str(self.root / "index"), "vector-index").create(INDEX, flat)
        table = open_pgvector(self.stores["vector-table"], "vector-table")
        try:
            table.create_table(TABLE, vectors.shape[1])
        finally:
            table.close()
        with psycopg.connect(self._database) as connection, connection.cursor() as cursor:
            copy = sql.SQL("copy {} (id, embedding) from stdin").format(sql.Identifier(TABLE))
            with cursor.copy(copy) as rows:
                for number, vector in zip(ids.tolist(), vectors.tolist(), strict=True):
                    rows.write_row((number, json.dumps(vector)))
        return [
            ArtifactsAdded(batch_id=_batch_id(), artifacts=tuple(one for photo in part for one in _vectors(photo)))
            for _, ours in groupby(photos, key=lambda photo: photo.source)
            for part in _parts(list(ours))
        ]

    def commit(self, name: str, members: Sequence[Sample]) -> SnapshotCommitted:
        """The exact images that a model is trained on."""
        keys: dict[str, list[str]] = {}
        for sample in members:
            keys.setdefault(sample.source, []).append(sample.key)
        return SnapshotCommitted(
            snapshot=name,
            purpose=TRAINING,
            members_by_key=tuple(SourceKeys(source=source, keys=tuple(of)) for source, of in sorted(keys.items())),
            grade=Grade.COMMITTED,
        )

    def release(self, trained: Trained) -> ModelRegistered:
        """Store a model's file; the event that tells of the model and all it came from."""
        name, _, version = trained.name.partition("@")
        (self.root / "models" / name).mkdir(exist_ok=True)
        (self.root / "models" / name / f"{version}.npz").write_bytes(trained.weights)
        return ModelRegistered(
            model=trained.name,
            weights_digest=hashlib.sha256(trained.weights).hexdigest(),
            weights=WeightsLocation(store="models", unit=name, locator=f"{version}.npz"),
            purpose=TRAINING,
            trained_on=trained.trained_on,
            parents=tuple(ModelParent(model=of, relation=relation) for of, relation in trained.parents),
            metrics=dict(trained.metrics),
            replaces=trained.replaces,
            job_id=trained.job_id,
            code_digest=hashlib.sha256(Path(__file__).with_name("training.py").read_bytes()).hexdigest(),
            params_digest=parameters_digest(),
            seeds=(0,),
            created_at=datetime.now(UTC),
        )

    # What it sees

    def samples(self) -> Iterator[Sample]:
        """Every row of every training shard, as the data loader yields them."""
        reader = WebDatasetStore(str(self.root / "shards"), "shards")
        for path in sorted((self.root / "shards").glob("*.tar")):
            for key, parts in reader.read(path.name):
                about = json.loads(parts["json"])
                yield Sample(about["source"], key, pixels(parts["pgm"]), tuple(about["people"]))

    def holds(self, photo: Photo) -> dict[str, bool]:
        """Which of a photo's things are still there. Looked for without Expunge's adapters: plain files, the tar's own
        names, the index file's own ids, a query."""
        with psycopg.connect(self._database) as connection:
            query = sql.SQL("select exists (select from {} where id = %s)").format(sql.Identifier(TABLE))
            row = connection.execute(query, (_vector_id(photo),)).fetchone()
        index = faiss.read_index(str(self.root / "index" / INDEX))  # a name: its id_map does not keep it alive
        ids = faiss.vector_to_array(index.id_map)
        names: set[str] = set()
        for path in (self.root / "shards").glob("*.tar"):
            with tarfile.open(path) as shard:
                names.update(shard.getnames())
        return {
            "photo": (self.root / "photos" / photo.source / f"{photo.key}.pgm").exists(),
            "thumbnail": (self.root / "thumbnails" / photo.source / f"{photo.key}.png").exists(),
            "shard row": f"{photo.key}.pgm" in names,
            "vector in FAISS": _vector_id(photo) in ids.tolist(),
            "vector in pgvector": row == (True,),
        }

    def has_weights(self, model: str) -> bool:
        """Whether a model's file is there."""
        name, _, version = model.partition("@")
        return (self.root / "models" / name / f"{version}.npz").exists()

    def _batch(self, source: str, images: Sequence[ImageRecord]) -> ImagesRegistered:
        return ImagesRegistered(source=source, batch_id=_batch_id(), images=tuple(images))


def tell(publisher: Publisher, events: Sequence[Any]) -> None:
    """Publish lineage events and wait until Kafka has them."""
    for event in events:
        publisher.lineage(event)
    publisher.flush()


def _batch_id() -> BatchId:
    return BatchId(str(uuid.uuid4()))


def _parts(photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
    return (photos[start : start + BATCH] for start in range(0, len(photos), BATCH))


def _sample(photo: Photo) -> dict[str, bytes]:
    about = {"source": photo.source, "people": list(photo.people)}
    return {"pgm": photo.content, "json": json.dumps(about).encode()}


def _artifact(
    kind: ArtifactKind,
    store: str,
    unit: str,
    locator: str,
    purposes: tuple[str, ...],
    digest: str,
) -> ArtifactRecord:
    return ArtifactRecord(kind=kind, store=store, unit=unit, locator=locator, purposes=purposes, digest=digest)


def _vector_id(photo: Photo) -> int:
    return photo.person * 100 + photo.number


def _vectors(photo: Photo) -> list[AddedArtifact]:
    return [
        AddedArtifact(
            kind=Kind.EMBEDDING, store=store, unit=unit, locator=str(_vector_id(photo)), purposes=(TRAINING,),
            source=photo.source, image_key=photo.key,
        )
        for store, unit in (("vector-index", INDEX), ("vector-table", TABLE))
    ]  # fmt: skip
