"""`python -m tests.history check FILE [--partial]`: judge a history; 0 where it holds, 1 with a line per violation."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.history.judge import check
from tests.history.reading import MisreadError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.history")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="judge a history against I1 to I6")
    checking.add_argument("file", type=Path)
    checking.add_argument("--partial", action="store_true", help="do not complain of what was not recorded")
    asked = parser.parse_args()
    lines = asked.file.read_bytes().splitlines()
    try:
        found = check(lines, partial=asked.partial)
    except MisreadError as error:
        print(f"unreadable: {error}", file=sys.stderr)
        return 2
    for one in found:
        print(one)
    counts = Counter(one.invariant for one in found)
    print(f"{len(lines)} records, {len(found)} violations {dict(counts)}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
