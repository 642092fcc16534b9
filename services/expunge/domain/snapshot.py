"""Snapshots: immutable sets of image ordinals, their bytes and their root.

Bytes: the portable 64-bit Roaring format (https://github.com/RoaringBitmap/RoaringFormatSpec). Root: RFC 6962 over one
leaf per block of 65,536 ordinals that has any, ascending: the block's number (8 bytes, big-endian), then the low 16
bits of each member (2 bytes, big-endian), ascending. A block is a Roaring container, so a proof opens 128 KiB at most.
"""

from __future__ import annotations

import numpy as np
from pyroaring import BitMap64

from expunge.domain import merkle
from expunge.domain.errors import Rejected
from expunge.domain.limits import ORDINAL_BLOCK


def root(members: BitMap64) -> bytes:
    """The root over `members`, 32 bytes. The same for the same set, however it is stored."""
    ordinals = np.frombuffer(members.to_array(), dtype=np.uint64)
    blocks = ordinals // np.uint64(ORDINAL_BLOCK)
    low = (ordinals % np.uint64(ORDINAL_BLOCK)).astype(">u2")
    numbers, starts = np.unique(blocks, return_index=True)
    ends = [*starts.tolist()[1:], len(ordinals)][: len(starts)]
    return merkle.root(
        b"".join(
            merkle.leaf_hash(number.to_bytes(8, "big") + low[start:end].tobytes())
            for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True)
        )
    )


def decode(data: bytes) -> BitMap64:
    """Read portable Roaring bytes from outside. Raises `Rejected("malformed")` unless they are exactly that, and
    ordinals fit a signed 64-bit integer."""
    try:
        members = BitMap64.deserialize(data)
        exact = members.serialize()
    except (ValueError, IndexError, MemoryError) as error:
        raise Rejected("malformed", "expected a bitmap in the portable 64-bit Roaring format") from error
    if len(exact) != len(data) and len(_optimized(members)) != len(data):
        raise Rejected("malformed", "expected nothing but one bitmap")
    if members and members.max() >= 2**63:
        raise Rejected("malformed", "expected ordinals below 2**63")
    return members


def _optimized(members: BitMap64) -> bytes:
    copy = members.copy()
    copy.run_optimize()
    return copy.serialize()


def ranges(members: BitMap64) -> tuple[list[int], list[int]]:
    """The members as ascending ranges [first, end): dense sets are few."""
    ordinals = np.frombuffer(members.to_array(), dtype=np.uint64).astype(np.int64)
    if not len(ordinals):
        return [], []
    breaks = np.flatnonzero(ordinals[1:] - ordinals[:-1] != 1)
    firsts = ordinals[np.concatenate(([0], breaks + 1))]
    ends = ordinals[np.concatenate((breaks, [len(ordinals) - 1]))] + 1
    return firsts.tolist(), ends.tolist()
