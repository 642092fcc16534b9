"""ops/TOUR.md, word for word, in one shell: what it promises to each group of users happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.settings import PREFIX
from tests.guards.sources import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BLOCK = re.compile(r"^```sh\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path: Path) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, words in (("expunge", "-m expunge"), ("python", "")):
        (bin_ / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n', encoding="ascii")
        (bin_ / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    blocks = BLOCK.findall((ROOT / "ops" / "TOUR.md").read_text(encoding="utf-8"))
    assert len(blocks) > 8
    plain = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    ran = subprocess.run(
        # What was started in the background ends with the shell, wherever the shell ends.
        ["bash", "-ec", "\n".join(["trap '[ -z \"${up-}\" ] || kill $up; wait' EXIT", *blocks, "up="])],
        cwd=work,
        env=plain | {"PATH": os.pathsep.join([str(bin_), plain["PATH"]])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}\n{(work / 'up.txt').read_text(encoding='utf-8')}"
    assert [path.name for path in sorted((work / "photos").rglob("*.jpg"))] == ["2.jpg"], "bob's is left, and no other"
    said = ran.stdout.splitlines()
    assert said.count("verified") == 3
    assert "equal to the live system" in said
    assert "canary: proved" in said
    report = json.loads((work / "reports" / "order.json").read_text(encoding="utf-8"))
    assert report
    assert (work / "reports" / "sources.html").read_text(encoding="utf-8").count("scraped") > 0
