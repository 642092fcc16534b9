from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from expunge.domain import certificate, dsse, merkle, request, statement, suppression
from expunge.domain import sweep as sweeps
from expunge.domain.leaf import LEAF_BYTES, derive_key, nonces, pack_leaves
from expunge.domain.policy import Policy
from expunge.domain.scopefile import ScopeFile, chunk_roots, unpack_columns, unpack_strings
from expunge.domain.statement import PAYLOAD_TYPE, Scope
from expunge.domain.words import Kind, Role
from expunge.ports import Outgoing
from expunge.stages.plan import ALONE_SECONDS, Plan
from expunge.wiring.coordinate import PATIENCE_SECONDS
from tests.coordination import PHOTOS, THUMBS, Deployment, Photo, album, deployed, subject

DEADLINE_SECONDS = 60.0


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    policy = Policy(window=timedelta(0), approval_images=6, sweep_requests=50)
    async with deployed(database, tmp_path, policy=policy) as made:
        yield made


async def sealed(world: Deployment, *asked: request.Request) -> UUID:
    """The sweep of these requests, sealed and nothing more."""
    await world.take(*asked)
    found = await world.plan.seal_people() or await world.plan.seal_order()
    assert found is not None
    return found


def scope(world: Deployment, sweep_id: UUID) -> Scope:
    ((envelope,),) = world.sql("select scope_envelope from sweep where sweep_id = %s", sweep_id)
    read = statement.parse(
        dsse.verify(dsse.parse(bytes(envelope)), world._signers[Role.SCOPE, None].public, PAYLOAD_TYPE)
    )
    assert isinstance(read.predicate, Scope)
    assert read.subjects == {"scope-file": read.predicate.file}
    return read.predicate


def columns(file: ScopeFile, tree: int) -> dict[str, Any]:
    """A tree's leaves, chunks laid end to end: units and locators by name."""
    header: Any = file.header
    count = int(header["trees"][tree]["leaves"])
    units = unpack_strings(unpack_columns(file.section(f"{tree}/units"))["units"])
    found: dict[str, Any] = {"artifact_id": b"", "digest": b"", "hashes": b"", "ordinal": [], "unit": [], "locator": []}
    for chunk in range(-(-count // 1024)):
        part = unpack_columns(file.section(f"{tree}/{chunk}"))
        for name in ("artifact_id", "digest", "hashes"):
            found[name] += part[name]
        found["ordinal"] += np.frombuffer(part["ordinal"], "<u8").tolist()
        found["unit"] += [units[one] for one in np.frombuffer(part["unit"], "<u4").tolist()]
        found["locator"] += unpack_strings(part["locator"])
    return found


def in_order(leaves: dict[str, Any], *, as_registered: bool) -> list[int]:
    """A tree's artifact ids: each unit's together, in it as they were registered, or by locator."""
    ids: list[int] = sweeps.artifact_ids(leaves["artifact_id"]).tolist()
    rank = {unit: at for at, unit in enumerate(dict.fromkeys(leaves["unit"]))}
    within = list(zip(leaves["ordinal"], ids, strict=True)) if as_registered else leaves["locator"]
    order = [(rank[unit], one) for unit, one in zip(leaves["unit"], within, strict=True)]
    assert order == sorted(order)
    return ids


def handles_root(key: bytes, ids: Sequence[int]) -> str:
    """Over sorted handles in pages of 1,024, one by one."""
    cipher = Cipher(AES(key), ECB())  # noqa: S305 - single distinct blocks
    flat = b"".join(sorted(cipher.encryptor().update(one.to_bytes(16, "big")) for one in ids))
    return merkle.root(b"".join(merkle.leaf_hash(flat[at : at + 16_384]) for at in range(0, len(flat), 16_384))).hex()


def check(world: Deployment, sweep_id: UUID) -> Scope:
    """Every number and root of a scope statement, worked out again from the sealed file."""
    said, file = scope(world, sweep_id), world.scope_file(sweep_id)
    name = f"{sweep_id}.scope"
    assert said.file == hashlib.sha256(world.sealed.files[name]).hexdigest()
    ((bucket,),) = world.sql("select bucket from sweep where sweep_id = %s", sweep_id)
    key = derive_key(world.keys.bucket(bucket), "sweep", sweep_id.bytes)
    ids: list[int] = []
    for number, tree in enumerate(said.trees):
        leaves = columns(file, number)
        drawn = nonces(derive_key(key, "nonces", number.to_bytes(2, "big")), tree.leaves)
        hashes = merkle.leaf_hashes(pack_leaves(drawn, leaves["artifact_id"], leaves["digest"]), LEAF_BYTES)
        assert hashes == leaves["hashes"]
        assert merkle.root(hashes).hex() == tree.root
        assert chunk_roots(file, number) == merkle.Tree(hashes).chunk_roots()
        assert len(leaves["locator"]) == tree.leaves
        places = list(zip(leaves["unit"], leaves["locator"], strict=True))
        assert len(set(places)) == len(places)
        ids += in_order(leaves, as_registered=said.sweep_class == "order")
    claims = unpack_columns(file.section("claims"))
    asked = [UUID(bytes=claims["requests"][at : at + 16]) for at in range(0, len(claims["requests"]), 16)]
    rows = world.sql(
        "select request_id, leaf, images, artifacts, body_digest from request where sweep_id = %s", sweep_id
    )
    by_leaf = {leaf: (request_id, images, artifacts, digest) for request_id, leaf, images, artifacts, digest in rows}
    bodies = unpack_strings(unpack_columns(file.section("requests"))["bodies"])
    drawn = nonces(derive_key(key, "requests"), len(asked))
    hashes = b""
    every: set[int] = set()
    for at, (request_id, body) in enumerate(zip(asked, bodies, strict=True)):
        claim = certificate.Claim.model_validate_json(body)
        offsets = np.frombuffer(claims["ordinal_offsets"], "<u8")
        ordinals = np.frombuffer(claims["ordinals"], "<u8")[int(offsets[at]) : int(offsets[at + 1])]
        every |= set(ordinals.tolist())
        mine = []
        for number in range(len(said.trees)):
            bounds = np.frombuffer(claims[f"offsets/{number}"], "<u8")
            indices = np.frombuffer(claims[f"indices/{number}"], "<u4")[int(bounds[at]) : int(bounds[at + 1])]
            assert (np.diff(indices.astype(np.int64)) > 0).all()
            held = columns(file, number)["ordinal"]
            assert {held[one] for one in indices.tolist()} <= set(ordinals.tolist())
            if len(indices):
                mine.append((number, len(indices), sweeps.indices_digest(indices)))
        assert [(one.tree, one.leaves, one.indices) for one in claim.trees] == mine
        assert by_leaf[at][:3] == (request_id, len(ordinals), sum(one[1] for one in mine))
        assert (claim.request, claim.images) == (str(request_id), len(ordinals))
        hashes += merkle.leaf_hash(certificate.leaf(drawn[at * 16 : at * 16 + 16], body.encode()))
    assert said.requests_root == merkle.root(hashes).hex()
    assert (said.requests, said.images) == (len(asked), len(every))
    digests = b"".join(bytes(by_leaf[at][3]) for at in range(len(asked)))
    assert said.selection == hashlib.sha256(digests).hexdigest()
    handles = handles_root(derive_key(key, "handles"), ids)
    assert said.handles_root == (handles if said.sweep_class == "order" else None)
    assert said.policy == world.policy.version
    return said


def leaves_by_kind(said: Scope) -> dict[Kind, int]:
    return {tree.kind: tree.leaves for tree in said.trees}


ALL_KINDS = (Kind.IMAGE, Kind.DERIVATIVE, Kind.SHARD_ROW, Kind.EMBEDDING)


async def test_a_scope_says_what_its_sealed_file_holds(world: Deployment) -> None:
    await world.seed(*album(1), *album(2), *album(3), Photo("group", (1, 2)))
    said = check(
        world, await sealed(world, world.deletion(1), world.withdrawal(2), world.deletion(9), world.deletion(3))
    )
    assert leaves_by_kind(said) == {Kind.IMAGE: 9, Kind.DERIVATIVE: 9, Kind.SHARD_ROW: 13, Kind.EMBEDDING: 13}
    ((index,),) = world.sql("select max(log_index) from registration_batch")
    assert (said.catalogue_index, said.excluded, said.sweep_class) == (index, 0, "people")
    assert [type(one).__name__ for one in world.logged()][-1] == "Scope"


async def test_many_requests_share_a_sweep_up_to_its_size(world: Deployment) -> None:
    people = range(1, 61)
    await world.seed(*(one for person in people for one in album(person, 1)))
    await world.take(*(world.deletion(person) for person in people))
    assert (await world.plan.waiting())["people"][0] == 50  # what fills a sweep
    sizes = []
    while (found := await world.plan.seal_people()) is not None:
        sizes.append(check(world, found).requests)
    assert sizes == [50, 10]
    assert await world.plan.waiting() == {}


async def test_requests_gather_while_enough_sweeps_are_under_way_and_not_for_long(world: Deployment) -> None:
    await world.seed(*(one for person in range(1, 8) for one in album(person, 1)))

    async def asked(person: int) -> bool:
        await world.take(world.deletion(person))
        return await world.coordinator.seal()

    def moving() -> None:
        world.sql("update work set ordered_at = 'infinity'")  # however slow the machine

    assert await asked(1)
    moving()
    assert not await asked(2)  # the first runs alone for a while
    world.clock.pass_(seconds=ALONE_SECONDS)
    assert await world.coordinator.seal()
    moving()
    assert not await asked(3)
    assert not await world.plan.crowded(world.policy.sweep_requests)
    world.sql(
        "update work set step = 'done' where sweep_id = (select sweep_id from sweep order by scope_index desc limit 1)"
    )
    assert await asked(4)
    assert world.sql("select requests from sweep order by sealed_at") == [(1,), (1,), (2,)]
    moving()
    assert not await asked(5)
    world.sql("update work set ordered_at = clock_timestamp() - interval '5 s'")
    assert await world.coordinator.seal()  # behind sweeps that do not move nobody waits
    moving()
    assert not await asked(7)
    world.clock.pass_(seconds=PATIENCE_SECONDS)
    assert await world.coordinator.seal()
    world.sql("update sweep set state = 'done'")
    assert await asked(6)


async def test_checkpoints_are_published_while_a_sweep_is_being_sealed(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.seed(*album(1))
    await world.take(world.deletion(1))
    coordinator, publish = world.coordinator, world.coordinator.publish_emitted
    sealing, published = asyncio.Event(), asyncio.Event()

    async def for_ever() -> None:
        sealing.set()
        await asyncio.Event().wait()

    async def publish_and_tell(emitted: Sequence[tuple[str, Outgoing]]) -> None:
        await publish(emitted)
        published.set()

    monkeypatch.setattr(world.plan, "seal_people", for_ever)
    coordinator.publish_emitted = publish_and_tell
    loops = [asyncio.ensure_future(one()) for one in (coordinator.run, coordinator.sealing)]
    try:
        await asyncio.wait_for(sealing.wait(), DEADLINE_SECONDS)
        before = world.sql("select max(size) from log_checkpoint")
        await world.seed(*album(2))
        while world.sql("select max(size) from log_checkpoint") == before:
            published.clear()
            coordinator.wake.set()
            await asyncio.wait_for(published.wait(), DEADLINE_SECONDS)
    finally:
        for one in loops:
            one.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def test_a_withdrawal_takes_its_purpose_off_what_stays(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    sweep_id = await sealed(world, world.withdrawal(1))
    assert leaves_by_kind(check(world, sweep_id)) == {Kind.SHARD_ROW: 4, Kind.EMBEDDING: 4}
    ((body,),) = [unpack_strings(unpack_columns(world.scope_file(sweep_id).section("requests"))["bodies"])]
    assert certificate.Claim.model_validate_json(body).retained == {"account": 4}
    account, training = (dict(world.sql("select name, bit from purpose"))[name] for name in ("account", "training"))
    rows = world.sql(
        "select distinct purposes from artifact join image_subject using (ordinal)"
        " where subject_ref = %s and kind = 'image'", subject(1),
    )  # fmt: skip
    assert rows == [(1 << account,)]
    rows = world.sql(
        "select distinct purposes from artifact join image_subject using (ordinal)"
        " where subject_ref = %s and kind = 'image'", subject(2),
    )  # fmt: skip
    assert rows == [(1 << account | 1 << training,)]


async def test_two_withdrawals_about_one_photo_add_up(world: Deployment) -> None:
    await world.seed(Photo("group", (1, 2)))
    sweep_id = await sealed(world, world.withdrawal(1, "training"), world.withdrawal(2, "account"))
    assert leaves_by_kind(check(world, sweep_id)) == dict.fromkeys(ALL_KINDS, 1)


async def test_a_group_photo_has_one_leaf_and_two_claimants(world: Deployment) -> None:
    await world.seed(Photo("group", (1, 2)), Photo("own", (2,)))
    sweep_id = await sealed(world, world.deletion(1), world.deletion(2))
    assert leaves_by_kind(check(world, sweep_id)) == dict.fromkeys(ALL_KINDS, 2)
    rows = world.sql("select images, artifacts from request order by leaf")
    assert rows == [(1, 4), (2, 8)]


async def test_a_large_person_becomes_an_order_and_the_others_go_on(world: Deployment) -> None:
    await world.seed(*album(1, 7), *album(2, 2))
    large, small = world.deletion(1), world.deletion(2)
    await world.take(large, small)
    assert await world.plan.seal_people() is None
    people, order = await world.plan.seal_people(), await world.plan.seal_order()
    assert people == world.sweep_of(small)
    assert order == world.sweep_of(large)
    assert check(world, people).sweep_class == "people"
    said = check(world, order)
    assert (said.sweep_class, said.images) == ("order", 7)
    world.only = frozenset({"coordinate"})
    await world.settle()
    rows = world.sql("select class, state from sweep order by class")
    assert rows == [("order", "awaiting-approval"), ("people", "published")]


@pytest.mark.parametrize(
    ("target", "excluded"),
    [(request.BySubject(subject_ref=subject(1)), 20), (request.BySource(source="partner"), 4)],
)
async def test_holds_in_force_exclude_leaves_when_a_scope_is_sealed(
    world: Deployment, target: request.HoldTarget, excluded: int
) -> None:
    await world.seed(*album(1), Photo("group", (1, 2)), Photo("theirs", (2,), source="partner"))
    released = world.hold(request.BySubject(subject_ref=subject(2)))
    await world.take(released, world.release(released), world.hold(target))
    sweep_id = await sealed(world, world.order(request.ByPeriod(start=date(2020, 1, 1), end=date(2021, 1, 1))))
    assert check(world, sweep_id).excluded == excluded
    rows = world.sql("select sum(length(indices)) / 4 from excluded where sweep_id = %s", sweep_id)
    assert int(rows[0][0]) == excluded


async def test_a_hold_that_comes_while_a_plan_is_made_is_not_missed(world: Deployment) -> None:
    """Whoever gets the lock first, the photo stays."""
    await world.seed(*album(1), Photo("group", (1, 2)))
    await world.take(world.deletion(1))
    hold = world.hold(request.BySubject(subject_ref=subject(2)))
    reached, resume = asyncio.Event(), asyncio.Event()
    planner = world.planner()
    held = planner._held

    async def after_looking(*arguments: Any) -> Any:
        found = await held(*arguments)
        reached.set()
        await resume.wait()
        return found

    setattr(planner, "_held", after_looking)  # noqa: B010 - a pause at the worst moment; methods are not for assigning
    planning = asyncio.create_task(planner.seal_people())
    await reached.wait()
    holding = asyncio.create_task(world.take(hold))
    await waits_for_a_lock(world, holding)
    resume.set()
    await asyncio.gather(planning, holding)
    assert world.codes(hold) == []
    ((indices,),) = world.sql("select sum(length(indices)) / 4 from excluded")
    assert int(indices) == 4


async def waits_for_a_lock(world: Deployment, task: asyncio.Task[None]) -> None:
    """Until the task does, or has ended."""
    async with asyncio.timeout(30):
        while not task.done() and not world.sql("select 1 from pg_locks where not granted"):
            await asyncio.to_thread(world.sql, "select 1")


async def test_leaves_that_an_open_sweep_holds_too_are_listed(world: Deployment) -> None:
    await world.seed(Photo("group", (1, 2)), *album(2, 2))
    first = await sealed(world, world.deletion(1))
    second = await sealed(world, world.deletion(2))
    check(world, second)
    for tree in range(4):
        file = world.scope_file(second)
        overlaps = unpack_columns(file.section(f"{tree}/overlaps"))
        (leaf,) = np.frombuffer(overlaps["leaf"], "<u4").tolist()
        (index,) = np.frombuffer(overlaps["index"], "<u4").tolist()
        assert UUID(bytes=overlaps["sweep"]) == first
        mine, theirs = columns(file, tree), columns(world.scope_file(first), tree)
        assert mine["locator"][leaf] == theirs["locator"][index] == "group.bin"
        assert unpack_columns(world.scope_file(first).section(f"{tree}/overlaps"))["leaf"] == b""


DAYS = [date(2020, 1, day) for day in (1, 2, 3)]
SELECTIONS: dict[str, tuple[request.Selection, set[str]]] = {
    "a source": (request.BySource(source="partner"), {"partner-0", "partner-1", "partner-2"}),
    "a period": (request.ByPeriod(start=DAYS[1], end=DAYS[2]), {"studio-1", "partner-1"}),
    "a period of a source": (request.ByPeriod(source="studio", start=DAYS[0], end=DAYS[2]), {"studio-0", "studio-1"}),
    "a list": (
        request.ByList(subjects=(subject(10), subject(12), subject(77))),
        {"studio-0", "studio-2", "partner-0", "partner-2"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SELECTIONS)
async def test_orders_select_by_source_period_and_list(world: Deployment, case: str) -> None:
    photos = [
        Photo(f"{name}-{at}", (10 + at,), day=day, source=name)
        for name in ("studio", "partner")
        for at, day in enumerate(DAYS)
    ]
    await world.seed(*photos)
    selection, expected = SELECTIONS[case]
    sweep_id = await sealed(world, world.order(selection))
    said = check(world, sweep_id)
    assert leaves_by_kind(said) == dict.fromkeys(ALL_KINDS, len(expected))
    file = world.scope_file(sweep_id)
    assert {one.removesuffix(".bin") for one in columns(file, 0)["locator"]} == expected
    assert world.sql("select expires_at - sealed_at from sweep") == [(world.policy.approval_time,)]


async def test_an_order_that_selects_nothing_is_sealed_empty(world: Deployment) -> None:
    await world.seed(*album(1))
    said = check(world, await sealed(world, world.order(request.ByList(subjects=(subject(404),)))))
    assert (said.trees, said.images) == ((), 0)


async def test_work_is_cut_into_runs_of_chunks_in_physical_order(world: Deployment) -> None:
    world.policy = Policy(window=timedelta(0))
    await world.seed(*(Photo(f"p{number:05}", (1,)) for number in range(2500)))
    sweep_id = await sealed(world, world.deletion(1))
    check(world, sweep_id)
    rows = world.sql("select tree, first_chunk, end_chunk, step from work order by 1, 2")
    assert rows == [(tree, 0, 3, "waiting") for tree in range(4)]
    found = columns(world.scope_file(sweep_id), 0)
    assert found["locator"] == sorted(found["locator"])
    assert len(found["locator"]) == 2500


async def test_trees_of_many_pages_are_those_of_one(world: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays leaves gaps, so that a page of artifacts is no page of leaves."""
    monkeypatch.setattr("expunge.stages.plan.PAGE_LEAVES", 1000)
    monkeypatch.setattr("expunge.domain.extents.PAGE_LEAVES", 700)
    monkeypatch.setattr("expunge.domain.extents.MOST_LEAVES", 1500)
    world.policy = Policy(window=timedelta(0))
    await world.seed(*album(2, 800), *album(1, 1400))
    first = await sealed(world, world.withdrawal(2), world.deletion(1))
    assert leaves_by_kind(check(world, first)) == {
        Kind.IMAGE: 1400, Kind.DERIVATIVE: 1400, Kind.SHARD_ROW: 2200, Kind.EMBEDDING: 2200
    }  # fmt: skip
    second = await sealed(world, world.order(request.BySource(source="studio")))
    assert leaves_by_kind(check(world, second)) == dict.fromkeys(ALL_KINDS, 2200)
    for tree in range(4):
        overlaps = unpack_columns(world.scope_file(second).section(f"{tree}/overlaps"))
        assert len(overlaps["leaf"]) // 4 == scope(world, first).trees[tree].leaves


async def test_two_planners_at_once_never_claim_one_request_twice(world: Deployment) -> None:
    people = range(1, 121)
    await world.seed(*(one for person in people for one in album(person, 1)))
    await world.take(*(world.deletion(person) for person in people))

    async def all_of_them(plan: Plan) -> list[UUID]:
        found = []
        while (one := await plan.seal_people()) is not None:
            found.append(one)
        return found

    done = await asyncio.gather(all_of_them(world.planner()), all_of_them(world.planner()))
    sealed_ids = [one for some in done for one in some]
    assert world.sql("select count(*) from request where state = 'planned'") == [(120,)]
    assert sum(check(world, one).requests for one in sealed_ids) == 120
    assert world.sql("select count(*) from log_entry where predicate = 'urn:expunge:scope:v1'") == [(len(sealed_ids),)]


class Crash(BaseException):
    """Caught by nobody. Not `KeyboardInterrupt`, with which asyncio ends the whole loop."""


@pytest.mark.parametrize("place", ["_suppress", "_record"])
async def test_a_crash_before_the_commit_leaves_a_file_that_nothing_names(world: Deployment, place: str) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    await world.take(asked)
    planner = world.planner()

    async def crash(*_: object) -> None:
        raise Crash

    setattr(planner, place, crash)
    with pytest.raises(Crash):
        await planner.seal_people()
    assert world.state(asked) == "accepted"
    for table in ("sweep", "work", "suppressed_page"):
        assert world.sql(f"select count(*) from {table}") == [(0,)]
    (orphan,) = world.sealed.files
    sweep_id = await world.plan.seal_people()
    assert sweep_id is not None
    assert orphan != f"{sweep_id}.scope"
    check(world, sweep_id)
    assert world.state(asked) == "planned"


async def test_digests_of_photos_in_scope_are_suppressed_and_of_retained_ones_are_not(world: Deployment) -> None:
    await world.seed(*album(1, 2), *album(2, 2))
    await sealed(world, world.deletion(1), world.withdrawal(2))
    ((packed,),) = world.sql("select macs from suppressed_page")
    macs = {bytes(packed)[at : at + 32] for at in range(0, len(packed), 32)}
    expected = {
        suppression.mac(world.journal.key, "digest", "*", bytes(digest))
        for (digest,) in world.sql("select digest from image join image_subject using (ordinal) where subject_ref = %s",
                                   subject(1))
    }  # fmt: skip
    assert macs == expected
    assert {one.mac for one in world.suppressed() if one.field == "digest"} == expected


async def test_nothing_is_touched_or_ordered_by_planning(world: Deployment) -> None:
    await world.seed(*album(1))
    before = {store: world.left(store) for store in (PHOTOS, THUMBS)}
    await sealed(world, world.deletion(1))
    assert {store: world.left(store) for store in (PHOTOS, THUMBS)} == before
    assert world.sql("select distinct step from work") == [("waiting",)]
    assert world.sql("select count(*) from outbox") == [(0,)]


async def test_a_withdrawal_that_needs_approval_leaves_the_rows_of_what_stays(world: Deployment) -> None:
    await world.seed(*(Photo(f"many-{n}", (1,)) for n in range(7)))
    asked = world.withdrawal(1)
    world.ask(asked)
    await world.settle()
    await world.approve(asked)
    await world.settle()
    assert world.state(asked) == "completed"
    left = world.sql("select kind, count(*) from artifact group by 1 order by 1")
    assert left == [("derivative", 7), ("image", 7)]
    assert world.sql("select count(*) from image") == [(7,)]
