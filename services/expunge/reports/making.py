"""Make a report of one deployment: verify its log, read its rows, build. Needs no credentials of any store."""

from __future__ import annotations

import asyncio
from datetime import date, datetime
from typing import Any
from uuid import UUID

from expunge import replay
from expunge.domain.trust import Trust
from expunge.readside import reader
from expunge.replay import Observer, Progress, Replayed
from expunge.reports import models, order, period, sources, subject
from expunge.reports.document import Position, Report
from expunge.reports.reading import OfPeriod, OfSweeps
from expunge.wiring import Deployment


class Making:
    """Reports of one deployment at one moment. `until`: read only that many entries of the log; `progress`: as
    `replay.replay` has it. Every method raises `Tampered` for a log that does not verify."""

    def __init__(
        self, deployment: Deployment, trust: Trust, *, at: datetime, until: int | None, progress: Progress
    ) -> None:  # fmt: skip
        self._deployment = deployment
        self._trust = trust
        self._at = at
        self._until = until
        self._progress = progress

    async def order(self, request_id: UUID) -> Report:
        """Raises `Rejected` as `order.read`."""
        async with self._deployment.ledger.opened() as ledger, ledger.transaction() as tx:
            rows = await order.read(tx, request_id)
        seen = OfSweeps(frozenset(rows.sweeps))
        replayed = await self._replay(seen)
        settings = self._deployment.settings
        return order.build(rows, replayed.state, seen, **self._about(replayed), not_covered=settings.not_covered)

    async def models(self) -> Report:
        async with reader(self._deployment) as read:
            described = [await read.model(one["model"]) for one in await read.models()]
        replayed = await self._replay()
        return models.build(described, replayed.state, **self._about(replayed))

    async def sources(self) -> Report:
        async with self._deployment.ledger.opened() as ledger, ledger.transaction() as tx:
            rows = await sources.read(tx)
        replayed = await self._replay()
        return sources.build(rows, replayed.state, **self._about(replayed))

    async def subject(self, subject_ref: str) -> Report:
        """The log says nothing about a person, so this report rests on the catalogue alone."""
        async with self._deployment.ledger.opened() as ledger, ledger.transaction() as tx:
            rows = await subject.read(tx, subject_ref, self._deployment.journal.key)
        return subject.build(rows, issuer=self._issuer, at=self._at)

    async def period(self, first: date, last: date) -> Report:
        """Raises `Rejected("empty-period")`."""
        start, end = period.bounds(first, last)
        async with self._deployment.ledger.opened() as ledger, ledger.transaction() as tx:
            rows = await period.read(tx, start, end)
        seen = OfPeriod(start, end)
        replayed = await self._replay(seen)
        return period.build(rows, seen, **self._about(replayed))

    @property
    def _issuer(self) -> str:
        return self._deployment.settings.issuer or self._deployment.settings.audience

    def _about(self, replayed: Replayed) -> dict[str, Any]:
        checkpoint = replayed.checkpoint
        log = Position(checkpoint.origin, checkpoint.size, checkpoint.root.hex(), replayed.state.size)
        return {"log": log, "issuer": self._issuer, "at": self._at}

    async def _replay(self, *observers: Observer) -> Replayed:
        def tell(index: int, predicate: Any) -> None:  # noqa: ANN401 - any predicate
            for one in observers:
                one(index, predicate)

        return await asyncio.to_thread(
            replay.replay, self._deployment.tiles, self._trust, until=self._until, progress=self._progress, observe=tell
        )
