"""The signed claims: in-toto Statement v1 bodies, one predicate type each, and the role that may sign each.

A statement speaks about roots, counts, chunks, models and sweeps, never about a person, an artifact or a locator.
Spec: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md; the body is RFC 8785 canonical JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from json.encoder import encode_basestring as text
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import from_json

from expunge.domain import canonical, chunktext
from expunge.domain.errors import Rejected
from expunge.domain.words import Kind, Level, Outcome, Provision, Remedy, Role, Step

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest, lower-case hex."""
Instant = Annotated[AwareDatetime, AfterValidator(lambda at: at.astimezone(UTC))]
"""A time in UTC, however it was given: spelled with `Z`."""
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""Fits an IEEE double, as RFC 8785 asks of numbers."""


class Frozen(BaseModel):
    """Base of everything signed: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TreeScope(Frozen):
    """One tree of a sweep: all artifacts of one kind in one store, in physical order. `root`: RFC 6962 over leaves."""

    kind: Kind
    store: str
    leaves: Count
    root: Hex32


class Scope(Frozen):
    """What a sweep will erase, fixed before anything is. Signed under role `scope`.

    `requests_root`: tree of blinded request leaves (`domain.certificate.Claim`). `selection`: SHA-256 over the digests of
    the requests as received, in leaf order. `catalogue_index`: log index of the last registration batch root that the
    selection could see, -1 for none. `handles_root`: orders only, root over sorted blinded handles in pages of 1,024.
    `excluded`: leaves held or cancelled at sealing. `file`: SHA-256 of the sealed scope file.
    """

    type: Literal["urn:expunge:scope:v1"] = "urn:expunge:scope:v1"
    sweep: Uuid
    sweep_class: Literal["people", "order"]
    trees: tuple[TreeScope, ...]
    requests: Count
    requests_root: Hex32
    images: Count
    selection: Hex32
    catalogue_index: int
    policy: str
    handles_root: Hex32 | None
    excluded: Count
    file: Hex32
    at: Instant


class Chunk(Frozen):
    """What one step did to leaves [start, end) of one tree. Signed under `executor` (hide, erase) or `rescanner`.

    `outcomes`: run lengths (outcome, count) over exactly [start, end); outcome 0 where this attempt does not cover the
    leaf. `chunk_root`: root of the aligned subtree. `previous`: SHA-256 of the payload of attempt n-1, null for attempt
    0. `level`, `method`, `residue`: how far it reached and what may remain. `sampled`: artifacts whose bytes were looked
    for (steps presence and absence).
    """

    type: Literal["urn:expunge:chunk:v1"] = "urn:expunge:chunk:v1"
    sweep: Uuid
    scope: Hex32
    tree: Count
    kind: Kind
    store: str
    step: Step
    attempt: Count
    start: Count
    end: Count
    chunk_root: Hex32
    outcomes: tuple[tuple[Outcome, Count], ...]
    previous: Hex32 | None
    level: Level
    method: str
    residue: tuple[str, ...]
    sampled: Count
    at: Instant


class Completion(Frozen):
    """Requests of one sweep that reached a result in one round. `root`: tree of blinded completion leaves
    (`domain.certificate.Completed`). Signed under `certifier`."""

    type: Literal["urn:expunge:completion:v1"] = "urn:expunge:completion:v1"
    sweep: Uuid
    scope: Hex32
    round: Count
    provision: Provision
    requests: Count
    root: Hex32
    results: dict[str, Count]
    at: Instant


class SourceCount(Frozen):
    """How many artifacts of one kind from one source a registration batch brought."""

    source: str
    kind: Kind
    artifacts: Count


class RegisteredBatch(Frozen):
    """What came in: the "before" of every later reconciliation. `root`: blinded artifact leaves. Role `register`."""

    type: Literal["urn:expunge:registered:v1"] = "urn:expunge:registered:v1"
    batch: Uuid
    leaves: Count
    root: Hex32
    images: Count
    counts: tuple[SourceCount, ...]
    at: Instant


class ScopeApproved(Frozen):
    """An order's scope was approved. `approvers`: key ids of at least two different approvers. Role `scope`."""

    type: Literal["urn:expunge:scope-approved:v1"] = "urn:expunge:scope-approved:v1"
    sweep: Uuid
    scope: Hex32
    approvers: tuple[Hex32, ...]
    at: Instant


class ScopeVoid(Frozen):
    """A sealed scope that will not be carried out. Role `scope`."""

    type: Literal["urn:expunge:scope-void:v1"] = "urn:expunge:scope-void:v1"
    sweep: Uuid
    scope: Hex32
    reason: Literal["approval-expired", "cancelled", "scope-lost"]
    at: Instant


class ScopeUnwitnessed(Frozen):
    """Work on people's requests went ahead before the scope was under a checkpoint with the quorum of witnesses (and the
    time stamp) that this log asks for: they did not answer in the set time, and people do not wait longer. Role `scope`.

    `quorum`: cosignatures asked for; `cosigned`: how many the newest checkpoint over the scope had."""

    type: Literal["urn:expunge:scope-unwitnessed:v1"] = "urn:expunge:scope-unwitnessed:v1"
    sweep: Uuid
    scope: Hex32
    quorum: Count
    cosigned: Count
    timestamped: bool
    at: Instant


class ModelTainted(Frozen):
    """Images in a sweep's scope are in a model's transitive training set. Role `retrainer`.

    `path`: model names from this model to the one trained on the images; `direct`: images in its own snapshots.
    """

    type: Literal["urn:expunge:model-tainted:v1"] = "urn:expunge:model-tainted:v1"
    sweep: Uuid
    scope: Hex32
    model: str
    images: Count
    direct: Count
    path: tuple[str, ...]
    remedy: Remedy
    due: Instant


class MetricVoid(Frozen):
    """A model was evaluated on images in a sweep's scope: its metrics are void, its weights are not tainted."""

    type: Literal["urn:expunge:metric-void:v1"] = "urn:expunge:metric-void:v1"
    sweep: Uuid
    scope: Hex32
    model: str
    images: Count
    at: Instant


class ModelReplaced(Frozen):
    """A tainted model has a clean successor, and its own weights are gone. Role `retrainer`.

    `snapshots`: roots of what the successor was trained on; `cut`: evidence log size at which its exclusion was cut;
    `sweeps`: whose taint this resolves; `overlap`: images shared by successor's training set and exclusion (always 0).
    """

    type: Literal["urn:expunge:model-replaced:v1"] = "urn:expunge:model-replaced:v1"
    model: str
    successor: str
    weights: Hex32
    successor_weights: Hex32
    snapshots: tuple[Hex32, ...]
    cut: Count
    exclusion: Hex32
    overlap: Literal[0] = 0
    sweeps: tuple[Uuid, ...]
    level: Level
    method: str
    at: Instant


class ModelDestroyed(Frozen):
    """A tainted model's weights were destroyed and looked for again. Role `retrainer`."""

    type: Literal["urn:expunge:model-destroyed:v1"] = "urn:expunge:model-destroyed:v1"
    model: str
    weights: Hex32
    sweeps: tuple[Uuid, ...]
    level: Level
    method: str
    at: Instant


class Overdue(Frozen):
    """A provision's date passed before it was closed. Role `certifier`."""

    type: Literal["urn:expunge:overdue:v1"] = "urn:expunge:overdue:v1"
    sweep: Uuid
    provision: Provision
    due: Instant
    at: Instant


class KeyDestroyed(Frozen):
    """A bucket key is gone: no leaf of its requests and sweeps opens any more, and no certificate. Role `certifier`.

    `bucket`: the day whose requests and sweeps had their keys from it. Receipts that were given out still verify.
    """

    type: Literal["urn:expunge:key-destroyed:v1"] = "urn:expunge:key-destroyed:v1"
    bucket: date
    at: Instant


class KeyEvent(Frozen):
    """A signing key of ours came or went. Role `certifier`. For those who watch the log: a verifier's own policy decides.

    `event`: `added` and `retired` from `since` on; `revoked`: nothing under it counts from this statement's index on,
    whatever time it states. `store`: executors only. `key_id`: SHA-256 of the public key.
    """

    type: Literal["urn:expunge:key-event:v1"] = "urn:expunge:key-event:v1"
    event: Literal["added", "retired", "revoked"]
    role: Role
    store: str | None
    key_id: Hex32
    since: Instant
    at: Instant


class ReconciledCount(Frozen):
    """What became of one source's artifacts of one kind. `erased`: verified absent by a completed sweep. `under_way`: not
    in the stores any more, and of a sweep that is not completed yet. `present`: seen in the stores. `difference`:
    registered - erased - under_way - present."""

    source: str
    kind: Kind
    registered: Count
    erased: Count
    under_way: Count
    present: Count
    difference: Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)]


class ReconciledSweep(Frozen):
    """All leaves of one sweep's scope, looked for again: `present` of `leaves` are in the stores."""

    sweep: Uuid
    scope: Hex32
    leaves: Count
    present: Count


class Reconciliation(Frozen):
    """What came in, what was erased and what is there, counted in the stores by who may only look. Role `rescanner`.

    Relative to the first `log_size` entries of the log: `registered` sums their registration batches. One run is `parts`
    statements, this is number `part` from 0. `sweep`: where it follows the completion of an order, that order's scope.
    """

    type: Literal["urn:expunge:reconciliation:v1"] = "urn:expunge:reconciliation:v1"
    log_size: Count
    part: Count
    parts: Count
    counts: tuple[ReconciledCount, ...]
    sweep: ReconciledSweep | None
    at: Instant


Predicate = Annotated[
    Scope
    | Chunk
    | Completion
    | RegisteredBatch
    | ScopeApproved
    | ScopeVoid
    | ScopeUnwitnessed
    | ModelTainted
    | MetricVoid
    | ModelReplaced
    | ModelDestroyed
    | Overdue
    | KeyDestroyed
    | KeyEvent
    | Reconciliation,
    Field(discriminator="type"),
]
_MODEL_OF: Final[dict[str, type[Predicate]]] = {
    one.model_fields["type"].default: one for one in get_args(get_args(Predicate)[0])
}
_HEX32: Final = re.compile(r"[0-9a-f]{64}")

ROLE_OF: Final[dict[str, Role]] = {
    "urn:expunge:scope:v1": Role.SCOPE,
    "urn:expunge:completion:v1": Role.CERTIFIER,
    "urn:expunge:registered:v1": Role.REGISTER,
    "urn:expunge:scope-approved:v1": Role.SCOPE,
    "urn:expunge:scope-void:v1": Role.SCOPE,
    "urn:expunge:scope-unwitnessed:v1": Role.SCOPE,
    "urn:expunge:model-tainted:v1": Role.RETRAINER,
    "urn:expunge:metric-void:v1": Role.RETRAINER,
    "urn:expunge:model-replaced:v1": Role.RETRAINER,
    "urn:expunge:model-destroyed:v1": Role.RETRAINER,
    "urn:expunge:overdue:v1": Role.CERTIFIER,
    "urn:expunge:key-destroyed:v1": Role.CERTIFIER,
    "urn:expunge:key-event:v1": Role.CERTIFIER,
    "urn:expunge:reconciliation:v1": Role.RESCANNER,
}
"""Which role must have signed a predicate type. Chunk statements depend on their step: see `role_of`."""

_LOOKS: Final = frozenset({Step.PRESENCE, Step.ABSENCE})


def role_of(predicate: Predicate) -> Role:
    """The only role whose signature makes this statement count."""
    if isinstance(predicate, Chunk):
        return Role.RESCANNER if predicate.step in _LOOKS else Role.EXECUTOR
    return ROLE_OF[predicate.type]


@dataclass(frozen=True, slots=True)
class Statement:
    """A parsed statement: `subjects` maps a file's name to its SHA-256 (hex)."""

    subjects: dict[str, Hex32]
    predicate: Predicate


@dataclass(frozen=True, slots=True)
class _Seen:
    """A chunk statement that was read. `state`: as pickling it would keep it; `others`: subjects but the `last`."""

    state: dict[str, Any]
    others: dict[str, Hex32]
    last: str

    @classmethod
    def of(cls, chunk: Chunk, subjects: dict[str, Hex32]) -> _Seen:
        *others, last = subjects
        return cls(chunk.__getstate__(), {name: subjects[name] for name in others}, last)

    def like(self, fields: dict[str, Any], digest: Hex32) -> Statement:
        """The same with other values, which nothing validates: what unpickling does, at a third of the price of
        `model_copy`."""
        chunk = Chunk.__new__(Chunk)
        chunk.__setstate__({**self.state, "__dict__": {**self.state["__dict__"], **fields}})
        return Statement({**self.others, self.last: digest}, chunk)


_SEEN: Final[dict[tuple[bytes, ...], _Seen]] = {}
"""By what they share with others of their tree and step."""
_SEEN_MOST: Final = 4096


def payload(predicate: Predicate, subjects: dict[str, str]) -> bytes:
    """The exact bytes to sign. `subjects`: file name to SHA-256 (hex), at least one. Same values, same bytes."""
    named = [f'{{"digest":{{"sha256":"{subjects[name]}"}},"name":{text(name)}}}' for name in sorted(subjects)]
    if isinstance(predicate, Chunk):
        said = chunktext.body(predicate)
    else:
        said = canonical.dumps(predicate.model_dump(mode="json", exclude={"type"})).decode()
    # Keys in RFC 8785's order; a type of ours needs no escapes.
    return (
        f'{{"_type":"{STATEMENT_TYPE}","predicate":{said},"predicateType":"{predicate.type}",'
        f'"subject":[{",".join(named)}]}}'
    ).encode()


def parse(data: bytes) -> Statement:
    """Read a statement. Raises `Rejected("malformed")` on anything that is not exactly one of the predicates above."""
    varying = chunktext.varying(data)
    if varying and (known := _SEEN.get(varying[0])):
        # Nothing but these values is new, and each is spelled in the one way: half the price of what follows.
        _, fields, digest = varying
        return known.like(fields, digest)
    try:
        value = from_json(data)
        predicate = _MODEL_OF[value["predicateType"]].model_validate(value["predicate"])
        subjects = {one["name"]: one["digest"]["sha256"] for one in value["subject"]}
        if not subjects or not all(type(one) is str and _HEX32.fullmatch(subjects[one]) for one in subjects):
            raise TypeError  # noqa: TRY301 - one exit for every wrong shape
        # One spelling: nothing that another reader could take for another value, and the same statement is the same bytes.
        # That also refuses what was passed over so far: other fields, repeated ones, numbers and texts spelled otherwise.
        if payload(predicate, subjects) != data:
            raise TypeError  # noqa: TRY301
    except (KeyError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        message = "expected an in-toto v1 statement with a known predicate, in canonical JSON, got something else"
        raise Rejected("malformed", message) from error
    if varying and isinstance(predicate, Chunk):
        if len(_SEEN) >= _SEEN_MOST:
            _SEEN.clear()
        _SEEN[varying[0]] = _Seen.of(predicate, subjects)
    return Statement(subjects, predicate)


def runs(outcomes: Iterable[int]) -> tuple[tuple[Outcome, int], ...]:
    """Run-length encode outcome codes, as `Chunk.outcomes` holds them."""
    return tuple((Outcome(code), sum(1 for _ in group)) for code, group in groupby(outcomes))


def expand(encoded: Iterable[tuple[Outcome, int]]) -> bytes:
    """The inverse of `runs`: one byte per leaf."""
    return b"".join(bytes([code]) * count for code, count in encoded)


def instant(at: datetime) -> datetime:
    """`at` cut to whole seconds: finer times in public statements would link them to people's actions."""
    return at.replace(microsecond=0)
