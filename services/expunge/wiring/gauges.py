"""Gauges of state, from rows: what coordinate shows every few seconds, whoever changed it.

Where the label values are known beforehand, all of them are set: a state that nothing is in shows 0 and does not vanish,
so that an alert on it clears and a graph has no holes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Gauge

from expunge import metrics
from expunge.domain.words import ModelStatus, Role, Step
from expunge.pipeline import WORKERS
from expunge.ports import Tx

COUNTING_SHARE: Final = 0.01
"""Most of the time that counting all requests ever made may take: the more there are, the less often it is done."""

_BY_LABELS: Sequence[tuple[Gauge, str, Iterable[str]]] = (
    (metrics.OLDEST_OPEN_SECONDS, "gauge_oldest", ("people", "order")),
    (metrics.WORK_OPEN, "gauge_work", tuple(Step)),
    (metrics.MODELS, "gauge_models", tuple(ModelStatus)),
    (metrics.RETRAINING, "gauge_retraining", metrics.RETRAINING_STATES),
    (metrics.RETRIES, "gauge_retries", tuple(WORKERS)),
    (metrics.DEAD_LETTERS, "gauge_dead_letters", tuple(WORKERS)),
    (metrics.BREAKERS_OPEN, "gauge_breakers", ("source", "store")),
    (metrics.KEY_EXPIRY, "gauge_keys", (Role.PUBLISHER, Role.APPROVER)),
)
_PLAIN: Sequence[tuple[str, tuple[Gauge, ...]]] = (
    ("gauge_deadline", (metrics.NEAREST_DEADLINE,)),
    ("gauge_outbox", (metrics.OUTBOX,)),
    ("gauge_log", (metrics.LOG_SIZE, metrics.LOG_WITNESSED)),
    ("gauge_unattested", (metrics.UNATTESTED,)),
    ("gauge_reconciled", (metrics.UNACCOUNTED, metrics.CAME_BACK)),
)


async def count_requests(tx: Tx) -> float:
    """Set the gauge of requests by state, which looks at every request ever made; seconds to wait before the next time."""
    at = time.perf_counter()
    await _set(tx, metrics.REQUESTS, "gauge_requests", ())
    return (time.perf_counter() - at) / COUNTING_SHARE


async def set_gauges(tx: Tx, stores: Iterable[str] = ()) -> None:
    """Set all others. `stores`: the deployment's, which show a backlog of 0 when they have none."""
    families = (*_BY_LABELS, (metrics.BACKLOG, "gauge_backlog", tuple(stores)))
    for family, query, known in families:
        await _set(tx, family, query, known)
    for query, gauges in _PLAIN:
        (row,) = await tx.fetch(query)
        for gauge, value in zip(gauges, row, strict=True):
            gauge.set(float(value or 0))


async def _set(tx: Tx, family: Gauge, query: str, known: Iterable[str]) -> None:
    rows = {tuple(labels): float(value) for *labels, value in await tx.fetch(query)}
    family.clear()
    for labels, value in ({(one,): 0.0 for one in known} | rows).items():
        family.labels(*labels).set(value)
