"""Checking a bundle offline against the verifier's own policy: bytes in, a report out. Nothing in the bundle is believed
before something pinned has vouched for it. Needs only the light core: no database, no Kafka, no numpy.

1. Policy: the certificate is of the issuer that the policy names, and the bundle holds what a bundle holds.
2. Checkpoint: the log's signature and origin; its size and root are used from here on.
3. Inclusion: every statement is in the log under that checkpoint, at the index it is listed with.
4. Signatures: every statement is signed by a pinned key of the only role (and store) that may make it, valid then.
5. Order: one scope statement, the one the certificate names, logged before all else; presence before each deed on a
   chunk; an order approved by two before any deed; one completion statement for the certificate's round.
6. Coverage: the chunks of each tree recombine to the tree's root; each step's attempts follow from each other, sum to
   their chunk and cover only what was left open; every chunk that the claim touches has gone through all steps.
7. Claim: it opens in the scope's tree of requests, and the certificate's indices are those it fixed.
8. Outcomes: the last outcome of step absence of every leaf of the claim, counted.
9. Completion: it opens in the round's statement; its counts are those counted, its result is the one they give, and the
   models it calls replaced or destroyed are so by statements about this sweep.
10. Summary: what was verified, to which level, by which method, and what was not covered.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Final, assert_never

from expunge.domain import bundle as bundles
from expunge.domain import coverage, dsse, merkle, note, statement
from expunge.domain.bundle import Bundle
from expunge.domain.certificate import Certificate, Claim, Completed, ModelDue, Opening, body_bytes, leaf
from expunge.domain.certificate_result import result_of
from expunge.domain.coverage import DEEDS, ChunkState
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.report import Report, StepResult, StoreSummary, Summary
from expunge.domain.statement import (
    Chunk,
    Completion,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Predicate,
    RegisteredBatch,
    Scope,
    ScopeApproved,
    ScopeVoid,
    Statement,
)
from expunge.domain.trust import Trust
from expunge.domain.words import FINAL_ABSENT, Outcome, Provision, Role, Step

STEPS: Final = (
    "policy",
    "checkpoint",
    "inclusion",
    "signatures",
    "order",
    "coverage",
    "claim",
    "outcomes",
    "completion",
    "summary",
)
APPROVERS: Final = 2
"""Different approvers that an order needs before any deed."""

_NONCE_HEX: Final = 32
_INDEX_BLOCK: Final = 1 << 16
_ROOT_FILE_SUBJECT: Final = "leaf-hashes"


@dataclass(frozen=True, slots=True)
class Entry:
    """A statement that is in the log at `index` and signed as it must be. `digest`: SHA-256 (hex) of its payload."""

    index: int
    digest: str
    statement: Statement

    @property
    def predicate(self) -> Predicate:
        """What it says."""
        return self.statement.predicate


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's entries, sorted out. `chunks`: only those logged before the completion; later ones do not count."""

    scope_entry: Entry
    scope: Scope
    completion_entry: Entry
    completion: Completion
    chunks: tuple[tuple[Entry, Chunk], ...]
    entries: tuple[Entry, ...]


Counts = dict[int, Counter[Outcome]]
"""Outcomes of step absence at a claim's leaves, by tree."""


def verify(files: Mapping[str, bytes], trust: Trust) -> Report:
    """Check a bundle; the steps are those of this module's docstring. Never raises on what is in the bundle: the report
    ends with the first step that failed, and says where."""
    done: list[StepResult] = []

    def passed(detail: str) -> None:
        done.append(StepResult(number=len(done) + 1, name=STEPS[len(done)], ok=True, detail=detail))

    try:
        # 1. Policy
        bundle = bundles.load(files)
        certificate = bundle.certificate
        _check_issuer(certificate, trust)
        passed(f"certificate by {trust.issuer}; {len(trust.keys)} keys pinned")
        # 2. Checkpoint
        checkpoint = _checkpoint(bundle, trust)
        passed(f"log {checkpoint.origin} at size {checkpoint.size}")
        # 3. Inclusion
        _check_inclusion(bundle, checkpoint)
        passed(f"{len(bundle.statements)} statements are in the log")
        # 4. Signatures
        entries = _signed(bundle, trust)
        passed(f"{len(entries)} statements signed under their roles")
        # 5. Order
        sweep = _sorted_out(entries, certificate, trust)
        passed(f"scope at index {sweep.scope_entry.index} before every deed, completion at {sweep.completion_entry.index}")
        # 6. Coverage
        chunks = _folded(sweep)
        _check_roots(bundle, sweep.scope, chunks)
        covered = _check_touched(certificate, sweep.scope, chunks)
        passed(covered)
        # 7. Claim
        _check_claim(certificate, sweep.scope)
        passed(f"{sum(one.leaves for one in certificate.claim.trees)} artifacts, fixed with the scope")
        # 8. Outcomes
        counts = _counted(certificate, chunks)
        passed(_in_words(counts))
        # 9. Completion
        _check_completion(certificate, sweep, counts)
        passed(f"{certificate.provision.value}: {certificate.completed.result}, as the outcomes give it")
        # 10. Summary
        summary = _summary(certificate, sweep, counts, checkpoint)
        passed(f"{len(summary.stores)} stores, {len(summary.models)} models")
    except Tampered as error:
        return _failed(done, error.where, str(error))
    except Rejected as error:
        return _failed(done, error.code, str(error))
    return Report(steps=tuple(done), where=None, summary=summary)


def _failed(done: Sequence[StepResult], where: str, detail: str) -> Report:
    step = StepResult(number=len(done) + 1, name=STEPS[len(done)], ok=False, detail=detail)
    return Report(steps=(*done, step), where=where, summary=None)


# 1


def _check_issuer(certificate: Certificate, trust: Trust) -> None:
    if certificate.issuer != trust.issuer:
        raise Tampered("policy", f"expected a certificate by {trust.issuer}, got another issuer")


# 2


def _checkpoint(bundle: Bundle, trust: Trust) -> note.Checkpoint:
    try:
        return note.open_checkpoint(bundle.checkpoint, trust.log_keys, trust.origin)
    except Rejected as error:
        raise Tampered(bundles.CHECKPOINT, str(error)) from error


# 3


def _check_inclusion(bundle: Bundle, checkpoint: note.Checkpoint) -> None:
    for one in bundle.statements:
        try:
            merkle.verify_inclusion(
                one.index, checkpoint.size, merkle.leaf_hash(one.envelope), one.path, checkpoint.root
            )
        except Tampered as error:
            raise Tampered(f"statement {one.index}", str(error)) from error


# 4


def _signed(bundle: Bundle, trust: Trust) -> tuple[Entry, ...]:
    read = []
    for one in bundle.statements:
        try:
            envelope = dsse.parse(one.envelope)
            read.append((one.index, envelope, statement.parse(envelope.payload)))
        except Rejected as error:
            raise Tampered(f"statement {one.index}", str(error)) from error
    entries = []
    scope_time = next((said.predicate.at for _, _, said in read if isinstance(said.predicate, Scope)), None)
    for index, envelope, said in read:
        digest = check_signature(envelope, said.predicate, trust, scope_time, f"statement {index}")
        entries.append(Entry(index, digest, said))
    return tuple(entries)


def check_signature(
    envelope: dsse.Envelope, predicate: Predicate, trust: Trust, scope_time: datetime | None, where: str
) -> str:
    """Check that a key of the predicate's only role signed the envelope, and nobody else did; SHA-256 (hex) of its
    payload. `scope_time`: stands for the time of statements that hold none. Raises `Tampered(where)`."""
    at = scope_time if isinstance(predicate, ModelTainted) else predicate.at
    if at is None:
        raise Tampered(where, "expected the scope statement that gives it a time, got none")
    store = predicate.store if isinstance(predicate, Chunk) and predicate.step in DEEDS else None
    if len(envelope.signatures) != 1:
        raise Tampered(where, f"expected one signature, got {len(envelope.signatures)}")
    try:
        key = trust.key_for(statement.role_of(predicate), envelope.signatures[0].key_id, store, at)
        dsse.verify(envelope, key, statement.PAYLOAD_TYPE)
    except Tampered as error:
        raise Tampered(where, str(error)) from error
    return sha256(envelope.payload).hexdigest()


# 5


def _sorted_out(entries: tuple[Entry, ...], certificate: Certificate, trust: Trust) -> Sweep:
    scope_entry, scope = _one_scope(entries, certificate)
    for entry in entries:
        if entry is not scope_entry:
            _check_about(entry, certificate)
            if entry.index < scope_entry.index:
                raise Tampered(
                    f"statement {entry.index}", f"expected the scope to be logged before, it is at {scope_entry.index}"
                )
    chunks = [(entry, entry.predicate) for entry in entries if isinstance(entry.predicate, Chunk)]
    _check_presence_first(chunks)
    _check_approved(entries, scope, chunks, trust)
    completion_entry, completion = _one_completion(entries, certificate)
    return Sweep(
        scope_entry=scope_entry,
        scope=scope,
        completion_entry=completion_entry,
        completion=completion,
        chunks=tuple(pair for pair in chunks if pair[0].index < completion_entry.index),
        entries=entries,
    )


def _one_scope(entries: Sequence[Entry], certificate: Certificate) -> tuple[Entry, Scope]:
    found = [(entry, entry.predicate) for entry in entries if isinstance(entry.predicate, Scope)]
    if len(found) != 1:
        raise Tampered("scope", f"expected one scope statement, got {len(found)}")
    entry, scope = found[0]
    if (entry.digest, scope.sweep) != (certificate.scope, certificate.sweep):
        raise Tampered("scope", "expected the scope statement that the certificate names, got another")
    return entry, scope


def _check_about(entry: Entry, certificate: Certificate) -> None:
    """Refuse statements that are about something else, and those that this verifier would not know how to weigh."""
    where = f"statement {entry.index}"
    match entry.predicate:
        case Chunk() | Completion() | ScopeApproved() | ModelTainted() | MetricVoid() as said:
            if (said.sweep, said.scope) != (certificate.sweep, certificate.scope):
                raise Tampered(where, "expected a statement about this sweep's scope, got another's")
        case ModelReplaced() | ModelDestroyed() as said:
            if certificate.sweep not in said.sweeps:
                raise Tampered(where, "expected a statement that resolves this sweep's taint, got another's")
        case Overdue() as said:
            if said.sweep != certificate.sweep:
                raise Tampered(where, "expected a statement about this sweep, got another's")
        case ScopeVoid():
            raise Tampered(where, "expected a scope that stands, this one is void")
        case Scope() | RegisteredBatch():
            raise Tampered(where, "expected only statements about this sweep, got another kind")
        case _:
            assert_never(entry.predicate)


def _check_presence_first(chunks: Sequence[tuple[Entry, Chunk]]) -> None:
    seen: set[tuple[int, int]] = set()
    for _, chunk in chunks:  # in log order
        if chunk.step is Step.PRESENCE:
            seen.add((chunk.tree, chunk.start))
        elif chunk.step in DEEDS and (chunk.tree, chunk.start) not in seen:
            raise Tampered(coverage.place(chunk), "expected presence to be recorded before, got none")


def _check_approved(
    entries: Sequence[Entry], scope: Scope, chunks: Sequence[tuple[Entry, Chunk]], trust: Trust
) -> None:
    first_deed = min((entry.index for entry, chunk in chunks if chunk.step in DEEDS), default=sys.maxsize)
    approved = False
    for entry in entries:
        if isinstance(said := entry.predicate, ScopeApproved):
            where = f"statement {entry.index}"
            if len(set(said.approvers)) < max(APPROVERS, len(said.approvers)):
                raise Tampered(where, f"expected {APPROVERS} or more different approvers")
            for key_id in said.approvers:
                try:
                    trust.key_for(Role.APPROVER, key_id, None, said.at)
                except Tampered as error:
                    raise Tampered(where, str(error)) from error
            approved = approved or entry.index < first_deed
    if scope.sweep_class == "order" and not approved:
        raise Tampered("approval", "expected an order's scope to be approved before the first deed, it was not")


def _one_completion(entries: Sequence[Entry], certificate: Certificate) -> tuple[Entry, Completion]:
    found = [
        (entry, entry.predicate)
        for entry in entries
        if isinstance(entry.predicate, Completion) and entry.predicate.round == certificate.round
    ]
    if len(found) != 1:
        raise Tampered("completion", f"expected one completion statement of round {certificate.round}, got {len(found)}")
    entry, completion = found[0]
    if completion.provision is not certificate.provision:
        raise Tampered("completion", f"expected a round of provision {certificate.provision.value}, got the other")
    return entry, completion


# 6


Chunks = dict[tuple[int, int], ChunkState]
"""By tree and chunk number."""


def _folded(sweep: Sweep) -> Chunks:
    found: Chunks = {}
    for entry, chunk in sweep.chunks:
        coverage.check_place(chunk, sweep.scope.trees)
        key = (chunk.tree, chunk.start // CHUNK_LEAVES)
        state = found.get(key)
        if state is None:
            state = found[key] = ChunkState(chunk.end - chunk.start, chunk.chunk_root)
        state.add(chunk, entry.digest, entry.index)
    return found


def _check_roots(bundle: Bundle, scope: Scope, chunks: Chunks) -> None:
    unknown = max((*bundle.chunk_roots, *bundle.leaf_hashes), default=-1)
    if unknown >= len(scope.trees):
        raise Tampered(f"tree {unknown}", f"expected hashes of {len(scope.trees)} trees, got more")
    for number, tree in enumerate(scope.trees):
        where = f"tree {number}"
        roots = _roots_of(bundle, number, tree.leaves, chunks)
        if merkle.root_from_chunk_roots(tree.leaves, roots).hex() != tree.root:
            raise Tampered(where, "expected the chunk roots to recombine to the root in the scope, they do not")
        for chunk, root in enumerate(roots):
            state = chunks.get((number, chunk))
            if state is not None and state.root != root.hex():
                raise Tampered(f"{where} chunk {chunk}", "expected the root of that chunk of the scope, got another")


def _roots_of(bundle: Bundle, number: int, leaves: int, chunks: Chunks) -> list[bytes]:
    """The tree's chunk roots: hashed anew from the leaf file, else from the roots file, else from the statements."""
    where = f"tree {number}"
    expected = -(-leaves // CHUNK_LEAVES)
    listed = None
    if number in bundle.chunk_roots:
        listed = _split(bundle.chunk_roots[number], expected, f"sweep/chunk-roots/{number}.bin")
    if number in bundle.leaf_hashes:
        hashed = _hashed_anew(bundle.leaf_hashes[number], leaves, f"sweep/leaf-hashes/{number}.bin")
        if listed is not None and listed != hashed:
            raise Tampered(where, "expected leaf hashes and chunk roots of the same tree, got two")
        return hashed
    if listed is not None:
        return listed
    missing = [chunk for chunk in range(expected) if (number, chunk) not in chunks]
    if missing:
        raise Tampered(f"{where} chunk {missing[0]}", "expected a statement or a root of this chunk, got neither")
    return [bytes.fromhex(chunks[number, chunk].root) for chunk in range(expected)]


def _split(data: bytes, count: int, where: str) -> list[bytes]:
    if len(data) != count * HASH_BYTES:
        raise Tampered(where, f"expected {count} hashes of {HASH_BYTES} bytes, got {len(data)} bytes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _hashed_anew(data: bytes, leaves: int, where: str) -> list[bytes]:
    if len(data) != leaves * HASH_BYTES:
        raise Tampered(where, f"expected {leaves} hashes of {HASH_BYTES} bytes, got {len(data)} bytes")
    view, step = memoryview(data), CHUNK_LEAVES * HASH_BYTES
    return [merkle.root(view[at : at + step]) for at in range(0, len(data), step)]


def _check_touched(certificate: Certificate, scope: Scope, chunks: Chunks) -> str:
    if len(certificate.indices) != len(certificate.claim.trees):
        raise Tampered("indices", f"expected runs of {len(certificate.claim.trees)} trees, got {len(certificate.indices)}")
    hides = {tree for (tree, _), state in chunks.items() if Step.HIDE in state.steps}
    touched = 0
    for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=True):
        if claimed.tree >= len(scope.trees):
            raise Tampered("claim", f"expected a tree below {len(scope.trees)}, got {claimed.tree}")
        needed = [step for step in Step if step is not Step.HIDE or claimed.tree in hides]
        for chunk in _chunks_of(runs, scope.trees[claimed.tree].leaves):
            state = chunks.get((claimed.tree, chunk))
            for step in needed:
                if state is None or step not in state.steps:
                    raise Tampered(
                        f"tree {claimed.tree} chunk {chunk}", f"expected a statement of step {step.value}, got none"
                    )
            touched += 1
    total = sum(-(-tree.leaves // CHUNK_LEAVES) for tree in scope.trees)
    return f"{touched} chunks of the claim, of {total} in the sweep, went through all steps"


def _chunks_of(runs: Sequence[tuple[int, int]], leaves: int) -> Iterator[int]:
    """Chunk numbers that ascending runs touch, once each."""
    end = last = -1
    for first, count in runs:
        if first <= end or not count or first + count > leaves:
            raise Tampered("indices", f"expected ascending separate runs below {leaves}")
        end = first + count
        for chunk in range(max(first // CHUNK_LEAVES, last + 1), (end - 1) // CHUNK_LEAVES + 1):
            last = chunk
            yield chunk


# 7


def _check_claim(certificate: Certificate, scope: Scope) -> None:
    claim = certificate.claim
    if claim.request != certificate.request:
        raise Tampered("claim", "expected the claim of the certificate's request, got another's")
    _check_opening("claim", claim, certificate.claim_opening, scope.requests, scope.requests_root)
    trees = [one.tree for one in claim.trees]
    if trees != sorted(set(trees)):
        raise Tampered("claim", "expected each tree once, ascending")
    for claimed, runs in zip(claim.trees, certificate.indices, strict=True):
        count, digest = _digest_of(runs)
        if (count, digest) != (claimed.leaves, claimed.indices):
            raise Tampered(f"claim tree {claimed.tree}", "expected the indices that the claim fixed, got others")


def _check_opening(where: str, body: Claim | Completed, opening: Opening, size: int, root: str) -> None:
    if opening.size != size:
        raise Tampered(where, f"expected an opening in a tree of {size}, got {opening.size}")
    try:
        nonce = bytes.fromhex(opening.nonce)
    except ValueError:
        nonce = b""
    if nonce.hex() != opening.nonce or len(opening.nonce) != _NONCE_HEX:
        raise Tampered(where, "expected a nonce of 16 bytes in hex")
    hashed = merkle.leaf_hash(leaf(nonce, body_bytes(body)))
    path = [bytes.fromhex(node) for node in opening.path]
    try:
        merkle.verify_inclusion(opening.index, size, hashed, path, bytes.fromhex(root))
    except Tampered as error:
        raise Tampered(where, str(error)) from error


def _digest_of(runs: Sequence[tuple[int, int]]) -> tuple[int, str]:
    """How many indices the runs have, and SHA-256 over them as little-endian uint32."""
    digest, total = sha256(), 0
    for first, count in runs:
        for start in range(first, first + count, _INDEX_BLOCK):
            block = array("I", range(start, min(start + _INDEX_BLOCK, first + count)))
            if sys.byteorder == "big":  # pragma: no cover - no such machine at hand
                block.byteswap()
            digest.update(block.tobytes())
        total += count
    return total, digest.hexdigest()


# 8


def _counted(certificate: Certificate, chunks: Chunks) -> Counts:
    counts: Counts = {}
    for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=True):
        tally = [0] * (max(Outcome) + 1)
        for first, count in runs:
            for piece in _absences(chunks, claimed.tree, first, first + count):
                for code in set(piece):
                    tally[code] += piece.count(code)
        counts[claimed.tree] = Counter({Outcome(code): number for code, number in enumerate(tally) if number})
    return counts


def _absences(chunks: Chunks, tree: int, start: int, end: int) -> Iterator[bytes]:
    """Last outcomes of step absence of leaves [start, end), chunk by chunk."""
    while start < end:
        number, skip = divmod(start, CHUNK_LEAVES)
        stop = min(end, (number + 1) * CHUNK_LEAVES)
        yield chunks[tree, number].steps[Step.ABSENCE].outcomes[skip : skip + stop - start]
        start = stop


def _in_words(counts: Counts) -> str:
    total: Counter[Outcome] = Counter()
    for one in counts.values():
        total += one
    return ", ".join(f"{number} {code.name.lower().replace('_', ' ')}" for code, number in sorted(total.items())) or "none"


# 9


def _check_completion(certificate: Certificate, sweep: Sweep, counts: Counts) -> None:
    completed, completion = certificate.completed, sweep.completion
    if (completed.request, completed.provision) != (certificate.request, certificate.provision):
        raise Tampered("completion", "expected the completion of the certificate's request and provision, got another's")
    _check_opening("completion", completed, certificate.completed_opening, completion.requests, completion.root)
    if sum(completion.results.values()) != completion.requests or not completion.results.get(completed.result):
        raise Tampered("completion", "expected the round's results to sum to its requests and to have this one")
    _check_counts(completed, counts)
    _check_models(completed.models, sweep)
    expected = result_of(
        completed.provision,
        sum(counts.values(), Counter()),
        completed.models,
        at=completion.at,
        cancelled=completed.result == "cancelled",
    )
    if completed.result != expected:
        raise Tampered("completion", f"expected result {expected} from the outcomes, got {completed.result}")


def _check_counts(completed: Completed, counts: Counts) -> None:
    told = {(one.tree, one.outcome): one.artifacts for one in completed.outcomes}
    expected = {(tree, code): number for tree, codes in counts.items() for code, number in codes.items()}
    if completed.provision is Provision.MODELS and not told:
        return  # a models certificate may leave the counts to the data certificate
    if told != expected or len(told) != len(completed.outcomes):
        raise Tampered("completion", "expected the outcome counts of the absence statements, got others")


def _check_models(models: Sequence[ModelDue], sweep: Sweep) -> None:
    before = [one.predicate for one in sweep.entries if one.index < sweep.completion_entry.index]
    tainted = {one.model for one in before if isinstance(one, ModelTainted)}
    replaced = {one.model for one in before if isinstance(one, ModelReplaced)}
    destroyed = {one.model for one in before if isinstance(one, ModelDestroyed)}
    names = {one.model for one in models}
    if len(names) != len(models):
        raise Tampered("completion", "expected each model once")
    if sweep.scope.requests == 1 and names != tainted:
        raise Tampered("completion", "expected every model that the sweep tainted, and no other")
    for one in models:
        resolved = {"open": tainted, "replaced": replaced, "destroyed": destroyed}[one.resolution]
        if one.model not in tainted or one.model not in resolved:
            raise Tampered("completion", f"expected statements that model {one.model} is tainted and {one.resolution}")


# 10


@dataclass(slots=True)
class _Seen:
    """What statements about one tree said of the claim's chunks (mutable)."""

    level: int | None = None
    methods: set[str] = field(default_factory=set)
    erased_by: set[str] = field(default_factory=set)
    residue: set[str] = field(default_factory=set)
    at: datetime | None = None
    sampled: int = 0


def _summary(certificate: Certificate, sweep: Sweep, counts: Counts, checkpoint: note.Checkpoint) -> Summary:
    touched = {
        (claimed.tree, chunk)
        for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=True)
        for chunk in _chunks_of(runs, sweep.scope.trees[claimed.tree].leaves)
    }
    seen = {tree: _Seen() for tree in counts}
    for _, chunk in sweep.chunks:
        if (chunk.tree, chunk.start // CHUNK_LEAVES) in touched and any(code in FINAL_ABSENT for code, _ in chunk.outcomes):
            _note(seen[chunk.tree], chunk)
    stores = tuple(_store(sweep.scope, tree, counts[tree], seen[tree]) for tree in sorted(counts))
    return Summary(
        issuer=certificate.issuer,
        request=certificate.request,
        provision=certificate.provision,
        sweep=certificate.sweep,
        result=certificate.completed.result,
        images=certificate.claim.images,
        stores=stores,
        retained=certificate.claim.retained,
        erased_earlier=certificate.claim.erased_earlier,
        models=certificate.completed.models,
        not_covered=certificate.not_covered,
        log=checkpoint.origin,
        log_size=checkpoint.size,
        scope_index=sweep.scope_entry.index,
        completion_index=sweep.completion_entry.index,
        scope_at=sweep.scope.at,
        completed_at=sweep.completion.at,
    )


def _note(seen: _Seen, chunk: Chunk) -> None:
    seen.residue.update(chunk.residue)
    if chunk.step in DEEDS:
        seen.erased_by.add(chunk.method)
    elif chunk.step is Step.ABSENCE:
        seen.level = chunk.level if seen.level is None else min(seen.level, chunk.level)
        seen.methods.add(chunk.method)
        seen.sampled += chunk.sampled
        seen.at = chunk.at if seen.at is None else max(seen.at, chunk.at)


def _store(scope: Scope, tree: int, counts: Counter[Outcome], seen: _Seen) -> StoreSummary:
    return StoreSummary(
        kind=scope.trees[tree].kind,
        store=scope.trees[tree].store,
        outcomes={code.name.lower().replace("_", " "): number for code, number in sorted(counts.items())},
        absent=sum(number for code, number in counts.items() if code in FINAL_ABSENT),
        level=seen.level,
        methods=tuple(sorted(seen.methods)),
        erased_by=tuple(sorted(seen.erased_by)),
        residue=tuple(sorted(seen.residue)),
        sampled=seen.sampled,
        verified_at=seen.at,
    )
