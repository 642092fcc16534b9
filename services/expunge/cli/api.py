"""`expunge serve-api`, and `expunge token ...`: who may ask it what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from expunge.cli.console import AsJson, AsJsonLines, document, say, table

if TYPE_CHECKING:
    from expunge.ports import Ledger

T = TypeVar("T")


class May(StrEnum):
    """Scopes, as `api.tokens.Scope` has them: repeated, so that help needs no database."""

    REQUESTS_READ = "requests:read"
    REQUESTS_LIST = "requests:list"
    REQUESTS_SUBMIT = "requests:submit"
    PROOFS_READ = "proofs:read"
    MODELS_READ = "models:read"


def add(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command(
        "serve-api",
        help="Serve the read API until told to stop: what became of requests, proofs, models. "
        "It listens on EXPUNGE_API_HOST and EXPUNGE_API_PORT.",
    )
    def serve_api(*, as_json: AsJsonLines = False) -> None:
        from expunge.settings import Settings

        settings = Settings.read()
        from expunge.api.serve import run

        run(settings, lambda url: document({"listening": url}) if as_json else say(f"listening on {url}"))

    app.add_typer(_tokens(), name="token")


def _tokens() -> typer.Typer:
    group = typer.Typer(help="Bearer tokens of the read API.", no_args_is_help=True)

    @group.command(help="Draw a token and print it, once: nothing keeps it but who asked.")
    def create(
        name: Annotated[str, typer.Option("--name", help="whose it is, for people")],
        scopes: Annotated[list[May], typer.Option("--scope", help="may be repeated")],
        publisher: Annotated[
            str | None,
            typer.Option("--publisher", help="only what this publisher's keys signed, by the name of their registration"),
        ] = None,
        days: Annotated[float | None, typer.Option("--days", min=0, help="how long it is good; until revoked")] = None,
        *,
        as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.api import tokens

        at = datetime.now(UTC)
        token_id, text = _asked(
            lambda ledger: tokens.create(
                ledger, name=name, scopes=[tokens.Scope(one) for one in scopes], publisher=publisher, at=at,
                until=None if days is None else at + timedelta(days=days),
            )
        )  # fmt: skip
        document({"token_id": token_id, "token": text}) if as_json else say(text)

    @group.command("list", help="Every token, without its secret, which is kept nowhere.")
    def listed(*, as_json: AsJson = False) -> None:
        from expunge.api import tokens

        rows = _asked(tokens.listed)
        if as_json:
            document(rows)
            return
        columns = ("token_id", "name", "scopes", "publisher", "expires_at", "revoked_at")
        table(columns, [[" ".join(one[c]) if c == "scopes" else one[c] for c in columns] for one in rows])

    @group.command(help="From the next request on it is nobody's.")
    def revoke(token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID")], *, as_json: AsJson = False) -> None:
        from expunge.api import tokens

        _asked(lambda ledger: tokens.revoke(ledger, token_id, at=datetime.now(UTC)))
        document({"token_id": token_id, "revoked": True}) if as_json else say(f"{token_id} is revoked")

    return group


def _asked(question: Callable[[Ledger], Awaitable[T]]) -> T:
    from expunge.cli.deployed import reachable

    ledger = reachable().ledger

    async def asked() -> T:
        await ledger.open()
        try:
            return await question(ledger)
        finally:
            await ledger.close()

    return asyncio.run(asked())
