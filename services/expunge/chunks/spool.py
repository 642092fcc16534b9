"""What is made before it can be written where it belongs: kept aside, so that memory stays flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

IN_MEMORY: Final = 32 << 20
"""Bytes kept in memory; more go to a file."""


class Spool:
    """Named byte strings, put one by one, and read back in that order or by name, as often as wanted. Blocking. To be
    closed. Any thread may read, once nobody puts any more. The file lies in `folder`, or where temporary files do.

    The file has no name, and is encrypted under a key that only this process ever had: what a crash leaves in free
    blocks is nobody's data.
    """

    def __init__(self, in_memory: int = IN_MEMORY, folder: Path | None = None) -> None:
        self._room = in_memory
        self._folder = folder
        self._places: dict[str, bytes | tuple[int, int, int]] = {}
        """What is kept in memory; of what is filed its number, offset and length."""
        self._filed = 0
        self._end = 0
        self._file: BinaryIO | None = None
        self._cipher = ChaCha20Poly1305(os.urandom(32))

    def put(self, name: str, data: bytes) -> None:
        """Add one, at the end. Raises `ValueError` for a name that there is already."""
        if name in self._places:
            raise ValueError(f"expected each name once, got {name} twice")
        if self._file is None and len(data) <= self._room:
            self._room -= len(data)
            self._places[name] = data
            return
        if self._file is None:
            self._file = TemporaryFile(dir=self._folder)  # noqa: SIM115 - `close` closes it
        sealed = self._cipher.encrypt(self._filed.to_bytes(12, "big"), data, None)
        self._places[name] = self._filed, self._end, self._file.write(sealed)
        self._filed += 1
        self._end += len(sealed)

    def get(self, name: str) -> bytes:
        """One of them. Raises `KeyError` where there is none."""
        place = self._places[name]
        if isinstance(place, bytes):
            return place
        number, offset, length = place
        assert self._file is not None  # noqa: S101 - something is filed
        self._file.flush()
        sealed = os.pread(self._file.fileno(), length, offset)
        return self._cipher.decrypt(number.to_bytes(12, "big"), sealed, None)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """All of them. Put none meanwhile."""
        return ((name, self.get(name)) for name in self._places)

    def close(self) -> None:
        """Forget all of them."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
