"""Tasks: work that can exceed what a handler may do at once, run beside the agent from Postgres rows.

A task is leased with a fencing token, renewed while it runs, resumed from its cursor after a crash, and finished in one
transaction that also holds what it leads to (rows, outbox). It runs at least once; only who holds the last token can
save or finish.
"""

from __future__ import annotations

import asyncio
import json
import random
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

from expunge.crashing import crash_point
from expunge.domain.errors import ExpungeError, FencedOff, Retryable

if TYPE_CHECKING:
    from expunge.ports import Ledger, Tx

LEASE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.5
LONGEST_WAIT_SECONDS: Final = 300.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Lease:
    """A leased task row (mutable: `cursor` follows what was saved). `attempts`: leases since it last made progress."""

    ledger: Ledger
    task_id: int
    kind: str
    key: str
    input: dict[str, object]
    cursor: dict[str, object]
    token: int
    attempts: int

    async def save(self, cursor: dict[str, object]) -> None:
        """Keep progress. Raises `FencedOff` when the lease is another's by now."""
        async with self.ledger.transaction() as tx:
            await self._fenced(tx, "task_save", cursor=json.dumps(cursor))
        crash_point("tasks.saved")
        self.cursor = cursor

    async def renew(self, seconds: float) -> None:
        """Hold it for `seconds` more. Raises `FencedOff` as `save` does."""
        async with self.ledger.transaction() as tx:
            await self._fenced(tx, "task_renew", seconds=seconds)

    async def hold(self, tx: Tx) -> None:
        """Hold it in this very transaction, so that what else is in it is written by the holder or not at all. Raises
        `FencedOff` as `save` does."""
        await self._fenced(tx, "task_renew", seconds=LEASE_SECONDS)

    async def finish(self, tx: Tx) -> None:
        """Mark it done, in the transaction that holds what it leads to. Raises `FencedOff` as `save` does."""
        await self._fenced(tx, "task_finish")

    async def later(self, seconds: float) -> None:
        """Give it up for now."""
        async with self.ledger.transaction() as tx:
            await self._fenced(tx, "task_later", seconds=seconds)

    async def _fenced(self, tx: Tx, query: str, **parameters: object) -> None:
        if not await tx.execute(query, task_id=self.task_id, token=self.token, **parameters):
            raise FencedOff


Commit: TypeAlias = Callable[["Tx"], Awaitable[None]]
"""What a task leads to, written in its final transaction."""
Work: TypeAlias = Callable[[Lease], Awaitable[Commit]]
"""One kind of task. `Retryable` leaves it for later; any other error too, and is logged as the fault it is."""


async def run_tasks(
    *,
    ledger: Ledger,
    kinds: Mapping[str, Work],
    stop: asyncio.Event,
    wake: asyncio.Event | None = None,
    finished: Callable[[], Awaitable[None]] | None = None,
    lease_seconds: float = LEASE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Run tasks of these kinds, one after another, until `stop` is set (then the one under way is given back).

    `wake` is set by whoever may have put a task that is due: it need not wait for the next look. `finished` is called
    after each commit: publish the outbox there.
    """
    wake = wake or asyncio.Event()
    while not stop.is_set():
        wake.clear()
        try:
            ran = await run_one(ledger=ledger, kinds=kinds, stop=stop, lease_seconds=lease_seconds)
        except Retryable:
            ran = False
            log.warning("tasks could not be leased this time", action="lease")
        if ran and finished is not None:
            await finished()
        if not ran:
            await _any_of(stop, wake, seconds=poll_seconds)


async def _any_of(*events: asyncio.Event, seconds: float) -> None:
    """Until one of them is set, or for so long."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()


async def run_one(
    *, ledger: Ledger, kinds: Mapping[str, Work], stop: asyncio.Event, lease_seconds: float = LEASE_SECONDS
) -> bool:
    """Lease and run one task that is due; whether there was one."""
    rows = await ledger.fetch("task_lease", kinds=list(kinds), seconds=lease_seconds)
    if not rows:
        return False
    crash_point("tasks.leased")
    lease = Lease(ledger, *rows[0])
    try:
        async with _kept_alive(lease, lease_seconds, stop):
            commit = await kinds[lease.kind](lease)
            crash_point("tasks.worked")
            async with ledger.transaction() as tx:
                await lease.finish(tx)
                await commit(tx)
                crash_point("tasks.recorded")
            crash_point("tasks.finished")
        log.info("task done", action="finish", task=lease.task_id, kind=lease.kind)
    except FencedOff:
        log.warning("task taken over by another worker", action="fence", task=lease.task_id, kind=lease.kind)
    except Retryable as error:
        await _give_back(lease, str(error))
    except asyncio.CancelledError:
        await lease.later(0)
        raise
    except Exception as error:  # noqa: BLE001 - parked, not dropped: the row stays, and its age is watched
        # Messages of foreign errors may quote data, so only their type and place are logged.
        detail = str(error) if isinstance(error, ExpungeError) else type(error).__name__
        place = traceback.extract_tb(error.__traceback__)[-1]
        log.error(  # noqa: TRY400 - see above
            "task failed", action="fail", task=lease.task_id, kind=lease.kind, reason=detail,
            where=f"{place.filename}:{place.lineno}",
        )  # fmt: skip
        await _give_back(lease, detail)
    return True


async def _give_back(lease: Lease, reason: str) -> None:
    wait = min(LONGEST_WAIT_SECONDS, 2.0 ** min(lease.attempts, 16)) * random.uniform(0.5, 1)  # noqa: S311 - jitter
    log.info("task left for later", action="defer", task=lease.task_id, kind=lease.kind, reason=reason)
    with suppress(FencedOff):
        await lease.later(wait)


@asynccontextmanager
async def _kept_alive(lease: Lease, seconds: float, stop: asyncio.Event) -> AsyncIterator[None]:
    """Renew while the body runs. A lost lease, or `stop`, ends the body: `FencedOff` or `Retryable`."""
    body = asyncio.current_task()
    ended: list[Exception] = []

    async def beat() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds / 3)
                ended.append(Retryable("the worker stops"))
            if not ended:
                try:
                    await lease.renew(seconds)
                except FencedOff as error:
                    ended.append(error)
                except Retryable:
                    continue  # it may still be ours at the next beat; the token decides
            if ended and body is not None:
                body.cancel()
                return

    heart = asyncio.create_task(beat())
    try:
        yield
    except asyncio.CancelledError:
        if ended and body is not None and body.uncancel() == 0:
            raise ended[0] from None
        raise
    finally:
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)
