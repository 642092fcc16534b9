"""Stage retrain, the trainer's side and the gate, on a real database."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pyroaring import BitMap, BitMap64

from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.adapters.stores.memory import MemoryStore, Space
from expunge.domain import dsse, events, leaf, lineage, request, scopefile, statement
from expunge.domain.errors import FencedOff, Rejected
from expunge.domain.events import (
    DestructionOrdered,
    ModelArrived,
    ModelDestroyed,
    ModelReplaced,
    ModelsResolved,
    ModelTainted,
    RetrainingQueued,
    SuccessorRefused,
    SuccessorRegistered,
    TaintOrdered,
    TaintResolved,
)
from expunge.domain.words import Grade, Provision, Relation, Remedy, Role
from expunge.ports import Delivery, Refused
from expunge.stages.retrain import Retrain, standing
from expunge.trainer import Readings, Trainer
from tests.lineage import AT, FINE_TUNED, Catalogue, committed, delivery, digest, image, images, model, source
from tests.scopes import BUCKET, MemorySealed, SeedSigner

RETRAINER = SeedSigner(Role.RETRAINER, 4)
ALL = -1


@dataclass
class World(Catalogue):
    """A catalogue of images x0..x9, its retrain handler, and a model store."""

    sealed: MemorySealed = field(default_factory=MemorySealed)
    space: Space = field(default_factory=Space)
    handled: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store = MemoryStore(self.space, "models")
        self.retrain = Retrain(
            ledger=self.ledger, sealed=self.sealed, keys=self.keys, stores={"models": self.store}, signer=RETRAINER,
            clock=self.clock,
        )  # fmt: skip

    async def handle(self, *taken: events.Event) -> Sequence[Refused]:
        return await self.deliver([delivery(event, number) for number, event in enumerate(taken)])

    async def deliver(self, deliveries: Sequence[Delivery]) -> Sequence[Refused]:
        acted = await self.retrain.act(deliveries)
        async with self.ledger.transaction() as tx:
            return await self.retrain.commit(acted, tx)

    async def drain(self) -> list[Refused]:
        """Handle what is in the outbox for stage retrain, and what that brings, in order."""
        refused: list[Refused] = []
        while rows := self.sql(
            "select id, value from outbox where topic = 'expunge.retrain' and id > %s order by id", self.handled
        ):
            self.handled = rows[-1][0]
            refused += await self.handle(*(events.parse_event(bytes(value)) for _, value in rows))
        return refused

    def keep(self, name: str) -> bytes:
        """A weights file in the store."""
        content = b"".join(hashlib.sha256(f"{name}/{n}".encode()).digest() for n in range(8))
        self.space.insert("files", {name: content})
        return content

    async def models(self, *registered: lineage.ModelRegistered) -> None:
        for one in registered:
            self.keep(one.model)
        await self.take(*registered)
        await self.drain()

    def sweep(self, number: int, *claims: tuple[int, list[str]], body: bytes = b"", kind: str = "people") -> UUID:
        """A published sweep with one request per claim (mask, image keys)."""
        sweep_id = UUID(int=number, version=4)
        ordinals = [self.ordinals(*keys) for _, keys in claims]
        columns = {
            "requests": bytes(16 * len(claims)),
            "purposes": np.array([mask for mask, _ in claims], "<i8").tobytes(),
            "ordinals": np.array([one for some in ordinals for one in some], "<u8").tobytes(),
            "ordinal_offsets": np.cumsum([0, *map(len, ordinals)]).astype("<u8").tobytes(),
        }
        key = leaf.derive_key(self.keys.bucket(BUCKET), "sweep", sweep_id.bytes)
        header = {"sweep": str(sweep_id), "bucket": BUCKET.isoformat(), "trees": []}
        data = scopefile.write(header, [("claims", scopefile.pack_columns(columns))], key)
        file_digest = self.sealed.write(f"{sweep_id}.scope", [data])
        union = BitMap64([one for some in ordinals for one in some])
        ((index,),) = self.sql("update log_head set next = next + 1 returning next - 1")
        self.sql(
            "insert into sweep (sweep_id, class, state, bucket, requests, images, leaves, trees, scope_digest, scope_envelope,"
            " scope_index, file_digest, ordinals, sealed_at, taint)"
            " values (%s, %s, 'published', %s, %s, %s, 0, '[]', %s, '', %s, %s, %s, %s, 'ordered')",
            sweep_id, kind, BUCKET, len(claims), len(union), hashlib.sha256(sweep_id.bytes).digest(), index, file_digest,
            union.serialize(), AT,
        )  # fmt: skip
        for at, (mask, _) in enumerate(claims):
            self.sql(
                "insert into request (request_id, type, class, state, purposes, regulation, body, body_digest, key_id, nonce,"
                " accepted_at, due, bucket, sweep_id, leaf) values (%s, 't', %s, 'planned', %s, 'gdpr', %s, '', 'k', %s, %s,"
                " %s, %s, %s, %s)",
                UUID(int=number * 1000 + at), kind, mask, body, f"{number}/{at}", AT, AT, BUCKET, sweep_id, at,
            )  # fmt: skip
        return sweep_id

    async def resolve(self, number: int, *claims: tuple[int, list[str]], **options: Any) -> UUID:
        sweep_id = self.sweep(number, *claims, **options)
        assert not await self.handle(TaintOrdered(sweep_id=events.SweepId(str(sweep_id))))
        return sweep_id

    def statuses(self) -> dict[str, str]:
        return dict(self.sql("select name, status from model order by name"))

    def jobs(self) -> list[tuple[list[str], str]]:
        rows = self.sql("select models, state from retraining order by seq")
        names = dict(self.sql("select model_no, name from model"))
        return [([names[number] for number in numbers], state) for numbers, state in rows]

    def trainer(self, name: str = "gpu-1", **options: Any) -> Trainer:
        return Trainer(self.dsn, name, **options)


@pytest.fixture
async def world(database: str) -> AsyncIterator[World]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    found = World(database, ledger)
    await found.take(source(), images(*(image(f"x{number}", number) for number in range(10))))
    await found.take(committed("low", [f"x{number}" for number in range(5)]), committed("high", ["x7", "x8", "x9"]))
    yield found
    await ledger.close()


def bit(world: World, name: str = "training") -> int:
    return int(world.sql("select bit from purpose where name = %s", name)[0][0])


async def test_models_are_clean_only_where_all_that_went_in_is_known(world: World) -> None:
    await world.take(committed("vague", ["x1"], grade=Grade.UNKNOWN))
    await world.models(
        model("clean@1", ["low"]),
        model("quantised@1", [], parents=[("clean@1", Relation.QUANTISED_FROM)]),
        model("tuned@1", [], parents=[("clean@1", FINE_TUNED)]),
        model("nothing@1", []),
        model("vague@1", ["vague"]),
        model("below@1", ["low"], parents=[("vague@1", FINE_TUNED)]),
        model("missing@1", ["low", "later"]),
    )
    assert world.statuses() == {
        "clean@1": "clean", "quantised@1": "clean", "tuned@1": "unknown", "nothing@1": "unknown",
        "vague@1": "unknown", "below@1": "unknown", "missing@1": "unknown",
    }  # fmt: skip
    await world.take(committed("later", ["x9"]))
    await world.drain()
    assert world.statuses()["missing@1"] == "clean"


async def test_a_sweep_taints_models_down_the_line_and_names_who(world: World) -> None:
    await world.models(
        model("face@1", ["low"]), model("door@1", ["high"], parents=[("face@1", FINE_TUNED)]), model("other@1", ["high"]),
        model("age@1", ["high"], parents=[("face@1", Relation.EVALUATED_ON)]),
    )  # fmt: skip
    sweep_id = await world.resolve(1, (ALL, ["x1", "x2"]), (ALL, ["x6"]), (ALL, ["x2", "x3"]))
    assert world.statuses() == {"age@1": "clean", "door@1": "tainted", "face@1": "tainted", "other@1": "clean"}
    rows = world.sql(
        "select m.name, images, direct, path, requests from taint join model m using (model_no) order by 1"
    )
    assert [(*row[:4], set(BitMap.deserialize(row[4]))) for row in rows] == [
        ("door@1", 3, 0, ["door@1", "face@1"], {0, 2}),
        ("face@1", 3, 3, ["face@1"], {0, 2}),
    ]
    assert world.bitmap("select bitmap from exclusion") == set(world.ordinals("x1", "x2", "x3", "x6"))
    said = [one for one in world.logged() if not isinstance(one, statement.RegisteredBatch)]
    assert [(one.model, one.type) for one in said] == [
        ("face@1", "urn:expunge:model-tainted:v1"),
        ("door@1", "urn:expunge:model-tainted:v1"),
        ("age@1", "urn:expunge:metric-void:v1"),
    ]
    for (entry,) in world.sql("select entry from log_entry where predicate like '%%model-tainted%%'"):
        dsse.verify(dsse.parse(bytes(entry)), RETRAINER.public, statement.PAYLOAD_TYPE)
    assert world.sql("select name from model where metric_void") == [("age@1",)]
    assert [one.by for one in world.said(ModelTainted)] == [("face@1",), ("face@1", "door@1")]
    assert world.jobs() == [(["face@1", "door@1"], "queued")]
    (queued,) = world.said(RetrainingQueued)
    assert (queued.models, queued.excluded_images, queued.due) == (("face@1", "door@1"), 4, AT + timedelta(days=14))
    assert world.sql("select taint from sweep") == [("resolved",)]
    before = world.sql("select count(*) from log_entry")
    await world.handle(TaintOrdered(sweep_id=events.SweepId(str(sweep_id))))
    assert world.sql("select count(*) from log_entry") == before
    assert len(world.said(TaintResolved)) == 1


async def test_withdrawing_a_purpose_touches_its_models_only_and_cancelled_requests_none(world: World) -> None:
    await world.take(committed("ads-1", ["x1"], purpose="ads"))
    await world.models(model("face@1", ["low"]), model("ads@1", ["ads-1"], purpose="ads"))
    sweep_id = world.sweep(1, (1 << bit(world), ["x1"]), (ALL, ["x2"]))
    world.sql("update request set state = 'cancelled' where leaf = 1")
    await world.handle(TaintOrdered(sweep_id=events.SweepId(str(sweep_id))))
    assert world.statuses() == {"ads@1": "clean", "face@1": "tainted"}
    assert world.sql("select purpose_bit, images from exclusion") == [(bit(world), 1)]
    assert world.sql("select images from taint") == [(1,)]


async def test_what_waits_is_merged_and_what_runs_is_left_alone(world: World) -> None:
    await world.models(
        model("a@1", ["low"]), model("b@1", ["high"]), model("c@1", ["high"], parents=[("b@1", FINE_TUNED)])
    )
    await world.resolve(1, (ALL, ["x1"]))
    await world.resolve(2, (ALL, ["x8"]))
    assert world.jobs() == [(["a@1"], "queued"), (["b@1", "c@1"], "queued")]
    await world.resolve(3, (ALL, ["x2"]))
    first, second = world.sql("select cut, excluded from retraining order by seq")
    assert first[0] > second[0]
    assert set(BitMap64.deserialize(first[1])) == set(world.ordinals("x1", "x2", "x8"))
    job = world.trainer().take()
    assert job is not None
    assert (job.models, job.snapshots) == (("a@1",), {"a@1": ("low",)})
    assert world.statuses()["a@1"] == "remediating"
    await world.resolve(4, (ALL, ["x3"]))
    assert world.jobs() == [(["a@1"], "leased"), (["b@1", "c@1"], "queued"), (["a@1"], "queued")]
    assert set(job.exclusion) == set(world.ordinals("x1", "x2", "x8"))
    second_job = world.trainer("gpu-2").take()
    assert second_job is not None
    assert second_job.models == ("b@1", "c@1")
    assert world.trainer("gpu-3").take() is None  # the other job of a@1 waits for the first


async def test_an_order_brings_its_own_date_and_remedy(world: World) -> None:
    await world.models(model("face@1", ["low"]), model("other@1", ["high"]))
    deadline = AT + timedelta(days=3)
    body = order(deadline, Remedy.RETRAIN)
    await world.resolve(1, (ALL, ["x8"]))
    await world.resolve(2, (ALL, ["x1"]), body=body, kind="order")
    assert world.sql("select remedy, due from taint order by due") == [
        ("retrain", deadline),
        ("retrain", AT + timedelta(days=14)),
    ]
    job = world.trainer().take()
    assert job is not None
    assert job.models == ("face@1",)


def order(deadline: datetime, remedy: Remedy) -> bytes:
    return request.dump_request(
        request.OrderIssued(
            id=request.RequestId(str(UUID(int=5, version=4))), audience="a", issued_at=AT, expires_at=AT + timedelta(1),
            nonce="0" * 32, selection=request.BySource(source="studio"), authority=request.Authority.REGULATOR,
            reference="R", provisions=(
                request.OrderProvision(number=1, covers=Provision.DATA, deadline=AT + timedelta(1)),
                request.OrderProvision(number=2, covers=Provision.MODELS, deadline=deadline, remedy=remedy),
            ),
        )
    )  # fmt: skip


async def replace(world: World, job_id: str, old: str, new: str, snapshot: str, **options: Any) -> list[Refused]:
    world.keep(new)
    await world.take(model(new, [snapshot], replaces=old, job_id=lineage.JobId(job_id), **options))
    return await world.drain()


async def test_a_clean_successor_takes_the_place_and_the_old_file_is_gone(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    sweep_id = await world.resolve(1, (ALL, ["x1"]))
    job = world.trainer().take()
    assert job is not None
    members = job.members("low") - job.exclusion
    assert [key for _, key in job.keys(members)] == ["x0", "x2", "x3", "x4"]
    readings = Readings()
    readings.saw(list(members)[:2])
    readings.saw(list(members)[2:])
    await world.take(readings.snapshot("low-2", "training", parent="low"))
    assert not await replace(world, job.job_id, "face@1", "face@2", "low-2")
    assert world.statuses() == {"face@1": "replaced", "face@2": "clean"}
    assert sorted(world.space.read("files")) == ["face@2"]
    said = world.logged()[-1]
    assert isinstance(said, statement.ModelReplaced)
    assert (said.model, said.successor, said.sweeps) == ("face@1", "face@2", (str(sweep_id),))
    assert (said.cut, said.exclusion, int(said.level)) == (job.cut, job.exclusion_digest.hex(), 2)
    ((resolved, how),) = world.sql("select resolved_index, resolution from taint")
    assert (how, resolved) == ("replaced", world.sql("select max(index) from log_entry")[0][0])
    assert world.jobs() == [(["face@1"], "done")]
    (one,) = world.said(ModelReplaced)
    assert (one.model, one.successor, one.sweeps) == ("face@1", "face@2", 1)
    assert [two.sweep_ids for two in world.said(ModelsResolved)] == [(str(sweep_id),)]
    assert world.trainer().take() is None
    async with world.ledger.transaction() as tx:
        assert (await standing.gate(tx, "face@2")).open
        assert not (await standing.gate(tx, "face@1")).open
    event = world.said(SuccessorRegistered)[0]
    before = world.sql("select count(*) from log_entry")
    await world.handle(event)
    assert world.sql("select count(*) from log_entry") == before


async def test_a_successor_that_saw_what_it_must_not_is_refused_and_destroyed(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]))
    job = world.trainer().take()
    assert job is not None
    await replace(world, job.job_id, "face@1", "face@2", "low")
    (refused,) = world.said(SuccessorRefused)
    assert (refused.model, refused.code) == ("face@2", "overlap")
    assert world.statuses() == {"face@1": "remediating", "face@2": "destroyed"}
    assert sorted(world.space.read("files")) == ["face@1"]
    assert world.jobs() == [(["face@1"], "queued")]
    again = world.trainer().take()
    assert again is not None
    await world.take(committed("low-3", ["x0", "x3"]))
    await replace(world, again.job_id, "face@1", "face@3", "low-3")
    assert world.statuses() == {"face@1": "replaced", "face@2": "destroyed", "face@3": "clean"}


async def test_the_same_weights_under_another_name_are_no_successor(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]))
    job = world.trainer().take()
    assert job is not None
    await world.take(committed("low-2", ["x0"]))
    world.keep("face@2")
    relabelled = model("face@2", ["low-2"], replaces="face@1", job_id=job.job_id)
    await world.take(relabelled.model_copy(update={"weights_digest": digest("weights face@1")}))
    await world.drain()
    assert [one.code for one in world.said(SuccessorRefused)] == ["same-weights"]
    assert world.statuses()["face@1"] == "remediating"


async def test_other_answers_that_do_not_fit_their_job_are_refused(world: World) -> None:
    await world.take(committed("vague", ["x0"], grade=Grade.UNKNOWN), committed("fine", ["x0"]))
    await world.models(model("face@1", ["low"]), model("nowhere@1", ["low"], weights=None), model("other@1", ["high"]))
    await world.resolve(1, (ALL, ["x1"]))
    ids = {
        tuple(names): str(job)
        for (job,), (names, _) in zip(
            world.sql("select job_id from retraining order by seq"), world.jobs(), strict=True
        )
    }
    await replace(world, str(UUID(int=1, version=4)), "face@1", "a@1", "fine")
    await replace(world, ids["face@1",], "other@1", "b@1", "fine")
    await replace(world, ids["face@1",], "face@1", "c@1", "vague")
    await replace(world, ids["nowhere@1",], "nowhere@1", "d@1", "fine")
    shared = lineage.WeightsLocation(store="models", unit="files", locator="face@1")
    await replace(world, ids["face@1",], "face@1", "e@1", "fine", weights=shared)
    assert [one.code for one in world.said(SuccessorRefused)] == [
        "unknown-job", "not-in-job", "unknown-lineage", "weights-not-located", "weights-shared",
    ]  # fmt: skip
    assert {names[0]: state for names, state in world.jobs()} == {"face@1": "failed", "nowhere@1": "failed"}


async def test_a_successor_waits_for_the_snapshot_it_names(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]))
    job = world.trainer().take()
    assert job is not None
    await replace(world, job.job_id, "face@1", "face@2", "late")
    assert not world.said(SuccessorRefused)
    await world.take(committed("late", ["x0"]))
    await world.drain()
    assert world.statuses() == {"face@1": "replaced", "face@2": "clean"}


async def test_requests_that_come_while_it_trains_are_the_successors_to_answer(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    first = await world.resolve(1, (ALL, ["x1"]))
    job = world.trainer().take()
    assert job is not None
    await world.take(committed("low-2", ["x0", "x2", "x3"]))
    later = await world.resolve(2, (ALL, ["x2"]), (ALL, ["x9"]))
    without = await world.resolve(3, (ALL, ["x4"]))
    await replace(world, job.job_id, "face@1", "face@2", "low-2")
    rows = world.sql(
        "select t.sweep_id, m.name, t.resolution, t.requests from taint t join model m using (model_no) order by 1"
    )
    assert [(sweep_id, name, how) for sweep_id, name, how, _ in rows] == [
        (first, "face@1", "replaced"),
        (later, "face@2", None),
        (without, "face@1", "replaced"),
    ]
    assert set(BitMap.deserialize(rows[1][3])) == {0}
    assert world.statuses() == {"face@1": "replaced", "face@2": "tainted"}
    assert world.jobs() == [(["face@1"], "done"), (["face@2"], "queued")]
    assert [(one.sweeps, one.cut > job.cut) for one in world.logged() if isinstance(one, statement.ModelReplaced)] == [
        ((str(first),), False),
        ((str(without),), True),
    ]
    again = world.trainer().take()
    assert again is not None
    await world.take(committed("low-3", ["x0", "x3"]))
    await replace(world, again.job_id, "face@2", "face@3", "low-3")
    assert world.statuses() == {"face@1": "replaced", "face@2": "replaced", "face@3": "clean"}
    assert world.sql("select count(*) from taint where resolved_index is null") == [(0,)]


async def test_a_family_is_replaced_model_by_model(world: World) -> None:
    await world.models(model("face@1", ["low"]), model("door@1", ["high"], parents=[("face@1", FINE_TUNED)]))
    await world.resolve(1, (ALL, ["x1"]))
    await world.take(committed("low-2", ["x0"]))
    job = world.trainer().take()
    assert job is not None
    await replace(world, job.job_id, "face@1", "face@2", "low-2")
    assert world.jobs() == [(["face@1", "door@1"], "leased")]
    await replace(world, job.job_id, "door@1", "door@2", "high", parents=[("face@1", FINE_TUNED)])
    assert [one.code for one in world.said(SuccessorRefused)] == ["overlap"]
    await replace(world, job.job_id, "door@1", "door@3", "high", parents=[("face@2", FINE_TUNED)])
    assert world.statuses() == {
        "face@1": "replaced", "face@2": "clean", "door@1": "replaced", "door@2": "destroyed", "door@3": "clean",
    }  # fmt: skip
    assert world.jobs()[0][1] == "done"


async def test_an_order_may_have_models_destroyed(world: World) -> None:
    await world.models(model("face@1", ["low"]), model("door@1", ["high"], parents=[("face@1", FINE_TUNED)]))
    await world.resolve(1, (ALL, ["x7"]))
    sweep_id = await world.resolve(2, (ALL, ["x1"]), body=order(AT + timedelta(2), Remedy.DESTROY), kind="order")
    assert len(world.said(DestructionOrdered)) == 2
    assert not await world.drain()
    assert world.statuses() == {"door@1": "destroyed", "face@1": "destroyed"}
    assert not world.space.read("files")
    assert {(how, index is None) for how, index in world.sql("select resolution, resolved_index from taint")} == {
        ("destroyed", False)
    }
    assert {int(one.level) for one in world.said(ModelDestroyed)} == {2}
    assert str(sweep_id) in world.said(ModelsResolved)[0].sweep_ids
    assert world.jobs() == [([], "done")]


async def test_weights_that_are_still_there_are_tried_again_and_nothing_is_claimed(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]), body=order(AT + timedelta(2), Remedy.DESTROY), kind="order")
    world.space.lying = True
    (refused,) = await world.drain()
    assert (refused.code, refused.later) == ("weights-remain", True)
    assert world.statuses() == {"face@1": "remediating"}
    world.space.lying = False
    assert not await world.deliver([refused.delivery])
    assert world.statuses() == {"face@1": "destroyed"}


async def test_weights_that_went_before_the_crash_are_claimed_only_as_unreachable(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]), body=order(AT + timedelta(2), Remedy.DESTROY), kind="order")
    event = world.said(DestructionOrdered)[0]
    await world.retrain.act([delivery(event)])  # and then the process died
    await world.drain()
    assert [int(one.level) for one in world.said(ModelDestroyed)] == [1]


async def test_a_model_that_comes_after_the_sweep_is_tainted_all_the_same(world: World) -> None:
    sweep_id = await world.resolve(1, (ALL, ["x6"]), (ALL, ["x1"]))
    await world.models(model("face@1", ["low"]), model("door@1", ["high"], parents=[("face@1", FINE_TUNED)]))
    assert world.statuses() == {"door@1": "tainted", "face@1": "tainted"}
    rows = world.sql("select sweep_id, requests from taint")
    assert {(one, *BitMap.deserialize(packed)) for one, packed in rows} == {(sweep_id, 1)}
    world.keys.key = None
    await world.models(model("late@1", ["low"]))
    assert world.statuses()["late@1"] == "tainted"
    assert world.jobs() == [(["face@1", "door@1"], "queued"), (["late@1"], "queued")]


async def test_events_that_make_no_sense_are_refused(world: World) -> None:
    wrong = Delivery("expunge.retrain", 0, 0, delivery(source()).event)
    gone = events.SweepId(str(UUID(int=1, version=4)))
    lost = world.sweep(7, (ALL, ["x1"]))
    world.sealed.files.clear()
    refused = await world.deliver(
        [
            wrong,
            delivery(TaintResolved(sweep_id=gone)),
            delivery(TaintOrdered(sweep_id=gone)),
            delivery(TaintOrdered(sweep_id=events.SweepId(str(lost)))),
            delivery(ModelArrived(model="no@1", at=AT)),
            delivery(DestructionOrdered(model="no@1", at=AT)),
        ]
    )
    assert [(one.code, one.later) for one in refused] == [
        ("unknown-type", False), ("unknown-type", False), ("no-sweep", True), ("scope-lost", False),
        ("unknown-model", False), ("unknown-model", False),
    ]  # fmt: skip


async def test_leases_run_out_are_renewed_and_given_back(world: World) -> None:
    await world.models(model("face@1", ["low"]))
    await world.resolve(1, (ALL, ["x1"]))
    slow = world.trainer("slow", lease_seconds=0).take()
    assert slow is not None
    quick = world.trainer("quick").take()
    assert quick is not None
    assert quick.job_id == slow.job_id
    with pytest.raises(FencedOff):
        slow.renew()
    quick.renew()
    assert world.trainer("other").take() is None
    quick.release()
    assert world.trainer("other").take() is not None
    with pytest.raises(Rejected):
        quick.members("none")


async def test_the_gate_says_why_and_the_list_says_what(world: World) -> None:
    await world.models(model("face@1", ["low"]), model("other@1", ["high"]))
    async with world.ledger.transaction() as tx:
        assert (await standing.gate(tx, "face@1")).open
    sweep_id = world.sweep(1, (ALL, ["x1"]))
    async with world.ledger.transaction() as tx:
        assert (await standing.gate(tx, "face@1")).reasons == ("1 published sweeps are not resolved yet",)
    await world.handle(TaintOrdered(sweep_id=events.SweepId(str(sweep_id))))
    async with world.ledger.transaction() as tx:
        closed = await standing.gate(tx, "face@1")
        assert closed.reasons[0] == "status is tainted"
        assert f"tainted by sweep {sweep_id} through face@1" in closed.reasons[1]
        assert [(one.model, one.status, one.open_taints) for one in await standing.listed(tx)] == [
            ("face@1", "tainted", 1),
            ("other@1", "clean", 0),
        ]
        shown = await standing.shown(tx, "face@1")
        assert shown.metrics == {"auc": 0.5, "count": 3}
        assert [(one.path, one.images) for one in shown.taints] == [(("face@1",), 1)]
        with pytest.raises(Rejected):
            await standing.gate(tx, "no@1")


def test_readings_are_a_snapshot_of_what_was_read() -> None:
    readings = Readings()
    readings.saw([3, 1])
    readings.saw([1, 70_000])
    said = readings.snapshot("seen", "training")
    assert said.grade is Grade.OBSERVED
    assert set(BitMap64.deserialize(base64.b64decode(said.members_roaring or ""))) == {1, 3, 70_000}
