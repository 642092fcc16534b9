"""Tile stores: where the evidence log's tiles, entry bundles and checkpoints live (C2SP tlog-tiles)."""

from __future__ import annotations

import re
from typing import Final

from expunge.domain.errors import Rejected

CHECKPOINT: Final = "checkpoint"
"""The newest published checkpoint. It and the archive of checkpoints are replaced; all other files are immutable."""

ARCHIVE: Final = "checkpoints/"
"""Every published checkpoint by size, replaced as cosignatures and a time stamp come in."""

_PATH: Final = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,63}/){0,8}[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)


def check_path(path: str) -> str:
    """`path` if it is one that a log may have: no absolute, hidden or parent parts. Raises `Rejected("bad-path")`."""
    if not _PATH.fullmatch(path):
        raise Rejected("bad-path", "expected a relative path of lower-case names, digits, dots and hyphens")
    return path


def replaceable(path: str) -> bool:
    """Whether a file may be replaced by other bytes."""
    return path == CHECKPOINT or path.startswith(ARCHIVE)
