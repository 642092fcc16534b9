"""One schedule: a deployment of real stages, a company around it, and a seed that decides everything.

1. found: the catalogue, 2. faults on: the scheduler picks what happens next, a bounded number of times, 3. calm: no more
faults, every process lives, clocks are right; everything must come to rest within a bounded number of turns, 4. judge:
the history is given to the checker, which knows nothing of all this.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, cast
from unittest import mock

import structlog

from expunge.adapters.journal.memory import MemoryJournal
from expunge.adapters.keys.memory import MemoryKeys, signers
from expunge.adapters.log.memory import MemoryTiles
from expunge.adapters.sealed.memory import MemorySealed
from expunge.chunks.scopes import Scopes
from expunge.domain import certificate, dsse
from expunge.domain.errors import Retryable
from expunge.domain.leaf import derive_key
from expunge.domain.policy import Policy
from expunge.domain.words import Role
from expunge.ports import Handler, Outgoing
from expunge.stages.certify import Certify, round_file
from expunge.stages.dispatch import Dispatch
from expunge.stages.intake import Intake
from expunge.stages.invalidate import Invalidate
from expunge.stages.plan import Plan
from expunge.stages.prove import Prove
from expunge.stages.purge import Purge
from expunge.stages.reconcile import Reconcile
from expunge.stages.register import Register
from expunge.stages.rescan import Rescan
from expunge.stages.retrain import Retrain
from expunge.tasks import Work, run_one
from expunge.wiring.coordinate import Coordinator
from expunge.workers.delivery import DeliveryHost, Parking, Record
from tests.coordination import ANN, AUDIENCE, BOB, ISSUER, MODELS, ORIGIN, PUBLISHER, REWRITES, SHARDS, START
from tests.history.judge import check
from tests.history.recorder import Recorder
from tests.history.verdict import Violation
from tests.simulator.activity import Process, Scheduler, current
from tests.simulator.chance import Chance, Size
from tests.simulator.company import Company, artifact_name
from tests.simulator.database import Database, tables
from tests.simulator.ports import (
    JUMP,
    Kafka,
    MemoryInFlight,
    Place,
    SimBroker,
    SimJournal,
    SimKeys,
    SimLedger,
    SimReader,
    SimSealed,
    SimStore,
    SimTiles,
    Time,
)

CONSUMED: Final[Mapping[str, tuple[str, ...]]] = {
    "register": ("expunge.lineage",),
    "coordinate": ("expunge.requests", "expunge.outcomes"),
    "purge": ("expunge.purge",),
    "invalidate": ("expunge.invalidate",),
    "rescan": ("expunge.rescan",),
    "retrain": ("expunge.retrain",),
}

_QUEUES: Final = frozenset({"retry", "task", "outbox"})
"""Tables into which workers look for what has become due."""

_TURNED: Final = frozenset({"request", "log_entry", "log_checkpoint", "round"})
"""Tables whose rows the coordinator's turns move on: it has nothing to ask where none of them changed."""
_UNDER_WAY: Final = frozenset({"sweep", "work"})
"""What requests that gather wait for."""

_DUE: Final = """
select 'retry', worker, min(not_before), max(not_before) from retry group by worker
union all select 'task', kind, min(greatest(not_before, lease_until)), max(greatest(not_before, lease_until)) from task
where done_at is null group by kind
union all select 'outbox', worker, min(at), max(at) from outbox group by worker
"""

AHEAD: Final = timedelta(minutes=15)
"""What is due later than this was dated by a clock that was wrong, and its worker has to look. No stage waits longer on
purpose, and none takes less for wrong."""
RELAYED: Final = timedelta(seconds=10)
"""How old an outbox row has to be for the relay of another worker; for its own, half of it."""

TURNS: Final = 300
"""Turns in which everything has to come to rest once there are none: more than any schedule needs."""
IDLE: Final = 40
"""Turns in a row in which nothing moves, although something has to."""
RESTED: Final = 3
"""Such turns after which all is at rest where nothing has to move: what is looked at every 30 s has been looked at twice."""
PATIENCE: Final = timedelta(hours=6)
"""How long, by the clock, everything may take once faults have stopped. Eight tries of a parked event take an hour."""
BATCH: Final = 6
"""Most messages of one batch."""
LOG_KEY: Final = dsse.SigningKey.from_seed(b"l" * 32)
SIGNERS: Final = signers(b"seed", list(REWRITES))
EXECUTORS: Final = {name: SIGNERS[Role.EXECUTOR, name] for name in REWRITES}
POLICY: Final = Policy(window=timedelta(0), attempts=3)


class UnsettledError(AssertionError):
    """Faults had stopped, and something went on for ever, or stood still."""


@dataclass
class Worker:
    """One slot of a worker: what survives its processes, and the one that lives now."""

    name: str
    worker: str
    in_flight: Mapping[str, MemoryInFlight]
    process: Process
    host: DeliveryHost
    tasks: Mapping[str, Work]
    coordinator: Coordinator | None
    lives: int = 1
    recovered: bool = False


@dataclass
class Group:
    """A consumer group: whose partitions are whose, and how far each has read and committed."""

    owners: dict[tuple[str, int], str] = field(default_factory=dict)
    position: dict[tuple[str, int], int] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    generation: int = 0


class Schedule:
    """One seed, from the empty catalogue to the verdict."""

    def __init__(self, database: Database, seed: int, *, size: Size | None = None) -> None:
        self.chance = Chance(seed)
        if size is not None:
            self.chance.size = size
        self.scheduler = Scheduler(self.chance)
        self.database = database
        self.time = Time(START)
        self.lines: list[bytes] = []
        self.recorder = Recorder(self.lines.append, who="simulator", now=self.time.seconds)
        self.kafka = Kafka(self._heard)
        self.places = {
            name: Place(name, rewrites, changed=partial(self._changed, name)) for name, rewrites in REWRITES.items()
        }
        self.places[SHARDS].space.cuts_hidden = True  # as files do; the other hides as a table does
        self.keys = MemoryKeys(b"seed")
        self.sealed = MemorySealed()
        self.tiles = MemoryTiles()
        self.journal = MemoryJournal(b"j" * 32)
        self.company = Company(self.chance, self.time, self.kafka, self.places, self.recorder)
        self.workers: dict[str, Worker] = {}
        self.groups: dict[str, Group] = {}
        self.commits = 0
        self.moves = 0
        """Commits that may give the coordinator something to do."""
        self.queues: dict[tuple[str, str], tuple[datetime, datetime]] | None = {}
        """When the first and the last of what waits in a queue is due, by queue and worker or kind. None: not known any
        more. What has nothing due need not be looked into."""
        self.seen_by: dict[tuple[str, str], int] = {}
        self.states: dict[str, tuple[str, str | None, str | None]] = {}
        self.gathering = False
        """Whether accepted requests wait to be planned."""
        self.steps = 0
        self.work: int | None = 0
        """What `_sum` last saw of the work; None: not known any more."""
        self._logged = 0
        self._calmed = START
        self.idle = False
        """Whether nothing moved of late."""

    # What is seen

    def _heard(self, message: Outgoing) -> None:
        headers = dict(message.headers)
        type_ = headers.get("ce_type", b"").decode()
        if type_.startswith(("expunge.proof.", "expunge.retraining.", "expunge.dead-letter.")):
            data = json.loads(message.value)
            self.recorder.event(headers["ce_id"].decode(), type_, data)
            self.company.hear(type_, data)

    def _changed(self, store: str, op: str, locators: Sequence[str], by: str) -> None:
        self.chance.note(f"* {store}: {op} of {len(locators)} by {by}")
        self.recorder.effect(op, [artifact_name(store, one) for one in locators], by=by)

    def _committed(self, names: set[str]) -> None:
        changed = [one for one, rows in self.database.changed.items() if rows and one != "certify_sweeps_to_check"]
        self.commits += bool(changed)  # a look moves nothing
        written = frozenset[str]().union(*map(tables, changed))
        self.moves += bool(written & _TURNED or (self.gathering and written & _UNDER_WAY))
        if written & _QUEUES:
            self.queues = None
        if "work" in written:
            self.work = None
        if "request" in written:
            self._ledger(complete=True)
        if "log_append" in names:
            self._log()

    def _ledger(self, *, complete: bool) -> None:
        rows = self.database.ask("select request_id::text, state, data_result, models_result from request order by seq")
        now = {row[0]: row[1:] for row in rows}
        if now != self.states or not complete:
            self.recorder.ledger(rows, complete=True)
        self.states = now
        self.gathering = any(one[0] == "accepted" for one in now.values())
        self.company.rows = set(now)

    def _log(self) -> None:
        first = self._logged
        rows = self.database.ask(
            "select index, entry from log_entry where index >= %(first)s order by index", first=first
        )
        if rows:
            self.recorder.log(rows[0][0], [bytes(row[1]) for row in rows])
            self._logged = rows[-1][0] + 1

    # The deployment

    def _worker(self, worker: str, number: int) -> Worker:
        name = f"{worker}-{number}"
        in_flight = {topic: MemoryInFlight() for topic in CONSUMED[worker]}
        process = Process(f"{name}.1", worker)
        return Worker(name, worker, in_flight, process, *self._built(worker, name, process, in_flight))

    def _built(
        self, worker: str, name: str, process: Process, in_flight: Mapping[str, MemoryInFlight]
    ) -> tuple[DeliveryHost, Mapping[str, Work], Coordinator | None]:
        """The stages of one process, joined as `wiring` joins them."""
        made = Parts(self, process, name)
        handlers, tasks = made.handlers(worker)
        host = DeliveryHost(
            worker=worker, ledger=made.ledger, broker=made.broker, handlers=handlers, parking=Parking(b"p" * 32),
            in_flight=cast("Any", in_flight), clock=made.clock,
        )  # fmt: skip
        return host, tasks, made.coordinator(host) if worker == "coordinate" else None

    async def _restart(self, worker: Worker) -> None:
        worker.lives += 1
        self.chance.note(f"{worker.name} starts, life {worker.lives}")
        worker.process = Process(f"{worker.name}.{worker.lives}", worker.worker)
        worker.host, worker.tasks, worker.coordinator = self._built(
            worker.worker, worker.name, worker.process, worker.in_flight
        )
        worker.recovered = False
        for what in ("retry", "relay", "task", "turn"):  # it looks at once, whatever the last one saw
            self.seen_by.pop((worker.name, what), None)
        self._rebalance(worker.worker)

    def _rebalance(self, kind: str) -> None:
        """Partitions are given out anew, and read on from what was committed."""
        group = self.groups[kind]
        members = [one.name for one in self.workers.values() if one.worker == kind and one.process.alive]
        group.generation += 1
        group.owners = {}
        for topic in CONSUMED[kind]:
            for number in range(Kafka.PARTITIONS):
                if members:
                    group.owners[topic, number] = self.chance.pick(members)
                group.position[topic, number] = group.committed.get((topic, number), 0)

    # What a process does

    def _moves(self) -> list[tuple[str, Worker, Callable[[], Coroutine[Any, Any, None]]]]:
        """Everything that an idle process could begin now."""
        found: list[tuple[str, Worker, Callable[[], Coroutine[Any, Any, None]]]] = []
        waits = self._waits()
        for worker in self.workers.values():
            if not worker.process.alive:
                continue
            if not worker.recovered:
                found.append(("recover", worker, partial(self._recover, worker)))
                continue
            topics = [topic for topic in CONSUMED[worker.worker] if self._waiting(worker, topic)]
            found += [(f"take {topic}", worker, partial(self._take, worker, topic)) for topic in topics]
            if waits:
                if self._stale(worker, "retry", self.commits) and self._due("retry", worker.worker):
                    found.append(("retry", worker, partial(self._retry, worker)))
                if self._stale(worker, "relay", self.commits) and self._left(worker.worker):
                    found.append(("relay", worker, partial(self._relay, worker)))
                if self._stale(worker, "task", self.commits) and any(self._due("task", kind) for kind in worker.tasks):
                    found.append(("task", worker, partial(self._task, worker)))
            if worker.coordinator is not None and self._stale(worker, "turn", self.moves):
                found.append(("turn", worker, partial(self._turn, worker)))
        return [one for one in found if not self.scheduler.busy(one[1].process, one[0])]

    def _stale(self, worker: Worker, what: str, now: int) -> bool:
        """Whether anything was committed, or time went by, since the worker last looked."""
        return self.seen_by.get((worker.name, what), -1) != now

    def _waits(self) -> dict[tuple[str, str], tuple[datetime, datetime]]:
        """What the queues hold. Asked once for all workers, and again when one of them was written."""
        if self.queues is None:
            self.queues = {(row[0], row[1]): (row[2], row[3]) for row in self.database.ask(_DUE)}
        return self.queues

    def _due(self, queue: str, whose: str) -> bool:
        """Whether a look into a queue may find anything: something is due, or was dated by a clock that was wrong."""
        if (times := self._waits().get((queue, whose))) is None:
            return False
        now = self.time.now + self.time.database
        return times[0] <= now or times[1] > now + AHEAD

    def _left(self, worker: str) -> bool:
        """Whether a relay may find anything: rows that are old enough for it, or dated by a clock that was wrong."""
        now = self.time.now + self.time.database
        for (queue, whose), (first, last) in self._waits().items():
            if queue == "outbox" and (first <= now - RELAYED / (2 if whose == worker else 1) or last > now + RELAYED):
                return True
        return False

    def _waiting(self, worker: Worker, topic: str) -> bool:
        group = self.groups[worker.worker]
        for number, messages in enumerate(self.kafka.partitions(topic)):
            if len(messages) > group.position[topic, number] and group.owners.get((topic, number)) == worker.name:
                return True
        return False

    async def _recover(self, worker: Worker) -> None:
        await worker.host.recover()
        worker.recovered = True

    async def _take(self, worker: Worker, topic: str) -> None:
        group, kind = self.groups[worker.worker], worker.worker
        generation, process = group.generation, worker.process
        batch: list[Record] = []
        numbers = [number for number in range(Kafka.PARTITIONS) if group.owners.get((topic, number)) == worker.name]
        self.chance.random.shuffle(numbers)
        for number in numbers:
            start = group.position[topic, number]
            messages = self.kafka.partitions(topic)[number][start:]
            many = self.chance.random.randint(1, BATCH) if not self.chance.calm else BATCH * 4
            batch += messages[:many]
            group.position[topic, number] = start + len(messages[:many])
        if not batch:
            return
        self.chance.note(f"{process.name} takes {[(one.partition, one.offset) for one in batch]} of {topic}")
        await worker.host.process(topic, batch)
        await self.scheduler.point("acknowledge")
        self.scheduler.die("acknowledge")
        if group.generation != generation:
            return  # the group has moved on: Kafka refuses the commit
        if self.chance.fault("lost-ack", f"{kind} {topic}"):
            return
        for one in batch:
            place = (topic, one.partition)
            group.committed[place] = max(group.committed.get(place, 0), one.offset + 1)

    async def _retry(self, worker: Worker) -> None:
        self.seen_by[worker.name, "retry"] = self.commits
        await worker.host.retry_due()

    async def _relay(self, worker: Worker) -> None:
        self.seen_by[worker.name, "relay"] = self.commits
        await worker.host.publish_outbox(age=RELAYED.total_seconds(), own=RELAYED.total_seconds() / 2)

    async def _task(self, worker: Worker) -> None:
        self.seen_by[worker.name, "task"] = self.commits
        ran = await run_one(ledger=cast("Any", worker.host.ledger), kinds=worker.tasks, stop=asyncio.Event())
        if ran:
            await worker.host.publish_outbox()

    async def _turn(self, worker: Worker) -> None:
        assert worker.coordinator is not None
        self.seen_by[worker.name, "turn"] = self.moves
        await worker.coordinator.turn()
        if self.idle or self.chance.likely(0.2):
            await worker.coordinator.upkeep()

    # The phases

    async def run(self) -> list[Violation]:
        """Raises `UnsettledError`, and whatever a stage raises that it should not."""
        # A stalled machine must not have leases renewed, nor anybody lose patience, in one run of a seed and not in the next.
        asyncio.get_running_loop().time = lambda: 0.0  # type: ignore[method-assign]
        self.recorder.meta("simulator", every_step=True, seed=self.chance.seed)
        trusted = [(role.value, store, signer.public.raw) for (role, store), signer in SIGNERS.items()]
        self.recorder.trust(origin=ORIGIN, log_key=LOG_KEY.public.raw, keys=trusted)
        self.database.committed = self._committed
        for kind in CONSUMED:
            self.groups[kind] = Group()
            for number in range(2 if self.chance.likely(self.chance.size.doubled) else 1):
                worker = self._worker(kind, number)
                self.workers[worker.name] = worker
            self._rebalance(kind)
        self.company.found()
        if self.chance.likely(0.7):
            await self._calm(settle=False)
        self.company.plans()
        self.recorder.phase("faults")
        await self._faults()
        self.recorder.phase("calm")
        await self._calm(settle=True)
        await self._end()
        return check(self.lines)

    async def _faults(self) -> None:
        self.chance.calm = False
        steps = self.chance.between(self.chance.size.steps)
        while self.steps < steps:
            self.steps += 1
            if not await self._step():
                break
        self.chance.calm = True

    async def _step(self) -> bool:
        """One decision; whether there was anything to decide."""
        chance = self.chance
        self.time.tick(chance.random.choice((0.0, 0.01, 0.3, 2.0)))
        await self._weather()
        for worker in self.workers.values():
            if not worker.process.alive and chance.likely(0.5):
                await self._restart(worker)
        options: list[tuple[str, Any]] = [("go on", one) for one in self.scheduler.parked()]
        options += [("begin", one) for one in self._moves()]
        if self.company.todo:
            options += [("deed", None)]
        if not options:
            self._wait(chance.random.choice((1.0, 31.0, 130.0)))
            return not all(one.process.alive for one in self.workers.values()) or self.steps % 5 != 0
        what, chosen = chance.pick(options)
        match what:
            case "go on":
                await self.scheduler.resume(*chosen)
            case "begin":
                await self._begin(*chosen)
            case _:
                self._deed()
        await self._bury()
        return True

    def _deed(self) -> None:
        todo = self.company.todo
        todo.pop(self.chance.random.randrange(len(todo)))()

    async def _begin(self, what: str, worker: Worker, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def guarded() -> None:
            try:
                await body()
            except Retryable:
                # As in production: what no handler could park ends the process, which is started again.
                if what == "turn":
                    self.moves += 1  # it tries again
                else:
                    worker.process.alive = False
                    self.chance.note(f"{worker.process.name} gives up: {what}")

        self.chance.note(f"{worker.process.name} begins {what}")
        self.scheduler.start(worker.process, what, guarded)
        await self.scheduler.settle()

    async def _bury(self) -> None:
        """What a process that died was at besides dies too."""
        for process in {one.process for one in self.scheduler.activities if not one.process.alive}:
            await self.scheduler.kill(process, "with its process")

    async def _weather(self) -> None:
        """A fault that comes by itself, if any."""
        chance = self.chance
        match chance.pick(("worker's clock", "database's clock", "group", "message")):
            case "worker's clock":
                process = chance.pick(list(self.workers.values())).process
                if chance.fault("clock-ahead", process.name):
                    process.skew = chance.random.uniform(0, JUMP.total_seconds())
                elif chance.fault("clock-back", process.name):
                    process.skew = -chance.random.uniform(0, JUMP.total_seconds())
            case "database's clock":
                if chance.fault("clock-ahead", "database"):
                    self.time.database = JUMP * chance.random.random()
                elif chance.fault("clock-back", "database"):
                    self.time.database = -JUMP * chance.random.random()
            case "group":
                kind = chance.pick(list(self.groups))
                if chance.fault("rebalance", kind):
                    self._rebalance(kind)
            case _:
                self._repeat(chance.pick([topic for topics in CONSUMED.values() for topic in topics]))

    def _repeat(self, topic: str) -> None:
        """A producer that did not hear of its success sends a message again."""
        messages = self.chance.pick(self.kafka.partitions(topic))
        if messages and self.chance.fault("repeat", topic):
            one = self.chance.pick(messages)
            self.kafka.arrive([Outgoing(one.topic, one.key or b"", one.value or b"", cast("Any", list(one.headers)))])

    async def _calm(self, *, settle: bool) -> None:
        """Go on without faults until nothing moves. `settle`: until nothing waits for its time either."""
        self.chance.calm = True
        self.time.database = timedelta(0)
        self._calmed = self.time.now
        for place in self.places.values():
            place.relent()
        for worker in self.workers.values():
            worker.process.skew = 0.0
        still, before = 0, None
        for _ in range(TURNS):
            moved = await self._turned()
            if not moved and not settle:
                return
            if moved and self._sum() != before:
                still, before, self.idle = 0, self._sum(), False
                continue
            if moved and still == 0:
                continue
            # Looking again, every so often, at what may only lack a look is rest.
            if still >= RESTED and not self._open():
                return
            if still >= IDLE:
                break
            still += 1
            self.idle = True
            self._skip()
        if settle:
            raise UnsettledError(f"expected rest within {TURNS} turns and {PATIENCE}, got: {self._open()}")

    async def _turned(self) -> bool:
        moved = False
        while parked := self.scheduler.parked():
            await self.scheduler.resume(*parked[0])
            moved = True
        await self._bury()
        for worker in self.workers.values():
            if not worker.process.alive:
                await self._restart(worker)
        while self.company.todo:
            self._deed()
            moved = True
        for what, worker, body in self._moves():
            before = self.commits
            await self._begin(what, worker, body)
            moved |= what.startswith(("take", "recover")) or self.commits != before
        return moved

    def _skip(self) -> None:
        """Let time go by until something is due, but no more than `PATIENCE` in all."""
        ((due,),) = self.database.ask(
            "select min(t) from (select not_before t from retry union all select not_before from task where done_at is null"
            " union all select lease_until from task where done_at is null union all select not_before from work"
            " where step <> 'done' union all select lease_until from unit_lease) x where t > %(now)s",
            now=self.time.now,
        )
        ahead = (due - self.time.now).total_seconds() if due is not None else 0.0
        if self.time.now - self._calmed + timedelta(seconds=ahead) > PATIENCE:
            ahead = 0.0  # it would take too long: something else has to get it going
        self._wait(ahead + 31.0)

    def _wait(self, seconds: float) -> None:
        """Let time go by: everybody looks again."""
        self.time.tick(seconds)
        self.commits += 1
        self.moves += 1

    def _sum(self) -> tuple[Any, ...]:
        """What changes when anything really moves."""
        if self.work is None:
            ((self.work,),) = self.database.ask("select coalesce(sum(hashtext(step || attempt)::bigint), 0) from work")
        outbox = sorted(one for one in self._waits().items() if one[0][0] == "outbox")
        return self._logged, self.work, tuple(self.states.items()), outbox, self.company.done.total()

    def _open(self) -> dict[str, int]:
        """What still has to happen, by kind: counts."""
        rows = self.database.ask(
            "select 'retry', count(*) from retry union all"
            " select 'task', count(*) from task where done_at is null and attempts > 1"
            " union all select 'work', count(*) from work join sweep using (sweep_id)"
            " where step <> 'done' and state = 'published' union all select 'outbox', count(*) from outbox"
            " union all select 'taint', count(*) from sweep where state = 'published' and taint <> 'resolved'"
            " union all select 'request', count(*) from request where state = 'accepted'"
            " union all select 'round', count(*) from round where not issued"
            " union all select 'log', next - coalesce((select max(size) from log_checkpoint where note is not null), 0)"
            " from log_head"
        )
        return {kind: count for kind, count in rows if count}

    async def _end(self) -> None:
        self.recorder.phase("end")
        self._ledger(complete=False)
        self._log()
        self.recorder.dead(self.database.ask("select event_id, reason from dead_letter order by id"))
        for name, place in self.places.items():
            units = place.space.units.values()
            self.recorder.contents(
                name,
                [artifact_name(name, one) for unit in units for one in unit.visible],
                [artifact_name(name, one) for unit in units for one in unit.hidden],
            )
        rows = self.database.ask(
            "select c.request_id, c.sweep_id, c.round, c.position, c.length, r.file_digest, q.bucket from certificate c"
            " join round r using (sweep_id, round) join request q using (request_id) order by 2, 3, 1"
        )
        for request_id, sweep_id, number, position, length, file_digest, bucket in rows:
            box = self.sealed.read(round_file(sweep_id, number, bytes(file_digest)), position, length)
            key = derive_key(self.keys.bucket(bucket), "request", request_id.bytes)
            self.recorder.certificate(certificate.unseal(key, number, box))


class Parts:
    """The stages of one process on its own view of the ports."""

    def __init__(self, schedule: Schedule, process: Process, holder: str) -> None:
        scheduler = schedule.scheduler
        self._schedule = schedule
        self._process = process
        self._holder = holder
        self.ledger = cast("Any", SimLedger(schedule.database, scheduler, schedule.time, process))
        self.broker = SimBroker(scheduler, process, schedule.kafka.arrive)
        self.sealed = cast("Any", SimSealed(schedule.sealed, scheduler))
        self.keys = cast("Any", SimKeys(schedule.keys, scheduler))
        self.journal = cast("Any", SimJournal(schedule.journal, scheduler))
        self.clock = lambda: schedule.time.tick() + timedelta(seconds=process.skew)

    def handlers(self, worker: str) -> tuple[dict[str, Sequence[Handler]], Mapping[str, Work]]:
        match worker:
            case "register":
                register = Register(
                    keys=self.keys, signer=SIGNERS[Role.REGISTER, None], clock=self.clock,
                    suppression_key=self.journal.key,
                )  # fmt: skip
                return {"expunge.lineage": [register]}, {}
            case "coordinate":
                self.dispatch = Dispatch(
                    signer=SIGNERS[Role.SCOPE, None], clock=self.clock, policy=POLICY, rewrites_unit=REWRITES
                )
                self.certify = Certify(
                    sealed=self.sealed, keys=self.keys, signer=SIGNERS[Role.CERTIFIER, None], clock=self.clock,
                    issuer=ISSUER, not_covered=["backups until 2027"],
                )  # fmt: skip
                intake = Intake(
                    ledger=self.ledger, journal=self.journal, keys=self.keys, sealed=self.sealed,
                    scope_signer=SIGNERS[Role.SCOPE, None], clock=self.clock, policy=POLICY, audience=AUDIENCE,
                )  # fmt: skip
                handlers: dict[str, Sequence[Handler]] = {
                    "expunge.requests": [intake],
                    "expunge.outcomes": [self.dispatch, self.certify],
                }
                return handlers, {self.certify.task_kind: self.certify.task}
            case "purge" | "invalidate":
                stage = (Purge if worker == "purge" else Invalidate)(
                    ledger=self.ledger, scopes=self._scopes(), stores=self._stores(), signers=EXECUTORS,
                    clock=self.clock, holder=self._holder, inline_leaves=self._bound(),
                )  # fmt: skip
                return {f"expunge.{worker}": [stage]}, {stage.task_kind: stage.task}
            case "rescan":
                return self._rescan()
            case _:
                retrain = Retrain(
                    ledger=self.ledger, sealed=self.sealed, keys=self.keys, stores={MODELS: self._stores()[MODELS]},
                    signer=SIGNERS[Role.RETRAINER, None], clock=self.clock, max_taint_age=POLICY.max_taint_age,
                )  # fmt: skip
                return {"expunge.retrain": [retrain]}, {}

    def _rescan(self) -> tuple[dict[str, Sequence[Handler]], Mapping[str, Work]]:
        schedule = self._schedule
        readers = cast(
            "Any",
            {name: SimReader(place, schedule.scheduler, self._process) for name, place in schedule.places.items()},
        )
        rescan = Rescan(
            ledger=self.ledger, scopes=self._scopes(), sealed=self.sealed, readers=readers,
            signer=SIGNERS[Role.RESCANNER, None], clock=self.clock, max_attempts=POLICY.attempts,
            sample=self._schedule.chance.pick((1, 2, 8)), inline_leaves=self._bound(),
        )  # fmt: skip
        reconcile = Reconcile(
            ledger=self.ledger, scopes=self._scopes(), readers=readers, signer=SIGNERS[Role.RESCANNER, None],
            clock=self.clock,
        )  # fmt: skip
        return {"expunge.rescan": [rescan]}, {rescan.task_kind: rescan.task, reconcile.task_kind: reconcile.task}

    def _bound(self) -> int:
        """Small enough, now and then, that orders become tasks."""
        return 1024 if self._schedule.chance.likely(0.3) else 131_072

    def _scopes(self) -> Scopes:
        return Scopes(sealed=self.sealed, keys=self.keys)

    def _stores(self) -> Any:
        schedule = self._schedule
        return {name: SimStore(place, schedule.scheduler, self._process) for name, place in schedule.places.items()}

    def coordinator(self, host: DeliveryHost) -> Coordinator:
        plan = Plan(
            ledger=self.ledger, journal=self.journal, keys=self.keys, sealed=self.sealed,
            signer=SIGNERS[Role.SCOPE, None], clock=self.clock, policy=POLICY, new_id=self._schedule.chance.uuid,
            rewrites_unit=REWRITES,
        )  # fmt: skip
        tiles = cast(
            "Any",
            SimTiles(self._schedule.tiles, self._schedule.scheduler, self._process, self._schedule.recorder.checkpoint),
        )
        prove = Prove(ledger=self.ledger, store=tiles, key=LOG_KEY, origin=ORIGIN, clock=self.clock)
        return Coordinator(
            ledger=self.ledger, plan=plan, prove=prove, dispatch=self.dispatch, certify=self.certify, window_seconds=0,
            clock=self.clock, publish_emitted=host.publish_emitted, publish=self.broker.publish,
            in_hand=host.in_hand, _gauged=float("inf"),
        )  # fmt: skip


@contextmanager
def patched(schedule: Schedule) -> Iterator[None]:
    """The few places where production code takes chance, time or threads from the process: given the schedule's."""

    async def inline(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        activity = current.get()
        alone = activity is None or activity.in_transaction
        if not alone:
            await schedule.scheduler.point("thread")
        result = function(*args, **kwargs)
        if not alone:
            await schedule.scheduler.point("thread-done")
        return result

    clock = mock.Mock(monotonic=schedule.time.seconds)
    with ExitStack() as stack:
        for target, value in (
            ("asyncio.to_thread", inline),
            ("expunge.tasks.random", schedule.chance.random),
            ("expunge.wiring.coordinate.time", clock),
            ("expunge.chunks.circuits.time", clock),
            ("tests.coordination.uuid4", schedule.chance.uuid),
        ):
            stack.enter_context(mock.patch(target, value))
        yield


def run(database: Database, seed: int) -> tuple[Schedule, list[Violation] | BaseException]:
    """One schedule from start to verdict: what was wrong, or what was raised."""
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    schedule = Schedule(database, seed)
    database.begin(seed)
    try:
        with patched(schedule):
            return schedule, asyncio.run(schedule.run())
    except (Exception, AssertionError) as error:  # noqa: BLE001 - the runner reports it with its seed
        return schedule, error
    finally:
        database.end()


def _drop(_logger: object, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


def prepare(database: Database) -> None:
    """Whose keys the deployment knows: the same in every schedule."""
    for party, role in ((PUBLISHER, Role.PUBLISHER), (ANN, Role.APPROVER), (BOB, Role.APPROVER)):
        database.tell(
            "insert into trusted_key (key_id, role, name, public, scope, valid_from) values (%s, %s, %s, %s, '{}', %s)",
            party.key.key_id, role.value, party.name, party.key.public.raw, START - timedelta(days=90),
        )  # fmt: skip
