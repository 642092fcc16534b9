"""The evidence log as an outsider reads it: RFC 6962 hashing, C2SP notes, DSSE envelopes, and what statements say.

Written from the specifications, with hashlib and one Ed25519 verifier. It shares no line with the product.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CHUNK: Final = 1024
ABSENT: Final = frozenset({1, 2, 3})
"""Outcomes of step absence that mean: not there. Gone, gone earlier, absent before."""
EXCLUDED: Final = 4
"""Held or cancelled: nothing was done to it."""
FILE_ABSENT: Final = 2
"""The level from which on a proof speaks of bytes, and not only of what can be reached."""

ROLES: Final = {
    "urn:expunge:scope:v1": "scope",
    "urn:expunge:completion:v1": "certifier",
    "urn:expunge:registered:v1": "register",
    "urn:expunge:scope-approved:v1": "scope",
    "urn:expunge:scope-void:v1": "scope",
    "urn:expunge:scope-unwitnessed:v1": "scope",
    "urn:expunge:model-tainted:v1": "retrainer",
    "urn:expunge:metric-void:v1": "retrainer",
    "urn:expunge:model-replaced:v1": "retrainer",
    "urn:expunge:model-destroyed:v1": "retrainer",
    "urn:expunge:overdue:v1": "certifier",
    "urn:expunge:key-destroyed:v1": "certifier",
    "urn:expunge:key-event:v1": "certifier",
    "urn:expunge:reconciliation:v1": "rescanner",
}
"""Who must have signed what. Chunks: the executor of the store, or the rescanner, by step."""


class BadEvidenceError(ValueError):
    """Something in the log is not what it should be."""


def leaf_hash(data: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """Roots of prefixes of a list of leaf hashes."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._leaves = leaves
        self._known: dict[tuple[int, int], bytes] = {}

    def root(self, size: int) -> bytes:
        """Of the first `size` leaves."""
        return self._range(0, size) if size else hashlib.sha256(b"").digest()

    def _range(self, start: int, end: int) -> bytes:
        if end - start == 1:
            return self._leaves[start]
        if (found := self._known.get((start, end))) is None:
            split = 1 << (end - start - 1).bit_length() - 1
            found = node_hash(self._range(start, start + split), self._range(start + split, end))
            self._known[start, end] = found
        return found


def included(index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size:
        return False
    number, last, found = index, size - 1, leaf
    for one in path:
        if last == 0:
            return False
        if number & 1 or number == last:
            found = node_hash(one, found)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            found = node_hash(found, one)
        number, last = number >> 1, last >> 1
    return last == 0 and found == root


def signed_by(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a raw Ed25519 key signed exactly this."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def checkpoint(note: str, origin: str, key: bytes) -> tuple[int, bytes]:
    """Size and root of a checkpoint that the log's key signed. Raises `BadEvidenceError`."""
    text, blank, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    if not blank or len(lines) != 3 or lines[0] != origin:
        raise BadEvidenceError(f"expected a checkpoint of {origin}")
    # C2SP signed-note: the key id is the head of SHA-256(name, LF, type 1, key).
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + key).digest()[:4]
    message = f"{text}\n".encode()
    for line in signatures.splitlines():
        parts = line.split(" ")
        if len(parts) == 3 and parts[:2] == ["\N{EM DASH}", origin]:
            signature = base64.b64decode(parts[2])
            if signature[:4] == key_id and signed_by(key, signature[4:], message):
                return int(lines[1]), base64.b64decode(lines[2])
    raise BadEvidenceError("expected a checkpoint signed by the log's key")


@dataclass(frozen=True, slots=True)
class Statement:
    """One entry that somebody we trust signed under its role. `digest`: SHA-256 of the payload, hex."""

    index: int
    type: str
    digest: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """A pinned key."""

    role: str
    store: str | None
    public: bytes


def statement(index: int, entry: bytes, keys: Sequence[Key]) -> Statement:
    """Read one entry: a DSSE envelope with an in-toto statement. Raises `BadEvidenceError`."""
    try:
        envelope = json.loads(entry)
        payload = base64.b64decode(envelope["payload"], validate=True)
        kind = envelope["payloadType"]
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        said = json.loads(payload)
        type_, body = said["predicateType"], said["predicate"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BadEvidenceError(f"entry {index}: expected an envelope with a statement") from error
    role, store = _role(type_, body, index)
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    trusted = [one.public for one in keys if one.role == role and one.store in {None, store}]
    if not any(signed_by(key, signature, message) for key in trusted for signature in signatures):
        raise BadEvidenceError(f"entry {index}: expected a {type_} signed under role {role}")
    return Statement(index, type_, hashlib.sha256(payload).hexdigest(), body)


def _role(type_: str, body: dict[str, Any], index: int) -> tuple[str, str | None]:
    if type_ == "urn:expunge:chunk:v1":
        looked = body.get("step") in {"presence", "absence"}
        return ("rescanner", None) if looked else ("executor", body.get("store"))
    if type_ not in ROLES:
        raise BadEvidenceError(f"entry {index}: expected a known type of statement, got {type_}")
    return ROLES[type_], None


@dataclass(slots=True)
class ChunkSaid:
    """What was said about one chunk of one tree so far: last outcome of each leaf by step (0: none)."""

    steps: dict[str, bytearray] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    level: int = 0
    """How far the last statement of step absence says that erasing reached."""
    sampled: int = 0
    """Of how many leaves it looked for the bytes."""

    @property
    def looked(self) -> bool:
        """Whether the bytes of every leaf that is said to be gone were looked for. They are of no other: the sample was
        drawn before erasing, of all."""
        absence = self.steps.get("absence", bytearray())
        return self.sampled >= sum(code in ABSENT for code in absence)


@dataclass(slots=True)
class SweepSaid:
    """What the log says about one sweep, up to an index. `completions`: by round."""

    scope: Statement
    chunks: dict[tuple[int, int], ChunkSaid] = field(default_factory=dict)
    completions: dict[int, Statement] = field(default_factory=dict)
    then: dict[int, dict[tuple[int, int], ChunkSaid]] = field(default_factory=dict)
    """What had been said of the chunks when each round completed."""
    approved: bool = False
    void: bool = False
    tainted: set[str] = field(default_factory=set)

    def leaves(self, tree: int) -> int:
        return int(self.scope.body["trees"][tree]["leaves"])

    def chunk(self, said: Statement) -> None:
        """Fold the next chunk statement. Raises `BadEvidenceError` where it cannot follow what was said before."""
        body, where = (
            said.body,
            f"entry {said.index}: tree {said.body['tree']} [{said.body['start']}, {said.body['end']})",
        )
        if body["scope"] != self.scope.digest:
            raise BadEvidenceError(f"{where}: expected the scope of its sweep, got another")
        if body["tree"] >= len(self.scope.body["trees"]):
            raise BadEvidenceError(f"{where}: expected a tree of the scope")
        number = self._number(body, where)
        told = b"".join(bytes([code]) * count for code, count in body["outcomes"])
        if len(told) != body["end"] - body["start"]:
            raise BadEvidenceError(f"{where}: expected one outcome per leaf")
        chunk = self.chunks.setdefault((body["tree"], number), ChunkSaid())
        if body["previous"] != chunk.last.get(body["step"]):
            raise BadEvidenceError(f"{where}: expected it to follow what was said of step {body['step']} before")
        if body["step"] != "presence" and "presence" not in chunk.steps:
            raise BadEvidenceError(f"{where}: expected presence to be said before")
        chunk.last[body["step"]] = said.digest
        if body["step"] == "absence":
            chunk.level, chunk.sampled = body["level"], body["sampled"]
        now = chunk.steps.setdefault(body["step"], bytearray(len(told)))
        for at, code in enumerate(told):
            now[at] = code or now[at]
        if body["step"] == "erase" and "absence" in chunk.steps:  # what is erased anew is to be looked for anew
            absence = chunk.steps["absence"]
            for at, code in enumerate(told):
                absence[at] = 0 if code else absence[at]

    def _number(self, body: dict[str, Any], where: str) -> int:
        leaves = self.leaves(body["tree"])
        number, rest = divmod(body["start"], CHUNK)
        if rest or body["start"] >= leaves or body["end"] != min(body["start"] + CHUNK, leaves):
            raise BadEvidenceError(f"{where}: expected a whole chunk of {leaves} leaves")
        return int(number)


def canonical(value: object) -> bytes:
    """RFC 8785 for what certificates hold: ASCII keys, text, whole numbers."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def opens(body: object, opening: dict[str, Any], root: str) -> bool:
    """Whether a blinded leaf, nonce and SHA-256 of its canonical body, is under a root."""
    leaf = leaf_hash(bytes.fromhex(opening["nonce"]) + hashlib.sha256(canonical(body)).digest())
    path = [bytes.fromhex(one) for one in opening["path"]]
    return included(opening["index"], opening["size"], leaf, path, bytes.fromhex(root))
