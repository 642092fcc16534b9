"""Retraining jobs: merged while they wait, at most one in flight per model, exclusions cut at a log position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from pyroaring import BitMap64

from expunge.domain.events import RetrainingQueued
from expunge.domain.lineage import JobId
from expunge.domain.taint import families
from expunge.ports import Tx
from expunge.record import NAMESPACE
from expunge.stages.retrain.world import World, exclusions

JOB_MODELS: Final = 64
"""Most models in one job (RetrainingQueued)."""


@dataclass(slots=True)
class Job:
    """A queued job, as it is being changed."""

    job_id: UUID
    models: list[int]
    due: datetime


async def queue(tx: Tx, world: World, names: Sequence[str], *, due: datetime, at: datetime) -> list[RetrainingQueued]:
    """Put tainted models into jobs, by family; jobs of the same family that still wait take them in.

    Call it when exclusion rows are in and statements logged: the cut is the log's size now.
    """
    if not names:
        return []
    ((cut,),) = await tx.fetch("retrain_log_size")
    queued = [Job(row[0], list(row[1]), row[5]) for row in await tx.fetch("retrain_jobs") if row[2] == "queued"]
    events = []
    for family in families(world.lineage, names, JOB_MODELS):
        numbers = {world.entries[name].number for name in family}
        mine = [job for job in queued if not numbers.isdisjoint(job.models)]
        if len(numbers.union(*(job.models for job in mine))) <= JOB_MODELS:
            job_id = mine[0].job_id if mine else uuid5(NAMESPACE, f"job:{cut}:{','.join(sorted(family))}")
            merged = Job(
                job_id, world.ordered(numbers.union(*(job.models for job in mine))), min([due, *(j.due for j in mine)])
            )
            await tx.execute("retrain_drop_jobs", ids=[job.job_id for job in mine[1:]])
            queued = [job for job in queued if job not in mine] + [merged]
            events.append(await _put(tx, world, merged, cut, at))
            continue
        # Too many for one job: those that wait are extended where they are, the rest gets a job of its own.
        for job in mine:
            job.due = min(job.due, due)
            events.append(await _put(tx, world, job, cut, at))
        rest = world.ordered(numbers.difference(*(job.models for job in mine)))
        if rest:
            fresh = Job(uuid5(NAMESPACE, f"job:{cut}:{','.join(map(str, rest))}"), rest, due)
            queued.append(fresh)
            events.append(await _put(tx, world, fresh, cut, at))
    return events


async def _put(tx: Tx, world: World, job: Job, cut: int, at: datetime) -> RetrainingQueued:
    entries = [world.by_number[number] for number in job.models]
    found = await exclusions(tx, {entry.purpose for entry in entries})
    excluded = BitMap64().union(*(bitmap for by_purpose in found.values() for bitmap in by_purpose.values()))
    excluded.run_optimize()
    packed = excluded.serialize()
    digest = hashlib.sha256(packed).digest()
    await tx.execute(
        "retrain_put_job",
        job_id=job.job_id,
        models=job.models,
        cut=cut,
        excluded=packed,
        digest=digest,
        due=job.due,
        at=at,
    )
    return RetrainingQueued(
        job_id=JobId(str(job.job_id)),
        models=tuple(entry.name for entry in entries),
        cut=cut,
        due=job.due,
        excluded_images=len(excluded),
        exclusion_digest=digest.hex(),
    )


async def repoint(tx: Tx, old: int, successor: int | None) -> None:
    """In jobs that wait, put the successor in the place of a model that is gone, or nothing."""
    for job_id, models, state, *_ in await tx.fetch("retrain_jobs"):
        if state == "queued" and old in models:
            await _replace(tx, job_id, models, old, successor)


async def _replace(tx: Tx, job_id: UUID, models: Sequence[int], old: int, successor: int | None) -> None:
    kept = [successor if number == old else number for number in models]
    await tx.execute(
        "retrain_job_models", job_id=job_id, models=[number for number in dict.fromkeys(kept) if number is not None]
    )
