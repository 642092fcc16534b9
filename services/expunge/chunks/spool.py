"""What is made before it can be written where it belongs: kept aside, so that memory stays flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

IN_MEMORY: Final = 64 << 20
"""Bytes kept in memory; more go to a file."""


class Spool:
    """Named byte strings, put one by one and read back in that order, once or more. Blocking. To be closed.

    The file has no name, and is encrypted under a key that only this process ever had: what a crash leaves in free
    blocks is nobody's data.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._room = in_memory
        self._kept: list[tuple[str, bytes]] = []
        self._filed: list[tuple[str, int]] = []
        self._file: BinaryIO | None = None
        self._cipher = ChaCha20Poly1305(os.urandom(32))

    def put(self, name: str, data: bytes) -> None:
        """Add one, at the end."""
        if self._file is None and len(data) <= self._room:
            self._room -= len(data)
            self._kept.append((name, data))
            return
        if self._file is None:
            self._file = TemporaryFile()  # noqa: SIM115 - `close` closes it
        sealed = self._cipher.encrypt(len(self._filed).to_bytes(12, "big"), data, None)
        self._filed.append((name, self._file.write(sealed)))

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """All of them. Put none meanwhile."""
        yield from self._kept
        if self._file is not None:
            self._file.seek(0)
            for number, (name, length) in enumerate(self._filed):
                yield name, self._cipher.decrypt(number.to_bytes(12, "big"), self._file.read(length), None)
            self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        if self._file is not None:
            self._file.close()
