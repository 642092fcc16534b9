"""`expunge breaker status|close`, and `expunge dry-run`: how much would go, and letting it go after a look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from expunge.cli.console import AsJson, document, say, table

if TYPE_CHECKING:
    from expunge.ports import Tx

T = TypeVar("T")


def add(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The blast-radius breaker.", no_args_is_help=True)
    app.add_typer(group, name="breaker")
    _status(group)
    _close(group)
    _dry_run(app)


def _status(group: typer.Typer) -> None:
    @group.command(help="What was ever stopped, how much of the last hour is spent, and what waits.")
    def status(*, as_json: AsJson = False) -> None:
        async def ask(tx: Tx) -> tuple[list[dict[str, Any]], dict[str, int]]:
            columns = ("scope", "counted", "cap", "opened_at", "closed_at", "spent")
            rows = [dict(zip(columns, row, strict=True)) for row in await tx.fetch("breaker_list")]
            ((sweeps, requests, images),) = await tx.fetch("breaker_waiting")
            return rows, {"sweeps": sweeps, "requests": requests, "images": images}

        scopes, waiting = _in_transaction(ask)
        if as_json:
            document({"scopes": scopes, "waiting": waiting})
            return
        titles = ("scope", "state", "counted", "cap", "opened")
        table(titles, [[one["scope"], _state(one), one["counted"], one["cap"], one["opened_at"]] for one in scopes])
        say(f"waiting: {waiting['sweeps']} sweeps, {waiting['requests']} requests, {waiting['images']} images")


def _state(row: dict[str, Any]) -> str:
    return "open" if row["closed_at"] is None else "closed"


def _close(group: typer.Typer) -> None:
    @group.command(help="Let go what waits for a scope, with an approver's key. What was signed is kept.")
    def close(
        scope: Annotated[str, typer.Argument(help="as `status` shows it: store:NAME or source:NAME")],
        key: Annotated[Path, typer.Option("--key", help="an approver's key file")],
        reason: Annotated[str, typer.Option("--reason", help="what was found; no names of people")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge import breaker
        from expunge.cli.keyfile import read_key

        signing = read_key(key)
        _in_transaction(lambda tx: breaker.close(tx, scope, signing, reason, datetime.now(UTC)))
        document({"scope": scope, "closed": True}) if as_json else say(f"{scope} is closed: what waited goes on")


def _dry_run(app: typer.Typer) -> None:
    @app.command(
        "dry-run",
        help="What a request would erase, counted and not begun: by person, list of people, source or period.",
    )
    def dry_run(
        subjects: Annotated[list[str] | None, typer.Option("--subject", help="subject_ref; may be repeated")] = None,
        source: Annotated[str | None, typer.Option("--source", help="a source's name")] = None,
        start: Annotated[datetime | None, typer.Option("--from", help="acquired from this day on")] = None,
        end: Annotated[datetime | None, typer.Option("--before", help="and before this one")] = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        if not subjects and source is None and (start is None or end is None):
            raise typer.BadParameter("expected --subject, --source, or --from with --before")
        from expunge.cli.deployed import ask

        days = (start.date(), end.date()) if start and end else None
        found = ask(lambda reader: reader.dry_run(subjects=subjects or (), source=source, days=days))
        if as_json:
            document(found)
            return
        say(f"{found['images']} images of {found['people']} people, {found['held']} of them held")
        table(
            ("kind", "store", "artifacts"),
            [[one["kind"], one["store"], one["artifacts"]] for one in found["artifacts"]],
        )
        say("would wait for approval" if found["approval"] else "would begin without approval")
        say("nothing was done")


def _in_transaction(work: Callable[[Tx], Awaitable[T]]) -> T:
    from expunge.cli.deployed import reachable

    async def run() -> T:
        found = reachable()
        await found.ledger.open()
        try:
            async with found.ledger.transaction() as tx:
                return await work(tx)
        finally:
            await found.ledger.close()

    return asyncio.run(run())
