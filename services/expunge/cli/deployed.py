"""What commands of a deployment share: its settings from the environment, and questions to its read side."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID

from expunge.domain.errors import Rejected, Retryable, Unpublished

if TYPE_CHECKING:
    from expunge.readside import Reader
    from expunge.wiring import Deployment

T = TypeVar("T")

CONNECT_SECONDS: Final = 5
"""How long a command waits for PostgreSQL: a person is waiting too."""
PUBLISHED_SECONDS: Final = 15


def deployment() -> Deployment:
    """The deployment that the environment names. Raises `Misconfigured` naming the variable."""
    from expunge.settings import Settings

    settings = Settings.read()  # first: a wrong variable is told in no time
    from expunge.wiring import Deployment

    return Deployment(settings)


def reachable() -> Deployment:
    """The deployment, whose database answers just now. Raises `Retryable` within seconds when it does not."""
    found = deployment()
    import psycopg

    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # what it has to say is said as one error line
    try:
        psycopg.connect(found.settings.database, connect_timeout=CONNECT_SECONDS).close()
    except psycopg.OperationalError as error:
        raise Retryable(
            "expected PostgreSQL at EXPUNGE_DATABASE to answer and to let us in: check that it runs, and the address, user, "
            "password and database of the URI"
        ) from error
    return found


def ask(question: Callable[[Reader], Awaitable[T]]) -> T:
    """One question to the read side; one about what is about to be published is asked again for `PUBLISHED_SECONDS`.
    Raises `Retryable` when the database does not answer."""
    found = reachable()
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

    from expunge.readside import reader

    patient = AsyncRetrying(
        retry=retry_if_exception_type(Unpublished), stop=stop_after_delay(PUBLISHED_SECONDS), wait=wait_fixed(0.2),
        reraise=True,
    )  # fmt: skip

    async def asked() -> T:
        async with reader(found) as opened:

            async def once() -> T:  # a lambda that gives an awaitable would not be awaited
                return await question(opened)

            return await patient(once)

    return asyncio.run(asked())


def request_id(text: str) -> UUID:
    """A request's id. Raises `Rejected` for anything else."""
    try:
        return UUID(text)
    except ValueError:
        raise Rejected("malformed", "expected a request id: a UUID") from None
