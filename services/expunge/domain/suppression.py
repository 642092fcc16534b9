"""Suppression: keyed MACs of what must not come back, and the journal that outlives Postgres and its backups.

A record is 64 bytes, so none straddles a disk sector: version, field code, action, zero (1 byte each), purpose digest
(16), MAC (32), checksum (12: SHA-256 of the 52 bytes before, cut). The checksum finds damage, not a forger: what
may append to the journal may say anything.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final, Literal, TypeAlias

import numpy as np

from expunge.domain import hashing
from expunge.domain.errors import Tampered

Field: TypeAlias = Literal["subject", "locator", "digest"]

KEY_BYTES: Final = 32
MAC_BYTES: Final = 32
PURPOSE_BYTES: Final = 16
RECORD_BYTES: Final = 64
VERSION: Final = 1

_FIELDS: Final[tuple[Field, ...]] = ("subject", "locator", "digest")
_CODES: Final[dict[Field, int]] = {field: code for code, field in enumerate(_FIELDS, 1)}
_BODY: Final = struct.Struct(f">BBBB{PURPOSE_BYTES}s{MAC_BYTES}s")

_SHA_256_BLOCK: Final = 64
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
"""HMAC's pads (RFC 2104), as tables for `bytes.translate`."""


class Action(IntEnum):
    """What a record does to its entry. A later record wins."""

    ADD = 1
    LIFT = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One journal record. `purpose`: `purpose_digest` of the purpose; `mac`: `mac` of the value."""

    field: Field
    action: Action
    purpose: bytes
    mac: bytes

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that no record can carry."""
        if self.field not in _CODES or len(self.purpose) != PURPOSE_BYTES or len(self.mac) != MAC_BYTES:
            raise ValueError(f"expected a known field, {PURPOSE_BYTES} purpose bytes and {MAC_BYTES} MAC bytes")


def purpose_digest(purpose: str) -> bytes:
    """First 16 bytes of SHA-256 of the purpose's name. Purposes are a few known words: this hides nothing."""
    return sha256(purpose.encode()).digest()[:PURPOSE_BYTES]


def mac(key: bytes, field: Field, purpose: str, value: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) of one suppressed value, 32 bytes; linkable by design to who holds `key` (32 bytes).

    Input: "expunge/suppression/v1", field and purpose, each after its length (4 bytes, big-endian), then the value.
    Raises `ValueError` for a key of another length or an unknown field.
    """
    return hmac.digest(key, _prefix(key, field, purpose) + value, "sha256")


def macs(key: bytes, field: Field, purpose: str, values: bytes, size: int) -> bytes:
    """`mac` of each of `len(values) / size` values of `size` bytes, laid end to end: the key is scheduled once for all.

    Raises `ValueError` as `mac` does, and unless the values are whole.
    """
    if size <= 0 or len(values) % size:
        raise ValueError(f"expected whole values of {size} bytes, got {len(values)} bytes")
    padded = key.ljust(_SHA_256_BLOCK, b"\0")
    within = hashing.after(padded.translate(_INNER) + _prefix(key, field, purpose), values, size)
    return hashing.after(padded.translate(_OUTER), within, MAC_BYTES)


def encode(records: Iterable[Record]) -> bytes:
    """Journal bytes of `records`, 64 each: append them, then sync."""
    bodies = [_BODY.pack(VERSION, _CODES[one.field], one.action, 0, one.purpose, one.mac) for one in records]
    return b"".join([part for body in bodies for part in (body, _checksum(body))])


def encode_many(field: Field, action: Action, purpose: bytes, macs: bytes) -> bytes:
    """As `encode`, for records that differ only in their MACs, which are laid end to end. `ValueError` as `Record`."""
    if len(macs) % MAC_BYTES:
        raise ValueError(f"expected whole MACs of {MAC_BYTES} bytes, got {len(macs)} bytes")
    head = encode([Record(field, action, purpose, bytes(MAC_BYTES))])[: _BODY.size - MAC_BYTES]
    count = len(macs) // MAC_BYTES
    sums = hashing.after(head, macs, MAC_BYTES)
    made = np.empty((count, RECORD_BYTES), np.uint8)
    made[:, : len(head)] = np.frombuffer(head, np.uint8)
    made[:, len(head) : _BODY.size] = np.frombuffer(macs, np.uint8).reshape(count, MAC_BYTES)
    made[:, _BODY.size :] = np.frombuffer(sums, np.uint8).reshape(count, sha256().digest_size)[
        :, : RECORD_BYTES - _BODY.size
    ]
    return made.tobytes()


def decode(data: bytes) -> tuple[list[Record], int]:
    """The records of a journal, and how many bytes after the last good one belong to none.

    A write that was cut short leaves such bytes at the end: truncate them before appending. Raises `Tampered` when a
    damaged record is followed by a good one, or a good one says what this version does not know.
    """
    whole = [data[at : at + RECORD_BYTES] for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES)]
    good = [one[_BODY.size :] == _checksum(one[: _BODY.size]) for one in whole]
    count = good.index(False) if False in good else len(good)
    if any(good[count:]):
        raise Tampered("suppression-journal", f"expected record {count} to match its checksum")
    return [_record(number, one) for number, one in enumerate(whole[:count])], len(data) - count * RECORD_BYTES


def _prefix(key: bytes, field: Field, purpose: str) -> bytes:
    if len(key) != KEY_BYTES or field not in _CODES:
        raise ValueError(f"expected a key of {KEY_BYTES} bytes and a known field")
    parts = (b"expunge/suppression/v1", field.encode(), purpose.encode())
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def _record(number: int, data: bytes) -> Record:
    version, field, action, zero, purpose, value = _BODY.unpack_from(data)
    if version != VERSION or not 1 <= field <= len(_FIELDS) or action not in {1, 2} or zero:
        raise Tampered("suppression-journal", f"expected record {number} of version {VERSION}, field and action known")
    return Record(_FIELDS[field - 1], Action(action), purpose, value)


def _checksum(body: bytes) -> bytes:
    return sha256(body).digest()[: RECORD_BYTES - _BODY.size]
