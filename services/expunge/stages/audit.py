"""Audit: the log's files are replayed from where the last audit ended, and compared with the rows they came from.

The right edge of the tree as audited is kept; new entries extend it to the new checkpoint's root or the log was not
appended to but changed. Read-only: it can find fault, and change nothing but its own mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from expunge.domain import dsse, evidence, merkle, note, replay, statement, tiles
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.events import AuditFailed, AuditPassed
from expunge.domain.merkle import HASH_BYTES, Frontier
from expunge.domain.trust import Trust
from expunge.ports import Clock, Ledger, TileStore
from expunge.record import emit

WORKER: Final = "audit"
PAGE: Final = 10_000
"""Rows compared in one query."""


class Audit:
    """One audit per `run`. `trust`: the auditor's own policy."""

    def __init__(self, *, ledger: Ledger, tiles: TileStore, trust: Trust, clock: Clock) -> None:
        self._ledger = ledger
        self._tiles = tiles
        self._trust = trust
        self._clock = clock

    async def run(self) -> AuditPassed | AuditFailed | None:
        """Audit what is new; None when nothing is.

        1. checkpoint: signed, not smaller than audited, 2. entries since then extend the audited tree to its root,
        3. each is signed under its role, 4. rows hold the same entries. What fails is an event with the kind of
        difference, and the mark stays where it was.
        """
        at = self._clock()
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("audit_head")
        frontier = Frontier.from_bytes(rows[0][0]) if rows else Frontier()
        first = frontier.size
        size = first
        try:
            checkpoint = await asyncio.to_thread(self._checkpoint)
            if checkpoint is None:
                return None
            size = checkpoint.size
            _check_grown(frontier, checkpoint)
            if size == first:
                return None
            hashes = await asyncio.to_thread(self._extend, frontier, checkpoint, at)
            await self._check_rows(first, hashes)
        except Tampered as error:
            return await self._failed(size, error.where, at)
        passed = AuditPassed(size=size, at=at)
        async with self._ledger.transaction() as tx:
            await tx.execute("audit_passed", frontier=frontier.to_bytes(), at=at)
            await emit(tx, WORKER, [passed], at=at)
        return passed

    async def _failed(self, size: int, difference: str, at: datetime) -> AuditFailed:
        failed = AuditFailed(size=size, difference=difference, at=at)
        async with self._ledger.transaction() as tx:
            await emit(tx, WORKER, [failed], at=at)
        return failed

    def _checkpoint(self) -> note.Checkpoint | None:
        with _finding("checkpoint"):
            try:
                return note.open_checkpoint(self._tiles.read("checkpoint"), self._trust.log_keys, self._trust.origin)
            except FileNotFoundError:
                return None

    def _extend(self, frontier: Frontier, checkpoint: note.Checkpoint, at: datetime) -> bytes:
        """Steps 2 and 3; leaf hashes of the new entries, and `frontier` grown to the checkpoint."""
        hashes = bytearray()
        with _finding("entries"):
            entries = replay.entries(frontier.size, checkpoint.size, tiles.fetcher(self._tiles.read))
            for index, entry in entries:
                digest = merkle.leaf_hash(entry)
                frontier.append(digest)
                hashes += digest
                with _finding("signature"):
                    envelope = dsse.parse(entry)
                    predicate = statement.parse(envelope.payload).predicate
                    # A statement without a time of its own is taken to be new, as the entries of this audit are.
                    evidence.check_signature(envelope, predicate, self._trust, at, f"log index {index}", index=index)
        if frontier.root() != checkpoint.root:
            raise Tampered("root", "expected entries that extend the audited log to the checkpoint's root")
        return bytes(hashes)

    async def _check_rows(self, first: int, hashes: bytes) -> None:
        """Step 4."""
        end = first + len(hashes) // HASH_BYTES
        for start in range(first, end, PAGE):
            stop = min(start + PAGE, end)
            async with self._ledger.transaction() as tx:
                ((listed, rehashed),) = await tx.fetch("audit_rows", first=start, end=stop)
            expected = hashes[(start - first) * HASH_BYTES : (stop - first) * HASH_BYTES]
            if listed != expected or rehashed != expected:
                raise Tampered("rows", f"expected the rows of entries {start} to {stop} to be those in the files")


def _check_grown(frontier: Frontier, checkpoint: note.Checkpoint) -> None:
    if checkpoint.size < frontier.size:
        raise Tampered("shrunk", f"expected a log of {frontier.size} entries or more, got {checkpoint.size}")
    if checkpoint.size == frontier.size and checkpoint.root != frontier.root():
        raise Tampered("root", "expected the root that was audited at this size, got another")


@contextmanager
def _finding(kind: str) -> Iterator[None]:
    """What goes wrong inside is a finding of this kind, unless it was named further in."""
    try:
        yield
    except Rejected as error:
        raise Tampered(kind, str(error)) from error
    except Tampered as error:
        raise Tampered(error.where if error.where in _KINDS else kind, str(error)) from error


_KINDS: Final = frozenset({"checkpoint", "entries", "signature", "root", "rows", "shrunk"})
"""What AuditFailed may name as the difference."""
