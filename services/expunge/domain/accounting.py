"""What a sweep's statements add up to, for one claim: steps 6 to 10 of `domain.verification`. Flat buffers only."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final

from expunge.domain import coverage, merkle, reconciliation
from expunge.domain.bundle import Shared
from expunge.domain.certificate import Certificate, Claim, Completed, ModelDue, Opening, body_bytes, leaf, result_of
from expunge.domain.coverage import ChunkState
from expunge.domain.errors import Tampered
from expunge.domain.evidence import Sweep
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.merkle import HASH_BYTES
from expunge.domain.statement import (
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    ReconciledCount,
    Reconciliation,
    Scope,
)
from expunge.domain.words import FINAL_ABSENT, Outcome, Provision, Step

Chunks = dict[tuple[int, int], ChunkState]
"""By tree and chunk number."""
Counts = dict[int, Counter[Outcome]]
"""Outcomes of step absence at a claim's leaves, by tree."""

_NONCE_HEX: Final = 32
_INDEX_BLOCK: Final = 1 << 16


# 6


def folded(sweep: Sweep) -> Chunks:
    found: Chunks = {}
    for entry, chunk in sweep.chunks:
        coverage.check_place(chunk, sweep.scope.trees)
        key = (chunk.tree, chunk.start // CHUNK_LEAVES)
        state = found.get(key)
        if state is None:
            state = found[key] = ChunkState(chunk.end - chunk.start, chunk.chunk_root)
        state.add(chunk, entry.digest, entry.index)
    return found


def check_roots(bundle: Shared, scope: Scope, chunks: Chunks) -> None:
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


def _roots_of(bundle: Shared, number: int, leaves: int, chunks: Chunks) -> list[bytes]:
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
    missing = next((chunk for chunk in range(expected) if (number, chunk) not in chunks), None)
    if missing is not None:
        raise Tampered(f"{where} chunk {missing}", "expected a statement or a root of this chunk, got neither")
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


def check_touched(certificate: Certificate, scope: Scope, chunks: Chunks) -> str:
    if len(certificate.indices) != len(certificate.claim.trees):
        raise Tampered(
            "indices", f"expected runs of {len(certificate.claim.trees)} trees, got {len(certificate.indices)}"
        )
    hides = {tree for (tree, _), state in chunks.items() if Step.HIDE in state.steps}
    touched = 0
    for claimed, runs in zip(certificate.claim.trees, certificate.indices, strict=True):
        if claimed.tree >= len(scope.trees):
            raise Tampered("claim", f"expected a tree below {len(scope.trees)}, got {claimed.tree}")
        needed = [step for step in Step if step is not Step.HIDE or claimed.tree in hides]
        for chunk in chunks_of(runs, scope.trees[claimed.tree].leaves):
            state = chunks.get((claimed.tree, chunk))
            for step in needed:
                if state is None or step not in state.steps:
                    raise Tampered(
                        f"tree {claimed.tree} chunk {chunk}", f"expected a statement of step {step.value}, got none"
                    )
            touched += 1
    total = sum(-(-tree.leaves // CHUNK_LEAVES) for tree in scope.trees)
    return f"{touched} chunks of the claim, of {total} in the sweep, went through all steps"


def chunks_of(runs: Sequence[tuple[int, int]], leaves: int) -> Iterator[int]:
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


def check_claim(certificate: Certificate, scope: Scope) -> None:
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


def counted(certificate: Certificate, chunks: Chunks) -> Counts:
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


def in_words(counts: Counts) -> str:
    total: Counter[Outcome] = Counter()
    for one in counts.values():
        total += one
    return (
        ", ".join(f"{number} {code.name.lower().replace('_', ' ')}" for code, number in sorted(total.items())) or "none"
    )


# 9


def check_completion(certificate: Certificate, sweep: Sweep, counts: Counts) -> None:
    completed, completion = certificate.completed, sweep.completion
    if (completed.request, completed.provision) != (certificate.request, certificate.provision):
        raise Tampered(
            "completion", "expected the completion of the certificate's request and provision, got another's"
        )
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
    taints = [one for one in before if isinstance(one, ModelTainted)]
    told = {(one.model, one.remedy, one.due) for one in taints}
    tainted = {one.model for one in taints}
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
        if (one.model, one.remedy, one.due) not in told:
            raise Tampered(
                "completion", f"expected the remedy and date that were stated for model {one.model}, got others"
            )


# 10


def check_reconciled(
    certificate: Certificate, sweep: Sweep, chunks: Chunks, *, needed: bool
) -> tuple[str, tuple[ReconciledCount, ...]]:
    """What the reconciliations that looked for this sweep's scope after the completion say, in words; and the counts of
    the last one, none where there is none. What was verified absent and what is present must be disjoint. `needed`: an
    order's data certificate must have one, whole and without differences."""
    found = [
        (entry, entry.predicate)
        for entry in sweep.entries
        if isinstance(entry.predicate, Reconciliation) and entry.index > sweep.completion_entry.index
    ]
    leaves = sum(tree.leaves for tree in sweep.scope.trees)
    most = leaves - _absent(chunks)
    for entry, said in found:
        _check_looked_for(entry.index, said, leaves, most)
    due = sweep.scope.sweep_class == "order" and certificate.provision is Provision.DATA
    if not found:
        if due and needed:
            message = "not there yet: expected a reconciliation after the order's completion, got none"
            raise Tampered("reconciliation", message)
        return ("not there yet, and the policy does not ask for it" if due else "follows the data of orders only"), ()
    newest = max(said.log_size for _, said in found)
    last = [said for _, said in found if said.log_size == newest]
    parts = sorted(said.part for said in last)
    if parts != list(range(last[0].parts)):
        raise Tampered("reconciliation", f"expected {last[0].parts} parts of the last run, each once, got {len(parts)}")
    counts = tuple(one for said in sorted(last, key=lambda said: said.part) for one in said.counts)
    differing = [one for one in counts if one.difference]
    if differing and due and needed:
        one = differing[0]
        where = f"{one.kind.value} from {one.source}"
        raise Tampered("reconciliation", f"expected {where} to reconcile, it differs by {one.difference}")
    present = last[0].sweep.present if last[0].sweep is not None else 0
    told = f"{present} of {leaves} artifacts of the scope present; {len(counts)} counts of log size {newest}"
    return f"{told}, {len(differing)} differ" if differing else told, counts


def _absent(chunks: Chunks) -> int:
    """Leaves of the sweep that were verified absent."""
    return sum(
        state.steps[Step.ABSENCE].outcomes.count(code)
        for state in chunks.values()
        if Step.ABSENCE in state.steps
        for code in FINAL_ABSENT
    )


def _check_looked_for(index: int, said: Reconciliation, leaves: int, most: int) -> None:
    where = f"statement {index}"
    reconciliation.check(said, where)
    if said.sweep is None or said.sweep.leaves != leaves:
        raise Tampered(where, f"expected a reconciliation of the {leaves} leaves of the scope")
    if said.log_size > index:
        raise Tampered(where, f"expected a reconciliation of entries before it, got one of {said.log_size}")
    if said.sweep.present > most:
        raise Tampered(where, f"expected at most {most} artifacts of the scope present, got {said.sweep.present}")
