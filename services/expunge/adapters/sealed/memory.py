"""Sealed files in this process, for tests and the simulator."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from expunge.adapters.sealed import check_name


class MemorySealed:
    """`SealedStore` in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, name: str, blocks: Iterable[bytes]) -> bytes:
        """As `ports.SealedStore.write`."""
        data = b"".join(blocks)
        if self.files.setdefault(check_name(name), data) != data:
            raise FileExistsError(name)
        return sha256(data).digest()

    def open(self, name: str) -> memoryview:
        """As `ports.SealedStore.open`."""
        return memoryview(self._file(name))

    def read(self, name: str, position: int, length: int) -> bytes:
        """As `ports.SealedStore.read`."""
        return self._file(name)[position : position + length]

    def _file(self, name: str) -> bytes:
        try:
            return self.files[check_name(name)]
        except KeyError as error:
            raise FileNotFoundError(name) from error
