"""Sealed files in one private directory (0700). A file appears whole or not at all, and is never replaced."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final
from uuid import uuid4

from expunge.adapters.sealed import check_name
from expunge.crashing import crash_point
from expunge.domain.errors import Misconfigured, Retryable

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class FileSealed:
    """`SealedStore` under one directory, which must exist and be closed to others."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir() or root.stat().st_mode & 0o077:
            raise Misconfigured("the directory of sealed files must exist with mode 0700")
        self._root = root.resolve()

    def write(self, name: str, blocks: Iterable[bytes]) -> bytes:
        """As `ports.SealedStore.write`. Memory stays at one block."""
        target = self._root / check_name(name)
        temporary = self._root / f".new-{uuid4().hex}"
        digest = sha256()
        try:
            with os.fdopen(os.open(temporary, _NEW, 0o600), "wb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
                file.flush()
                crash_point("sealed.written")
                os.fsync(file.fileno())
            crash_point("sealed.synced")
            _link(temporary, target, digest.digest())
            _sync(self._root)
            crash_point("sealed.linked")
        except FileExistsError:
            raise
        except OSError as error:
            raise Retryable(f"a sealed file could not be written ({type(error).__name__})") from error
        finally:
            temporary.unlink(missing_ok=True)
        return digest.digest()

    def open(self, name: str) -> memoryview:
        """As `ports.SealedStore.open`: mapped, so that only what is read is loaded."""
        with (self._root / check_name(name)).open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def read(self, name: str, position: int, length: int) -> bytes:
        """As `ports.SealedStore.read`."""
        with (self._root / check_name(name)).open("rb") as file:
            return os.pread(file.fileno(), length, position)


def _link(temporary: Path, target: Path, digest: bytes) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        with target.open("rb") as file:
            if file_digest(file, "sha256").digest() != digest:
                raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
