"""The journal as one file (0600): O_APPEND, synced before `append` returns, one writer at a time under a lock.

An append that a crash cut short leaves part of a record at the end; the next append cuts it off first, because its
caller was never told that it was written. Whole records are never removed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from expunge.crashing import crash_point
from expunge.domain import suppression
from expunge.domain.errors import Misconfigured, Retryable


class FileJournal:
    """`Journal` in `path`, whose directory must exist. `key`: 32 bytes, of the journal alone."""

    def __init__(self, path: Path, key: bytes) -> None:
        if len(key) != suppression.KEY_BYTES:
            raise Misconfigured(f"the suppression journal's key must have {suppression.KEY_BYTES} bytes")
        if not path.parent.is_dir():
            raise Misconfigured("the suppression journal's directory does not exist")
        self.key = key
        self._path = path

    def append(self, records: bytes) -> None:
        """As `ports.Journal.append`."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._append(descriptor, records)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Retryable(f"the suppression journal could not be written ({type(error).__name__})") from error

    def read(self) -> bytes:
        """As `ports.Journal.read`. Nothing yet is an empty journal."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _append(self, descriptor: int, records: bytes) -> None:
        end = os.fstat(descriptor).st_size
        whole = end - end % suppression.RECORD_BYTES
        if whole != end:
            os.ftruncate(descriptor, whole)
        rest = memoryview(records)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, whole)
            raise
        crash_point("journal.written")
        os.fsync(descriptor)
        if not whole:
            _sync(self._path.parent)
        crash_point("journal.synced")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
