"""A worker judges nothing by a clock that nobody else has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.domain.errors import Misconfigured
from expunge.wiring import CLOCK_SKEW, check_clock


@pytest.mark.parametrize("sign", [1, -1])
async def test_a_clock_that_is_far_from_the_databases_is_refused(database: str, sign: int) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    try:
        await check_clock(ledger, lambda: datetime.now(UTC) + sign * CLOCK_SKEW / 2)
        with pytest.raises(Misconfigured, match="s apart"):
            await check_clock(ledger, lambda: datetime.now(UTC) + sign * (CLOCK_SKEW + timedelta(minutes=1)))
    finally:
        await ledger.close()
