"""Checking a receipt offline: bytes in, a report out. Nothing in it is believed before something pinned vouches for it.

1. Policy: a receipt of the issuer that the policy names.
2. Checkpoint: the log's signature and the witnesses that the policy asks for, on the receipt's own checkpoint and on that
   of the sweep's files, where given. Time stamps are in the sweep's files only.
3. Inclusion: every statement is in the log.
4. Signatures: every statement is signed under its role, and is about this receipt's sweep and scope.
5. Leaves: each opens in a chunk that the rescanner signed; with the holder's copy of the photo, so does the leaf that is
   computed from that copy. Beside the sweep's files the chunks also recombine to the roots in the scope statement, which
   was logged before any deed and, for an order, approved and vouched for as in `domain.verification`.
6. Outcome: the last outcome of step absence of each leaf.
7. Summary: what was verified, when, to which level, by which method, and what was not covered.

Alone, a receipt shows what the rescanner found, and when. That the scope was fixed before, and that nobody erased anew
since, takes the sweep's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydantic import AwareDatetime

from expunge.domain import accounting, bundle, coverage, evidence, merkle, receipt
from expunge.domain.accounting import Chunks
from expunge.domain.attestation import Attested
from expunge.domain.bundle import Shared
from expunge.domain.coverage import ChunkState
from expunge.domain.errors import Tampered
from expunge.domain.evidence import Entry
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.receipt import OpenedLeaf, Receipt
from expunge.domain.report import ALWAYS_NOT_COVERED, Steps, Told, Verdict
from expunge.domain.statement import Chunk, Count, Frozen, Scope, Uuid
from expunge.domain.trust import Trust
from expunge.domain.words import FINAL_ABSENT, Kind, Level, Outcome, Step

STEPS: Final = ("policy", "checkpoint", "inclusion", "signatures", "leaves", "outcome", "summary")


class OpenedSummary(Frozen):
    """One leaf, verified. `copy_matches`: its digest is that of the holder's copy; None where none was given."""

    kind: Kind
    store: str
    index: Count
    outcome: str
    absent: bool
    level: Level
    method: str
    residue: tuple[str, ...]
    at: AwareDatetime
    copy_matches: bool | None


class ReceiptSummary(Told):
    """What a verified receipt says. `scope_checked`: whether the sweep's files were there to check the scope."""

    issuer: str
    sweep: Uuid
    scope_checked: bool
    leaves: tuple[OpenedSummary, ...]
    log: str
    log_size: Count

    def lines(self) -> Iterator[str]:
        """In words, a line each."""
        yield f"{self.issuer}: receipt of {len(self.leaves)} artifacts in sweep {self.sweep}"
        for one in self.leaves:
            found = "verified absent" if one.absent else one.outcome
            yield f"{one.kind.value} in {one.store}: {found} at {one.at.isoformat()} by {one.method}, level L{one.level:d}"
            if one.copy_matches:
                yield f"{one.kind.value} in {one.store}: its content was that of the copy given"
            for text in one.residue:
                yield f"{one.kind.value} in {one.store}: may remain in {text}"
        if not self.scope_checked:
            yield "not covered: that the scope was fixed before; give the sweep's files to check that too"
        for text in ALWAYS_NOT_COVERED:
            yield f"not covered: {text}"


ReceiptReport: TypeAlias = Verdict[ReceiptSummary]
"""Of a receipt: it holds if every leaf is verified absent."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is known of a leaf's chunk. `said`: the rescanner's statement that has the leaf's last outcome."""

    said: Chunk
    outcomes: bytes


def verify(
    data: bytes, trust: Trust, *, sweep: Mapping[str, bytes] | None = None, copy: bytes | None = None
) -> ReceiptReport:
    """Check a receipt. `sweep`: the files that the sweep's certificates share; `copy`: SHA-256 (32 bytes) of the holder's
    own copy of the photo. Never raises on what is in them: the report ends with the first step that failed."""
    steps = Steps(STEPS)
    passed = steps.passed
    try:
        # 1. Policy
        found = receipt.parse(data)
        if found.issuer != trust.issuer:
            raise Tampered("policy", f"expected a receipt by {trust.issuer}, got another issuer")  # noqa: TRY301
        own = [found.shared()] if found.alone else []
        beside = [] if sweep is None else [bundle.load_shared(sweep)]
        sources = own + beside
        if not sources:
            raise Tampered("receipt", "expected the sweep's files beside a receipt without statements, got none")  # noqa: TRY301
        passed(f"receipt by {trust.issuer}; {len(trust.keys)} keys pinned")
        # 2. Checkpoint
        unstamped = trust.model_copy(update={"timestamp_authorities": ()})  # a receipt alone has no room for a token
        for one in own:
            evidence.attested(one, unstamped)
        attested = [evidence.attested(one, trust) for one in beside]
        checkpoints = [evidence.checkpoint(one, trust) for one in sources]
        size = max(one.size for one in checkpoints)
        passed(f"log {trust.origin} at size {size}")
        # 3. Inclusion
        for source, checkpoint in zip(sources, checkpoints, strict=True):
            evidence.check_inclusion(source, checkpoint)
        passed(f"{sum(len(one.statements) for one in sources)} statements are in the log")
        # 4. Signatures
        entries = _entries(found, sources, trust)
        passed(f"{len(entries)} statements about this sweep, signed under their roles")
        # 5. Leaves
        scope = _scope(entries, found, attested[0], trust) if beside else None
        chunks = _chunks_beside(entries, scope, beside[0]) if scope is not None else None
        places = [_place(one, entries, chunks) for one in found.leaves]
        matches = _opened(found, places, copy)
        passed(f"{len(places)} leaves open in chunks that the rescanner signed")
        # 6. Outcome
        _check_absent(found, places)
        passed(f"{len(places)} verified absent")
        # 7. Summary
        summary = ReceiptSummary(
            issuer=found.issuer,
            sweep=found.sweep,
            scope_checked=scope is not None,
            leaves=tuple(map(_summary, found.leaves, places, matches)),
            log=trust.origin,
            log_size=size,
        )
        passed(f"{len({one.store for one in summary.leaves})} stores")
    except Tampered as error:
        return ReceiptReport(steps=steps.failed(error), where=error.where, summary=None)
    return ReceiptReport(steps=steps.taken, where=None, summary=summary)


def _entries(found: Receipt, sources: list[Shared], trust: Trust) -> list[Entry]:
    """Statements about the receipt's sweep, by log index; each once."""
    entries: dict[int, Entry] = {}
    for source in sources:
        for entry in evidence.signed(source, trust):
            if not isinstance(entry.predicate, Scope):
                evidence.check_about(entry, found.sweep, found.scope)
            known = entries.setdefault(entry.index, entry)
            if known.digest != entry.digest:
                raise Tampered(f"statement {entry.index}", "expected one statement at a log index, got two")
    if found.alone:
        for attached in found.statements:
            said = entries[attached.index].predicate
            if not isinstance(said, Chunk) or said.step is not Step.ABSENCE:
                raise Tampered(f"statement {attached.index}", "expected a statement of step absence, got another")
    return [entries[index] for index in sorted(entries)]


def _scope(entries: list[Entry], found: Receipt, attested: Attested, trust: Trust) -> Scope:
    """The scope that the receipt names, once it is seen to have been fixed, and vouched for, before any deed."""
    scopes = [(one, one.predicate) for one in entries if isinstance(one.predicate, Scope)]
    if len(scopes) != 1 or (scopes[0][0].digest, scopes[0][1].sweep) != (found.scope, found.sweep):
        raise Tampered("scope", "expected the scope statement that the receipt names, and no other")
    entry, scope = scopes[0]
    if entries[0] is not entry:
        raise Tampered(f"statement {entries[0].index}", "expected the scope to be logged before any deed")
    chunks = [(one, one.predicate) for one in entries if isinstance(one.predicate, Chunk)]
    evidence.check_approved(entries, scope, chunks, trust)
    evidence.check_attested(entries, (entry, scope), chunks, attested, trust)
    return scope


def _chunks_beside(entries: list[Entry], scope: Scope, source: Shared) -> Chunks:
    """Chunk states folded in log order, once their roots recombine to the scope's."""
    found: Chunks = {}
    for entry in entries:
        if isinstance(chunk := entry.predicate, Chunk):
            coverage.check_place(chunk, scope.trees)
            state = found.setdefault(
                (chunk.tree, chunk.start // CHUNK_LEAVES), ChunkState(chunk.end - chunk.start, chunk.chunk_root)
            )
            state.add(chunk, entry.digest, entry.index)
    accounting.check_roots(source, scope, found)
    return found


def _place(leaf: OpenedLeaf, entries: list[Entry], chunks: Chunks | None) -> _Chunk:
    """The rescanner's last word about a leaf."""
    number = leaf.index // CHUNK_LEAVES
    where = f"leaf {leaf.index} of tree {leaf.tree}"
    last: _Chunk | None = None
    for entry in entries:
        said = entry.predicate
        if not isinstance(said, Chunk) or said.step is not Step.ABSENCE or said.tree != leaf.tree:
            continue
        if said.start != number * CHUNK_LEAVES or not said.start <= leaf.index < said.end <= said.start + CHUNK_LEAVES:
            continue
        told = b"".join(bytes([code]) * count for code, count in said.outcomes if count <= CHUNK_LEAVES)
        if len(told) != said.end - said.start:
            raise Tampered(f"statement {entry.index}", "expected outcomes of exactly its leaves")
        if told[leaf.index - said.start] != Outcome.OPEN:
            last = _Chunk(said, told)
    if last is None:
        raise Tampered(where, "expected a statement of step absence that covers it, got none")
    if chunks is None:
        return last
    return _Chunk(last.said, chunks[leaf.tree, number].steps[Step.ABSENCE].outcomes)


def _opened(found: Receipt, places: list[_Chunk], copy: bytes | None) -> list[bool | None]:
    """Check that each leaf leads to its chunk's root; which of them hold the copy's digest."""
    matches: list[bool | None] = []
    for one, place in zip(found.leaves, places, strict=True):
        said = place.said
        mine = None if copy is None else copy.hex() == one.digest
        hashed = merkle.leaf_hash(one.leaf(copy if mine else None))
        inner, size = one.index - said.start, said.end - said.start
        try:
            merkle.verify_inclusion(inner, size, hashed, one.nodes(), bytes.fromhex(said.chunk_root))
        except Tampered as error:
            raise Tampered(f"leaf {one.index} of tree {one.tree}", str(error)) from error
        matches.append(mine)
    if copy is not None and not any(matches):
        raise Tampered("copy", "expected a leaf with the digest of the copy given, got none")
    return matches


def _check_absent(found: Receipt, places: list[_Chunk]) -> None:
    for one, place in zip(found.leaves, places, strict=True):
        code = place.outcomes[one.index - place.said.start]
        if code not in FINAL_ABSENT:
            word = Outcome(code).name.lower().replace("_", " ")
            raise Tampered(f"leaf {one.index} of tree {one.tree}", f"expected it to be verified absent, got {word}")


def _summary(leaf: OpenedLeaf, place: _Chunk, matches: bool | None) -> OpenedSummary:  # noqa: FBT001 - mapped
    said = place.said
    code = Outcome(place.outcomes[leaf.index - said.start])
    return OpenedSummary(
        kind=said.kind,
        store=said.store,
        index=leaf.index,
        outcome=code.name.lower().replace("_", " "),
        absent=code in FINAL_ABSENT,
        level=said.level,
        method=said.method,
        residue=said.residue,
        at=said.at,
        copy_matches=matches,
    )
