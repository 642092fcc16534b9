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
        if count < _CALL_FROM:
            return plain(prefix, data, size)
        if not self._loaded:
            self._left -= count  # threads may lose each other's counts: it loads a little later then
            if self._left > 0:
                return plain(prefix, data, size)
            with self._loading:
                if not self._loaded:
                    self._native, self._loaded = self._load(), True
        return (self._native or plain)(prefix, data, size)


hashes: Hasher = Hashing()
