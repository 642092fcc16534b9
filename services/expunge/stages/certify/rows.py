"""Rows about a person go last: what is verified absent leaves the catalogue, and a tombstone bitmap stays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain import sweep as sweeps
from expunge.domain.errors import Retryable
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.scopefile import unpack_columns
from expunge.domain.sweep import I64
from expunge.domain.words import FINAL_ABSENT
from expunge.ports import Row, Tx
from expunge.stages.certify.finished import Finished, Sweep
from expunge.tasks import Lease

BLOCK_IMAGES: Final = 32_768
"""Images whose rows go in one transaction."""
AT_ONCE: Final = 2
"""Such transactions side by side, each a process of the server."""

ABSENT: Final = np.isin(np.arange(256), list(FINAL_ABSENT))


class Dropping:
    """Takes the rows of orders out while other runs of them are under way, block by block, each in a transaction of its
    own, some side by side. Keeps the places of the last order's chunks (mutable)."""

    def __init__(self) -> None:
        self._places: tuple[UUID, list[Places]] | None = None

    async def drop(self, lease: Lease, sweep: Sweep) -> int:
        """Drop what can be: images all of whose artifacts are verified absent. How many these are.

        May be repeated: what is gone is not counted twice. Raises `FencedOff` when the lease is another's by now.
        """
        ready = await asyncio.to_thread(self._ready, sweep)
        cuts = range(0, len(ready), BLOCK_IMAGES)
        blocks = iter([ready[at : at + BLOCK_IMAGES] for at in cuts])

        async def drop() -> None:
            for block in blocks:
                async with lease.ledger.transaction() as tx:
                    await _drop_blocks(sweep, *_ranges(block), tx, hold=lease.hold)

        side_by_side = [asyncio.ensure_future(drop()) for _ in cuts[1:AT_ONCE]]
        try:
            await drop()
            await asyncio.gather(*side_by_side)
        finally:
            for one in side_by_side:
                one.cancel()
            await asyncio.gather(*side_by_side, return_exceptions=True)
        return len(ready)

    def _ready(self, sweep: Sweep) -> I64:
        """Images all of whose artifacts are verified absent, ascending. A chunk that has one that is not keeps all images
        from its first to its last: in what is stored as it came in, these are its own."""
        images = sweep.images()
        if not sweep.takes_everything:
            return images[:0]
        if self._places is None or self._places[0] != sweep.sweep_id:
            self._places = (sweep.sweep_id, [places_of(sweep, tree) for tree in range(len(sweep.trees))])
        return free_images(images, self._places[1], sweep.absent)


@dataclass(frozen=True, slots=True)
class Places:
    """`first` and `last` image of each chunk of a tree."""

    first: I64
    last: I64


def free_images(images: I64, places: Sequence[Places], absent: Sequence[NDArray[np.bool_]]) -> I64:
    """Those of `images` (ascending) that lie in no chunk, from its first image to its last, with a leaf that is not
    absent. `places`, `absent` (which leaves are): per tree."""
    edges = np.zeros(len(images) + 1, np.int32)
    for where, gone in zip(places, absent, strict=True):
        if not len(gone):
            continue
        whole = np.logical_and.reduceat(gone, np.arange(0, len(gone), CHUNK_LEAVES))
        np.add.at(edges, np.searchsorted(images, where.first[~whole], "left"), 1)
        np.add.at(edges, np.searchsorted(images, where.last[~whole], "right"), -1)
    free: NDArray[np.bool_] = np.cumsum(edges[:-1], out=edges[:-1]) == 0
    return images if free.all() else images[free]


def places_of(sweep: Sweep, tree: int) -> Places:
    """From the scope file."""
    first, last = [], []
    for chunk in range(-(-int(sweep.trees[tree]["leaves"]) // CHUNK_LEAVES)):
        ordinals = np.frombuffer(unpack_columns(sweep.file.section(f"{tree}/{chunk}"))["ordinal"], "<u8")
        first.append(int(ordinals.min()))
        last.append(int(ordinals.max()))
    return Places(np.array(first, np.int64), np.array(last, np.int64))


async def drop_rows(sweep: Sweep, done: Sequence[Finished], tx: Tx, dropped: int = 0) -> None:
    """Turn image rows that nothing holds any more into tombstones; drop artifact and subject rows. `dropped`: of how many
    images that was done."""
    chosen = np.array([one.leaf for one in done])
    ordinals = sweep.images(chosen)
    if dropped < len(ordinals):
        gone, ids = await asyncio.to_thread(_gone_artifacts, sweep, chosen)
        if len(gone):
            await tx.execute("certify_drop_artifacts", ordinals=gone, ids=ids, sweep_id=sweep.sweep_id)
        images = await tx.fetch("certify_drop_images", ordinals=ordinals)
        await tx.execute("certify_drop_subjects", ordinals=ordinals)
        await _entomb(sweep, images, tx)
    await tx.execute("certify_drop_consents", ids=[one.request_id for one in done])


async def _drop_blocks(
    sweep: Sweep, first: list[int], end: list[int], tx: Tx, hold: Callable[[Tx], Awaitable[None]] | None = None
) -> None:
    """All rows of images that are verified absent, but for artifacts that came after the scope was sealed, and theirs.

    `hold`: refuses, for who is no more to do this; and keeps all others waiting who call it until `tx` ends. What blocks
    add up in comes after it, so that only that waits. Raises `Retryable` when others change these rows at the same time:
    what was counted must be what went.
    """
    ranges: dict[str, Any] = {"first": first, "end": end}
    counted = await tx.fetch("certify_count_artifact_ranges", **ranges, last=sweep.last_artifact)
    went = await tx.execute("certify_drop_artifact_ranges", **ranges, last=sweep.last_artifact)
    ((late,),) = await tx.fetch("certify_late_images", **ranges, last=sweep.last_artifact)
    images = await tx.fetch("certify_image_blocks", **ranges, late=late)
    gone = await tx.execute("certify_drop_image_blocks", **ranges, late=late)
    if (went, gone * 8) != (sum(row[2] for row in counted), sum(len(packed) for _, packed in images)):
        raise Retryable("rows of an order's images changed while they were counted")
    await tx.execute("certify_drop_subject_blocks", **ranges, late=late)
    if hold is not None:
        await hold(tx)
    if counted:
        sources, kinds, artifacts = (list(column) for column in zip(*counted, strict=True))
        await tx.execute(
            "certify_add_erased", sweep_id=sweep.sweep_id, sources=sources, kinds=kinds, artifacts=artifacts
        )
    await _entomb(sweep, images, tx)


async def _entomb(sweep: Sweep, gone: Sequence[Row], tx: Tx) -> None:
    """Add images (source, ordinals as packed big-endian int64) to the sweep's tombstones."""
    found = {source_no: BitMap64(np.frombuffer(packed, ">i8").astype(np.uint64)) for source_no, packed in gone}
    if found:
        for source_no, bitmap in await tx.fetch("certify_tombstone_now", sweep_id=sweep.sweep_id):
            if source_no in found:
                found[source_no] |= BitMap64.deserialize(bitmap)
    for source_no, bitmap in found.items():
        bitmap.run_optimize()
        await tx.execute(
            "certify_tombstone", sweep_id=sweep.sweep_id, source_no=source_no, images=len(bitmap),
            bitmap=bitmap.serialize(),
        )  # fmt: skip


def _ranges(ordinals: I64) -> tuple[list[int], list[int]]:
    runs = sweeps.runs_of(ordinals)
    return [first for first, _ in runs], [first + count for first, count in runs]


def _gone_artifacts(sweep: Sweep, chosen: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ordinal, artifact id) of every leaf that a chosen request claims and whose row may go."""
    ordinals, ids = [], []
    for tree in range(len(sweep.trees)):
        leaf, offset = sweep.indices(tree)
        mine = sweeps.distinct(np.concatenate([leaf[offset[one] : offset[one + 1]] for one in chosen.tolist()]))
        mine = mine[sweep.absent[tree][mine]]
        for chunk, inner in _by_chunk(mine):
            columns = unpack_columns(sweep.file.section(f"{tree}/{chunk}"))
            ordinals.append(np.frombuffer(columns["ordinal"], "<u8").astype(np.int64)[inner])
            ids.append(sweeps.artifact_ids(columns["artifact_id"])[inner])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(ordinals or empty), np.concatenate(ids or empty)


def _by_chunk(indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for chunk in sweeps.distinct(indices // CHUNK_LEAVES).tolist():
        yield chunk, indices[indices // CHUNK_LEAVES == chunk] % CHUNK_LEAVES
