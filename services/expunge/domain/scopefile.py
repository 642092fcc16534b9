"""The sealed scope file: who and what is in a sweep, in sections of which only the needed one is ever decrypted.

    "EXPSCOPE" | version u16 | header length u32 | header (RFC 8785 JSON)
    sections, each sealed                     in the order written
    table, sealed                             columns: names, offsets u64, lengths u64
    table offset u64 | table length u32 | "EXPSCEND"

Integers are little-endian. Sealed: ChaCha20-Poly1305 (RFC 8439), nonce = section number (12 bytes; all ones for the
table), additional data = SHA-256 of all bytes before the first section, then the section's name. The key is derived
from the sweep's key and that same digest, so files with different headers never share a keystream.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from itertools import accumulate, pairwise
from mmap import mmap
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.poly1305 import Poly1305

from expunge.domain import canonical
from expunge.domain.canonical import Json
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.leaf import derive_key
from expunge.domain.merkle import HASH_BYTES

VERSION: Final = 1
Buffer: TypeAlias = bytes | memoryview | mmap
Section: TypeAlias = bytes | Iterable[bytes]
"""A section's data, whole or in pieces."""

_MAGIC: Final = b"EXPSCOPE"
_END: Final = b"EXPSCEND"
_HEAD: Final = struct.Struct("<8sHI")
_TAIL: Final = struct.Struct("<QI8s")
_TABLE: Final = "table"
_TABLE_NONCE: Final = b"\xff" * 12
_WORD: Final = 4
_CIPHER_BLOCK: Final = 64
_MAC_KEY: Final = 32
_MAC_BLOCK: Final = 16
_SEALED_AT_ONCE: Final = 1 << 20
"""Bytes of a section in pieces that are sealed at once."""


def blocks(header: Mapping[str, object], sections: Iterable[tuple[str, Section]], key: bytes) -> Iterator[bytes]:
    """The file of `header` and named `sections`, piece by piece: memory stays at one section, or at one piece of it.

    `header`: sweep id, bucket id, trees; readable without the key, so nothing about a person. `key`: the sweep's key,
    32 bytes. One (key, header) must seal one content only: a file that is written anew gets a header that differs.
    Raises `ValueError` for a name used twice.
    """
    body = canonical.dumps(header)
    head = _HEAD.pack(_MAGIC, VERSION, len(body)) + body
    seal = _Seal(head, key)
    yield head
    names: dict[str, None] = {}
    offsets = [len(head)]
    for name, data in sections:
        if name in names:
            raise ValueError(f"expected each section once, got {name} twice")
        end, nonce = offsets[-1], len(names).to_bytes(12, "little")
        for sealed in (
            seal.pieces(name, nonce, data) if not isinstance(data, bytes) else [seal.encrypt(name, nonce, data)]
        ):
            end += len(sealed)
            yield sealed
        names[name] = None
        offsets.append(end)
    lengths = [end - start for start, end in pairwise(offsets)]
    table = pack_columns(
        {
            "names": pack_strings(list(names)),
            "offsets": struct.pack(f"<{len(names)}Q", *offsets[:-1]),
            "lengths": struct.pack(f"<{len(names)}Q", *lengths),
        }
    )
    sealed = seal.encrypt(_TABLE, _TABLE_NONCE, table)
    yield sealed
    yield _TAIL.pack(offsets[-1], len(sealed), _END)


def write(header: Mapping[str, object], sections: Iterable[tuple[str, Section]], key: bytes) -> bytes:
    """As `blocks`, in one piece."""
    return b"".join(blocks(header, sections, key))


class ScopeFile:
    """An open scope file: its header and table have been authenticated, its sections are as they are read.

    Whether this is the right file, whole, is for the digest in the scope statement to say.
    """

    def __init__(
        self, buffer: Buffer, seal: _Seal, header: dict[str, Json], table: dict[str, tuple[int, int, int]]
    ) -> None:
        self.header = header
        self._buffer = buffer
        self._seal = seal
        self._table = table

    @classmethod
    def open(cls, buffer: Buffer, key: bytes) -> ScopeFile:
        """Read header and table. `key`: the sweep's key, 32 bytes.

        Raises `Tampered` when the file is not one of ours, was cut or changed, or the key is another's.
        """
        head, header = _read_head(buffer)
        seal = _Seal(head, key)
        if len(buffer) < len(head) + _TAIL.size:
            raise Tampered("scope-file", "expected a table, got the end of the file")
        offset, length, end = _TAIL.unpack(buffer[-_TAIL.size :])
        if end != _END or offset + length + _TAIL.size != len(buffer):
            raise Tampered("scope-file", "expected the table's place at the end, got something else")
        columns = unpack_columns(seal.decrypt(_TABLE, _TABLE_NONCE, buffer[offset : offset + length]))
        return cls(buffer, seal, header, _read_table(columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Section names, as written."""
        return tuple(self._table)

    def section(self, name: str) -> bytes:
        """Decrypt one section. Raises `Tampered` when it does not authenticate, `ValueError` when there is none."""
        if name not in self._table:
            raise ValueError(f"expected one of {len(self._table)} sections, got {name}")
        number, offset, length = self._table[name]
        sealed = memoryview(self._buffer)[offset : offset + length]  # of what may be mapped nothing is copied
        return self._seal.decrypt(name, number.to_bytes(12, "little"), sealed)


def pack_columns(columns: Mapping[str, bytes]) -> bytes:
    """Named byte columns in one buffer: count, then the length of each name and column (all u32), then both."""
    return b"".join(_packed({name: (len(column), partial(bytes, column)) for name, column in columns.items()}))


def pack_large(columns: Mapping[str, Callable[[], bytes]]) -> Iterator[bytes]:
    """The same in pieces, of columns that are made when they are asked for: only one is there at a time. Each is asked for
    twice, for its length first."""
    return _packed({name: (len(column()), column) for name, column in columns.items()})


def _packed(columns: Mapping[str, tuple[int, Callable[[], bytes]]]) -> Iterator[bytes]:
    names = [name.encode() for name in columns]
    sizes = [size for name, (length, _) in zip(names, columns.values(), strict=True) for size in (len(name), length)]
    yield struct.pack(f"<{1 + len(sizes)}I", len(names), *sizes)
    for name, (_, column) in zip(names, columns.values(), strict=True):
        yield name
        yield column()


def unpack_columns(data: bytes) -> dict[str, bytes]:
    """The inverse of `pack_columns`. Raises `Tampered` on anything else."""
    return {name: bytes(column) for name, column in unpack_views(data).items()}


def unpack_views(data: bytes) -> dict[str, memoryview]:
    """The same where columns are large: they share `data`."""
    sizes, at = _words(data, per_item=2)
    if at + sum(sizes) != len(data):
        raise Tampered("columns", f"expected {at + sum(sizes)} bytes, got {len(data)}")
    view = memoryview(data)
    parts = [view[start:end] for start, end in pairwise(accumulate(sizes, initial=at))]
    columns = {_text(bytes(name)): column for name, column in zip(parts[::2], parts[1::2], strict=True)}
    if len(columns) * 2 != len(parts):
        raise Tampered("columns", "expected each name once")
    return columns


def pack_strings(strings: list[str]) -> bytes:
    """Strings in one buffer: count, then each one's length in code points (all u32), then all of them in UTF-8."""
    lengths = struct.pack(f"<{1 + len(strings)}I", len(strings), *map(len, strings))
    return lengths + "".join(strings).encode()


def unpack_strings(data: bytes) -> list[str]:
    """The inverse of `pack_strings`. Raises `Tampered` on anything else."""
    lengths, at = _words(data, per_item=1)
    text = _text(data[at:])
    if sum(lengths) != len(text):
        raise Tampered("columns", f"expected {sum(lengths)} characters, got {len(text)}")
    return [text[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def chunk_roots(file: ScopeFile, tree: int) -> list[bytes]:
    """The roots of a tree's chunks, as its section `<tree>/roots` has them."""
    flat = unpack_columns(file.section(f"{tree}/roots"))["roots"]
    return [flat[at : at + HASH_BYTES] for at in range(0, len(flat), HASH_BYTES)]


class _Seal:
    def __init__(self, head: bytes, key: bytes) -> None:
        self._digest = sha256(head).digest()
        self._key = derive_key(key, "section", self._digest)
        self._cipher = ChaCha20Poly1305(self._key)

    def encrypt(self, name: str, nonce: bytes, data: bytes) -> bytes:
        return self._cipher.encrypt(nonce, data, self._digest + name.encode())

    def pieces(self, name: str, nonce: bytes, data: Iterable[bytes]) -> Iterator[bytes]:
        """The same of data that comes in pieces: the AEAD of RFC 8439 section 2.8 from its two parts, because the library's
        takes and gives a message whole."""
        stream = Cipher(ChaCha20(self._key, bytes(4) + nonce), mode=None).encryptor()
        mac = Poly1305(
            stream.update(bytes(_CIPHER_BLOCK))[:_MAC_KEY]
        )  # block 0 is the MAC's key, the text is from block 1 on
        given = self._digest + name.encode()
        mac.update(given + bytes(-len(given) % _MAC_BLOCK))
        length = 0
        for piece in data:
            for at in range(0, len(piece), _SEALED_AT_ONCE):
                sealed = stream.update(piece[at : at + _SEALED_AT_ONCE])
                mac.update(sealed)
                length += len(sealed)
                yield sealed
        mac.update(bytes(-length % _MAC_BLOCK) + struct.pack("<QQ", len(given), length))
        yield mac.finalize()

    def decrypt(self, name: str, nonce: bytes, sealed: bytes | memoryview) -> bytes:
        try:
            return self._cipher.decrypt(nonce, sealed, self._digest + name.encode())
        except InvalidTag:
            raise Tampered("scope-file", f"expected section {name} to authenticate: changed, or another key") from None


def _read_head(buffer: Buffer) -> tuple[bytes, dict[str, Json]]:
    start = bytes(buffer[: _HEAD.size])
    if len(start) < _HEAD.size:
        raise Tampered("scope-file", "expected a header, got the end of the file")
    magic, version, length = _HEAD.unpack(start)
    if magic != _MAGIC or version != VERSION:
        raise Tampered("scope-file", f"expected a scope file of version {VERSION}")
    body = bytes(buffer[_HEAD.size : _HEAD.size + length])
    try:
        header = canonical.loads(body)
    except Rejected as error:
        raise Tampered("scope-file", f"header: {error}") from error
    if not isinstance(header, dict):
        raise Tampered("scope-file", "expected an object as header")
    return start + body, header


def _read_table(columns: dict[str, bytes]) -> dict[str, tuple[int, int, int]]:
    # Authenticated by now: a wrong shape would be our own bug.
    names = unpack_strings(columns["names"])
    offsets = struct.unpack(f"<{len(names)}Q", columns["offsets"])
    lengths = struct.unpack(f"<{len(names)}Q", columns["lengths"])
    numbered = enumerate(zip(names, offsets, lengths, strict=True))
    return {name: (number, offset, length) for number, (name, offset, length) in numbered}


def _words(data: bytes, per_item: int) -> tuple[tuple[int, ...], int]:
    count = int.from_bytes(data[:_WORD], "little") * per_item
    at = _WORD + count * _WORD
    if len(data) < at:
        raise Tampered("columns", f"expected {at} bytes or more, got {len(data)}")
    return struct.unpack_from(f"<{count}I", data, _WORD), at


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Tampered("columns", "expected UTF-8") from error
