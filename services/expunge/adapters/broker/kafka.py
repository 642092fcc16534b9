"""Publishing outbox rows with aiokafka: idempotent, acknowledged by all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from expunge.domain.errors import Retryable
from expunge.ports import Outgoing


class KafkaBroker:
    """`Broker` over one aiokafka producer. `start` before use, `stop` after.

    `give_up_seconds`: how long to try; None: for ever. The client never gives up a batch that it numbered, so a producer
    that gives up is not idempotent: for messages whose repeats are harmless.
    """

    def __init__(self, bootstrap: str, *, client_id: str, give_up_seconds: float | None = None) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._give_up_seconds = give_up_seconds
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises `Retryable` when no broker answers."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=self._give_up_seconds is None,
            request_timeout_ms=int((self._give_up_seconds or 40.0) * 1000),
            max_batch_size=262_144 if self._give_up_seconds is None else 1_048_576,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            message = "no Kafka broker answered"
            raise Retryable(message) from error

    async def stop(self) -> None:
        """Flush and close."""
        if self._producer is not None:
            await self._producer.stop()

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Send in order and wait until all are acknowledged. Raises `Retryable` when any is not."""
        if self._producer is None:
            message = "publish before start"
            raise RuntimeError(message)
        try:
            sent = [
                await self._producer.send(one.topic, value=one.value, key=one.key or None, headers=one.headers)
                for one in messages
            ]
            await asyncio.gather(*sent)
        except KafkaError as error:
            message = f"Kafka did not acknowledge ({type(error).__name__})"
            raise Retryable(message) from error
