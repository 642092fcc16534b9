"""What Expunge says: the public topics `expunge.proofs`, `expunge.retraining` and `expunge.dead-letter`, read from their
beginning, without a group. The story waits here, on events, for at most a given time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kafka import KafkaConsumer, TopicPartition

from expunge.domain import events, topics
from expunge.domain.cloudevents import from_kafka
from expunge.domain.errors import Retryable
from expunge.domain.request import Message

POLL_MS: Final = 200
TOPICS: Final = (topics.PROOFS, topics.RETRAINING, topics.DEAD_LETTER)

E = TypeVar("E", bound=Message)
T = TypeVar("T")


class Proofs:
    """Every public event so far. `check`: called while waiting; raises when waiting is of no use any more."""

    def __init__(self, bootstrap: str, check: Callable[[], None] = lambda: None) -> None:
        self.seen: list[events.Event] = []
        self._check = check
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=50
        )
        self._consumer.assign(
            [TopicPartition(topic.name, number) for topic in TOPICS for number in range(topic.partitions)]
        )

    def of(self, kind: type[E]) -> Iterator[E]:
        """The events of one type, in the order in which they were read."""
        return (event for event in self.seen if isinstance(event, kind))

    def until(self, found: Callable[[], T | None], what: str, seconds: float) -> T:
        """What `found` gives once it gives something; looked at after each batch. Raises `Retryable` after `seconds`."""
        deadline = time.monotonic() + seconds
        while (answer := found()) is None:
            self._check()
            if time.monotonic() > deadline:
                raise Retryable(f"expected {what} within {seconds:g} s")
            self._read()
        return answer

    def _read(self) -> None:
        batches: dict[Any, Any] = self._consumer.poll(timeout_ms=POLL_MS)
        for records in batches.values():
            for record in records:
                self.seen.append(events.from_cloudevent(from_kafka(record.key, record.value, record.headers)))

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
