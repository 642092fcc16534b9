"""The demo: a pretend product with real photographs, and the story of what happens when people and a regulator ask.

Everything that Expunge does in it is the real thing, on real servers. Fictional are the product, its sources, the
requests and the order; the photographs are the AT&T Laboratories Cambridge faces, read from the installed wheel.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(output: Path, *, keep: Path | None = None, as_json: bool = False) -> bool:
    """Tell the story; whether everything in it held. `output`: where bundles are left; `keep`: where the deployment and
    the product's data stay, instead of in a temporary directory."""
    for name in _ONE_THREAD:  # read when numpy is imported, so before it is
        os.environ.setdefault(name, "1")
    from expunge.demo.story import tell_story

    return tell_story(output, keep=keep, as_json=as_json)
