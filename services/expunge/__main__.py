"""`expunge` and `python -m expunge`."""

from __future__ import annotations

import sys

from expunge.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
