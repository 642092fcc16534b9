"""What a request's certificate opens: its leaf in the scope's request tree, and its leaf in a round's completion tree.

Both leaves are `nonce (16 bytes) || SHA-256 (canonical JSON body)`, so that the trees say nothing about a person, and the
certificate opens exactly one leaf of each. Everything else it needs is in the sweep's statements, shared by all.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from pydantic import AwareDatetime

from expunge.domain import canonical
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
