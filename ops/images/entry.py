# ruff: noqa: INP001 - copied into the image; nothing imports it
"""What a container of the image does: the `expunge` command line, with secrets read from files first.

Settings come from the environment. Those that hold a password are files in /run/secrets named after the variable in
lower case (`expunge_database`): so they are in no container's configuration, and `docker inspect` does not show them.
One command more than `expunge` has: `prepare` draws what a new deployment needs (directories; master, signing, journal
and parking keys) and changes nothing that is there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from expunge.cli.app import main
from expunge.cli.console import Exit, error_line
from expunge.domain.errors import Misconfigured

SECRETS = Path("/run/secrets")


def read_secrets(folder: Path) -> None:
    """Make a variable of each of our secret files. One that is set already stays."""
    for path in sorted(folder.glob("expunge_*")):
        os.environ.setdefault(path.name.upper(), path.read_text(encoding="utf-8").strip())


def prepare() -> int:
    """The exit code, as the command line's."""
    from expunge.settings import Settings
    from expunge.wiring import Deployment

    try:
        Deployment(Settings.read()).prepare()
    except Misconfigured as error:
        error_line(str(error))
        return Exit.CONFIGURATION
    return Exit.OK


if __name__ == "__main__":
    read_secrets(SECRETS)
    sys.exit(prepare() if sys.argv[1:] == ["prepare"] else main())
