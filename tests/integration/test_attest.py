"""Witnesses and time stamps in a whole deployment: who waits for them, what is said, and what an outsider then checks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from expunge.adapters.timestamp.http import HttpTimestamper
from expunge.adapters.witness.http import HttpWitness
from expunge.adapters.witness.memory import MemoryWitness
from expunge.domain import attestation, note, request, statement, verification
from expunge.domain.errors import Retryable, Tampered
from expunge.domain.note import NoteKey
from expunge.domain.policy import Policy
from expunge.domain.report import Report
from expunge.domain.trust import Trust
from expunge.domain.words import Provision
from expunge.metrics import UNATTESTED, WITNESS_ANSWERS
from expunge.ports import Timestamper, Witness, WitnessAt
from expunge.stages.prove import Attest, Prove
from expunge.wiring.gauges import set_gauges
from expunge.witness import cosigner
from expunge.witness.server import application
from tests.authority import Authority
from tests.coordination import ORIGIN, PHOTOS, Deployment, Photo, album, deployed, subject
from tests.witnessing import listening, seeded

STUDIO = request.BySource(source="studio")


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


def witnesses(world: Deployment, count: int = 3) -> list[MemoryWitness]:
    return [MemoryWitness(f"w{n}.example", seeded(f"w{n}"), log_key(world), world.clock) for n in range(count)]


def log_key(world: Deployment) -> NoteKey:
    return NoteKey.log(ORIGIN, world._log_key.public)


def attested(
    world: Deployment, asked: Sequence[Witness], quorum: int, timestamper: Timestamper | None = None
) -> Attest:  # fmt: skip
    """Have this deployment ask others, as settings would; the one who asks them."""
    from datetime import timedelta

    world.policy = Policy(
        window=timedelta(0), attempts=3, witness_quorum=quorum, timestamped=timestamper is not None,
        witness_wait=timedelta(seconds=2),
    )  # fmt: skip
    world.__dict__["prove"] = Prove(
        ledger=world.ledger, store=world.tiles, key=world._log_key, origin=ORIGIN, clock=world.clock, attested=True
    )
    attest = Attest(
        ledger=world.ledger, store=world.tiles, key=log_key(world), witnesses=asked, quorum=quorum,
        timestamper=timestamper, timeout_seconds=60,
    )  # fmt: skip
    world.coordinator.attest = attest
    return attest


def pinning(world: Deployment, asked: Sequence[Witness], **changes: Any) -> Trust:
    keys = [one.key.encode() for one in asked]
    return Trust.model_validate(world.trust.model_dump() | {"witnesses": keys} | changes)


async def bundle(world: Deployment, one: request.Request) -> dict[str, bytes]:
    return await world.reader.certificate(UUID(one.id), Provision.DATA)


async def verify(world: Deployment, one: request.Request, trust: Trust) -> Report:
    return verification.verify(await bundle(world, one), trust)


async def carried_out(world: Deployment, attest: Attest, *asked: request.Request) -> None:
    """Until nothing moves, with the witnesses asked after every rest."""
    world.ask(*asked)
    for _ in range(8):
        await world.settle()
        await attest.attest()
    await world.settle()


def failed(report: Report, where: str, detail: str) -> None:
    assert not report.ok
    assert report.where == where, list(report.lines())
    assert detail in report.steps[-1].detail


async def test_an_order_waits_for_the_quorum_and_its_certificate_shows_it(world: Deployment) -> None:
    asked = witnesses(world)
    attest = attested(world, asked, quorum=2)
    asked[0].down = asked[1].down = True
    await world.seed(*album(1))
    order = world.order(STUDIO)
    await carried_out(world, attest, order)
    await world.approve(order)
    await carried_out(world, attest)
    world.clock.pass_(hours=5)
    await carried_out(world, attest)
    assert world.left(PHOTOS), "one witness of two is no quorum, however long it takes"
    assert not world.logged(statement.Chunk)
    asked[1].down = False
    await carried_out(world, attest)
    assert not world.left(PHOTOS)
    report = await verify(world, order, pinning(world, asked, witness_quorum=2))
    assert report.ok, list(report.lines())
    assert "cosigned by w1.example, w2.example" in report.steps[1].detail
    assert "before the first deed" in report.steps[4].detail
    failed(await verify(world, order, pinning(world, asked)), "log/checkpoint", "expected cosignatures by 3")
    assert not world.logged(statement.ScopeUnwitnessed)


async def test_a_person_waits_a_set_time_and_the_log_says_so(world: Deployment) -> None:
    asked = witnesses(world)
    attest = attested(world, asked, quorum=2)
    for one in asked:
        one.down = True
    await world.seed(*album(1))
    deletion = world.deletion(1)
    await carried_out(world, attest, deletion)
    assert world.left(PHOTOS), "not at once"
    assert not world.logged(statement.ScopeUnwitnessed)
    world.clock.pass_(seconds=2)
    await carried_out(world, attest)
    assert not world.left(PHOTOS)
    (said,) = world.logged(statement.ScopeUnwitnessed)
    assert (said.sweep, said.scope) == (str(world.sweep_of(deletion)), world.scope_of(deletion))
    assert (said.quorum, said.cosigned, said.timestamped) == (2, 0, False)
    kinds = [type(one) for one in world.logged()]
    assert kinds.index(statement.Scope) < kinds.index(statement.ScopeUnwitnessed) < kinds.index(statement.Chunk)
    trust = pinning(world, asked, witness_quorum=2)
    failed(await verify(world, deletion, trust), "log/checkpoint", "expected cosignatures by 2 pinned witnesses, got 0")
    assert (await verify(world, deletion, world.trust)).ok, "whoever asks for no witnesses needs none"
    for one in asked:
        one.down = False
    await carried_out(world, attest)
    report = await verify(world, deletion, trust)
    assert report.ok, list(report.lines())
    assert f"{attestation.NOT_BEFORE}, as a statement says" in report.steps[4].detail


async def test_a_person_does_not_wait_for_witnesses_that_answer(world: Deployment) -> None:
    asked = witnesses(world)
    attest = attested(world, asked, quorum=3)
    await world.seed(*album(1))
    deletion = world.deletion(1)
    await carried_out(world, attest, deletion)
    assert not world.logged(statement.ScopeUnwitnessed)
    report = await verify(world, deletion, pinning(world, asked))
    assert report.ok, list(report.lines())
    assert "before the first deed" in report.steps[4].detail


async def test_without_witnesses_nothing_waits(world: Deployment) -> None:
    await world.seed(*album(1))
    deletion = world.deletion(1)
    world.ask(deletion)
    await world.settle()
    files = await bundle(world, deletion)
    assert verification.verify(files, world.trust).ok
    assert not [path for path in files if attestation.is_path(path)]


async def test_what_witnesses_signed_is_published_recorded_and_archived(world: Deployment) -> None:
    asked = witnesses(world)
    attest = attested(world, asked, quorum=2)
    asked[0].down = True
    await world.seed(*album(1))
    await world.settle()
    assert await attest.attest()
    ((size, signed, cosigned),) = world.sql(
        "select size, note, cosigned from log_checkpoint order by size desc limit 1"
    )
    assert cosigned == 2
    assert world.tiles.read("checkpoint") == signed == world.tiles.read(f"checkpoints/{size}")
    for one in asked[1:]:
        assert note.verify_cosignature(signed, one.key) == int(world.clock.now.timestamp())
    assert await attest.attest(), "there is nothing more to ask for"
    asked[0].down = False
    await world.seed(Photo("more", (7,)))
    await world.settle()
    assert await attest.attest()
    assert world.sql("select cosigned from log_checkpoint order by size desc limit 1") == [(3,)]


async def test_a_slow_witness_takes_nothing_back(world: Deployment) -> None:
    """While it thinks, the log goes on: its cosignature is kept with its own checkpoint."""
    (inner,) = witnesses(world, 1)

    class Slow:
        key = inner.key

        async def cosign(self, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes | WitnessAt:
            if not seen:
                seen.append(old_size)
                await world.seed(Photo("meanwhile", (7,)))
                await world.settle()
            return await inner.cosign(old_size, proof, note)

    seen: list[int] = []
    attest = attested(world, [Slow()], quorum=1)
    await world.seed(*album(1))
    await world.settle()
    ((before,),) = world.sql("select max(size) from log_checkpoint")
    assert await attest.attest()
    ((after,),) = world.sql("select max(size) from log_checkpoint")
    assert before < after
    assert note.read_checkpoint(world.tiles.read("checkpoint")).size == after
    assert note.verify_cosignature(world.tiles.read(f"checkpoints/{before}"), inner.key)
    assert world.sql("select size from log_checkpoint where attested and cosigned = 1") == [(before,)]


async def test_a_witness_that_answers_wrongly_counts_for_nothing(world: Deployment) -> None:
    (honest,) = witnesses(world, 1)

    class Liar:
        key = NoteKey.witness("liar.example", seeded("liar").public)

        async def cosign(self, old_size: int, proof: Sequence[bytes], given: bytes) -> bytes | WitnessAt:  # noqa: ARG002 - the port's
            return note.sign_cosignature(given, seeded("somebody else"), self.key.name, 7)

    attest = attested(world, [Liar(), honest], quorum=2)
    await world.seed(*album(1))
    await world.settle()
    assert not await attest.attest()
    assert world.sql("select cosigned, attested from log_checkpoint order by size desc limit 1") == [(1, False)]


async def test_a_log_restored_with_all_its_files_signs_nothing_once_a_witness_knows_more(world: Deployment) -> None:
    asked = witnesses(world, 1)
    attest = attested(world, asked, quorum=1)
    await world.seed(*album(1))
    await carried_out(world, attest)
    asked[0].latest[ORIGIN] = type(asked[0].latest[ORIGIN])(10_000, b"r" * 32)
    again = attested(world, asked, quorum=1)
    with pytest.raises(Tampered, match="has cosigned 10000 entries"):
        await again.check()
    await world.seed(Photo("more", (7,)))
    await world.settle()
    with pytest.raises(Tampered, match="has cosigned 10000 entries"):
        await again.attest()
    asked[0].down = True
    await attested(world, asked, quorum=1).check()


async def test_a_real_witness_and_a_real_authority_vouch_for_an_order(world: Deployment, tmp_path: Path) -> None:
    """End to end over HTTP; then each layer of the bundle is bent in turn."""
    # Witness and authority have this machine's clock, so deeds are given times that are later than theirs.
    world.clock.now = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    key = cosigner.init(tmp_path / "w", "auditor.example/w1")
    authority = Authority.found(tmp_path / "tsa")
    served = application(cosigner.Cosigner(tmp_path / "w", [log_key(world)]))
    async with listening(served) as witness_url, listening(authority.application()) as authority_url:
        asked = [HttpWitness(witness_url, key, timeout_seconds=60)]
        attest = attested(world, asked, 1, HttpTimestamper(authority_url, timeout_seconds=60))
        await world.seed(*album(1))
        order = world.order(STUDIO)
        await carried_out(world, attest, order)
        await world.approve(order)
        await carried_out(world, attest)
    assert not world.left(PHOTOS)
    files = await bundle(world, order)
    assert authority.verifies(files[attestation.STAMP], files["log/checkpoint"])
    (earlier,) = [path for path in files if path.startswith("log/checkpoints/")]
    size = earlier.rpartition("/")[2]
    stamp = f"log/timestamps/{size}.tsr"
    assert authority.verifies(files[stamp], files[earlier])
    assert world.tiles.read(f"checkpoints/{size}.tsr") == files[stamp]
    trust = pinning(world, asked, timestamp_authorities=(authority.root,))
    other = Authority.found(tmp_path / "other", "other")

    def check(changes: dict[str, bytes | None], trust: Trust = trust) -> Report:
        changed = {path: data for path, data in (files | changes).items() if data is not None}
        return verification.verify(changed, trust)

    whole = check({})
    assert whole.ok, list(whole.lines())
    assert "time-stamped" in whole.steps[1].detail
    failed(check({attestation.STAMP: None}), attestation.STAMP, "expected a time stamp by a pinned authority, got none")
    failed(check({attestation.STAMP: files[stamp]}), attestation.STAMP, "expected a good time stamp")
    failed(check({stamp: files[attestation.STAMP]}), stamp, "expected a good time stamp")
    wrong = pinning(world, asked, timestamp_authorities=(other.root,))
    failed(check({}, wrong), attestation.STAMP, "expected a good time stamp")
    consistency = f"log/consistency/{size}"
    failed(check({consistency: b""}), consistency, "of the same log")
    failed(check({consistency: None}), consistency, "expected this file")
    only_witness = pinning(world, asked)
    assert check({}, only_witness).ok
    failed(
        check({earlier: None, consistency: None, stamp: None}, only_witness), "log/checkpoints", "before the first deed"
    )
    bare = b"".join(files[earlier].splitlines(keepends=True)[:5])
    failed(check({earlier: bare}, only_witness), "log/checkpoints", "before the first deed")


async def test_an_authority_that_is_down_holds_up_orders_only(world: Deployment) -> None:
    class Down:
        async def stamp(self, data: bytes) -> bytes:  # noqa: ARG002 - the port's
            raise Retryable

    attest = attested(world, [], 0, Down())
    await world.seed(*album(1), *album(2))
    order, deletion = world.order(request.ByList(subjects=(subject(2),))), world.deletion(1)
    await carried_out(world, attest, order, deletion)
    await world.approve(order)
    world.clock.pass_(seconds=3)
    await carried_out(world, attest)
    assert world.left(PHOTOS) == {f"p2-{n}.bin" for n in range(4)}
    assert len(world.logged(statement.ScopeUnwitnessed)) == 1


async def test_a_turn_does_not_wait_for_a_witness_that_does_not_answer(world: Deployment) -> None:
    """The coordinator's own loops: requests go on while the witness keeps its mouth shut."""
    (inner,) = witnesses(world, 1)
    asking, answer = asyncio.Event(), asyncio.Event()

    class Silent:
        key = inner.key

        async def cosign(self, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes | WitnessAt:
            asking.set()
            await answer.wait()
            return await inner.cosign(old_size, proof, note)

    attested(world, [Silent()], quorum=1)
    await world.seed(*album(1))
    attesting = asyncio.ensure_future(world.coordinator.attesting())
    await world.settle()
    await asyncio.wait_for(asking.wait(), 60)
    deletion = world.deletion(1)
    world.ask(deletion)
    await world.settle()
    world.clock.pass_(seconds=3)
    await world.settle()
    assert world.result(deletion) == "complete"
    assert len(world.logged(statement.ScopeUnwitnessed)) == 1
    world.coordinator.wake.clear()
    answer.set()
    await asyncio.wait_for(world.coordinator.wake.wait(), 60)
    attesting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attesting


async def test_a_restored_log_stops_the_coordinator_before_it_seals_or_signs(world: Deployment) -> None:
    await world.seed(*album(1))
    await world.settle()
    world.sql("alter table log_entry disable trigger log_entry_immutable")
    world.sql("delete from log_entry where index > 0")
    world.sql("delete from log_checkpoint")
    world.sql("update log_head set next = 1")
    await world.take(world.deletion(1))
    files = dict(world.tiles.files)
    with pytest.raises(Tampered, match="expunge log recover"):
        await world.coordinator.run()
    assert world.sql("select count(*) from sweep") == [(0,)]
    assert world.tiles.files == files


async def test_a_witness_that_does_not_answer_is_measured(world: Deployment) -> None:
    """What the alert ExpungeUnattested sees: the age of what nobody vouched for, and which witness is silent."""
    (asked,) = witnesses(world, 1)
    attest = attested(world, [asked], quorum=1)
    silent = WITNESS_ANSWERS.labels(asked.key.name, "silent")
    before = silent._value.get()
    asked.down = True
    await world.seed(*album(1))
    world.ask(world.deletion(1))
    await world.settle()
    assert not await attest.attest()
    assert silent._value.get() > before
    world.sql("update log_checkpoint set made_at = made_at - interval '1 hour'")
    async with world.ledger.transaction() as tx:
        await set_gauges(tx)
    assert 3600 <= UNATTESTED._value.get() < 7200
    asked.down = False
    assert await attest.attest()
    async with world.ledger.transaction() as tx:
        await set_gauges(tx)
    assert UNATTESTED._value.get() == 0
