"""The log's appender: statements that are rows become log entries under a published checkpoint.

1. read what the rows hold beyond the last checkpoint, 2. record the new size and root and commit, 3. sign the checkpoint,
write tiles, archive it, publish it (fsync each), 4. record the note, and announce what it covers. Signing follows the
commit of (size, root), and tiles derive from rows that never change, so a paused appender that wakes up can only write
the same bytes again; publishing compares and swaps, so that it takes no newer checkpoint back. Nothing is signed while
the rows are not those that the published checkpoint promises, as after restoring an old database.
Spec: C2SP tlog-tiles, tlog-checkpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from expunge.crashing import crash_point
from expunge.domain import events, tiles
from expunge.domain.dsse import SigningKey
from expunge.domain.errors import Tampered
from expunge.domain.merkle import EMPTY_ROOT, HASH_BYTES, Frontier
from expunge.domain.note import Checkpoint, NoteKey, open_checkpoint, sign_checkpoint
from expunge.ports import Clock, Ledger, TileStore, Tx
from expunge.record import emit

WORKER: Final = "coordinate"
PER_EVENT: Final = 256
"""Statements named in one ProofSealed."""


@dataclass(frozen=True, slots=True)
class Published:
    """What one checkpoint newly covers: log entries [first, size)."""

    first: int
    size: int
    root: bytes
    note: bytes
    statements: tuple[events.SealedStatement, ...]


class Prove:
    """The log's appender. `origin`: the log's name (C2SP: a schema-less URL), also its key name. `attested`: whether a
    checkpoint needs witnesses or a time stamp (`attest`) before it counts as attested. `gather_seconds`: how long
    statements about chunks wait for company where no other does: nothing waits for them before the round that they are
    part of, and a checkpoint has a dozen writes to disk."""

    def __init__(
        self, *, ledger: Ledger, store: TileStore, key: SigningKey, origin: str, clock: Clock, attested: bool = False,
        gather_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._store = store
        self._key = key
        self._origin = origin
        self._clock = clock
        self._attested = attested
        self._gather_seconds = gather_seconds
        self._frontier = Frontier()

    async def publish(self) -> Published | None:
        """Steps 1 to 3: publish a checkpoint over all committed rows, if there are new ones. Idempotent.

        Raises `Tampered` when rows and an earlier checkpoint disagree, as after restoring an old database.
        """
        if not await self._due():
            return None
        async with self._ledger.transaction() as tx:
            ((locked,),) = await tx.fetch("prove_lock")
            ((next_index, signed, intended),) = await tx.fetch("prove_state")
            size = intended if intended > signed else next_index
            if not locked or size == signed:
                return None
            # The lock came first: whoever published has intended before, and those rows are visible.
            await self._check_published(tx, next_index, await asyncio.to_thread(self._published))
            await self._catch_up(tx, signed)
            rows = await tx.fetch("prove_entries", first=signed, end=size)
            if len(rows) != size - signed:
                raise Tampered("log", f"expected {size - signed} rows from {signed} on, got {len(rows)}")
            frontier = Frontier(self._frontier.size, self._frontier.hashes)
            for row in rows:
                frontier.append(row[1])
            await tx.execute("prove_intend", size=size, root=frontier.root())
            ((root,),) = await tx.fetch("prove_root", size=size)
            if root != frontier.root():
                raise Tampered("log", f"expected the root recorded for size {size}, got another from the rows")
        crash_point("prove.intended")
        note = sign_checkpoint(Checkpoint(self._origin, size, root), self._key, self._origin)
        crash_point("prove.signed")
        await asyncio.to_thread(self._write, signed, rows, note)
        crash_point("prove.switched")
        self._frontier = frontier
        statements = tuple(
            events.SealedStatement(index=index, leaf_hash=leaf_hash.hex(), predicate=predicate)
            for index, leaf_hash, predicate, _entry in rows
        )
        return Published(signed, size, root, note, statements)

    async def _due(self) -> bool:
        """Whether there is something to publish that need not wait any longer. Whoever holds the lock looks again."""
        ((pressing, any_rows),) = await self._ledger.fetch("prove_due", seconds=self._gather_seconds)
        return bool(any_rows and (pressing or not self._gather_seconds))

    async def record(self, published: Published, tx: Tx) -> None:
        """Step 4: record the note and announce the statements, in the caller's transaction."""
        await tx.execute("prove_signed", size=published.size, note=published.note, attested=not self._attested)
        sealed = [
            events.ProofSealed(
                origin=self._origin, size=published.size, statements=published.statements[at : at + PER_EVENT]
            )
            for at in range(0, len(published.statements), PER_EVENT)
        ]
        await emit(tx, WORKER, sealed, at=self._clock())

    async def _catch_up(self, tx: Tx, size: int) -> None:
        """Bring the remembered right edge to `size` leaves, from rows."""
        if self._frontier.size > size:
            self._frontier = Frontier()
        if self._frontier.size < size:
            ((flat,),) = await tx.fetch("prove_hashes", first=self._frontier.size, end=size)
            for at in range(0, len(flat or b""), HASH_BYTES):
                self._frontier.append(flat[at : at + HASH_BYTES])
        if self._frontier.size != size:
            raise Tampered("log", f"expected rows of {size} entries, got {self._frontier.size}")
        recorded = await tx.fetch("prove_root", size=size) if size else [(EMPTY_ROOT,)]
        if recorded != [(self._frontier.root(),)]:
            raise Tampered("log", f"expected the root that was signed for size {size}, got another from the rows")

    async def check(self) -> int | None:
        """At start: compare the rows with what was published, and finish what a crash left; the published size, if any.

        Files behind the rows (lost, or restored from an older copy) are written anew from them. Raises `Tampered` when
        the rows are behind the files.
        """
        async with self._ledger.transaction() as tx:
            ((locked,),) = await tx.fetch("prove_lock")
            ((next_index, signed, _intended),) = await tx.fetch("prove_state")
            if not locked:
                return None  # somebody else is appending, and checks
            published = await asyncio.to_thread(self._published)
            await self._check_published(tx, next_index, published)
            await self._catch_up(tx, signed)
            first = 0 if published is None else published.size
            if first < signed:
                rows = await tx.fetch("prove_entries", first=first, end=signed)
                ((note,),) = await tx.fetch("prove_note", size=signed)
                await asyncio.to_thread(self._write, first, rows, note)
        return signed or None

    async def _check_published(self, tx: Tx, held: int, published: Checkpoint | None) -> None:
        if published is None or published.size == 0:
            return
        if published.size > held:
            raise Tampered(
                "log",
                f"the published checkpoint promises {published.size} entries, the database holds {held}: it was restored "
                "from an older backup. Nothing was signed. Stop all workers and run `expunge log recover`, which puts the "
                "missing entries back from the log's files, or restore a newer backup",
            )
        if await tx.fetch("prove_root", size=published.size) != [(published.root,)]:
            raise Tampered(
                "log",
                f"the database's first {published.size} entries are not those of the published checkpoint: it was restored "
                "from an older backup and went on. Nothing was signed. Stop all workers; `expunge log recover` puts right what "
                "it can. If it refuses, restore a newer backup, or begin a new log under another origin: this one can only be "
                "read",
            )

    def _write(self, old: int, rows: Sequence[tuple[Any, ...]], note: bytes) -> None:
        fetch = tiles.fetcher(self._store.read)
        size = old + len(rows)
        files = dict(tiles.extend(old, b"".join(row[1] for row in rows), fetch))
        for bundle in tiles.new_bundles(old, size):
            kept: list[bytes] = []
            if bundle.start < old:
                before = tiles.Bundle(bundle.index, old - bundle.start)
                kept = tiles.parse_bundle(fetch(before.path), before.width)
            added = [row[3] for row in rows[max(bundle.start - old, 0) : bundle.end - old]]
            files[bundle.path] = tiles.bundle_bytes([*kept, *added])
        # Tiles are durable before the checkpoint that promises them, and so is the archive.
        self._store.write(files)
        crash_point("prove.tiled")
        self._store.swap(f"checkpoints/{size}", note, None)
        crash_point("prove.archived")
        while True:
            current = self._current()
            if current is not None and self._open(current).size >= size:
                return
            if self._store.swap("checkpoint", note, current):
                return

    def _published(self) -> Checkpoint | None:
        current = self._current()
        return None if current is None else self._open(current)

    def _current(self) -> bytes | None:
        try:
            return self._store.read("checkpoint")
        except FileNotFoundError:
            return None

    def _open(self, note: bytes) -> Checkpoint:
        return open_checkpoint(note, [NoteKey.log(self._origin, self._key.public)], self._origin)
