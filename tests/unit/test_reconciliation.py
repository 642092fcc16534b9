"""The arithmetic of reconciliation: stated, checked, folded."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.domain import reconciliation, replay, verification
from expunge.domain.errors import Tampered
from expunge.domain.replay import State
from expunge.domain.statement import ReconciledCount, ReconciledSweep, Reconciliation
from expunge.domain.words import Kind
from tests.evidence import START, SWEEP, ZERO, Synthetic, batch, order_sweep, sign, trust

EVEN = reconciliation.counted("studio", Kind.IMAGE, registered=1, erased=1, under_way=0, present=0)


def said(*counts: ReconciledCount, **changes: Any) -> Reconciliation:
    values: dict[str, Any] = {"log_size": 1, "part": 0, "parts": 1, "counts": counts, "sweep": None, "at": START}
    return Reconciliation(**(values | changes))


def test_the_difference_follows() -> None:
    one = reconciliation.counted("studio", Kind.IMAGE, registered=10, erased=4, under_way=1, present=3)
    assert one.difference == 2
    assert list(reconciliation.in_words([one, EVEN])) == [
        "image from studio: 10 registered - 4 erased - 1 under way, 3 present: DIFFERS by 2",
        "image from studio: 1 registered - 1 erased, 0 present",
    ]


@pytest.mark.parametrize(
    ("wrong", "detail"),
    [
        (said(EVEN, part=1), "a part below 1"),
        (said(*[EVEN] * 101), "at most 100"),
        (said(EVEN, EVEN), "each source and kind once"),
        (said(EVEN.model_copy(update={"difference": 1})), "as the difference"),
        (said(EVEN, sweep=ReconciledSweep(sweep=SWEEP, scope=ZERO, leaves=1, present=2)), "at most 1 leaves"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_does_not_add_up_is_refused(wrong: Reconciliation, detail: str) -> None:
    with pytest.raises(Tampered, match=detail):
        reconciliation.check(wrong, "here")


def test_replay_knows_what_was_registered() -> None:
    state = replay.fold(State(), 0, ZERO, batch())
    replay.fold(state, 1, ZERO, said(EVEN))
    assert state.reconciled["studio", Kind.IMAGE] == (1, EVEN)
    assert not state.differences()
    lost = reconciliation.counted("studio", Kind.IMAGE, registered=1, erased=0, under_way=0, present=0)
    replay.fold(state, 2, ZERO, said(lost))
    assert state.differences() == [lost]
    for wrong, detail in (
        (said(EVEN, log_size=4), "of entries before it"),
        (said(EVEN, log_size=0), "expected 0 registered"),
        (said(EVEN, sweep=ReconciledSweep(sweep=SWEEP, scope=ZERO, leaves=1, present=0)), "scope to be logged before"),
    ):
        with pytest.raises(Tampered, match=detail):
            replay.fold(state, 3, ZERO, wrong)


def followed(built: Synthetic, **changes: Any) -> Synthetic:
    """The same sweep with a reconciliation after its completion."""
    leaves = sum(tree.leaves for tree in built.scope.trees)
    looked = {"sweep": SWEEP, "scope": built.scope_digest, "leaves": leaves, "present": 0}
    sweep = ReconciledSweep.model_validate(looked | changes.pop("looked", {})) if changes.pop("about", True) else None
    entry = sign(said(*changes.pop("counts", (EVEN,)), sweep=sweep, **changes))
    return order_sweep(order=lambda entries: [*entries, ("reconciled", entry)])


def test_a_bundle_takes_the_reconciliation_that_followed() -> None:
    found = verification.verify(followed(order_sweep()).files(), trust()).verified()
    assert found.reconciled == (EVEN,)


@pytest.mark.parametrize(
    ("changes", "step", "detail"),
    [
        ({"about": False}, "order", "looked for this sweep's scope"),
        ({"looked": {"scope": "1" * 64}}, "order", "looked for this sweep's scope"),
        ({"looked": {"leaves": 7}}, "completion", "leaves of the scope"),
        ({"looked": {"present": 1}}, "completion", "at most 0 artifacts"),
        ({"counts": (EVEN.model_copy(update={"difference": 3}),)}, "completion", "as the difference"),
        ({"log_size": 100_000}, "completion", "of entries before it"),
    ],
)
def test_a_reconciliation_that_does_not_fit_fails(changes: dict[str, Any], step: str, detail: str) -> None:
    report = verification.verify(followed(order_sweep(), **changes).files(), trust())
    assert not report.ok
    assert report.steps[-1].name == step
    assert detail in report.steps[-1].detail
