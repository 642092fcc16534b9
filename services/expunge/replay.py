"""Replay: the log's files become state again, in memory or in an empty database, and are compared with the live system.

Needs the log and the verifier's policy for public state, and scope files and keys for sealed state; reads everything,
changes nothing but the database it is given. Three classes of state: ARCHITECTURE.md section 4 point 10.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Final, TypeAlias
from uuid import UUID

from expunge.domain import canonical, dsse, evidence, merkle, note, statement, tiles
from expunge.domain import replay as fold
from expunge.domain.certificate import Claim, leaf, result_of
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.folded import Folded
from expunge.domain.leaf import NONCE_BYTES, derive_key, nonces
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.replay import State, SweepState
from expunge.domain.scopefile import ScopeFile, unpack_columns, unpack_strings
from expunge.domain.trust import Trust
from expunge.domain.trust import dump as dump_policy
from expunge.domain.words import ModelStatus, Outcome, Provision
from expunge.ports import KeyStore, Ledger, SealedStore, TileStore, Tx

AsyncDifferences: TypeAlias = "AsyncIterator[Difference]"
Progress = Callable[[int, int], None]
"""Told entries done and entries in all, now and then."""
Observer = Callable[[int, "statement.Predicate"], None]
"""Told each statement with its log index, verified and folded, in order."""

PROGRESS_ENTRIES: Final = 1024
SAVE_ENTRIES: Final = 1 << 16
"""How often a state is offered for saving: seconds of work."""
PAGE: Final = 10_000
"""Log rows compared at once."""

_HEADER: Final = struct.Struct("<8sHI")


@dataclass(frozen=True, slots=True)
class Replayed:
    """A log that verified. `hashes`: its leaf hashes, 32 bytes each; `state`: folded from entries [0, state.size)."""

    checkpoint: note.Checkpoint
    hashes: bytes
    state: State


@dataclass(frozen=True, slots=True)
class Sealed:
    """What scope files and keys open. `results`: by sweep and request, outcome counts of the request's artifacts (None:
    not all rescanned yet); `closed`: sweeps whose key was destroyed on schedule; `missing`: sweeps whose file is not
    there though its key is not known to be destroyed."""

    results: Mapping[tuple[str, str], Counter[Outcome] | None]
    closed: frozenset[str]
    missing: frozenset[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the live system and the log differ: its kind (a reason code), and which one."""

    kind: str
    what: str


def replay(
    store: TileStore,
    trust: Trust,
    *,
    until: int | None = None,
    progress: Progress = lambda _done, _all: None,
    observe: Observer = lambda _index, _predicate: None,
    resume: Folded | None = None,
    save: Callable[[Folded], None] | None = None,
) -> Replayed:
    """Verify the log and fold it. Blocking. `until`: fold only that many entries (all are hashed). `resume`: what an
    earlier run saved, whose entries are neither read nor observed again; `save`: given the state now and then.

    1. checkpoint: signature and origin, 2. entries hash to its root and to every tile, 3. each statement is
    signed under its role, 4. fold. Raises `Tampered` at the first thing that is wrong; `Rejected("other-replay")` where
    `resume` is of another log or policy, or beyond `until`.
    """
    fetch = tiles.fetcher(store.read)
    policy = hashlib.sha256(dump_policy(trust)).hexdigest()
    # 1
    checkpoint = open_checkpoint(store, trust)
    end = checkpoint.size if until is None else min(until, checkpoint.size)
    done = resume or Folded(trust.origin, policy, State(), b"")
    if (done.origin, done.policy) != (trust.origin, policy) or done.state.size > end:
        raise Rejected("other-replay", f"expected a state of this log and policy within {end} entries, got another")
    # 2
    state, start = done.state, done.state.size
    added = b"".join(merkle.leaf_hash(entry) for _, entry in fold.entries(start, checkpoint.size, fetch))
    hashes = done.hashes + added
    if merkle.root(hashes) != checkpoint.root:
        raise Tampered("log", "expected entries that hash to the checkpoint's root, got others")
    check_tiles(hashes, fetch)
    # 3, 4
    for index, entry in islice(fold.entries(start, checkpoint.size, fetch), end - start):
        observe(index, apply(state, index, entry, trust))
        if index % PROGRESS_ENTRIES == 0:
            progress(index, end)
        if save is not None and state.size % SAVE_ENTRIES == 0:
            save(Folded(trust.origin, policy, state, hashes[: state.size * HASH_BYTES]))
    progress(end, end)
    if save is not None:
        save(Folded(trust.origin, policy, state, hashes[: state.size * HASH_BYTES]))
    return Replayed(checkpoint, hashes, state)


def open_checkpoint(store: TileStore, trust: Trust) -> note.Checkpoint:
    """The log's newest checkpoint. Raises `Tampered`, also when there is none."""
    try:
        return note.open_checkpoint(store.read("checkpoint"), trust.log_keys, trust.origin)
    except FileNotFoundError as error:
        raise Tampered("checkpoint", "expected a checkpoint, the log has none") from error
    except Rejected as error:
        raise Tampered("checkpoint", str(error)) from error


def check_tiles(hashes: bytes, fetch: tiles.Fetch) -> None:
    """Check every tile that a log of these entries has. A partial one may be gone once the full one is there."""
    for path, data in tiles.extend(0, hashes, fetch):
        tile = tiles.parse_path(path)
        try:
            stored = fetch(path)
        except LookupError:
            stored = _full(path, fetch)[: len(data)]
        if stored != data:
            raise Tampered(path, f"expected a tile of {tile.width} hashes of the entries, got others")


def _full(path: str, fetch: tiles.Fetch) -> bytes:
    try:
        return fetch(path.partition(".p/")[0])
    except LookupError as error:
        raise Tampered(path, "expected this tile of the log, got none") from error


def apply(state: State, index: int, entry: bytes, trust: Trust) -> statement.Predicate:
    """Verify one log entry and fold it; what it says."""
    where = f"log index {index}"
    try:
        envelope = dsse.parse(entry)
        predicate = statement.parse(envelope.payload).predicate
    except Rejected as error:
        raise Tampered(where, str(error)) from error
    digest = evidence.check_signature(envelope, predicate, trust, fold.scope_time(state, predicate), where, index=index)
    fold.fold(state, index, digest, predicate)
    return predicate


# Sealed state


def sealed(state: State, store: SealedStore, keys: KeyStore) -> Sealed:
    """Open what scope files and keys still open. Blocking. Raises `Tampered` for a file that is not the one in scope,
    or whose claims do not open in it."""
    results: dict[tuple[str, str], Counter[Outcome] | None] = {}
    closed, missing = set(), set()
    for name, sweep in state.sweeps.items():
        try:
            buffer = store.open(f"{name}.scope")
        except FileNotFoundError:
            missing.add(name)
            continue
        if hashlib.sha256(buffer).hexdigest() != sweep.scope.file:
            raise Tampered(f"{name}.scope", "expected the file whose digest is in the scope statement, got another")
        try:
            key = derive_key(keys.bucket(bucket_of(buffer, name)), "sweep", UUID(name).bytes)
        except Rejected as error:
            if error.code != "key-destroyed":
                raise
            closed.add(name)
            continue
        file = ScopeFile.open(buffer, key)
        results |= {(name, request): counts for request, counts in _results(sweep, file, key)}
    return Sealed(results, frozenset(closed), frozenset(missing))


def bucket_of(buffer: memoryview | bytes, name: str) -> date:
    """The key bucket that a scope file's header names; readable without the key."""
    try:
        _, _, length = _HEADER.unpack(bytes(buffer[: _HEADER.size]))
        header = canonical.loads(bytes(buffer[_HEADER.size : _HEADER.size + length]))
        return date.fromisoformat(header["bucket"])  # type: ignore[index, call-overload, arg-type] # caught below
    except (struct.error, Rejected, KeyError, TypeError, ValueError) as error:
        raise Tampered(f"{name}.scope", "expected a header that names a bucket") from error


def _results(sweep: SweepState, file: ScopeFile, key: bytes) -> Iterator[tuple[str, Counter[Outcome] | None]]:
    _check_claims(sweep, file, key)
    columns = unpack_columns(file.section("claims"))
    packed = columns["requests"]
    requests = [str(UUID(bytes=packed[at : at + 16])) for at in range(0, len(packed), 16)]
    counts: list[Counter[Outcome]] = [Counter() for _ in requests]
    for tree in range(len(sweep.scope.trees)):
        outcomes = sweep.absences(tree)
        indices = _unpacked("I", columns[f"indices/{tree}"])
        offsets = _unpacked("Q", columns[f"offsets/{tree}"])
        for number, own in enumerate(counts):
            mine = bytes(outcomes[index] for index in indices[offsets[number] : offsets[number + 1]])
            own.update({Outcome(code): mine.count(code) for code in set(mine)})
    for request, own in zip(requests, counts, strict=True):
        yield request, None if own[Outcome.OPEN] else own


def _unpacked(code: str, data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data)


def _check_claims(sweep: SweepState, file: ScopeFile, key: bytes) -> None:
    """The file's claims are those that the scope's tree of requests has, and their indices those of the file."""
    bodies = unpack_strings(unpack_columns(file.section("requests"))["bodies"])
    columns = unpack_columns(file.section("claims"))
    drawn = nonces(derive_key(key, "requests"), len(bodies))
    leaves = [leaf(drawn[at * NONCE_BYTES : (at + 1) * NONCE_BYTES], body.encode()) for at, body in enumerate(bodies)]
    root = merkle.root(b"".join(map(merkle.leaf_hash, leaves)))
    if root.hex() != sweep.scope.requests_root:
        raise Tampered(f"{sweep.scope.sweep}.scope", "expected claims that hash to the scope's root, got others")
    for number, body in enumerate(bodies):
        claim = Claim.model_validate_json(body)
        for one in claim.trees:
            offsets = _unpacked("Q", columns[f"offsets/{one.tree}"])
            mine = columns[f"indices/{one.tree}"][offsets[number] * 4 : offsets[number + 1] * 4]
            if hashlib.sha256(mine).hexdigest() != one.indices:
                raise Tampered(f"{sweep.scope.sweep}.scope", f"expected the indices of claim {number}, got others")


# Comparison with the live system


async def compare(replayed: Replayed, live: Ledger, opened: Sealed | None = None) -> list[Difference]:
    """Every difference between the log and the live system's rows; a destroyed key is agreement. Rows that no
    checkpoint covers yet are not looked at."""
    async with live.transaction() as tx:
        found = [one async for one in _compare_log(replayed, tx)]
        found += [one async for one in _compare_sweeps(replayed.state, tx)]
        ((size,),) = await tx.fetch("replay_live_size")
        if size == replayed.state.size:  # otherwise rows may rightly be ahead
            found += [one async for one in _compare_models(replayed.state, tx)]
        if opened is not None:
            found += [one async for one in _compare_results(opened, tx)]
    return found


async def _compare_log(replayed: Replayed, tx: Tx) -> AsyncDifferences:
    size = replayed.checkpoint.size
    for first in range(0, size, PAGE):
        end = min(first + PAGE, size)
        ((hashes, rehashed),) = await tx.fetch("replay_live_log", first=first, end=end)
        logged = replayed.hashes[first * HASH_BYTES : end * HASH_BYTES]
        for kind, flat in (("log-row", hashes or b""), ("log-entry", rehashed or b"")):
            if flat != logged:
                same = next(
                    (
                        at
                        for at in range(0, len(logged), HASH_BYTES)
                        if flat[at : at + HASH_BYTES] != logged[at : at + HASH_BYTES]
                    ),
                    len(logged),
                )
                yield Difference(kind, f"index {first + same // HASH_BYTES}")


async def _compare_sweeps(state: State, tx: Tx) -> AsyncDifferences:
    rows = {str(row[0]): row[1:] for row in await tx.fetch("replay_live_sweeps", size=state.size)}
    rounds = {(str(row[0]), row[1]): row[2:] for row in await tx.fetch("replay_live_rounds", size=state.size)}
    for name in sorted(state.sweeps.keys() | rows.keys()):
        sweep, row = state.sweeps.get(name), rows.get(name)
        if sweep is None or row is None:
            yield Difference("sweep-missing", f"sweep {name} {'in the log' if sweep is None else 'in the database'}")
            continue
        if kind := _sweep_difference(sweep, row):
            yield Difference(kind, f"sweep {name}")
    logged = {
        (name, one.round): (one.provision.value, one.requests, one.index)
        for name, sweep in state.sweeps.items()
        for one in sweep.rounds.values()
    }
    for key in sorted(logged.keys() | rounds.keys()):
        if logged.get(key) != rounds.get(key):
            yield Difference("round", f"sweep {key[0]} round {key[1]}")


def _sweep_difference(sweep: SweepState, row: tuple[object, ...]) -> str | None:
    """The kind of the first difference, None if there is none."""
    scope = sweep.scope
    sweep_class, state, requests, images, leaves, trees, digest, index = row
    if (bytes(digest).hex(), index) != (sweep.digest, sweep.index):  # type: ignore[call-overload] # a bytea
        return "sweep-scope"
    counts = (scope.sweep_class, scope.requests, scope.images, sum(tree.leaves for tree in scope.trees))
    described = [tree.model_dump(mode="json") for tree in scope.trees]
    if (sweep_class, requests, images, leaves) != counts or _listed(trees) != described:
        return "sweep-counts"
    return "sweep-state" if sweep.void is not None and state != "void" else None


def _listed(trees: object) -> object:
    return json.loads(trees) if isinstance(trees, str | bytes) else trees


async def _compare_models(state: State, tx: Tx) -> AsyncDifferences:
    rows = {row[0]: (ModelStatus(row[1]), row[2]) for row in await tx.fetch("replay_live_models")}
    for name in sorted(rows.keys() | state.models.keys()):
        model = state.models.get(name)
        if name not in rows:
            yield Difference("model-missing", f"model {name}")
            continue
        status, void = rows[name]
        said = model.status if model else None
        match said:
            case None:
                agrees = status in {ModelStatus.CLEAN, ModelStatus.UNKNOWN}
            case ModelStatus.TAINTED:
                agrees = status in {ModelStatus.TAINTED, ModelStatus.REMEDIATING}
            case _:
                agrees = status is said
        if not agrees:
            yield Difference("model-status", f"model {name}")
        if void != bool(model and model.metric_void):
            yield Difference("model-metric", f"model {name}")


async def _compare_results(opened: Sealed, tx: Tx) -> AsyncDifferences:
    for name in sorted(opened.missing):
        yield Difference("scope-file-missing", f"sweep {name}")
    seen = set()
    for request, sweep, result in await tx.fetch("replay_live_results"):
        key = (str(sweep), str(request))
        if key[0] in opened.closed | opened.missing:
            continue
        seen.add(key)
        if key not in opened.results:
            yield Difference("request-missing", f"request {key[1]} in the scope file")
            continue
        counts = opened.results[key]
        if result is not None and (
            counts is None or result_of(Provision.DATA, counts, cancelled=result == "cancelled") != result
        ):
            yield Difference("request-result", f"request {key[1]}")
    for key in sorted(opened.results.keys() - seen):
        yield Difference("request-missing", f"request {key[1]} in the database")


# A database of what the log says


async def store(replayed: Replayed, into: Ledger, opened: Sealed | None = None) -> None:
    """Write the state into an empty database, as tables `replay_*`. Raises `Rejected("not-empty")`."""
    state = replayed.state
    async with into.transaction() as tx:
        ((tables,),) = await tx.fetch("replay_tables")
        if tables:
            raise Rejected("not-empty", f"expected an empty database to replay into, got {tables} tables")
        for name in ("head", "sweep", "coverage", "round", "model", "registered", "result"):
            await tx.execute(f"replay_create_{name}")
        await tx.execute(
            "replay_put_head", origin=replayed.checkpoint.origin, size=state.size, root=replayed.checkpoint.root,
            images=state.images, batches=len(state.batches),
        )  # fmt: skip
        await _store_sweeps(state, tx)
        await tx.execute(
            "replay_put_models",
            names=list(state.models),
            statuses=[one.status.value if one.status else None for one in state.models.values()],
            voids=[one.metric_void for one in state.models.values()],
            successors=[one.successor for one in state.models.values()],
        )
        await tx.execute(
            "replay_put_registered",
            sources=[source for source, _ in state.registered],
            kinds=[kind.value for _, kind in state.registered],
            counts=list(state.registered.values()),
        )
        results = opened.results if opened else {}
        await tx.execute(
            "replay_put_results",
            sweeps=[UUID(sweep) for sweep, _ in results],
            requests=[UUID(request) for _, request in results],
            results=[None if one is None else result_of(Provision.DATA, one) for one in results.values()],
        )


async def _store_sweeps(state: State, tx: Tx) -> None:
    sweeps = list(state.sweeps.items())
    await tx.execute(
        "replay_put_sweeps",
        sweeps=[UUID(name) for name, _ in sweeps],
        classes=[one.scope.sweep_class for _, one in sweeps],
        digests=[bytes.fromhex(one.digest) for _, one in sweeps],
        indices=[one.index for _, one in sweeps],
        requests=[one.scope.requests for _, one in sweeps],
        images=[one.scope.images for _, one in sweeps],
        leaves=[sum(tree.leaves for tree in one.scope.trees) for _, one in sweeps],
        voids=[one.void for _, one in sweeps],
    )
    rounds = [(name, one) for name, sweep in sweeps for one in sweep.rounds.values()]
    await tx.execute(
        "replay_put_rounds",
        sweeps=[UUID(name) for name, _ in rounds],
        rounds=[one.round for _, one in rounds],
        provisions=[one.provision.value for _, one in rounds],
        requests=[one.requests for _, one in rounds],
        indices=[one.index for _, one in rounds],
    )
    counts = [
        (name, tree, step, outcome, number, one.chunks)
        for name, sweep in sweeps
        for (tree, step), one in sweep.coverage().items()
        for outcome, number in sorted(one.outcomes.items())
    ]
    await tx.execute(
        "replay_put_coverage",
        sweeps=[UUID(row[0]) for row in counts],
        trees=[row[1] for row in counts],
        steps=[row[2].value for row in counts],
        outcomes=[int(row[3]) for row in counts],
        leaves=[row[4] for row in counts],
        chunks=[row[5] for row in counts],
    )
