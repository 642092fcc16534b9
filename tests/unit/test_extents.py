from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from expunge.domain.extents import MOST_LEAVES, PAGE_LEAVES, Extent, Read, reads

UNITS = st.lists(
    st.tuples(st.integers(1, 3 * PAGE_LEAVES), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30
).map(lambda rows: [Extent(10 * at, n, lo, lo + span) for at, (n, lo, span) in enumerate(rows)])


@given(UNITS)
def test_each_artifact_is_read_once_in_the_order_of_units_and_images(units: list[Extent]) -> None:
    found: dict[int, list[tuple[int, int]]] = {one.unit: [] for one in units}
    before: tuple[int, int] = (-1, 0)
    for read in reads(units):
        assert read.first < read.end
        assert (read.first_unit, read.first) >= before
        before = (read.last_unit, read.end) if read.first_unit == read.last_unit else (read.last_unit + 1, 0)
        for one in units:
            if read.first_unit <= one.unit <= read.last_unit:
                found[one.unit].append((max(read.first, one.first), min(read.end, one.last + 1)))
    for one in units:
        parts = found[one.unit]
        assert parts[0][0] == one.first
        assert parts[-1][1] == one.last + 1
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


@given(UNITS)
def test_what_is_read_together_is_bounded(units: list[Extent]) -> None:
    for read in reads(units):
        together = [one for one in units if read.first_unit <= one.unit <= read.last_unit]
        if len(together) > 1:
            assert sum(one.artifacts for one in together) <= MOST_LEAVES
            apart = all(a.last <= b.first for a, b in itertools.pairwise(together))
            assert not apart or sum(one.artifacts for one in together) <= PAGE_LEAVES


def test_a_large_unit_is_cut_by_images_and_small_ones_go_together() -> None:
    large = Extent(1, 2 * PAGE_LEAVES, 100, 100 + 4 * PAGE_LEAVES - 1)
    assert list(reads([large])) == [
        Read(1, 1, 100, 100 + 2 * PAGE_LEAVES), Read(1, 1, 100 + 2 * PAGE_LEAVES, 100 + 4 * PAGE_LEAVES)
    ]  # fmt: skip
    small = [Extent(unit, 1000, unit * 1000, unit * 1000 + 999) for unit in range(100)]
    assert [(one.first_unit, one.last_unit) for one in reads(small)] == [(0, 64), (65, 99)]
    assert list(reads([])) == []
    assert list(reads([Extent(1, PAGE_LEAVES + 1, 5, 5)])) == [Read(1, 1, 5, 6)]
