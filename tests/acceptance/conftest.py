from __future__ import annotations

from collections.abc import Iterator

import pytest

from expunge.wiring.up import Embedded
from tests.acceptance.served import AUDIENCE, Served


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests that only publish and ask: each has people, requests and models of its own."""
    folder = tmp_path_factory.mktemp("served")
    names = ("photos", "models")
    for name in names:
        (folder / name).mkdir()
    stores = {name: f"file://{folder / name}" for name in names}
    with Embedded(folder / "up", audience=AUDIENCE, durable=False, stores=stores) as embedded:
        embedded.start_workers()
        yield Served(embedded, folder)
