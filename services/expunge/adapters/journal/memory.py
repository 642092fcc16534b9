"""The journal in this process, for tests and the simulator."""

from __future__ import annotations


class MemoryJournal:
    """`Journal` in a buffer."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._data = bytearray()

    def append(self, records: bytes) -> None:
        """As `ports.Journal.append`."""
        self._data += records

    def read(self) -> bytes:
        """As `ports.Journal.read`."""
        return bytes(self._data)
