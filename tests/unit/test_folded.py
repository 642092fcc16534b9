"""A folded state as a file: what comes back is what went in, and a damaged file is refused."""

from __future__ import annotations

import dataclasses

import pytest

from expunge.domain import folded
from expunge.domain.errors import Tampered
from expunge.domain.folded import Folded
from expunge.domain.replay import State
from expunge.domain.words import Outcome
from tests.evidence import Synthetic, order_sweep
from tests.unit.test_replay import fold_all

POLICY = "ab" * 32


def states() -> list[tuple[str, Synthetic]]:
    return [
        ("people", Synthetic(outcomes={(0, 1): Outcome.FAILED}, models=(("face@1", "replaced"), ("door@1", "open")))),
        ("order", order_sweep()),
    ]


@pytest.mark.parametrize("built", [pytest.param(built, id=name) for name, built in states()])
def test_every_prefix_of_a_log_comes_back_as_it_was_and_goes_on_alike(built: Synthetic) -> None:
    entries = built.log.entries[:-1]
    whole = fold_all(entries)
    for size in range(len(entries) + 1):
        state = fold_all(entries[:size])
        back = folded.load(folded.dump(Folded("log", POLICY, state, b"h" * 32 * size)))
        assert back == Folded("log", POLICY, state, b"h" * 32 * size)
        assert fold_all(entries[size:], back.state) == whole


def test_every_field_of_the_state_is_kept() -> None:
    kept = {"size", "sweeps", "models", "batches", "images", "destroyed", "sums", "reconciled"}
    derived = {"registered"}
    assert {one.name for one in dataclasses.fields(State)} == kept | derived


def test_a_file_that_was_cut_or_changed_is_refused() -> None:
    data = folded.dump(Folded("log", POLICY, fold_all(order_sweep().log.entries[:3]), bytes(96)))
    for spoiled in (b"", data[:31], data[:-1], data[1:], data + b"x"):
        with pytest.raises(Tampered, match="resume file"):
            folded.load(spoiled)
    for at in range(0, len(data), 97):
        with pytest.raises(Tampered):
            folded.load(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_file_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = folded.dump(Folded("log", POLICY, State(), b""))
    monkeypatch.setattr(folded, "VERSION", 2)
    with pytest.raises(Tampered, match="version 2"):
        folded.load(data)
