"""RFC 6962 SHA-256 Merkle trees over flat buffers: build, prove, check. Words and pseudocode: RFC 9162 section 2.1.

A level is one `bytes` of 32-byte hashes. Pairing from the left and promoting an odd last node gives the RFC's tree, so
node i of level h is the root over leaves [i * 2**h, min((i + 1) * 2**h, n)): each subtree a proof needs is a slice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, Protocol, TypeAlias

from expunge.domain import hashing
from expunge.domain.errors import Tampered
from expunge.domain.hashing import Flat
from expunge.domain.limits import CHUNK_LEAVES

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
"""Root of the tree of no leaves."""

Range: TypeAlias = tuple[int, int]
"""Leaves [start, end) of a subtree that the tree of its size really has."""

_PAIR_BYTES: Final = 2 * HASH_BYTES


class Subtrees(Protocol):
    """What can give the root of any subtree: a `Tree`, or a reader of tiles."""

    @property
    def size(self) -> int:
        """Leaves in the tree."""

    def subtree_root(self, start: int, end: int) -> bytes:
        """Root over leaves [start, end), where that is a node of the tree."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data), 32 bytes (RFC 6962 section 2.1)."""
    return sha256(b"\x00" + data).digest()


def leaf_hashes(data: Flat, size: int) -> bytes:
    """Hashes of `len(data) / size` leaves of `size` bytes each, 32 bytes each, in one buffer."""
    if size <= 0 or len(data) % size:
        raise ValueError(f"expected whole leaves of {size} bytes, got {len(data)} bytes")
    return hashing.hashes(0, data, size)


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes (RFC 6962 section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Flat) -> bytes:
    """Root over n leaf hashes (32n bytes), keeping one level at a time."""
    level = leaf_hashes
    if len(level) % HASH_BYTES:
        raise ValueError(f"expected whole hashes of {HASH_BYTES} bytes, got {len(level)} bytes")
    while len(level) > HASH_BYTES:
        level = _parents(level)
    return bytes(level) or EMPTY_ROOT


def chunk_roots(leaf_hashes: Flat, chunk: int = CHUNK_LEAVES) -> list[bytes]:
    """Roots over each `chunk` (a power of two) of n leaf hashes (32n bytes); the last may be short. Level by level over
    all chunks at once."""
    _check_chunk(chunk)
    view = memoryview(leaf_hashes)
    whole = len(view) // (chunk * HASH_BYTES) * chunk * HASH_BYTES
    level: Flat = view[:whole]
    for _ in range(chunk.bit_length() - 1):
        level = _parents(level)
    flat = bytes(level)
    roots = [flat[at : at + HASH_BYTES] for at in range(0, len(flat), HASH_BYTES)]
    return [*roots, root(view[whole:])] if whole < len(view) else roots


class Tree:
    """All levels of a tree over n leaf hashes (`32n` bytes, n may be 0), in about 64n bytes."""

    def __init__(self, leaf_hashes: bytes) -> None:
        if len(leaf_hashes) % HASH_BYTES:
            raise ValueError(f"expected whole hashes of {HASH_BYTES} bytes, got {len(leaf_hashes)} bytes")
        self.size = len(leaf_hashes) // HASH_BYTES
        self._levels = [leaf_hashes]
        while len(self._levels[-1]) > HASH_BYTES:
            self._levels.append(_parents(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """The tree's root, 32 bytes."""
        return self._levels[-1] or EMPTY_ROOT

    def inclusion_path(self, index: int) -> list[bytes]:
        """PATH(index, D[n]) of RFC 6962 section 2.1.1: sibling of the leaf first. Raises `ValueError` out of range."""
        _check_index(index, self.size)
        path = []
        for level in self._levels:
            at = (index ^ 1) * HASH_BYTES
            if sibling := level[at : at + HASH_BYTES]:  # an odd last node has none: it is promoted
                path.append(sibling)
            index >>= 1
        return path

    def subtree_root(self, start: int, end: int) -> bytes:
        """Root over [start, end): an aligned power of two of leaves, or the short last one. `ValueError` else."""
        height = (end - start - 1).bit_length()
        width = 1 << height
        if not 0 <= start < end <= self.size or start % width or end not in {start + width, self.size}:
            raise ValueError(f"expected a subtree of {self.size} leaves, got [{start}, {end})")
        at = (start >> height) * HASH_BYTES
        return self._levels[height][at : at + HASH_BYTES]

    def chunk_roots(self, chunk: int = CHUNK_LEAVES) -> list[bytes]:
        """Roots over each `chunk` leaves (a power of two), the last may be short; none for an empty tree."""
        _check_chunk(chunk)
        level = self._levels[min(chunk.bit_length() - 1, len(self._levels) - 1)]
        return [level[at : at + HASH_BYTES] for at in range(0, len(level), HASH_BYTES)]

    def multiproof(self, indices: Sequence[int]) -> list[bytes]:
        """What `root_from_multiproof` needs beside the leaves at `indices` (any order, at least one)."""
        return [self.subtree_root(start, end) for start, end in multiproof_ranges(self.size, indices)]


def root_from_chunk_roots(size: int, chunk_roots: Sequence[bytes], chunk: int = CHUNK_LEAVES) -> bytes:
    """Root over `size` leaves from the roots of its aligned subtrees of `chunk` leaves (a power of two), in order.

    Raises `Tampered` when they are not as many as `size` needs, or not hashes.
    """
    _check_chunk(chunk)
    expected = -(-size // chunk)
    if len(chunk_roots) != expected:
        raise Tampered("chunk-roots", f"expected {expected} for {size} leaves, got {len(chunk_roots)}")
    _check_hashes("chunk-roots", chunk_roots)
    return root(b"".join(chunk_roots))


def root_from_inclusion_path(index: int, size: int, leaf_hash: bytes, path: Sequence[bytes]) -> bytes:
    """Root that `path` leads to from `leaf_hash` (RFC 9162 section 2.1.3.2).

    Take `index` and `size` from something signed, never from beside the path. Raises `Tampered` when they do not fit.
    """
    if not 0 <= index < size:
        raise Tampered("inclusion-path", f"expected an index below {size}, got {index}")
    _check_hashes("inclusion-path", (leaf_hash, *path))
    here, last = index, size - 1
    result = leaf_hash
    for sibling in path:
        if not last:
            raise Tampered("inclusion-path", f"expected fewer than {len(path)} hashes")
        if here & 1 or here == last:
            result = sha256(b"\x01" + sibling + result).digest()
            while not here & 1 and here:
                here >>= 1
                last >>= 1
        else:
            result = sha256(b"\x01" + result + sibling).digest()
        here >>= 1
        last >>= 1
    if last:
        raise Tampered("inclusion-path", f"expected more than {len(path)} hashes")
    return result


def verify_inclusion(index: int, size: int, leaf_hash: bytes, path: Sequence[bytes], root: bytes) -> None:
    """Check that leaf `index` of the tree of `size` leaves under `root` hashes to `leaf_hash`. Raises `Tampered`."""
    if root_from_inclusion_path(index, size, leaf_hash, path) != root:
        raise Tampered("inclusion-path", "expected it to lead to the root, got another hash")


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose roots are the inclusion path of leaf `index`, in path order. `ValueError` out of range."""
    _check_index(index, size)
    ranges = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old_size: int, new_size: int) -> list[Range]:
    """The subtrees whose roots are PROOF(old_size, D[new_size]) of RFC 6962 section 2.1.2; none when nothing is new."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"expected sizes in order, got {old_size} and {new_size}")
    if old_size == 0:
        return []
    ranges = []
    start, end = 0, new_size
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    if start:  # else the old root itself is this subtree, and the verifier has it
        ranges.append((start, end))
    return ranges[::-1]


def consistency_path(tree: Subtrees, old_size: int) -> list[bytes]:
    """PROOF(old_size, D[n]) of RFC 6962 section 2.1.2: `tree` extends its own first `old_size` leaves."""
    return [tree.subtree_root(start, end) for start, end in consistency_ranges(old_size, tree.size)]


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the new tree extends the old one (RFC 9162 section 2.1.4.2). Raises `Tampered`.

    The empty tree is a prefix of every tree, with an empty path, as C2SP tlog-witness has it.
    """
    if not 0 <= old_size <= new_size:
        raise Tampered("consistency-path", f"expected sizes in order, got {old_size} and {new_size}")
    _check_hashes("consistency-path", (old_root, new_root, *path))
    if old_size in {0, new_size}:
        expected_old = new_root if old_size else EMPTY_ROOT
        if path or old_root != expected_old or (not new_size and new_root != EMPTY_ROOT):
            raise Tampered("consistency-path", "expected no path and the same or the empty root")
        return
    if _consistent_roots(old_size, new_size, old_root, path) != (old_root, new_root):
        raise Tampered("consistency-path", "expected it to lead to both roots, got others")


def multiproof_ranges(size: int, indices: Sequence[int]) -> Iterator[Range]:
    """The largest subtrees without a wanted index, left to right. Raises `ValueError` for none or out of range."""
    wanted = sorted(set(indices))
    if not wanted or wanted[0] < 0 or wanted[-1] >= size:
        raise ValueError(f"expected one or more indices in [0, {size})")
    stack = [(0, size, 0, len(wanted))]
    while stack:
        start, end, low, high = stack.pop()
        if low == high:
            yield start, end
        elif high - low < end - start:
            middle = start + _split(end - start)
            cut = bisect_left(wanted, middle, low, high)
            stack.append((middle, end, cut, high))
            stack.append((start, middle, low, cut))


def root_from_multiproof(size: int, leaves: Mapping[int, bytes], nodes: Sequence[bytes]) -> bytes:
    """Root over `size` leaves from the wanted leaf hashes (index to 32 bytes) and the roots of all other subtrees.

    `nodes` come in depth-first order, left before right: one for each largest subtree without a wanted leaf. Raises
    `Tampered` when they are too few or too many, or an index does not fit.
    """
    wanted = sorted(leaves)
    if not wanted or wanted[0] < 0 or wanted[-1] >= size:
        raise Tampered("multiproof", f"expected one or more indices in [0, {size})")
    _check_hashes("multiproof", (*leaves.values(), *nodes))
    unused = iter(nodes)

    def subtree(start: int, end: int, low: int, high: int) -> bytes:
        if low == high:
            return next(unused)
        if high - low == end - start:
            return root(b"".join([leaves[index] for index in wanted[low:high]]))
        middle = start + _split(end - start)
        cut = bisect_left(wanted, middle, low, high)
        left = subtree(start, middle, low, cut)
        return node_hash(left, subtree(middle, end, cut, high))

    try:
        result = subtree(0, size, 0, len(wanted))
    except StopIteration:
        raise Tampered("multiproof", f"expected more than {len(nodes)} nodes") from None
    if next(unused, None) is not None:
        raise Tampered("multiproof", f"expected fewer than {len(nodes)} nodes")
    return result


class Frontier:
    """The right edge of a growing tree: what an appender must remember to extend it and know its root (mutable).

    `hashes`: roots of the complete subtrees that `size` leaves split into, largest first, one per set bit of `size`.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count() or any(len(one) != HASH_BYTES for one in hashes):
            raise ValueError(f"expected one hash per set bit of {size}, got {len(hashes)}")
        self.size = size
        self.hashes = list(hashes)

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf hash (32 bytes)."""
        if len(leaf_hash) != HASH_BYTES:
            raise ValueError(f"expected {HASH_BYTES} bytes, got {len(leaf_hash)}")
        merged, full = leaf_hash, self.size
        while full & 1:
            merged = node_hash(self.hashes.pop(), merged)
            full >>= 1
        self.hashes.append(merged)
        self.size += 1

    def root(self) -> bytes:
        """Root over the leaves so far, 32 bytes."""
        if not self.hashes:
            return EMPTY_ROOT
        result = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            result = node_hash(left, result)
        return result

    def to_bytes(self) -> bytes:
        """`size` (8 bytes, big-endian) and the hashes."""
        return self.size.to_bytes(8, "big") + b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """The inverse of `to_bytes`. Raises `ValueError` on anything else."""
        size, flat = int.from_bytes(data[:8], "big"), data[8:]
        return cls(size, [flat[at : at + HASH_BYTES] for at in range(0, len(flat), HASH_BYTES)])


def _parents(level: Flat) -> bytes:
    view = memoryview(level)
    paired = len(view) // _PAIR_BYTES * _PAIR_BYTES
    made = hashing.hashes(1, view[:paired], _PAIR_BYTES)
    return made + view[paired:] if paired < len(view) else made


def _consistent_roots(old_size: int, new_size: int, old_root: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    nodes = [old_root, *path] if old_size.bit_count() == 1 else list(path)
    if not nodes:
        raise Tampered("consistency-path", "expected one or more hashes, got none")
    here, last = old_size - 1, new_size - 1
    while here & 1:
        here >>= 1
        last >>= 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if not last:
            raise Tampered("consistency-path", f"expected fewer than {len(path)} hashes")
        if here & 1 or here == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while not here & 1 and here:
                here >>= 1
                last >>= 1
        else:
            new = node_hash(new, node)
        here >>= 1
        last >>= 1
    if last:
        raise Tampered("consistency-path", f"expected more than {len(path)} hashes")
    return old, new


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ValueError(f"expected an index in [0, {size}), got {index}")


def _check_chunk(chunk: int) -> None:
    if chunk <= 0 or chunk.bit_count() != 1:
        raise ValueError(f"expected a power of two, got {chunk}")


def _check_hashes(where: str, hashes: Sequence[bytes]) -> None:
    for one in hashes:
        if len(one) != HASH_BYTES:
            raise Tampered(where, f"expected hashes of {HASH_BYTES} bytes, got {len(one)}")
