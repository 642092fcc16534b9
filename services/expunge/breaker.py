"""The blast-radius breaker: how much may be erased in an hour without a person having looked.

People's sweeps are counted, store by store and source by source, in the transaction that would order their first work.
One that would take a scope over its cap is not let through: it stays sealed, the scope's breaker opens, and every sweep
that touches the scope waits until a person closes it. What was sealed by then goes; the hour begins anew. Scopes that two
approvers named (orders, and people with many images) neither count nor wait: a person has looked at exactly those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import numpy as np
from pyroaring import BitMap64

from expunge.domain import canonical, dsse
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.events import BreakerClosed, BreakerOpened
from expunge.domain.policy import Policy
from expunge.ports import Tx
from expunge.record import emit

WORKER: Final = "coordinate"
CLOSING_TYPE: Final = "application/vnd.expunge.breaker-closing.v1+json"
"""DSSE payload type of the letter that closes a breaker: scope, opening time, reason."""
_BLOCK_BITS: Final = 16


@dataclass(frozen=True, slots=True)
class Asking:
    """A sealed sweep that would begin. `scope_index`: of its scope statement in the log; `stores`: artifacts by store;
    `ordinals`: Roaring, its images."""

    sweep_id: UUID
    scope_index: int
    stores: Mapping[str, int]
    ordinals: bytes


@dataclass(slots=True)
class _Scope:
    """One store or source in this transaction (mutable)."""

    cap: int
    open: bool = False
    closed_size: int = 0
    spent: int = 0
    begun: int = 0


@dataclass(slots=True)
class _Hour:
    """What this transaction knows and decides (mutable)."""

    scopes: dict[str, _Scope] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)


class Breaker:
    """Caps of one policy. Concurrent transactions follow each other, under a lock."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def let_through(self, tx: Tx, asking: Sequence[Asking], at: datetime) -> list[UUID]:
        """Those that may begin. For the others breakers are open, or opened here."""
        if not asking:
            return []
        await tx.execute("breaker_lock")
        wanted, populations = await self._wanted(tx, asking)
        hour = await self._hour(tx, {scope for one in wanted for scope in one}, populations, at)
        through = [one.sweep_id for one, needs in zip(asking, wanted, strict=True) if _passes(one, needs, hour)]
        begun = {name: one.begun for name, one in hour.scopes.items() if one.begun}
        if begun:
            await tx.execute("breaker_spend", scopes=list(begun), artifacts=list(begun.values()), at=at)
        if hour.opened:
            await self._open(tx, hour, at)
        await tx.execute("breaker_forget", at=at)
        return through

    async def _wanted(self, tx: Tx, asking: Sequence[Asking]) -> tuple[list[dict[str, int]], dict[str, int]]:
        """Per sweep, artifacts or images by scope; and the images of each source."""
        blocks = []
        for one in asking:
            ordinals = np.array(BitMap64.deserialize(one.ordinals), np.uint64)
            blocks.append(np.unique(ordinals >> np.uint64(_BLOCK_BITS), return_counts=True))
        every = sorted({int(block) for numbers, _ in blocks for block in numbers})
        rows = await tx.fetch("breaker_sources", blocks=every)
        source_of = {block: f"source:{name}" for block, name, _ in rows}
        wanted = []
        for one, (numbers, counts) in zip(asking, blocks, strict=True):
            needs = {f"store:{name}": count for name, count in one.stores.items()}
            for block, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                source = source_of[block]
                needs[source] = needs.get(source, 0) + count
            wanted.append(needs)
        return wanted, {f"source:{name}": images for _, name, images in rows}

    async def _hour(self, tx: Tx, scopes: set[str], populations: Mapping[str, int], at: datetime) -> _Hour:
        hour = _Hour()
        for name, is_open, closed_size, spent in await tx.fetch("breaker_state", scopes=sorted(scopes), at=at):
            hour.scopes[name] = _Scope(self.cap(populations.get(name)), is_open, closed_size, spent)
        return hour

    def cap(self, population: int | None) -> int:
        """Artifacts (of a store) or images (of a source with so many) that an hour may take."""
        cap = self._policy.breaker_artifacts
        if population is None:
            return cap
        return min(cap, max(self._policy.breaker_floor, int(self._policy.breaker_share * population)))

    async def _open(self, tx: Tx, hour: _Hour, at: datetime) -> None:
        names = sorted(hour.opened)
        caps = [hour.scopes[name].cap for name in names]
        counted = [hour.opened[name] for name in names]
        await tx.execute("breaker_open", scopes=names, counted=counted, caps=caps, at=at)
        said = [
            BreakerOpened(scope=name, counted=number, cap=cap, at=at)
            for name, number, cap in zip(names, counted, caps, strict=True)
        ]
        await emit(tx, WORKER, said, at=at)


def _passes(one: Asking, needs: Mapping[str, int], hour: _Hour) -> bool:
    counts: dict[str, int] = {}
    stopped = False
    for name, need in needs.items():
        scope = hour.scopes[name]
        if scope.open:
            stopped = True
        elif one.scope_index >= scope.closed_size:  # else: a person let it go
            counts[name] = need
            if scope.spent + need > scope.cap:
                hour.opened[name] = scope.spent + need
                scope.open = stopped = True
    if stopped:
        return False
    for name, need in counts.items():
        hour.scopes[name].spent += need
        hour.scopes[name].begun += need
    return True


async def close(tx: Tx, scope: str, key: dsse.SigningKey, reason: str, at: datetime) -> None:
    """Close a breaker and let go what waits for it, as the approver whose key this is; the signed letter is kept.

    Raises `Rejected`: `not-open`; `not-an-approver`.
    """
    await tx.execute("breaker_lock")
    rows = await tx.fetch("breaker_approver", key_id=key.key_id)
    if not rows or not rows[0][2] <= at or (rows[0][3] is not None and at >= rows[0][3]):
        raise Rejected("not-an-approver", "expected the key of an approver who is registered and valid now")
    said = {"scope": scope, "closed_at": at.isoformat(), "reason": reason}
    envelope = dsse.sign(canonical.dumps(said), CLOSING_TYPE, key)
    try:
        dsse.verify(dsse.parse(envelope), dsse.PublicKey(bytes(rows[0][1])), CLOSING_TYPE)
    except Tampered as error:
        raise Rejected("not-an-approver", "expected the key that is registered under this id") from error
    if not await tx.fetch("breaker_close", scope=scope, at=at, closing=envelope):
        raise Rejected("not-open", "expected a scope whose breaker is open, such as store:photos")
    await emit(tx, WORKER, [BreakerClosed(scope=scope, at=at)], at=at)
