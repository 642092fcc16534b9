"""The coordinate worker's own loop: plan, prove, dispatch and certify hand over through rows, in one process.

Each turn: publish a checkpoint over new rows, and in one transaction record it and order the work of newly published scopes;
then announce certificates. Beside it, sweeps are sealed from what waits. Woken by commits; looks again by itself, so that a
crash between any two steps is picked up by the next turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from expunge import metrics
from expunge.crashing import crash_point
from expunge.domain.errors import Retryable
from expunge.ports import Clock, Ledger, Outgoing
from expunge.stages.certify import Certify
from expunge.stages.dispatch import Dispatch
from expunge.stages.plan import ORDER, PEOPLE, Plan
from expunge.stages.prove import Attest, Prove
from expunge.wiring.gauges import count_requests, set_gauges

IDLE_SECONDS: Final = 1.0
ATTEST_SECONDS: Final = 1.0
"""How long after a round that lacked an answer the witnesses are asked again; a new checkpoint asks at once."""
REDRIVE_SECONDS: Final = 1.0
STALLED_SECONDS: Final = 30.0
"""A run of chunks that has not moved for this long is ordered again."""
GAUGES_SECONDS: Final = 5.0
DESTROY_SECONDS: Final = 3600.0
"""How often it looks for bucket keys whose time has come."""
PATIENCE_SECONDS: Final = 60.0
"""People's requests gather no longer than this behind sweeps that move. On a machine that is slow for the moment, giving up
sooner would make sweeps smaller just when they cost most."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Coordinator:
    """Runs the turns. `wake` is set by whoever committed rows that a turn may move on; `key_retention`: how long a day's
    request keys are kept, None for good."""

    ledger: Ledger
    plan: Plan
    prove: Prove
    dispatch: Dispatch
    certify: Certify
    window_seconds: float
    clock: Clock
    publish_emitted: Callable[[Sequence[tuple[str, Outgoing]]], Awaitable[None]]
    publish: Callable[[Sequence[Outgoing]], Awaitable[None]]
    in_hand: Callable[[], AbstractContextManager[None]]
    """Around a transaction and the `publish_emitted` that follows."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    attest: Attest | None = None
    """Where the settings name witnesses or a time stamping authority; nothing waits without."""
    _published: asyncio.Event = field(default_factory=asyncio.Event)
    _checked: asyncio.Event = field(default_factory=asyncio.Event)
    _look: asyncio.Event = field(default_factory=asyncio.Event)
    key_retention: timedelta | None = None
    stores: Collection[str] = ()
    """Names of the deployment's stores, for gauges."""
    _to_announce: bool = True
    _redriven: float = 0.0
    _destroyed: float = -DESTROY_SECONDS
    _gauged: float = 0.0
    _count: float = 0.0

    async def run(self) -> None:
        """Advance until cancelled. A passing fault of the database waits; anything else ends the process."""
        await self.prove.check()
        if self.attest is not None:
            await self.attest.check()
        self._checked.set()
        while True:
            self._look.set()
            try:
                moved = await self.advance()
                await self.upkeep()
            except Retryable as error:
                _log.warning("coordinator waits", reason=str(error))
                moved = False
                await asyncio.sleep(IDLE_SECONDS)
            if not moved:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), IDLE_SECONDS)
            self.wake.clear()

    async def sealing(self) -> None:
        """Seal until cancelled, beside `run`: neither the window nor an order of millions holds up what is under way."""
        await self._checked.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), IDLE_SECONDS)
            self._look.clear()
            try:
                while await self.seal():
                    self.wake.set()
            except Retryable as error:
                _log.warning("sealing waits", reason=str(error))
                await asyncio.sleep(IDLE_SECONDS)

    async def turn(self) -> bool:
        """Move everything that can move one step on; whether anything did."""
        sealed = await self.seal()
        return await self.advance() or sealed

    async def advance(self) -> bool:
        """Publish a checkpoint over what is new, order what it allows and announce what it proves; whether anything was."""
        with metrics.STAGE_SECONDS.labels("prove").time():
            published = await self.prove.publish()
        if published is None:
            announced = self._to_announce and await self._announce()
            return await self._attested() or announced
        with self.in_hand():
            async with self.ledger.transaction() as tx:
                await self.prove.record(published, tx)
                await self.dispatch.published(published.size, tx)
                crash_point("prove.recorded")
            crash_point("coordinate.committed")
            self._to_announce = True
            self._published.set()
            await self.publish_emitted(tx.outbox)
        await self._announce()
        return True

    async def _announce(self) -> bool:
        """Publish what rounds under a published checkpoint have to say; whether there was anything. The rows stay until Kafka
        has it all, so what a crash or a broker that is away undoes is said by a later turn, or another process."""
        async with self.ledger.transaction() as tx:
            messages = await self.certify.issue(tx)
            if messages:
                await self.publish(messages)
        self.certify.announced()
        self._to_announce = False
        return bool(messages)

    async def _attested(self) -> bool:
        """Order what waited for witnesses or the time stamp; whether anything did."""
        if self.attest is None:
            return False
        with self.in_hand():
            async with self.ledger.transaction() as tx:
                ordered = await self.dispatch.newly_attested(tx)
            await self.publish_emitted(tx.outbox)
        return bool(ordered)

    async def attesting(self) -> None:
        """Have checkpoints attested until cancelled, beside `run`: what is slow here holds up no turn."""
        if self.attest is None:
            return
        while True:
            self._published.clear()
            try:
                done = await self.attest.attest()
            except Retryable as error:
                _log.warning("attesting waits", reason=str(error))
                done = False
            self.wake.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._published.wait(), None if done else ATTEST_SECONDS)

    async def seal(self) -> bool:
        """Seal a sweep of the people's requests that wait, and one of an order; whether there was any."""
        waiting = await self.plan.waiting()
        moved = False
        if PEOPLE in waiting:
            count, since = waiting[PEOPLE]
            age = (self.clock() - since).total_seconds()
            if not (0 <= age < PATIENCE_SECONDS and await self.plan.crowded(count)):
                if 0 <= age < self.window_seconds:
                    await asyncio.sleep(self.window_seconds - age)
                with metrics.STAGE_SECONDS.labels("plan").time():
                    moved = await self.plan.seal_people() is not None
        if ORDER in waiting:
            with metrics.STAGE_SECONDS.labels("plan").time():
                moved |= await self.plan.seal_order() is not None
        if moved:
            crash_point("plan.committed")
        return moved

    async def upkeep(self) -> None:
        """Re-drive, expire, look at what may only lack a look, and set gauges: each at its own pace."""
        now = time.monotonic()
        if now - self._redriven >= REDRIVE_SECONDS:
            self._redriven = now
            self._to_announce = True  # another process may have left it behind
            with self.in_hand():
                async with self.ledger.transaction() as tx:
                    await self.dispatch.redrive(tx, age=STALLED_SECONDS)
                    await self.dispatch.expire(tx)
                    await self.certify.overdue(tx)
                    stale = await self.certify.stale(tx, age=STALLED_SECONDS)
                    if stale:
                        await self.certify.check(stale, tx)
                await self.publish_emitted(tx.outbox)
        if self.key_retention is not None and now - self._destroyed >= DESTROY_SECONDS:
            self._destroyed = now
            async with self.ledger.transaction() as tx:
                await self.certify.destroy_buckets((self.clock() - self.key_retention).date(), tx)
        if now - self._gauged >= GAUGES_SECONDS:
            self._gauged = now
            async with self.ledger.transaction() as tx:
                await set_gauges(tx, self.stores)
                if now >= self._count:
                    self._count = now + await count_requests(tx)
