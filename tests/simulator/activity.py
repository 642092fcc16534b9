"""Who is doing what: processes that can be killed, activities that can be made to wait, one step at a time.

An activity is an asyncio task that runs until it parks at a point, and goes on when the scheduler says so. Between two
points nothing else runs. A killed process's activities raise `Killed` at their next port call, whatever `finally` they
pass on the way: as after `kill -9`, nothing that they would still do has an effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulator.chance import Chance


class Killed(BaseException):
    """The process was killed. Not an `Exception`, so that nobody handles it."""


@dataclass(slots=True, eq=False)
class Process:
    """One worker process in one of its lives."""

    name: str
    worker: str
    alive: bool = True
    skew: float = 0.0
    """How wrong its clock is, seconds."""


@dataclass(slots=True, eq=False)
class Activity:
    """One thing that a process does. `point`: where it waits; None while it runs, or waits for another of its process."""

    process: Process
    what: str
    task: asyncio.Task[None] | None = None
    waits: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    in_transaction: bool = False
    failed: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()


current: ContextVar[Activity | None] = ContextVar("activity", default=None)


class Scheduler:
    """Runs activities, one step at a time."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance
        self.activities: list[Activity] = []

    def start(self, process: Process, what: str, body: Callable[[], Coroutine[Any, Any, None]]) -> Activity:
        """Begin something; it runs at the next `settle`."""
        activity = Activity(process, what)

        async def run() -> None:
            current.set(activity)
            try:
                await body()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - the schedule decides what is a bug
                activity.failed = error

        activity.task = asyncio.get_running_loop().create_task(run())
        self.activities.append(activity)
        return activity

    def busy(self, process: Process, what: str) -> bool:
        """Whether the process is at this already."""
        return any(one.process is process and one.what == what for one in self.activities)

    def parked(self) -> list[tuple[Activity, int]]:
        """Everything that waits to be told to go on."""
        return [(one, at) for one in self.activities for at in range(len(one.waits))]

    async def resume(self, activity: Activity, at: int) -> None:
        """Let it go on to its next point."""
        label, future = activity.waits.pop(at)
        self.chance.note(f"> {activity.process.name} {activity.what} goes on at {label}")
        if not future.done():
            future.set_result(None)
        await self.settle()

    async def settle(self) -> None:
        """Until every activity is parked, blocked or done."""
        loop: Any = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)
            if not loop._ready:
                break
        for one in [one for one in self.activities if one.done]:
            self.activities.remove(one)
            if one.failed is not None:
                raise one.failed

    async def kill(self, process: Process, where: str) -> None:
        """End a process from outside."""
        self.chance.note(f"! {process.name} dies, {where}")
        process.alive = False
        for activity in self.activities:
            if activity.process is process:
                for _, future in activity.waits:
                    if not future.done():
                        future.set_exception(Killed())
                activity.waits.clear()
        await self.settle()
        for activity in [one for one in self.activities if one.process is process]:
            assert activity.task is not None
            activity.task.cancel()
        await self.settle()

    async def point(self, label: str) -> None:
        """A place where the current activity may wait for others, or die."""
        activity = current.get()
        if activity is None or activity.in_transaction:
            return
        self.die(label)
        if self.chance.fault("pause", f"{activity.process.name} {activity.what} at {label}"):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            activity.waits.append((label, future))
            await future
        if not activity.process.alive:
            raise Killed

    def die(self, label: str) -> None:
        """A place where the current process may die. Raises `Killed`, also where it is dead already."""
        activity = current.get()
        if activity is None:
            return
        if activity.process.alive and self.chance.fault("kill", f"{activity.process.name} {activity.what} at {label}"):
            activity.process.alive = False
            KILLED_AT[label] = KILLED_AT.get(label, 0) + 1
        if not activity.process.alive:
            raise Killed


KILLED_AT: Final[dict[str, int]] = {}
"""Kills by point, over all schedules of this run: that each point was hit is part of the coverage."""
