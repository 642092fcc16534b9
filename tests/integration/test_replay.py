"""Replay and audit against a real PostgreSQL: the log's files against the rows, and every difference by its name."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from datetime import date
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from expunge import replay
from expunge.adapters.keys.memory import MemoryKeys
from expunge.adapters.ledger.postgres import PostgresLedger, migrate
from expunge.adapters.log.memory import MemoryTiles
from expunge.adapters.sealed.memory import MemorySealed
from expunge.domain import certificate, folded, merkle, scopefile, statement, tiles
from expunge.domain.dsse import parse
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.events import AuditFailed, AuditPassed
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.statement import Predicate, Scope
from expunge.domain.trust import Trust
from expunge.domain.words import Outcome
from expunge.replay import Replayed
from expunge.stages.audit import Audit
from tests.evidence import START, SWEEP, Log, Synthetic, batch, request_id, sign, trust

DAY = date(2026, 3, 1)


def publish(log: Log, old: int = 0, store: MemoryTiles | None = None) -> MemoryTiles:
    """The log's files, as prove writes them."""
    store = store or MemoryTiles()
    size = len(log.entries)
    files = dict(tiles.extend(old, log.hashes()[old * 32 :], store.files.__getitem__))
    files |= {one.path: tiles.bundle_bytes(log.entries[one.start : one.end]) for one in tiles.new_bundles(old, size)}
    store.write(files | {"checkpoint": log.checkpoint()})
    return store


def sealed_scope(built: Synthetic, keys: MemoryKeys, store: MemorySealed) -> Scope:
    """Write the sweep's scope file; the scope that names it."""
    key = derive_key(keys.bucket(DAY, create=True), "sweep", UUID(SWEEP).bytes)
    bodies = [certificate.body_bytes(claim) for claim in built.claims]
    drawn = nonces(derive_key(key, "requests"), len(bodies))
    leaves = [certificate.leaf(drawn[at * 16 : at * 16 + 16], body) for at, body in enumerate(bodies)]
    columns = {"requests": b"".join(UUID(claim.request).bytes for claim in built.claims)}
    for tree in range(len(built.trees)):
        indices = [list(one.indices.get(tree, ())) for one in built.asked]
        flat = [index for one in indices for index in one]
        offsets = [sum(map(len, indices[:number])) for number in range(len(indices) + 1)]
        columns[f"indices/{tree}"] = struct.pack(f"<{len(flat)}I", *flat)
        columns[f"offsets/{tree}"] = struct.pack(f"<{len(offsets)}Q", *offsets)
    sections = [
        ("claims", scopefile.pack_columns(columns)),
        ("requests", scopefile.pack_columns({"bodies": scopefile.pack_strings([one.decode() for one in bodies])})),
    ]
    digest = store.write(f"{SWEEP}.scope", scopefile.blocks({"sweep": SWEEP, "bucket": DAY.isoformat()}, sections, key))
    root = merkle.root(b"".join(map(merkle.leaf_hash, leaves)))
    return built.scope.model_copy(update={"file": digest.hex(), "requests_root": root.hex()})


class Deployment:
    """A synthetic sweep in log files, rows, scope file and keys, all agreeing until a test bends one."""

    def __init__(self, dsn: str, ledger: PostgresLedger) -> None:
        self.dsn = dsn
        self.ledger = ledger
        self.keys = MemoryKeys()
        self.sealed = MemorySealed()
        self.built = Synthetic(outcomes={(0, 1): Outcome.FAILED}, models=(("face@1", "replaced"), ("door@1", "open")))
        self.built.scope = sealed_scope(self.built, self.keys, self.sealed)
        self.built._last.clear()
        self.built.order = lambda entries: entries[:-1]
        self.built.build()
        self.trust: Trust = trust()
        self.tiles = publish(self.built.log)
        self.put_entries(0)
        self._put_sweep()

    def put_entries(self, first: int) -> None:
        with psycopg.connect(self.dsn) as connection:
            for index, entry in enumerate(self.built.log.entries[first:], start=first):
                kind = statement.parse(parse(entry).payload).predicate.type
                connection.execute(
                    "insert into log_entry (index, leaf_hash, predicate, entry) values (%s, %s, %s, %s)",
                    (index, merkle.leaf_hash(entry), kind, entry),
                )
            connection.execute("update log_head set next = %s", (len(self.built.log.entries),))
            connection.execute(
                "insert into log_checkpoint values (%s, %s, %s)",
                (len(self.built.log.entries), merkle.root(self.built.log.hashes()), self.built.log.checkpoint()),
            )

    def _put_sweep(self) -> None:
        scope = self.built.scope
        described = json.dumps([tree.model_dump(mode="json") for tree in scope.trees])
        with psycopg.connect(self.dsn) as connection:
            connection.execute(
                """insert into sweep (sweep_id, class, state, bucket, requests, images, leaves, trees, scope_digest,
                    scope_envelope, scope_index, file_digest, ordinals, sealed_at)
                values (%s, 'people', 'done', %s, 3, 11, 3550, %s, %s, '', 1, '', '', now())""",
                (SWEEP, DAY, described, bytes.fromhex(self.built.scope_digest)),
            )
            connection.execute(
                "insert into round (sweep_id, round, provision, requests, envelope, log_index, file_digest, at)"
                " values (%s, 0, 'data', 3, '', %s, '', now())",
                (SWEEP, self.built.names.index("completion")),
            )
            connection.execute("insert into purpose values (0, 'training')")
            for name, status in (("face@1", "replaced"), ("door@1", "remediating"), ("new@1", "clean")):
                connection.execute(
                    """insert into model (name, purpose_bit, status, weights_digest, metrics, manifest, at)
                    values (%s, 0, %s, '', '{}', '{}', now())""",
                    (name, status),
                )
            for number, result in enumerate(("partial", "complete", None)):
                connection.execute(
                    """insert into request (request_id, type, class, state, purposes, regulation, body, body_digest, key_id,
                        nonce, accepted_at, due, bucket, sweep_id, leaf, data_result)
                    values (%s, '', 'people', 'planned', -1, '', '', '', 'k', %s, now(), now(), %s, %s, %s, %s)""",
                    (request_id(number), str(number), DAY, SWEEP, number, result),
                )

    def run(self, sql: str, *values: object) -> None:
        """Change rows that nothing but an intruder would change."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("set session_replication_role = replica")  # not even triggers stop a superuser
            connection.execute(sql.encode(), values)

    def replayed(self, until: int | None = None) -> Replayed:
        return replay.replay(self.tiles, self.trust, until=until)

    async def differences(self) -> list[tuple[str, str]]:
        replayed = self.replayed()
        opened = replay.sealed(replayed.state, self.sealed, self.keys)
        return [(one.kind, one.what) for one in await replay.compare(replayed, self.ledger, opened)]

    def audit(self) -> Audit:
        return Audit(ledger=self.ledger, tiles=self.tiles, trust=self.trust, clock=lambda: START)


@pytest_asyncio.fixture
async def live(database: str) -> AsyncIterator[Deployment]:
    migrate(database)
    ledger = PostgresLedger(database)
    await ledger.open()
    yield await asyncio.to_thread(Deployment, database, ledger)
    await ledger.close()


async def test_public_and_sealed_state_agree(live: Deployment) -> None:
    assert await live.differences() == []


async def test_progress_is_told_and_a_position_can_be_chosen(live: Deployment) -> None:
    told: list[tuple[int, int]] = []
    whole = replay.replay(live.tiles, live.trust, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (whole.checkpoint.size, whole.checkpoint.size)
    early = live.replayed(until=2)
    assert early.state.size == 2
    assert not early.state.sweeps[SWEEP].rounds


async def test_a_run_that_was_ended_goes_on_where_it_stopped(live: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SAVE_ENTRIES", 2)
    whole, saved = live.replayed(), list[bytes]()
    assert replay.replay(live.tiles, live.trust, save=lambda one: saved.append(folded.dump(one))) == whole
    assert len(saved) > 5
    for data in saved:
        seen: dict[int, Predicate] = {}
        early = folded.load(data)
        size = early.state.size
        assert replay.replay(live.tiles, live.trust, resume=early, observe=seen.__setitem__) == whole
        assert list(seen) == list(range(size, whole.checkpoint.size))


async def test_a_saved_state_of_another_log_policy_or_position_is_refused(live: Deployment) -> None:
    saved: list[bytes] = []
    replay.replay(live.tiles, live.trust, until=4, save=lambda one: saved.append(folded.dump(one)))
    with pytest.raises(Rejected, match="another"):
        replay.replay(live.tiles, live.trust, until=3, resume=folded.load(saved[0]))
    fewer = trust(log_key=live.trust.log_key, keys=live.trust.keys[1:])
    with pytest.raises(Rejected, match="another"):
        replay.replay(live.tiles, fewer, resume=folded.load(saved[0]))
    # The log was rewritten under what had been read: its root does not follow from it any more.
    entries = live.built.log.entries
    live.built.log.entries = [*entries[1:2], *entries[:1], *entries[2:]]
    live.tiles = publish(live.built.log)
    with pytest.raises(Tampered, match="checkpoint's root"):
        replay.replay(live.tiles, live.trust, resume=folded.load(saved[0]))


Bend = tuple[str, list[tuple[str, str]]]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("update log_entry set entry = entry || 'x' where index = 3", [("log-entry", "index 3")]),
        ("update log_entry set leaf_hash = sha256('x') where index = 3", [("log-row", "index 3")]),
        ("delete from log_entry where index = 5", [("log-row", "index 5"), ("log-entry", "index 5")]),
        ("delete from log_entry", [("log-row", "index 0"), ("log-entry", "index 0")]),
        ("update sweep set scope_index = 2", [("sweep-scope", f"sweep {SWEEP}")]),
        ("update sweep set scope_digest = sha256('x')", [("sweep-scope", f"sweep {SWEEP}")]),
        ("update sweep set images = 12", [("sweep-counts", f"sweep {SWEEP}")]),
        ("update sweep set trees = '[]'", [("sweep-counts", f"sweep {SWEEP}")]),
        ("update round set requests = 4", [("round", f"sweep {SWEEP} round 0")]),
        ("delete from round", [("round", f"sweep {SWEEP} round 0")]),
        ("update model set status = 'clean' where name = 'face@1'", [("model-status", "model face@1")]),
        ("update model set status = 'clean' where name = 'door@1'", [("model-status", "model door@1")]),
        ("update model set status = 'tainted' where name = 'new@1'", [("model-status", "model new@1")]),
        ("update model set metric_void = true where name = 'new@1'", [("model-metric", "model new@1")]),
        ("delete from model where name = 'door@1'", [("model-missing", "model door@1")]),
        (
            "update request set data_result = 'complete' where leaf = 0",
            [("request-result", f"request {request_id(0)}")],
        ),
        ("delete from request where leaf = 1", [("request-missing", f"request {request_id(1)} in the database")]),
        (
            f"update request set request_id = '{SWEEP}' where leaf = 2",
            [
                ("request-missing", f"request {SWEEP} in the scope file"),
                ("request-missing", f"request {request_id(2)} in the database"),
            ],
        ),
    ],
)
async def test_a_changed_row_is_found_and_named(live: Deployment, sql: str, expected: list[tuple[str, str]]) -> None:
    live.run(sql)
    found = await live.differences()
    assert sorted(found) == sorted(expected)


async def test_a_sweep_on_one_side_only_is_found(live: Deployment) -> None:
    live.run("update sweep set sweep_id = %s", request_id(9))
    kinds = [kind for kind, what in await live.differences() if kind == "sweep-missing"]
    assert len(kinds) == 2


async def test_a_void_sweep_that_lives_on_is_found(live: Deployment) -> None:
    void = statement.ScopeVoid(sweep=SWEEP, scope=live.built.scope_digest, reason="cancelled", at=START)
    await grow(live, sign(void))
    assert ("sweep-state", f"sweep {SWEEP}") in await live.differences()


async def grow(live: Deployment, *entries: bytes) -> None:
    old = len(live.built.log.entries)
    live.built.log.entries += entries
    publish(live.built.log, old, live.tiles)
    live.put_entries(old)


async def test_rows_ahead_of_the_log_are_not_differences(live: Deployment) -> None:
    live.run("update log_head set next = next + 1")
    live.run("update model set status = 'tainted' where name = 'new@1'")
    assert await live.differences() == []


async def test_a_destroyed_key_is_agreement_and_is_named(live: Deployment) -> None:
    live.keys.destroy(DAY)
    live.run("update request set data_result = 'complete' where leaf = 0")  # nobody can tell any more
    assert await live.differences() == []
    opened = replay.sealed(live.replayed().state, live.sealed, live.keys)
    assert opened.closed == {SWEEP}


async def test_a_missing_key_is_no_agreement(live: Deployment) -> None:
    with pytest.raises(Rejected) as raised:
        replay.sealed(live.replayed().state, live.sealed, MemoryKeys())
    assert raised.value.code == "no-key"


async def test_a_scope_file_that_is_gone_or_changed_is_found(live: Deployment) -> None:
    name = f"{SWEEP}.scope"
    data = live.sealed.files.pop(name)
    assert await live.differences() == [("scope-file-missing", f"sweep {SWEEP}")]
    live.sealed.files[name] = data[:-1] + b"x"
    with pytest.raises(Tampered, match="digest is in the scope"):
        await live.differences()


@pytest.mark.parametrize(
    "header", [b"", b"EXPSCOPE", scopefile.write({}, [], bytes(32)), scopefile.write({"bucket": "x"}, [], bytes(32))]
)
def test_a_header_without_a_bucket_is_refused(header: bytes) -> None:
    with pytest.raises(Tampered, match="names a bucket"):
        replay.bucket_of(header, "x")


async def test_claims_that_are_not_the_scopes_are_found(live: Deployment) -> None:
    state = live.replayed().state
    sweep = state.sweeps[SWEEP]
    other = live.built.claims[0].model_copy(update={"images": 99})
    for number, claims in enumerate(([other, *live.built.claims[1:]], live.built.claims)):
        store = MemorySealed()
        live.built.claims = list(claims)
        if number:
            live.built.asked = [*live.built.asked[1:], live.built.asked[0]]
        scope = sealed_scope(live.built, live.keys, store)
        named = {"file": scope.file} if not number else {"file": scope.file, "requests_root": scope.requests_root}
        sweep.scope = sweep.scope.model_copy(update=named)
        with pytest.raises(Tampered, match="hash to the scope's root" if not number else "indices of claim 0"):
            replay.sealed(state, store, live.keys)


async def test_the_state_goes_into_an_empty_database_only(live: Deployment, postgres_server: object) -> None:
    replayed = live.replayed()
    opened = replay.sealed(replayed.state, live.sealed, live.keys)
    with pytest.raises(Rejected) as raised:
        await replay.store(replayed, live.ledger, opened)
    assert raised.value.code == "not-empty"
    live.run("create schema fresh")
    into = PostgresLedger(f"{live.dsn} options='-c search_path=fresh'")
    await into.open()
    await replay.store(replayed, into, opened)
    await into.close()
    with psycopg.connect(live.dsn) as connection:
        assert connection.execute("select size from fresh.replay_head").fetchall() == [(replayed.checkpoint.size,)]
        coverage = connection.execute(
            "select outcome, leaves from fresh.replay_coverage where tree = 0 and step = 'absence' order by outcome"
        ).fetchall()
        assert coverage == [(Outcome.GONE, 2049), (Outcome.FAILED, 1)]
        results = connection.execute("select data_result from fresh.replay_result order by request_id").fetchall()
        assert results == [("partial",), ("complete",), ("complete",)]
        models = connection.execute("select name, status from fresh.replay_model order by name").fetchall()
        assert models == [("door@1", "tainted"), ("face@1", "replaced")]


# The log itself


Break = Callable[[MemoryTiles], object]


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda store: store.files.pop("checkpoint"), "checkpoint"),
        (lambda store: store.files.update(checkpoint=b"junk"), "checkpoint"),
        (lambda store: [store.files.pop(path) for path in list(store.files) if path.startswith("tile/0")], "tile/0"),
        (lambda store: [store.files.pop(path) for path in list(store.files) if "entries" in path], "tile/entries"),
        (
            lambda store: store.files.update(
                {p: b"x" * len(d) for p, d in store.files.items() if p.startswith("tile/0")}
            ),
            "tile/0",
        ),
        (lambda store: store.files.update({p: d[:-1] + b"x" for p, d in store.files.items() if "entries" in p}), "log"),
    ],
)
async def test_a_log_whose_files_changed_does_not_replay(live: Deployment, spoil: Break, where: str) -> None:
    spoil(live.tiles)
    with pytest.raises(Tampered) as raised:
        live.replayed()
    assert raised.value.where.startswith(where)


async def test_a_partial_tile_may_be_gone_once_the_full_one_is_there(live: Deployment) -> None:
    hashes = live.built.log.hashes()
    full = hashes + bytes(32 * 256 - len(hashes))
    store = {"tile/0/000": full}
    replay.check_tiles(hashes, store.__getitem__)


async def test_an_entry_that_nobody_signed_does_not_replay(live: Deployment) -> None:
    live.built.log.entries.append(b"no envelope")
    publish(live.built.log, len(live.built.log.entries) - 1, live.tiles)
    with pytest.raises(Tampered, match="expected"):
        live.replayed()


async def test_public_state_alone_can_be_compared(live: Deployment) -> None:
    live.run("update request set data_result = 'complete' where leaf = 0")
    assert await replay.compare(live.replayed(), live.ledger) == []


# Audit


async def outbox(live: Deployment) -> list[str]:
    with psycopg.connect(live.dsn) as connection:
        return [json.loads(row[0])["type"] for row in connection.execute("select value from outbox order by id")]


async def test_an_audit_passes_once_and_again_for_what_is_new(live: Deployment) -> None:
    size = len(live.built.log.entries)
    assert await live.audit().run() == AuditPassed(size=size, at=START)
    assert await live.audit().run() is None
    later = batch().model_copy(update={"batch": request_id(8)})
    await grow(live, sign(later))
    assert await live.audit().run() == AuditPassed(size=size + 1, at=START)


async def test_a_log_without_a_checkpoint_is_not_audited_yet(live: Deployment) -> None:
    live.tiles.files.clear()
    assert await live.audit().run() is None


async def failing(live: Deployment, difference: str) -> None:
    found = await live.audit().run()
    assert isinstance(found, AuditFailed)
    assert found.difference == difference


async def test_what_an_audit_finds_is_named(live: Deployment) -> None:
    good = dict(live.tiles.files)
    live.tiles.files["checkpoint"] = b"junk"
    await failing(live, "checkpoint")
    live.tiles.files = {path: data for path, data in good.items() if "entries" not in path}
    await failing(live, "entries")
    live.tiles.files = good
    live.run("update log_entry set entry = entry || 'x' where index = 3")
    await failing(live, "rows")
    live.trust = trust(log_key=live.trust.log_key, keys=live.trust.keys[1:])
    await failing(live, "signature")
    kinds = {type(await live.audit().run()).__name__}
    assert kinds == {"AuditFailed"}


async def test_a_log_that_shrank_or_was_rewritten_since_the_last_audit_is_found(live: Deployment) -> None:
    assert isinstance(await live.audit().run(), AuditPassed)
    entries = list(live.built.log.entries)
    live.built.log.entries = entries[:-1]
    live.tiles.files = publish(live.built.log).files
    await failing(live, "shrunk")
    live.built.log.entries = [*entries[:-1], entries[0]]
    live.tiles.files = publish(live.built.log).files
    await failing(live, "root")
    again = sign(batch().model_copy(update={"batch": request_id(8)}))
    live.built.log.entries = [*entries[:-1], entries[0], again]
    live.tiles.files = publish(live.built.log).files
    await failing(live, "root")
