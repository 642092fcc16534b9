from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from expunge.domain import canonical, dsse, events, request, suppression
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.errors import Retryable
from expunge.domain.words import Role
from expunge.stages.intake import Intake
from expunge.workers.delivery import ATTEMPTS, Parking
from tests.coordination import (
    ANN,
    PUBLISHER,
    Deployment,
    Party,
    album,
    deployed,
    signed,
    source,
    subject,
)

STRANGER = Party.named("stranger")
NARROW = Party.named("narrow")
EXPIRED = Party.named("expired")
TOPIC = "expunge.requests"


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        made.trust_party(NARROW, Role.PUBLISHER, types=["expunge.request.deletion.v1"])
        made.trust_party(EXPIRED, Role.PUBLISHER, valid_from=made.clock.now + timedelta(days=1))
        yield made


def carrying(one: request.Request, data: bytes) -> CloudEvent:
    return replace(signed(one), data=data)


def forged(one: request.Request) -> CloudEvent:
    envelope = canonical.loads(signed(one).data)
    assert isinstance(envelope, dict)
    other = canonical.loads(signed(one, STRANGER).data)
    assert isinstance(other, dict)
    signatures: Any = other["signatures"]
    signatures[0]["keyid"] = PUBLISHER.key.key_id
    return carrying(one, canonical.dumps({**envelope, "signatures": signatures}))


def unsigned(one: request.Request) -> CloudEvent:
    envelope = canonical.loads(signed(one).data)
    assert isinstance(envelope, dict)
    return carrying(one, canonical.dumps({**envelope, "signatures": []}))


def rewritten(one: request.Request, **changes: object) -> CloudEvent:
    """Signed, with another payload than the schema allows."""
    payload = canonical.loads(request.dump_request(one))
    assert isinstance(payload, dict)
    data = dsse.sign(canonical.dumps({**payload, **changes}), request.PAYLOAD_TYPE, PUBLISHER.key)
    return replace(carrying(one, data), type=str(changes.get("type", one.type)))


Make = Callable[[request.DeletionRequested], CloudEvent]

DEAD: dict[str, tuple[str, Make]] = {
    "unsigned": ("unsigned", unsigned),
    "a bare request": ("unsigned", lambda one: carrying(one, request.dump_request(one))),
    "wrongly signed": ("bad-signature", forged),
    "signed by a stranger": ("unknown-key", lambda one: signed(one, STRANGER)),
    "not JSON": ("malformed", lambda one: carrying(one, b"\x00\xff")),
    "an envelope cut short": ("malformed", lambda one: carrying(one, signed(one).data[:-20])),
    "a payload without an id": ("malformed", lambda one: rewritten(one, id=None)),
    "oversized": ("oversized", lambda one: carrying(one, signed(one).data + b" " * 1_000_000)),
    "another id in the headers": ("header-mismatch", lambda one: replace(signed(one), id=str(uuid4()))),
    "another key in the headers": ("header-mismatch", lambda one: replace(signed(one), partitionkey=subject(7))),
}

REJECTED: dict[str, tuple[str, Make]] = {
    "malformed": ("malformed", lambda one: rewritten(one, shoe_size=42)),
    "of an unknown version": ("unknown-version", lambda one: rewritten(one, type="expunge.request.deletion.v9")),
    "of an unknown type": ("unknown-type", lambda one: rewritten(one, type="expunge.request.wish.v1")),
    "about nobody known": ("unknown-subject", lambda one: signed(one.model_copy(update={"subject_ref": subject(404)}))),
    "for someone else": ("wrong-audience", lambda one: signed(one.model_copy(update={"audience": "other"}))),
    "expired": ("expired", lambda one: signed(_shifted(one, -timedelta(days=2)))),
    "from the future": ("issued-in-future", lambda one: signed(_shifted(one, timedelta(hours=1)))),
    "by an approver": ("wrong-role", lambda one: signed(one, ANN)),
    "by a key not valid yet": ("key-not-valid", lambda one: signed(one, EXPIRED)),
}


def _shifted(one: request.DeletionRequested, by: timedelta) -> request.DeletionRequested:
    return one.model_copy(update={"issued_at": one.issued_at + by, "expires_at": one.expires_at + by})


def no_personal_data(world: Deployment) -> None:
    """Nothing that came in a request is in what leaves, or in a dead letter's plain columns."""
    personal = [re.escape(needle) for needle in (b"k1.subject", b"shoe_size")]
    outgoing = [one.value + one.key for one in world.broker.published if one.topic not in {TOPIC, "expunge.lineage"}]
    rows = world.sql("select topic, reason, event_id, worker from dead_letter")
    rows += world.sql("select topic, reason, scope, event_id, worker from retry")
    plain = [repr(row).encode() for row in rows]
    assert not [text for text in (*outgoing, *plain) if re.search(b"|".join(personal), text)]


@pytest.mark.parametrize("case", DEAD)
async def test_what_is_not_authentic_is_a_dead_letter_and_the_next_is_processed(world: Deployment, case: str) -> None:
    await world.seed(*album(1), *album(2))
    reason, make = DEAD[case]
    bad, good = world.deletion(1), world.deletion(2)
    event = make(bad)
    world.send(event, TOPIC)
    await world.take(good)
    assert world.letters() == [reason]
    (letter,) = world.said(events.DeadLettered)
    assert (letter.topic, letter.offset, letter.reason) == (TOPIC, 0, reason)
    ((sealed,),) = world.sql("select sealed from dead_letter")
    assert Parking(b"p" * 32).open(TOPIC, 0, 0, sealed).value == event.data
    assert world.codes(bad) == []
    assert (world.state(bad), world.state(good)) == (None, "accepted")
    no_personal_data(world)


@pytest.mark.parametrize("case", REJECTED)
async def test_what_is_authentic_and_wrong_is_rejected_and_the_next_is_processed(world: Deployment, case: str) -> None:
    await world.seed(*album(1), *album(2))
    code, make = REJECTED[case]
    bad, good = world.deletion(1), world.deletion(2)
    world.send(make(bad), TOPIC)
    await world.take(good)
    assert world.codes(bad) == [code]
    assert world.letters() == []
    assert (world.state(bad), world.state(good)) == (None, "accepted")
    no_personal_data(world)


async def test_scope_sources_purposes_and_quota_are_checked(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *album(3))
    few = Party.named("few")
    world.trust_party(few, Role.PUBLISHER, purposes=["training"], sources=["studio"])
    unknown = world.order(request.BySource(source="nowhere"))
    purpose = world.withdrawal(1, "newsletter")
    await world.take(unknown, purpose)
    assert (world.codes(unknown), world.codes(purpose)) == (["unknown-source"], ["unknown-purpose"])
    kind = world.withdrawal(1)
    await world.take(kind, by=NARROW)
    assert world.codes(kind) == ["out-of-key-scope"]
    day, people = world.clock.now.date(), (subject(1),)
    more: list[request.Request] = [
        world.withdrawal(1, "account"),
        world.deletion(1),  # all purposes
        world.order(request.BySource(source="partner")),
        world.order(request.BySource(source="studio")),  # all purposes of it
        world.order(request.ByPeriod(start=day, end=day + timedelta(days=1))),  # of all sources
        world.order(request.ByList(subjects=people)),
        world.order(request.BySuppressed()),
        request.RetentionExpired(**world.common(subject_ref=subject(1))),
        request.RetentionExpired(**world.common(subject_ref=subject(1), purposes=("account",))),
    ]
    await world.take(*more, by=few)
    assert [world.codes(one) for one in more] == [["out-of-key-scope"]] * len(more)
    one_source = Party.named("one source")
    world.trust_party(one_source, Role.PUBLISHER, sources=["studio"])
    allowed, period = (
        world.order(one)
        for one in (request.BySource(source="studio"), request.ByPeriod(start=day, end=day + timedelta(days=1)))
    )
    await world.take(allowed, period, by=one_source)
    assert (world.codes(allowed), world.codes(period)) == ([], ["out-of-key-scope"])
    three = [world.deletion(person) for person in (1, 2, 3)]
    few = Party.named("only few")
    world.trust_party(few, Role.PUBLISHER, quota=2)
    await world.take(*three, by=few)
    assert [world.state(one) for one in three] == ["accepted", "accepted", None]
    assert world.codes(three[2]) == ["over-quota"]
    await world.take(three[0], by=few)
    assert world.codes(three[0]) == []
    world.clock.pass_(days=1)
    tomorrow = world.deletion(3)
    await world.take(tomorrow, by=few)
    assert world.state(tomorrow) == "accepted"


@pytest.mark.parametrize("when", ["in one batch", "later", "after its expiry", "when it is done"])
async def test_a_repeat_is_accepted_again_and_has_one_row(world: Deployment, when: str) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    if when == "in one batch":
        await world.take(asked, asked)
    else:
        world.ask(asked)
        await (world.settle() if when == "when it is done" else world._deliver())
        world.clock.pass_(days=2 if when == "after its expiry" else 0)
        await world.take(asked)
    assert len(world.said(events.RequestAccepted, asked)) == 1
    assert world.codes(asked) == []
    assert world.sql("select count(*) from request") == [(1,)]
    assert sum(one.field == "subject" for one in world.suppressed()) == 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("same", ["id", "nonce"])
async def test_other_bytes_under_a_used_id_or_nonce_are_replays(world: Deployment, same: str, together: bool) -> None:  # noqa: FBT001 - a case
    await world.seed(*album(1), *album(2))
    first = world.deletion(1)
    second = world.deletion(2, **{same: getattr(first, same)})
    third = world.deletion(2)
    if together:
        await world.take(first, second, third)
    else:
        await world.take(first)
        await world.take(second, third)
    assert world.codes(second) == ["replayed"]
    assert world.sql("select subject_ref from request order by seq") == [(subject(1),), (subject(2),)]
    assert world.state(third) == "accepted"


async def test_suppression_is_journalled_before_the_row(world: Deployment) -> None:
    await world.seed(*album(1))
    delivery = world.deletion(1)
    world.ask(delivery)

    class Stop(Exception):  # noqa: N818 - not an error
        pass

    async def stopped(self: Intake, *_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Intake, "commit", stopped)
        with pytest.raises(Stop):
            await world._deliver()
    assert world.state(delivery) is None
    (record,) = world.suppressed()
    mac = suppression.mac(world.journal.key, "subject", "*", subject(1).encode())
    assert (record.action, record.mac) == (suppression.Action.ADD, mac)
    await world._deliver()
    assert world.state(delivery) == "accepted"
    assert world.sql("select mac, lifted_at from suppressed_subject") == [(mac, None)]


async def test_a_request_about_nobody_known_suppresses_all_the_same(world: Deployment) -> None:
    await world.register(source("studio"))
    await world.take(world.deletion(5))
    assert world.sql("select count(*) from suppressed_subject") == [(1,)]


Follow = Callable[[Deployment, request.OrderIssued], request.Request]
FOLLOWERS: dict[str, tuple[Follow, Party, list[str], str]] = {
    "approval": (lambda world, order: world.approval(order, "0" * 64), ANN, ["wrong-scope"], "planned"),
    "cancel": (lambda world, order: world.cancel(order), PUBLISHER, [], "cancelled"),
}


@pytest.mark.parametrize("kind", FOLLOWERS)
async def test_what_comes_before_its_request_waits_for_it(world: Deployment, kind: str) -> None:
    await world.seed(*album(1))
    make, party, answer, state = FOLLOWERS[kind]
    order = world.order(request.BySource(source="studio"))
    follower = make(world, order)
    await world.take(follower, by=party)
    assert world.sql("select reason from retry") == [("unknown-request",)]
    await world.take(order)
    assert world.state(order) == "accepted"
    assert world.sql("select reason from retry") == [("unknown-request",)]
    await world.settle()
    assert world.sql("select count(*) from retry") == [(0,)]
    assert world.letters() == []
    assert world.codes(follower) == answer
    assert world.state(order) == state
    no_personal_data(world)


async def test_a_release_before_its_hold_waits_for_it(world: Deployment) -> None:
    await world.seed(*album(1))
    hold = world.hold(request.BySubject(subject_ref=subject(1)))  # another key, so another partition
    release, asked = world.release(hold), world.deletion(1)
    await world.take(release)
    await world.take(hold, asked)
    assert world.state(asked) == "held"
    await world.settle()
    assert world.state(asked) == "completed"
    assert world.letters() == []


async def test_a_follower_whose_request_never_comes_is_a_dead_letter_after_the_last_attempt(world: Deployment) -> None:
    await world.seed(*album(1))
    lost = world.cancel(world.deletion(1))
    await world.take(lost)
    host = world.hosts["coordinate"]
    for attempt in range(ATTEMPTS):
        assert world.letters() == []
        assert world.sql("select attempts from retry") == [(attempt,)]
        world.sql("update retry set not_before = clock_timestamp()")
        await host.retry_due()
    assert world.letters() == ["unknown-request"]
    assert world.sql("select count(*) from retry") == [(0,)]
    (letter,) = world.said(events.DeadLettered)
    assert letter.event_id == lost.id


async def test_consents_are_kept_and_lift_what_was_issued_before(world: Deployment) -> None:
    await world.seed(*album(1))
    await world.take(world.withdrawal(1))
    assert world.sql("select given, purposes from consent") == [(False, 2)]
    world.clock.pass_(minutes=1)
    consent = request.ConsentGiven(**world.common(subject_ref=subject(1), purposes=("training",)))
    await world.take(consent)
    assert len(world.said(events.RequestAccepted, consent)) == 1
    assert world.sql("select lifted_at is not null from suppressed_subject") == [(True,)]
    assert [one.action for one in world.suppressed()] == [suppression.Action.ADD, suppression.Action.LIFT]


async def test_the_last_issued_counts_whatever_the_order_in_a_batch(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    older = [request.ConsentGiven(**world.common(subject_ref=subject(one), purposes=("training",))) for one in (1, 2)]
    world.clock.pass_(minutes=1)
    newer = [world.withdrawal(1), world.withdrawal(2)]
    await world.take(older[0], newer[0], newer[1], older[1])
    assert world.sql("select lifted_at from suppressed_subject") == [(None,), (None,)]
    assert [one.action for one in world.suppressed()] == [suppression.Action.ADD] * 2


async def test_an_accepted_order_closes_its_source_and_has_the_day_s_key(world: Deployment) -> None:
    await world.seed(*album(1))
    order = world.order(request.BySource(source="studio"))
    await world.take(order)
    assert len(world.said(events.RequestAccepted, order)) == 1
    assert world.sql("select closed_by::text from source") == [(order.id,)]
    assert world.keys.bucket(world.clock.now.date())


async def test_a_fault_of_the_journal_parks_the_batch_and_logs_no_person(world: Deployment) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)

    def fail(_: bytes) -> None:
        raise Retryable("the journal's disk is full")

    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(world.journal, "append", fail)
        await world.take(asked)
    assert world.state(asked) is None
    assert world.sql("select reason from retry") == [("retryable",)]
    assert logs
    assert subject(1) not in repr(logs)
    no_personal_data(world)
    await world.settle()
    assert world.state(asked) == "completed"


async def test_request_rows_hold_what_was_asked(world: Deployment) -> None:
    await world.seed(*album(1))
    deadline = world.clock.now + timedelta(days=3)
    asked = world.deletion(1, deadline=deadline)
    kept = request.RetentionExpired(**world.common(subject_ref=subject(1), purposes=("training", "account")))
    await world.take(asked, kept)
    rows = world.sql(
        "select class, purposes, due = %s, bucket = %s from request order by seq", deadline, deadline.date()
    )
    assert [row[:3] for row in rows] == [("people", -1, True), ("people", 3, False)]
