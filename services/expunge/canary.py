"""The canary: one synthetic subject on a schedule, registered, photographed, asked to be deleted, and proved erased.

It goes the way of everybody's request, with a publisher's key and a source of its own: a file of random bytes is put
into a store and registered; the request is signed and published; then the certificate is fetched and verified as an
outsider does, and the file is looked for. `expunge_canary_late_seconds` says how long the proof is overdue. The subject
is random, so nothing of it is a secret; its key may delete and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from expunge import metrics
from expunge.adapters.keys.files import read_private, write_private
from expunge.client import Publisher
from expunge.domain import dsse, lineage, statement, verification
from expunge.domain.errors import Misconfigured, Rejected, Retryable
from expunge.domain.request import Regulation, SubjectRef
from expunge.domain.words import Kind, Provision, Role
from expunge.readside import Reader, register_keys
from expunge.wiring import Deployment

if TYPE_CHECKING:
    from uuid import UUID

    from expunge.domain.trust import Trust

SOURCE: Final = "expunge-canary"
PURPOSE: Final = "canary"
UNIT: Final = "expunge-canary"
KEY: Final = "keys/canary.key"
"""Below the canary's own directory."""
POLL_SECONDS: Final = 0.5
GIVEN_UP: Final = 24
"""A subject whose proof is this many times overdue is left to the alerts and the next one begins."""
_BYTES: Final = 4096

_log = structlog.get_logger()

Certificate = Callable[["UUID", Provision], Awaitable[dict[str, bytes]]]
Known = Callable[[SubjectRef], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the synthetic file goes: a store of plain files, by name, and the directory below which it keeps them."""

    store: str
    root: Path

    @classmethod
    def of(cls, stores: dict[str, str], wanted: str | None) -> Place:
        """The store of that name, or the first of plain files. Raises `Misconfigured` where it is none."""
        plain = {name: Path(url.removeprefix("file://")) for name, url in stores.items() if url.startswith("file://")}
        name = wanted if wanted is not None else next(iter(sorted(plain)), None)
        if name is None or name not in plain:
            raise Misconfigured("EXPUNGE_STORES: expected a file:// store for the canary's file, or --store naming one")
        return cls(name, plain[name])


@dataclass(slots=True)
class Canary:
    """Runs synthetic subjects. `within`: how soon a proof is expected; `certificate` raises `Rejected` while there is
    none; `known` says whether a subject's registration has been taken. `trust`: what certificates are verified against."""

    publisher: Callable[[], Publisher]
    place: Place
    certificate: Certificate
    known: Known
    trust: Trust
    within: timedelta
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    progress: int = 0
    _directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self._directory = self.place.root / UNIT

    async def every(self, interval: timedelta) -> None:
        """Run one subject each interval, until cancelled."""
        while True:
            started = self.clock()
            await self.once()
            await self.pause(max(0.0, interval.total_seconds() - (self.clock() - started)))

    async def once(self) -> str:
        """One subject from registration to verified proof; the outcome, as `metrics.CANARY_RUNS` counts it."""
        name = f"{secrets.token_hex(16)}.bin"
        try:
            outcome = await self._run(name)
        except (Retryable, OSError) as error:
            _log.error("canary not sent", reason=type(error).__name__)
            outcome = "unsent"
        metrics.CANARY_RUNS.labels(outcome).inc()
        self.progress += 1
        with suppress(OSError):  # if it is still there, the alert has been said; it is nobody's photo
            (self._directory / name).unlink(missing_ok=True)
        return outcome

    async def _run(self, name: str) -> str:
        subject = SubjectRef(f"k1.canary-{secrets.token_hex(16)}")
        started = self.clock()
        with self.publisher() as publisher:
            await self._register(publisher, subject, name)
            while not await self.known(subject):
                if self._late(started):
                    return self._given_up()
                await self.pause(POLL_SECONDS)
            request_id = uuid.UUID(publisher.delete(subject, regulation=Regulation.OTHER))
        _log.info("canary sent", request=str(request_id))
        while not await self._proved(request_id, name):
            if self._late(started):
                return self._given_up()
            await self.pause(POLL_SECONDS)
        metrics.CANARY_LATE_SECONDS.set(0)
        seconds = self.clock() - started
        metrics.CANARY_SECONDS.set(seconds)
        metrics.CANARY_AT.set_to_current_time()
        _log.info("canary proved", request=str(request_id), seconds=round(seconds, 3))
        return "proved"

    async def _register(self, publisher: Publisher, subject: SubjectRef, name: str) -> None:
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        (self._directory / name).write_bytes(os.urandom(_BYTES))
        today = datetime.now(UTC).date()
        publisher.lineage(
            lineage.SourceRegistered(
                source=SOURCE, supplier="this deployment", agreement="synthetic", licence="synthetic",
                consent_basis=lineage.ConsentBasis.EXPLICIT_CONSENT, acquired_on=today, approved_by="operator",
            )
        )  # fmt: skip
        publisher.flush()
        artifact = lineage.ArtifactRecord(
            kind=Kind.IMAGE, store=self.place.store, unit=UNIT, locator=name, purposes=(PURPOSE,)
        )
        image = lineage.ImageRecord(
            key=name, subjects=(subject,), digest=secrets.token_hex(32), acquired_on=today, artifacts=(artifact,)
        )
        publisher.lineage(
            lineage.ImagesRegistered(source=SOURCE, batch_id=lineage.BatchId(str(uuid.uuid4())), images=(image,))
        )
        publisher.flush()

    async def _proved(self, request_id: UUID, name: str) -> bool:
        """Whether there is a certificate that holds and the file is gone. One that does not hold is asked for again."""
        try:
            files = await self.certificate(request_id, Provision.DATA)
        except (Rejected, Retryable):
            return False
        report = await asyncio.to_thread(verification.verify, files, self.trust)
        if not report.ok:
            _log.warning("canary has a certificate that does not hold", request=str(request_id), where=report.where)
        complete = report.ok and report.summary is not None and report.summary.result == "complete"
        return complete and not (self._directory / name).exists()

    def _late(self, started: float) -> bool:
        """Say how late it is; whether it is so late that it is given up."""
        late = self.clock() - started - self.within.total_seconds()
        metrics.CANARY_LATE_SECONDS.set(max(0.0, late))
        return late > GIVEN_UP * self.within.total_seconds()

    @staticmethod
    def _given_up() -> str:
        _log.error("canary given up")
        return "late"


def own_key(directory: Path) -> dsse.SigningKey:
    """The canary's publisher key, drawn at first use into its own directory."""
    path = directory / KEY
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, os.urandom(dsse.SEED_BYTES))
    return dsse.SigningKey.from_seed(read_private(path))


def scope_of_key() -> dict[str, object]:
    """What its key may sign: deletions, at most a few a minute."""
    return {"types": ["expunge.request.deletion.v1"], "quota": 2000}


async def register(deployment: Deployment) -> None:
    """Let the canary's key sign requests, once. Over a connection of its own, closed again."""
    key = own_key(deployment.settings.data / "canary")
    named = [(Role.PUBLISHER, SOURCE, key.public, scope_of_key())]
    await register_keys(Deployment(deployment.settings), named, at=statement.instant(datetime.now(UTC)))


def build(deployment: Deployment, *, store: str | None, within: timedelta) -> Canary:
    """A canary of this deployment, whose ledger is open when it runs."""
    settings, ledger = deployment.settings, deployment.ledger
    key = own_key(settings.data / "canary")
    place = Place.of(dict(settings.stores), store)

    async def known(subject: SubjectRef) -> bool:
        async with ledger.transaction() as tx:
            return bool(await tx.fetch("intake_known_subjects", subjects=[subject]))

    read = Reader(ledger=ledger, sealed=deployment.sealed, keys=deployment.keys, tiles=deployment.tiles)
    return Canary(
        publisher=lambda: Publisher(settings.kafka, key, settings.audience, SOURCE),
        place=place,
        certificate=read.certificate,
        known=known,
        trust=deployment.signers.trust(),
        within=within,
    )
