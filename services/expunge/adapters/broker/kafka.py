"""Publishing outbox rows with aiokafka: idempotent, acknowledged by all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from expunge.domain.errors import Retryable
from expunge.ports import Outgoing


class KafkaBroker:
    """`Broker` over one aiokafka producer. `start` before use, `stop` after."""

    def __init__(self, bootstrap: str, *, client_id: str) -> None:
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect. Raises `Retryable` when no broker answers."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            max_batch_size=262_144,
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
