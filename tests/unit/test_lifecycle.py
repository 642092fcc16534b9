from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain import errors
from expunge.domain.errors import ExpungeError, IllegalTransition, Rejected, Retryable, Tampered
from expunge.domain.lifecycle import FINAL, RequestState, SweepState, move

MOVES = {
    "accepted": {"planned", "held", "cancelled"},
    "held": {"accepted", "cancelled"},
    "planned": {"data-certified", "completed", "held", "cancelled", "void"},
    "data-certified": {"completed", "accepted"},
}


@pytest.mark.parametrize(("now", "to"), list(product(RequestState, RequestState)))
def test_a_request_moves_as_the_table_says_and_no_other_way(now: RequestState, to: RequestState) -> None:
    if to.value in MOVES.get(now.value, set()):
        assert move(now, to) is to
    else:
        with pytest.raises(IllegalTransition, match=f"that is {now} cannot become {to}"):
            move(now, to)


@given(st.lists(st.sampled_from(RequestState)))
def test_what_is_final_stays_as_it_is(wishes: list[RequestState]) -> None:
    state = RequestState.ACCEPTED
    for wish in wishes:
        before = state
        try:
            state = move(state, wish)
        except IllegalTransition:
            continue
        assert before not in FINAL


def test_every_state_can_be_reached_but_rejection_which_is_no_row() -> None:
    reached, pending = set(), [RequestState.ACCEPTED]
    while pending:
        now = pending.pop()
        reached.add(now)
        pending += [RequestState(to) for to in MOVES.get(now.value, ()) if to not in reached]
    assert reached == set(RequestState) - {RequestState.REJECTED}


def test_states_have_their_wire_values() -> None:
    assert [one.value for one in SweepState] == ["sealed", "awaiting-approval", "published", "done", "void"]
    assert {one.value for one in FINAL} == {"completed", "rejected", "cancelled", "void"}


def test_errors_say_what_they_are_about() -> None:
    assert str(Retryable()) == "A passing fault: the same call may succeed later."
    assert str(ExpungeError("expected a, got b")) == "expected a, got b"
    rejected = Rejected("malformed", "expected JSON")
    assert (rejected.code, str(rejected)) == ("malformed", "expected JSON")
    tampered = Tampered("checkpoint", "expected a signature")
    assert (tampered.where, str(tampered)) == ("checkpoint", "checkpoint: expected a signature")


def test_every_error_is_of_the_one_family() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert all(issubclass(one, ExpungeError) and one.__doc__ for one in classes)
