"""A log's files in a directory: durable before `write` returns, tiles before the checkpoint that promises them.

A file appears whole or not at all: it is written beside its place under a hidden name, synced, then linked or renamed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from expunge.adapters.log import CHECKPOINT, check_path, replaceable
from expunge.crashing import crash_point
from expunge.domain.errors import Misconfigured, Rejected, Retryable, Tampered

_TEMP: Final = ".new-"
"""No log path may begin with a dot, so leftovers of a crash are never served."""
_LOCK_SECONDS: Final = 5.0
"""How long a replacement waits for another process to finish its own: that takes milliseconds, unless it is stopped."""
_LOCK: Final = ".lock"
"""Held (flock) while a file is compared and replaced: gone with its process, however that ends."""


class FileTiles:
    """`TileStore` under one directory, which must exist. One writer at a time; readers need no lock."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise Misconfigured("the evidence log's directory does not exist")
        self._root = root.resolve()

    def write(self, files: Mapping[str, bytes]) -> None:
        """As `ports.TileStore.write`. Raises `Tampered` when an immutable file holds other bytes."""
        paths = sorted(files, key=lambda path: (check_path(path) == CHECKPOINT, path))
        try:
            folders = {folder for path in paths for folder in self._make_folders(path)}
            for path in paths:
                if path == CHECKPOINT:
                    self._sync(folders)
                    folders = {self._root}
                    self._replace(path, files[path])
                elif replaceable(path):
                    self._replace(path, files[path])
                else:
                    self._put(path, files[path])
            self._sync(folders)
            crash_point("log.synced")
        except OSError as error:
            raise Retryable(f"the evidence log could not be written ({type(error).__name__})") from error

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        """As `ports.TileStore.swap`."""
        if not replaceable(check_path(path)):
            raise Rejected("bad-path", "expected a file that may be replaced")
        target = self._root / path
        try:
            with (self._root / _LOCK).open("wb") as lock:
                _lock(lock)
                if (target.read_bytes() if target.exists() else None) != old:
                    return False
                folders = set(self._make_folders(path))
                self._replace(path, data)
                self._sync(folders)
        except OSError as error:
            raise Retryable(f"the evidence log could not be written ({type(error).__name__})") from error
        return True

    def read(self, path: str) -> bytes:
        """As `ports.TileStore.read`."""
        return (self._root / check_path(path)).read_bytes()

    def _make_folders(self, path: str) -> list[Path]:
        """The folders to sync for `path`: its own, and those that had to be made, with their parents."""
        folder = (self._root / path).parent
        found = [folder]
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
            found.append(folder)
        for one in reversed(missing):
            one.mkdir(exist_ok=True)
        return found

    def _put(self, path: str, data: bytes) -> None:
        target = self._root / path
        temporary = self._written(target, data)
        try:
            os.link(temporary, target)
            crash_point("log.linked")
        except FileExistsError:
            if target.read_bytes() != data:
                raise Tampered(path, "expected the bytes that are stored already, got others") from None
        finally:
            temporary.unlink()

    def _replace(self, path: str, data: bytes) -> None:
        target = self._root / path
        self._written(target, data).replace(target)
        crash_point("log.replaced")

    def _written(self, target: Path, data: bytes) -> Path:
        temporary = target.with_name(f"{_TEMP}{uuid4().hex}")
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        crash_point("log.written")
        return temporary

    @staticmethod
    def _sync(folders: set[Path]) -> None:
        for folder in folders:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _lock(file: BinaryIO) -> None:
    """Raises `Retryable` when another process keeps the lock: it is stopped in the middle, and nothing is replaced twice."""
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise Retryable(
                    "another process is replacing a file of the evidence log, and does not get on"
                ) from error
            time.sleep(0.01)
        else:
            return
