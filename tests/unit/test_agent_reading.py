"""How a worker reads: paces that spare it and the broker work. Time stands still here unless it is told to pass."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from expunge.workers import agent
from expunge.workers.agent import APART, READ_PAUSE_SECONDS

WITHIN = 0.05


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("expunge.workers.agent.time", made)
    return made


async def test_a_read_that_found_something_is_followed_by_a_pause_and_one_that_did_not_is_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, int]] = [{"a": 1}, {"b": 2}, {}, {"c": 3}]
    expected = list(answers)

    async def fetch(_self: object) -> dict[str, int]:
        return answers.pop(0)

    monkeypatch.setattr("expunge.workers.agent.driver.AIOKafkaConsumerThread._fetch_records", fetch)
    monkeypatch.setattr("expunge.workers.agent.asyncio.sleep", clock.sleep)
    thread = object.__new__(agent._ConsumerThread)
    assert [await thread._fetch_records() for _ in expected] == expected
    assert clock.slept == [0.0, READ_PAUSE_SECONDS, READ_PAUSE_SECONDS, 0.0]


class Stream:
    """As much of Faust's as a batch needs: a message comes before each wait for one, `rests` seconds after the last."""

    def __init__(self, clock: Clock, rests: list[float]) -> None:
        self.channel: AsyncIterator[Any] = self._nothing()
        self.current_event = object()
        self.waited: list[float] = []
        self._clock, self._rests = clock, rests
        self._processors: list[Any] = []

    async def _nothing(self) -> AsyncIterator[Any]:
        return
        yield

    def add_processor(self, processor: Any) -> None:
        self._processors.append(processor)

    def _enable_passive(self, _channel: object) -> None:
        pass

    async def wait_for_stopped(self, _event: asyncio.Event, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Faust's
        if timeout is not None:
            self.waited.append(round(timeout, 6))
            self._clock.now += timeout
            return False
        if not self._rests:
            return True
        self._clock.now += self._rests.pop(0)
        for one in self._processors:
            await one("message")
        return False


async def test_batches_of_a_steady_flow_begin_apart_and_one_after_a_rest_does_not_wait(clock: Clock) -> None:
    stream = Stream(clock, [0.0, 0.0, 10.0])
    sizes = [len(batch) async for batch in agent._batches(stream, WITHIN)]
    assert sizes == [1, 1, 1]
    assert stream.waited == pytest.approx([WITHIN, WITHIN * APART, WITHIN])


def test_the_worker_leaves_the_level_of_all_libraries_alone() -> None:
    logger = logging.getLogger("test_agent_reading")
    logger.setLevel(logging.WARNING)
    object.__new__(agent._Worker).on_setup_root_logger(logger, logging.WARNING)
    assert (logger.level, logger.handlers) == (logging.WARNING, [])
