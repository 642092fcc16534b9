"""`faiss:///dir`, `faiss+s3://bucket/prefix`: a unit is an index file, a locator a vector id in decimal.

Three kinds of index can give a vector back: Flat under an id map, IVFFlat in one file, and HNSWFlat under an id map,
which is rebuilt from the vectors that stay. Others (quantised, on-disk lists, HNSW by position) are answered with
BLOCKED, for what they hold is not enough to build them again. `add` and `search` are for the product: `search` leaves
hidden vectors out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from io import BytesIO
from threading import Lock
from typing import Any, BinaryIO, Final

import faiss as untyped_faiss
import numpy as np
from numpy.typing import NDArray

from expunge.adapters.stores import CrashPoint, Rewrite, UnitFile, all_outcomes, nowhere, os_faults, windows
from expunge.adapters.stores.tombstones import Tombstones
from expunge.adapters.stores.units import LocalFiles, Unit, UnitFiles, Withheld, files_of, refuse_rest
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.locators import Locators
from expunge.domain.words import Level, Outcome
from expunge.ports import Capabilities, Erasure, Outcomes

CANNOT_DROP: Final = "this type of index cannot drop a vector: it must be rebuilt from the survivors"
CENTROID: Final = "a coarse centroid of the index equals an erased vector: the index must be trained again"

faiss: Any = untyped_faiss  # its stubs lack half of what is used here

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

_METHOD: Final = "removal and rewrite of the index file"
_TOKEN_CHARS: Final = 16
_NEEDLE_BYTES: Final = 16
_BITMAP_IDS: Final = 1 << 26
"""A bitmap selector is the fastest; above this largest id (8 MiB of bitmap) a hashed set is smaller."""
_SEARCHED: Final = 8
_BLOCK: Final = 1 << 16
"""Ids worked on at once: bounds the memory."""
_DENSE: Final = 6
"""Numbers per id up to which a table of them costs less than sorting."""
_COPIED_BYTES: Final = 1 << 20
_FLAT: Final = struct.Struct("<4siq16s?i4siq16s?iQ")
_FLAT_HEAD: Final = _FLAT.size
_MAPPED: Final = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
"""Since faiss 1.11; before it the file is read."""


class Kind(Enum):
    """Flat under an id map; IVFFlat; HNSWFlat under an id map."""

    FLAT = auto()
    LISTS = auto()
    GRAPH = auto()


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a kind that can give its vectors back. `faiss`: kept alive here, for parts of it are bare pointers."""

    faiss: Any  # SWIG types: not typed well enough to help
    kind: Kind

    def ids(self) -> Ids:
        if self.kind is not Kind.LISTS:
            return np.array(faiss.vector_to_array(self.faiss.id_map), dtype=np.int64)
        lists = self.faiss.invlists
        held = [
            faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)).copy()
            for i in range(self.faiss.nlist)
            if lists.list_size(i)
        ]
        return np.concatenate([np.empty(0, np.int64), *held])

    def vectors(self, ids: Ids) -> Vectors:
        """The stored floats of those of `ids` that are there, in storage order."""
        at = _places(self.ids(), ids)
        if self.kind is not Kind.LISTS:
            flat = faiss.downcast_index(self.faiss.index)
            if self.kind is Kind.GRAPH:
                flat = faiss.downcast_index(flat.storage)
            stored = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
            return np.array(stored[at], dtype=np.float32)
        lists, d = self.faiss.invlists, self.faiss.d
        held = [
            faiss.rev_swig_ptr(lists.get_codes(i), lists.list_size(i) * d * 4).view(np.float32).reshape(-1, d)
            for i in range(self.faiss.nlist)
            if lists.list_size(i)
        ]
        return np.array(np.concatenate([np.empty((0, d), np.float32), *held])[at], dtype=np.float32)

    def centroids(self) -> Vectors:
        if self.kind is not Kind.LISTS:
            return np.empty((0, self.faiss.d), np.float32)
        return np.asarray(self.faiss.quantizer.reconstruct_n(0, self.faiss.nlist), dtype=np.float32)

    def without(self, ids: Ids) -> tuple[int, Index]:
        """How many of `ids` there were, and the index without them: this one, or a rebuilt one."""
        if self.kind is Kind.GRAPH:
            return _rebuilt(self, ids) if _among(self.ids(), ids).any() else (0, self)
        return _remove(self, ids), self

    def parameters(self) -> Any:  # noqa: ANN401 - a SWIG object
        """Of a search as the index would do it by itself."""
        match self.kind:
            case Kind.FLAT:
                return faiss.SearchParameters()
            case Kind.LISTS:
                return faiss.SearchParametersIVF(nprobe=self.faiss.nprobe)
            case Kind.GRAPH:
                return faiss.SearchParametersHNSW(efSearch=faiss.downcast_index(self.faiss.index).hnsw.efSearch)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a reader needs of a unit: `held`, the ids in storage order, and the stored floats at some places of them.

    A Flat index under an id map keeps its ids and vectors where its head says, so they are read from there, and the
    rest of what may be gigabytes is not. Any other file is read by the library.
    """

    held: Ids
    vectors_at: Callable[[Ids], Vectors]

    @classmethod
    def of_flat(cls, path: str) -> Stored | None:
        """None unless the file is a Flat index under an id map, of just the size that its head leads to."""
        with open(path, "rb") as file:
            if (layout := _flat_layout(file)) is None:
                return None
            dimensions, count = layout
            file.seek(-8 * count, os.SEEK_END)
            held = np.frombuffer(file.read(8 * count), "<i8")

        def vectors_at(places: Ids) -> Vectors:
            with open(path, "rb") as file:
                if _flat_layout(file) != layout:
                    raise Retryable("the index changed while it was read")
                rows = [
                    os.pread(file.fileno(), 4 * dimensions, _FLAT_HEAD + 4 * dimensions * at) for at in places.tolist()
                ]
            return np.frombuffer(b"".join(rows), "<f4").reshape(-1, dimensions)

        return cls(held, vectors_at) if len(held) == count else None

    @classmethod
    def of_index(cls, index: Index) -> Stored:
        held = index.ids()
        return cls(held, lambda places: index.vectors(held[places]))


class Unsupported(Rejected):
    """The file holds an index of a type that this adapter cannot erase from."""

    def __init__(self) -> None:
        super().__init__(
            "unsupported-index", f"expected IDMap over Flat or HNSWFlat, or IVFFlat in one file; {CANNOT_DROP}"
        )


class FaissReader:
    def __init__(self, root: str | UnitFiles, name: str) -> None:
        self.name = name
        self._files = LocalFiles(root) if isinstance(root, str) else root
        self.capabilities = Capabilities(rewrites_unit=True, max_level=self._files.level)
        self._erases = False
        self._loaded: tuple[str, Hashable, Index] | None = None
        self._stored: tuple[str, Hashable, Stored] | None = None
        self._loading = Lock()

    def search(self, unit: str, vectors: Vectors, k: int) -> tuple[Vectors, Ids]:
        """Distances and ids of the `k` nearest that are not hidden; id -1 where there are fewer."""
        file = self._file(unit)
        hidden = _hidden_ids(file)
        index = self._load(file)
        parameters = index.parameters()
        if hidden.size:
            hiding = faiss.IDSelectorBatch(hidden)  # kept alive here: the parameters hold bare pointers
            showing = faiss.IDSelectorNot(hiding)
            parameters.sel = showing
        distances, ids = index.faiss.search(np.ascontiguousarray(vectors, np.float32), k, params=parameters)
        return distances, ids

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        wanted = _ids(locators)
        file = self._file(unit)
        with os_faults():
            hidden = _hidden_ids(file)
            there = _among(wanted, self._look(file).held) if file.exists() else np.zeros(len(wanted), dtype=np.bool_)
            for path in file.former():
                there |= _among(wanted, _read(path).ids())
        return there & ~_among(wanted, hidden)

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Three windows of 16 bytes (four components) of each vector's stored floats."""
        wanted = _ids(locators)
        file = self._file(unit)
        with os_faults():
            if not file.exists():
                return [()] * len(locators)
            stored = self._look(file)
            places = _places(stored.held, wanted)
            rows = stored.vectors_at(places)
        found = dict(zip(stored.held[places].tolist(), (row.tobytes() for row in rows), strict=True))
        return [_needles(found.get(i, b"")) for i in wanted.tolist()]

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """Reads the index file, its side files and leftovers of crashed rewrites."""
        with os_faults():
            return self._file(unit).count(needles)

    def _file(self, unit: str) -> Unit:
        if not self._erases:
            self._files.check()
        return self._files.unit(unit, _TOKEN_CHARS)

    def _look(self, file: Unit) -> Stored:
        """What is in the file now; the last answer is kept."""
        with self._loading:
            contents = file.contents()
            if self._stored is None or self._stored[:2] != (file.path, contents):
                # Only of a file that lies here can parts be read later on: of others the copy is gone by then.
                stored = Stored.of_flat(file.path) if isinstance(file, UnitFile) else None
                if stored is None:
                    return Stored.of_index(self._loaded_index(file, contents))
                self._stored = (file.path, contents, stored)
            return self._stored[2]

    def _load(self, file: Unit) -> Index:
        """The index as it is in the file now; the last one read is kept."""
        with self._loading:
            return self._loaded_index(file, file.contents())

    def _loaded_index(self, file: Unit, contents: Hashable) -> Index:
        if self._loaded is None or self._loaded[:2] != (file.path, contents):
            self._loaded = None  # two large indexes never have to fit
            with file.reading() as path:
                self._loaded = (file.path, contents, _read(path))
        return self._loaded[2]


class FaissStore(FaissReader):
    """What is added before the switch under an id that is being erased is erased with it; `add` refuses an id that is
    hidden. `add` from any process is safe, because it takes the unit's lock."""

    def __init__(self, root: str | UnitFiles, name: str, *, crash_point: CrashPoint = nowhere) -> None:
        super().__init__(root, name)
        self._crash_point = crash_point
        self._erases = True

    def create(self, unit: str, index: Any) -> None:  # noqa: ANN401 - a SWIG object
        """Put an index (trained, perhaps filled) in the unit's place."""
        if _kind(index) is None:
            raise Unsupported
        self._file(unit).replace(lambda _, __, new: _write(index, new))

    def add(self, unit: str, ids: Ids, vectors: Vectors) -> None:
        """Insert, in the place of vectors with the same ids. A missing index is made: Flat, L2."""
        ids, vectors = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(vectors, np.float32)

        def with_them(old: str | None, hidden: AbstractSet[str], new: str) -> None:
            if np.isin(ids, _as_ids(hidden)).any():
                raise Rejected("hidden-artifact", "expected new ids, got one that is hidden and awaits erasure")
            index = _read(old) if old is not None else _new(vectors.shape[1])
            _, index = index.without(ids)
            index.faiss.add_with_ids(vectors, ids)
            _write(index.faiss, new)

        self._file(unit).replace(with_them)

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        wanted = _ids(locators)
        file = self._file(unit)
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)

        def choose(tokens: AbstractSet[str]) -> Tombstones:
            known = _among(wanted, _as_ids(tokens))
            there = _among(wanted, self._look(file).held) | known
            outcomes[there] = Outcome.GONE
            return _tokens(wanted[there & ~known])

        with os_faults():
            if file.exists():
                file.hide(choose, self._crash_point)
        return outcomes

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        wanted = _ids(locators)
        file = self._file(unit)
        outcomes = all_outcomes(len(locators), Outcome.ABSENT_BEFORE)
        level, residue = self.capabilities.max_level, self._files.residue
        self._stored = None  # of a file that is about to be replaced
        with os_faults():
            try:
                if not file.exists():
                    file.forget(fence, _tokens(wanted))
                    return Erasure(outcomes, level, _METHOD, residue)
                removed = file.rewrite(
                    fence, lambda old, new: _without(old, new, wanted), _tokens(wanted), self._crash_point
                )
            except Unsupported:
                blocked = all_outcomes(len(locators), Outcome.BLOCKED)
                return Erasure(blocked, Level.ACKNOWLEDGED, "none", (CANNOT_DROP,))
            except Withheld as kept:
                return kept.erasure(len(locators), _METHOD, residue)
        outcomes[_among(wanted, removed.ids)] = Outcome.GONE
        if removed.is_centroid:
            return Erasure(outcomes, Level.UNREACHABLE, _METHOD, (CENTROID, *residue))
        return Erasure(outcomes, level, _METHOD, residue)


@dataclass(frozen=True, slots=True)
class Removed:
    ids: Ids
    is_centroid: bool


def open_store(url: str, name: str) -> FaissStore:
    files, rest = files_of(url, erasing=True)
    refuse_rest(rest)
    return FaissStore(files, name)


def open_reader(url: str, name: str) -> FaissReader:
    files, rest = files_of(url, erasing=False)
    refuse_rest(rest)
    return FaissReader(files, name)


def _ids(locators: Sequence[str]) -> Ids:
    # canonical only: "07" and "7" would be two leaves for one vector; checked in bulk, this runs for millions
    try:
        ids = Locators.of(locators).decimals()
    except UnicodeEncodeError:
        ids = None
    if ids is None:
        raise Rejected("hostile-locator", "expected vector ids in decimal, 0 to 2**63 - 1, without leading zeros")
    return ids


def _among(ids: Ids, others: Ids) -> NDArray[np.bool_]:
    """(n) which of `ids` are among others. Where these lie close together a table says so, a byte for each that may be, and
    memory does not grow with `ids`."""
    low, high = (int(others.min()), int(others.max())) if len(others) else (0, -1)
    if high - low >= _DENSE * (len(ids) + len(others)):
        return np.isin(ids, others)
    table = np.zeros(high - low + 1, np.bool_)
    found = np.zeros(len(ids), np.bool_)
    for first in range(0, len(others), _BLOCK):
        table[others[first : first + _BLOCK] - low] = True
    for first in range(0, len(ids), _BLOCK):
        some = ids[first : first + _BLOCK]
        inside = np.flatnonzero((some >= low) & (some <= high))
        found[inside + first] = table[some[inside] - low]
    return found


def _tokens(ids: Ids) -> Tombstones:
    made = BytesIO()  # its value is no copy of what it holds
    for first in range(0, len(ids), _BLOCK):
        made.write(ids[first : first + _BLOCK].astype(">i8").tobytes().hex().encode("ascii"))
    return Tombstones(made.getvalue(), _TOKEN_CHARS)


def _hidden_ids(file: Unit) -> Ids:
    return _as_ids(file.hidden())


def _as_ids(tokens: AbstractSet[str]) -> Ids:
    packed, block = Tombstones.of(tokens, _TOKEN_CHARS).packed, _BLOCK * _TOKEN_CHARS
    ids = np.zeros(len(packed) // _TOKEN_CHARS, np.int64)
    for number, first in enumerate(range(0, len(packed), block)):
        some = bytes.fromhex(packed[first : first + block].decode("ascii"))
        ids[number * _BLOCK : (number + 1) * _BLOCK] = np.frombuffer(some, ">i8")
    return ids


def _places(held: Ids, ids: Ids) -> Ids:
    """Where those of `ids` that are held are."""
    return np.flatnonzero(_among(held, ids))


def _flat_layout(file: BinaryIO) -> tuple[int, int] | None:
    """Dimensions and count, from the head of an index file as `write_index` of faiss lays it out:

    "IxMp" or "IxM2" (the id map), head, "IxF2" or "IxFI" (Flat), head, number of floats (u64), floats, number of ids
    (u64), ids. A head: dimensions (i32), vectors (i64), 16 bytes of no meaning, trained (u8), metric (i32; 0 and 1 have
    no argument behind it). Little-endian.
    """
    head = file.read(_FLAT_HEAD)
    if len(head) < _FLAT_HEAD:
        return None
    outer, dimensions, count, _, _, metric, inner, *same, inner_metric, floats = _FLAT.unpack(head)
    size = _FLAT_HEAD + 4 * floats + 8 + 8 * count
    if (
        outer not in {b"IxMp", b"IxM2"} or inner not in {b"IxF2", b"IxFI"} or same[:2] != [dimensions, count]
        or not {metric, inner_metric} <= {0, 1} or floats != count * dimensions
        or os.fstat(file.fileno()).st_size != size
    ):  # fmt: skip
        return None
    return dimensions, count


def _new(dimensions: int) -> Index:
    return Index(faiss.IndexIDMap2(faiss.IndexFlatL2(dimensions)), Kind.FLAT)


def _kind(index: Any) -> Index | None:  # noqa: ANN401 - a SWIG object
    if isinstance(index, faiss.IndexIDMap):
        inner = faiss.downcast_index(index.index)
        if isinstance(inner, faiss.IndexHNSWFlat):
            return Index(index, Kind.GRAPH)
        return Index(index, Kind.FLAT) if isinstance(inner, faiss.IndexFlat) else None
    if type(index) is faiss.IndexIVFFlat:
        in_memory = isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists)
        no_map = index.direct_map.type == faiss.DirectMap.NoMap
        flat_quantizer = isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat)
        return Index(index, Kind.LISTS) if in_memory and no_map and flat_quantizer else None
    return None


def _read(path: str, flags: int = 0) -> Index:
    try:
        index = _kind(faiss.read_index(path, flags))
    except RuntimeError as e:
        if not os.path.exists(path):
            raise Retryable("the index file vanished while it was opened") from e
        raise Unsupported from e
    if index is None:
        raise Unsupported
    return index


def _write(index: Any, path: str) -> None:  # noqa: ANN401 - a SWIG object
    try:
        faiss.write_index(index, path)
    except RuntimeError as e:
        raise Retryable("the index could not be written") from e


def _remove(index: Index, ids: Ids) -> int:
    if ids.size == 0:
        return 0
    if (largest := int(ids.max())) < _BITMAP_IDS:
        chosen = np.zeros(largest + 1, dtype=np.bool_)
        chosen[ids] = True
        bits = np.packbits(chosen, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits.size, faiss.swig_ptr(bits))
    else:
        selector = faiss.IDSelectorBatch(ids)
    return int(index.faiss.remove_ids(selector))


def _rebuilt(index: Index, ids: Ids) -> tuple[int, Index]:
    """A graph anew from the vectors that stay, with the same parameters: faiss removes nothing from one, and a repaired
    graph would keep links that the erased vector made."""
    old = faiss.downcast_index(index.faiss.index)
    held = index.ids()
    stay = ~_among(held, ids)
    new = faiss.IndexHNSWFlat(old.d, old.hnsw.nb_neighbors(1), old.metric_type)
    new.metric_arg = old.metric_arg
    new.hnsw.efConstruction, new.hnsw.efSearch = old.hnsw.efConstruction, old.hnsw.efSearch
    new.hnsw.check_relative_distance = old.hnsw.check_relative_distance
    mapped = type(index.faiss)(new)
    mapped.add_with_ids(index.vectors(held[stay]), held[stay])
    return int((~stay).sum()), Index(mapped, Kind.GRAPH)


def _without(old: str, new: str, wanted: Ids) -> Rewrite[Removed]:
    """Write `new`: `old` without the vectors whose ids are `wanted`. Nothing is written where it has none of these."""
    with open(old, "rb") as file:
        if (layout := _flat_layout(file)) is not None:
            return _without_flat(file, new, wanted, *layout)
    index = _read(old)
    held = index.ids()
    ids = held[_places(held, wanted)]
    if ids.size == 0:
        return Rewrite(changed=False, result=Removed(ids, is_centroid=False))
    # Only of an index with centroids are all vectors needed: one may equal a centroid.
    vectors = index.vectors(ids if index.kind is Kind.LISTS else ids[:_SEARCHED])
    before = int(index.faiss.ntotal)
    removed, index = index.without(ids)
    _write(index.faiss, new)
    centroids = index.centroids()
    del index  # two large indexes never have to fit
    _verify(new, before - removed, ids, vectors[:_SEARCHED])
    return Rewrite(changed=True, result=Removed(ids, _share_a_row(vectors, centroids)))


def _without_flat(file: BinaryIO, new: str, wanted: Ids, dimensions: int, count: int) -> Rewrite[Removed]:
    """The same of a Flat index under an id map, as the library would write it: what stays is copied block by block, so
    that memory does not grow with the index, and what goes is not even read."""
    width, fd = 4 * dimensions, file.fileno()
    file.seek(-8 * count, os.SEEK_END)
    held = np.frombuffer(file.read(8 * count), "<i8").astype(np.int64, copy=False)
    if len(held) != count:
        raise Retryable("the index changed while it was read")
    going = _among(held, wanted)
    ids, kept = held[going], held[~going]
    if ids.size == 0:
        return Rewrite(changed=False, result=Removed(ids, is_centroid=False))
    places = np.flatnonzero(going)[:_SEARCHED].tolist()
    vectors = b"".join([os.pread(fd, width, _FLAT_HEAD + width * at) for at in places])
    outer, _, _, *between = _FLAT.unpack(os.pread(fd, _FLAT_HEAD, 0))
    between[4:6], between[-1] = [dimensions, len(kept)], len(kept) * dimensions
    rows = max(_COPIED_BYTES // width, 1)
    with open(new, "wb") as out:
        out.write(_FLAT.pack(outer, dimensions, len(kept), *between))
        for first in range(0, count, rows):
            stay = ~going[first : first + rows]
            if not stay.any():
                continue
            block = os.pread(fd, width * len(stay), _FLAT_HEAD + width * first)
            if len(block) != width * len(stay):
                raise Retryable("the index changed while it was read")
            out.write(block if stay.all() else np.frombuffer(block, np.uint8).reshape(-1, width)[stay].tobytes())
        out.write(len(kept).to_bytes(8, "little"))
        out.write(kept.astype("<i8", copy=False).data)
    left = len(kept)
    del held, going, kept  # the library reads the ids once more
    _verify(new, left, ids, np.frombuffer(vectors, "<f4").reshape(-1, dimensions).astype(np.float32))
    return Rewrite(changed=True, result=Removed(ids, is_centroid=False))


def _verify(temp: str, left: int, ids: Ids, vectors: Vectors) -> None:
    """From the new file: the count, the ids, and a search for some of the erased vectors themselves."""
    new = _read(temp, _MAPPED)  # a third of the time of reading it, and safe: nobody truncates this file
    held = new.ids()
    if new.faiss.ntotal != left or held.size != left or _among(ids, held).any():
        raise Retryable("the new index does not hold exactly the survivors; the old one was left in place")
    _, nearest = new.faiss.search(vectors, 1)
    if np.isin(nearest, ids).any():
        raise Retryable("a search of the new index still finds an erased vector; the old one was left in place")


def _share_a_row(a: Vectors, b: Vectors) -> bool:
    """With as many centroids as training vectors a centroid is a vector, and stays when the vector is removed."""
    rows = {row.tobytes() for row in b}
    return any(row.tobytes() in rows for row in a)


def _needles(content: bytes) -> tuple[bytes, ...]:
    return windows(len(content), lambda at, width: content[at : at + width], _NEEDLE_BYTES)
