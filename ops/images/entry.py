# ruff: noqa: INP001 - copied into the image; nothing imports it
"""What a container of the image does: the `expunge` command line, with secrets read from files first.

Settings come from the environment. Those that hold a password are files in /run/secrets named after the variable in
lower case (`expunge_database`): so they are in no container's configuration, and `docker inspect` does not show them.
Three commands more than `expunge` has. `prepare` draws what a new deployment needs (directories; master, signing, journal
and parking keys) and changes nothing that is there; `witness-key` draws a witness's key, once; `witness` serves it. On one
machine they learn of each other by the two verifier keys in /data/public, which are public.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from expunge.cli.app import main
from expunge.cli.console import Exit, error_line
from expunge.domain.errors import Misconfigured
from expunge.private import read_secret

SECRETS = Path("/run/secrets")
PUBLIC = Path("/data/public")
WITNESS = Path("/data/witness/state")


def read_secrets(folder: Path) -> None:
    """Make a variable of each of our secret files. One that is set already stays. Raises `Misconfigured` for one that
    everybody may read."""
    for path in sorted(folder.glob("expunge_*")):
        os.environ.setdefault(path.name.upper(), read_secret(path, "secrets").decode().strip())


def prepare() -> int:
    """The exit code, as the command line's."""
    from expunge.domain.note import NoteKey
    from expunge.settings import Settings
    from expunge.wiring import Deployment

    try:
        deployment = Deployment(Settings.read())
        deployment.prepare()
        log = NoteKey.log(deployment.settings.origin, deployment.signers.log_key().public)
        (PUBLIC / "log.vkey").write_text(log.encode(), encoding="ascii")
    except Misconfigured as error:
        error_line(str(error))
        return Exit.CONFIGURATION
    return Exit.OK


def witness_key() -> int:
    """The exit code."""
    from expunge.witness import cosigner

    drawn = PUBLIC / "witness.vkey"
    if not drawn.exists():
        drawn.write_text(cosigner.init(WITNESS, "witness.local/w1").encode(), encoding="ascii")
    return Exit.OK


def use_witness(environment: MutableMapping[str, str]) -> None:
    """Ask the witness of this machine, where its key is mounted and no other is named."""
    drawn = PUBLIC / "witness.vkey"
    if environment.get("EXPUNGE_WITNESSES", "[]") == "[]" and drawn.exists():
        named = [{"url": "http://witness:8080", "vkey": drawn.read_text(encoding="ascii")}]
        environment["EXPUNGE_WITNESSES"] = json.dumps(named)


def run(arguments: list[str]) -> int:
    """The exit code."""
    try:
        read_secrets(SECRETS)
    except (Misconfigured, OSError) as error:
        error_line(str(error))
        return Exit.CONFIGURATION
    match arguments:
        case ["prepare"]:
            return prepare()
        case ["witness-key"]:
            return witness_key()
        case ["witness"]:
            log = (PUBLIC / "log.vkey").read_text(encoding="ascii")
            return main(
                ["witness", "serve", "--dir", str(WITNESS), "--log", log, "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104
            )
        case _:
            use_witness(os.environ)
            return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
