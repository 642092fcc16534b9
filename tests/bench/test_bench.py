from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import certificates

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
    assert kept["micro"]["certificate of 93,750 by hashlib"]["peak_mb"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_certificate_of_3_000_000_fits_in_400_mb(tmp_path: Path) -> None:
    """By what each artifact more takes, with and without the accelerator: no object per leaf."""
    sizes = (300_000, 900_000)
    for artifacts in sizes:
        (tmp_path / str(artifacts)).mkdir()
        certificates.write(tmp_path / str(artifacts), artifacts)
    for accelerated in (False, True):
        small, large = (certificates.checked(tmp_path / str(one), accelerated=accelerated) for one in sizes)
        if accelerated and not (small["accelerated"] and large["accelerated"]):
            pytest.skip("numba is not installed: measured by hashlib alone")
        each = (large["peak"] - small["peak"]) / (sizes[1] - sizes[0])
        assert 32 < each < 80, "bytes per artifact: 32 are the leaf file's"
        assert large["peak"] + each * (3_000_000 - sizes[1]) < 400e6
