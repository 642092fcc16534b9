"""Invalidate: hide and erase orders for embeddings: hidden at once, erased by rewriting the index unit.

The work is `chunks.erasing`; here is which artifacts, and what is said when it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from expunge.chunks.erasing import INLINE_LEAVES, LEASE_SECONDS, Acted, Eraser, Task
from expunge.chunks.orders import Inbox, unfinished
from expunge.domain.events import ArtifactsBlocked, VectorsInvalidated
from expunge.domain.words import Kind
from expunge.record import emit

if TYPE_CHECKING:
    from expunge.chunks.orders import Recorded
    from expunge.chunks.scopes import Scopes
    from expunge.ports import Clock, Delivery, Ledger, Refused, Signer, Store, Tx
    from expunge.tasks import Commit

WORKER: Final = "invalidate"
KINDS: Final = frozenset({Kind.EMBEDDING})


@dataclass(frozen=True, slots=True)
class Handled:
    """A batch, and what it came to."""

    inbox: Inbox
    acted: Acted


class Invalidate:
    """Handler of `expunge.invalidate`, and of its task kind. Parameters: `chunks.erasing.Eraser`."""

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
            worker=WORKER, kinds=KINDS, ledger=ledger, scopes=scopes, stores=stores, signers=signers, clock=clock,
            holder=holder, lease_seconds=lease_seconds, inline_leaves=inline_leaves,
        )  # fmt: skip
        self.task_kind: Final = self._eraser.task_kind

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
        await emit(tx, WORKER, [_said(one) for one in acted.done], at=self._clock())


def _said(one: Recorded) -> VectorsInvalidated | ArtifactsBlocked:
    said = ArtifactsBlocked if unfinished(one.outcomes) else VectorsInvalidated
    return said.model_validate(one.order.model_dump(exclude={"type"}))
