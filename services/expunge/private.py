"""Files that hold a secret: read only where not everybody on the machine can.

A group may read one: that is how a secret reaches a container or a pod whose user does not own the file.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from expunge.domain.errors import Misconfigured

EVERYBODY: Final = stat.S_IROTH | stat.S_IWOTH


def read_secret(path: Path, what: str) -> bytes:
    """The bytes of a file with a secret. `what`: where the file was named, for the error. Raises `OSError`, and
    `Misconfigured` when everybody may read or replace it, whoever asks: root would not notice otherwise."""
    with path.open("rb") as file:
        refuse_public(path, file.fileno(), what)
        return file.read()


def refuse_public(path: Path, descriptor: int | Path, what: str) -> None:
    """Raises as `read_secret`, of an open file or of a path. What is no regular file has no mode of its own: a pipe."""
    found = descriptor.stat() if isinstance(descriptor, Path) else os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_mode & EVERYBODY:
        mode = stat.S_IMODE(found.st_mode)
        raise Misconfigured(
            f"{what}: expected a file that not everybody on this machine can read or change, got one of mode {mode:04o}: "
            f"chmod 600 {shlex.quote(str(path))} (and draw a new secret if others may have read it)"
        )
