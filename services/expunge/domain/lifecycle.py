"""The states a request and a sweep go through, and the only moves between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from expunge.domain.errors import IllegalTransition


class RequestState(StrEnum):
    """Where a request is. Public: `schemas/OUTCOMES.md`, made of this file, documents it for product backends."""

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

MOVES: Final = {
    RequestState.ACCEPTED: {RequestState.PLANNED, RequestState.HELD, RequestState.CANCELLED},
    RequestState.HELD: {RequestState.ACCEPTED, RequestState.CANCELLED},
    RequestState.PLANNED: {
        RequestState.DATA_CERTIFIED,
        RequestState.COMPLETED,
        RequestState.HELD,
        RequestState.CANCELLED,
        RequestState.VOID,
    },
    RequestState.DATA_CERTIFIED: {RequestState.COMPLETED, RequestState.ACCEPTED},  # accepted: its block is over
}
"""The only moves."""

MEANING: Final = {
    RequestState.ACCEPTED: "signed, within its key's scope, suppressed; waits for its sweep",
    RequestState.HELD: "a legal hold keeps its images; goes on when the hold is released",
    RequestState.PLANNED: "in a sealed sweep: scope fixed, work under way; orders wait here for approval",
    RequestState.DATA_CERTIFIED: "its data certificate is out; models that it tainted are not all replaced or destroyed yet",
    RequestState.COMPLETED: "every provision is closed by a certificate; consents, holds and the like were carried out",
    RequestState.REJECTED: "refused, with a code that says why; nothing was done beyond suppression",
    RequestState.CANCELLED: "taken back before anything was done",
    RequestState.VOID: "its scope was not approved in time: nothing was done",
}
"""What a state means to who asked, in a clause. The outcome page of the contract is made of it."""

SAID: Final[Mapping[RequestState, tuple[str, ...]]] = {
    RequestState.ACCEPTED: ("expunge.proof.request-accepted.v1",),
    RequestState.PLANNED: ("expunge.proof.approval-awaited.v1",),
    RequestState.DATA_CERTIFIED: ("expunge.proof.certificate-issued.v1",),
    RequestState.COMPLETED: ("expunge.proof.certificate-issued.v1", "expunge.proof.request-completed.v1"),
    RequestState.REJECTED: ("expunge.proof.request-rejected.v1",),
}
"""Events on `expunge.proofs` that may tell of a request that it got here. The other states are seen by asking."""


class SweepState(StrEnum):
    """Where a sweep is."""

    SEALED = "sealed"
    AWAITING_APPROVAL = "awaiting-approval"
    PUBLISHED = "published"
    DONE = "done"
    VOID = "void"


def move(now: RequestState, to: RequestState) -> RequestState:
    """`to`, if a request may go there. Raises `IllegalTransition` otherwise."""
    if to not in MOVES.get(now, ()):
        message = f"a request that is {now} cannot become {to}"
        raise IllegalTransition(message)
    return to
