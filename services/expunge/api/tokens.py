"""Bearer tokens: 32 random bytes, shown once, kept as their SHA-256. A token has scopes, and may be bound to a publisher:
then it sees and submits only what keys registered under that name signed.

    exp_<id>_<secret>      id: 12 hex digits, public; secret: 43 characters of base64url
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from expunge.domain.errors import Rejected
from expunge.ports import Ledger, Tx

SECRET_BYTES: Final = 32
_TOKEN: Final = re.compile(r"exp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NO_DIGEST: Final = bytes(32)


class Scope(StrEnum):
    """What a token may do."""

    REQUESTS_READ = "requests:read"
    """Where one request stands, by its id."""
    REQUESTS_LIST = "requests:list"
    """Every request that the token may see."""
    REQUESTS_SUBMIT = "requests:submit"
    """Hand in requests that their publisher signed."""
    PROOFS_READ = "proofs:read"
    """Certificates and receipts."""
    MODELS_READ = "models:read"
    """Models and their status."""


@dataclass(frozen=True, slots=True)
class Token:
    """Who asks. `publisher`: whose requests it may see, all where it is None."""

    token_id: str
    name: str
    scopes: frozenset[str]
    publisher: str | None


async def holder(tx: Tx, given: str, at: datetime) -> Token | None:
    """Whose token this is, None for one that is unknown, revoked or expired. The secret is compared in constant time, and
    against something even where there is no such token."""
    found = _TOKEN.fullmatch(given)
    token_id, secret = (found[1], found[2]) if found else ("", "")
    rows = await tx.fetch("api_token", token_id=token_id, at=at)
    name, digest, scopes, publisher = rows[0] if rows else ("", _NO_DIGEST, (), None)
    same = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), bytes(digest))
    return Token(token_id, name, frozenset(scopes), publisher) if rows and same else None


async def create(
    ledger: Ledger, *, name: str, scopes: Iterable[Scope], publisher: str | None, at: datetime, until: datetime | None
) -> tuple[str, str]:
    """A new token: its id, and its text, which is kept nowhere. Raises `Rejected`: `no-scope`, `unknown-publisher` for a
    name that no key is registered under."""
    wanted = sorted(set(scopes))
    if not wanted:
        raise Rejected("no-scope", f"expected at least one scope out of {', '.join(Scope)}")
    token_id, secret = secrets.token_hex(6), _secret()
    async with ledger.transaction() as tx:
        if publisher is not None and not await tx.fetch("api_publisher", name=publisher):
            raise Rejected(
                "unknown-publisher", "expected a name that a key is registered under (expunge keys register)"
            )
        await tx.execute(
            "api_put_token", token_id=token_id, name=name, digest=hashlib.sha256(secret.encode()).digest(),
            scopes=[str(one) for one in wanted], publisher=publisher, at=at, expires_at=until,
        )  # fmt: skip
    return token_id, f"exp_{token_id}_{secret}"


async def listed(ledger: Ledger) -> list[dict[str, Any]]:
    """Every token, without its secret, which is not known here either."""
    async with ledger.transaction() as tx:
        rows = await tx.fetch("api_tokens")
    names = ("token_id", "name", "scopes", "publisher", "created_at", "expires_at", "revoked_at")
    return [dict(zip(names, row, strict=True)) for row in rows]


async def revoke(ledger: Ledger, token_id: str, *, at: datetime) -> None:
    """From the next request on it is nobody's. Raises `Rejected("unknown-token")`."""
    async with ledger.transaction() as tx:
        if not await tx.execute("api_revoke_token", token_id=token_id, at=at):
            raise Rejected("unknown-token", "expected the id of a token, as `expunge token list` shows it")


def _secret() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).decode().rstrip("=")
