"""A report as values, and the forms it is written in: a page that prints, JSON, one CSV file per table.

The page asks for nothing from anywhere: no script, no font, no picture.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from expunge.domain import canonical
from expunge.domain.errors import Rejected

Cell: TypeAlias = str | int | None
"""What a table may hold. None is written as an empty cell."""

PRIVATE: Final = 0o600
"""A report may be about a person: only its owner reads it."""


@dataclass(frozen=True, slots=True)
class Table:
    """`name`: of its CSV file, a slug that is unique in the report; `rows`: as wide as `columns`."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True, slots=True)
class Section:
    """`facts`: name and value, in order; `notes`: plain sentences."""

    title: str
    facts: Sequence[tuple[str, Cell]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """The log that a report rests on, verified whole: `size` entries, `root` in hex; `folded` of them were read."""

    origin: str
    size: int
    root: str
    folded: int


@dataclass(frozen=True, slots=True)
class Report:
    """`kind`: the command's name; `personal`: whether it says who somebody is."""

    kind: str
    title: str
    issuer: str
    at: datetime
    log: Position | None
    sections: Sequence[Section]
    personal: bool = False
    version: int = field(default=1)

    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [table for section in self.sections for table in section.tables]


def as_json(report: Report) -> dict[str, Any]:
    """The report as a JSON object. Facts stay pairs: their order is the report's."""
    return asdict(report) | {"at": instant(report.at)}


def as_html(report: Report) -> bytes:
    """The page: HTML that prints."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("expunge.reports", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html").render(report=report, at=instant(report.at))
    return page.encode()


def as_csv(table: Table) -> bytes:
    """RFC 4180. A cell that a spreadsheet would take for a formula is quoted with an apostrophe."""
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(table.columns)
    writer.writerows([[_harmless(cell) for cell in row] for row in table.rows])
    return written.getvalue().encode()


def _harmless(cell: Cell) -> Cell:
    # https://owasp.org/www-community/attacks/CSV_Injection
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell


def instant(at: datetime | None) -> str | None:
    """ISO 8601 in UTC, whole seconds, with `Z`."""
    return None if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


FORMS: Final[Mapping[str, Callable[[Report], dict[str, bytes]]]] = {
    "html": lambda report: {f"{report.kind}.html": as_html(report)},
    "json": lambda report: {f"{report.kind}.json": canonical.dumps(as_json(report)) + b"\n"},
    "csv": lambda report: {f"{report.kind}-{table.name}.csv": as_csv(table) for table in report.tables()},
}
"""What writes a report in each form, as files by name."""


def write(report: Report, directory: Path, forms: Sequence[str]) -> list[str]:
    """Write the report's files; their names. All or none: a file appears when all are on the disk.

    Raises `Rejected`: `not-empty` where a file of that name is there, `unwritable` for what the disk refuses (full, not
    allowed): nothing is left behind then.
    """
    files = {name: data for form in forms for name, data in FORMS[form](report).items()}
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if taken := sorted(name for name in files if (directory / name).exists()):
            raise Rejected("not-empty", f"expected no {taken[0]} in --out, there is one: name another directory")
        for name, data in files.items():
            written.append(directory / f".{name}.part")
            _write_private(written[-1], data)
        for name in files:
            (directory / f".{name}.part").rename(directory / name)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise Rejected(
            "unwritable", f"expected to write {len(files)} files at --out, got {os.strerror(error.errno or 0)}"
        ) from error
    return list(files)


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
