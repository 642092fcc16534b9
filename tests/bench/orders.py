"""An order over a whole source, from request to data certificate, against the same erasures done bare."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from expunge.domain import topics
from expunge.domain.request import Authority, BySource, OrderProvision
from expunge.domain.words import Provision
from tests.bench.corpus import FACES, PHOTOS, Corpus, faiss
from tests.bench.objects import Bucket
from tests.bench.rig import Proofs, Rig, tree_seconds
from tests.bench.timeline import Requested, stages


@dataclass(frozen=True, slots=True)
class Copy:
    """What one run of the floor erases: files and index below `root`, rows of `database`; objects of `bucket` for files
    if there is one."""

    root: Path
    database: str
    bucket: Bucket | None = None


def run(rig: Rig, corpus: Corpus, name: str) -> dict[str, Any]:
    """One order through the workers. Raises when anything is left or the result is not complete."""
    proofs = Proofs(rig.kafka, topics.PROOFS)
    publishers = [rig.publisher(one) for one in ("publisher", "approver-0", "approver-1")]
    try:
        with rig.measured(name) as measured:
            request_id, sent, waited = _order(rig, corpus, proofs, publishers)
        seen, result = proofs.certified[request_id]
        if result != "complete":
            raise RuntimeError(f"expected a complete erasure, got {result}")
    finally:
        for one in publishers:
            one.close()
        proofs.close()
    measured["wall"] = seen - sent
    measured["until_scope"] = waited
    measured |= stages(rig.database, [Requested(request_id, sent, seen)])
    measured["images"] = corpus.images
    return measured


def _order(rig: Rig, corpus: Corpus, proofs: Proofs, publishers: list[Any]) -> tuple[str, float, float]:
    publisher, *approvers = publishers
    allowed = 60.0 + corpus.images / 500
    sent = time.time()
    request_id = publisher.order(
        BySource(source=corpus.source),
        authority=Authority.REGULATOR,
        reference="bench",
        provisions=(OrderProvision(number=1, covers=Provision.DATA, deadline=datetime.now(UTC) + timedelta(days=30)),),
    )
    publisher.flush()
    root = proofs.wait_scope(request_id, rig=rig, seconds=allowed)
    waited = time.time() - sent
    for approver in approvers:
        approver.approve(request_id, root)
        approver.flush()
    proofs.wait([request_id], rig=rig, seconds=allowed)
    return request_id, sent, waited


def floors(copies: list[Copy], corpus: Corpus, processes: int = 1) -> dict[str, Any]:
    """The floor on each copy, and the median."""
    runs = [_floor(copy, corpus, processes) for copy in copies]
    return {
        "processes": processes,
        "wall": statistics.median(one["wall"] for one in runs),
        "cpu": statistics.median(one["cpu"] for one in runs),
        "parts": {part: statistics.median(one[part] for one in runs) for part in ("unlink", "rows", "index")},
        "runs": [one["wall"] for one in runs],
    }


def _floor(copy: Copy, corpus: Corpus, processes: int) -> dict[str, float]:
    """Each process unlinks its share of the directories, or deletes their objects, and deletes the rows of its share of
    the ordinals; the first also rewrites the index. From the moment that all are ready to the moment that the last one
    is done; of the parts, the longest."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes + 1)
    ends = [context.Pipe(duplex=False) for _ in range(processes)]
    shares = [
        context.Process(target=_share, args=(send, start, copy, corpus, number, processes), daemon=True)
        for number, (_, send) in enumerate(ends)
    ]
    for one in shares:
        one.start()
    start.wait()
    at = time.perf_counter()
    found: list[dict[str, float]] = [receive.recv() for receive, _ in ends]
    wall = time.perf_counter() - at
    for one in shares:
        one.join()
    longest = {part: max(one[part] for one in found) for part in ("unlink", "rows", "index")}
    return {"wall": wall, "cpu": sum(one["cpu"] for one in found), **longest}


def _share(done: Connection, start: Barrier, copy: Copy, corpus: Corpus, number: int, processes: int) -> None:
    by_unit: dict[str, list[str]] = {}
    for unit, locator in corpus.places(range(corpus.images)):
        by_unit.setdefault(unit, []).append(locator)
    mine = list(by_unit.items())[len(by_unit) * number // processes : len(by_unit) * (number + 1) // processes]
    ids = np.arange(corpus.images, dtype=np.int64)
    index = copy.root / FACES / corpus.index
    client = copy.bucket and copy.bucket.client()
    with psycopg.connect(copy.database, autocommit=True) as connection:
        ranges = connection.execute(
            "select first_ordinal, first_ordinal + used from ordinal_block join source using (source_no) where name = %s",
            (corpus.source,),
        ).fetchall()
        server = connection.info.backend_pid
        start.wait()
        cpu, at = time.process_time() + _seconds(server), time.perf_counter()
        if copy.bucket is not None:
            copy.bucket.delete(client, [(unit, name) for unit, names in mine for name in names])
        else:
            _unlink(copy.root / PHOTOS, mine)
        unlinked = time.perf_counter()
        with connection.transaction():
            for first, end in ranges:
                low, high = (first + (end - first) * part // processes for part in (number, number + 1))
                for table in ("artifact", "image", "image_subject"):
                    connection.execute(f"delete from {table} where ordinal >= %s and ordinal < %s", (low, high))
        deleted = time.perf_counter()
        if not number:
            rewrite(faiss.read_index(str(index)), ids, index)
        ended = time.perf_counter()
        spent = time.process_time() + _seconds(server) - cpu
    done.send({"cpu": spent, "unlink": unlinked - at, "rows": deleted - unlinked, "index": ended - deleted})


def _unlink(root: Path, units: list[tuple[str, list[str]]]) -> None:
    for unit, names in units:
        directory = os.open(root / unit, os.O_RDONLY | os.O_DIRECTORY)
        for name in names:
            os.unlink(name, dir_fd=directory)
        os.close(directory)


def _seconds(pid: int) -> float:
    """CPU of a process that we did not start, seconds."""
    return tree_seconds(pid, {})


def rewrite(index: Any, ids: Any, path: Path) -> None:
    """Remove vectors, write the index beside itself, fsync, switch."""
    chosen = np.zeros(int(ids.max()) + 1, dtype=np.bool_)
    chosen[ids] = True
    bits = np.packbits(chosen, bitorder="little")
    index.remove_ids(faiss.IDSelectorBitmap(bits.size, faiss.swig_ptr(bits)))
    temp = path.with_suffix(".new")
    faiss.write_index(index, str(temp))
    fd = os.open(temp, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    temp.replace(path)
