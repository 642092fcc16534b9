"""Arrays of ordinals go to PostgreSQL as they are in memory."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from expunge.adapters.ledger.postgres import _configure


@pytest.mark.parametrize("values", [[], [7], [0, -1, 2**63 - 1, -(2**63), 65_536]])
async def test_an_array_of_integers_comes_back_as_it_was(database: str, values: list[int]) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await _configure(connection)
        cursor = await connection.execute("select %s::bigint[]", (np.array(values, np.int64),))
        assert await cursor.fetchall() == [(values,)]


@pytest.mark.parametrize("wrong", [np.zeros(2, np.int32), np.zeros((2, 2), np.int64)])
async def test_other_arrays_are_refused(database: str, wrong: np.ndarray) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await _configure(connection)
        with pytest.raises(TypeError, match="expected a flat int64 array"):
            await connection.execute("select %s::bigint[]", (wrong,))
