from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordination import FACES, PHOTOS, SHARDS, THUMBS, Deployment, Photo, album, deployed


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


async def test_a_person_is_deleted_from_every_store_and_gets_a_certificate_that_verifies(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    assert world.state(asked) == "completed"
    assert world.result(asked) == "complete"
    for store in (PHOTOS, THUMBS, SHARDS, FACES):
        assert world.left(store) == {f"p2-{n}.bin" for n in range(4)}
    report = await world.verify(asked)
    assert report.ok, list(report.lines())
