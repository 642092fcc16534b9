"""What a challenge asks for, and how many leaves are enough."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import challenge

SCOPE = "5" * 64
ROOT = b"r" * 32


@pytest.mark.parametrize(
    ("bad", "confidence", "leaves"), [(0.01, 0.95, 299), (0.001, 0.95, 2995), (0.01, 0.99, 459), (0.001, 0.99, 4603)]
)
def test_sample_sizes_are_those_of_the_textbook(bad: float, confidence: float, leaves: int) -> None:
    assert challenge.samples(bad, confidence) == leaves


@pytest.mark.parametrize(("bad", "confidence"), [(0, 0.95), (1, 0.95), (0.01, 0), (0.01, 1)])
def test_shares_are_between_none_and_all(bad: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        challenge.samples(bad, confidence)


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 40), max_size=5), st.integers(0, 60))
def test_places_are_different_leaves_of_the_trees(root: bytes, leaves: list[int], count: int) -> None:
    found = challenge.places(root, SCOPE, leaves, count)
    assert len(found) == min(count, sum(leaves))
    assert list(found) == sorted(set(found))
    assert all(index < leaves[tree] for tree, index in found)
    assert found == challenge.places(root, SCOPE, leaves, count)


def test_places_follow_from_root_and_scope() -> None:
    first = challenge.places(ROOT, SCOPE, [10_000, 10_000], 20)
    assert first != challenge.places(b"s" * 32, SCOPE, [10_000, 10_000], 20)
    assert first != challenge.places(ROOT, "6" * 64, [10_000, 10_000], 20)
    assert {tree for tree, _ in first} == {0, 1}


def test_a_place_by_hand() -> None:
    word = hashlib.sha256(b"expunge/challenge/v1" + ROOT + bytes.fromhex(SCOPE) + bytes(8)).digest()[:8]
    at = int.from_bytes(word, "big") % 3000
    assert challenge.places(ROOT, SCOPE, [1000, 2000], 1) == ((0, at) if at < 1000 else (1, at - 1000),)


def test_draws_that_would_favour_some_leaves_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A total that divides 2**8 badly: with one-byte draws of 200 leaves, those of 200 and more do not count."""
    monkeypatch.setattr(challenge, "_WORD", 1)
    found = challenge.places(ROOT, SCOPE, [200], 50)
    drawn = (
        hashlib.sha256(b"expunge/challenge/v1" + ROOT + bytes.fromhex(SCOPE) + bytes([n])).digest()[0]
        for n in range(256)
    )
    fair: list[int] = []
    for one in drawn:
        if one < 200 and one not in fair:
            fair.append(one)
    assert [index for _, index in found] == sorted(fair[:50])
