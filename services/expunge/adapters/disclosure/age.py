"""Disclosures as age files (age-encryption.org/v1, X25519 recipients), by `pyrage`: extra `disclosure`."""

from __future__ import annotations

import pyrage

from expunge.domain.errors import Rejected


def encrypt(data: bytes, recipient: str) -> bytes:
    """An age file that only the holder of `recipient` (`age1...`) opens. Raises `Rejected("bad-recipient")`."""
    try:
        return bytes(pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(recipient)]))
    except pyrage.RecipientError as error:
        raise Rejected("bad-recipient", "expected an age recipient: age1...") from error


def decrypt(data: bytes, identity: str) -> bytes:
    """The inverse, with an identity file's text. Raises `Rejected("bad-identity")`, also for another's identity."""
    lines = [line.strip() for line in identity.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    try:
        return bytes(pyrage.decrypt(data, [pyrage.x25519.Identity.from_str(key) for key in keys]))
    except (pyrage.IdentityError, pyrage.DecryptError) as error:
        raise Rejected("bad-identity", "expected the identity (AGE-SECRET-KEY-...) of the file's recipient") from error
