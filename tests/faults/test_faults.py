"""The faults of the matrix that take seconds, each as a test; `python -m tests.faults` prints the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.ground import Fault, Ground, NotHere
from tests.faults.matrix import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with Ground(scale=0.5) as made:
        yield made


@pytest.mark.parametrize("fault", [one for one in FAULTS if not one.long], ids=lambda one: f"{one.number:02d}")
def test_nothing_is_lost_and_nothing_done_twice(ground: Ground, fault: Fault) -> None:
    try:
        report = fault.run(ground)
    except NotHere as missing:
        pytest.skip(f"NOT RUN: {missing}")
    print(fault.title, report.figure)
    assert report.violations == []
