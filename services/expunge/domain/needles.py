"""Which artifacts of a chunk have their bytes looked for, and the sealed file of byte windows to look for.

The sample follows from the root of the checkpoint that published the scope: nobody could know it when the scope was
sealed, and anybody can repeat it. Needles are personal data: the file is encrypted under the sweep's key.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from expunge.domain import leaf
from expunge.domain.errors import Tampered

_SEED: Final = b"expunge sample v1\0"
_PLACE: Final = struct.Struct("<IIH")


@dataclass(frozen=True, slots=True)
class Needle:
    """One byte window of the artifact at `index` of a tree, and how often the unit's files held it `before`."""

    index: int
    before: int
    window: bytes


def sample(checkpoint_root: bytes, sweep: UUID, *, tree: int, chunk: int, leaves: int, count: int) -> list[int]:
    """`count` of the chunk's positions [0, leaves), or all if it has fewer, ascending.

    Floyd's draw over SHA-256(seed || i): the seed is SHA-256 over root, sweep, tree (u16) and chunk (u32), big-endian.
    """
    place = tree.to_bytes(2, "big") + chunk.to_bytes(4, "big")
    seed = hashlib.sha256(_SEED + checkpoint_root + sweep.bytes + place).digest()
    drawn: set[int] = set()
    for top in range(max(leaves - count, 0), leaves):
        word = hashlib.sha256(seed + top.to_bytes(4, "big")).digest()[:8]
        at = int.from_bytes(word, "big") % (top + 1)
        drawn.add(top if at in drawn else at)
    return sorted(drawn)


def seal(key: bytes, name: str, needles: Sequence[Needle]) -> bytes:
    """The encrypted needle file `name`. `key`: K_sweep. Deterministic, and safe when other needles are sealed under the
    same name (AES-SIV, RFC 5297): a repeat after a crash may cut others."""
    plain = b"".join(
        _PLACE.pack(one.index, min(one.before, 2**32 - 1), len(one.window)) + one.window for one in needles
    )
    return _cipher(key).encrypt(plain or b"\0", [name.encode()])


def unseal(key: bytes, name: str, sealed: bytes) -> list[Needle]:
    """The inverse of `seal`. Raises `Tampered` unless the file was sealed under this key and name."""
    try:
        plain = _cipher(key).decrypt(sealed, [name.encode()])
    except InvalidTag as error:
        raise Tampered("needle file", "expected a file sealed under the sweep's key and this name") from error
    found, position = [], 0
    while position + _PLACE.size <= len(plain):
        index, before, length = _PLACE.unpack_from(plain, position)
        position += _PLACE.size
        found.append(Needle(index, before, plain[position : position + length]))
        position += length
    return found


def _cipher(key: bytes) -> AESSIV:
    return AESSIV(leaf.derive_key(key, "needles", b"mac") + leaf.derive_key(key, "needles", b"cipher"))
