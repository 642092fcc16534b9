"""The one rule that turns counts into a result, shared by certify (which claims it) and verify (which recomputes it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import assert_never

from expunge.domain.certificate import ModelDue, Result
from expunge.domain.words import Outcome, Provision


def result_of(
    provision: Provision,
    outcomes: Mapping[Outcome, int],
    models: Iterable[ModelDue] = (),
    *,
    at: datetime,
    cancelled: bool = False,
) -> Result:
    """The result of one provision. `outcomes`: last outcomes of step absence over the request's artifacts; `models`:
    what the request taints; `at`: time of the completion statement; `cancelled`: why artifacts were excluded, if they
    were.

    Data: complete only if every artifact is finally absent, else the first of held (or cancelled), blocked, partial,
    unverified that has an artifact. Models: complete only if each is replaced or destroyed.
    """
    match provision:
        case Provision.DATA:
            return _data_result({code for code, count in outcomes.items() if count}, cancelled=cancelled)
        case Provision.MODELS:
            open_dues = [model.due for model in models if model.resolution == "open"]
            if not open_dues:
                return "complete"
            return "overdue" if min(open_dues) < at else "unverified"
        case _:
            assert_never(provision)


def _data_result(seen: set[Outcome], *, cancelled: bool) -> Result:
    if Outcome.EXCLUDED in seen:
        return "cancelled" if cancelled else "held"
    if Outcome.BLOCKED in seen:
        return "blocked"
    if Outcome.FAILED in seen:
        return "partial"
    if seen & {Outcome.OPEN, Outcome.PRESENT}:
        return "unverified"
    return "complete"
