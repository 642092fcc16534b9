"""Signed notes, checkpoints and cosignatures of a transparency log. Specs: C2SP signed-note v1.0.0, tlog-checkpoint
v1.0.0, tlog-cosignature v1.0.1 (the Ed25519 form, `cosignature/v1`).

A note's text means nothing until `open_note` returns it. Malformed notes are `Rejected`, bad signatures `Tampered`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final

from expunge.domain.canonical import base64_decode, base64_encode
from expunge.domain.dsse import SIGNATURE_BYTES, PublicKey, SigningKey
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.merkle import HASH_BYTES

NOTE_BYTES: Final = 1_000_000
"""Largest note accepted, bytes."""
NOTE_SIGNATURES: Final = 100
"""Most signature lines in a note; the spec asks for 16 or more."""

_KEY_ID_BYTES: Final = 4
_TIME_BYTES: Final = 8
_INT63: Final = 2**63
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_DASH: Final = "\N{EM DASH} "


class SignatureType(IntEnum):
    """How a note key signs: the type byte in key ids and verifier keys."""

    ED25519 = 0x01
    COSIGNATURE = 0x04


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A named public key that may sign notes: what a verifier pins.

    `name`: non-empty, no spaces, no `+`; by custom a URL without scheme. `ValueError` on another.
    """

    name: str
    type: SignatureType
    public: PublicKey

    def __post_init__(self) -> None:
        """Raises `ValueError` for a name that no note can carry."""
        if not self.name or "+" in self.name or any(char.isspace() or char < " " for char in self.name):
            raise ValueError("expected a key name without spaces or plus signs")

    @classmethod
    def log(cls, name: str, public: PublicKey) -> NoteKey:
        """A key that signs notes and checkpoints (type 0x01)."""
        return cls(name, SignatureType.ED25519, public)

    @classmethod
    def witness(cls, name: str, public: PublicKey) -> NoteKey:
        """A key that cosigns checkpoints (type 0x04)."""
        return cls(name, SignatureType.COSIGNATURE, public)

    @property
    def key_id(self) -> bytes:
        """First four bytes of SHA-256(name || LF || type || public key)."""
        return sha256(self.name.encode() + bytes((0x0A, self.type)) + self.public.raw).digest()[:_KEY_ID_BYTES]

    def encode(self) -> str:
        """The verifier key: `name+hex(key id)+base64(type || public key)`."""
        return f"{self.name}+{self.key_id.hex()}+{base64_encode(bytes((self.type,)) + self.public.raw)}"

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """The inverse of `encode`. Raises `Rejected("malformed")`, also when the key id is another key's."""
        parts = text.split("+", 2)  # base64 may hold plus signs, a name may not
        try:
            name, _, encoded = parts
            material = base64_decode(encoded)
            key = cls(name, SignatureType(material[0]), PublicKey(material[1:]))
        except (ValueError, IndexError) as error:
            raise Rejected("malformed", "expected a verifier key: name, key id and an Ed25519 key") from error
        if key.encode() != text:
            raise Rejected("malformed", f"expected key id {key.key_id.hex()} in the verifier key, got another")
        return key


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A witness has seen no larger consistent tree than this at `timestamp` (POSIX seconds). Verified."""

    key: NoteKey
    timestamp: int


@dataclass(frozen=True, slots=True)
class Note:
    """A note whose signatures by known keys all verify; `signers` and `cosignatures` are never both empty."""

    text: str
    signers: tuple[NoteKey, ...]
    cosignatures: tuple[Cosignature, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's tree head. `origin`: the log's name; `size`: leaves, below 2**63; `root`: RFC 6962 root, 32 bytes."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that no checkpoint can carry."""
        if not self.origin or "\n" in self.origin or _CONTROL.search(self.origin):
            raise ValueError("expected an origin of one line")
        if not 0 <= self.size < _INT63 or len(self.root) != HASH_BYTES:
            raise ValueError(f"expected a size below 2**63 and {HASH_BYTES} root bytes")

    def text(self) -> str:
        """The note text: three lines, each ended by LF."""
        return f"{self.origin}\n{self.size}\n{base64_encode(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The inverse of `text`. Raises `Rejected("malformed")`, also for extension lines: this log writes none."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not _DECIMAL.fullmatch(lines[1]):  # noqa: PLR2004 - three lines and the end
            raise Rejected("malformed", "expected a checkpoint of origin, size and root")
        try:
            return cls(lines[0], int(lines[1]), base64_decode(lines[2]))
        except ValueError as error:
            raise Rejected("malformed", str(error)) from error


def sign_note(text: str, key: SigningKey, name: str) -> bytes:
    """The note of `text` (ends in LF, no other control characters) with one Ed25519 signature by `key` as `name`.

    A note ends in LF, so more signature lines are simply appended. Raises `ValueError` for a text no note can carry.
    """
    if not text.endswith("\n") or _CONTROL.search(text):
        raise ValueError("expected text that ends in a newline and has no other control characters")
    signer = NoteKey.log(name, key.public)
    return f"{text}\n{_line(signer, key.sign(text.encode()))}".encode()


def open_note(note: bytes, keys: Iterable[NoteKey]) -> Note:
    """The text of `note`, once at least one of `keys` is seen to have signed it.

    Signatures by other keys are ignored. Raises `Rejected("malformed")` on anything that is not a note, `Tampered` when
    no known key signed or any signature by a known key does not verify. `ValueError` when two keys share name and id.
    """
    known: dict[tuple[str, bytes], NoteKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.key_id), key) != key:
            raise ValueError(f"expected one key named {key.name} with id {key.key_id.hex()}, got two")
    text, lines = _split(note)
    signers, cosignatures = [], []
    for name, key_id, signature in lines:
        found = known.get((name, key_id))
        if found is None:
            continue
        if found.type is SignatureType.COSIGNATURE:
            cosignatures.append(Cosignature(found, _verify_cosignature(text, found, signature)))
        elif found.public.verify(signature, text.encode()):
            signers.append(found)
        else:
            raise Tampered("note", f"expected a good signature by {found.name}, got a bad one")
    if not signers and not cosignatures:
        raise Tampered("note", "expected a signature by a known key, got none")
    return Note(text, tuple(signers), tuple(cosignatures))


def sign_checkpoint(checkpoint: Checkpoint, key: SigningKey, name: str) -> bytes:
    """The checkpoint as a note signed by the log. `name`: the log's key name, by custom its origin."""
    return sign_note(checkpoint.text(), key, name)


def open_checkpoint(note: bytes, verifier_keys: Iterable[NoteKey], origin: str | None = None) -> Checkpoint:
    """The checkpoint in `note`, once a log key (type 0x01) among `verifier_keys` is seen to have signed it.

    Cosignatures by witness keys among them are verified too, but do not suffice. Give `origin` wherever one key may
    sign for several logs. Raises as `open_note`, and `Tampered` for another origin.
    """
    opened = open_note(note, verifier_keys)
    if not opened.signers:
        raise Tampered("checkpoint", "expected a signature by the log, got only cosignatures")
    checkpoint = Checkpoint.parse(opened.text)
    if origin is not None and checkpoint.origin != origin:
        raise Tampered("checkpoint", f"expected origin {origin}, got another")
    return checkpoint


def read_checkpoint(note: bytes) -> Checkpoint:
    """The checkpoint in `note`, unverified: for the one who wrote it, never for a verifier. Raises as `Checkpoint.parse`."""
    return Checkpoint.parse(_split(note)[0])


def sign_cosignature(checkpoint_note: bytes, key: SigningKey, name: str, timestamp: int) -> bytes:
    """A witness's signature line for a checkpoint: append it to the note. `timestamp`: POSIX seconds.

    The witness has verified the log's signature and consistency first. Raises `Rejected("malformed")` for a note that
    holds no checkpoint, `ValueError` for a timestamp outside 63 bits.
    """
    if not 0 <= timestamp < _INT63:
        raise ValueError(f"expected POSIX seconds below 2**63, got {timestamp}")
    text, _ = _split(checkpoint_note)
    Checkpoint.parse(text)
    signature = key.sign(_cosigned(text, timestamp))
    witness = NoteKey.witness(name, key.public)
    return _line(witness, timestamp.to_bytes(_TIME_BYTES, "big") + signature).encode()


def verify_cosignature(checkpoint_note: bytes, key: NoteKey) -> int:
    """When `key` (type 0x04) cosigned the checkpoint: the latest timestamp, POSIX seconds. Raises as `open_note`."""
    if key.type is not SignatureType.COSIGNATURE:
        raise ValueError("expected a witness key, got a log key")
    opened = open_note(checkpoint_note, [key])
    Checkpoint.parse(opened.text)
    return max(one.timestamp for one in opened.cosignatures)


def _verify_cosignature(text: str, key: NoteKey, signature: bytes) -> int:
    timestamp = int.from_bytes(signature[:_TIME_BYTES], "big")
    well_formed = len(signature) == _TIME_BYTES + SIGNATURE_BYTES and timestamp < _INT63
    if not well_formed or not key.public.verify(signature[_TIME_BYTES:], _cosigned(text, timestamp)):
        raise Tampered("note", f"expected a good cosignature by {key.name}, got a bad one")
    return timestamp


def _cosigned(text: str, timestamp: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def _line(key: NoteKey, signature: bytes) -> str:
    return f"{_DASH}{key.name} {base64_encode(key.key_id + signature)}\n"


def _split(note: bytes) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    if len(note) > NOTE_BYTES:
        raise Rejected("malformed", f"expected at most {NOTE_BYTES} bytes, got {len(note)}")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise Rejected("malformed", "expected a note in UTF-8") from error
    text, blank, signatures = whole.rpartition("\n\n")
    if not blank or _CONTROL.search(whole) or not signatures.endswith("\n"):
        raise Rejected("malformed", "expected text, a blank line and signature lines, without control characters")
    lines = signatures[:-1].split("\n")
    if len(lines) > NOTE_SIGNATURES:
        raise Rejected("malformed", f"expected at most {NOTE_SIGNATURES} signatures, got {len(lines)}")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash + " " != _DASH or not name or "+" in name or any(char.isspace() for char in name):
        raise Rejected("malformed", "expected a signature line: em dash, key name, base64")
    data = base64_decode(encoded)
    if len(data) <= _KEY_ID_BYTES:
        raise Rejected("malformed", "expected a key id and a signature, got too few bytes")
    return name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:]
