"""Rows about a person go last: what is verified absent leaves the catalogue, and a tombstone bitmap stays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain import sweep as sweeps
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.scopefile import unpack_columns
from expunge.domain.words import FINAL_ABSENT
from expunge.ports import Tx
from expunge.stages.certify.finished import Finished, Sweep


async def drop_rows(sweep: Sweep, done: Sequence[Finished], tx: Tx) -> None:
    """Turn image rows that nothing holds any more into tombstones; drop artifact and subject rows."""
    chosen = np.array([one.leaf for one in done])
    offsets = np.frombuffer(sweep.claims["ordinal_offsets"], "<u8").astype(np.int64)
    every = np.frombuffer(sweep.claims["ordinals"], "<u8").astype(np.int64)
    ordinals = sweeps.distinct(np.concatenate([every[offsets[leaf] : offsets[leaf + 1]] for leaf in chosen.tolist()]))
    if sweep.sweep_class == "order" and all(np.isin(one, list(FINAL_ABSENT)).all() for one in sweep.outcomes):
        runs = sweeps.runs_of(ordinals)
        within = {"first": [run[0] for run in runs], "end": [run[0] + run[1] for run in runs]}
        await tx.execute("certify_drop_artifact_ranges", **within, last=sweep.last_artifact, sweep_id=sweep.sweep_id)
        images = await tx.fetch("certify_drop_image_ranges", **within)
        await tx.execute("certify_drop_subject_ranges", **within)
    else:
        gone, ids = await asyncio.to_thread(_gone_artifacts, sweep, chosen)
        if len(gone):
            await tx.execute("certify_drop_artifacts", ordinals=gone, ids=ids, sweep_id=sweep.sweep_id)
        images = await tx.fetch("certify_drop_images", ordinals=ordinals)
        await tx.execute("certify_drop_subjects", ordinals=ordinals)
    found = {source_no: BitMap64(np.frombuffer(packed, ">i8").astype(np.uint64)) for source_no, packed in images}
    await tx.execute("certify_drop_consents", ids=[one.request_id for one in done])
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


def _gone_artifacts(sweep: Sweep, chosen: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ordinal, artifact id) of every leaf that a chosen request claims and that is verified absent."""
    ordinals, ids = [], []
    for tree in range(len(sweep.trees)):
        leaf, offset = sweep.indices(tree)
        mine = sweeps.distinct(np.concatenate([leaf[offset[one] : offset[one + 1]] for one in chosen.tolist()]))
        mine = mine[np.isin(sweep.outcomes[tree][mine], list(FINAL_ABSENT))]
        for chunk, inner in _by_chunk(mine):
            columns = unpack_columns(sweep.file.section(f"{tree}/{chunk}"))
            ordinals.append(np.frombuffer(columns["ordinal"], "<u8").astype(np.int64)[inner])
            ids.append(sweeps.artifact_ids(columns["artifact_id"])[inner])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(ordinals or empty), np.concatenate(ids or empty)


def _by_chunk(indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for chunk in sweeps.distinct(indices // CHUNK_LEAVES).tolist():
        yield chunk, indices[indices // CHUNK_LEAVES == chunk] % CHUNK_LEAVES
