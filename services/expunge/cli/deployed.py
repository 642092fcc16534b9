"""What commands of a deployment share: its settings from the environment, and questions to its read side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from expunge.domain.errors import Rejected

if TYPE_CHECKING:
    from expunge.readside import Reader
    from expunge.wiring import Deployment

T = TypeVar("T")


def deployment() -> Deployment:
    """The deployment that the environment names. Raises `Misconfigured` naming the variable."""
    from expunge.settings import Settings

    settings = Settings.read()  # first: a wrong variable is told in no time
    from expunge.wiring import Deployment

    return Deployment(settings)


def ask(question: Callable[[Reader], Awaitable[T]]) -> T:
    """One question to the read side. Raises `Retryable` when the database does not answer."""
    found = deployment()
    from expunge.readside import reader

    async def asked() -> T:
        async with reader(found) as opened:
            return await question(opened)

    return asyncio.run(asked())


def request_id(text: str) -> UUID:
    """A request's id. Raises `Rejected` for anything else."""
    try:
        return UUID(text)
    except ValueError:
        raise Rejected("malformed", "expected a request id: a UUID") from None
