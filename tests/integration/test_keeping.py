"""Keys that come and go: destroyed buckets, disclosed orders, and the log that says so."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID

import pyrage
import pytest

from expunge import keeping
from expunge import replay as replays
from expunge.adapters.disclosure import age
from expunge.cli import app
from expunge.domain import bundle, disclosure, evidence, merkle, opening, statement, trust
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.leaf import derive_key, nonces, pack_leaves
from expunge.domain.request import BySource
from expunge.domain.scopefile import ScopeFile, unpack_columns
from expunge.domain.statement import KeyDestroyed, KeyEvent
from expunge.domain.words import Kind, Provision, Role
from expunge.openings import Wanted
from expunge.stages.certify import destroy_bucket
from expunge.verify import write_bundle
from tests.coordination import ANN, BOB, START, Deployment, album, deployed, digest

DAY = START.date()


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


async def deleted(world: Deployment, person: int = 1) -> UUID:
    await world.seed(*(replace(photo, hashed=True) for photo in (*album(1), *album(2))))
    asked = world.deletion(person)
    world.ask(asked)
    await world.settle()
    return UUID(asked.id)


async def destroyed(world: Deployment, day: date = DAY) -> int:
    async with world.ledger.transaction() as tx:
        return await destroy_bucket(tx, world.keys, world._signers[Role.CERTIFIER, None], day, at=world.clock())


def left_behind(world: Deployment) -> Iterator[bytes]:
    """Every byte that the deployment keeps but the key store: sealed files, log, messages, worker files, every row."""
    yield from world.sealed.files.values()
    yield from world.tiles.files.values()
    yield from (one.value for one in world.broker.published)
    yield from (path.read_bytes() for path in world.directory.rglob("*") if path.is_file())
    tables = world.sql("select format('%%I.%%I', schemaname, tablename) from pg_tables where schemaname = 'public'")
    for (table,) in tables:
        for row in world.sql(f"select * from {table}"):
            for value in row:
                yield bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()


async def test_after_key_destruction_no_leaf_opens_from_anything_left(world: Deployment) -> None:
    request = await deleted(world)
    ((sweep,),) = world.sql("select sweep_id from sweep")
    key = derive_key(world.keys.bucket(DAY), "sweep", sweep.bytes)
    (scope,) = world.logged(statement.Scope)
    tree = 0
    while scope.trees[tree].kind is not Kind.IMAGE:
        tree += 1
    columns = unpack_columns(ScopeFile.open(world.sealed.open(f"{sweep}.scope"), key).section(f"{tree}/0"))
    nonce_key = derive_key(key, "nonces", tree.to_bytes(2, "big"))
    nonce = nonces(nonce_key, 1)
    artifact, taken, hashed = columns["artifact_id"][:6], columns["digest"][:32], columns["hashes"][:32]
    assert merkle.leaf_hash(pack_leaves(nonce, artifact, taken)) == hashed
    assert taken.hex() in {digest(f"p1-{number}") for number in range(4)}
    receipt = await world.reader.receipt(request, Wanted(taken.hex()))
    files = await world.reader.certificate(request, Provision.DATA)
    secrets = (world.keys.bucket(DAY), key, nonce_key, nonce)

    world.clock.pass_(days=1)
    index = await destroyed(world)
    await world.settle()

    left = list(left_behind(world))
    assert sum(map(len, left)) > 20_000
    for data in left:
        assert not [secret for secret in secrets if secret in data or secret.hex().encode() in data]
        for at in range(len(data) - 15):  # whoever holds the photo, and knows its id, tries every 16 bytes as the nonce
            assert merkle.leaf_hash(data[at : at + 16] + artifact + taken) != hashed
    for call in (
        lambda: world.reader.certificate(request, Provision.DATA),
        lambda: world.reader.receipt(request, Wanted(taken.hex())),
    ):
        with pytest.raises(Rejected, match="destroyed"):
            await call()
    with pytest.raises(Tampered):
        ScopeFile.open(world.sealed.open(f"{sweep}.scope"), derive_key(b"p" * 32, "sweep", sweep.bytes))
    # What was given out still verifies.
    assert opening.verify(receipt, world.trust, sweep=files).ok
    found = replays.replay(world.tiles, world.trust)
    assert found.state.destroyed == {DAY: index}
    opened = replays.sealed(found.state, world.sealed, world.keys)
    assert opened.closed == {str(sweep)}
    assert await replays.compare(found, world.ledger, opened) == []


async def test_a_bucket_waits_for_its_requests_and_its_day(world: Deployment) -> None:
    await world.seed(*album(1))
    with pytest.raises(Rejected, match="a day that is over"):
        await destroyed(world)
    await world.trained("face@1", album(1))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    assert world.state(asked) == "data-certified"
    world.clock.pass_(days=2)
    with pytest.raises(Rejected, match="2 still need its key"):
        await destroyed(world)
    async with world.ledger.transaction() as tx:
        assert await world.certify.destroy_buckets(DAY + timedelta(days=1), tx) == []
    assert world.keys.bucket(DAY)


async def test_the_schedule_destroys_each_bucket_once(world: Deployment) -> None:
    await deleted(world)
    world.coordinator.key_retention = timedelta(days=3)
    world.clock.pass_(days=2)
    await world.coordinator.upkeep()
    assert world.keys.bucket(DAY)
    world.clock.pass_(days=5)
    for _ in range(2):
        world.coordinator._destroyed = float("-inf")
        await world.coordinator.upkeep()
    with pytest.raises(Rejected, match="destroyed"):
        world.keys.bucket(DAY)
    (said,) = world.logged(KeyDestroyed)
    assert (said.bucket, said.at.microsecond) == (DAY, 0)
    assert await destroyed(world) == await destroyed(world)


async def test_key_events_are_in_the_log_and_anyone_can_replay_past_them(world: Deployment) -> None:
    await deleted(world)
    said = KeyEvent(
        event="revoked", role=Role.EXECUTOR, store="photos", key_id="1" * 64, since=START, at=statement.instant(START)
    )
    await keeping.log_events(world.ledger, world._signers[Role.CERTIFIER, None], [said, said])
    await world.settle()
    assert world.logged(KeyEvent) == [said]
    assert replays.replay(world.tiles, world.trust).state.size


async def test_an_order_is_disclosed_to_its_regulator_and_to_nobody_else(
    world: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await world.seed(*album(1), *album(2))
    order = world.order(BySource(source="studio"))
    world.ask(order)
    await world.settle()
    for approver in (ANN, BOB):
        await world.take(world.approval(order), by=approver)
    await world.settle()
    request = UUID(order.id)
    files = await world.reader.certificate(request, Provision.DATA)
    made = await keeping.disclose(world.ledger, world.keys, world.sealed, request, issuer="Acme Ltd")
    regulator, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    box = age.encrypt(made.plain, str(regulator.to_public()))
    assert made.plain not in box
    with pytest.raises(Rejected, match="identity"):
        age.decrypt(box, str(other))
    with pytest.raises(Rejected, match="age recipient"):
        age.encrypt(b"", "age1nobody")
    assert age.decrypt(box, f"# a comment\n{regulator}\n") == made.plain

    scope = evidence.scope_of(bundle.load(files), world.trust)
    opened = list(disclosure.openings(disclosure.parse(made.plain), made.scope_file, scope))
    assert len(opened) == sum(tree.leaves for tree in scope.trees) == 32
    assert {one.locator for one in opened} == {f"p{person}-{n}.bin" for person in (1, 2) for n in range(4)}

    folder = tmp_path / "disclosed"
    write_bundle({"disclosure.age": box, f"{made.sweep}.scope": bytes(made.scope_file)}, folder)
    write_bundle(files, tmp_path / "bundle.zip")
    (tmp_path / "trust.json").write_bytes(trust.dump(world.trust))
    (tmp_path / "identity").touch(mode=0o600)
    (tmp_path / "identity").write_text(str(regulator))
    listing = tmp_path / "listing.csv"
    command = ["disclosed", str(folder), "--identity", str(tmp_path / "identity"), "--csv", str(listing)]
    beside = ["--bundle", str(tmp_path / "bundle.zip"), "--trust", str(tmp_path / "trust.json")]
    assert app.main([*command, *beside]) == 0
    assert "8 leaves open and hash to the root in the scope" in capsys.readouterr().out
    with listing.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 32


async def test_a_person_sweep_is_never_disclosed_and_a_wrong_file_is_found(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked = [world.deletion(1), world.deletion(2)]
    world.ask(*asked)
    await world.settle()
    request = UUID(asked[0].id)
    with pytest.raises(Rejected, match="would open 2 requests"):
        await keeping.disclose(world.ledger, world.keys, world.sealed, request, issuer="Acme Ltd")
    with pytest.raises(Rejected, match="none of this id"):
        await keeping.disclose(world.ledger, world.keys, world.sealed, UUID(int=1), issuer="Acme Ltd")
    ((sweep, bucket, scope_digest, file),) = world.sql("select sweep_id, bucket, scope_digest, file_digest from sweep")
    key = derive_key(world.keys.bucket(bucket), "sweep", sweep.bytes)
    made = disclosure.Disclosure(
        issuer="x", sweep=str(sweep), scope=bytes(scope_digest).hex(), file=bytes(file).hex(), key=key.hex()
    )
    files = await world.reader.certificate(request, Provision.DATA)
    scope = evidence.scope_of(bundle.load(files), world.trust)
    buffer = world.sealed.open(f"{sweep}.scope")
    trees = (scope.trees[0].model_copy(update={"root": "0" * 64}), *scope.trees[1:])
    with pytest.raises(Tampered, match="root in the scope"):
        list(disclosure.openings(made, buffer, scope.model_copy(update={"trees": trees})))
    with pytest.raises(Tampered, match="scope statement names"):
        list(disclosure.openings(made, bytes(buffer) + b"x", scope))
    with pytest.raises(Tampered, match="another key"):
        list(disclosure.openings(made.model_copy(update={"key": "0" * 64}), buffer, scope))
