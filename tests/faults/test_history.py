"""A run with crashes on real servers, judged by the checker that knows none of the product."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import crashes
from tests.faults.crashes import Lab
from tests.faults.small import Small

POINTS = (
    ("coordinate", "delivery.recorded"), ("coordinate", "plan.sealed"), ("coordinate", "prove.tiled"),
    ("coordinate", "certify.boxed"), ("purge", "store.unlinked"), ("invalidate", "store.counted"),
    ("rescan", "rescan.needled"), ("retrain", "retrain.destroyed"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_the_judge_finds_nothing_in_a_run_full_of_crashes(tmp_path: Path) -> None:
    with Small(tmp_path / "run", history=tmp_path / "history.jsonl") as small:
        lab = Lab(small, reserve=12)
        assert small.told is not None
        small.told.recorder.phase("faults")
        for worker, point in POINTS:
            small.told.recorder.fault(f"kill -9 of {worker} at {point}")
            small.arm(worker, point)
            lab.run(crashes.order if worker == "retrain" else crashes.deletion)
            assert not small.disarm(worker), f"{worker} never came to {point}"
        small.told.recorder.phase("calm")
        lab.run(crashes.deletion)
        violations = small.told.finish(small)
    assert violations == []
