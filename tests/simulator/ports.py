"""The ports as one process sees them: real memory adapters behind points at which it may die, wait or be told no."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from expunge.adapters.journal.memory import MemoryJournal
from expunge.adapters.keys.memory import MemoryKeys
from expunge.adapters.log.memory import MemoryTiles
from expunge.adapters.sealed.memory import MemorySealed
from expunge.adapters.stores.memory import MemoryReader, MemoryStore, Space
from expunge.domain.errors import Retryable
from expunge.domain.words import Outcome
from expunge.ports import Erasure, Outcomes, Outgoing, Row
from expunge.workers.delivery import Record
from tests.simulator.activity import Process, Scheduler, current
from tests.simulator.database import Database, Tx

JUMP: Final = timedelta(days=40)
_TICK: Final = timedelta(microseconds=1)


@dataclass
class Time:
    """The schedule's time, and how wrong each clock is. Clocks never show the same instant twice."""

    now: datetime
    database: timedelta = timedelta(0)

    def tick(self, seconds: float = 0.0) -> datetime:
        self.now += timedelta(seconds=seconds, microseconds=1) if seconds else _TICK
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def of_database(self) -> datetime:
        return self.tick() + self.database


class SimLedger:
    """`Ledger` of one process."""

    def __init__(self, database: Database, scheduler: Scheduler, time: Time, process: Process) -> None:
        self._database = database
        self._scheduler = scheduler
        self._time = time
        self._process = process

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        activity = current.get()
        await self._scheduler.point("begin")
        if activity is not None:
            activity.in_transaction = True
        try:
            async with self._database.transaction(self._time.of_database(), self._before_commit) as tx:
                yield tx
        finally:
            if activity is not None:
                activity.in_transaction = False
        if activity is not None:
            if self._scheduler.chance.fault("commit-unanswered", self._process.name):
                raise Retryable("the answer to the commit was lost")
            await self._scheduler.point("committed")

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        async with self.transaction() as tx:
            return await tx.fetch(query, **parameters)

    async def execute(self, query: str, **parameters: object) -> int:
        async with self.transaction() as tx:
            return await tx.execute(query, **parameters)

    def _before_commit(self) -> None:
        self._scheduler.die("commit")
        if current.get() is not None and self._scheduler.chance.fault("database-away", self._process.name):
            raise Retryable("the database went away before the commit")


class SimBroker:
    """`Broker` of one process. `arrive`: takes what really reaches Kafka."""

    def __init__(self, scheduler: Scheduler, process: Process, arrive: Callable[[Sequence[Outgoing]], None]) -> None:
        self._scheduler = scheduler
        self._process = process
        self._arrive = arrive

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        chance = self._scheduler.chance
        self._scheduler.die("publish")
        if chance.fault("broker-away", self._process.name):
            raise Retryable("the broker is away")
        if chance.fault("publish-unanswered", self._process.name):
            self._arrive(messages[: chance.random.randint(1, len(messages))])
            raise Retryable("not every message was acknowledged")
        self._arrive(messages)
        self._scheduler.die("published")


class SimTiles:
    """`TileStore` of one process. `seen`: told of each checkpoint that is out."""

    def __init__(
        self, tiles: MemoryTiles, scheduler: Scheduler, process: Process, seen: Callable[[bytes], None]
    ) -> None:
        self._tiles = tiles
        self._scheduler = scheduler
        self._process = process
        self._seen = seen

    def write(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():  # a crash may come between any two files
            self._scheduler.die("log-file")
            if self._scheduler.chance.fault("log-files-away", self._process.name):
                raise Retryable("the log's directory is away")
            self._tiles.write({path: data})

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        self._scheduler.die("log-swap")
        if self._scheduler.chance.fault("log-files-away", self._process.name):
            raise Retryable("the log's directory is away")
        swapped = self._tiles.swap(path, data, old)
        if swapped and path == "checkpoint":
            self._seen(data)
        self._scheduler.die("log-swapped")
        return swapped

    def read(self, path: str) -> bytes:
        return self._tiles.read(path)


class SimSealed:
    """`SealedStore` of one process."""

    def __init__(self, sealed: MemorySealed, scheduler: Scheduler) -> None:
        self._sealed = sealed
        self._scheduler = scheduler
        self.open = sealed.open
        self.read = sealed.read

    def write(self, name: str, blocks: Iterable[bytes]) -> bytes:
        self._scheduler.die("sealed-file")
        written = self._sealed.write(name, blocks)
        self._scheduler.die("sealed-written")
        return written


class SimJournal:
    """`Journal` of one process."""

    def __init__(self, journal: MemoryJournal, scheduler: Scheduler) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self.key = journal.key
        self.read = journal.read

    def append(self, records: bytes) -> None:
        self._scheduler.die("journal")
        self._journal.append(records)
        self._scheduler.die("journalled")


class SimKeys:
    """`KeyStore` of one process."""

    def __init__(self, keys: MemoryKeys, scheduler: Scheduler) -> None:
        self._keys = keys
        self._scheduler = scheduler

    def bucket(self, day: date, *, create: bool = False) -> bytes:
        if create:
            self._scheduler.die("key")
        return self._keys.bucket(day, create=create)

    def destroy(self, day: date) -> None:
        self._keys.destroy(day)


@dataclass
class Place:
    """One store of the company as it really is. `blocked`, `kept`: what it refuses, and what it only says is gone;
    `shown`: what its listings still show though it is gone."""

    name: str
    rewrites: bool
    space: Space = field(default_factory=Space)
    blocked: set[tuple[str, str]] = field(default_factory=set)
    kept: set[tuple[str, str]] = field(default_factory=set)
    for_good: set[tuple[str, str]] = field(default_factory=set)
    shown: set[tuple[str, str]] = field(default_factory=set)
    changed: Callable[[str, Sequence[str], str], None] = lambda _op, _locators, _by: None

    def relent(self) -> None:
        """End every trouble but that which is for good."""
        self.blocked &= self.for_good
        self.kept &= self.for_good
        self.shown.clear()


class SimReader(MemoryReader):
    """`StoreReader` of one process."""

    def __init__(self, place: Place, scheduler: Scheduler, process: Process) -> None:
        super().__init__(place.space, place.name, rewrites_unit=place.rewrites)
        self._place = place
        self._scheduler = scheduler
        self._process = process

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        seen = super().probe(unit, locators)
        for at, name in enumerate(locators):
            if (unit, name) in self._place.shown:
                seen[at] = True
        return seen

    def _called(self, call: str, unit: str, locators: Sequence[str]) -> Any:
        self._scheduler.die(f"store-{call}")
        if self._scheduler.chance.fault("store-away", f"{self._place.name} {call}"):
            raise Retryable("the store is away")
        return super()._called(call, unit, locators)


class SimStore(SimReader, MemoryStore):
    """`Store` of one process: partial answers, refusals and lies, by artifact."""

    def __init__(self, place: Place, scheduler: Scheduler, process: Process) -> None:
        SimReader.__init__(self, place, scheduler, process)
        self._crash_point = lambda _point: None

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        kept = {name for name in locators if (unit, name) in self._place.kept}
        truth = [name for name in locators if name not in kept]
        outcomes = np.full(len(locators), Outcome.GONE, np.uint8)
        with self._watched("hide", unit):
            told = MemoryStore.hide(self, unit, truth)
        outcomes[[at for at, name in enumerate(locators) if name not in kept]] = told
        self._answer("hide")
        return outcomes

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        chance = self._scheduler.chance
        self._trouble(unit, locators)
        open_ = {
            name for name in locators if len(locators) > 1 and chance.fault("partial", f"{self._place.name} erase")
        }
        kept = {name for name in locators if (unit, name) in self._place.kept}
        truth = [name for name in locators if name not in kept | open_]
        outcomes = np.full(len(locators), Outcome.GONE, np.uint8)
        outcomes[[at for at, name in enumerate(locators) if name in open_]] = Outcome.OPEN
        self._place.space.blocked = self._place.blocked
        with self._watched("erase", unit):
            erasure = MemoryStore.erase(self, unit, truth, fence)
        outcomes[[at for at, name in enumerate(locators) if name not in kept | open_]] = erasure.outcomes
        for name in truth:
            if chance.fault("stale-listing", f"{self._place.name}"):
                self._place.shown.add((unit, name))
        self._answer("erase")
        return Erasure(outcomes, erasure.level, erasure.method, erasure.residue)

    def _trouble(self, unit: str, locators: Sequence[str]) -> None:
        chance, place = self._scheduler.chance, self._place
        for kind, troubled in (("blocked", place.blocked), ("lying", place.kept)):
            for name in locators:
                if chance.fault(kind, place.name):
                    troubled.add((unit, name))
                if chance.fault(f"{kind}-for-good", place.name):
                    troubled.add((unit, name))
                    place.for_good.add((unit, name))

    def _answer(self, call: str) -> None:
        self._scheduler.die(f"store-{call}-done")
        if self._scheduler.chance.fault("store-unanswered", f"{self._place.name} {call}"):
            raise Retryable("the store did not answer")

    def _watched(self, op: str, unit: str) -> Watch:
        return Watch(self._place, op, unit, self._process.name)


class Watch:
    """Tells what a call did to a whole unit, whatever it was asked to do."""

    def __init__(self, place: Place, op: str, unit: str, by: str) -> None:
        self._place, self._op, self._unit, self._by = place, op, unit, by
        self._before: tuple[set[str], set[str]] = (set(), set())

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, *_exc: object) -> None:
        visible, hidden = self._before
        now_visible, now_hidden = self._now()
        gone = sorted((visible | hidden) - now_visible - now_hidden)
        hid = sorted(now_hidden - hidden)
        if gone:
            self._place.changed("erase", gone, self._by)
        if hid:
            self._place.changed("hide", hid, self._by)

    def _now(self) -> tuple[set[str], set[str]]:
        unit = self._place.space.units.get(self._unit)
        return (set(), set()) if unit is None else (set(unit.visible), set(unit.hidden))


class Kafka:
    """Topics as partitions, and who has read how far. `seen`: told of every message that arrives."""

    PARTITIONS: Final = 2

    def __init__(self, seen: Callable[[Outgoing], None]) -> None:
        self._seen = seen
        self.messages: dict[str, list[list[Record]]] = {}

    def partitions(self, topic: str) -> list[list[Record]]:
        return self.messages.setdefault(topic, [[] for _ in range(self.PARTITIONS)])

    def arrive(self, messages: Sequence[Outgoing]) -> None:
        for one in messages:
            self._seen(one)
            number = sum(one.key) % self.PARTITIONS
            partition = self.partitions(one.topic)[number]
            partition.append(Record(one.topic, number, len(partition), one.key, one.value, list(one.headers)))


class MemoryInFlight:
    """`InFlight` in memory; it survives the process."""

    def __init__(self) -> None:
        self._held: list[tuple[str, int, int]] = []

    def hold(self, records: Sequence[Record]) -> None:
        self._held = [(one.topic, one.partition, one.offset) for one in records]

    def release(self) -> None:
        self._held = []

    def left(self) -> list[tuple[str, int, int]]:
        return list(self._held)
