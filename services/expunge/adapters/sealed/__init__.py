"""Sealed stores: scope files and round files, encrypted before they come here, kept until erased on schedule."""

from __future__ import annotations

import re
from typing import Final

from expunge.domain.errors import Rejected

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,150}", re.ASCII)


def check_name(name: str) -> str:
    """`name` if it is a plain file name. Raises `Rejected("bad-name")`."""
    if not _NAME.fullmatch(name):
        raise Rejected("bad-name", "expected a file name of lower-case letters, digits, dots, hyphens and underscores")
    return name
