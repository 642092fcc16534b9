"""The handler that purge and invalidate share: a batch of hide and erase orders, and one that was left for later.

A stage says which kinds it takes and which event says that it is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from expunge.chunks.erasing import INLINE_LEAVES, LEASE_SECONDS, Acted, Eraser, Task
from expunge.chunks.orders import Inbox
from expunge.record import emit

if TYPE_CHECKING:
    from expunge.chunks.orders import Recorded
    from expunge.chunks.scopes import Scopes
    from expunge.domain.events import Event
    from expunge.domain.words import Kind
    from expunge.ports import Clock, Delivery, Ledger, Refused, Signer, Store, Tx
    from expunge.tasks import Commit


@dataclass(frozen=True, slots=True)
class Handled:
    """A batch, and what it came to."""

    inbox: Inbox
    acted: Acted


class ErasureHandler(ABC):
    """Handler of a worker's topic, and of its task kind. Parameters: `chunks.erasing.Eraser`."""

    worker: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]
    dedupe = False  # outcome rows know repeats, and a repeat is answered from them

    def __init__(
        self,
        *,
        ledger: Ledger,
        scopes: Scopes,
        stores: Mapping[str, Store],
        signers: Mapping[str, Signer],
        clock: Clock,
        holder: str,
        lease_seconds: float = LEASE_SECONDS,
        inline_leaves: int = INLINE_LEAVES,
    ) -> None:
        self._clock = clock
        self._eraser = Eraser(
            worker=self.worker, kinds=self.kinds, ledger=ledger, scopes=scopes, stores=stores, signers=signers,
            clock=clock, holder=holder, lease_seconds=lease_seconds, inline_leaves=inline_leaves,
        )  # fmt: skip
        self.task_kind: Final = self._eraser.task_kind

    @abstractmethod
    def said(self, one: Recorded) -> Event:
        """What is said when an order is done."""

    async def act(self, deliveries: Sequence[Delivery]) -> Handled:
        """Hide and erase."""
        inbox = Inbox(deliveries)
        return Handled(inbox, await self._eraser.act(inbox.orders))

    async def commit(self, acted: Handled, tx: Tx) -> list[Refused]:
        """Record the outcomes and say what was done."""
        await self._record(acted.acted, tx)
        return acted.inbox.refused(acted.acted.refusals)

    async def task(self, lease: Task) -> Commit:
        """An order that was left for later."""
        return partial(self._record, await self._eraser.carry_out(lease))

    async def _record(self, acted: Acted, tx: Tx) -> None:
        await self._eraser.record(acted, tx)
        await emit(tx, self.worker, [self.said(one) for one in acted.done], at=self._clock())
