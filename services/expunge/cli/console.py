"""What a command prints and returns: text for people on standard output, or one JSON document with `--json`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.domain.errors import Rejected


class Exit(IntEnum):
    """Exit codes, as documented in the command's help."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    CONFIGURATION = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="JSON on standard output, one object per line")]


def say(text: str) -> None:
    """One line for people."""
    sys.stdout.write(text + "\n")


def document(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on one line."""
    sys.stdout.write(json.dumps(value, default=str, separators=(",", ":"), ensure_ascii=False) + "\n")


def error_line(text: str) -> None:
    """One line on standard error, whatever the text."""
    sys.stderr.write("error: " + " ".join(text.split()) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for people; nothing but its head when there are no rows."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*("" if one is None else str(one) for one in row))
    console = Console(soft_wrap=False)
    console.print(shown, markup=False) if console.is_terminal else Console(width=200).print(shown)


def finish(code: Exit) -> None:
    """End the command with a code other than 0."""
    if code is not Exit.OK:
        raise typer.Exit(int(code))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left, on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_new(path: Path, data: bytes, option: str = "--out") -> None:
    """Write the file that an option names, or none. Raises `Rejected("unwritable")`, also for one that is there: nothing is
    overwritten."""
    from expunge.verify import write_whole

    try:
        write_whole(path, data)
    except OSError as error:
        raise unwritable(f"a new file at {option}", error) from error


def unwritable(what: str, error: OSError) -> Rejected:
    """What could not be written and why, as the system says it: no space left, permission denied, file exists."""
    return Rejected("unwritable", f"expected to write {what}, got {os.strerror(error.errno or 0)}: nothing was written")
