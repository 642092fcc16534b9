"""The only file that imports Faust, and the only one that acknowledges.

One safe shape: `stream.noack()`, batches as `noack_take` forms them, concurrency 1, CrashingSupervisor, acknowledged
after the database has everything. Each of the usual alternatives loses events (exceptions in `take`, `concurrency`,
`group_by`, `exactly_once`): do not add one. A batch that raises ends the process before any acknowledgement; the restart
repeats it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import faust
from faust.transport.drivers import aiokafka as driver

from expunge import metrics
from expunge.crashing import crash_point
from expunge.domain.topics import TOPICS
from expunge.workers.delivery import DeliveryHost, Record

TAKE: Final = 512
"""Most events in a batch. Work in a batch is bounded by the handlers, by cost."""

WITHIN_SECONDS: Final = 0.05
"""How long a batch that came from outside waits for company: it costs a dozen statements and two writes to disk."""

WORK_WITHIN_SECONDS: Final = 0.003
"""The same for work orders and what is said about them: those of one sweep are published together, and each step waits."""

APART: Final = 3
"""So many times as long as a batch waits for company, two batches begin apart unless the second is full: what comes after a
rest is not held up, and a steady flow is not cut into small batches, which cost what large ones do."""

READ_PAUSE_SECONDS: Final = 0.015
"""From one read that found something to the next. The broker answers as soon as there is one message: under a steady flow
each would be a fetch of its own, which costs a worker and the broker more than the message does."""

SHUTDOWN_SECONDS: Final = 6.0
"""How long a stop waits for the batches in hand. Faust's own part takes two more; supervisors usually kill after ten."""

Background = Callable[[], Awaitable[None]]


def build_app(
    host: DeliveryHost,
    *,
    bootstrap: str,
    instance: str,
    directory: Path,
    start: Background,
    background: Sequence[Background],
    stopping: asyncio.Event,
) -> faust.App:
    """A Faust app that feeds `host`. `instance`: unique and stable per replica (static membership). `start` runs before
    the first batch; `background` runs beside the agents until shutdown. On a signal `stopping` is set, no further batch is
    begun, and what is in hand is finished and acknowledged, so that nothing of it is done again."""
    directory.mkdir(parents=True, exist_ok=True)  # Faust makes its own folder, but not the parents
    app = faust.App(
        f"expunge-{host.worker}",
        broker=f"kafka://{bootstrap}",
        value_serializer="raw",
        processing_guarantee="at_least_once",
        agent_supervisor="mode.CrashingSupervisor",
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=instance,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=3.0,
        broker_max_poll_records=TAKE,
        broker_commit_interval=1.0,
        broker_request_timeout=30.0,
        stream_wait_empty=False,  # safe only because nothing is acknowledged but by us
        stream_buffer_maxsize=TAKE * 2,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=str(directory / "faust"),
    )
    app.transport = _Transport(app.conf.broker_consumer, app)
    ready = asyncio.Event()

    async def prepare() -> None:
        await start()
        ready.set()

    app.task(prepare)

    for task in background:
        app.task(_after(ready, task))

    hand = _Hand(stopping)

    async def finish(*_: object, **__: object) -> None:
        stopping.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(hand.empty.wait(), SHUTDOWN_SECONDS)

    app.on_before_shutdown.connect(finish, weak=False)
    for topic in host.topics:
        _agent(app, host, topic, ready, hand)
    return app


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """As Faust's, but for a pause after each read that found something. The client sends no fetch while what came with the
    last one has not been read."""

    _read_at = 0.0

    async def _fetch_records(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as Faust types it, which is untyped
        await asyncio.sleep(max(0.0, self._read_at + READ_PAUSE_SECONDS - time.monotonic()))
        found = await super()._fetch_records(*args, **named)
        if found:
            self._read_at = time.monotonic()
        return found


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class _Transport(driver.Transport):
    Consumer = _Consumer


class _Worker(faust.Worker):
    def on_setup_root_logger(self, logger: logging.Logger, level: int) -> None:
        """Nothing: Faust would turn debug records on for every library, to spin a spinner, at a tenth of all CPU."""


class _Hand:
    """The batches that are being handled."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping = stopping
        self.empty = asyncio.Event()
        self.empty.set()
        self._batches = 0

    def __enter__(self) -> None:
        self._batches += 1
        self.empty.clear()

    def __exit__(self, *_: object) -> None:
        self._batches -= 1
        if not self._batches:
            self.empty.set()


def _after(ready: asyncio.Event, task: Background) -> Background:
    # A function without parameters: Faust hands its app to a task that takes one.
    async def run() -> None:
        await ready.wait()
        await task()

    return run


def _agent(app: faust.App, host: DeliveryHost, topic: str, ready: asyncio.Event, hand: _Hand) -> None:
    within = WITHIN_SECONDS if TOPICS[topic].public else WORK_WITHIN_SECONDS

    @app.agent(app.topic(topic, key_type=bytes, value_type=bytes), name=f"{host.worker}-{topic}")
    async def consume(stream: Any) -> None:  # noqa: ANN401 - Faust types its streams without noack_take
        await ready.wait()
        async for batch in _batches(stream.noack(), within):
            if hand.stopping.is_set():
                await asyncio.Event().wait()  # until Faust cancels it
            with hand:
                await host.process(topic, [_record(event.message) for event in batch])
                crash_point("delivery.unacknowledged")
                for event in batch:
                    await stream.ack(event)
                crash_point("delivery.acknowledged")
            metrics.BATCHES.labels(host.worker).inc()


async def _batches(stream: Any, within: float) -> AsyncIterator[list[Any]]:  # noqa: ANN401 - as above
    """`stream.noack_take(TAKE, within)` without its two costs: that looks every `within` seconds whether anything came,
    for ever, and takes nothing in while a batch is handled, so that batches stay small under a backlog."""
    held: list[Any] = []
    came, full, room = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hold(value: Any) -> Any:  # noqa: ANN401 - the stream's value, which the event has too
        while len(held) >= TAKE:
            room.clear()
            await room.wait()
        held.append(stream.current_event)
        came.set()
        if len(held) >= TAKE:
            full.set()
        return value

    stream.add_processor(hold)
    stream._enable_passive(aiter(stream.channel))  # noqa: SLF001 - as `noack_take` does
    begun = float("-inf")
    while not await stream.wait_for_stopped(came):
        await stream.wait_for_stopped(full, timeout=max(within, begun + within * APART - time.monotonic()))
        begun = time.monotonic()
        batch = held.copy()
        held.clear()
        for one in (came, full):
            one.clear()
        room.set()
        yield batch


def _record(message: Any) -> Record:  # noqa: ANN401 - Faust's message is untyped
    headers = message.headers or []
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
    return Record(message.topic, message.partition, message.offset, message.key, message.value, pairs)


def committed_offsets(app: faust.App) -> dict[tuple[str, int], int]:
    """What Kafka holds committed for this worker, as far as Faust knows."""
    consumer = getattr(app, "consumer", None)
    known = getattr(consumer, "_committed_offset", None) or {}
    return {(tp.topic, tp.partition): offset for tp, offset in known.items() if offset is not None}


def lag(app: faust.App) -> int:
    """Messages that Kafka has for this worker and that are not committed, as far as Faust knows."""
    consumer = getattr(app, "consumer", None)
    if consumer is None:
        return 0
    committed = getattr(consumer, "_committed_offset", None) or {}
    behind = 0
    for tp in consumer.assignment():
        high = consumer.highwater(tp)
        if high:
            behind += max(0, high - (committed.get(tp) or 0))
    return behind


def run(app: faust.App, *, loglevel: str = "warn") -> None:
    """Run until SIGTERM or SIGINT; exits the process: 0 after a clean stop, 1 after a crash."""
    worker = _Worker(app, loglevel=loglevel, redirect_stdouts=False, quiet=True)
    worker.execute_from_commandline()
