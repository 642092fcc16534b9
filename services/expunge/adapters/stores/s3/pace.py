"""How fast one store may be asked to delete: additive increase, multiplicative decrease, counted in keys.

S3 counts every key of a DeleteObjects as one write against the limit of its prefix (3,500 a second), so that fewer and
larger requests do not help, and a retry of a page costs as much as the page (Amazon's "Best practices design patterns";
Hadoop's `BulkDelete` says the same). botocore's adaptive mode counts requests, which is why it is not used.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

MAX_PAGE: Final = 1000
"""Keys that S3 takes in one DeleteObjects."""
MIN_PAGE: Final = 50
MIN_RATE: Final = 200.0
"""Keys a second that are always asked for: with less, nobody would notice that the store has recovered."""
_DECREASE: Final = 0.5
_INCREASE: Final = 0.05
_WINDOW_SECONDS: Final = 0.5
"""A burst of refusals is one sign, not many."""
_PAGES_PER_SECOND: Final = 4
_MEASURE_SECONDS: Final = 1.0
_BACKOFF_SECONDS: Final = 0.05
_MAX_BACKOFF_SECONDS: Final = 1.0


@dataclass(slots=True)
class Tally:
    """What was sent, for amplification: `sent` keys over `settled` keys. Mutable."""

    requests: int = 0
    sent: int = 0
    settled: int = 0
    slowed: int = 0

    @property
    def amplification(self) -> float:
        return self.sent / self.settled if self.settled else 0.0


class Pace:
    """One controller per bucket and prefix, for all threads. Unlimited until the store first says that it is too fast;
    then half of what it took, and a twentieth more with each page that it takes."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.tally = Tally()
        self._clock, self._sleep = clock, sleep
        self._lock = Lock()
        self._rate: float | None = None
        self._next = self._slowed_at = self._since = clock()
        self._took = 0
        self._slowed_at -= _WINDOW_SECONDS

    @property
    def rate(self) -> float | None:
        """Keys a second; None: not limited."""
        return self._rate

    @property
    def page(self) -> int:
        """Keys of a request: about a quarter of a second's worth, so that a refusal costs little."""
        return MAX_PAGE if self._rate is None else int(min(max(self._rate / _PAGES_PER_SECOND, MIN_PAGE), MAX_PAGE))

    def take(self, keys: int) -> None:
        """Wait until that many keys may be sent."""
        with self._lock:
            self.tally.requests += 1
            self.tally.sent += keys
            at = self._clock()
            if self._rate is None:
                return
            begin = max(self._next, at)
            self._next = begin + keys / self._rate
        if begin > at:
            self._sleep(begin - at)

    def settled(self, keys: int) -> None:
        """The store carried that many out."""
        with self._lock:
            self.tally.settled += keys
            at = self._clock()
            if at - self._since > _MEASURE_SECONDS:
                self._since, self._took = at, 0
            self._took += keys
            if self._rate is not None and keys:
                self._rate *= 1 + _INCREASE

    def slowed(self) -> None:
        """The store said that it is too fast."""
        with self._lock:
            self.tally.slowed += 1
            at = self._clock()
            if at - self._slowed_at < _WINDOW_SECONDS:
                return
            self._slowed_at = at
            had = self._rate or self._took / max(at - self._since, 0.1)
            self._rate = max(had * _DECREASE, MIN_RATE)

    def back_off(self, tries: int) -> None:
        """Full jitter, after that many failures in a row."""
        limit = min(_BACKOFF_SECONDS * 2.0 ** min(tries, 10), _MAX_BACKOFF_SECONDS)
        self._sleep(random.uniform(0, limit))  # noqa: S311 - spreads load, keeps no secret


_paces: dict[tuple[str, str, str], Pace] = {}
_finding = Lock()


def pace_of(endpoint: str, bucket: str, prefix: str) -> Pace:
    """The one pace of a prefix in this process, however many stores are opened on it."""
    with _finding:
        return _paces.setdefault((endpoint, bucket, prefix), Pace())
