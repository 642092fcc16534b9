"""A sweep's trees while its artifacts come in, page by page: leaves, chunk roots, the sections of the scope file.

Columns in, columns out: nothing here is per artifact in Python. Blocking: call it in threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.chunks.spool import Spool
from expunge.domain import merkle, scopefile
from expunge.domain import sweep as sweeps
from expunge.domain.leaf import DIGEST_BYTES, LEAF_BYTES, derive_key, nonces, pack_leaves
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.locators import Locators
from expunge.domain.sweep import I64
from expunge.domain.words import Kind
from expunge.ports import Row


@dataclass(frozen=True, slots=True)
class Page:
    """Artifacts of one tree, (n) each. `digests`: 32 bytes each, laid end to end. `purposes`: masks; empty where nobody
    asks for them."""

    kind: str
    store_no: int
    ids: I64
    ordinal: I64
    unit: I64
    purposes: I64
    digests: bytes
    locators: Locators

    @classmethod
    def of_row(cls, row: Row) -> Page:
        """From a row of `plan_artifacts` or `plan_page`: packed columns, big-endian."""
        kind, store_no, ids, ordinals, units, purposes, digests, lengths, locators = row
        return cls(
            kind=kind,
            store_no=store_no,
            ids=np.frombuffer(ids, ">i8").astype(np.int64),
            ordinal=np.frombuffer(ordinals, ">i8").astype(np.int64),
            unit=np.frombuffer(units, ">i4").astype(np.int64),
            purposes=np.frombuffer(purposes or b"", ">i8").astype(np.int64),
            digests=digests,
            locators=Locators.of_lengths(locators, np.frombuffer(lengths, ">i4")),
        )

    @classmethod
    def joined(cls, pages: Sequence[Page]) -> Page:
        """Pages of one tree, laid end to end."""
        first = pages[0]
        if len(pages) == 1:
            return first
        return cls(
            kind=first.kind,
            store_no=first.store_no,
            ids=np.concatenate([page.ids for page in pages]),
            ordinal=np.concatenate([page.ordinal for page in pages]),
            unit=np.concatenate([page.unit for page in pages]),
            purposes=np.concatenate([page.purposes for page in pages]),
            digests=b"".join(page.digests for page in pages),
            locators=Locators.joined([page.locators for page in pages]),
        )

    def in_order(self) -> Page:
        """By unit, in it as they came in: by image, then artifact. What is stored as it came in is so already."""
        keys = self.ids, self.ordinal, self.unit
        if sweeps.is_ordered(keys):
            return self
        return self.at(np.lexsort(keys))

    def only(self, keep: NDArray[np.bool_]) -> Page:
        """The artifacts where `keep`."""
        return self if keep.all() else self.at(np.flatnonzero(keep))

    def at(self, rows: NDArray[np.intp]) -> Page:
        """The artifacts at these positions, in this order."""
        return Page(
            kind=self.kind,
            store_no=self.store_no,
            ids=self.ids[rows],
            ordinal=self.ordinal[rows],
            unit=self.unit[rows],
            purposes=self.purposes[rows] if len(self.purposes) else self.purposes,
            digests=np.frombuffer(self.digests, np.uint8).reshape(-1, 32)[rows].tobytes(),
            locators=self.locators.take(rows),
        )

    def part(self, first: int, end: int) -> Page:
        """The artifacts at positions [first, end)."""
        return Page(
            kind=self.kind,
            store_no=self.store_no,
            ids=self.ids[first:end],
            ordinal=self.ordinal[first:end],
            unit=self.unit[first:end],
            purposes=self.purposes[first:end],
            digests=self.digests[first * 32 : end * 32],
            locators=self.locators[first:end],
        )


@dataclass(slots=True)
class TreeBuilder:
    """One tree while its pages come in, in its order: chunk roots, and the sections of the scope file, which go to
    `spool`. Pages of any size; `close` after the last (mutable)."""

    number: int
    kind: Kind
    store: str
    nonce_key: bytes
    spool: Spool
    leaves: int = 0
    chunk_roots: list[bytes] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    _rest: Page | None = None

    @property
    def root(self) -> bytes:
        """The tree's root."""
        return merkle.root_from_chunk_roots(self.leaves, self.chunk_roots)

    def columns(self) -> Iterator[dict[str, bytes]]:
        """Of each chunk, as they are in its section; read back, so after `close`."""
        for chunk in range(len(self.chunk_roots)):
            yield scopefile.unpack_columns(self.spool.get(f"{self.number}/{chunk}"))

    def add(self, page: Page) -> None:
        """Append a page. What does not fill a chunk waits for the next."""
        if self._rest is not None:
            page = Page.joined([self._rest, page])
        whole = len(page.ids) // CHUNK_LEAVES * CHUNK_LEAVES
        self._rest = page.part(whole, len(page.ids)) if whole < len(page.ids) else None
        if whole:
            self._add(page.part(0, whole))

    def close(self) -> None:
        """There are no more: the last chunk may be short."""
        if self._rest is not None:
            self._add(self._rest)
            self._rest = None

    def _add(self, page: Page) -> None:
        """Hash leaves and cut chunk sections: of whole chunks, but for the last page."""
        base, count = self.leaves, len(page.ids)
        ids = page.ids.astype(">i8").view(np.uint8).reshape(-1, 8)[:, 2:].tobytes()
        hashes = merkle.leaf_hashes(
            pack_leaves(nonces(self.nonce_key, count, base), ids, page.digests), LEAF_BYTES
        )  # fmt: skip
        unit = self._unit_indices(page.unit, base)
        ordinals = page.ordinal.astype("<u8").tobytes()
        for at in range(0, count, CHUNK_LEAVES):
            end = min(at + CHUNK_LEAVES, count)
            columns = {
                "artifact_id": ids[at * 6 : end * 6],
                "digest": page.digests[at * 32 : end * 32],
                "ordinal": ordinals[at * 8 : end * 8],
                "unit": unit[at * 4 : end * 4],
                "locator": page.locators[at:end].pack(),
                "hashes": hashes[at * 32 : end * 32],
            }
            name = f"{self.number}/{(base + at) // CHUNK_LEAVES}"
            self.spool.put(name, scopefile.pack_columns(columns))
        self.chunk_roots += merkle.chunk_roots(hashes)
        self.leaves += count

    def _unit_indices(self, unit: I64, base: int) -> bytes:
        """Each leaf's index in this tree's unit table. Units come in ascending runs, so a new one starts where they change."""
        starts = sweeps.unit_starts(unit)
        numbers = unit[starts].tolist()
        known = int(bool(self.units) and self.units[-1] == numbers[0])
        first = len(self.units) - known
        self.units += numbers[known:]
        self.starts += (starts[known:].astype(np.int64) + base).tolist()
        lengths = np.diff(np.append(starts, len(unit)))
        return np.repeat(np.arange(first, len(self.units), dtype="<u4"), lengths).tobytes()


@dataclass(slots=True)
class Forest:
    """All trees of a sweep under way, in the order of their first pages (mutable). What grows with the leaves is in
    `spool`, and of an order its blinded handles in `handles`: in memory are a few bytes a photo. `last_artifact`: the
    highest id; `photos`: which images have a file."""

    key: bytes
    stores: Mapping[int, str]
    spool: Spool
    handles: Spool | None = None
    trees: dict[tuple[str, int], TreeBuilder] = field(default_factory=dict)
    photos: BitMap64 = field(default_factory=BitMap64)
    last_artifact: int = 0
    _pages: int = 0

    @property
    def leaves(self) -> int:
        """Leaves so far."""
        return sum(tree.leaves for tree in self.trees.values())

    def add(self, page: Page) -> None:
        """Append a page to its tree."""
        if not len(page.ids):
            return
        place = (page.kind, page.store_no)
        if place not in self.trees:
            number = len(self.trees)
            nonce_key = derive_key(self.key, "nonces", number.to_bytes(2, "big"))
            self.trees[place] = TreeBuilder(number, Kind(page.kind), self.stores[page.store_no], nonce_key, self.spool)
        self.trees[place].add(page)
        self.last_artifact = max(self.last_artifact, int(page.ids.max()))
        if page.kind == Kind.IMAGE:
            self.photos |= sweeps.bitmap(sweeps.distinct(page.ordinal))
        if self.handles is not None:
            for part, rows in sweeps.handle_parts(sweeps.handles(derive_key(self.key, "handles"), page.ids)):
                self.handles.put(f"{part}/{self._pages}", rows.tobytes())
        self._pages += 1

    def close(self) -> None:
        """There are no more pages."""
        for tree in self.trees.values():
            tree.close()

    def handles_root(self) -> bytes | None:
        """Of an order. Raises ValueError when an artifact occurs twice."""
        if self.handles is None:
            return None
        return sweeps.handles_root(_joined(self.handles, self._pages))

    def digests(self, size: int) -> Iterator[bytes]:
        """Of the photos' files, as the trees have them, `size` at a time; fewer the last time."""
        some = bytearray()
        for tree in self.trees.values():
            for columns in tree.columns() if tree.kind is Kind.IMAGE else ():
                some += columns["digest"]
                while len(some) >= size * DIGEST_BYTES:
                    yield bytes(some[: size * DIGEST_BYTES])
                    del some[: size * DIGEST_BYTES]
        if some:
            yield bytes(some)


def _joined(handles: Spool, pages: int) -> Iterator[NDArray[np.uint64]]:
    """The handles of each part, of all pages."""
    for part in range(sweeps.HANDLE_PARTS):
        names = [name for page in range(pages) if (name := f"{part}/{page}") in handles]
        if names:
            yield np.frombuffer(b"".join(map(handles.get, names)), np.uint64).reshape(-1, 2)


def same_artifacts(mine: TreeBuilder, other: scopefile.ScopeFile) -> tuple[NDArray[Any], NDArray[Any]]:
    """Leaves of `mine` that the other sweep's tree of the same (kind, store) has too: indices here and there."""
    trees: Any = other.header["trees"]
    for number, described in enumerate(trees):
        if (described["kind"], described["store"]) != (mine.kind, mine.store):
            continue
        theirs = (
            scopefile.unpack_columns(other.section(f"{number}/{chunk}"))
            for chunk in range(-(-described["leaves"] // CHUNK_LEAVES))
        )
        _, here, there = np.intersect1d(_ids(mine.columns()), _ids(theirs), return_indices=True)
        order = np.argsort(here)
        return here[order], there[order]
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _ids(chunks: Iterable[Mapping[str, bytes]]) -> I64:
    return np.concatenate([sweeps.artifact_ids(columns["artifact_id"]) for columns in chunks])
