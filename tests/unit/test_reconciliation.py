"""The arithmetic of reconciliation: stated, checked, folded."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.domain import reconciliation, replay, verification
from expunge.domain.errors import Tampered
from expunge.domain.replay import State
from expunge.domain.report import Report
from expunge.domain.statement import ReconciledCount, ReconciledSweep, Reconciliation
from expunge.domain.words import Kind, Provision
from tests import adversary
from tests.evidence import START, SWEEP, ZERO, Synthetic, batch, followed, order_sweep, reconciled, trust

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


def checked(files: dict[str, bytes], *, demanded: bool = True) -> Report:
    return verification.verify(files, trust(reconciled_orders=demanded))


def test_a_bundle_takes_the_reconciliation_that_followed() -> None:
    found = checked(followed(reconciled(order_sweep(), EVEN)).files())
    assert found.verified().reconciled == (EVEN,)
    assert found.steps[9].detail == "0 of 2200 artifacts of the scope present; 1 counts of log size 1"


def test_an_order_that_is_not_reconciled_yet_fails_where_the_policy_asks_for_it() -> None:
    report = checked(order_sweep().files())
    assert (report.where, report.steps[-1].name) == ("reconciliation", "reconciliation")
    assert "not there yet" in report.steps[-1].detail
    assert (
        "not there yet, and the policy does not ask" in checked(order_sweep().files(), demanded=False).steps[9].detail
    )


def test_an_earlier_reconciliation_is_none_of_what_followed() -> None:
    def early(entries: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        at = [name for name, _ in entries].index("completion")
        return [*entries[:at], ("reconciled", reconciled(order_sweep(), EVEN)), *entries[at:]]

    assert "not there yet" in checked(order_sweep(order=early).files()).steps[-1].detail


def test_people_and_models_do_not_wait_for_a_reconciliation() -> None:
    assert checked(Synthetic().files()).ok
    assert checked(order_sweep(provision=Provision.MODELS, models=(("face@1", "destroyed"),)).files()).ok


def test_a_difference_fails_an_order_where_the_policy_asks_for_it() -> None:
    lost = reconciliation.counted("studio", Kind.IMAGE, registered=3, erased=1, under_way=0, present=1)
    files = followed(reconciled(order_sweep(), lost)).files()
    assert "image from studio to reconcile, it differs by 1" in checked(files).steps[-1].detail
    said = checked(files, demanded=False)
    assert said.steps[9].detail.endswith("1 differ")
    mended = followed(reconciled(order_sweep(), lost), reconciled(order_sweep(), EVEN, log_size=2))
    assert checked(mended.files()).verified().reconciled == (EVEN,)  # the last run counts


@pytest.mark.parametrize("parts", [(0,), (1,), (0, 0), (0, 1, 1)])
def test_a_run_without_all_its_parts_fails(parts: tuple[int, ...]) -> None:
    """Otherwise the part with the difference would be the one that is left out."""
    built = followed(*(reconciled(order_sweep(), EVEN, part=part, parts=2) for part in parts))
    report = checked(built.files(), demanded=False)
    assert (report.where, report.ok) == ("reconciliation", False)
    assert "2 parts of the last run" in report.steps[-1].detail
    adversary.refused()
    assert checked(followed(*(reconciled(order_sweep(), EVEN, part=part, parts=2) for part in (0, 1))).files()).ok


@pytest.mark.parametrize(
    ("changes", "step", "detail"),
    [
        ({"sweep": None}, "order", "looked for this sweep's scope"),
        ({"looked": {"scope": "1" * 64}}, "order", "looked for this sweep's scope"),
        ({"looked": {"leaves": 7}}, "reconciliation", "leaves of the scope"),
        ({"looked": {"present": 1}}, "reconciliation", "at most 0 artifacts"),
        ({"counts": (EVEN.model_copy(update={"difference": 3}),)}, "reconciliation", "as the difference"),
        ({"log_size": 100_000}, "reconciliation", "of entries before it"),
    ],
)
def test_a_reconciliation_that_does_not_fit_fails(changes: dict[str, Any], step: str, detail: str) -> None:
    entry = reconciled(order_sweep(), *changes.pop("counts", (EVEN,)), **changes)
    report = checked(followed(entry).files(), demanded=False)
    assert not report.ok
    assert report.steps[-1].name == step
    assert detail in report.steps[-1].detail
    adversary.refused()
