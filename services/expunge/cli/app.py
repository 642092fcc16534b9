"""The command line: `main` runs one command and gives its exit code.

Commands import what they need when they run, so that `expunge verify` and `expunge request` work with the core
dependencies alone and help is quick. Errors are one line on standard error that says what was expected.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer

from expunge import __version__
from expunge.cli import (
    api,
    audit,
    backup,
    breaker,
    canary,
    disclose,
    evidence,
    keys,
    log,
    models,
    operate,
    receipt,
    reconcile,
    requests,
)
from expunge.cli.console import Exit, error_line
from expunge.domain.errors import ExpungeError, Misconfigured, Rejected, Retryable

HELP: Final = """Erase people and sources from photos, indexes and models, with evidence that outsiders check.

Exit codes: 0 done; 1 a negative answer (verification failed, gate not clean, comparison unequal); 2 wrong usage or bad
input; 3 configuration error, naming the variable; 4 a server is not reachable, try again; 130 interrupted.
"""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room, in the file system, of the user or in a file."""


@dataclass(slots=True)
class _Flags:
    """What was asked for before the command (mutable)."""

    debug: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    flags = _Flags()
    try:
        code = _run(flags, arguments)
        sys.stdout.flush()
    except OSError as error:
        if flags.debug or error.errno not in _FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still has would be tried again
        error_line(f"expected room for what is written, got {os.strerror(error.errno)}: make room, and run this again")
        return Exit.USAGE
    return code


def _run(flags: _Flags, arguments: Sequence[str] | None) -> int:
    try:
        build(flags)(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="expunge")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        error_line("interrupted")
        return Exit.INTERRUPTED
    except (ExpungeError, ModuleNotFoundError) as error:
        if flags.debug:
            raise
        error_line(_in_words(error))
        return _exit_of(error)
    return Exit.OK


def build(flags: _Flags) -> typer.Typer:
    """The commands."""
    app = typer.Typer(
        help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None
    )

    @app.callback(help=HELP)
    def root(
        *,
        debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
        version: Annotated[bool, typer.Option("--version", help="show the version", is_eager=True)] = False,
    ) -> None:
        flags.debug = debug
        if version:
            typer.echo(__version__)
            raise typer.Exit

    app.add_typer(requests.commands(), name="request")
    evidence.add(app)
    receipt.add(app)
    app.add_typer(audit.commands(), name="audit")
    app.add_typer(backup.commands(), name="backup")
    disclose.add(app)
    reconcile.add(app)
    breaker.add(app)
    app.add_typer(models.commands(), name="models")
    app.add_typer(keys.commands(), name="keys")
    app.add_typer(canary.commands(), name="canary")
    log.add(app)
    operate.add(app)
    api.add(app)
    return app


def _exit_of(error: Exception) -> Exit:
    match error:
        case Misconfigured() | ModuleNotFoundError():
            return Exit.CONFIGURATION
        case Retryable():
            return Exit.UNREACHABLE
        case Rejected():
            return Exit.USAGE
        case _:
            return Exit.NEGATIVE


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs {error.name}, which is not installed: pip install 'expunge[worker,embedded,api]'"
    return str(error)
