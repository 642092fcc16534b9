"""Building a sweep: who claims which leaf, what stays, how the trees are cut. Packed columns in, packed columns out.

Needs numpy. Nothing here is per artifact in Python: a sweep of a person and one of 3,000,000 images run the same code.
Shapes: `n` artifacts in physical order (tree, unit, locator); `r` requests; `p` (request, image) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain import merkle
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.scopefile import ScopeFile, unpack_columns

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

ALL_PURPOSES: Final = -1
"""The purpose mask of a deletion: every bit."""

RUN_CHUNKS: Final = 16
"""Chunks that travel together as one work order, where no unit asks for more."""

_RUN: Final = 16
"""From this many numbers on, on average, it pays to add a run of them to a bitmap at once."""

HANDLE_PAGE: Final = 1024
"""Sorted handles hashed flat as one leaf of an order's handle tree."""

HANDLE_PARTS: Final = 64
"""Values of a handle's first six bits, by which handles are sorted part by part."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a sweep. `purposes` (r): mask withdrawn. `request`, `ordinal` (p): which images each touches,
    sorted by request, then ordinal."""

    purposes: I64
    request: I64
    ordinal: I64


@dataclass(frozen=True, slots=True)
class Claims:
    """Who claims what. `in_scope` (n): no purpose remains. `remaining` (n): purpose mask that remains.

    `leaf`, `leaf_offset` (r + 1): artifact positions (in the n, in-scope only) claimed by each request, ascending.
    `retained`: per request, how many of its artifacts stay, by the mask that remains.
    """

    in_scope: NDArray[np.bool_]
    remaining: I64
    leaf: I64
    leaf_offset: I64
    retained: tuple[dict[int, int], ...]


def claims(requests: Requests, ordinal: I64, purposes: I64) -> Claims:
    """Join requests with artifacts. `ordinal`, `purposes` (n): the artifacts' image and purpose mask."""
    count = len(requests.purposes)
    request, position = _join(requests, ordinal)
    touched = (purposes[position] & requests.purposes[request]) != 0
    request, position = request[touched], position[touched]
    withdrawn = np.zeros(len(ordinal), np.int64)
    np.bitwise_or.at(withdrawn, position, requests.purposes[request])
    remaining = purposes & ~withdrawn
    in_scope = (remaining == 0) & (withdrawn != 0)
    mine = in_scope[position]
    order = np.lexsort((position[mine], request[mine]))
    leaf, owner = position[mine][order], request[mine][order]
    kept: list[dict[int, int]] = [{} for _ in range(count)]
    pairs, counts = np.unique(
        np.stack((request[~mine], remaining[position[~mine]])), axis=1, return_counts=True
    )  # fmt: skip
    for (one, mask), number in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        kept[one][mask] = number
    return Claims(
        in_scope=in_scope,
        remaining=remaining,
        leaf=leaf,
        leaf_offset=np.searchsorted(owner, np.arange(count + 1)),
        retained=tuple(kept),
    )


def _join(requests: Requests, ordinal: I64) -> tuple[I64, I64]:
    """All (request, artifact position) pairs that share an image."""
    order = np.argsort(ordinal, kind="stable")
    ranked = ordinal[order]
    first = np.searchsorted(ranked, requests.ordinal, "left")
    many = np.searchsorted(ranked, requests.ordinal, "right") - first
    inner = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(requests.request, many), order[np.repeat(first, many) + inner]


def unit_starts(unit: I64) -> U32:
    """First leaf of each unit of one tree, whose leaves are in physical order."""
    if not len(unit):
        return np.zeros(0, np.uint32)
    return np.concatenate(([0], np.flatnonzero(np.diff(unit)) + 1)).astype(np.uint32)


def is_ordered(keys: Sequence[I64]) -> bool:
    """Whether rows ascend by `keys`, the last of which is the first to compare, as `numpy.lexsort` has it."""
    if len(keys[0]) < 2:  # noqa: PLR2004 - a pair
        return True
    before = np.zeros(len(keys[0]) - 1, np.bool_)
    equal = np.ones(len(keys[0]) - 1, np.bool_)
    for key in reversed(keys):
        step = np.diff(key)
        before |= equal & (step > 0)
        equal &= step == 0
    return bool((before | equal).all())


def work_runs(leaves: int, starts: U32, *, whole_units: bool) -> list[tuple[int, int]]:
    """Cut a tree into runs of chunks [first, end). Where erasing rewrites the unit, a cut is moved on until it does not
    split a unit, unless units never end at a chunk border: then the next run finds the shared unit already rewritten.

    A unit bigger than a run stays in one run, so that it is rewritten once.
    """
    chunks = -(-leaves // CHUNK_LEAVES)
    cuts, first = [], 0
    borders = np.append(starts, leaves).astype(np.int64)
    while first < chunks:
        end = min(first + RUN_CHUNKS, chunks)
        if whole_units and end < chunks:
            # The unit that straddles the cut: keep it whole when it is larger than a run could hold anyway.
            at = int(np.searchsorted(borders, end * CHUNK_LEAVES, "right"))
            lo, hi = int(borders[at - 1]), int(borders[min(at, len(borders) - 1)])
            if hi - lo > RUN_CHUNKS * CHUNK_LEAVES:
                end = min(chunks, -(-hi // CHUNK_LEAVES))
        cuts.append((first, end))
        first = end
    return cuts


def runs_of(indices: NDArray[np.generic]) -> list[tuple[int, int]]:
    """Ascending indices as (first, count) runs."""
    if not len(indices):
        return []
    values = indices.astype(np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(values) != 1) + 1))
    counts = np.diff(np.append(starts, len(values)))
    return list(zip(values[starts].tolist(), counts.tolist(), strict=True))


def bitmap(ordinals: I64) -> BitMap64:
    """Of ascending ordinals. By runs where these are long, as in what came in together: a number at a time takes a hundred
    times as long."""
    if np.count_nonzero(np.diff(ordinals) != 1) * _RUN > len(ordinals):
        return BitMap64(ordinals)
    made = BitMap64()
    for first, count in runs_of(ordinals):
        made.add_range(first, first + count)
    return made


def distinct(values: NDArray[np.generic]) -> I64:
    """Ascending, each once. By sorting: `np.unique` hashes, which takes a hundred times as long on dense numbers.
    What is so already is returned as it is."""
    given = values.astype(np.int64, copy=False)
    if (given[1:] > given[:-1]).all():
        return given
    ranked: I64 = np.sort(given)
    fresh: NDArray[np.bool_] = np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)]
    return ranked[fresh]


def _order_of(words: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The order of rows by all their words. Random rows hardly ever share the first word unless they are the same, and one
    key sorts fastest."""
    first = words[:, 0].astype(np.uint64)
    order: NDArray[np.intp] = np.argsort(first)
    ranked = first[order]
    alike = np.flatnonzero(ranked[1:] == ranked[:-1])
    if (words[order[alike]] != words[order[alike + 1]]).any():
        return np.lexsort(words.astype(np.uint64).T[::-1])
    return order


def distinct_digests(packed: bytes) -> bytes:
    """The distinct 32-byte digests out of those laid end to end, ascending; zeros, which mean none known, left out."""
    rows = np.frombuffer(packed, np.uint64).reshape(-1, 4)
    known = (rows[:, 0] | rows[:, 1] | rows[:, 2] | rows[:, 3]) != 0
    if not known.all():
        rows = rows[known]
    ranked = rows[_order_of(rows.view(">u8"))]
    fresh = np.append(True, _differ(ranked))[: len(ranked)]
    return bytes((ranked if fresh.all() else ranked[fresh]).tobytes())


def _differ(ranked: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n - 1) whether each row but the first differs from the one before. A column at a time: along rows is slow."""
    differ = np.zeros(max(len(ranked) - 1, 0), np.bool_)
    for column in ranked.T:
        differ |= column[1:] != column[:-1]
    return differ


def artifact_ids(packed: bytes) -> I64:
    """Artifact ids from their 6-byte big-endian column."""
    wide = np.zeros((len(packed) // 6, 8), np.uint8)
    wide[:, 2:] = np.frombuffer(packed, np.uint8).reshape(-1, 6)
    return wide.reshape(-1).view(">i8").astype(np.int64)


def indices_digest(indices: NDArray[np.generic]) -> str:
    """SHA-256 (hex) over ascending leaf indices as little-endian uint32."""
    return hashlib.sha256(indices.astype("<u4").tobytes()).hexdigest()


def handles(key: bytes, artifact_ids: I64) -> NDArray[np.uint64]:
    """(n, 2) the blinded handles of artifacts: the words of their 16 bytes. `key`: 32 bytes.

    A handle is the AES-256 encryption of the id as one 16-byte big-endian block (FIPS 197: a keyed permutation, so
    handles are distinct when ids are).
    """
    blocks = np.zeros((len(artifact_ids), 2), ">u8")
    blocks[:, 1] = artifact_ids
    sealed = Cipher(AES(key), ECB()).encryptor().update(blocks.view(np.uint8).data)  # noqa: S305 - single distinct blocks
    return np.frombuffer(sealed, np.uint64).reshape(-1, 2)


def handle_parts(rows: NDArray[np.uint64]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Handles by part, that is by their first bits: all of a part sort before those of the next."""
    part = rows.view(np.uint8)[:, 0] >> (8 - HANDLE_PARTS.bit_length() + 1)
    ranked = rows[np.argsort(part, kind="stable")]  # of bytes that is a radix sort
    ends = np.cumsum(np.bincount(part, minlength=HANDLE_PARTS)).tolist()
    for number, (first, end) in enumerate(pairwise([0, *ends])):
        if end > first:
            yield number, ranked[first:end]


def handles_root(parts: Iterable[NDArray[np.uint64]]) -> bytes:
    """Root over an order's sorted blinded handles, for duplicate and non-membership checks. `parts`: of all handles, in
    ascending parts, in each in any order; memory is that of the largest. Raises ValueError when an artifact occurs twice.
    """
    page = HANDLE_PAGE * 16
    hashes, rest = [], b""
    for rows in parts:
        ranked = rows[_order_of(rows.view(">u8"))]
        if not _differ(ranked).all():
            message = "an artifact occurs twice in the order"
            raise ValueError(message)
        flat = rest + ranked.tobytes()
        whole = len(flat) // page * page
        hashes += [merkle.leaf_hash(flat[at : at + page]) for at in range(0, whole, page)]
        rest = flat[whole:]
    if rest:
        hashes.append(merkle.leaf_hash(rest))
    return merkle.root(b"".join(hashes))


@dataclass(frozen=True, slots=True)
class Shared:
    """Leaves of one sweep's tree that another sweep's `tree` has too: their indices `here` and `there`."""

    tree: int
    here: I64
    there: I64


def shared(file: ScopeFile, tree: int, other: ScopeFile) -> Shared | None:
    """Which leaves of a tree another sweep has too. The later of the two lists them (section `overlaps`)."""
    place = _place(file, tree)
    numbers = [number for number in range(_trees(other)) if _place(other, number) == place]
    if not numbers:
        return None
    listed = _listed(file, tree, other)
    there, here = _listed(other, numbers[0], file)
    return Shared(numbers[0], np.concatenate([listed[0], here]), np.concatenate([listed[1], there]))


def _listed(file: ScopeFile, tree: int, earlier: ScopeFile) -> tuple[I64, I64]:
    columns = unpack_columns(file.section(f"{tree}/overlaps"))
    sweep = UUID(str(earlier.header["sweep"])).bytes
    mine = (np.frombuffer(columns["sweep"], np.uint8).reshape(-1, 16) == np.frombuffer(sweep, np.uint8)).all(axis=1)
    leaf, index = (np.frombuffer(columns[name], "<u4")[mine].astype(np.int64) for name in ("leaf", "index"))
    return leaf, index


def _trees(file: ScopeFile) -> int:
    trees: Any = file.header["trees"]
    return len(trees)


def _place(file: ScopeFile, tree: int) -> tuple[str, str]:
    trees: Any = file.header["trees"]
    return trees[tree]["kind"], trees[tree]["store"]


def last_outcomes(attempts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One outcome per leaf out of its attempts, first to last: the last attempt that covered it counts. OPEN (0) in an
    attempt means it was not covered, or nothing was settled."""
    result = attempts[0].copy()
    for later in attempts[1:]:
        covered = later != 0
        result[covered] = later[covered]
    return result


def tally(
    outcomes: NDArray[np.uint8], leaf: NDArray[np.integer], offset: I64, codes: Sequence[int]
) -> NDArray[np.int64]:
    """How many of each request's leaves have each outcome: (r, len(codes)). `outcomes`: one per leaf of all trees laid
    end to end; `leaf`, `offset` as in `Claims`."""
    sums = np.zeros((len(offset) - 1, len(codes)), np.int64)
    if len(offset) == 2 and len(leaf) == len(outcomes):  # noqa: PLR2004 - one request, which claims all, maybe millions
        sums[0] = [np.count_nonzero(outcomes == code) for code in codes]
        return sums
    mine = outcomes[leaf]
    for column, code in enumerate(codes):
        running = np.concatenate(([0], np.cumsum(mine == code)))
        sums[:, column] = running[offset[1:]] - running[offset[:-1]]
    return sums
