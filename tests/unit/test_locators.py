from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import scopefile
from expunge.domain.errors import Tampered
from expunge.domain.locators import Locators

STRINGS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=12)
ALIKE = st.integers(0, 5).flatmap(lambda width: st.lists(st.text("ab\0é", min_size=width, max_size=width), max_size=12))


@given(STRINGS | ALIKE)
def test_they_are_a_sequence_of_strings(strings: list[str]) -> None:
    made = Locators.of(strings)
    assert len(made) == len(strings)
    assert made == strings
    assert list(made) == strings
    assert [made[at] for at in range(len(made))] == strings
    assert Locators.of(made) is made


@given(STRINGS | ALIKE)
def test_what_is_packed_is_what_the_scope_file_says(strings: list[str]) -> None:
    packed = Locators.of(strings).pack()
    assert packed == scopefile.pack_strings(strings)
    assert Locators.unpack(packed) == strings
    for broken in (packed[:-1], packed + b"x"):
        with pytest.raises(Tampered):
            Locators.unpack(broken)


@given(STRINGS | ALIKE, st.data())
def test_parts_are_what_they_are_of_a_list(strings: list[str], data: st.DataObject) -> None:
    made = Locators.of(strings)
    first, end = data.draw(st.integers(-15, 15)), data.draw(st.integers(-15, 15))
    step = data.draw(st.sampled_from([1, 2, 3]))
    assert made[first:end:step] == strings[first:end:step]
    at = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=8)) if strings else []
    assert made.take(np.array(at, np.int64)) == [strings[one] for one in at]
    assert made[first:end].pack() == scopefile.pack_strings(strings[first:end])
    assert Locators.joined([made[:2], made[2:], made[first:end]]) == [*strings, *strings[first:end]]


def test_text_that_is_none_is_tampered() -> None:
    with pytest.raises(Tampered, match="UTF-8"):
        Locators.unpack(scopefile.pack_strings(["ab"])[:-1] + b"\xff")


def test_they_do_not_show_themselves() -> None:
    assert "face" not in repr(Locators.of(["face.jpg"]))


NUMBERS = st.integers(0, 2**63 - 1).map(str) | st.integers(0, 10**7).map(str)


@given(st.lists(NUMBERS, max_size=8), st.lists(st.text("0123456789-+ ٣x", max_size=21), max_size=1))
def test_decimals_are_numbers_in_one_spelling(good: list[str], other: list[str]) -> None:
    strings = [*good, *other]
    canonical = all(one.isascii() and one.isdigit() and str(int(one)) == one and int(one) < 2**63 for one in strings)
    found = Locators.of(["x", *strings])[1:].decimals()
    assert (None if found is None else found.tolist()) == ([int(one) for one in strings] if canonical else None)


def test_decimals_end_where_63_bits_do() -> None:
    found = Locators.of([str(2**63 - 1)]).decimals()
    assert found is not None
    assert found.tolist() == [2**63 - 1]
    assert Locators.of([str(2**63)]).decimals() is None
    assert Locators.of([str(10**19)]).decimals() is None


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that were allocated at most while it worked, and what it gives."""
    tracemalloc.start()
    try:
        made = work()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made is not None
    return peak


MANY = 1 << 18


def test_decimals_of_many_are_read_in_the_memory_of_the_numbers() -> None:
    many = Locators.of([str(number) for number in range(MANY)])
    found = many.decimals()
    assert found is not None
    assert (found == np.arange(MANY)).all()
    assert peak_of(many.decimals) < 20 * MANY
    assert Locators.joined([many, Locators.of(["x"])]).decimals() is None


def test_parts_are_gathered_in_the_memory_of_what_they_give() -> None:
    part = Locators.of(["x", *(f"{number:08d}.jpg" for number in range(1024))])[1:]
    count = MANY // 1024
    gathered = Locators.gathered(MANY, (part for _ in range(count)))
    assert list(gathered) == [*part] * count
    assert list(gathered[1024:1026]) == ["00000000.jpg", "00000001.jpg"]
    assert list(Locators.gathered(0, [])) == []
    assert peak_of(lambda: Locators.gathered(MANY, (part for _ in range(count)))) < 40 * MANY
