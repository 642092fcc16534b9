"""`expunge audit ...`: reports from the verified log and the catalogue, as pages, JSON and CSV."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.console import AsJson, document, progress, say, table
from expunge.cli.requests import checked_subject

if TYPE_CHECKING:
    from expunge.reports.document import Report
    from expunge.reports.making import Making


class Form(StrEnum):
    """How a report is written."""

    HTML = "html"
    JSON = "json"
    CSV = "csv"


Out = Annotated[
    Path | None,
    typer.Option("--out", help="a directory to write to; without it the report is printed", file_okay=False),
]
Forms = Annotated[list[Form] | None, typer.Option("--format", help="may be repeated; all of them if absent")]
TrustFile = Annotated[Path | None, typer.Option("--trust", help="policy file; the deployment's own keys if absent")]
Until = Annotated[int | None, typer.Option("--until", min=0, help="read only the log's first N entries")]


def commands() -> typer.Typer:
    """The group `audit`."""
    group = typer.Typer(help="Reports for auditors, regulators and the person concerned.", no_args_is_help=True)
    _of_requests(group)
    _of_the_whole(group)
    return group


def _of_requests(group: typer.Typer) -> None:
    @group.command(help="An order: provisions, clocks, counts, exceptions, models and their fate, what is not covered.")
    def order(
        request: Annotated[str, typer.Argument(metavar="ORDER", help="request id")],
        out: Out = None,
        forms: Forms = None,
        trust: TrustFile = None,
        until: Until = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import request_id

        identity = request_id(request)
        _report(lambda making: making.order(identity), out, forms, trust, until, as_json=as_json)

    @group.command(
        help="What is held about a person and which models used it. Give - to read the reference from stdin."
    )
    def subject(
        ref: Annotated[str, typer.Argument(metavar="REF", help="subject_ref, or - (not seen by other users then)")],
        out: Out = None,
        forms: Forms = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        named = sys.stdin.readline().strip() if ref == "-" else ref
        checked_subject(named)
        _report(lambda making: making.subject(named), out, forms, None, None, as_json=as_json)


def _of_the_whole(group: typer.Typer) -> None:
    @group.command(help="Every model: what taints it, by which path, and what is done about it by when.")
    def models(
        out: Out = None, forms: Forms = None, trust: TrustFile = None, until: Until = None, *, as_json: AsJson = False
    ) -> None:
        _report(lambda making: making.models(), out, forms, trust, until, as_json=as_json)

    @group.command(help="Where images came from, what is left of them, and what nobody could defend: the data debt.")
    def sources(
        out: Out = None, forms: Forms = None, trust: TrustFile = None, until: Until = None, *, as_json: AsJson = False
    ) -> None:
        _report(lambda making: making.sources(), out, forms, trust, until, as_json=as_json)

    @group.command(help="What happened from one day to another: requests, provisions closed, late items.")
    def period(
        first: Annotated[datetime, typer.Argument(metavar="FROM", formats=["%Y-%m-%d"], help="first day, UTC")],
        last: Annotated[datetime, typer.Argument(metavar="TO", formats=["%Y-%m-%d"], help="first day after it, UTC")],
        out: Out = None,
        forms: Forms = None,
        trust: TrustFile = None,
        until: Until = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        _report(
            lambda making: making.period(first.date(), last.date()), out, forms, trust, until, as_json=as_json
        )  # fmt: skip


def _report(
    make: Callable[[Making], Awaitable[Report]], out: Path | None, forms: list[Form] | None, trust: Path | None,
    until: int | None, *, as_json: bool,
) -> None:  # fmt: skip
    from expunge.cli.deployed import reachable

    found = reachable()
    from expunge.readside import trusted
    from expunge.reports.document import as_json as in_json
    from expunge.reports.document import write
    from expunge.reports.making import Making
    from expunge.verify import read_trust

    async def made() -> Report:
        policy = read_trust(trust) if trust is not None else await trusted(found)
        with progress("log entries") as tell:
            at = datetime.now(UTC).replace(microsecond=0)
            return await make(Making(found, policy, at=at, until=until, progress=tell))

    report = asyncio.run(made())
    if out is not None:
        files = write(report, out, forms or list(Form))
        document({"out": str(out), "files": files}) if as_json else say(f"{out}: {', '.join(files)}")
    elif as_json:
        document(in_json(report))
    else:
        _print(report)


def _print(report: Report) -> None:
    say(report.title)
    for section in report.sections:
        say(f"\n{section.title}")
        for note in section.notes:
            say(f"  {note}")
        for name, value in section.facts:
            say(f"  {name:<24} {'' if value is None else value}")
        for one in section.tables:
            if one.rows:
                table(one.columns, one.rows)
