"""What happened from one day to another: requests and their clocks, work, models, gaps. No person, no artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from expunge.domain.errors import Rejected
from expunge.ports import Row, Tx
from expunge.reports.document import Cell, Position, Report, Section, Table, instant
from expunge.reports.reading import OfPeriod


@dataclass(frozen=True, slots=True)
class Rows:
    """Requests accepted in the period, and how long data certificates took that were issued in it."""

    requests: Sequence[Row]
    times: Sequence[Row]


def bounds(first: date, last: date) -> tuple[datetime, datetime]:
    """Midnight UTC of both days. Raises `Rejected("empty-period")`."""
    if first >= last:
        raise Rejected("empty-period", f"expected FROM before TO, got {first} and {last}")
    return datetime.combine(first, time(), UTC), datetime.combine(last, time(), UTC)


async def read(tx: Tx, start: datetime, end: datetime) -> Rows:
    return Rows(
        await tx.fetch("reports_period", start=start, end=end),
        await tx.fetch("reports_period_times", start=start, end=end),
    )


def build(rows: Rows, seen: OfPeriod, *, log: Position, issuer: str, at: datetime) -> Report:
    """The report on what `seen` saw pass."""
    sections = [_requests(rows), _certificates(rows, seen), _work(seen), _models(seen), _gaps(seen)]
    title = f"From {seen.start.date()} to {seen.end.date()}"
    return Report("period", title, issuer, at, log, sections)


def _requests(rows: Rows) -> Section:
    counted: list[tuple[Cell, ...]] = [
        (kind, regulation, state, count, overdue, instant(due))
        for kind, regulation, state, count, overdue, due in rows.requests
    ]  # fmt: skip
    columns = ("type", "law", "state now", "requests", "overdue", "earliest date")
    return Section("Requests accepted", tables=[Table("requests", columns, counted)])


def _certificates(rows: Rows, seen: OfPeriod) -> Section:
    results: list[tuple[Cell, ...]] = [
        (provision.value, result, count) for (provision, result), count in sorted(seen.results.items())
    ]
    times: list[tuple[Cell, ...]] = [
        (kind, count, *(round(float(one)) for one in percentiles)) for kind, count, percentiles in rows.times
    ]
    return Section(
        "Provisions closed",
        tables=[
            Table("results", ("provision", "result", "requests"), results),
            Table("times", ("class", "data certificates", "median seconds", "95 % within", "slowest"), times),
        ],
    )


def _work(seen: OfPeriod) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (kind, seen.sweeps[kind], seen.requests[kind], seen.images[kind], seen.artifacts[kind]) for kind in sorted(seen.sweeps)
    ]  # fmt: skip
    return Section(
        "Scopes fixed",
        [("Images registered", seen.registered), ("Statements in the log", seen.entries)],
        [Table("scopes", ("class", "sweeps", "requests", "images", "artifacts"), rows)],
    )


def _models(seen: OfPeriod) -> Section:
    rows: list[tuple[Cell, ...]] = sorted(seen.models.items())
    return Section("Models", tables=[Table("models", ("what", "models"), rows)])


def _gaps(seen: OfPeriod) -> Section:
    overdue: list[tuple[Cell, ...]] = [
        (index, said.sweep, said.provision.value, instant(said.due), instant(said.at)) for index, said in seen.overdue
    ]
    others: list[tuple[Cell, ...]] = sorted(seen.others.items())
    return Section(
        "Late items, differences and what else was stated",
        tables=[
            Table("overdue", ("log entry", "sweep", "provision", "due", "stated"), overdue),
            Table("differences", ("log entry", "source", "kind", "difference"), seen.differences),
            Table("others", ("what", "statements"), others),
        ],
    )
