"""What passes between a log and its witnesses (C2SP tlog-witness v1.0.0), and how a witness judges it. Pure: a witness's
process keeps the state and does the signing, in the order that `witness.cosigner` gives.

A witness cosigns a tree only if it extends the largest one that it has cosigned for that log. It remembers size and root
of one tree per log, and needs nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from expunge.domain import merkle, note
from expunge.domain.canonical import base64_decode, base64_encode
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.note import Checkpoint, NoteKey

PROOF_LINES: Final = 63
"""Most consistency proof lines (tlog-witness)."""
REQUEST_BYTES: Final = note.NOTE_BYTES + 64 * 64
"""Largest request accepted, bytes."""
SIZE_TYPE: Final = "text/x.tlog.size"
"""Content type of the answer that tells another old size."""

_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Submission:
    """A checkpoint handed to a witness. `old_size`: what the log takes the witness's latest size to be; `proof`: RFC 6962
    consistency proof from there; `note`: the signed checkpoint. Not verified."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        """The request body."""
        lines = [f"old {self.old_size}", *map(base64_encode, self.proof), "", ""]
        return "\n".join(lines).encode() + self.note

    @classmethod
    def parse(cls, body: bytes) -> Submission:
        """The inverse of `encode`. Raises `Rejected("malformed")`."""
        if len(body) > REQUEST_BYTES:
            raise Rejected("malformed", f"expected at most {REQUEST_BYTES} bytes, got {len(body)}")
        head, blank, rest = body.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise Rejected("malformed", "expected an old size and a proof in ASCII") from error
        match = _OLD.fullmatch(first)
        if not blank or match is None or len(lines) > PROOF_LINES:
            raise Rejected(
                "malformed", f"expected an old size line, at most {PROOF_LINES} proof lines and a checkpoint"
            )
        return cls(int(match[1]), tuple(hashes(lines)), rest)


def hashes(lines: Sequence[str]) -> list[bytes]:
    """Proof lines as hashes. Raises `Rejected("malformed")`."""
    found = [base64_decode(line) for line in lines]
    if any(len(one) != merkle.HASH_BYTES for one in found):
        raise Rejected("malformed", f"expected hashes of {merkle.HASH_BYTES} bytes in the proof")
    return found


@dataclass(frozen=True, slots=True)
class Latest:
    """The largest tree that a witness has cosigned for one log."""

    size: int = 0
    root: bytes = merkle.EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Conflict:
    """The old size is not the witness's: `size` is."""

    size: int


def judge(submission: Submission, logs: Mapping[str, NoteKey], latest: Mapping[str, Latest]) -> Checkpoint | Conflict:
    """The checkpoint to record and cosign. `logs`: keys of known logs by origin; `latest`: by origin.

    Raises `Rejected`: `malformed`, `unknown-log` (404), `bad-signature` (403), `bad-size` (400), `inconsistent` (422:
    perhaps a fork, and the request proves it).
    """
    claimed = note.read_checkpoint(submission.note)
    key = logs.get(claimed.origin)
    if key is None:
        raise Rejected("unknown-log", "expected a checkpoint of a log that this witness knows, got another's")
    try:
        checkpoint = note.open_checkpoint(submission.note, [key], claimed.origin)
    except Tampered as error:
        raise Rejected("bad-signature", str(error)) from error
    if submission.old_size > checkpoint.size:
        raise Rejected("bad-size", f"expected an old size up to {checkpoint.size}, got {submission.old_size}")
    known = latest.get(checkpoint.origin, Latest())
    if submission.old_size != known.size:
        return Conflict(known.size)
    if checkpoint.size == 0 and checkpoint.root != merkle.EMPTY_ROOT:
        raise Rejected("inconsistent", "expected the root of the empty tree at size 0, got another")
    try:
        merkle.verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, submission.proof)
    except Tampered as error:
        raise Rejected("inconsistent", f"expected a tree that extends the one of size {known.size}: {error}") from error
    return checkpoint


def cosigned_by(signed: bytes, lines: bytes, key: NoteKey) -> bytes:
    """`signed` (a checkpoint note) with those of a witness's answer `lines` that are good cosignatures by `key`.

    Others are ignored, as the spec asks. Raises `Rejected("malformed")`, `Tampered` when none is.
    """
    text, _, _ = signed.rpartition(b"\n\n")
    present = set(signed.splitlines(keepends=True))
    found = False
    for line in lines.splitlines(keepends=True):
        try:
            note.verify_cosignature(text + b"\n\n" + line, key)
        except Tampered:
            continue
        found = True
        if line not in present:
            present.add(line)
            signed += line
    if not found:
        raise Tampered("witness", f"expected a cosignature by {key.name}, got none")
    return signed
