"""Sealed scope files, open: a small cache of them, and runs of chunks read into columns. Blocking: call it in threads.

A file is used only if its SHA-256 is the one that the published scope statement names. Nothing here is per artifact.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from mmap import mmap
from threading import Lock
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from expunge.domain import leaf, merkle, scopefile
from expunge.domain import sweep as sweeps
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.locators import Locators
from expunge.domain.words import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from expunge.ports import KeyStore, SealedStore

OPEN_SCOPES: Final = 8
"""Scope files kept open. They are mapped, not loaded: what a file costs is its unit table and its chunk roots."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the sweep's row says that an executor needs. `roots`: per tree, as its scope statement has them; `others`:
    sweeps that hold some of the same artifacts, where somebody asked."""

    sweep_id: UUID
    bucket: date
    scope_digest: bytes
    scope_index: int
    file_digest: bytes
    roots: tuple[bytes, ...]
    is_order: bool = False
    others: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree of a sweep."""

    kind: Kind
    store: str
    leaves: int

    @property
    def chunks(self) -> int:
        return -(-self.leaves // CHUNK_LEAVES)


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks [first_chunk, first_chunk + len(digests)) of a tree, as columns. `unit` (n) indexes `units`, the unit names
    of the whole tree; leaves are in physical order, so a unit is one slice. `digests`: SHA-256 over the leaf hashes of
    each chunk."""

    tree: int
    first_chunk: int
    units: list[str]
    unit: NDArray[np.uint32]
    locators: Locators
    digests: tuple[bytes, ...]

    @property
    def start(self) -> int:
        """Index in the tree of the first leaf."""
        return self.first_chunk * CHUNK_LEAVES

    def slices(self) -> list[tuple[str, int, int]]:
        """(unit, first, end) in physical order; positions count from the run's first leaf."""
        borders = np.flatnonzero(np.diff(self.unit)) + 1
        starts = [0, *borders.tolist()]
        ends = [*borders.tolist(), len(self.unit)]
        names = self.unit[starts].tolist() if len(self.unit) else []
        return [(self.units[n], a, b) for n, a, b in zip(names, starts, ends, strict=bool(names))]

    def positions(self, chunk: int) -> slice:
        """Where the leaves of a chunk are among the run's."""
        first = (chunk - self.first_chunk) * CHUNK_LEAVES
        return slice(first, min(first + CHUNK_LEAVES, len(self.unit)))


class OpenScope:
    """One sweep's scope file, open under its key. `roots`: of its trees, as published.

    Raises `Tampered` unless the chunk roots in the file lead to these.
    """

    def __init__(self, file: scopefile.ScopeFile, key: bytes, roots: Sequence[bytes]) -> None:
        self.key: Final = key
        self.trees: Final = _trees(file.header.get("trees"))
        self._file = file
        self._units: dict[int, list[str]] = {}
        self._roots = [scopefile.chunk_roots(file, tree) for tree in range(len(self.trees))]
        for tree, chunks, root in zip(self.trees, self._roots, roots, strict=True):
            if merkle.root_from_chunk_roots(tree.leaves, chunks) != root:
                raise Tampered("scope-file", "expected chunk roots that lead to the published root")

    def run(self, tree: int, first_chunk: int, end_chunk: int) -> Run:
        """Chunks [first_chunk, end_chunk). Raises `Rejected("no-such-chunk")` when the sweep has none such."""
        if tree >= len(self.trees) or not 0 <= first_chunk < end_chunk <= self.trees[tree].chunks:
            raise Rejected("no-such-chunk", f"expected chunks of tree {tree}, got {first_chunk} to {end_chunk}")
        count = min(end_chunk * CHUNK_LEAVES, self.trees[tree].leaves) - first_chunk * CHUNK_LEAVES
        units = np.zeros(count, np.uint32)
        digests = []

        def locators() -> Iterator[Locators]:
            for at, chunk in enumerate(range(first_chunk, end_chunk)):
                columns = scopefile.unpack_columns(self._file.section(f"{tree}/{chunk}"))
                units[at * CHUNK_LEAVES : (at + 1) * CHUNK_LEAVES] = np.frombuffer(columns["unit"], "<u4")
                digests.append(hashlib.sha256(columns["hashes"]).digest())
                yield Locators.unpack(columns["locator"])

        gathered = Locators.gathered(count, locators())
        return Run(tree, first_chunk, self._unit_names(tree), units, gathered, tuple(digests))

    def overlaps(self, tree: int) -> NDArray[np.uint32]:
        """Leaves of a tree that an earlier, still open sweep holds too."""
        columns = scopefile.unpack_columns(self._file.section(f"{tree}/overlaps"))
        return np.frombuffer(columns["leaf"], "<u4")

    def shared(self, tree: int, other: OpenScope) -> sweeps.Shared | None:
        """Leaves of a tree that another sweep holds too, whichever of the two was sealed first."""
        return sweeps.shared(self._file, tree, other._file)

    def chunk_root(self, tree: int, chunk: int) -> bytes:
        """Root of one chunk's subtree."""
        return self._roots[tree][chunk]

    def _unit_names(self, tree: int) -> list[str]:
        if tree not in self._units:
            columns = scopefile.unpack_columns(self._file.section(f"{tree}/units"))
            self._units[tree] = scopefile.unpack_strings(columns["units"])
        return self._units[tree]


class Scopes:
    """The scope files of the sweeps at work, the last used ones kept open."""

    def __init__(self, *, sealed: SealedStore, keys: KeyStore, limit: int = OPEN_SCOPES) -> None:
        self._sealed = sealed
        self._keys = keys
        self._limit = limit
        self._open: OrderedDict[UUID, OpenScope] = OrderedDict()
        self._lock = Lock()

    def open(self, sweep: Sweep) -> OpenScope:
        """Raises `Rejected` when the key or the file is gone, `Tampered` when it is not the file that was sealed."""
        with self._lock:
            if (found := self._open.get(sweep.sweep_id)) is None:
                found = self._open[sweep.sweep_id] = self._read(sweep)
            self._open.move_to_end(sweep.sweep_id)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
            return found

    def _read(self, sweep: Sweep) -> OpenScope:
        bucket = self._keys.bucket(sweep.bucket)
        key = leaf.derive_key(bucket, "sweep", sweep.sweep_id.bytes)
        try:
            buffer = self._sealed.open(f"{sweep.sweep_id}.scope")
        except FileNotFoundError:
            raise Rejected("scope-lost", "expected the sweep's sealed scope file, got none") from None
        if hashlib.sha256(buffer).digest() != sweep.file_digest:
            raise Tampered(f"scope file of sweep {sweep.sweep_id}", "expected the digest that its statement names")
        mapped = buffer.obj if isinstance(buffer.obj, mmap) and len(buffer.obj) == len(buffer) else bytes(buffer)
        return OpenScope(scopefile.ScopeFile.open(mapped, key), key, sweep.roots)


def open_scope(
    keys: KeyStore, sealed: SealedStore, sweep_id: UUID, bucket: date
) -> tuple[scopefile.ScopeFile, bytes]:  # fmt: skip
    """A sweep's scope file and its key, for who needs no proof that it is the one that was sealed: its digest is not
    compared. `bucket`: the day of sealing. Raises `Rejected` when the key is gone, `FileNotFoundError` when the file is."""
    key = leaf.derive_key(keys.bucket(bucket), "sweep", sweep_id.bytes)
    return scopefile.ScopeFile.open(sealed.open(f"{sweep_id}.scope"), key), key


def _trees(header: object) -> tuple[Tree, ...]:
    match header:
        case list(trees):
            return tuple(Tree(Kind(tree["kind"]), str(tree["store"]), int(tree["leaves"])) for tree in trees)
        case _:
            raise Tampered("scope-file", "expected a list of trees in the header")
