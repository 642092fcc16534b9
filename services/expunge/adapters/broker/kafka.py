"""Publishing outbox rows with aiokafka: idempotent, acknowledged by all replicas."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

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
                future
                for (topic, partition), some in (await self._by_partition(messages)).items()
                for future in await self._send(topic, partition, some)
            ]
            await asyncio.gather(*sent)
        except KafkaError as error:
            message = f"Kafka did not acknowledge ({type(error).__name__})"
            raise Retryable(message) from error

    async def _by_partition(self, messages: Sequence[Outgoing]) -> dict[tuple[str, int], list[Outgoing]]:
        """Messages by topic and partition, in order: of their key, as every Kafka client hashes it, or any for all without."""
        assert self._producer is not None  # noqa: S101 - for the type checker; `publish` asked
        partitions = {
            topic: sorted(await self._producer.partitions_for(topic)) for topic in {one.topic for one in messages}
        }
        anywhere = {topic: random.choice(every) for topic, every in partitions.items()}  # noqa: S311 - spreads load
        hashes = {key: murmur2(key) & 0x7FFFFFFF for key in {one.key for one in messages if one.key}}
        found: dict[tuple[str, int], list[Outgoing]] = {}
        for one in messages:
            every = partitions[one.topic]
            partition = every[hashes[one.key] % len(every)] if one.key else anywhere[one.topic]
            found.setdefault((one.topic, partition), []).append(one)
        return found

    async def _send(self, topic: str, partition: int, messages: Sequence[Outgoing]) -> list[asyncio.Future[object]]:
        """Whole batches: the producer's bookkeeping for each message costs ten times what packing it does."""
        assert self._producer is not None  # noqa: S101 - as above
        sent = []
        batch = self._producer.create_batch()
        for one in messages:
            said = {"timestamp": None, "key": one.key or None, "value": one.value, "headers": one.headers}
            if batch.append(**said) is None:
                sent.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
                if batch.append(**said) is None:
                    raise MessageSizeTooLargeError
        sent.append(await self._producer.send_batch(batch, topic, partition=partition))
        return sent
