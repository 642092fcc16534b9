"""A random sample of an order's artifacts, opened and read back, chosen by what nobody knew before: a later checkpoint.

Which leaves are asked for follows from the root hash of a checkpoint that the auditor brings, from after the order's
completion. The answer opens them in the trees that the scope fixed, and says of each whether the stores still have it.
The openings are proof; what was read back is the word of whoever may only look: the answer is signed under role
`rescanner`. It is no log entry, for it opens leaves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from expunge.domain import bundle, canonical, dsse, evidence, merkle, note, verification
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.leaf import pack_leaves
from expunge.domain.statement import Count, Frozen, Hex32, Scope, Uuid
from expunge.domain.trust import Trust
from expunge.domain.words import Role

FORMAT: Final = "urn:expunge:challenge:v1"
PAYLOAD_TYPE: Final = "application/vnd.expunge.challenge+json"
"""Of the DSSE envelope: an answer is no statement, and no statement is an answer."""
ANSWER_BYTES: Final = 1 << 29
"""Largest signed answer that is read, bytes: what `MOST` openings take."""
MOST: Final = 100_000
"""Most leaves of one challenge."""

_LABEL: Final = b"expunge/challenge/v1"
_WORD: Final = 8
_IDS: Final = 2**48


class Opened(Frozen):
    """One leaf of the scope. `path`: RFC 6962 inclusion path to the root of its tree; `present`: the store has it."""

    tree: Count
    index: Count
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    artifact: Annotated[int, Field(ge=0, lt=_IDS)]
    digest: Hex32
    path: tuple[Hex32, ...]
    present: bool

    def hashed(self) -> bytes:
        """The leaf's hash."""
        return merkle.leaf_hash(
            pack_leaves(bytes.fromhex(self.nonce), self.artifact.to_bytes(6, "big"), bytes.fromhex(self.digest))
        )


class Answer(Frozen):
    """See the module. `checkpoint`: the note that the places follow from; `openings`: ascending; `at`: when it was read."""

    format: Literal["urn:expunge:challenge:v1"] = FORMAT
    request: Uuid
    sweep: Uuid
    scope: Hex32
    checkpoint: str
    count: Count
    openings: tuple[Opened, ...]
    at: AwareDatetime


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that opens what was asked for. `size`: of the checkpoint; `at`: when the stores were read; `present`: places
    that they still have."""

    leaves: int
    size: int
    at: datetime
    present: tuple[tuple[int, int], ...]


def samples(bad_share: float, confidence: float) -> int:
    """How many random leaves show at least one bad one with this confidence, where this share of them is bad.

    With replacement, so never too few: 299 for 1 % and 95 %. Raises `ValueError` outside (0, 1)."""
    if not (0 < bad_share < 1 and 0 < confidence < 1):
        raise ValueError("expected a share and a confidence between 0 and 1")
    return math.ceil(math.log(1 - confidence) / math.log(1 - bad_share))


def places(root: bytes, scope: str, leaves: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """The (tree, index) of `count` different leaves, or all where there are fewer, ascending.

    `root`: of the checkpoint; `scope`: SHA-256 (hex) of the scope statement's payload; `leaves`: of each tree. Leaves are
    numbered through, tree by tree. Draw n is the first 8 bytes, big-endian, of SHA-256 over label, root, scope and n (8
    bytes, big-endian); draws at or above the largest multiple of the total are passed over, others count modulo the
    total, and one that was drawn before is passed over."""
    total = sum(leaves)
    wanted = min(count, total)
    fair = 2 ** (8 * _WORD) // total * total if total else 0
    seed = _LABEL + root + bytes.fromhex(scope)
    drawn: set[int] = set()
    number = 0
    while len(drawn) < wanted:
        word = int.from_bytes(hashlib.sha256(seed + number.to_bytes(_WORD, "big")).digest()[:_WORD], "big")
        number += 1
        if word < fair:
            drawn.add(word % total)
    return tuple(_placed(sorted(drawn), leaves))


def _placed(ascending: Iterable[int], leaves: Sequence[int]) -> Iterable[tuple[int, int]]:
    tree = before = 0
    for one in ascending:
        while one - before >= leaves[tree]:
            before += leaves[tree]
            tree += 1
        yield tree, one - before


def dump(answer: Answer) -> bytes:
    """Canonical JSON: what is signed, as `PAYLOAD_TYPE`."""
    return canonical.dumps(answer.model_dump(mode="json"))


def parse(signed: bytes) -> Answer:
    """Read a signed answer; nothing is verified. Raises `Tampered("challenge")`."""
    return _parsed(_envelope(signed).payload)


def _envelope(signed: bytes) -> dsse.Envelope:
    try:
        return dsse.parse(signed, ANSWER_BYTES)
    except Rejected as error:
        raise Tampered("challenge", str(error)) from error


def _parsed(data: bytes) -> Answer:
    try:
        answer = Answer.model_validate_json(data)
        if dump(answer) == data:
            return answer
    except ValueError as error:  # pydantic's ValidationError is one
        raise Tampered("challenge", "expected the answer to a challenge, got something else") from error
    raise Tampered("challenge", "expected canonical JSON (RFC 8785), got another spelling")


def verify(
    signed: bytes, files: Mapping[str, bytes], trust: Trust, checkpoint: bytes, count: int
) -> Answered:  # fmt: skip
    """Check a signed answer against an order's bundle and the auditor's own checkpoint and count.

    1. the bundle verifies, 2. the checkpoint is the log's, cosigned as the policy asks, from after the completion, 3. a
    rescanner's key signed the answer, which is about the bundle's scope and this checkpoint, 4. the places are those that
    follow from it, 5. each opens in its tree. Raises `Tampered` naming the first thing that is wrong. What is still
    present is for the caller to judge.
    """
    # 1
    summary = verification.verify(files, trust).verified()
    made = bundle.load(files)
    scope = evidence.scope_of(made, trust)
    # 2
    point = _point(checkpoint, trust)
    if point.size <= summary.completion_index:
        raise Tampered(
            "checkpoint", f"expected a log of more than {summary.completion_index} entries, got {point.size}"
        )
    # 3
    answer = _signed(signed, trust, point.size)
    about = (answer.request, answer.sweep, answer.scope)
    if about != (made.certificate.request, made.certificate.sweep, made.certificate.scope):
        raise Tampered("challenge", "expected an answer about the bundle's order, got another's")
    if answer.checkpoint.encode() != checkpoint:
        raise Tampered("challenge", "expected an answer to this checkpoint, got another's")
    # 4
    leaves = [tree.leaves for tree in scope.trees]
    expected = places(point.root, answer.scope, leaves, count)
    if answer.count != count or tuple((one.tree, one.index) for one in answer.openings) != expected:
        raise Tampered("challenge", f"expected the {len(expected)} leaves that the checkpoint asks for, got others")
    # 5
    for one in answer.openings:
        _check(one, scope)
    present = tuple((one.tree, one.index) for one in answer.openings if one.present)
    return Answered(len(answer.openings), point.size, answer.at, present)


def _point(checkpoint: bytes, trust: Trust) -> note.Checkpoint:
    """The auditor's checkpoint. An issuer may sign as many forks as it likes until one draws kindly: witnesses do not."""
    try:
        point = note.open_checkpoint(checkpoint, trust.log_keys, trust.origin)
        names = {one.key.name for one in note.open_note(checkpoint, trust.log_keys).cosignatures}
    except Rejected as error:
        raise Tampered("checkpoint", str(error)) from error
    if len(names) < trust.quorum:
        raise Tampered("checkpoint", f"expected cosignatures by {trust.quorum} pinned witnesses, got {len(names)}")
    return point


def _signed(signed: bytes, trust: Trust, size: int) -> Answer:
    """The answer, once a rescanner's key that was valid then is seen to have signed it. `size`: of the log at the least."""
    envelope = _envelope(signed)
    answer = _parsed(envelope.payload)
    if len(envelope.signatures) != 1:
        raise Tampered("challenge", f"expected one signature, got {len(envelope.signatures)}")
    try:
        key = trust.key_for(Role.RESCANNER, envelope.signatures[0].key_id, None, answer.at, size)
        dsse.verify(envelope, key, PAYLOAD_TYPE)
    except Tampered as error:
        raise Tampered("challenge", str(error)) from error
    return answer


def _check(one: Opened, scope: Scope) -> None:
    tree = scope.trees[one.tree]
    path = [bytes.fromhex(node) for node in one.path]
    try:
        merkle.verify_inclusion(one.index, tree.leaves, one.hashed(), path, bytes.fromhex(tree.root))
    except Tampered as error:
        raise Tampered(f"tree {one.tree} leaf {one.index}", str(error)) from error
