"""SHA-256 of many short pieces: by hashlib, or six times as fast with the extra `fast`. The results are the same."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from struct import iter_unpack
from threading import Lock
from typing import Final, TypeAlias

Flat: TypeAlias = bytes | bytearray | memoryview
Hasher: TypeAlias = Callable[[int, Flat, int], bytes]
"""SHA-256(prefix || piece) of each `size` bytes of the data, which is whole pieces; 32 bytes each."""

NATIVE_FROM: Final = 1 << 18
"""Hashes a process makes before it loads the fast way: loading takes as long as some 500,000 hashes, and a program that
checks one certificate of one person should not pay it."""
_CALL_FROM: Final = 64
"""Pieces below which the call itself costs more than it saves."""
_BLOCK: Final = 4096
"""Hashes made at once: bounds the objects alive beside the level, and stays in cache (measured, 10 % faster)."""


def plain(prefix: int, data: Flat, size: int) -> bytes:
    """By hashlib alone."""
    view, step, pieces, first = memoryview(data), size * _BLOCK, f"{size}s", bytes((prefix,))
    blocks = (iter_unpack(pieces, view[at : at + step]) for at in range(0, len(view), step))
    return b"".join([b"".join([sha256(first + one).digest() for (one,) in block]) for block in blocks])


def plain_after(head: bytes, data: Flat, size: int) -> bytes:
    """SHA-256(head || piece) of each `size` bytes of the data, which is whole pieces; `head` is hashed once."""
    begun, view = sha256(head).copy, memoryview(data)
    found = []
    for (piece,) in iter_unpack(f"{size}s", view):
        one = begun()
        one.update(piece)
        found.append(one.digest())
    return b"".join(found)


def native() -> Hasher | None:
    """The fast way, where it is installed and works."""
    try:
        return import_module("expunge.domain.native").hashes  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - numba may fail on a machine in ways of its own; nothing depends on it
        return None


class Hashing:
    """Counts what it hashes, and takes the fast way, if there is one, once that pays (mutable; one per process)."""

    def __init__(self, native_from: int = NATIVE_FROM, load: Callable[[], Hasher | None] = native) -> None:
        self._left = native_from
        self._load = load
        self._loading = Lock()
        self._native: Hasher | None = None
        self._loaded = False

    def __call__(self, prefix: int, data: Flat, size: int) -> bytes:
        """A `Hasher`."""
        count = len(data) // size
        return ((self._fast(count) if count >= _CALL_FROM else None) or plain)(prefix, data, size)

    def after(self, head: bytes, data: Flat, size: int) -> bytes:
        """As `plain_after`."""
        count = len(data) // size
        if count < _CALL_FROM or self._fast(count) is None:
            return plain_after(head, data, size)
        return import_module("expunge.domain.native").hashes_after(head, data, size)  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """Load the fast way now: a process that will need it should not pay in the middle of its first large piece."""
        self._fast(self._left + 1)

    def _fast(self, count: int) -> Hasher | None:
        if not self._loaded:
            self._left -= count  # threads may lose each other's counts: it loads a little later then
            if self._left > 0:
                return None
            with self._loading:
                if not self._loaded:
                    self._native, self._loaded = self._load(), True
        return self._native


_HASHING: Final = Hashing()
hashes: Hasher = _HASHING
after: Final = _HASHING.after
prepare: Final = _HASHING.prepare
