"""Every Kafka topic: its name, partitions, retention, and whether others may read or write it.

Partition counts never change after creation: adding one later breaks the order of a key. A topic is transport; what
must be kept is in the evidence log, so retention only has to outlast the longest outage to be survived without resends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """`public`: part of the contract with other systems (schemas/); the rest may change with any release."""

    name: str
    partitions: int
    retention_ms: int
    public: bool

    @property
    def config(self) -> dict[str, str]:
        """Topic settings for the broker."""
        return {"cleanup.policy": "delete", "retention.ms": str(self.retention_ms)}


REQUESTS: Final = Topic("expunge.requests", 12, 7 * DAY_MS, public=True)
"""Signed requests, in. Holds subject pseudonyms, hence the short retention."""
LINEAGE: Final = Topic("expunge.lineage", 12, 7 * DAY_MS, public=True)
"""Sources, images, artifacts, snapshots and models, in. Holds pseudonyms and locators."""
PROOFS: Final = Topic("expunge.proofs", 12, 90 * DAY_MS, public=True)
"""What became of requests, and what was sealed, out. References only."""
RETRAINING: Final = Topic("expunge.retraining", 3, 30 * DAY_MS, public=True)
"""Retraining jobs for trainers, out."""
DEAD_LETTER: Final = Topic("expunge.dead-letter", 3, 30 * DAY_MS, public=True)
"""Messages that were given up, out: where they are and why, never what they hold."""

PURGE: Final = Topic("expunge.purge", 12, 7 * DAY_MS, public=False)
INVALIDATE: Final = Topic("expunge.invalidate", 12, 7 * DAY_MS, public=False)
RESCAN: Final = Topic("expunge.rescan", 12, 7 * DAY_MS, public=False)
RETRAIN: Final = Topic("expunge.retrain", 3, 7 * DAY_MS, public=False)
OUTCOMES: Final = Topic("expunge.outcomes", 12, 7 * DAY_MS, public=False)

TOPICS: Final = {
    topic.name: topic
    for topic in (
        REQUESTS, LINEAGE, PROOFS, RETRAINING, DEAD_LETTER, PURGE, INVALIDATE, RESCAN, RETRAIN, OUTCOMES,
    )
}  # fmt: skip
PUBLIC: Final = tuple(topic for topic in TOPICS.values() if topic.public)
