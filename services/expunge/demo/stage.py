"""Where the story is told: one line per thing that happened, the time of each act, and what was asked of the system."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@dataclass(slots=True)
class Act:
    """One of the story's points, and how long it took (seconds)."""

    number: int
    title: str
    seconds: float = 0.0


@dataclass(slots=True)
class Stage:
    """Prints on standard error when `as_json`, so that standard output holds the document alone."""

    as_json: bool
    acts: list[Act] = field(default_factory=list)
    held: bool = True
    console: Console = field(init=False)
    _progress: Progress | None = None

    def __post_init__(self) -> None:
        """Wide enough for a terminal, and for a file."""
        file = sys.stderr if self.as_json else sys.stdout
        self.console = Console(file=file, highlight=False, width=None if file.isatty() else 120)

    @contextmanager
    def act(self, number: int, title: str) -> Iterator[None]:
        """One act, timed, with a spinner that says what is going on."""
        act = Act(number, title)
        self.acts.append(act)
        self.console.print(f"\n[bold]{number}  {title}[/bold]")
        started = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        quiet = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=quiet) as self._progress:
            self._progress.add_task("", total=None)
            yield
        self._progress = None
        act.seconds = time.monotonic() - started
        self.console.print(f"   [dim]{act.seconds:.1f} s[/dim]")

    def doing(self, what: str) -> None:
        """What is waited for now."""
        if self._progress is not None:
            for task in self._progress.task_ids:
                self._progress.update(task, description=what)

    def say(self, text: str) -> None:
        """Something that happened."""
        self.console.print(f"   {text}", markup=False, soft_wrap=True)

    def check(self, *, holds: bool, text: str) -> None:
        """Something that must be so."""
        self.held = self.held and holds
        self.console.print(f"   [green]ok[/green] {text}" if holds else f"   [bold red]NOT SO[/bold red] {text}")
