"""After a backup was restored: what is wrong with it, and the way back to a deployment that forgot nothing.

The log's files, the suppression journal, keys and sealed files are not in a database backup and are ahead of it. `verify`
only looks; `finish` puts back what can be worked out, and leaves the erasing to an order that people approve.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from expunge import restored
from expunge.adapters.ledger.postgres import PostgresLedger, migrations
from expunge.domain import suppression, tiles
from expunge.domain.errors import Rejected
from expunge.domain.merkle import HASH_BYTES, leaf_hash
from expunge.domain.note import NoteKey
from expunge.domain.replay import entries
from expunge.ports import Tx
from expunge.replay import open_checkpoint
from expunge.restored import Standing
from expunge.stages.prove import recover
from expunge.wiring import Deployment


@dataclass(frozen=True, slots=True)
class Found:
    """What `verify` found in a restored database. `entries`: of the log, `behind` of them not in the database;
    `images` and `people`: back though they must not be; `unread`: open sweeps whose scope file or key is gone.

    `diverged`: the database has entries that the log has not: it went on after it was restored, and is of no use."""

    schema: int
    newest: int
    entries: int
    behind: int
    diverged: bool
    projection_behind: bool
    images: int
    people: int
    unread: int

    @property
    def usable(self) -> bool:
        """Whether `finish` can make a deployment of it."""
        return not self.diverged and not self.unread and self.schema <= self.newest

    @property
    def clean(self) -> bool:
        """Whether there is nothing left to do."""
        return self.usable and not (self.behind or self.projection_behind or self.images or self.people)


async def verify(deployment: Deployment, dsn: str) -> Found:
    """Compare a restored database with what was not restored. Changes nothing."""
    standing = await _standing(deployment)
    async with PostgresLedger(dsn, application="expunge-backup").opened() as ledger, ledger.transaction() as tx:
        size, diverged, behind = await _log(deployment, tx)
        people = await restored.withdrawn(tx, deployment.journal.key, standing, await _purposes(tx))
        ((subjects, pages),) = await tx.fetch("restored_projection")
        return Found(
            schema=max((number for (number,) in await tx.fetch("schema_migrations")), default=0),
            newest=max(number for number, _ in migrations()),
            entries=size,
            behind=behind,
            diverged=diverged,
            projection_behind=subjects < len(standing.suppressed)
            or pages < len(standing.digests) * suppression.MAC_BYTES,
            images=len(await restored.images(tx, deployment.journal.key, standing)),
            people=len(people),
            unread=await _unread(deployment, tx),
        )


async def _standing(deployment: Deployment) -> Standing:
    data = await asyncio.to_thread(deployment.journal.read)
    records, _rest = await asyncio.to_thread(suppression.decode, data)
    return Standing.of(records)


async def _purposes(tx: Tx) -> Mapping[int, str]:
    return dict(await tx.fetch("plan_purposes"))


async def _log(deployment: Deployment, tx: Tx) -> tuple[int, bool, int]:
    """Entries of the log, whether the rows are something else than its first ones, and how many rows are missing."""
    trust = deployment.signers.trust()
    checkpoint = open_checkpoint(deployment.tiles, trust)
    ((held,),) = await tx.fetch("readside_log_size")
    both = min(held, checkpoint.size)
    ((flat,),) = await tx.fetch("prove_hashes", first=0, end=both)
    fetch = tiles.fetcher(deployment.tiles.read)
    hashes = await asyncio.to_thread(
        lambda: b"".join(leaf_hash(entry) for _, entry in entries(0, checkpoint.size, fetch))
    )
    diverged = bytes(flat or b"") != hashes[: both * HASH_BYTES]
    return checkpoint.size, diverged, max(0, checkpoint.size - held)


async def _unread(deployment: Deployment, tx: Tx) -> int:
    def missing(name: str, bucket: object, digest: bytes) -> bool:
        try:
            deployment.keys.bucket(bucket)  # type: ignore[arg-type] # a date, from the row
            return hashlib.sha256(deployment.sealed.open(name)).digest() != digest
        except (FileNotFoundError, Rejected):
            return True

    rows = await tx.fetch("restored_open_sweeps")
    return sum([await asyncio.to_thread(missing, f"{row[0]}.scope", row[1], bytes(row[2])) for row in rows])


@dataclass(frozen=True, slots=True)
class Finished:
    """What `finish` did. `people`: whose purposes are to be withdrawn again, with these; `images`: back though they must
    not be, and to be ordered gone; `offsets`: by consumer group, topic and partition, where the database stands."""

    entries: int
    projected: int
    images: int
    people: Mapping[str, tuple[str, ...]]
    offsets: Mapping[tuple[str, str, int], int]


async def finish(deployment: Deployment, dsn: str) -> Finished:
    """Put the log's missing entries and the journal's projection back. Workers must be stopped. May be repeated.

    Raises `Tampered` for a database that went on after it was restored, or a log or journal that does not verify."""
    standing = await _standing(deployment)
    key = NoteKey.log(deployment.settings.origin, deployment.signers.log_key().public)
    async with PostgresLedger(dsn, application="expunge-backup").opened() as ledger:
        put_back = await recover(ledger, deployment.tiles, key)
        async with ledger.transaction() as tx:
            projected = await restored.project(tx, standing)
        async with ledger.transaction() as tx:
            found = await restored.images(tx, deployment.journal.key, standing)
            people = await restored.withdrawn(tx, deployment.journal.key, standing, await _purposes(tx))
            offsets = {
                (worker, topic, partition): at for worker, topic, partition, at in await tx.fetch("restored_offsets")
            }
    return Finished(put_back, projected, len(found), people, offsets)
