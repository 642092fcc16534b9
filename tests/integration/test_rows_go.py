"""Rows of an order's images: what is counted as erased is what went, also when others change these rows meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest

from expunge.domain.errors import Retryable
from expunge.ports import Row, Tx
from expunge.stages.certify.finished import Sweep
from expunge.stages.certify.rows import _drop_blocks
from tests.coordination import Deployment, Photo, deployed

SWEEP = UUID("11111111-1111-4111-8111-111111111111")
BEFORE = "certify_drop_artifact_ranges"


class Disturbed:
    """A transaction in the middle of which somebody else runs a statement and commits."""

    def __init__(self, tx: Tx, dsn: str, statement: bytes) -> None:
        self._tx = tx
        self._dsn = dsn
        self._statement = statement

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        return await self._tx.fetch(query, **parameters)

    async def execute(self, query: str, **parameters: object) -> int:
        if query == BEFORE and self._statement:
            with psycopg.connect(self._dsn, autocommit=True) as other:
                other.execute(self._statement)
        return await self._tx.execute(query, **parameters)

    async def copy(self, *_: object) -> int:
        raise NotImplementedError


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        await made.seed(*(Photo(f"p{number}", (number,)) for number in range(5)))
        yield made


async def drop(world: Deployment, statement: bytes) -> None:
    ((last,),) = world.sql("select max(artifact_id) from artifact")
    sweep = cast("Sweep", SimpleNamespace(sweep_id=SWEEP, last_artifact=last))
    async with world.ledger.transaction() as tx:
        await _drop_blocks(sweep, [0], [5], cast("Any", Disturbed(tx, world.dsn, statement)))


async def test_what_is_counted_as_erased_is_what_went(world: Deployment) -> None:
    await drop(world, b"")
    assert world.sql("select kind, artifacts from erased order by kind") == [
        ("derivative", 5), ("embedding", 5), ("image", 5), ("shard-row", 5)
    ]  # fmt: skip
    assert world.sql("select images from tombstone") == [(5,)]
    for table in ("artifact", "image", "image_subject"):
        assert world.sql(f"select count(*) from {table}") == [(0,)]
    await drop(world, b"")
    assert world.sql("select sum(artifacts) from erased") == [(20,)]


@pytest.mark.parametrize(
    ("statement", "counted"),
    [
        (b"delete from artifact where ordinal = 3 and kind = 'image'", 19),
        (
            (
                b"insert into artifact (ordinal, artifact_id, kind, store_no, unit_no, locator, purposes, digest)"
                b" select ordinal, 0, kind, store_no, unit_no, 'x', purposes, digest from artifact where ordinal = 3 limit 1"
            ),
            21,
        ),
    ],
)
async def test_rows_that_others_change_meanwhile_are_counted_anew(
    world: Deployment, statement: bytes, counted: int
) -> None:
    with pytest.raises(Retryable):
        await drop(world, statement)
    assert world.sql("select count(*) from erased") == [(0,)]
    await drop(world, b"")
    assert world.sql("select count(*) from artifact") == [(0,)]
    assert world.sql("select sum(artifacts) from erased") == [(counted,)]
