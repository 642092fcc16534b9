"""A log's files in this process, for tests and the simulator. `fail_next` makes that many writes raise `Retryable`."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from expunge.adapters.log import check_path, replaceable
from expunge.domain.errors import Rejected, Retryable, Tampered


class MemoryTiles:
    """`TileStore` in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fail_next = 0
        self._lock = threading.Lock()

    def write(self, files: Mapping[str, bytes]) -> None:
        """As `ports.TileStore.write`."""
        if self.fail_next:
            self.fail_next -= 1
            raise Retryable("this write was made to fail")
        for path, data in files.items():
            if not replaceable(check_path(path)) and self.files.get(path, data) != data:
                raise Tampered(path, "expected the bytes that are stored already, got others")
        self.files |= {path: bytes(data) for path, data in files.items()}

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        """As `ports.TileStore.swap`."""
        if self.fail_next:
            self.fail_next -= 1
            raise Retryable("this write was made to fail")
        if not replaceable(check_path(path)):
            raise Rejected("bad-path", "expected a file that may be replaced")
        with self._lock:
            if self.files.get(path) != old:
                return False
            self.files[path] = bytes(data)
        return True

    def read(self, path: str) -> bytes:
        """As `ports.TileStore.read`."""
        try:
            return self.files[check_path(path)]
        except KeyError as error:
            raise FileNotFoundError(path) from error
