# ruff: noqa: INP001 - run while the image is built; nothing imports it
"""Part of a pip lock with hashes: `python select_lock.py LOCK < NAMES` prints the entries of the packages named.

An image gets the versions and hashes of requirements.lock, and nothing that workers do not need. NAMES: one package per
line, whatever follows `==` is not looked at. A name that the lock does not have is an error.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)")


def entries(lock: str) -> dict[str, str]:
    """Text of each entry, by normalised name. A package may have several, for different markers."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        if match := _NAME.match(part):
            name = normalised(match[1])
            found[name] = found.get(name, "") + part.rstrip() + "\n"
    return found


def normalised(name: str) -> str:
    """As PEP 503 says."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """The exit code."""
    locked = entries(Path(sys.argv[1]).read_text(encoding="utf-8"))
    wanted = sorted({normalised(match[1]) for line in sys.stdin if (match := _NAME.match(line))})
    if missing := [name for name in wanted if name not in locked]:
        sys.stderr.write(f"not in the lock: {', '.join(missing)}\n")
        return 1
    sys.stdout.write("".join(locked[name] for name in wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
