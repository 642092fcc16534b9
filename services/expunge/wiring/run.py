"""One worker as a process: logging, health server, Faust."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
from aiohttp import web

from expunge import crashing, metrics
from expunge.adapters.broker.topics import expect_room
from expunge.domain.errors import Retryable
from expunge.domain.topics import TOPICS
from expunge.settings import Settings
from expunge.wiring import Background, build_worker, now
from expunge.wiring.logs import configure_logging
from expunge.wiring.memory import give_back
from expunge.workers.delivery import DeliveryHost

COMMITTED_SECONDS = 5.0


def run_worker(name: str, settings: Settings) -> None:
    """Run one worker until a signal; exits the process."""
    from expunge.workers import agent
    from expunge.workers.health import Health, serve

    configure_logging(settings.log_level)
    give_back()
    if (told := os.environ.get(crashing.VARIABLE)) is not None:
        structlog.get_logger().warning("this worker may kill itself", action="arm", variable=crashing.VARIABLE)
        crashing.arm(Path(told))
    worker = build_worker(name, settings)
    directory = settings.data / "workers" / f"{name}-{settings.instance}"
    ready = asyncio.Event()

    async def start() -> None:
        await worker.start()
        health = Health(
            ready=lambda: _answers(worker.host, ready),
            progress=lambda: worker.host.progress,
            waiting=lambda: bool(worker.host.topics) and agent.lag(app) > 0,
        )
        runner = await serve(health, host=settings.metrics_host, port=settings.metrics_port)
        _announce(directory, name, runner)
        ready.set()

    background = list(worker.background)
    if not worker.host.topics:
        asyncio.run(_without_topics(start, [*background, _watching_clock(worker.host)]))
        return
    instance = f"{name}-{settings.instance}"
    expect_room(
        settings.kafka, f"expunge-{name}", instance, min(TOPICS[topic].partitions for topic in worker.host.topics)
    )  # fmt: skip
    background.append(_watching(worker.host, lambda: agent.committed_offsets(app)))
    app = agent.build_app(
        worker.host, bootstrap=settings.kafka, instance=instance, directory=directory, start=start,
        background=background, stopping=worker.stopping,
    )  # fmt: skip
    agent.run(app)


async def _answers(host: DeliveryHost, started: asyncio.Event) -> bool:
    """Whether a worker can take work: it has started and its database answers."""
    if not started.is_set():
        return False
    try:
        async with asyncio.timeout(5):
            await host.ledger.fetch("ready")
    except (Retryable, TimeoutError):
        return False
    return True


def _watching(host: DeliveryHost, committed: Callable[[], Mapping[tuple[str, int], int]]) -> Background:
    """Compare what Kafka holds committed with what Postgres holds handled: committed beyond handled is a loss."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(COMMITTED_SECONDS)
            try:
                rows = await host.ledger.fetch("delivery_positions", worker=host.worker)
                await measure_clock(host)
            except Retryable:
                continue  # the database is away: the gauges stay, and readiness says so
            handled = {(topic, partition): offset for topic, partition, offset in rows}
            above = dict.fromkeys(host.topics, 0)
            for (topic, partition), offset in committed().items():
                if topic in above:
                    above[topic] += max(0, offset - handled.get((topic, partition), 0))
            for topic, count in above.items():
                metrics.COMMITTED_ABOVE_HANDLED.labels(host.worker, topic).set(count)

    return watch


async def measure_clock(host: DeliveryHost) -> None:
    """Set how far this process's clock is ahead of PostgreSQL's, seen from the middle of one round trip."""
    async with host.ledger.transaction() as tx:
        before = now()
        ((theirs,),) = await tx.fetch("clock")
        after = now()
    metrics.CLOCK_OFFSET.labels(host.worker).set((before + (after - before) / 2 - theirs).total_seconds())


def _watching_clock(host: DeliveryHost) -> Background:
    """For a worker that has no offsets to watch."""

    async def watch() -> None:
        while True:
            with suppress(Retryable):
                await measure_clock(host)
            await asyncio.sleep(COMMITTED_SECONDS)

    return watch


async def _without_topics(start: Background, background: list[Background]) -> None:
    """A worker that works from a timer alone needs no Faust."""
    await start()
    loop = asyncio.get_running_loop()
    tasks = [asyncio.ensure_future(one()) for one in background]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: [task.cancel() for task in tasks])
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


def _announce(directory: Path, name: str, runner: web.AppRunner) -> None:
    """Write where the health server listens, for whoever started us with port 0."""
    host, port = runner.addresses[0][:2]
    new = directory / "listening.json.new"
    new.write_text(json.dumps({"worker": name, "host": host, "port": port, "pid": os.getpid()}), encoding="ascii")
    new.replace(directory / "listening.json")


if __name__ == "__main__":
    # What `expunge worker NAME` does, without loading the command line's libraries first.
    run_worker(sys.argv[1], Settings.read())
