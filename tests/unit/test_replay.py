"""The fold of the log into public state: what it gives, and what cannot follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from expunge.domain import dsse, replay, statement, tiles
from expunge.domain.errors import Tampered
from expunge.domain.replay import State, fold
from expunge.domain.statement import Predicate
from expunge.domain.words import Kind, ModelStatus, Outcome, Provision, Step
from tests.evidence import START, SWEEP, ZERO, Synthetic, batch, digest, order_sweep, sign


def fold_all(entries: Iterable[bytes], state: State | None = None) -> State:
    state = state or State()
    for entry in entries:
        predicate = statement.parse(dsse.parse(entry).payload).predicate
        fold(state, state.size, digest(entry), predicate)
    return state


def folded(built: Synthetic) -> State:
    return fold_all(built.log.entries[:-1])  # the last entry repeats a registration batch


def refused(state: State, predicate: Predicate, detail: str) -> None:
    size = state.size
    with pytest.raises(Tampered, match=detail):
        fold_all([sign(predicate)], state)
    assert state.size == size


def test_a_sweep_is_seen_whole() -> None:
    state = folded(Synthetic(models=(("face@1", "replaced"), ("door@1", "destroyed"))))
    sweep = state.sweeps[SWEEP]
    assert (sweep.index, sweep.approved, sweep.void) == (1, False, None)
    coverage = sweep.coverage()
    assert coverage[0, Step.ABSENCE].chunks == 3
    assert coverage[0, Step.ABSENCE].outcomes == {Outcome.GONE: 2050}
    assert (0, Step.HIDE) not in coverage
    assert coverage[1, Step.HIDE].outcomes == {Outcome.GONE: 1500}
    assert sweep.absences(0) == bytes([Outcome.GONE]) * 2050
    assert sweep.rounds[0].results == {"complete": 3}
    assert state.models["face@1"].status is ModelStatus.REPLACED
    assert state.models["face@1"].successor == "face@1+1"
    assert state.models["door@1"].status is ModelStatus.DESTROYED
    assert not state.models["door@1"].sweeps
    assert state.registered == {("studio", Kind.IMAGE): 1}
    assert state.images == 1


def test_a_sweep_half_done_has_open_leaves() -> None:
    built = Synthetic(again={})
    until = built.names.index("absence 0 1024 0")
    state = fold_all(built.log.entries[:until])
    assert state.sweeps[SWEEP].absences(0) == bytes([Outcome.GONE]) * 1024 + bytes(1026)
    assert state.sweeps[SWEEP].absences(1) == bytes(1500)
    early = fold_all(built.log.entries[: built.names.index("erase 0 0 0")])
    assert early.sweeps[SWEEP].absences(0) == bytes(2050)


def test_residue_opens_the_erase_again() -> None:
    built = Synthetic()
    until = built.names.index("erase 0 1024 1")
    coverage = fold_all(built.log.entries[:until]).sweeps[SWEEP].coverage()
    assert coverage[0, Step.ABSENCE].outcomes[Outcome.PRESENT] == 2
    assert coverage[0, Step.ERASE].outcomes[Outcome.OPEN] == 2


def test_an_orders_approval_a_void_scope_and_late_dates_are_seen() -> None:
    state = folded(order_sweep())
    assert state.sweeps[SWEEP].approved
    scope = state.sweeps[SWEEP].digest
    fold_all(
        [
            sign(statement.ScopeVoid(sweep=SWEEP, scope=scope, reason="cancelled", at=START)),
            sign(statement.Overdue(sweep=SWEEP, provision=Provision.MODELS, due=START, at=START)),
            sign(statement.MetricVoid(sweep=SWEEP, scope=scope, model="age@1", images=1, at=START)),
        ],
        state,
    )
    assert state.sweeps[SWEEP].void == "cancelled"
    assert state.sweeps[SWEEP].overdue == {Provision.MODELS}
    assert state.models["age@1"].metric_void
    assert state.models["age@1"].status is None


def test_a_model_that_is_gone_stays_gone() -> None:
    built = Synthetic(models=(("face@1", "replaced"),))
    state = fold_all([sign(built.tainted("face@1"))], folded(built))
    assert state.models["face@1"].status is ModelStatus.REPLACED
    assert state.models["face@1"].sweeps == {SWEEP}


def test_what_cannot_follow_is_refused() -> None:
    built = Synthetic()
    state = folded(built)
    refused(state, built.scope, "one scope per sweep")
    refused(state, built.completion, "a second")
    refused(state, batch(), "got it twice")
    refused(state, built.tainted("x").model_copy(update={"scope": ZERO}), "got another's")
    refused(State(), built.tainted("x"), "scope to be logged before")
    with pytest.raises(Tampered, match="index 0 next"):
        fold(State(), 1, ZERO, batch())


def test_deeds_need_presence_and_a_scope_that_stands_and_is_approved() -> None:
    built = order_sweep()
    at = built.names.index("erase 0 0 0")
    erase = statement.parse(dsse.parse(built.log.entries[at]).payload).predicate
    scope_only = [one for name, one in zip(built.names, built.log.entries, strict=True) if name == "scope"]
    refused(fold_all(scope_only), erase, "approved scope")
    approved = [*scope_only, built.log.entries[built.names.index("approved")]]
    refused(fold_all(approved), erase, "presence to be recorded")
    void = sign(statement.ScopeVoid(sweep=SWEEP, scope=built.scope_digest, reason="cancelled", at=START))
    refused(fold_all([*approved, void]), erase, "approved scope")


def test_a_taint_is_dated_by_its_scope() -> None:
    built = Synthetic()
    state = folded(built)
    assert replay.scope_time(state, built.tainted("x")) == START
    assert replay.scope_time(State(), built.tainted("x")) is None
    assert replay.scope_time(state, batch()) is None


def fetch_from(files: Mapping[str, bytes]) -> tiles.Fetch:
    return lambda path: files[path]


def bundles(size: int) -> tuple[list[bytes], dict[str, bytes]]:
    entries = [b"entry %d" % index for index in range(size)]
    return entries, {one.path: tiles.bundle_bytes(entries[one.start : one.end]) for one in tiles.new_bundles(0, size)}


def test_entries_come_from_bundles_from_any_index_on() -> None:
    entries, files = bundles(600)
    assert list(replay.entries(0, 600, fetch_from(files))) == list(enumerate(entries))
    assert list(replay.entries(300, 600, fetch_from(files))) == list(enumerate(entries))[300:]


def test_a_partial_bundle_may_be_gone_once_the_full_one_is_there() -> None:
    entries, files = bundles(256)
    assert [entry for _, entry in replay.entries(0, 200, fetch_from(files))] == entries[:200]
    with pytest.raises(Tampered, match="got none"):
        list(replay.entries(0, 200, fetch_from({})))
