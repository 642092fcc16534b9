"""A bundle's statements, believed step by step: steps 1 to 5 of `domain.verification`.

What leaves `sorted_out` is in the log, signed under its role, about one sweep, and in the order that the law of the
system asks for. What it adds up to is `domain.accounting`'s.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final, assert_never

from expunge.domain import attestation, coverage, dsse, merkle, note, statement
from expunge.domain import bundle as bundles
from expunge.domain.attestation import Attested
from expunge.domain.bundle import Bundle, Shared
from expunge.domain.certificate import Certificate
from expunge.domain.coverage import DEEDS
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.statement import (
    Chunk,
    Completion,
    KeyDestroyed,
    KeyEvent,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Predicate,
    Reconciliation,
    RegisteredBatch,
    Scope,
    ScopeApproved,
    ScopeUnwitnessed,
    ScopeVoid,
    Statement,
)
from expunge.domain.trust import Trust
from expunge.domain.words import Role, Step

APPROVERS: Final = 2
"""Different approvers that an order needs before any deed."""


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


# 1


def check_issuer(certificate: Certificate, trust: Trust) -> None:
    if certificate.issuer != trust.issuer:
        raise Tampered("policy", f"expected a certificate by {trust.issuer}, got another issuer")


# 2


def checkpoint(bundle: Shared, trust: Trust) -> note.Checkpoint:
    try:
        return note.open_checkpoint(bundle.checkpoint, trust.log_keys, trust.origin)
    except Rejected as error:
        raise Tampered(bundles.CHECKPOINT, str(error)) from error


def attested(bundle: Shared, trust: Trust) -> Attested:
    return attestation.check(bundle.attestations, bundle.checkpoint, trust)


# 3


def check_inclusion(bundle: Shared, checkpoint: note.Checkpoint) -> None:
    for one in bundle.statements:
        try:
            merkle.verify_inclusion(
                one.index, checkpoint.size, merkle.leaf_hash(one.envelope), one.path, checkpoint.root
            )
        except Tampered as error:
            raise Tampered(f"statement {one.index}", str(error)) from error


# 4


def signed(bundle: Shared, trust: Trust) -> tuple[Entry, ...]:
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
        digest = check_signature(envelope, said.predicate, trust, scope_time, f"statement {index}", index=index)
        entries.append(Entry(index, digest, said))
    return tuple(entries)


def scope_of(bundle: Bundle, trust: Trust) -> Scope:
    """The scope of a bundle that was verified. Raises `Tampered`."""
    return _one_scope(signed(bundle, trust), bundle.certificate)[1]


def check_signature(
    envelope: dsse.Envelope,
    predicate: Predicate,
    trust: Trust,
    scope_time: datetime | None,
    where: str,
    *,
    index: int,
) -> str:
    """Check that a key of the predicate's only role signed the envelope, and nobody else did; SHA-256 (hex) of its
    payload. `scope_time`: stands for the time of statements that hold none; `index`: where it is in the log. Raises
    `Tampered(where)`."""
    at = scope_time if isinstance(predicate, ModelTainted) else predicate.at
    if at is None:
        raise Tampered(where, "expected the scope statement that gives it a time, got none")
    store = predicate.store if isinstance(predicate, Chunk) and predicate.step in DEEDS else None
    if len(envelope.signatures) != 1:
        raise Tampered(where, f"expected one signature, got {len(envelope.signatures)}")
    try:
        key = trust.key_for(statement.role_of(predicate), envelope.signatures[0].key_id, store, at, index)
        dsse.verify(envelope, key, statement.PAYLOAD_TYPE)
    except Tampered as error:
        raise Tampered(where, str(error)) from error
    return sha256(envelope.payload).hexdigest()


# 5


def sorted_out(entries: tuple[Entry, ...], certificate: Certificate, trust: Trust) -> Sweep:
    scope_entry, scope = _one_scope(entries, certificate)
    for entry in entries:
        if entry is not scope_entry:
            check_about(entry, certificate.sweep, certificate.scope)
            if entry.index < scope_entry.index:
                raise Tampered(
                    f"statement {entry.index}", f"expected the scope to be logged before, it is at {scope_entry.index}"
                )
    chunks = [(entry, entry.predicate) for entry in entries if isinstance(entry.predicate, Chunk)]
    _check_presence_first(chunks)
    check_approved(entries, scope, chunks, trust)
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


def check_about(entry: Entry, sweep: str, scope: str) -> None:  # noqa: C901 - one case per predicate
    """Refuse statements that are about something else, and those that this verifier would not know how to weigh."""
    where = f"statement {entry.index}"
    match entry.predicate:
        case Chunk() | Completion() | ScopeApproved() | ScopeUnwitnessed() | ModelTainted() | MetricVoid() as said:
            if (said.sweep, said.scope) != (sweep, scope):
                raise Tampered(where, "expected a statement about this sweep's scope, got another's")
        case ModelReplaced() | ModelDestroyed() as said:
            if sweep not in said.sweeps:
                raise Tampered(where, "expected a statement that resolves this sweep's taint, got another's")
        case Overdue() as said:
            if said.sweep != sweep:
                raise Tampered(where, "expected a statement about this sweep, got another's")
        case Reconciliation() as said:
            if said.sweep is None or (said.sweep.sweep, said.sweep.scope) != (sweep, scope):
                raise Tampered(where, "expected a reconciliation that looked for this sweep's scope, got another's")
        case ScopeVoid():
            raise Tampered(where, "expected a scope that stands, this one is void")
        case Scope() | RegisteredBatch() | KeyDestroyed() | KeyEvent():
            raise Tampered(where, "expected only statements about this sweep, got another kind")
        case _:
            assert_never(entry.predicate)


def check_attested(
    entries: Sequence[Entry],
    scope: tuple[Entry, Scope],
    chunks: Sequence[tuple[Entry, Chunk]],
    attested: Attested,
    trust: Trust,
) -> str:
    """Check that pinned parties vouch for the scope before the first deed, where they must; what was seen, in words."""
    deeds = [(entry.index, said.at) for entry, said in chunks if said.step in DEEDS]
    deed = (min(index for index, _ in deeds), min(at for _, at in deeds)) if deeds else None
    said_so = any(isinstance(entry.predicate, ScopeUnwitnessed) for entry in entries)
    needed = scope[1].sweep_class == "order"
    seen = attestation.check_before(attested, scope[0].index, deed, trust, needed=needed)
    return f"{seen}, as a statement says" if said_so and seen == attestation.NOT_BEFORE else seen


def _check_presence_first(chunks: Sequence[tuple[Entry, Chunk]]) -> None:
    seen: set[tuple[int, int]] = set()
    for _, chunk in chunks:  # in log order
        if chunk.step is Step.PRESENCE:
            seen.add((chunk.tree, chunk.start))
        elif chunk.step in DEEDS and (chunk.tree, chunk.start) not in seen:
            raise Tampered(coverage.place(chunk), "expected presence to be recorded before, got none")


def check_approved(entries: Sequence[Entry], scope: Scope, chunks: Sequence[tuple[Entry, Chunk]], trust: Trust) -> None:
    """Check that two pinned approvers are named before an order's first deed. Raises `Tampered`."""
    first_deed = min((entry.index for entry, chunk in chunks if chunk.step in DEEDS), default=sys.maxsize)
    approved = False
    for entry in entries:
        if isinstance(said := entry.predicate, ScopeApproved):
            where = f"statement {entry.index}"
            if len(set(said.approvers)) < max(APPROVERS, len(said.approvers)):
                raise Tampered(where, f"expected {APPROVERS} or more different approvers")
            for key_id in said.approvers:
                try:
                    trust.key_for(Role.APPROVER, key_id, None, said.at, entry.index)
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
        raise Tampered(
            "completion", f"expected one completion statement of round {certificate.round}, got {len(found)}"
        )
    entry, completion = found[0]
    if completion.provision is not certificate.provision:
        raise Tampered("completion", f"expected a round of provision {certificate.provision.value}, got the other")
    return entry, completion
