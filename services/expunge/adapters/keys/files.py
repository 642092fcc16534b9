"""Bucket keys as files: 32 random bytes per day, wrapped under a master key, 0600 in a directory of 0700.

Destroying a key first leaves a marker, so that it is never drawn anew, then overwrites and unlinks the file. On media
that remap blocks the overwritten bytes may live on: what is left there opens only with the master key.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Final
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from expunge.crashing import crash_point
from expunge.domain.errors import Misconfigured, Rejected, Tampered

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_OTHERS: Final = 0o077


class FileKeys:
    """`KeyStore` under one directory. `master`: 32 bytes that wrap every bucket key (`read_master_key`)."""

    def __init__(self, root: Path, master: bytes) -> None:
        if len(master) != KEY_BYTES:
            raise Misconfigured(f"the master key must have {KEY_BYTES} bytes")
        if not root.is_dir() or root.stat().st_mode & _OTHERS:
            raise Misconfigured(
                "the key directory must exist and be its owner's alone (mode 0700): chmod 700 EXPUNGE_DATA/keys"
            )
        self._root = root.resolve()
        self._cipher = ChaCha20Poly1305(master)

    def bucket(self, day: date, *, create: bool = False) -> bytes:
        """As `ports.KeyStore.bucket`. Raises `Misconfigured` for a key that others may read, `Tampered` for one that
        does not open under the master key."""
        name = day.isoformat()
        if (self._root / f"{name}.destroyed").exists():
            raise Rejected("key-destroyed", f"the bucket key of {name} was destroyed")
        path = self._root / f"{name}.key"
        if not path.exists():
            if not create:
                raise Rejected("no-key", f"expected a bucket key of {name}, there never was one")
            self._draw(path, name)
        return self._open(read_private(path), name)

    def destroy(self, day: date) -> None:
        """As `ports.KeyStore.destroy`. Durable before it returns."""
        name = day.isoformat()
        (self._root / f"{name}.destroyed").touch(mode=0o600)
        _sync(self._root)
        crash_point("keys.marked")
        path = self._root / f"{name}.key"
        if path.exists():
            overwrite(path)
            crash_point("keys.overwritten")
            path.unlink()
            _sync(self._root)
            crash_point("keys.unlinked")

    def _draw(self, path: Path, name: str) -> None:
        """Draw a key, unless another process was first: then its key stands."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, os.urandom(KEY_BYTES), name.encode())
        temporary = self._root / f".new-{uuid4().hex}"
        try:
            write_private(temporary, sealed)
            crash_point("keys.drawn")
            with suppress(FileExistsError):
                os.link(temporary, path)
            crash_point("keys.linked")
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self._root)

    def _open(self, sealed: bytes, name: str) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise Tampered("key-store", f"the bucket key of {name} does not open under the master key") from error


def read_master_key(path: Path) -> bytes:
    """The master key in `path`: 64 hex digits, mode 0600. Raises `Misconfigured`."""
    try:
        text = read_private(path).decode("ascii").strip()
        key = bytes.fromhex(text)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the master key file must hold {2 * KEY_BYTES} hex digits") from error
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"the master key file must hold {2 * KEY_BYTES} hex digits")
    return key


def generate_master_key(path: Path) -> None:
    """Draw a master key into a new file (0600). Raises `FileExistsError`."""
    write_private(path, os.urandom(KEY_BYTES).hex().encode() + b"\n")


def read_private(path: Path) -> bytes:
    """The bytes of a regular file that only its owner may read. Raises `Misconfigured` when others may too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & _OTHERS:
            raise Misconfigured(
                f"key file {path.name} must be a regular file that its owner alone may read (mode 0600): chmod 600 {path.name}"
            )
        return file.read()


def write_private(path: Path, data: bytes) -> None:
    """A new file of mode 0600, synced. Raises `FileExistsError`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def overwrite(path: Path) -> None:
    """Random bytes over the whole file, synced, in place."""
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
