"""A circuit breaker per store: one that failed over and over is left alone for a while, and others go on.

Closed: calls go through. After `FAILURES` passing faults in a row, or one `Overloaded`, it opens: calls fail at once, so that
no worker hangs in a store's time-outs. After a rest one call goes through (half-open): if it succeeds the circuit closes,
else the rest doubles, up to `LONGEST_REST`. What the store answers, refusals too, is a success here: it is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from expunge import metrics
from expunge.domain.errors import Overloaded, Retryable

if TYPE_CHECKING:
    from expunge.chunks.units import UnitWork

log = structlog.get_logger(__name__)

FAILURES: Final = 5
"""Passing faults in a row that open a circuit."""
REST_SECONDS: Final = 2.0
LONGEST_REST: Final = 30.0


@dataclass(slots=True)
class _Circuit:
    """One store's (mutable). `until`: when one call may try; 0 while closed."""

    failures: int = 0
    rest: float = REST_SECONDS
    until: float = 0.0


@dataclass(slots=True)
class Circuits:
    """Of one worker, for all its stores. Thread-safe."""

    worker: str
    now: Callable[[], float] = lambda: time.monotonic()  # noqa: PLW0108 - looked up anew: simulated time is put there
    _stores: dict[str, _Circuit] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def guarded(self, call: Callable[[UnitWork], None]) -> Callable[[UnitWork], None]:
        """`call`, unless the store's circuit is open: then `Retryable` at once."""

        def through(work: UnitWork) -> None:
            self._enter(work.store)
            try:
                call(work)
            except Retryable as error:
                log.warning("call to a store failed", action="retry", store=work.store, reason=str(error))
                self._failed(work.store, FAILURES if isinstance(error, Overloaded) else 1)
                raise
            except BaseException:
                self._answered(work.store)
                raise
            self._answered(work.store)

        return through

    def open(self, store: str) -> bool:
        """Whether calls fail at once just now."""
        with self._lock:
            circuit = self._stores.get(store)
            return circuit is not None and circuit.until > self.now()

    def _enter(self, store: str) -> None:
        with self._lock:
            if store not in self._stores:
                self._stores[store] = _Circuit()
                metrics.STORE_CIRCUIT_OPEN.labels(self.worker, store).set(0)
            circuit = self._stores[store]
            if circuit.until > self.now():
                raise Retryable("the store failed over and over, and is left alone for a while")
            if circuit.until:
                circuit.until = self.now() + circuit.rest  # half-open: this call tries, others wait for it

    def _failed(self, store: str, faults: int) -> None:
        with self._lock:
            circuit = self._stores[store]
            circuit.failures += faults
            if circuit.failures < FAILURES:
                return
            if circuit.failures > FAILURES:
                circuit.rest = min(LONGEST_REST, 2 * circuit.rest)
            circuit.until = self.now() + circuit.rest
        metrics.STORE_CIRCUIT_OPEN.labels(self.worker, store).set(1)

    def _answered(self, store: str) -> None:
        with self._lock:
            circuit = self._stores[store]
            if not circuit.failures:
                return
            self._stores[store] = _Circuit()
        metrics.STORE_CIRCUIT_OPEN.labels(self.worker, store).set(0)
