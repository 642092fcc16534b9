"""The trainer's side of a retraining job: take it, train without what it excludes, report.

    trainer = Trainer(dsn, "gpu-1")
    while job := trainer.take():
        members = job.members(job.snapshots["face@1"][0]) - job.exclusion
        ...                                   # train; publish SnapshotCommitted, then ModelRegistered with
        ...                                   # replaces="face@1" and job_id=job.job_id

Reports go to `expunge.lineage` by `expunge.client.Publisher.lineage`, never into the database. Every call blocks.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Final

import psycopg
from pyroaring import BitMap64

from expunge.domain import snapshot
from expunge.domain.errors import FencedOff, Rejected, Retryable, Tampered
from expunge.domain.lineage import JobId, SnapshotCommitted
from expunge.domain.words import Grade

LEASE_SECONDS: Final = 900.0
"""A job that is not renewed for this long goes to whoever asks next."""

# Earliest due first. Not a job of which a model is in another trainer's hands, nor one whose parents are still to come.
_TAKE: Final = """
update retraining set state = 'leased', leased_by = %(name)s,
    lease_until = clock_timestamp() + make_interval(secs => %(seconds)s::float8)
where job_id = (
    select r.job_id from retraining r
    where (r.state = 'queued' or (r.state = 'leased' and r.lease_until < clock_timestamp()))
      and not exists (select from retraining o where o.job_id <> r.job_id and o.state = 'leased'
                      and o.lease_until >= clock_timestamp() and o.models && r.models)
      and not exists (select from retraining o join model_edge e on e.parent_no = any(o.models)
                      where o.job_id <> r.job_id and o.state in ('queued', 'leased') and e.child_no = any(r.models)
                      and e.relation <> 'evaluated-on' and not e.parent_no = any(r.models))
    order by r.due, r.seq limit 1 for update skip locked)
returning job_id::text, models, excluded, exclusion_digest, cut, due
"""
_REMEDIATING: Final = "update model set status = 'remediating' where model_no = any(%s) and status = 'tainted'"
_MODELS: Final = """
select m.name, m.status, coalesce(array_agg(s.name order by s.name) filter (where s.name is not null), '{}')
from unnest(%s::integer[]) with ordinality as t(model_no, at) join model m using (model_no)
left join model_snapshot k using (model_no) left join snapshot s using (snapshot_no)
group by m.name, m.status, t.at order by t.at
"""
_MEMBERS: Final = "select bitmap from snapshot where name = %s"
_KEYS: Final = """
select s.name, i.key from unnest(%s::bigint[]) with ordinality as t(ordinal, at)
join image i using (ordinal) join source s using (source_no) order by t.at
"""
_RENEW: Final = """
update retraining set lease_until = clock_timestamp() + make_interval(secs => %s::float8)
where job_id = %s::uuid and leased_by = %s and state = 'leased'
"""
_RELEASE: Final = """
update retraining set state = 'queued', leased_by = null, lease_until = null
where job_id = %s::uuid and leased_by = %s and state = 'leased'
"""


@dataclass(frozen=True, slots=True)
class Job:
    """`models`: what to train again, parents first; those replaced already are left out. `snapshots`: by model, what it
    was trained on. `exclusion`: image ordinals that nothing trained may have seen, cut at log size `cut`."""

    job_id: JobId
    models: tuple[str, ...]
    snapshots: Mapping[str, tuple[str, ...]]
    exclusion: BitMap64
    exclusion_digest: bytes
    cut: int
    due: datetime
    trainer: Trainer

    def members(self, name: str) -> BitMap64:
        """The ordinals of a snapshot. Raises `Rejected("unknown-snapshot")`."""
        return self.trainer.members(name)

    def keys(self, ordinals: Iterable[int]) -> list[tuple[str, str]]:
        """(source, key) of each image that is still in the catalogue, in the order given."""
        return self.trainer.keys(ordinals)

    def renew(self) -> None:
        """Keep the job. Raises `FencedOff` when the lease was lost: stop, another trainer may have it."""
        self.trainer.renew(self.job_id)

    def release(self) -> None:
        """Give the job back."""
        self.trainer.release(self.job_id)


class Trainer:
    """`name`: this trainer, in leases. A connection per call: trainings are long. Raises `Retryable` when the database
    does not answer."""

    def __init__(self, dsn: str, name: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._dsn = dsn
        self._name = name
        self._lease_seconds = lease_seconds

    def take(self) -> Job | None:
        """Lease the job that is due first. None: nothing to do. Raises `Tampered` when the exclusion does not fit its
        digest."""
        with self._connect() as connection:
            row = connection.execute(_TAKE, {"name": self._name, "seconds": self._lease_seconds}).fetchone()
            if row is None:
                return None
            job_id, numbers, excluded, digest, cut, due = row
            connection.execute(_REMEDIATING, (numbers,))
            models = connection.execute(_MODELS, (numbers,)).fetchall()
        if hashlib.sha256(excluded).digest() != digest:
            raise Tampered("exclusion", "expected the digest that the job was queued with")
        waiting = {
            name: tuple(snapshots) for name, status, snapshots in models if status not in {"replaced", "destroyed"}
        }
        return Job(
            JobId(job_id), tuple(waiting), waiting, BitMap64.deserialize(excluded), bytes(digest), cut, due, self
        )

    def members(self, name: str) -> BitMap64:
        with self._connect() as connection:
            row = connection.execute(_MEMBERS, (name,)).fetchone()
        if row is None:
            raise Rejected("unknown-snapshot", "expected a snapshot that is registered")
        return BitMap64.deserialize(row[0])

    def keys(self, ordinals: Iterable[int]) -> list[tuple[str, str]]:
        with self._connect() as connection:
            return [(source, key) for source, key in connection.execute(_KEYS, (list(ordinals),))]

    def renew(self, job_id: JobId) -> None:
        with self._connect() as connection:
            if not connection.execute(_RENEW, (self._lease_seconds, job_id, self._name)).rowcount:
                raise FencedOff

    def release(self, job_id: JobId) -> None:
        with self._connect() as connection:
            connection.execute(_RELEASE, (job_id, self._name))

    def _connect(self) -> psycopg.Connection:
        try:
            return psycopg.connect(self._dsn)
        except psycopg.OperationalError as error:
            raise Retryable("expected the database to answer") from error


class Readings:
    """Observed reads, the strongest evidence of what a model saw: tell it every ordinal that the data loader yields.
    Thread-safe."""

    def __init__(self) -> None:
        self._seen = BitMap64()
        self._lock = Lock()

    def saw(self, ordinals: Iterable[int]) -> None:
        """Add what a batch held."""
        fresh = BitMap64(ordinals)
        with self._lock:
            self._seen |= fresh

    @property
    def members(self) -> BitMap64:
        """What was read so far."""
        with self._lock:
            return self._seen.copy()

    def snapshot(self, name: str, purpose: str, *, parent: str | None = None) -> SnapshotCommitted:
        """What was read, as a snapshot of grade `observed`."""
        members = self.members
        members.run_optimize()
        return SnapshotCommitted(
            snapshot=name,
            purpose=purpose,
            parent=parent,
            members_roaring=base64.b64encode(members.serialize()).decode(),
            root=snapshot.root(members).hex(),
            grade=Grade.OBSERVED,
        )
