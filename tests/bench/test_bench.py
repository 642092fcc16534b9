from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_bench_measures_everything_and_keeps_its_history(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    (order,) = kept["orders"]
    assert order["ratio"] > 1
    assert {"intake", "plan", "prove", "erase photos", "erase faces", "taint", "certify"} <= order["system"][
        "seconds"
    ].keys()
    assert kept["requests"]["burst"]["requests"] == 100
    assert kept["micro"]["tree"]["ratio"] > 0
