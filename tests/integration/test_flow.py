from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from expunge import metrics
from expunge.domain import cloudevents, events, request, statement, suppression
from expunge.domain.errors import Unpublished
from expunge.domain.words import Level, Provision
from expunge.pipeline import WORKERS
from expunge.stages.certify import finished
from expunge.stages.certify import rows as certify_rows
from expunge.tasks import Commit, Lease
from tests.coordination import (
    ANN,
    BOB,
    FACES,
    PHOTOS,
    PUBLISHER,
    SHARDS,
    THUMBS,
    Deployment,
    Party,
    Photo,
    album,
    batch,
    deployed,
    subject,
)

BEFORE_INTENT = frozenset(WORKERS) - {"purge", "invalidate"}
STORES = (PHOTOS, THUMBS, SHARDS, FACES)

DEADLINE_SECONDS = 60.0


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


async def carried_out(world: Deployment, *asked: request.Request) -> None:
    world.ask(*asked)
    await world.settle()


async def ordered(world: Deployment, selection: request.Selection) -> request.OrderIssued:
    """An order that waits for approval."""
    order = world.order(selection)
    await carried_out(world, order)
    return order


def of(person: int, count: int = 4) -> set[str]:
    return {f"p{person}-{n}.bin" for n in range(count)}


def on_hold(person: int) -> request.BySubject:
    return request.BySubject(subject_ref=subject(person))


STUDIO = request.BySource(source="studio")


async def test_a_person_is_deleted_from_every_store_and_the_certificate_verifies(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked = world.deletion(1)
    await carried_out(world, asked)
    assert (world.state(asked), world.result(asked)) == ("completed", "complete")
    for store in STORES:
        assert world.left(store) == of(2)
    summary = (await world.verify(asked)).verified()
    assert summary.result == "complete"
    assert {(one.store, one.absent, one.level) for one in summary.stores} == {
        (store, 4, Level.FILE_ABSENT) for store in STORES
    }
    (issued,) = world.said(events.CertificateIssued, asked)
    assert (issued.provision, issued.result) == (Provision.DATA, events.Result.COMPLETE)
    assert len(world.said(events.RequestCompleted, asked)) == 1


async def test_no_certificate_is_given_out_before_its_round_is_published(world: Deployment) -> None:
    """It would not verify: its completion would not be in the bundle."""
    await world.seed(*album(1))
    asked = world.deletion(1)
    await carried_out(world, asked)
    world.sql("delete from log_checkpoint where size > (select max(log_index) from round)")
    with pytest.raises(Unpublished):
        await world.verify(asked)


async def test_rows_about_a_person_go_last_and_leave_tombstones(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    await world.take(world.withdrawal(1, "newsletter"))
    assert world.sql("select count(*) from consent") == [(1,)]
    asked = world.deletion(1)
    await carried_out(world, asked)
    for table, rows in (("image", 4), ("image_subject", 4), ("artifact", 16), ("consent", 0), ("tombstone", 1)):
        assert world.sql(f"select count(*) from {table}") == [(rows,)], table
    assert world.sql("select images from tombstone") == [(4,)]
    assert world.sql("select subject_ref, body from request where request_id = %s", asked.id) == [(None, b"")]
    order = await ordered(world, STUDIO)
    await world.approve(order)
    await world.settle()
    summary = (await world.verify(order)).verified()
    assert (summary.images, summary.erased_earlier) == (4, 4)


async def test_an_orders_rows_go_in_transactions_side_by_side_and_each_is_counted_once(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.seed(*album(1), *album(2))
    drop, under_way, both = certify_rows._drop_blocks, 0, asyncio.Event()

    async def together(*args: Any, **named: Any) -> None:
        nonlocal under_way
        under_way += 1
        if under_way == 2:
            both.set()
        await asyncio.wait_for(both.wait(), DEADLINE_SECONDS)
        await drop(*args, **named)

    monkeypatch.setattr(certify_rows, "BLOCK_IMAGES", 1)
    monkeypatch.setattr(certify_rows, "_drop_blocks", together)
    order = await ordered(world, STUDIO)
    await world.approve(order)
    await world.settle()
    assert (world.result(order), under_way) == ("complete", 8)
    for table in ("image", "image_subject", "artifact"):
        assert world.sql(f"select count(*) from {table}") == [(0,)], table
    assert world.sql("select sum(artifacts) from erased") == [(32,)]
    assert world.sql("select sum(images) from tombstone") == [(8,)]


async def test_withdrawing_training_keeps_the_account_and_taints_the_models(world: Deployment) -> None:
    mine, others = album(1), album(2)
    await world.seed(*mine, *others)
    await world.trained("face@1", [*mine, *others])
    asked = world.withdrawal(1)
    await carried_out(world, asked)
    assert world.left(PHOTOS) == world.left(THUMBS) == of(1) | of(2)
    assert world.left(SHARDS) == world.left(FACES) == of(2)
    assert (world.state(asked), world.result(asked)) == ("data-certified", "complete")
    summary = (await world.verify(asked)).verified()
    assert summary.retained == {"account": 4}  # the thumbnails never were for training
    assert [(one.model, one.resolution) for one in summary.models] == [("face@1", "open")]
    assert world.sql("select images from exclusion") == [(4,)]
    assert len(world.said(events.ModelTainted)) == 1
    assert world.sql("select count(*) from image") == [(8,)]


async def test_a_group_photo_goes_for_one_and_the_other_keeps_theirs(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), Photo("group", (1, 2)))
    first, second = world.deletion(1), world.deletion(2)
    await carried_out(world, first)
    assert world.left(PHOTOS) == of(2)
    await carried_out(world, second)
    assert world.left(PHOTOS) == set()
    assert [(await world.verify(one)).verified().images for one in (first, second)] == [5, 4]


async def test_two_who_share_a_photo_and_a_sweep_both_claim_its_leaf(world: Deployment) -> None:
    await world.seed(*album(1, 1), *album(2, 1), Photo("group", (1, 2)))
    asked = [world.deletion(1), world.deletion(2)]
    await carried_out(world, *asked)
    assert world.sql("select requests, images, leaves from sweep") == [(2, 3, 12)]
    for one in asked:
        assert (await world.verify(one)).verified().images == 2


async def test_an_order_needs_two_different_approvers_of_its_exact_scope(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    order = await ordered(world, STUDIO)
    (awaited,) = world.said(events.ApprovalAwaited, order)
    assert awaited.scope_root == world.scope_of(order)
    assert sum(one.artifacts for one in awaited.counts) == 32
    wrong = world.approval(order, "0" * 64)
    await world.take(wrong, by=ANN)
    assert world.codes(wrong) == ["wrong-scope"]
    own = world.approval(order)
    await world.take(own)
    assert world.codes(own) == ["wrong-role"]
    for _ in range(2):
        await world.take(world.approval(order), by=ANN)
    await world.settle()
    assert world.left(PHOTOS) == of(1) | of(2)
    assert world.logged(statement.ScopeApproved) == []
    await world.take(world.approval(order), by=BOB)
    await world.settle()
    assert world.state(order) == "completed"
    assert world.left(PHOTOS) == set()
    (await world.verify(order)).verified()
    late = world.approval(order, "0" * 64)
    await world.take(late, by=BOB)
    assert world.codes(late) == ["not-awaiting-approval"]


async def test_who_orders_cannot_approve_and_two_keys_of_one_person_count_once(world: Deployment) -> None:
    await world.seed(*album(1))
    order = await ordered(world, STUDIO)
    own = Party(PUBLISHER.name, Party.named("the backend's other key").key)
    anns = Party(ANN.name, Party.named("ann's other key").key)
    for party in (own, anns):
        world.trust_party(party, "approver")  # type: ignore[arg-type] # a role by its value
    mine = world.approval(order)
    await world.take(mine, by=own)
    assert world.codes(mine) == ["self-approval"]
    for party in (ANN, anns):
        await world.take(world.approval(order), by=party)
    await world.settle()
    assert world.left(PHOTOS) == of(1)
    assert world.logged(statement.ScopeApproved) == []


async def test_an_unapproved_scope_expires_with_a_statement(world: Deployment) -> None:
    await world.seed(*album(1))
    order = await ordered(world, STUDIO)
    await world.take(world.approval(order), by=ANN)
    root = world.scope_of(order)
    world.clock.pass_(days=8)
    await world.settle()
    assert world.state(order) == "void"
    (void,) = world.logged(statement.ScopeVoid)
    assert (void.scope, void.reason) == (root, "approval-expired")
    late = world.approval(order, root)
    await world.take(late, by=BOB)
    await world.settle()
    assert world.codes(late) == ["not-awaiting-approval"]
    assert world.left(PHOTOS) == of(1)


async def test_a_hold_before_intent_keeps_everything_and_release_finishes_the_request(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked, other = world.deletion(1), world.deletion(2)
    world.only = BEFORE_INTENT
    await carried_out(world, asked, other)
    hold = world.hold(on_hold(1))
    await world.take(hold)
    assert len(world.said(events.RequestAccepted, hold)) == 1
    world.only = frozenset(WORKERS)
    await world.settle()
    assert (world.state(asked), world.result(asked)) == ("held", "held")
    assert (world.state(other), world.result(other)) == ("completed", "complete")
    assert world.left(PHOTOS) == of(1)
    assert (await world.verify(asked)).verified().result == "held"
    held = world.sweep_of(asked)
    await carried_out(world, world.release(hold))
    assert (world.state(asked), world.result(asked)) == ("completed", "complete")
    assert world.sweep_of(asked) != held
    assert world.left(PHOTOS) == set()
    assert (await world.verify(asked)).verified().result == "complete"


@pytest.mark.parametrize("released", [True, False])
async def test_a_hold_that_was_there_first_keeps_a_request_waiting(world: Deployment, released: bool) -> None:  # noqa: FBT001 - a case
    await world.seed(*album(1))
    hold = world.hold(on_hold(1), until=world.clock.now + timedelta(days=365))
    asked = world.deletion(1)
    await carried_out(world, hold, asked)
    assert world.state(asked) == "held"
    assert world.left(PHOTOS) == of(1)
    if released:
        world.ask(world.release(hold))
    else:
        world.clock.pass_(days=400)
    await world.settle()
    assert world.state(asked) == "completed"
    assert world.left(PHOTOS) == set()


async def test_a_hold_on_one_person_keeps_the_group_photo_and_its_release_wakes_the_other(world: Deployment) -> None:
    await world.seed(*album(1), Photo("group", (1, 2)))
    hold, asked = world.hold(on_hold(2)), world.deletion(1)
    await carried_out(world, hold, asked)
    assert world.state(asked) == "held"
    assert world.left(PHOTOS) == {"group.bin"}
    await carried_out(world, world.release(hold))
    assert world.state(asked) == "completed"
    assert world.left(PHOTOS) == set()


async def test_a_hold_on_a_person_holds_up_an_order_until_it_is_released(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    hold = world.hold(on_hold(1))
    await world.take(hold)
    order = await ordered(world, STUDIO)
    assert world.logged(statement.Scope)[-1].excluded == 16
    await world.approve(order)
    await world.settle()
    assert (world.state(order), world.left(PHOTOS)) == ("held", of(1))
    await carried_out(world, world.release(hold))
    await world.approve(order)
    await world.settle()
    assert (world.state(order), world.left(PHOTOS)) == ("completed", set())


async def test_a_hold_that_ends_before_its_sweep_does_not_leave_the_request_behind(world: Deployment) -> None:
    await world.seed(*album(1))
    asked, hold = world.deletion(1), world.hold(on_hold(1))
    world.only = BEFORE_INTENT
    await carried_out(world, asked, hold, world.release(hold))
    world.only = frozenset(WORKERS)
    await world.settle()
    assert (world.state(asked), world.left(PHOTOS)) == ("completed", set())


@pytest.mark.parametrize("target", [on_hold(1), STUDIO])
async def test_a_hold_after_intent_is_answered_too_late(world: Deployment, target: request.HoldTarget) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.only = frozenset(WORKERS) - {"rescan"}
    await carried_out(world, asked)
    world.only = frozenset({"coordinate", "rescan", "register", "retrain"})
    await world.settle()
    world.only = frozenset({"purge", "invalidate"})
    await world.settle()
    late = world.hold(target)
    world.only = frozenset({"coordinate"})
    await carried_out(world, late)
    assert world.codes(late) == ["too-late"]
    world.only = frozenset(WORKERS)
    await world.settle()
    assert world.result(asked) == "complete"
    again = world.deletion(1)
    await carried_out(world, again)
    assert world.codes(again) == ["unknown-subject"]


async def test_a_request_is_cancelled_before_it_is_planned_and_before_intent(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *album(3), Photo("group", (2, 3)))
    first, second, third = (world.deletion(person) for person in (1, 2, 3))
    await world.take(first, world.cancel(first))
    assert world.state(first) == "cancelled"
    world.only = BEFORE_INTENT
    await carried_out(world, second, third)
    await world.take(world.cancel(second))
    assert world.state(second) == "cancelled"
    world.only = frozenset(WORKERS)
    await world.settle()
    assert world.left(PHOTOS) == of(1) | of(2)
    assert (world.state(second), world.result(third)) == ("cancelled", "complete")
    assert world.sql("select state from sweep") == [("done",)]


async def test_a_cancel_after_intent_is_too_late_and_excludes_nothing(world: Deployment) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.only = frozenset(WORKERS) - {"invalidate"}  # images have begun, embeddings have not
    await carried_out(world, asked)
    cancel = world.cancel(asked)
    await world.take(cancel)
    assert world.codes(cancel) == ["too-late"]
    assert world.sql("select count(*) from excluded") == [(0,)]
    world.only = frozenset(WORKERS)
    await world.settle()
    assert world.result(asked) == "complete"
    after = world.cancel(asked)
    await world.take(after)
    assert world.codes(after) == ["too-late"]


async def test_a_withdrawal_that_took_purposes_from_what_stays_is_not_cancelled(world: Deployment) -> None:
    await world.seed(*album(1))
    first, second = world.withdrawal(1, "training"), world.withdrawal(1, "account")
    world.only = BEFORE_INTENT
    await carried_out(world, first)
    cancel = world.cancel(first)
    await world.take(cancel)
    assert world.codes(cancel) == ["too-late"]
    world.only = frozenset(WORKERS)
    await carried_out(world, second)
    assert world.left(PHOTOS) == set()
    assert (world.result(first), world.result(second)) == ("complete", "complete")


@pytest.mark.parametrize(
    ("purposes", "code", "state"),
    [(("training",), ["too-late"], "held"), (("account", "training"), [], "cancelled")],
)
async def test_a_withdrawal_certified_as_held_is_cancelled_only_if_it_took_no_purposes(
    world: Deployment, purposes: tuple[str, ...], code: list[str], state: str
) -> None:
    await world.seed(*album(1), Photo("group", (1, 2)))
    asked = world.withdrawal(1, *purposes)
    await carried_out(world, world.hold(on_hold(2)), asked)
    assert world.state(asked) == "held"
    cancel = world.cancel(asked)
    await world.take(cancel)
    assert (world.codes(cancel), world.state(asked)) == (code, state)


async def test_a_withdrawal_that_took_all_or_nothing_is_cancelled_before_intent(world: Deployment) -> None:
    await world.seed(*album(1))
    both, nothing = world.withdrawal(1, "account", "training"), world.withdrawal(1, "newsletter")
    world.only = BEFORE_INTENT
    await carried_out(world, both)
    await world.take(world.cancel(both))
    assert world.state(both) == "cancelled"
    world.only = frozenset(WORKERS)
    await carried_out(world, nothing, world.withdrawal(1, "account"))
    assert world.left(PHOTOS) == of(1)


async def test_a_sweep_of_which_all_was_cancelled_ends(world: Deployment) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.only = BEFORE_INTENT
    await carried_out(world, asked)
    await world.take(world.cancel(asked))
    world.only = frozenset(WORKERS)
    await world.settle()
    assert world.left(PHOTOS) == of(1)
    await world.upkeep(age=0)
    assert world.sql("select state from sweep") == [("done",)]


async def test_a_sweep_goes_on_until_its_runs_have_ended_though_everybody_is_answered(world: Deployment) -> None:
    await world.seed(*album(1), Photo("bare", (2,)))
    world.sql("delete from artifact where locator = 'bare.bin'")
    bare, asked = world.deletion(2), world.deletion(1)
    world.only = BEFORE_INTENT - {"retrain"}
    await carried_out(world, bare, asked)
    await world.take(world.cancel(asked))
    world.only = frozenset(WORKERS) - {"invalidate"}
    await world.settle()
    assert (world.result(bare), world.state(asked)) == ("complete", "cancelled")
    assert world.sql("select state from sweep") == [("published",)]
    world.only = frozenset(WORKERS)
    await world.settle()
    await world.upkeep(age=0)
    assert world.sql("select distinct step from work") == [("done",)]
    assert (world.sql("select state from sweep"), world.letters()) == ([("done",)], [])


async def test_a_cancelled_order_is_void_and_cannot_be_approved(world: Deployment) -> None:
    await world.seed(*album(1))
    order = await ordered(world, STUDIO)
    await world.take(world.cancel(order))
    (void,) = world.logged(statement.ScopeVoid)
    assert void.reason == "cancelled"
    await world.approve(order)
    world.clock.pass_(days=8)
    await world.settle()
    assert (world.state(order), world.left(PHOTOS)) == ("cancelled", of(1))


async def test_a_lying_store_is_found_out_tried_again_and_given_up_as_partial(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    world.spaces[FACES].lying = True
    asked = world.deletion(1)
    await carried_out(world, asked)
    assert world.left(FACES) == of(1) | of(2)
    assert world.result(asked) == "partial"
    attempts = "select distinct attempt from outcome where step = 'absence' order by 1"
    assert world.sql(attempts) == [(0,), (1,), (2,)]
    report = await world.verify(asked)
    assert report.verified().result == "partial"
    assert {one.store: one.outcomes for one in report.verified().stores}[FACES] == {"failed": 4}


async def test_a_store_that_lies_once_is_erased_in_the_next_attempt(world: Deployment) -> None:
    await world.seed(*album(1))
    space = world.spaces[FACES]
    space.lying = True
    calls: list[str] = []

    def honest_after_one_erase(call: str) -> None:
        calls.append(call)
        if call == "probe" and "erase" in calls and calls.count("erase") == 1:
            space.on_call = lambda _: setattr(space, "lying", False)

    space.on_call = honest_after_one_erase
    asked = world.deletion(1)
    await carried_out(world, asked)
    assert (world.result(asked), world.left(FACES)) == ("complete", set())
    assert world.sql("select max(attempt) from outcome") == [(1,)]
    (await world.verify(asked)).verified()


async def test_a_blocked_artifact_holds_up_its_own_request_only(world: Deployment) -> None:
    await world.seed(*album(1), *album(4))  # the same folder
    world.spaces[PHOTOS].blocked.add(("album-1", "p1-0.bin"))
    blocked, free = world.deletion(1), world.deletion(4)
    await carried_out(world, blocked, free)
    assert (world.result(blocked), world.result(free)) == ("blocked", "complete")
    assert world.left(PHOTOS) == {"p1-0.bin"}
    for one in (blocked, free):
        (await world.verify(one)).verified()
    assert world.sql("select count(*) from image") == [(1,)]


async def test_what_is_erased_anew_is_certified_after_it_was_looked_for_anew(world: Deployment) -> None:
    """The log says in between that it is open: a certificate of what was said of it before would not verify."""

    async def turn_without_waiting(*workers: str) -> None:
        world.only = frozenset(workers)
        while await world._deliver() | await world.coordinator.turn() | await world._tasks():
            pass

    await world.seed(*album(1, 1), *album(4))
    world.spaces[PHOTOS].blocked.add(("album-1", "p1-0.bin"))
    world.spaces[PHOTOS].lying = True
    blocked, other = world.deletion(1), world.deletion(4)
    world.ask(blocked, other)
    await turn_without_waiting(*set(WORKERS) - {"retrain"})  # which models it taints is not known
    world.spaces[PHOTOS].blocked.clear()
    world.spaces[PHOTOS].lying = False
    world.only = frozenset({"coordinate", "purge"})
    await world._skip_waits()
    await turn_without_waiting("coordinate", "purge")
    assert world.sql("select step, attempt from work where step <> 'done'") == [("absence", 1)]
    await turn_without_waiting("coordinate", "retrain")
    assert world.sql("select taint from sweep") == [("resolved",)]
    assert (world.result(blocked), world.result(other)) == (None, None)
    world.only = frozenset(WORKERS)
    await world.settle()
    for one in (blocked, other):
        assert world.result(one) == "complete"
        (await world.verify(one)).verified()


async def test_a_certificate_is_not_made_of_what_changed_meanwhile(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another coordinator logs that something was looked for anew after this one read what had been said of it."""
    await world.seed(*album(1))
    world.spaces[FACES].lying = True
    asked = world.deletion(1)
    made, times = finished.certificates, []

    def meanwhile(*args: Any, **options: Any) -> Any:
        times.append(args)
        if len(times) == 1:
            world.sql("update outcome set log_index = log_index + 1000 where step = 'absence' and attempt = 2")
        return made(*args, **options)

    world.only = frozenset(WORKERS) - {"retrain"}  # which models it taints is not known
    await carried_out(world, asked)
    monkeypatch.setattr("expunge.stages.certify.handler.certificates", meanwhile)
    world.only = frozenset(WORKERS)
    await world.settle()
    assert (len(times), world.result(asked)) == (2, "partial")
    world.sql("update outcome set log_index = log_index - 1000 where log_index >= 1000")
    (await world.verify(asked)).verified()


@pytest.mark.parametrize("arrives", [True, False])
async def test_what_hides_and_erases_says_both_with_the_second_message(world: Deployment, *, arrives: bool) -> None:
    """Where the first was quarantined; where both arrive, each is counted once all the same."""
    counted = metrics.ARTIFACTS.labels(FACES, "hide", "gone")._value
    before = counted.get()
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.only = frozenset(WORKERS) - {"invalidate"}
    await carried_out(world, asked)
    world.only = frozenset({"invalidate"})
    await world.settle()
    (hidden,) = [
        one for one in world.broker.published
        if one.topic == "expunge.outcomes" and b'"step":"hide"' in one.value
        and world.sql("select trees -> %s ->> 'store' from sweep", json.loads(one.value)["tree"]) == [(FACES,)]
    ]  # fmt: skip
    if not arrives:
        world.broker.published.remove(hidden)
    world.only = frozenset(WORKERS)
    await world.settle()
    await world.upkeep(age=0)
    await world.settle()
    assert (world.state(asked), world.letters()) == ("completed", [])
    assert world.sql("select count(*) from outcome where log_index is null") == [(0,)]
    assert counted.get() - before == 4
    (await world.verify(asked)).verified()


async def test_requests_of_one_sweep_do_not_wait_for_each_other(world: Deployment) -> None:
    first, second = album(1), album(2)
    await world.seed(*first, *second)
    await world.trained("face@1", first)
    asked = [world.deletion(1), world.deletion(2)]
    await carried_out(world, *asked)
    assert [world.state(one) for one in asked] == ["data-certified", "completed"]


async def test_what_was_erased_is_refused_when_it_is_uploaded_again(world: Deployment) -> None:
    mine = album(1)
    await world.seed(*mine)
    await carried_out(world, world.deletion(1))
    again = [Photo("new", (1,)), *(Photo(one.key, (9,)) for one in mine)]
    await world.register(batch(*again))
    (refused,) = world.said(events.RegistrationRefused)
    assert refused.codes == {"suppressed": 5}
    assert world.sql("select count(*) from image") == [(0,)]


async def test_an_order_by_list_suppresses_its_people(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *album(3))
    order = await ordered(world, request.ByList(subjects=(subject(1), subject(2))))
    await world.approve(order)
    await world.settle()
    assert world.left(PHOTOS) == of(3)
    await world.register(batch(Photo("new", (2,))))
    assert [one.codes for one in world.said(events.RegistrationRefused)] == [{"suppressed": 1}]


async def test_a_closed_source_takes_nothing_more(world: Deployment) -> None:
    await world.seed(*album(1))
    await world.take(world.order(STUDIO))
    await world.register(batch(Photo("new", (2,))))
    assert [one.codes for one in world.said(events.RegistrationRefused)] == [{"source-closed": 1}]


async def test_an_artifact_that_came_after_an_order_was_sealed_keeps_its_row(world: Deployment) -> None:
    await world.seed(Photo("old", (1,)))
    order = await ordered(world, request.ByPeriod(start=album(1)[0].day, end=album(1)[0].day.replace(year=2021)))
    world.sql(
        "insert into artifact (ordinal, kind, store_no, unit_no, locator, purposes, digest)"
        " select ordinal, kind, store_no, unit_no, 'later.bin', purposes, digest from artifact limit 1"
    )
    await world.approve(order)
    await world.settle()
    assert world.state(order) == "completed"
    assert world.sql("select locator from artifact") == [("later.bin",)]
    assert world.sql("select count(*) from image") == [(1,)]


@pytest.mark.parametrize("late", ["issued before", "a repeat"])
async def test_a_consent_that_comes_late_or_twice_brings_nobody_back(world: Deployment, late: str) -> None:
    await world.seed(*album(1), Photo("group", (1, 2)))
    consent = request.ConsentGiven(**world.common(subject_ref=subject(1), purposes=("training",)))
    if late == "a repeat":
        await world.take(consent)
    world.clock.pass_(minutes=1)
    await carried_out(world, world.deletion(1))
    await world.take(consent)
    await world.register(batch(Photo("new", (1,))))
    assert [one.codes for one in world.said(events.RegistrationRefused)] == [{"suppressed": 1}]
    assert [one.action for one in world.suppressed() if one.field == "subject"] == [suppression.Action.ADD]
    world.clock.pass_(minutes=1)
    await world.take(request.ConsentGiven(**world.common(subject_ref=subject(1), purposes=("training",))))
    await world.register(batch(Photo("new", (1,))))
    assert len(world.said(events.RegistrationRefused)) == 1
    assert world.sql("select count(*) from image") == [(1,)]
    assert world.suppressed()[-1].action is suppression.Action.LIFT


async def test_someone_without_artifacts_left_is_certified_too(world: Deployment) -> None:
    await world.seed(*album(1, 1))
    world.sql("delete from artifact")
    asked = world.deletion(1)
    await carried_out(world, asked)
    assert (world.state(asked), world.result(asked)) == ("completed", "complete")
    assert world.sql("select count(*) from image") == [(0,)]


async def test_the_later_of_two_sweeps_says_that_the_earlier_took_it(world: Deployment) -> None:
    await world.seed(Photo("group", (1, 2)), *album(2, 1))
    first, second = world.deletion(1), world.deletion(2)
    await world.take(first)
    await world.plan.seal_people()
    await world.take(second)
    await world.plan.seal_people()
    world.ask()
    await world.settle()
    assert world.sql("select count(*) from sweep") == [(2,)]
    summaries = [(await world.verify(one)).verified() for one in (first, second)]
    said: dict[str, int] = {}
    for one in summaries:
        for store in one.stores:
            for outcome, count in store.outcomes.items():
                said[outcome] = said.get(outcome, 0) + count
    assert sum(said.values()) == 12
    assert "absent before" not in said


async def test_delivering_everything_twice_changes_nothing(world: Deployment) -> None:
    photos = [*album(1), *album(2), *album(3), Photo("group", (1, 2))]
    await world.seed(*photos)
    await world.trained("face@1", photos)
    await carried_out(world, world.deletion(1), world.withdrawal(2), world.hold(on_hold(3)), world.deletion(3))
    order = await ordered(world, STUDIO)
    await world.approve(order)
    await world.settle()
    before = world.footprint()
    for topic in ("expunge.lineage", "expunge.requests", "expunge.outcomes", "expunge.purge", "expunge.invalidate",
                  "expunge.rescan", "expunge.retrain"):  # fmt: skip
        await world.repeat(topic)
    await world.settle()
    assert world.footprint() == before
    assert set(world.letters()) <= {"unknown-work", "stale-order", "no-such-chunk"}


async def test_nothing_personal_leaves_the_catalogue(world: Deployment) -> None:
    photos = [*album(1), *album(2)]
    await world.seed(*photos)
    await world.trained("face@1", photos)
    personal = world.personal()
    await carried_out(world, world.deletion(1), world.withdrawal(2))
    internal = [one for one in world.broker.published if one.topic not in {"expunge.requests", "expunge.lineage"}]
    assert internal
    said = [one.value + one.key + b"".join(value for _, value in one.headers) for one in internal]
    said += [bytes(entry) for (entry,) in world.sql("select entry from log_entry")]
    said += world.sealed.files.values()
    assert not [needle for needle in personal for one in said if needle in one]


async def test_an_outcome_that_cannot_be_read_is_a_dead_letter_and_the_others_count(world: Deployment) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.send(cloudevents.CloudEvent(id="x", source="expunge", type="t", data=b"{}"), "expunge.outcomes")
    await carried_out(world, asked)
    assert world.letters() == ["malformed"]
    assert world.state(asked) == "completed"


async def test_what_has_not_moved_is_ordered_again_and_what_is_due_only_once(world: Deployment) -> None:
    await world.seed(*album(1))
    world.spaces[FACES].lying = True
    asked = world.deletion(1)
    world.only = frozenset(WORKERS) - {"invalidate"}
    await carried_out(world, asked)  # the embeddings wait for their worker
    ordered = len(world.records("expunge.invalidate"))
    assert not await world.upkeep()
    assert await world.upkeep(age=0)
    repeats = world.records("expunge.invalidate")[ordered:]
    assert [one.value for one in repeats] == [world.records("expunge.invalidate")[ordered - 1].value]
    world.only = frozenset(WORKERS)
    await world.settle()
    assert world.result(asked) == "partial"
    orders = [one.value for one in world.records("expunge.invalidate")]
    assert len(orders) - len(set(orders)) == 1


async def test_an_orders_rows_stay_while_its_task_is_anothers_and_go_once(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.seed(*album(1))
    order = await ordered(world, STUDIO)
    work = world.certify.task

    async def overtaken(lease: Lease) -> Commit:
        world.sql("update task set token = token + 1 where task_id = %s", lease.task_id)
        return await work(lease)

    with monkeypatch.context() as patch:
        patch.setattr(world.certify, "task", overtaken)
        await world.approve(order)
        await world.settle()
    assert not world.left(PHOTOS)
    assert world.sql("select count(*) from image") == [(4,)]
    assert world.sql("select count(*) from erased") == [(0,)]
    assert world.state(order) == "planned"
    world.sql("update task set lease_until = null where kind = 'certify'")
    await world.settle()
    assert world.state(order) == "completed"
    assert world.sql("select count(*) from image") == [(0,)]
    assert world.sql("select sum(artifacts)::int from erased") == [(16,)]
    assert world.sql("select images from tombstone") == [(4,)]


@pytest.mark.parametrize("twice", [False, True])
async def test_a_deletion_that_was_cancelled_takes_nothing_that_another_request_leaves(
    world: Deployment, *, twice: bool
) -> None:
    """One sweep of a withdrawal and of deletions that are cancelled: what the withdrawal alone would keep stays."""
    await world.seed(*album(1))
    withdrawal, deletions = world.withdrawal(1, "training"), [world.deletion(1) for _ in range(1 + twice)]
    await world.take(withdrawal, *deletions)
    await world.plan.seal_people()
    await world.take(*(world.cancel(one) for one in deletions))
    assert [world.state(one) for one in deletions] == ["cancelled"] * len(deletions)
    await world.settle()
    assert (world.state(withdrawal), world.result(withdrawal)) == ("completed", "complete")
    assert len(world.left(PHOTOS)) == len(world.left(THUMBS)) == 4
    assert not world.left(SHARDS)
    assert not world.left(FACES)
