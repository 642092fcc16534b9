"""A log's files in this process, for tests and the simulator. `fail_next` makes that many writes raise `Retryable`."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.adapters.log import CHECKPOINT, check_path
from expunge.domain.errors import Retryable, Tampered


class MemoryTiles:
    """`TileStore` in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fail_next = 0

    def write(self, files: Mapping[str, bytes]) -> None:
        """As `ports.TileStore.write`."""
        if self.fail_next:
            self.fail_next -= 1
            raise Retryable("this write was made to fail")
        for path, data in files.items():
            if check_path(path) != CHECKPOINT and self.files.get(path, data) != data:
                raise Tampered(path, "expected the bytes that are stored already, got others")
        self.files |= {path: bytes(data) for path, data in files.items()}

    def read(self, path: str) -> bytes:
        """As `ports.TileStore.read`."""
        try:
            return self.files[check_path(path)]
        except KeyError as error:
            raise FileNotFoundError(path) from error
