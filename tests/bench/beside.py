"""The same job beside `lethe-delete`: signed deletions of one subject's pgvector rows, on the same server, in one run.

Its own API, as its README says, with a connection per thread. Its wheel is installed for the run alone. The same people for
both, enough of them that each runs for some seconds: of a few hundred, the time of one sweep is what is seen of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg

from tests.bench.corpus import DIMENSIONS, PER_PERSON, Corpus

PACKAGE: Final = "lethe-delete==0.7.3"
STORE: Final = "vectors"
TABLE: Final = "faces"
SALT: Final = "bench"


@dataclass(frozen=True, slots=True)
class Rows(Corpus):
    """Embeddings alone, in a pgvector table."""

    def write(self, root: Path) -> None:
        """Nothing: `fill` does it, once there is a server."""

    def artifacts(self, image: int) -> list[tuple[str, ...]]:
        return [("embedding", STORE, TABLE, str(image), "training", "")]


def fill(dsn: str, rows: int) -> None:
    """A table with that many vectors, as `expunge` and `lethe` expect it."""
    drawn = np.random.default_rng(rows)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create extension if not exists vector")
        connection.execute(f"create table {TABLE} (id bigint primary key, embedding vector({DIMENSIONS}))".encode())
        with connection.cursor() as cursor, cursor.copy(f"copy {TABLE} from stdin".encode()) as copying:
            for row in range(rows):
                copying.write_row((row, str(drawn.standard_normal(DIMENSIONS, dtype=np.float32).round(4).tolist())))
        connection.execute("vacuum analyze")


def install(folder: Path) -> str | None:
    """Why it cannot run here, if it cannot."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return None if done.returncode == 0 else f"{PACKAGE} does not install here"


def run(folder: Path, dsn: str, subjects: list[str], threads: int) -> dict[str, Any]:
    """Forget each of `subjects`, of whom each has `PER_PERSON` rows, from `threads` threads."""
    job = json.dumps({"dsn": dsn, "subjects": subjects, "threads": threads})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.lethe"], input=job, env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"skipped": f"{PACKAGE} failed: {done.stderr.strip().splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tag(dsn: str, subjects: list[str], subject_hash: Any) -> None:
    """Its provenance rows, in bulk: what it would have written when the vectors came in."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        with cursor.copy(b"copy lethe_provenance (subject_hash, store, namespace, record_id) from stdin") as copying:
            for person, subject in enumerate(subjects):
                for number in range(PER_PERSON):
                    copying.write_row((subject_hash(subject), "pgvector", TABLE, str(person * PER_PERSON + number)))
        connection.commit()
        connection.execute("analyze")
