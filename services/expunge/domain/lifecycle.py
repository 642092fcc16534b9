"""The states a request and a sweep go through, and the only moves between them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from expunge.domain.errors import IllegalTransition


class RequestState(StrEnum):
    """Where a request is. Public: `schemas/README.md` documents it for product backends."""

    ACCEPTED = "accepted"
    """Signed, within its key's scope, suppressed; waiting for its sweep."""
    HELD = "held"
    """A legal hold keeps its images; planned again when the hold is released."""
    PLANNED = "planned"
    """In a sealed sweep; orders wait here for approval."""
    DATA_CERTIFIED = "data-certified"
    """Its data certificate is out; models it tainted are not all replaced or destroyed yet."""
    COMPLETED = "completed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    VOID = "void"
    """Its scope was never approved in time: nothing was done."""


FINAL: Final = frozenset({RequestState.COMPLETED, RequestState.REJECTED, RequestState.CANCELLED, RequestState.VOID})

_MOVES: Final = {
    RequestState.ACCEPTED: {RequestState.PLANNED, RequestState.HELD, RequestState.CANCELLED},
    RequestState.HELD: {RequestState.ACCEPTED, RequestState.CANCELLED},
    RequestState.PLANNED: {
        RequestState.DATA_CERTIFIED,
        RequestState.COMPLETED,
        RequestState.HELD,
        RequestState.CANCELLED,
        RequestState.VOID,
    },
    RequestState.DATA_CERTIFIED: {RequestState.COMPLETED},
}


class SweepState(StrEnum):
    """Where a sweep is."""

    SEALED = "sealed"
    AWAITING_APPROVAL = "awaiting-approval"
    PUBLISHED = "published"
    DONE = "done"
    VOID = "void"


def move(now: RequestState, to: RequestState) -> RequestState:
    """`to`, if a request may go there. Raises `IllegalTransition` otherwise."""
    if to not in _MOVES.get(now, ()):
        message = f"a request that is {now} cannot become {to}"
        raise IllegalTransition(message)
    return to
