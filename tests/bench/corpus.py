"""What is erased: files, vectors and catalogue rows of one source, and copies of them for the floor."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import faiss as untyped_faiss
import numpy as np
import psycopg

from expunge.domain.words import Role
from expunge.settings import Settings
from expunge.stages.register.bulk import COLUMNS, import_files
from expunge.stages.register.registrar import Registrar
from expunge.wiring import Deployment

faiss: Any = untyped_faiss  # its stubs lack half of what is used here

PHOTOS: Final = "photos"
FACES: Final = "faces"
DIMENSIONS: Final = 128
FILE_BYTES: Final = 512
UNIT_FILES: Final = 1_000
PER_PERSON: Final = 10
"""Images, and vectors, of each person."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """`images` photos of one source, each with an embedding, beside `others` embeddings that stay."""

    source: str
    images: int
    others: int
    per_person: int = PER_PERSON

    @property
    def index(self) -> str:
        return f"{self.source}.faiss"

    def subject(self, person: int) -> str:
        return f"k1.{self.source.replace('-', '')}{person:016d}"

    def unit(self, image: int) -> str:
        return f"{self.source}/{image // UNIT_FILES:05d}"

    def locator(self, image: int) -> str:
        return f"{image:08d}.jpg"

    def places(self, images: Sequence[int] | range) -> Iterator[tuple[str, str]]:
        """(unit, locator) of these images."""
        return ((self.unit(image), self.locator(image)) for image in images)

    def digests(self) -> Iterator[tuple[bytes, str]]:
        """Bytes and SHA-256 of each photo; the same at every call."""
        drawn = random.Random(self.source)
        for _ in range(self.images):
            data = drawn.randbytes(FILE_BYTES)
            yield data, hashlib.sha256(data).hexdigest()

    def write(self, root: Path) -> None:
        """Photos and index below `root`, as the stores of `store_urls` find them."""
        for first in range(0, self.images, UNIT_FILES):
            (root / PHOTOS / self.unit(first)).mkdir(parents=True)
        (root / FACES).mkdir(exist_ok=True)
        for image, (data, _) in enumerate(self.digests()):
            path = os.path.join(root, PHOTOS, self.unit(image), self.locator(image))  # noqa: PTH118 - up to millions
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, data)
            os.close(fd)
        drawn = np.random.default_rng(self.images)
        index = faiss.IndexIDMap2(faiss.IndexFlatL2(DIMENSIONS))
        for start, count in ((0, self.images), (self.images, self.others)):
            if count:
                vectors = drawn.standard_normal((count, DIMENSIONS), dtype=np.float32)
                index.add_with_ids(vectors, np.arange(start, start + count, dtype=np.int64))
        faiss.write_index(index, str(root / FACES / self.index))

    def write_rows(self, path: Path) -> None:
        """The catalogue file: a row per artifact."""
        day = date(2026, 1, 1).isoformat()
        with path.open("w", encoding="utf-8", newline="") as stream:
            out = csv.writer(stream)
            out.writerow(COLUMNS)
            for image, (_, digest) in enumerate(self.digests()):
                head = (self.source, f"{image:08d}", self.subject(image // self.per_person), digest, day)
                for artifact in self.artifacts(image):
                    out.writerow((*head, *artifact))

    def artifacts(self, image: int) -> list[tuple[str, ...]]:
        """The last columns of an image's rows."""
        photo = ("image", PHOTOS, self.unit(image), self.locator(image), "training", "")
        face = ("embedding", FACES, self.index, str(image), "training", "")
        return [photo, face]


def store_urls(root: Path) -> dict[str, str]:
    return {PHOTOS: f"file://{root / PHOTOS}", FACES: f"faiss://{root / FACES}"}


def import_rows(settings: Settings, corpora: Sequence[Corpus], folder: Path) -> None:
    """Register sources and import their rows, as `expunge catalogue import` does."""
    with psycopg.connect(settings.database, autocommit=True) as connection:
        for corpus in corpora:
            provenance = json.dumps({"source": corpus.source, "supplier": "bench"})
            connection.execute("insert into source (name, provenance) values (%s, %s)", (corpus.source, provenance))
    asyncio.run(_import(settings, corpora, folder))
    with psycopg.connect(settings.database, autocommit=True) as connection:
        connection.execute("vacuum analyze")


async def _import(settings: Settings, corpora: Sequence[Corpus], folder: Path) -> None:
    deployment = Deployment(settings)
    deployment.prepare()
    registrar = Registrar(
        keys=deployment.keys,
        signer=deployment.signers.signer(Role.REGISTER),
        suppression_key=deployment.journal.key,
    )
    await deployment.ledger.open()
    try:
        for corpus in corpora:
            path = folder / f"{corpus.source}.csv"
            corpus.write_rows(path)
            await import_files(deployment.ledger, registrar, [path], at=datetime.now(UTC))
            path.unlink()
    finally:
        await deployment.ledger.close()
