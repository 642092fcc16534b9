"""What a request's certificate opens: its leaf in the scope's request tree, and its leaf in a round's completion tree.

Both leaves are `nonce (16 bytes) || SHA-256 (canonical JSON body)`, so that the trees say nothing about a person, and
the certificate opens exactly one leaf of each. Everything else it needs is in the sweep's statements, shared by all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, Literal, assert_never

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import AwareDatetime

from expunge.domain import canonical
from expunge.domain.errors import Tampered
from expunge.domain.statement import Count, Frozen, Hex32, Uuid
from expunge.domain.words import Kind, Level, Outcome, Provision, Remedy

OPENING_BYTES: Final = 48
"""A claim or completion leaf: nonce (16) and body digest (32)."""


class TreeClaim(Frozen):
    """A request's artifacts in one tree. `indices`: SHA-256 over its leaf indices, ascending, little-endian uint32."""

    tree: Count
    leaves: Count
    indices: Hex32


class Claim(Frozen):
    """What a request asked to have erased, fixed with the scope, so that a failed artifact cannot be left out later.

    `retained`: artifacts that stay because a purpose remains, by the purposes that remain (sorted, joined by `+`).
    `erased_earlier`: images of an order's selection that an earlier sweep had erased already.
    """

    request: Uuid
    images: Count
    trees: tuple[TreeClaim, ...]
    retained: dict[str, Count]
    erased_earlier: Count


class OutcomeCount(Frozen):
    """How many of a request's artifacts in one tree ended with one outcome of step absence."""

    tree: Count
    outcome: Outcome
    artifacts: Count


class ModelDue(Frozen):
    """A model that the request taints, and what will be done about it by when."""

    model: str
    remedy: Remedy
    due: AwareDatetime
    resolution: Literal["open", "replaced", "destroyed"]


Result = Literal["complete", "blocked", "partial", "unverified", "held", "cancelled", "overdue"]


class Completed(Frozen):
    """The result of one provision of one request. Arithmetic over the sweep's absence statements gives the same."""

    request: Uuid
    provision: Provision
    result: Result
    outcomes: tuple[OutcomeCount, ...]
    models: tuple[ModelDue, ...]


class StoreLevel(Frozen):
    """How far erasure was verified in one store and what may remain there."""

    kind: Kind
    store: str
    level: Level
    method: str
    residue: tuple[str, ...]


class Opening(Frozen):
    """One leaf of a blinded tree: `nonce` (16 bytes, hex), position and RFC 6962 inclusion path (hex)."""

    index: Count
    size: Count
    nonce: str
    path: tuple[Hex32, ...]


class Certificate(Frozen):
    """Closes one provision of one request. Small: everything that the sweep's requests share is in its statements.

    `indices`: the request's leaf indices per tree as runs (first, count). `not_covered`: what the certificate says
    nothing about, in plain words.
    """

    version: Literal[1] = 1
    issuer: str
    request: Uuid
    provision: Provision
    sweep: Uuid
    scope: Hex32
    round: Count
    claim: Claim
    claim_opening: Opening
    indices: tuple[tuple[tuple[Count, Count], ...], ...]
    completed: Completed
    completed_opening: Opening
    not_covered: tuple[str, ...]


def body_bytes(body: Claim | Completed) -> bytes:
    """Canonical bytes of a leaf's body."""
    return canonical.dumps(body.model_dump(mode="json"))


def leaf(nonce: bytes, body: bytes) -> bytes:
    """The 48-byte blinded leaf of a claim or completion body. `nonce`: 16 bytes."""
    return nonce + hashlib.sha256(body).digest()


def seal(key: bytes, round_number: int, certificate: bytes) -> bytes:
    """A certificate boxed under its request's key (32 bytes; ChaCha20-Poly1305, RFC 8439). A request has at most one
    certificate per round, so the round is the nonce."""
    return ChaCha20Poly1305(key).encrypt(round_number.to_bytes(12, "big"), certificate, b"certificate")


def unseal(key: bytes, round_number: int, box: bytes) -> bytes:
    """The inverse of `seal`. Raises `Tampered` when the box is not of this key and round."""
    try:
        return ChaCha20Poly1305(key).decrypt(round_number.to_bytes(12, "big"), box, b"certificate")
    except InvalidTag as error:
        raise Tampered("certificate-box", "expected a box of this request and round") from error


def result_of(
    provision: Provision,
    outcomes: Mapping[Outcome, int],
    models: Iterable[ModelDue] = (),
    *,
    at: datetime | None = None,
    cancelled: bool = False,
) -> Result:
    """The one rule that turns counts into a result: certify claims by it, verify recomputes it.

    `outcomes`: last outcomes of step absence over the request's artifacts; `models`: what the request taints; `at`:
    time of the completion, for what is overdue then; `cancelled`: why artifacts were excluded, if they were.

    Data: complete only if every artifact is finally absent, else the first of held (or cancelled), blocked, partial,
    unverified that has an artifact. Models: complete only if each is replaced or destroyed.
    """
    match provision:
        case Provision.DATA:
            return _data_result({code for code, count in outcomes.items() if count}, cancelled=cancelled)
        case Provision.MODELS:
            open_dues = [model.due for model in models if model.resolution == "open"]
            if not open_dues:
                return "complete"
            return "overdue" if at is not None and min(open_dues) < at else "unverified"
        case _:
            assert_never(provision)


def _data_result(seen: set[Outcome], *, cancelled: bool) -> Result:
    if Outcome.EXCLUDED in seen:
        return "cancelled" if cancelled else "held"
    if Outcome.BLOCKED in seen:
        return "blocked"
    if Outcome.FAILED in seen:
        return "partial"
    if seen & {Outcome.OPEN, Outcome.PRESENT}:
        return "unverified"
    return "complete"
