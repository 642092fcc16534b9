from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from expunge.adapters.stores.tombstones import Tombstones

WIDTH = 4
TOKEN = st.text("0123456789abcdef", min_size=WIDTH, max_size=WIDTH)


@given(st.lists(TOKEN), st.lists(TOKEN))
def test_they_are_a_set_of_tokens(tokens: list[str], others: list[str]) -> None:
    made = Tombstones.of(tokens, WIDTH)
    assert set(made) == set(tokens)
    assert len(made) == len(set(tokens))
    assert set(made.without(others)) == set(tokens) - set(others)
    assert not made.without(tokens)
    assert set(others) - made == set(others) - set(tokens)
    assert made | set(others) == {*tokens, *others}
    assert all(one in made for one in tokens)


@example([["0000"]], "aaa\x80")
@given(st.lists(st.lists(TOKEN, min_size=1)), st.text("ab\n\x80", max_size=12))
def test_what_was_appended_is_read_and_torn_lines_are_none(hides: list[list[str]], torn: str) -> None:
    lines = b"".join(Tombstones.of(one, WIDTH).lines() for one in hides)
    every = {token for one in hides for token in one}
    assert set(Tombstones.read(lines, WIDTH)) == every
    whole = {one for one in torn.split("\n") if len(one.encode("latin-1")) == WIDTH and one.isascii()}
    assert Tombstones.read(torn.encode("latin-1") + lines, WIDTH) >= every
    assert set(Tombstones.read(lines + torn.encode("latin-1"), WIDTH)) == every | whole
