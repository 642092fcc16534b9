"""Reconcile: registered - erased = present, by source and kind, counted in the stores by who may only look.

Registered is what the log's registration batches sum to; erased is what certify counted when rows of artifacts that are
verified absent went; present is every artifact of the catalogue that a reader of its store finds. All is relative to one
moment, the start of the run: what is erased meanwhile is counted as erased if its row is gone when its page is looked
at, and as under way if it is missing in the stores and in an open sweep. What then remains is a difference: an artifact
that neither the stores nor any sweep accounts for. A run goes page by page and resumes from its cursor.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID

import structlog
from pyroaring import BitMap64

from expunge.chunks.scopes import Sweep
from expunge.chunks.units import around_hostile
from expunge.crashing import crash_point
from expunge.domain import canonical, dsse, reconciliation, statement
from expunge.domain.errors import Misconfigured, Rejected
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.statement import PAYLOAD_TYPE, ReconciledCount, ReconciledSweep, Reconciliation, RegisteredBatch
from expunge.domain.words import Kind, Role
from expunge.record import log

if TYPE_CHECKING:
    from expunge.chunks.erasing import Task
    from expunge.chunks.scopes import Scopes
    from expunge.ports import Clock, Ledger, Row, Signer, StoreReader, Tx
    from expunge.tasks import Commit

PAGE: Final = 16_384
"""Catalogue rows looked for at once: bounds the memory."""
BATCHES: Final = 512
"""Registration batches read at once."""
CHUNKS: Final = 16
"""Chunks of a scope looked for at once."""

_BLOCK: Final = 65_536

_log = structlog.get_logger(__name__)

Counts: TypeAlias = "Counter[tuple[int, str]]"
"""By source number and kind."""


class Reconcile:
    """Runs the tasks of its kind. A reader that could erase is refused, as in rescan; the key is the rescanner's.

    A task's input: `sources` (names; all where there is none), or `sweep`: an order's, whose sources are counted and
    whose scope is looked for again.
    """

    task_kind: Final = "reconcile"

    def __init__(
        self,
        *,
        ledger: Ledger,
        scopes: Scopes,
        readers: Mapping[str, StoreReader],
        signer: Signer,
        clock: Clock,
        page: int = PAGE,
    ) -> None:
        if able := sorted(name for name, one in readers.items() if hasattr(one, "erase") or hasattr(one, "hide")):
            raise Misconfigured(f"expected readers without erase and hide, got stores: {able}")
        if signer.role is not Role.RESCANNER:
            raise Misconfigured(f"expected a key of role {Role.RESCANNER}, got {signer.role}")
        self._ledger = ledger
        self._scopes = scopes
        self._readers = readers
        self._signer = signer
        self._clock = clock
        self._page = page

    async def ask(self, key: str, sources: Sequence[str] | None = None) -> None:
        """Ask for a run, once per key."""
        given = {} if sources is None else {"sources": list(sources)}
        async with self._ledger.transaction() as tx:
            await tx.execute("reconcile_ask", key=key, input=json.dumps(given))

    async def ask_every(self, hours: float) -> None:
        """Ask for the run of this stretch of time, if nobody did."""
        await self.ask(f"every:{hours:g}h:{int(self._clock().timestamp() // (hours * 3600))}")

    async def task(self, lease: Task) -> Commit:
        """One run.

        1. start: log size, highest artifact id and row counts of one moment
        2. pages of the catalogue, block by block: probe, unit by unit
        3. an order's scope: probe every leaf
        4. sum the registration batches, sign
        """
        cursor = dict(lease.cursor)
        if not cursor:
            cursor = await self._start(lease.input)
            crash_point("reconcile.started")
            await lease.save(cursor)
        while await self._pages(cursor):
            await lease.save(dict(cursor))
            crash_point("reconcile.paged")
        sweep = await self._sweep(lease, cursor)
        counts = await self._counts(cursor)
        crash_point("reconcile.counted")
        return partial(self._finish, _result_key(lease.input), cursor, counts, sweep)

    # 1

    async def _start(self, given: Mapping[str, object]) -> dict[str, object]:
        async with self._ledger.transaction() as tx:
            sources = await _sources(tx, given)
            await tx.fetch("reconcile_lock")
            ((size, last, erased, rows),) = await tx.fetch("reconcile_start", sources=sources)
        return {
            "sources": sources, "size": size, "last": last, "erased": erased, "rows": rows, "block": 0, "ordinal": -1,
            "artifact": 0, "visited": [], "present": [], "under_way": [], "gone": [], "tree": 0, "chunk": 0, "found": 0,
        }  # fmt: skip

    # 2

    async def _pages(self, cursor: dict[str, object]) -> bool:
        """Look for one page of rows; whether there may be more."""
        async with self._ledger.transaction() as tx:
            blocks = await tx.fetch("reconcile_block", sources=cursor["sources"], at=cursor["block"])
            if not blocks:
                return False
            ((first, source),) = blocks
            rows = await tx.fetch(
                "reconcile_page", first=first, ordinal=cursor["ordinal"], artifact=cursor["artifact"],
                last=cursor["last"], limit=self._page,
            )  # fmt: skip
        seen = await asyncio.to_thread(self._seen, rows)
        missing = [row for row in rows if (row[0], row[1]) not in seen]
        gone, under_way = await self._missing(missing)
        for name, found in (
            ("visited", (row[2] for row in rows)),
            ("present", (row[2] for row in rows if (row[0], row[1]) in seen)),
            ("gone", gone),
            ("under_way", under_way),
        ):
            counts = _unpacked(cursor[name])
            counts.update((source, kind) for kind in found)
            cursor[name] = _packed(counts)
        if len(rows) == self._page:
            cursor.update(block=first, ordinal=rows[-1][0], artifact=rows[-1][1])
        else:
            cursor.update(block=first + _BLOCK, ordinal=-1, artifact=0)
        return True

    def _seen(self, rows: Iterable[Row]) -> set[tuple[int, int]]:
        """(ordinal, artifact id) of the rows whose artifact its store's reader finds."""
        units: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            units.setdefault((row[3], row[4]), []).append(row)
        return {
            (row[0], row[1])
            for (store, unit), inside in units.items()
            for row, there in zip(inside, self._probe(store, unit, [row[5] for row in inside]), strict=True)
            if there
        }

    def _probe(self, store: str, unit: str, locators: Sequence[str]) -> list[int]:
        """1 where the store has it. What has no reader, or a name that the store refuses, is not found."""
        reader = self._readers.get(store)
        if reader is None:
            return [0] * len(locators)
        found = around_hostile(locators, lambda some: reader.probe(unit, some).astype("uint8"), 0)
        return [int(one) for one in found]

    async def _missing(self, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
        """Kinds of those whose row went meanwhile, and of those that an open sweep has."""
        if not rows:
            return [], []
        async with self._ledger.transaction() as tx:
            open_sweeps = await tx.fetch("reconcile_open_sweeps")  # first: one that completes now leaves no rows behind
            still = await tx.fetch("reconcile_still", ordinals=[row[0] for row in rows], ids=[row[1] for row in rows])
        held = set(map(tuple, still))
        swept = [BitMap64.deserialize(packed) for (packed,) in open_sweeps]
        gone = [row[2] for row in rows if (row[0], row[1]) not in held]
        under_way = [row[2] for row in rows if (row[0], row[1]) in held and any(row[0] in one for one in swept)]
        return gone, under_way

    # 3

    async def _sweep(self, lease: Task, cursor: dict[str, object]) -> ReconciledSweep | None:
        if "sweep" not in lease.input:
            return None
        async with self._ledger.transaction() as tx:
            (row,) = await tx.fetch("reconcile_sweep", sweep_id=UUID(str(lease.input["sweep"])))
        sweep = Sweep(
            sweep_id=row[0], bucket=row[1], scope_digest=row[2], scope_index=row[3], file_digest=row[4],
            roots=tuple(bytes.fromhex(tree["root"]) for tree in row[6]), is_order=row[5] == "order",
        )  # fmt: skip
        try:
            while await asyncio.to_thread(self._chunks, sweep, cursor):
                await lease.save(dict(cursor))
        except Rejected as error:
            # Its key was destroyed on schedule: nobody can look for its artifacts any more.
            _log.warning("scope not looked for", action="reconcile", reason=error.code, sweep=str(sweep.sweep_id))
            return None
        return ReconciledSweep(
            sweep=str(sweep.sweep_id),
            scope=sweep.scope_digest.hex(),
            leaves=sum(tree["leaves"] for tree in row[6]),
            present=int(str(cursor["found"])),
        )

    def _chunks(self, sweep: Sweep, cursor: dict[str, object]) -> bool:
        """Look for the leaves of some chunks; whether there are more."""
        scope = self._scopes.open(sweep)
        tree, chunk, found = (int(str(cursor[name])) for name in ("tree", "chunk", "found"))
        while tree < len(scope.trees) and chunk >= scope.trees[tree].chunks:
            tree, chunk = tree + 1, 0
        if tree == len(scope.trees):
            return False
        end = min(chunk + CHUNKS, -(-scope.trees[tree].leaves // CHUNK_LEAVES))
        run = scope.run(tree, chunk, end)
        for unit, first, last in run.slices():
            found += sum(self._probe(scope.trees[tree].store, unit, run.locators[first:last]))
        cursor.update(tree=tree, chunk=end, found=found)
        return True

    # 4

    async def _counts(self, cursor: Mapping[str, object]) -> list[ReconciledCount]:
        size = int(str(cursor["size"]))
        sources: list[int] = [int(one) for one in _list(cursor["sources"])]
        async with self._ledger.transaction() as tx:
            names: dict[int, str] = dict(await tx.fetch("reconcile_names", sources=sources))
            now = Counter(
                {(number, kind): sum_ for number, kind, sum_ in await tx.fetch("reconcile_erased", sources=sources)}
            )
        registered: Counter[tuple[str, str]] = Counter()
        after = -1
        while True:
            async with self._ledger.transaction() as tx:
                batches = await tx.fetch("reconcile_batches", after=after, size=size, limit=BATCHES)
            for entry in _batches(batches):
                registered.update({(one.source, one.kind.value): one.artifacts for one in entry})
            if len(batches) < BATCHES:
                break
            after = batches[-1][0]
        before, rows, visited, present, gone, under_way = (
            _unpacked(cursor[name]) for name in ("erased", "rows", "visited", "present", "gone", "under_way")
        )
        counts = []
        for number, name in names.items():
            for kind in Kind:
                at = (number, kind.value)
                if not (registered[name, kind.value] or before[at] or rows[at] or now[at]):
                    continue
                # Rows that went are erased only as far as certify counted them.
                since = min(rows[at] - visited[at] + gone[at], now[at] - before[at])
                counts.append(
                    reconciliation.counted(
                        name,
                        kind,
                        registered=registered[name, kind.value],
                        erased=before[at] + since,
                        under_way=under_way[at],
                        present=present[at],
                    )
                )
        return sorted(counts, key=lambda one: (one.source, one.kind))

    async def _finish(
        self, key: str | None, cursor: Mapping[str, object], counts: Sequence[ReconciledCount],
        sweep: ReconciledSweep | None, tx: Tx,
    ) -> None:  # fmt: skip
        at = statement.instant(self._clock())
        size = int(str(cursor["size"]))
        parts = [counts[first : first + reconciliation.PART] for first in range(0, len(counts), reconciliation.PART)]
        entries = []
        for number, part in enumerate(parts or [()]):
            said = Reconciliation(
                log_size=size, part=number, parts=max(1, len(parts)), counts=tuple(part), sweep=sweep, at=at
            )
            body = canonical.dumps([one.model_dump(mode="json") for one in part])
            payload = statement.payload(said, {"counts": hashlib.sha256(body).hexdigest()})
            entries.append((said.type, self._signer.sign(payload, PAYLOAD_TYPE)))
        await log(tx, entries)
        if key is not None:
            await tx.execute(
                "reconcile_result", key=key, unaccounted=sum(abs(one.difference) for one in counts),
                present=sweep.present if sweep is not None else 0, at=at,
            )  # fmt: skip
        differing = sum(one.difference != 0 for one in counts)
        _log.info("reconciled", action="reconcile", log_size=size, counts=len(counts), differing=differing)


def _result_key(given: Mapping[str, object]) -> str | None:
    """Under which key a run's result is kept: none where somebody asked for a few sources."""
    return str(given["sweep"]) if "sweep" in given else None if "sources" in given else "all"


async def _sources(tx: Tx, given: Mapping[str, object]) -> list[int]:
    if "sweep" not in given:
        names = given.get("sources")
        return [row[0] for row in await tx.fetch("reconcile_sources_named", names=names)]
    (row,) = await tx.fetch("reconcile_sweep", sweep_id=UUID(str(given["sweep"])))
    ordinals = BitMap64.deserialize(row[7])
    blocks = list(_blocks(ordinals))
    return [found[0] for found in await tx.fetch("reconcile_sources_of_blocks", blocks=blocks)]


def _blocks(ordinals: BitMap64) -> Iterator[int]:
    """First ordinals of the blocks that have any of these."""
    at = 0
    while (rank := ordinals.rank(at - 1) if at else 0) < len(ordinals):
        first = int(ordinals[rank]) // _BLOCK * _BLOCK
        yield first
        at = first + _BLOCK


def _batches(rows: Iterable[Row]) -> Iterator[Sequence[statement.SourceCount]]:
    for _, entry in rows:
        said = statement.parse(dsse.parse(bytes(entry)).payload).predicate
        if isinstance(said, RegisteredBatch):
            yield said.counts


def _list(value: object) -> list[int]:
    return value if isinstance(value, list) else []


def _packed(counts: Counts) -> list[list[object]]:
    return [[source, kind, number] for (source, kind), number in sorted(counts.items())]


def _unpacked(value: object) -> Counts:
    listed: list[tuple[int, str, int]] = value if isinstance(value, list) else []
    return Counter({(source, kind): number for source, kind, number in listed})
