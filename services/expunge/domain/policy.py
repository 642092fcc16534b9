"""What the company decided once: windows, thresholds, clocks. A frozen value; its version is named in every scope."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from expunge.domain.request import ConsentWithdrawn, DeletionRequested, OrderIssued, Regulation, Request

CLOCKS: Final = {
    Regulation.GDPR: timedelta(days=30),
    Regulation.CCPA: timedelta(days=45),
    Regulation.BIPA: timedelta(days=30),
}
"""Legal time to answer, from receipt: GDPR 12(3) one month, CCPA 7021 45 days. Others use the policy's default."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Settings of judgement. Times are durations; counts are images unless said.

    `window`: how long accepted requests wait for company; `sweep_requests`: most requests in one sweep;
    `approval_images`: a person's request over this many images needs approval like an order; `approvers`: how many
    different people approve; `approval_time`: an unapproved scope is void after this; `attempts`: erase attempts before
    an artifact is failed; `max_taint_age`: how long a tainted model may serve (ARCHITECTURE.md section 6);
    `witness_quorum`, `timestamped`: what a checkpoint over an order's scope must have before anything is erased (none: 0);
    `witness_wait`: how long a person's scope waits for the same, from its sealing, before it goes ahead and says so;
    `breaker_artifacts`: most artifacts of a store, and images of a source, that an hour may take without approval;
    `breaker_share`: of a source's images the same, but `breaker_floor` at least.
    """

    version: str = "1"
    window: timedelta = timedelta(milliseconds=20)
    sweep_requests: int = 1024
    approval_images: int = 5_000
    approvers: int = 2
    approval_time: timedelta = timedelta(days=7)
    attempts: int = 5
    default_clock: timedelta = timedelta(days=30)
    max_taint_age: timedelta = timedelta(days=14)
    clock_skew: timedelta = timedelta(minutes=5)
    witness_quorum: int = 0
    timestamped: bool = False
    witness_wait: timedelta = timedelta(seconds=2)
    breaker_artifacts: int = 1_000_000
    breaker_share: float = 0.5
    breaker_floor: int = 10_000

    def due(self, request: Request, accepted: datetime) -> datetime:
        """When the data provision must be closed."""
        match request:
            case OrderIssued():
                return min(one.deadline for one in request.provisions)
            case DeletionRequested(deadline=datetime() as deadline):
                return deadline
            case DeletionRequested() | ConsentWithdrawn():
                return request.received_at + CLOCKS.get(request.regulation, self.default_clock)
            case _:
                return accepted + self.default_clock
