"""The composition root: settings become adapters, adapters become stages, stages become workers. Explicit, one place.

Here mypy proves that adapters fit their ports.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from uuid import uuid4

from expunge import __version__, metrics
from expunge.adapters.broker.kafka import KafkaBroker
from expunge.adapters.journal.files import FileJournal
from expunge.adapters.keys.files import FileKeys, generate_master_key, read_master_key, read_private, write_private
from expunge.adapters.keys.signers import FileSigners
from expunge.adapters.ledger.postgres import PostgresLedger, check_schema
from expunge.adapters.log.files import FileTiles
from expunge.adapters.sealed.files import FileSealed
from expunge.adapters.stores.table import open_reader, open_store, rewrites_unit
from expunge.chunks.scopes import Scopes
from expunge.domain import hashing, statement
from expunge.domain.errors import Misconfigured, Retryable
from expunge.domain.events import AuditFailed, AuditPassed
from expunge.domain.note import NoteKey
from expunge.domain.words import Role
from expunge.pipeline import WORKERS
from expunge.ports import Clock, Handler, Ledger, Signer, Store, TileStore
from expunge.settings import Settings
from expunge.stages.audit import Audit
from expunge.stages.certify import Certify
from expunge.stages.dispatch import Dispatch
from expunge.stages.intake import Intake
from expunge.stages.invalidate import Invalidate
from expunge.stages.plan import Plan
from expunge.stages.prove import Attest, Prove
from expunge.stages.purge import Purge
from expunge.stages.reconcile import Reconcile
from expunge.stages.register import Register
from expunge.stages.rescan import Rescan
from expunge.stages.retrain import Retrain
from expunge.tasks import Work, run_tasks
from expunge.wiring.coordinate import Coordinator
from expunge.workers.delivery import LEFT_BEHIND_SECONDS, DeliveryHost, InFlight, Parking

MASTER = "keys/master"
SIGNING = "keys/signing"
JOURNAL_KEY = "keys/journal"
PARKING_KEY = "keys/parking"
"""Where keys are, below the data directory."""

TICK_SECONDS = 0.25
IDLE_TICK_SECONDS = 2.0
"""How often a worker looks for parked events whose time has come: rarer and rarer while it finds none."""

RELAY_SECONDS = 5.0
"""How often the relay looks for outbox rows that a crash left behind."""

CLOSING_SECONDS = 2.0
"""How long a worker that ends waits for a task to be given back."""

GATHER_SECONDS = 1.0
"""How long statements about chunks wait for a checkpoint that nothing else asks for."""

TASKS_AT_ONCE = {"rescan": 2}
"""Tasks that a worker runs side by side, where not one: an index file read whole should not keep small runs waiting."""

RECONCILE_SECONDS = 60.0
"""How often rescan looks whether the next reconciliation is due."""

CLOCK_SECONDS = 5.0
CLOCK_SKEW = timedelta(minutes=5)
"""How often a worker compares its clock with the database's, and how far apart they may be: what requests are allowed."""

Background = Callable[[], Awaitable[None]]


def now() -> datetime:
    """The clock of every worker."""
    return datetime.now(UTC)


class Deployment:
    """The adapters that one deployment's settings mean. Nothing is opened until it is used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy = settings.policy()

    @cached_property
    def ledger(self) -> PostgresLedger:
        """Not open yet."""
        return PostgresLedger(self.settings.database)

    def prepare(self) -> None:
        """Draw what a new deployment needs, once: directories, master key, signing keys. Changes nothing that is there."""
        data = self.settings.data
        for name in ("keys", "keys/buckets", "sealed", "log", "journal", "workers"):
            (data / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (data / MASTER).exists():
            generate_master_key(data / MASTER)
        for name in (JOURNAL_KEY, PARKING_KEY):
            if not (data / name).exists():
                write_private(data / name, os.urandom(32))
        if not (data / SIGNING).exists():
            FileSigners.generate(
                data / SIGNING,
                issuer=self.settings.issuer or self.settings.audience,
                origin=self.settings.origin,
                stores=list(self.settings.stores),
                at=statement.instant(now()),
            )

    @cached_property
    def keys(self) -> FileKeys:
        """Bucket keys."""
        return FileKeys(self.settings.data / "keys/buckets", read_master_key(self.settings.data / MASTER))

    @cached_property
    def signers(self) -> FileSigners:
        """Signing keys by role."""
        return FileSigners(self.settings.data / SIGNING)

    @cached_property
    def sealed(self) -> FileSealed:
        """Scope files, round files, needle files."""
        return FileSealed(self.settings.data / "sealed")

    @cached_property
    def tiles(self) -> TileStore:
        """The evidence log."""
        if self.settings.log_url:
            from expunge.adapters.log.s3 import S3Tiles

            bucket, _, prefix = self.settings.log_url.removeprefix("s3://").partition("/")
            return S3Tiles(bucket, prefix)
        return FileTiles(self.settings.data / "log")

    @cached_property
    def journal(self) -> FileJournal:
        """The suppression journal."""
        data = self.settings.data
        return FileJournal(data / "journal" / "suppression", read_private(data / JOURNAL_KEY))

    def parking(self) -> Parking:
        """Seals parked messages."""
        return Parking(read_private(self.settings.data / PARKING_KEY))

    @cached_property
    def rewrites_unit(self) -> Mapping[str, bool]:
        """By store name."""
        return {name: rewrites_unit(url) for name, url in self.settings.stores.items()}

    def stores(self) -> dict[str, Store]:
        """Every store, with credentials to erase."""
        return {name: open_store(url, name) for name, url in self.settings.stores.items()}

    def worker_directory(self, worker: str) -> Path:
        """State of one worker instance that may be lost."""
        return self.settings.data / "workers" / f"{worker}-{self.settings.instance}"

    @property
    def attests(self) -> bool:
        """Whether others vouch for checkpoints: witnesses, or a time stamping authority."""
        return bool(self.settings.witnesses or self.settings.timestamp_url)

    def attest(self) -> Attest | None:
        """Who asks them, if anybody is to be asked."""
        settings = self.settings
        if not self.attests:
            return None
        seconds = settings.witness_timeout_seconds
        witnesses = []
        timestamper = None
        if settings.witnesses:
            from expunge.adapters.witness.http import HttpWitness

            witnesses = [HttpWitness(one.url, one.key, timeout_seconds=seconds) for one in settings.witnesses]
        if settings.timestamp_url:
            from expunge.adapters.timestamp.http import HttpTimestamper

            timestamper = HttpTimestamper(settings.timestamp_url, timeout_seconds=seconds)
        return Attest(
            ledger=self.ledger,
            store=self.tiles,
            key=NoteKey.log(settings.origin, self.signers.log_key().public),
            witnesses=witnesses,
            quorum=self.policy.witness_quorum,
            timestamper=timestamper,
            timeout_seconds=seconds,
        )

    def executors(self) -> dict[str, Signer]:
        """One signer per store."""
        return {name: self.signers.signer(Role.EXECUTOR, name) for name in self.settings.stores}


@dataclass(slots=True)
class HostedWorker:
    """A worker ready to be run by a host: `start` opens what it uses, `background` runs beside its agents, `stopping` is set
    when it is to end: a task under way is given back, with what it has done so far."""

    name: str
    host: DeliveryHost
    start: Background
    background: list[Background] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def build_worker(name: str, settings: Settings) -> HostedWorker:
    """One worker of `pipeline.WORKERS`. Raises `Misconfigured` for a name that is none."""
    if name not in WORKERS:
        message = f"expected a worker out of {', '.join(WORKERS)}, got another name"
        raise Misconfigured(message)
    deployment = Deployment(settings)
    broker = KafkaBroker(settings.kafka, client_id=f"expunge-{name}-{settings.instance}")
    # One each: who waits for an event clears it, and would clear it for the other too.
    wake, *due = (asyncio.Event() for _ in range(1 + TASKS_AT_ONCE.get(name, 1)))
    handlers, background, kinds = _stages(name, deployment, wake)
    directory = deployment.worker_directory(name)
    directory.mkdir(parents=True, exist_ok=True)
    host = DeliveryHost(
        worker=name,
        ledger=deployment.ledger,
        broker=broker,
        handlers=handlers,
        parking=deployment.parking(),
        in_flight={topic: InFlight(directory / f"in-flight-{topic}") for topic in handlers},
        clock=now,
        committed=wake.set,
        deferred=_all(*due),
    )

    async def start() -> None:
        await deployment.ledger.open()
        await check_schema(deployment.ledger)
        await check_clock(deployment.ledger, now)
        await broker.start()
        await host.recover()
        metrics.BUILD.info({"version": __version__})
        # What a worker is made of stays: each full collection would walk it again, some 50 ms at a time.
        gc.collect()
        gc.freeze()

    parked = partial(retry_parked, host)

    async def relay() -> None:
        while True:
            await asyncio.sleep(RELAY_SECONDS)
            await host.publish_outbox(age=LEFT_BEHIND_SECONDS, own=RELAY_SECONDS)

    stopping, at_rest = asyncio.Event(), asyncio.Event()

    async def closing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if kinds:
                with suppress(TimeoutError):
                    await asyncio.wait_for(at_rest.wait(), CLOSING_SECONDS)
            await broker.stop()
            await deployment.ledger.close()

    clock = partial(keep_checking_clock, deployment.ledger)
    running: list[Background] = [parked, relay, closing, clock, *(_with_host(one, host) for one in background)]
    if kinds:
        loop = partial(run_tasks, ledger=deployment.ledger, kinds=kinds, stop=stopping)
        running.append(_tasks([partial(loop, wake=one) for one in due], host, wake, at_rest))
    return HostedWorker(name, host, start, running, stopping)


async def check_clock(ledger: Ledger, clock: Clock) -> None:
    """Raises `Misconfigured` when this machine's clock and the database's are further apart than `CLOCK_SKEW`: what
    expires, and what is due, would be judged by a clock that nobody else has. A worker ends then, before it judges."""
    ((theirs,),) = await ledger.fetch("database_time")
    apart = abs(clock() - theirs)
    if apart > CLOCK_SKEW:
        message = f"this machine's clock and the database's are {apart.total_seconds():.0f} s apart: set them right"
        raise Misconfigured(message)


async def keep_checking_clock(ledger: Ledger) -> None:
    """`check_clock` from time to time, for ever."""
    while True:
        await asyncio.sleep(CLOCK_SECONDS)
        with suppress(Retryable):
            await check_clock(ledger, now)


async def retry_parked(host: DeliveryHost) -> None:
    """Try parked events again when their time has come, for ever. What the host parks itself is looked for at once;
    what another process parked (or a command brought back) is found at the next look."""
    wait = TICK_SECONDS
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(host.parked.wait(), wait)
            host.parked.clear()
            await asyncio.sleep(wait := TICK_SECONDS)
        wait = TICK_SECONDS if await host.retry_due() else min(2 * wait, IDLE_TICK_SECONDS)


def _with_host(make: Callable[[DeliveryHost], Background], host: DeliveryHost) -> Background:
    return make(host)


def _ignoring(publish: Callable[[], Awaitable[int]]) -> Background:
    async def run() -> None:
        await publish()

    return run


def _tasks(
    loops: Sequence[Callable[..., Awaitable[None]]], host: DeliveryHost, wake: asyncio.Event, at_rest: asyncio.Event
) -> Background:  # fmt: skip
    """Run tasks in these loops. Each task that is finished sets `wake`; `at_rest` is set when all loops have ended."""

    async def finished() -> None:
        await host.publish_outbox()
        wake.set()

    async def run() -> None:
        try:
            await asyncio.gather(*(loop(finished=finished) for loop in loops))
        finally:
            at_rest.set()

    return run


def _all(*events: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        for one in events:
            one.set()

    return wake


_Stages = tuple[dict[str, Sequence[Handler]], list[Callable[[DeliveryHost], Background]], dict[str, Work]]


def _stages(name: str, deployment: Deployment, wake: asyncio.Event) -> _Stages:
    """A worker's handlers by topic, its own loops, and its task kinds."""
    consumes = [topic.name for topic in WORKERS[name].consumes]
    match name:
        case "register":
            return {consumes[0]: [_register(deployment)]}, [], {}
        case "coordinate":
            return _coordinate(deployment, wake)
        case "purge" | "invalidate":
            made = Purge if name == "purge" else Invalidate
            stage = made(
                ledger=deployment.ledger,
                scopes=Scopes(sealed=deployment.sealed, keys=deployment.keys),
                stores=deployment.stores(),
                signers=deployment.executors(),
                clock=now,
                holder=f"{name}-{deployment.settings.instance}",
                inline_leaves=deployment.settings.inline_leaves,
            )
            return {consumes[0]: [stage]}, [], {stage.task_kind: stage.task}
        case "rescan":
            settings = deployment.settings
            rescan = Rescan(
                ledger=deployment.ledger,
                scopes=Scopes(sealed=deployment.sealed, keys=deployment.keys),
                sealed=deployment.sealed,
                readers={store: open_reader(url, store) for store, url in settings.stores.items()},
                signer=deployment.signers.signer(Role.RESCANNER),
                clock=now,
                max_attempts=settings.attempts,
                inline_leaves=settings.inline_leaves,
            )
            return {consumes[0]: [rescan]}, [_reconcile(deployment)], {rescan.task_kind: rescan.task}
        case "retrain":
            return {consumes[0]: [_retrain(deployment)]}, [], {}
        case _:
            return {}, [_audit(deployment)], {}


def _reconcile(deployment: Deployment) -> Callable[[DeliveryHost], Background]:
    """Its tasks have a loop of their own: a run over all stores holds up no sweep's absence."""
    settings = deployment.settings

    def loop(host: DeliveryHost) -> Background:
        reconcile = Reconcile(
            ledger=deployment.ledger,
            scopes=Scopes(sealed=deployment.sealed, keys=deployment.keys),
            readers={store: open_reader(url, store) for store, url in settings.stores.items()},
            signer=deployment.signers.signer(Role.RESCANNER),
            clock=now,
        )

        async def due() -> None:
            while settings.reconcile_hours:
                with suppress(Retryable):
                    await reconcile.ask_every(settings.reconcile_hours)
                await asyncio.sleep(RECONCILE_SECONDS)

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(due())
                await run_tasks(
                    ledger=deployment.ledger,
                    kinds={reconcile.task_kind: reconcile.task},
                    stop=asyncio.Event(),
                    finished=_ignoring(host.publish_outbox),
                )

        return run

    return loop


def _register(deployment: Deployment) -> Register:
    return Register(
        keys=deployment.keys,
        signer=deployment.signers.signer(Role.REGISTER),
        clock=now,
        suppression_key=deployment.journal.key,
    )


def _retrain(deployment: Deployment) -> Retrain:
    return Retrain(
        ledger=deployment.ledger,
        sealed=deployment.sealed,
        keys=deployment.keys,
        stores=deployment.stores(),
        signer=deployment.signers.signer(Role.RETRAINER),
        clock=now,
        max_taint_age=deployment.policy.max_taint_age,
    )


def _coordinate(deployment: Deployment, wake: asyncio.Event) -> _Stages:
    policy = deployment.policy
    scope_signer = deployment.signers.signer(Role.SCOPE)
    intake = Intake(
        ledger=deployment.ledger,
        journal=deployment.journal,
        keys=deployment.keys,
        sealed=deployment.sealed,
        scope_signer=scope_signer,
        clock=now,
        policy=policy,
        audience=deployment.settings.audience,
    )
    plan = Plan(
        ledger=deployment.ledger,
        journal=deployment.journal,
        keys=deployment.keys,
        sealed=deployment.sealed,
        signer=scope_signer,
        clock=now,
        policy=policy,
        new_id=uuid4,
        rewrites_unit=deployment.rewrites_unit,
        spools=deployment.settings.data / "sealed",  # in a container what is temporary has little room
    )
    prove = Prove(
        ledger=deployment.ledger,
        store=deployment.tiles,
        key=deployment.signers.log_key(),
        origin=deployment.settings.origin,
        clock=now,
        attested=deployment.attests,
        gather_seconds=GATHER_SECONDS,
    )
    dispatch = Dispatch(signer=scope_signer, clock=now, policy=policy, rewrites_unit=deployment.rewrites_unit)
    certify = Certify(
        sealed=deployment.sealed,
        keys=deployment.keys,
        signer=deployment.signers.signer(Role.CERTIFIER),
        clock=now,
        issuer=deployment.settings.issuer or deployment.settings.audience,
        not_covered=deployment.settings.not_covered,
    )

    made: list[Coordinator] = []

    def turns(host: DeliveryHost) -> Background:
        coordinator = Coordinator(
            ledger=deployment.ledger,
            plan=plan,
            prove=prove,
            dispatch=dispatch,
            certify=certify,
            window_seconds=policy.window.total_seconds(),
            clock=now,
            publish_emitted=host.publish_emitted,
            publish=host.publish,
            in_hand=host.in_hand,
            key_retention=timedelta(days=deployment.settings.key_retention_days) or None,
            wake=wake,
            attest=deployment.attest(),
            stores=tuple(deployment.settings.stores),
        )
        made.append(coordinator)
        return coordinator.run

    def sealing(_: DeliveryHost) -> Background:
        return made[0].sealing

    def attesting(_: DeliveryHost) -> Background:
        return made[0].attesting

    requests, outcomes = (topic.name for topic in WORKERS["coordinate"].consumes)

    def preparing(_: DeliveryHost) -> Background:
        async def run() -> None:
            await asyncio.to_thread(hashing.prepare)

        return run

    loops: list[Callable[[DeliveryHost], Background]] = [turns, sealing, preparing]
    if deployment.attests:
        loops.append(attesting)
    return {requests: [intake], outcomes: [dispatch, certify]}, loops, {certify.task_kind: certify.task}


def note_audit(said: AuditPassed | AuditFailed | None) -> None:
    """Show what an audit found."""
    metrics.AUDIT_FAILED.set(isinstance(said, AuditFailed))
    if isinstance(said, AuditPassed):
        metrics.AUDIT_AT.set_to_current_time()


def _audit(deployment: Deployment) -> Callable[[DeliveryHost], Background]:
    def timer(host: DeliveryHost) -> Background:
        audit = Audit(
            ledger=deployment.ledger,
            tiles=deployment.tiles,
            trust=deployment.signers.trust(),
            clock=now,
        )

        async def run() -> None:
            while True:
                with metrics.STAGE_SECONDS.labels("audit").time():
                    note_audit(await audit.run())
                await host.publish_outbox()
                host.progress += 1
                await asyncio.sleep(deployment.settings.audit_seconds)

        return run

    return timer
