from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from expunge.domain import limits, request
from expunge.domain.policy import CLOCKS, Policy
from expunge.domain.request import Regulation, SubjectRef
from expunge.domain.words import FINAL_ABSENT, Kind, Outcome, Provision, Remedy, Role, Step

RECEIVED = datetime(2026, 3, 1, 12, tzinfo=UTC)
ACCEPTED = RECEIVED + timedelta(days=2)
SIGNED: dict[str, Any] = {
    "id": "5b1f6f9e-0000-4000-8000-000000000001",
    "audience": "acme",
    "issued_at": RECEIVED,
    "expires_at": RECEIVED + timedelta(days=9),
    "nonce": "0" * 32,
}
PERSON: dict[str, Any] = SIGNED | {"subject_ref": SubjectRef("k1.subject000000000001")}


@pytest.mark.parametrize(
    ("regulation", "days"),
    [
        (Regulation.GDPR, 30),
        (Regulation.CCPA, 45),
        (Regulation.BIPA, 30),
        (Regulation.AI_ACT, 7),
        (Regulation.OTHER, 7),
    ],
)
def test_the_law_s_clock_runs_from_receipt(regulation: Regulation, days: int) -> None:
    policy = Policy(default_clock=timedelta(days=7))
    due = RECEIVED + timedelta(days=days)
    deletion = request.DeletionRequested(**PERSON, regulation=regulation, received_at=RECEIVED)
    withdrawal = request.ConsentWithdrawn(**PERSON, regulation=regulation, received_at=RECEIVED, purposes=("training",))
    assert policy.due(deletion, ACCEPTED) == policy.due(withdrawal, ACCEPTED) == due


def test_a_deadline_that_is_named_counts() -> None:
    deadline = RECEIVED + timedelta(days=3)
    asked = request.DeletionRequested(**PERSON, regulation=Regulation.GDPR, received_at=RECEIVED, deadline=deadline)
    assert Policy().due(asked, ACCEPTED) == deadline


def test_an_order_is_due_with_its_first_provision() -> None:
    first, second = RECEIVED + timedelta(days=5), RECEIVED + timedelta(days=50)
    order = request.OrderIssued(
        **SIGNED,
        selection=request.ByPeriod(start=date(2020, 1, 1), end=date(2021, 1, 1)),
        authority=request.Authority.REGULATOR,
        reference="file 1",
        provisions=(
            request.OrderProvision(number=1, covers=Provision.MODELS, deadline=second, remedy=Remedy.DESTROY),
            request.OrderProvision(number=2, covers=Provision.DATA, deadline=first),
        ),
    )
    assert Policy().due(order, ACCEPTED) == first


def test_what_has_no_clock_of_its_own_is_due_from_acceptance() -> None:
    expired = request.RetentionExpired(**PERSON)
    assert Policy(default_clock=timedelta(days=4)).due(expired, ACCEPTED) == ACCEPTED + timedelta(days=4)


def test_clocks_are_known_for_laws_that_set_one() -> None:
    assert set(CLOCKS) == {Regulation.GDPR, Regulation.CCPA, Regulation.BIPA}
    assert Policy().approvers == 2


def test_wire_codes_never_change() -> None:
    assert [(one.name, one.value) for one in Outcome] == [
        ("OPEN", 0), ("GONE", 1), ("GONE_EARLIER", 2), ("ABSENT_BEFORE", 3), ("EXCLUDED", 4), ("BLOCKED", 5),
        ("FAILED", 6), ("PRESENT", 7),
    ]  # fmt: skip
    assert {1, 2, 3} == FINAL_ABSENT
    assert [one.value for one in Step] == ["presence", "hide", "erase", "absence"]
    assert [one.value for one in Kind] == ["image", "derivative", "shard-row", "embedding", "model"]
    assert len(set(Role)) == 10


def test_limits_fit_the_formats_that_they_come_from() -> None:
    assert limits.LOG_ENTRY_BYTES == 2**16 - 1
    assert limits.CHUNK_LEAVES == 4 * 256
    assert limits.ORDINAL_BLOCK == 2**16
    assert limits.ARTIFACT_ID_BITS == 48
