"""Receipts of a deployment whose rows about the person are gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from expunge.domain import bundle, opening
from expunge.domain.errors import Rejected
from expunge.domain.words import Kind, Provision
from expunge.openings import Wanted
from tests.coordination import Deployment, album, content, deployed


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


async def test_a_person_keeps_a_receipt_of_each_photo(world: Deployment) -> None:
    await world.seed(*(replace(photo, hashed=True) for photo in (*album(1), *album(2))))
    asked, other = world.deletion(1), world.deletion(2)
    world.ask(asked, other)
    await world.settle()
    files = await world.reader.certificate(UUID(asked.id), Provision.DATA)
    data = await world.reader.receipt(UUID(asked.id), Wanted("p1-0.bin"))
    found = opening.verify(data, world.trust, sweep=files).verified()
    assert {one.kind for one in found.leaves} == {Kind.IMAGE, Kind.DERIVATIVE, Kind.SHARD_ROW, Kind.EMBEDDING}
    assert all(one.absent for one in found.leaves)
    assert len(data) <= 4096
    copy = content("p1-0")
    same = await world.reader.receipt(UUID(asked.id), Wanted.copy(copy))
    assert same == data
    assert opening.verify(data, world.trust, sweep=files, copy=hashlib.sha256(copy).digest()).ok
    tree, index = (json.loads(data)["leaves"][0][name] for name in ("tree", "index"))
    alone = await world.reader.receipt(UUID(asked.id), (tree, index))
    assert opening.verify(alone, world.trust).ok
    assert len(alone) <= 4096
    assert bundle.PAGE in files
    theirs = await world.reader.certificate(UUID(other.id), Provision.DATA)
    assert opening.verify(data, world.trust, sweep=theirs).ok


async def test_a_receipt_opens_only_what_the_request_claims(world: Deployment) -> None:
    await world.seed(*album(1), *album(2))
    asked, other = world.deletion(1), world.deletion(2)
    world.ask(asked, other)
    await world.settle()
    with pytest.raises(Rejected, match="one of the request's images"):
        await world.reader.receipt(UUID(asked.id), Wanted("p2-0.bin"))
    theirs = json.loads(await world.reader.receipt(UUID(other.id), Wanted("p2-0.bin")))["leaves"][0]
    with pytest.raises(Rejected, match="a leaf that the request claims"):
        await world.reader.receipt(UUID(asked.id), (theirs["tree"], theirs["index"]))
    with pytest.raises(Rejected, match="none was issued"):
        await world.reader.receipt(UUID(world.deletion(1).id), Wanted("p1-0.bin"))
