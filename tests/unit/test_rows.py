"""Which images' rows may go while other runs of an order are still under way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.words import FINAL_ABSENT, Outcome
from expunge.stages.certify.rows import ABSENT, Places, free_images

ENDS = (Outcome.GONE, Outcome.ABSENT_BEFORE)
NOT_ENDS = (Outcome.OPEN, Outcome.PRESENT, Outcome.FAILED, Outcome.EXCLUDED)
CHUNK = st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from(ENDS + NOT_ENDS))


def test_what_counts_as_absent() -> None:
    assert set(ENDS) <= FINAL_ABSENT
    assert not FINAL_ABSENT & set(NOT_ENDS)


@given(images=st.sets(st.integers(0, 30)), trees=st.lists(st.lists(CHUNK, min_size=1, max_size=4), max_size=3))
def test_an_image_is_free_unless_a_chunk_around_it_has_a_leaf_that_is_not_absent(
    images: set[int], trees: list[list[tuple[int, int, Outcome]]]
) -> None:
    every = np.array(sorted(images), np.int64)
    places, absent = [], []
    kept: set[int] = set()
    for chunks in trees:
        first = [min(a, b) for a, b, _ in chunks]
        last = [max(a, b) for a, b, _ in chunks]
        codes = np.full(len(chunks) * CHUNK_LEAVES, Outcome.GONE, np.uint8)
        for number, (_, _, code) in enumerate(chunks):
            codes[number * CHUNK_LEAVES + 7] = code  # one leaf is enough
            if code not in FINAL_ABSENT:
                kept.update(range(first[number], last[number] + 1))
        places.append(Places(np.array(first, np.int64), np.array(last, np.int64)))
        absent.append(ABSENT[codes])
    assert free_images(every, places, absent).tolist() == sorted(images - kept)


def test_a_short_last_chunk_counts_as_the_others_do() -> None:
    codes = np.full(CHUNK_LEAVES + 3, Outcome.GONE, np.uint8)
    codes[-1] = Outcome.OPEN
    places = Places(np.array([0, 10]), np.array([9, 12]))
    assert free_images(np.arange(13), [places], [ABSENT[codes]]).tolist() == list(range(10))
