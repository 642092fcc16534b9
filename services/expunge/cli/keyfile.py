"""Signing keys as files: one line, the 32-byte seed in hex. Base64 and PKCS#8 PEM (openssl genpkey) are read as well."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Final

from expunge.domain.dsse import SEED_BYTES, SigningKey
from expunge.domain.errors import Misconfigured
from expunge.private import read_secret

VARIABLE: Final = "EXPUNGE_PUBLISHER_KEY_FILE"
"""What names the file, unless an option does."""


def read_key(path: Path) -> SigningKey:
    """The signing key in a file. Raises `Misconfigured`, also for a file that everybody may read; never shows what the
    file holds."""
    try:
        data = read_secret(path, VARIABLE).strip()
    except OSError as error:
        raise Misconfigured(f"{VARIABLE}: expected a key file at {path}, got {error.strerror}") from error
    seed = _seed(data)
    if seed is None or len(seed) != SEED_BYTES:
        raise Misconfigured(f"{VARIABLE}: expected an Ed25519 seed (hex, base64 or PEM) in {path}")
    return SigningKey.from_seed(seed)


def _seed(data: bytes) -> bytes | None:
    if data.startswith(b"-----BEGIN"):
        return _pem(data)
    if len(data) == SEED_BYTES * 2:
        try:
            return bytes.fromhex(data.decode("ascii"))
        except ValueError:
            return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def _pem(data: bytes) -> bytes | None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        return None
    return key.private_bytes_raw() if isinstance(key, Ed25519PrivateKey) else None
