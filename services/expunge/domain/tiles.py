"""Tiles of a transparency log: what files a tree of some size has, what is in them, and proofs read back from them.

Spec: C2SP tlog-tiles v0.1.0. A tile of level l holds up to 256 hashes, each the root over 256**l leaves; only the last
of a level may be partial. Nothing here touches files: `fetch` is the caller's, and so is caching across readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from expunge.domain import merkle
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.limits import LOG_ENTRY_BYTES
from expunge.domain.merkle import HASH_BYTES, Tree, node_hash

TILE_WIDTH: Final = 256
"""Hashes in a full tile (8,192 bytes), entries in a full bundle."""

Fetch: TypeAlias = Callable[[str], bytes]
"""Gives a stored file by its path, or raises `LookupError` when there is none."""


def fetcher(read: Callable[[str], bytes]) -> Fetch:
    """`read` raises `FileNotFoundError` where there is no such file, as `TileStore.read` does."""

    def fetch(path: str) -> bytes:
        try:
            return read(path)
        except FileNotFoundError as error:
            raise LookupError(path) from error

    return fetch


_HEIGHT: Final = 8
_LEVELS: Final = 64
_PATH: Final = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tile:
    """A file of hashes. `start` and `end` count hashes of its level, not leaves."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        """Raises `ValueError` for a tile that no tree has."""
        if not 0 <= self.level < _LEVELS:
            raise ValueError(f"expected a level below {_LEVELS}, got {self.level}")
        _check(self.index, self.width)

    @property
    def path(self) -> str:
        """`tile/<level>/<index>[.p/<width>]`."""
        return f"tile/{self.level}/{_number(self.index, self.width)}"

    @property
    def start(self) -> int:
        """First hash of its level in this tile."""
        return self.index * TILE_WIDTH

    @property
    def end(self) -> int:
        """One past the last hash of its level in this tile."""
        return self.start + self.width


@dataclass(frozen=True, slots=True)
class Bundle:
    """A file of log entries [start, end)."""

    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        """Raises `ValueError` for a bundle that no log has."""
        _check(self.index, self.width)

    @property
    def path(self) -> str:
        """`tile/entries/<index>[.p/<width>]`."""
        return f"tile/entries/{_number(self.index, self.width)}"

    @property
    def start(self) -> int:
        """First entry in this bundle."""
        return self.index * TILE_WIDTH

    @property
    def end(self) -> int:
        """One past the last entry in this bundle."""
        return self.start + self.width


def parse_path(path: str) -> Tile | Bundle:
    """The tile or bundle at `path`. Raises `Rejected("malformed")` for any spelling but the one of `path`."""
    match = _PATH.fullmatch(path)
    if match:
        kind, number, partial = match.groups()
        index = int(number.replace("/", "").replace("x", ""))
        width = int(partial or TILE_WIDTH)
        if width <= TILE_WIDTH and (kind == "entries" or int(kind) < _LEVELS):
            found = Bundle(index, width) if kind == "entries" else Tile(int(kind), index, width)
            if found.path == path:
                return found
    raise Rejected("malformed", "expected the path of a tile or an entry bundle")


def new_tiles(old_size: int, new_size: int) -> list[Tile]:
    """Tiles that the tree of `new_size` leaves has and that of `old_size` had not, by level, then index."""
    _check_sizes(old_size, new_size)
    tiles = []
    for level in range(_LEVELS):
        old, new = old_size >> _HEIGHT * level, new_size >> _HEIGHT * level
        if old == new:
            break
        tiles += [Tile(level, index, width) for index, width in _spans(old, new)]
    return tiles


def new_bundles(old_size: int, new_size: int) -> list[Bundle]:
    """Entry bundles that the log of `new_size` entries has and that of `old_size` had not."""
    _check_sizes(old_size, new_size)
    return [Bundle(index, width) for index, width in _spans(old_size, new_size)]


def extend(old_size: int, leaf_hashes: bytes, fetch: Fetch) -> list[tuple[str, bytes]]:
    """Paths and contents of `new_tiles` after `leaf_hashes` (32 bytes each) follow a tree of `old_size` leaves.

    Lowest level first. `fetch` is asked only for the old tree's own partial tiles, one per level at most. Raises
    `Tampered` when one has another length.
    """
    if len(leaf_hashes) % HASH_BYTES:
        raise ValueError(f"expected whole hashes of {HASH_BYTES} bytes, got {len(leaf_hashes)} bytes")
    files: list[tuple[str, bytes]] = []
    added, level = leaf_hashes, 0
    while added:
        first, kept = divmod(old_size >> _HEIGHT * level, TILE_WIDTH)
        flat = (_read(Tile(level, first, kept), fetch) if kept else b"") + added
        step = TILE_WIDTH * HASH_BYTES
        contents = [flat[at : at + step] for at in range(0, len(flat), step)]
        files += [
            (Tile(level, index, len(data) // HASH_BYTES).path, data) for index, data in enumerate(contents, first)
        ]
        added = b"".join([merkle.root(data) for data in contents if len(data) == step])
        level += 1
    return files


def bundle_bytes(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length (2 bytes, big-endian). Raises `ValueError` for too long an entry."""
    parts = []
    for entry in entries:
        if len(entry) > LOG_ENTRY_BYTES:
            raise ValueError(f"expected at most {LOG_ENTRY_BYTES} bytes, got {len(entry)}")
        parts += [len(entry).to_bytes(2, "big"), entry]
    return b"".join(parts)


def parse_bundle(data: bytes, width: int) -> list[bytes]:
    """The `width` entries of a bundle. Raises `Tampered` when it holds more, fewer, or part of one."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or len(entries) == width:
            raise Tampered("entry-bundle", f"expected {width} whole entries, got more or part of one")
        entries.append(data[at + 2 : end])
        at = end
    if len(entries) != width:
        raise Tampered("entry-bundle", f"expected {width} entries, got {len(entries)}")
    return entries


class TileTree:
    """The tree of `size` leaves, read from its tiles as needed; each tile is fetched and hashed once per reader.

    Tiles are not trusted: compare `root` with a checkpoint's, or verify the proofs. Raises `Tampered` for tiles of the
    wrong length, `LookupError` from `fetch` for missing ones. Memory: 16 KiB per tile seen.
    """

    def __init__(self, size: int, fetch: Fetch) -> None:
        self.size = size
        self._fetch = fetch
        self._tiles: dict[tuple[int, int], Tree] = {}

    @property
    def root(self) -> bytes:
        """Root over all leaves, 32 bytes."""
        return self.subtree_root(0, self.size) if self.size else merkle.EMPTY_ROOT

    def inclusion_path(self, index: int) -> list[bytes]:
        """As `merkle.Tree.inclusion_path`."""
        return [self.subtree_root(start, end) for start, end in merkle.inclusion_ranges(index, self.size)]

    def subtree_root(self, start: int, end: int) -> bytes:
        """As `merkle.Tree.subtree_root`."""
        width = end - start
        height = (width - 1).bit_length()
        if not 0 <= start < end <= self.size or start % (1 << height) or end not in {start + (1 << height), self.size}:
            raise ValueError(f"expected a subtree of {self.size} leaves, got [{start}, {end})")
        if width != 1 << height:
            middle = start + (1 << height - 1)
            return node_hash(self.subtree_root(start, middle), self.subtree_root(middle, end))
        level, inner = divmod(height, _HEIGHT)
        index, offset = divmod(start >> _HEIGHT * level, TILE_WIDTH)
        return self._tile(level, index).subtree_root(offset, offset + (1 << inner))

    def _tile(self, level: int, index: int) -> Tree:
        found = self._tiles.get((level, index))
        if found is None:
            width = min(TILE_WIDTH, (self.size >> _HEIGHT * level) - index * TILE_WIDTH)
            found = self._tiles[level, index] = Tree(_read(Tile(level, index, width), self._fetch))
        return found


def _read(tile: Tile, fetch: Fetch) -> bytes:
    expected = tile.width * HASH_BYTES
    try:
        data = fetch(tile.path)
    except LookupError:
        if tile.width == TILE_WIDTH:
            raise
        # A partial tile may be deleted once the full one is there.
        full = Tile(tile.level, tile.index)
        return _read(full, fetch)[:expected]
    if len(data) != expected:
        raise Tampered("tile", f"expected {expected} bytes at {tile.path}, got {len(data)}")
    return data


def _spans(old: int, new: int) -> list[tuple[int, int]]:
    if old == new:
        return []
    edges = [*range(old // TILE_WIDTH * TILE_WIDTH, new, TILE_WIDTH), new]
    return [(start // TILE_WIDTH, end - start) for start, end in pairwise(edges)]


def _number(index: int, width: int) -> str:
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    *upper, last = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    partial = f".p/{width}" if width < TILE_WIDTH else ""
    return "".join(f"x{group}/" for group in upper) + last + partial


def _check(index: int, width: int) -> None:
    if index < 0 or not 0 < width <= TILE_WIDTH:
        raise ValueError(f"expected an index and a width of 1 to {TILE_WIDTH}, got {index} and {width}")


def _check_sizes(old_size: int, new_size: int) -> None:
    if not 0 <= old_size <= new_size:
        raise ValueError(f"expected sizes in order, got {old_size} and {new_size}")
