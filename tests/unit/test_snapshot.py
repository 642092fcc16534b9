"""Snapshot bytes from outside, their root and their ranges."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from expunge.domain import merkle, snapshot
from expunge.domain.errors import Rejected


def test_the_root_is_over_one_leaf_per_block() -> None:
    first = hashlib.sha256(b"\0" + bytes(8) + b"\x00\x01\x00\x05").digest()
    second = hashlib.sha256(b"\0" + (3).to_bytes(8, "big") + b"\xff\xff").digest()
    assert snapshot.root(BitMap64([1, 5, 4 * 65_536 - 1])) == merkle.root(first + second)
    assert snapshot.root(BitMap64()) == merkle.EMPTY_ROOT


@given(st.sets(st.integers(0, 300_000), max_size=50))
def test_bytes_come_back_and_ranges_cover_exactly_the_members(members: set[int]) -> None:
    bitmap = BitMap64(members)
    optimized = bitmap.copy()
    optimized.run_optimize()
    assert set(snapshot.decode(bitmap.serialize())) == set(snapshot.decode(optimized.serialize())) == members
    firsts, ends = snapshot.ranges(bitmap)
    assert {one for first, end in zip(firsts, ends, strict=True) for one in range(first, end)} == members
    assert all(end < first for end, first in zip(ends, firsts[1:], strict=False))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 9, BitMap64([1]).serialize() + b"x", BitMap64([1]).serialize()[:-1], BitMap64([2**63]).serialize()],
)
def test_anything_but_one_bitmap_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        snapshot.decode(data)
    assert refused.value.code == "malformed"
