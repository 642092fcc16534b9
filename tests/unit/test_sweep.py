from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain import merkle, sweep
from expunge.domain.sweep import ALL_PURPOSES, I64, RUN_CHUNKS, Requests
from expunge.domain.words import Outcome

# Artifacts as (image, purpose mask); requests as (purposes withdrawn, images).
ARTIFACTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), max_size=30)
REQUESTS = st.lists(
    st.tuples(st.one_of(st.just(ALL_PURPOSES), st.integers(1, 7)), st.sets(st.integers(0, 12), max_size=6)),
    min_size=1,
    max_size=5,
)
OUTCOME = st.sampled_from([int(one) for one in Outcome])


def i64(values: list[int]) -> I64:
    return np.array(values, np.int64)


def root_of_handles(key: bytes, ids: I64, page: int = 1 << 16) -> bytes:
    """The root over handles that came in page by page."""
    parts: dict[int, list[NDArray[np.uint64]]] = {}
    for at in range(0, len(ids), page):
        for part, rows in sweep.handle_parts(sweep.handles(key, ids[at : at + page])):
            parts.setdefault(part, []).append(rows)
    return sweep.handles_root(np.concatenate(parts[part]) for part in sorted(parts))


@given(REQUESTS, ARTIFACTS)
def test_claims_are_what_the_rules_say_one_by_one(
    asked: list[tuple[int, set[int]]], artifacts: list[tuple[int, int]]
) -> None:
    pairs = [(number, image) for number, (_, images) in enumerate(asked) for image in sorted(images)]
    found = sweep.claims(
        Requests(
            purposes=i64([mask for mask, _ in asked]),
            request=i64([number for number, _ in pairs]),
            ordinal=i64([image for _, image in pairs]),
        ),
        i64([image for image, _ in artifacts]),
        i64([mask for _, mask in artifacts]),
    )
    remaining = []
    for image, mask in artifacts:
        left = mask
        for withdrawn, images in asked:
            if image in images:
                left &= ~withdrawn
        remaining.append(left)
    in_scope = [left == 0 for left in remaining]
    assert found.remaining.tolist() == remaining
    assert found.in_scope.tolist() == in_scope
    for number, (withdrawn, images) in enumerate(asked):
        touched = [at for at, (image, mask) in enumerate(artifacts) if image in images and mask & withdrawn]
        lo, hi = found.leaf_offset[number : number + 2].tolist()
        assert found.leaf[lo:hi].tolist() == [at for at in touched if in_scope[at]]
        assert found.retained[number] == dict(Counter(remaining[at] for at in touched if not in_scope[at]))
    assert found.leaf_offset[-1] == len(found.leaf)


@given(st.lists(st.integers(0, 5)))
def test_unit_starts_are_where_units_change(units: list[int]) -> None:
    expected = [at for at, unit in enumerate(units) if at == 0 or unit != units[at - 1]]
    assert sweep.unit_starts(i64(units)).tolist() == expected


@given(st.lists(st.integers(1, 40_000), max_size=8), st.booleans())
def test_work_runs_cover_every_chunk_once_and_leave_large_units_whole(sizes: list[int], whole: bool) -> None:  # noqa: FBT001 - drawn
    starts = np.cumsum([0, *sizes])[:-1].astype(np.uint32)
    leaves = sum(sizes)
    runs = sweep.work_runs(leaves, starts, whole_units=whole)
    assert [chunk for first, end in runs for chunk in range(first, end)] == list(range(-(-leaves // 1024)))
    assert all(first < end for first, end in runs)
    if not whole:
        assert all(end - first <= RUN_CHUNKS for first, end in runs)
        return
    for _, end in runs[:-1]:
        for start, size in zip(starts.tolist(), sizes, strict=True):
            # A large unit is cut only where it shares a chunk with the one before.
            if start < end * 1024 < start + size and size > RUN_CHUNKS * 1024:
                assert end * 1024 - start < 1024


def test_a_cut_at_a_unit_s_border_stays_there() -> None:
    size = RUN_CHUNKS * 1024
    starts = np.array([0, size], np.uint32)
    assert sweep.work_runs(2 * size, starts, whole_units=True) == [(0, RUN_CHUNKS), (RUN_CHUNKS, 2 * RUN_CHUNKS)]
    one = np.array([0], np.uint32)
    assert sweep.work_runs(5 * size, one, whole_units=True) == [(0, 5 * RUN_CHUNKS)]
    assert sweep.work_runs(0, np.zeros(0, np.uint32), whole_units=True) == []


@given(st.sets(st.integers(0, 60)))
def test_runs_are_the_indices_again(indices: set[int]) -> None:
    runs = sweep.runs_of(np.array(sorted(indices), np.uint32))
    assert [one for first, count in runs for one in range(first, first + count)] == sorted(indices)
    assert all(after[0] > before[0] + before[1] for before, after in pairwise(runs))


@given(st.lists(st.integers(0, 2**48 - 1)))
def test_artifact_ids_are_six_bytes_big_endian(ids: list[int]) -> None:
    assert sweep.artifact_ids(b"".join(one.to_bytes(6, "big") for one in ids)).tolist() == ids


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_the_digest_of_indices_is_over_little_endian_words(indices: list[int]) -> None:
    packed = b"".join(one.to_bytes(4, "little") for one in indices)
    assert sweep.indices_digest(np.array(indices, np.int64)) == hashlib.sha256(packed).hexdigest()


@given(st.sets(st.integers(0, 2**48 - 1), max_size=30), st.binary(min_size=32, max_size=32))
def test_handles_are_one_block_each_sorted_and_hashed_by_the_page(ids: set[int], key: bytes) -> None:
    cipher = Cipher(AES(key), ECB())  # noqa: S305 - single distinct blocks
    blocks = sorted(cipher.encryptor().update(one.to_bytes(16, "big")) for one in ids)
    pages = [merkle.leaf_hash(b"".join(blocks))] if blocks else []
    assert root_of_handles(key, i64(list(ids))) == merkle.root(b"".join(pages))


def test_handles_beyond_a_page_are_more_leaves() -> None:
    cipher = Cipher(AES(b"k" * 32), ECB())  # noqa: S305 - single distinct blocks
    blocks = sorted(cipher.encryptor().update(one.to_bytes(16, "big")) for one in range(1500))
    pages = [merkle.leaf_hash(b"".join(blocks[at : at + 1024])) for at in (0, 1024)]
    assert root_of_handles(b"k" * 32, np.arange(1500)) == merkle.root(b"".join(pages))
    assert root_of_handles(b"k" * 32, np.arange(1500), page=100) == merkle.root(b"".join(pages))


def test_an_artifact_twice_in_an_order_is_refused() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        root_of_handles(b"k" * 32, i64([5, 6, 5]))


@given(
    st.integers(0, 20).flatmap(lambda n: st.lists(st.lists(OUTCOME, min_size=n, max_size=n), min_size=1, max_size=4))
)
def test_the_last_attempt_that_covered_a_leaf_counts(attempts: list[list[int]]) -> None:
    expected = []
    for leaf in zip(*attempts, strict=True):
        settled = [one for one in leaf if one]
        expected.append(settled[-1] if settled else 0)
    assert sweep.last_outcomes([np.array(one, np.uint8) for one in attempts]).tolist() == expected


@given(st.lists(OUTCOME, min_size=1, max_size=20), st.data())
def test_a_tally_counts_each_request_s_leaves_by_outcome(outcomes: list[int], data: st.DataObject) -> None:
    claimed = data.draw(st.lists(st.sets(st.integers(0, len(outcomes) - 1)), min_size=1, max_size=4))
    leaf = i64([one for mine in claimed for one in sorted(mine)])
    offset = np.cumsum([0, *(len(mine) for mine in claimed)])
    codes = [int(one) for one in Outcome]
    found = sweep.tally(np.array(outcomes, np.uint8), leaf, offset, codes)
    for number, mine in enumerate(claimed):
        counted = Counter(outcomes[one] for one in mine)
        assert found[number].tolist() == [counted[code] for code in codes]


@given(values=st.lists(st.integers(0, 9)))
def test_distinct_numbers_ascend(values: list[int]) -> None:
    assert sweep.distinct(np.array(values, np.int64)).tolist() == sorted(set(values))


@given(
    values=st.lists(st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\1" * 32, b"\1" * 31 + b"\0"]))
)
def test_distinct_digests_ascend_and_none_is_left_out(values: list[bytes]) -> None:
    assert sweep.distinct_digests(b"".join(values)) == b"".join(sorted(set(values) - {bytes(32)}))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=6))
def test_rows_are_in_order_when_sorting_would_not_move_them(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)] or [np.zeros(0, np.int64)] * 3
    assert sweep.is_ordered(columns[::-1]) == (rows == sorted(rows))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 70_000), st.integers(1, 9_000)), max_size=12))
def test_a_bitmap_by_runs_holds_just_these(steps: list[tuple[int, int]]) -> None:
    at, parts = 0, [np.zeros(0, np.int64)]
    for gap, count in steps:
        parts.append(np.arange(at + gap, at + gap + count, 1 + count % 3))
        at += gap + count
    ordinals = np.concatenate(parts)
    assert sweep.bitmap(ordinals) == BitMap64(ordinals)
    assert BitMap64.deserialize(sweep.bitmap(ordinals).serialize()) == BitMap64(ordinals)
