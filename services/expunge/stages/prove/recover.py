"""After an older database was restored: the log's missing rows are put back from its files, which lost nothing.

1. the checkpoint is the log's own, 2. the entries hash to its root, 3. the rows that are there are the first of them,
4. the rest become rows, with the checkpoint's size and root. What other tables lost is worked out again: statements are
found by their leaf hash and keep their index.
"""

from __future__ import annotations

import asyncio
from typing import Final

from expunge.domain import dsse, merkle, note, replay, statement, tiles
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.note import NoteKey
from expunge.ports import Ledger, TileStore

PAGE: Final = 10_000
"""Rows put back by one query."""


async def recover(ledger: Ledger, store: TileStore, key: NoteKey) -> int:
    """How many entries were put back. `key`: the log's. Raises `Tampered` when the rows are not the files' first entries:
    the database went on after it was restored."""
    signed, checkpoint, entries = await asyncio.to_thread(_read, store, key)
    hashes = b"".join(map(merkle.leaf_hash, entries))
    async with ledger.transaction() as tx:
        await tx.fetch("recover_lock")
        ((held,),) = await tx.fetch("log_lock")
        both = min(held, checkpoint.size)
        ((flat,),) = await tx.fetch("prove_hashes", first=0, end=both)
        if (flat or b"") != hashes[: both * HASH_BYTES]:
            raise Tampered(
                "log", "expected rows that are the first entries of the files, got others: the database went on after it was "
                "restored. Restore a newer backup, or begin a new log under another origin",
            )  # fmt: skip
        for start in range(both, checkpoint.size, PAGE):
            end = min(start + PAGE, checkpoint.size)
            await tx.execute(
                "recover_put",
                indices=list(range(start, end)),
                hashes=[merkle.leaf_hash(one) for one in entries[start:end]],
                predicates=[_predicate(one) for one in entries[start:end]],
                entries=entries[start:end],
            )
        if held < checkpoint.size:
            await tx.execute("recover_advance", next=checkpoint.size)
        await tx.execute("recover_checkpoint", size=checkpoint.size, root=checkpoint.root, note=signed)
    return checkpoint.size - int(both)


def _read(store: TileStore, key: NoteKey) -> tuple[bytes, note.Checkpoint, list[bytes]]:
    fetch = tiles.fetcher(store.read)
    # 1
    try:
        signed = fetch("checkpoint")
    except LookupError as error:
        raise Rejected("no-checkpoint", "expected a published checkpoint to recover from, there is none") from error
    checkpoint = note.open_checkpoint(signed, [key], key.name)
    # 2
    entries = [entry for _, entry in replay.entries(0, checkpoint.size, fetch)]
    if merkle.root(b"".join(map(merkle.leaf_hash, entries))) != checkpoint.root:
        raise Tampered("log", "expected entries that hash to the checkpoint's root, got others")
    return signed, checkpoint, entries


def _predicate(entry: bytes) -> str:
    return statement.parse(dsse.parse(entry).payload).predicate.type
