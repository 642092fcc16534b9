"""Stage register on a real database."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from pyroaring import BitMap64

from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.domain import leaf, lineage, merkle, snapshot, suppression
from expunge.domain.events import ModelArrived, Registered, RegistrationRefused, SuccessorRegistered
from expunge.domain.leaf import NO_DIGEST
from expunge.domain.words import Grade, Kind
from tests.lineage import (
    AT,
    FINE_TUNED,
    KEY,
    Catalogue,
    artifact,
    committed,
    delivery,
    digest,
    image,
    images,
    model,
    source,
    subject,
)


@pytest.fixture
async def catalogue(database: str) -> AsyncIterator[Catalogue]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    yield Catalogue(database, ledger)
    await ledger.close()


def suppress(catalogue: Catalogue, number: int, purpose: str = "*") -> None:
    catalogue.sql(
        "insert into suppressed_subject (mac) values (%s)",
        suppression.mac(KEY, "subject", purpose, subject(number).encode()),
    )


async def test_images_get_dense_ordinals_in_blocks_of_their_source(catalogue: Catalogue) -> None:
    await catalogue.take(source("a"), source("b"))
    await catalogue.take(
        images(image("a1", 1, 2), image("a2", 1), source="a"), images(image("b1"), source="b"),
        images(image("a3"), source="a"),
    )  # fmt: skip
    rows = catalogue.sql("select s.name, key, ordinal from image join source s using (source_no) order by key")
    ordinals = {key: (name, ordinal) for name, key, ordinal in rows}
    first = ordinals["a1"][1]
    assert first % 65_536 == 0
    assert sorted(ordinal for name, ordinal in ordinals.values() if name == "a") == [first, first + 1, first + 2]
    assert abs(ordinals["b1"][1] - first) >= 65_536 - 2
    assert catalogue.sql("select count(*) from image_subject") == [(3,)]
    assert sorted(catalogue.sql("select used from ordinal_block")) == [(1,), (3,)]


async def test_a_raw_image_without_a_digest_of_its_own_has_the_photos(catalogue: Catalogue) -> None:
    bare = [one.model_copy(update={"digest": None}) for one in (artifact("one"), artifact("small", Kind.DERIVATIVE))]
    await catalogue.take(source(), images(image("one", artifacts=tuple(bare))))
    rows = catalogue.sql("select a.kind, a.digest = i.digest from artifact a join image i using (ordinal) order by 1")
    assert rows == [("derivative", False), ("image", True)]


async def test_a_source_that_outgrows_its_block_gets_another(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("one")))
    catalogue.sql("update ordinal_block set used = 65535")
    await catalogue.take(images(image("two"), image("three"), image("four")))
    assert catalogue.ordinals("one", "two", "three", "four") == [0, 65_535, 65_536, 65_537]
    assert sorted(catalogue.sql("select used from ordinal_block")) == [(2,), (65_536,)]


async def test_a_batch_root_opens_with_the_key_of_its_day(catalogue: Catalogue) -> None:
    thumb = artifact("x-small", Kind.DERIVATIVE)
    await catalogue.take(source(), images(image("x", artifacts=(artifact("x"), thumb)), image("y")))
    (said,) = catalogue.logged()
    rows = catalogue.sql("select artifact_id, digest from artifact order by 1")
    bucket = catalogue.keys.bucket(AT.date())
    key = leaf.derive_key(leaf.derive_key(bucket, "batch", UUID(said.batch).bytes), "nonces")
    leaves = leaf.pack_leaves(
        leaf.nonces(key, 3), b"".join(number.to_bytes(6, "big") for number, _ in rows), b"".join(d for _, d in rows)
    )
    assert said.root == merkle.root(merkle.leaf_hashes(leaves, leaf.LEAF_BYTES)).hex()
    assert (said.leaves, said.images) == (3, 2)
    assert [(one.source, one.kind, one.artifacts) for one in said.counts] == [
        ("studio", "derivative", 1),
        ("studio", "image", 2),
    ]
    (registered,) = catalogue.said(Registered)
    assert (registered.images, registered.artifacts) == (2, 3)
    assert catalogue.sql("select images, artifacts, refused, log_index from registration_batch") == [(2, 3, 0, 0)]


async def test_a_batch_that_comes_twice_is_taken_once(catalogue: Catalogue) -> None:
    batch = images(image("x", 1))
    await catalogue.take(source(), batch, batch)
    await catalogue.take(batch)
    assert catalogue.sql("select count(*) from artifact") == [(1,)]
    assert len(catalogue.logged()) == 1


async def test_the_same_image_again_is_nothing_new_and_another_under_its_key_is_refused(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x", 1, 2)))
    await catalogue.take(images(image("x", 2, 1)))
    assert not catalogue.said(RegistrationRefused)
    for other in (
        image("x", 1, 2, content="other"),
        image("x", 1),
        image("x", 1, 2, artifacts=(artifact("x"), artifact("x2"))),
        image("x", 1, 2, artifacts=(artifact("x", purposes=("training", "account")),)),
    ):
        await catalogue.take(images(other))
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [{"duplicate-image": 1}] * 4
    assert catalogue.sql("select count(*) from artifact") == [(1,)]
    assert len(catalogue.logged()) == 1


async def test_two_batches_at_once_with_one_key_agree_or_the_second_is_refused(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x")), images(image("x"), image("y")), images(image("x", content="z")))
    assert catalogue.sql("select key from image order by 1") == [("x",), ("y",)]
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [{"duplicate-image": 1}]


async def test_unknown_and_closed_sources_are_refused(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x")))
    catalogue.sql("update source set closed_by = %s, closed_at = now()", UUID(int=1))
    added = lineage.AddedArtifact(
        source="studio", image_key="x", kind=Kind.EMBEDDING, store="v", unit="i", locator="1", purposes=("training",)
    )
    await catalogue.take(
        images(image("y")),
        images(image("z"), source="nowhere"),
        lineage.ArtifactsAdded(batch_id=lineage.BatchId(str(UUID(int=2))), artifacts=(added,)),
    )
    codes = sorted(code for one in catalogue.said(RegistrationRefused) for code in one.codes)
    assert codes == ["source-closed", "source-closed", "unknown-source"]
    assert catalogue.sql("select count(*) from artifact") == [(1,)]


async def test_a_suppressed_person_comes_back_in_no_photo(catalogue: Catalogue) -> None:
    suppress(catalogue, 7)
    await catalogue.take(source(), images(image("alone", 7), image("group", 1, 7), image("other", 1)))
    assert catalogue.sql("select key from image") == [("other",)]
    (refused,) = catalogue.said(RegistrationRefused)
    assert refused.codes == {"suppressed": 2}
    catalogue.sql("update suppressed_subject set lifted_at = now()")
    await catalogue.take(images(image("alone", 7)))
    assert len(catalogue.sql("select key from image")) == 2


async def test_a_withdrawn_purpose_is_taken_off_and_what_has_no_other_is_refused(catalogue: Catalogue) -> None:
    suppress(catalogue, 7, "training")
    both = (artifact("x", purposes=("training", "account")), artifact("x-t", Kind.DERIVATIVE))
    await catalogue.take(source(), images(image("x", 7, artifacts=both), image("y", 7)))
    names = dict(catalogue.sql("select name, bit from purpose"))
    assert catalogue.sql("select kind, purposes from artifact") == [("image", 1 << names["account"])]
    (refused,) = catalogue.said(RegistrationRefused)
    assert refused.codes == {"suppressed": 2}


async def test_an_erased_photo_does_not_come_back_under_another_key(catalogue: Catalogue) -> None:
    def page(*contents: str) -> None:
        macs = [suppression.mac(KEY, "digest", "*", bytes.fromhex(digest(one))) for one in contents]
        catalogue.sql("insert into suppressed_page (macs) values (%s)", b"".join(macs))

    page("gone", "gone2")
    await catalogue.take(source(), images(image("new", content="gone"), image("fine", content="fine")))
    page(*(f"more{number}" for number in range(50)))
    await catalogue.take(images(image("new2", content="more49"), image("new3", content="gone2"), image("fine2")))
    assert catalogue.sql("select key from image order by 1") == [("fine",), ("fine2",)]


async def test_artifacts_are_added_to_images_as_their_people_allow(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x", 1), image("y", 7)))
    suppress(catalogue, 7)

    def added(key: str, locator: str) -> lineage.AddedArtifact:
        return lineage.AddedArtifact(
            source="studio", image_key=key, kind=Kind.EMBEDDING, store="vectors", unit="index", locator=locator,
            purposes=("training",),
        )  # fmt: skip

    batch = lineage.ArtifactsAdded(
        batch_id=lineage.BatchId(str(UUID(int=5))),
        artifacts=(added("x", "1"), added("x", "2"), added("y", "3"), added("nobody", "4")),
    )
    await catalogue.take(batch)
    again = batch.model_copy(update={"batch_id": str(UUID(int=6))})
    await catalogue.take(again)
    wider = added("x", "1").model_copy(update={"purposes": ("training", "account")})
    await catalogue.take(batch.model_copy(update={"batch_id": str(UUID(int=7)), "artifacts": (wider,)}))
    rows = catalogue.sql("select locator, digest from artifact where kind = 'embedding' order by 1")
    assert rows == [("1", NO_DIGEST), ("2", NO_DIGEST)]
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [
        {"suppressed": 1, "unknown-image": 1},
        {"suppressed": 1, "unknown-image": 1},
        {"duplicate-artifact": 1},
    ]
    assert catalogue.logged()[1].images == 0


async def test_a_source_that_says_something_else_is_refused(catalogue: Catalogue) -> None:
    await catalogue.take(source())
    await catalogue.take(source(), source().model_copy(update={"licence": "other"}))
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [{"duplicate-source": 1}]


async def test_what_is_no_lineage_event_goes_to_the_dead_letter(catalogue: Catalogue) -> None:
    bad = delivery(ModelArrived(model="m@1", at=AT))
    acted = await catalogue.register.act([bad])
    async with catalogue.ledger.transaction() as tx:
        refused = await catalogue.register.commit(acted, tx)
    assert [(one.delivery, one.later) for one in refused] == [(bad, False)]


async def test_snapshots_are_bitmaps_with_a_root_by_key_or_by_ordinal(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(*(image(f"x{number}") for number in range(9))))
    members = BitMap64(catalogue.ordinals("x1", "x2", "x5"))
    roaring = lineage.SnapshotCommitted(
        snapshot="s-2", purpose="training", members_roaring=base64.b64encode(members.serialize()).decode(),
        root=snapshot.root(members).hex(), grade=Grade.OBSERVED,
    )  # fmt: skip
    await catalogue.take(committed("s-1", ["x1", "x2", "x5"]), roaring)
    await catalogue.take(committed("s-1", ["x1", "x2", "x5"]), roaring, committed("s-1", ["x1"]))
    rows = catalogue.sql("select name, root, images, bitmap from snapshot order by name")
    assert [(name, bytes(root), count) for name, root, count, _ in rows] == [
        ("s-1", snapshot.root(members), 3),
        ("s-2", snapshot.root(members), 3),
    ]
    assert all(BitMap64.deserialize(packed) == members for *_, packed in rows)
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [{"duplicate-snapshot": 1}]


async def test_snapshots_with_members_that_must_not_be_there_are_refused(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x"), image("y")), committed("ok", ["x"]))
    x, y = catalogue.ordinals("x", "y")
    catalogue.sql("insert into exclusion select %s, bit, 1, %s, 0 from purpose", UUID(int=1), BitMap64([y]).serialize())
    catalogue.sql(
        "insert into tombstone select %s, source_no, 1, %s from source", UUID(int=1), BitMap64([777]).serialize()
    )

    def roaring(name: str, *members: int) -> lineage.SnapshotCommitted:
        packed = base64.b64encode(BitMap64(members).serialize()).decode()
        return lineage.SnapshotCommitted(
            snapshot=name, purpose="training", members_roaring=packed, grade=Grade.COMMITTED
        )

    refused = await catalogue.take(
        committed("excluded", ["x", "y"]), roaring("erased", x, 777), roaring("unknown", x, 888),
        committed("unknown-2", ["nope"]), committed("root", ["x"], root=digest("other")),
        lineage.SnapshotCommitted(snapshot="bad", purpose="training", members_roaring="AAAA", grade=Grade.COMMITTED),
    )  # fmt: skip
    assert [(one.code, one.later) for one in refused] == [("unknown-image", True)] * 2
    codes = [code for one in catalogue.said(RegistrationRefused) for code in one.codes]
    assert codes == ["excluded", "erased", "root-mismatch", "malformed"]
    assert catalogue.sql("select name from snapshot") == [("ok",)]


async def test_models_are_unknown_until_judged_and_linked_when_what_they_name_comes(catalogue: Catalogue) -> None:
    await catalogue.take(source(), images(image("x")))
    child = model("child@1", ["late"], parents=[("face@1", FINE_TUNED)])
    await catalogue.take(child)
    assert catalogue.sql("select status from model") == [("unknown",)]
    await catalogue.take(child, committed("late", ["x"]), model("face@1", ["late"]), model("child@1", ["other"]))
    links = catalogue.sql(
        "select m.name, s.name from model_snapshot join model m using (model_no) join snapshot s using (snapshot_no)"
    )
    assert sorted(links) == [("child@1", "late"), ("face@1", "late")]
    assert catalogue.sql("select relation from model_edge") == [("fine-tuned-from",)]
    assert sorted(one.model for one in catalogue.said(ModelArrived)) == ["child@1", "child@1", "face@1"]
    assert [one.codes for one in catalogue.said(RegistrationRefused)] == [{"duplicate-model": 1}]


async def test_an_edge_that_would_close_a_cycle_is_left_out(catalogue: Catalogue) -> None:
    await catalogue.take(model("a@1", [], parents=[("b@1", FINE_TUNED)]))
    await catalogue.take(model("b@1", [], parents=[("a@1", FINE_TUNED)]))
    assert len(catalogue.sql("select * from model_edge")) == 1


async def test_a_successor_is_announced_to_stage_retrain(catalogue: Catalogue) -> None:
    job = lineage.JobId(str(UUID(int=9)))
    await catalogue.take(model("face@2", [], replaces="face@1", job_id=job))
    (said,) = catalogue.said(SuccessorRegistered)
    assert (said.model, said.replaces, said.job_id) == ("face@2", "face@1", job)
    assert catalogue.sql("select topic from outbox") == [("expunge.retrain",)]
