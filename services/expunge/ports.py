"""The Protocols between stages and the outside. Adapters do not inherit from them; wiring is where mypy proves the fit.

Store calls block and are run in threads by the workers; everything else is async or in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from expunge.domain.cloudevents import CloudEvent
from expunge.domain.dsse import PublicKey
from expunge.domain.note import NoteKey
from expunge.domain.words import Level, Role

Outcomes = NDArray[np.uint8]
"""One `domain.words.Outcome` per locator, in the order in which the locators were given."""


UNITS_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do. `rewrites_unit`: erasing rewrites the artifact's whole unit (file, shard, index, table), so
    hide and erase are two steps; otherwise erase also hides and there is no hide step. `max_level`: the level that
    `scan` can support for this store. `units_at_once`: how many units a worker has it work on at the same time: more than
    the machine has cores where calls wait for a network."""

    rewrites_unit: bool
    max_level: Level
    units_at_once: int = UNITS_AT_ONCE


@dataclass(frozen=True, slots=True)
class Erasure:
    """What one erase of one unit did. `method` is a short fixed phrase for statements (`unlink`, `rewrite`, ...);
    `residue` lists in plain fixed words where bytes may remain (never a locator); `blocked_until`: when the last of those
    that are BLOCKED may go, where the store says so: then their request is planned again."""

    outcomes: Outcomes
    level: Level
    method: str
    residue: tuple[str, ...]
    blocked_until: datetime | None = None


class StoreReader(Protocol):
    """The read-only half of a store: what the rescanner's credentials allow. Blocking. Never changes anything.

    A *unit* is what must be rewritten to erase one artifact (directory, shard, index file, table); a *locator* names the
    artifact inside its unit (file name, member name, vector id). Raises `Retryable` when the store cannot be reached.

    Locators come as any sequence of strings; from the workers as `domain.locators.Locators`, of which an adapter that is
    made for millions may take the flat buffer.
    """

    name: str
    capabilities: Capabilities

    def probe(self, unit: str, locators: Sequence[str]) -> NDArray[np.bool_]:
        """Which of `locators` can be reached through the store now. A unit that does not exist holds nothing."""
        ...

    def needles(self, unit: str, locators: Sequence[str]) -> list[tuple[bytes, ...]]:
        """Byte windows (each 12 to 32 bytes, distinctive) cut from each artifact's stored bytes, to look for after it
        is erased. An empty tuple where the artifact is absent. Of one that is hidden, and whose bytes are still there, they
        are cut too where the store can. Needles are personal data: keep them sealed."""
        ...

    def scan(self, unit: str, needles: Sequence[bytes]) -> list[int]:
        """How often each needle occurs in the unit's own files now (all versions, free lists and side files)."""
        ...


class Store(StoreReader, Protocol):
    """A store that holds artifacts and can erase them. Every call is idempotent and may be repeated after a crash
    between any two of its inner steps.
    """

    def hide(self, unit: str, locators: Sequence[str]) -> Outcomes:
        """Make each artifact unreachable now, without rewriting the unit. GONE, or ABSENT_BEFORE where it already was.
        Stores whose erase also hides raise `NotImplementedError`."""
        ...

    def erase(self, unit: str, locators: Sequence[str], fence: int) -> Erasure:
        """Remove the artifacts' bytes from the unit in one rewrite. `fence` is the lease's token: a store that has seen
        a higher one raises `FencedOff` and changes nothing. What the product inserts meanwhile is kept. Per-artifact
        trouble is an outcome (BLOCKED, OPEN for try again, FAILED), never an exception."""
        ...


Row = tuple[Any, ...]
"""A database row: psycopg gives no static column types, so each stage names and converts what it reads."""


class Tx(Protocol):
    """Named queries (`adapters/ledger/sql/*.sql`) on one connection. Inside `Ledger.transaction` all commit together.

    `outbox`: ids and messages that the transaction has put into the outbox, in order: who publishes them once it is
    committed need not read them back. `deferred`: whether it has put tasks that are due."""

    outbox: list[tuple[str, Outgoing]]
    deferred: bool

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        """Run a named query and return all its rows."""
        ...

    async def execute(self, query: str, **parameters: object) -> int:
        """Run a named query; how many rows it touched."""
        ...

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
        """COPY rows into a table; how many went in."""
        ...


class Ledger(Protocol):
    """The database. `transaction` commits when its block ends normally and rolls back otherwise.

    Raises `Retryable` when the database cannot be reached or asks to try again; what a lost commit did is unknown.
    """

    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """One transaction on a pooled connection."""
        ...

    async def fetch(self, query: str, **parameters: object) -> list[Row]:
        """As `Tx.fetch`, in a transaction of its own: one round trip where that takes three."""
        ...

    async def execute(self, query: str, **parameters: object) -> int:
        """As `Tx.execute`, in a transaction of its own."""
        ...


class Clock(Protocol):
    """The time, UTC and aware."""

    def __call__(self) -> datetime:
        """Now."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message taken from Kafka, decoded: where it was and what it says."""

    topic: str
    partition: int
    offset: int
    event: CloudEvent


@dataclass(frozen=True, slots=True)
class Refused:
    """A delivery that cannot be handled now or ever. `code` is a stable reason code. `later`: park it and try again
    (its precondition may still come); otherwise it goes to the dead letter."""

    delivery: Delivery
    code: str
    later: bool


class Handler(Protocol):
    """A stage's side of its topic, for any host. The host calls `act`, then `commit` inside the transaction that also
    records dedupe, offsets and outbox, then publishes and acknowledges.

    `dedupe`: whether the host drops deliveries whose event id it has applied before. Off only where the handler answers
    repeats itself. `act` may have effects and may open transactions of its own (intent); it
    is idempotent, because a crash before the commit repeats it. Raising `Retryable` parks the batch's deliveries until
    later; `Rejected` is handled per delivery inside and never raised out of the batch.
    """

    @property
    def dedupe(self) -> bool:
        """See above."""
        ...

    async def act(self, deliveries: Sequence[Delivery]) -> Any:  # noqa: ANN401 - the stage's own value, handed back to it
        """Do the work that has effects outside the database."""
        ...

    async def commit(self, acted: Any, tx: Tx) -> Sequence[Refused] | None:  # noqa: ANN401 - see act
        """Record it: rows, statements, outbox. Returns what could not be handled."""
        ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to publish."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Broker(Protocol):
    """Where outbox rows go. At least once: a crash after `publish` repeats it."""

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish in order; returns when all are acknowledged. Raises `Retryable` when any is not."""
        ...


class TileStore(Protocol):
    """Where the evidence log's tiles and checkpoints live (C2SP tlog-tiles paths). Blocking."""

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write all files durably (fsync of files and directories) before returning. Same path, same bytes: immutable
        files may be written again; `checkpoint` and the archive (`checkpoints/...`) are replaced atomically."""
        ...

    def swap(self, path: str, data: bytes, old: bytes | None) -> bool:
        """Replace one replaceable file, durably, if it still holds `old` (None: if there is none); whether it did.
        Comparing and replacing are one step to every other writer, in this process or another."""
        ...

    def read(self, path: str) -> bytes:
        """One file's bytes. Raises `FileNotFoundError`."""
        ...


@dataclass(frozen=True, slots=True)
class WitnessAt:
    """A witness's answer when the old size was not its own: the size of what it cosigned last."""

    size: int


class Witness(Protocol):
    """Somebody else's cosigner (C2SP tlog-witness). `key`: pinned by us, so an answer by another key counts for nothing."""

    key: NoteKey

    async def cosign(self, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes | WitnessAt:
        """Its signature lines for the checkpoint in `note`, whose tree extends that of `old_size` by `proof`.

        Not verified. Raises `Retryable` when it does not answer in time, `Rejected` when it refuses: `unknown-log`,
        `bad-signature`, `inconsistent`, `bad-request`. May be repeated."""
        ...


class Timestamper(Protocol):
    """A time stamping authority (RFC 3161)."""

    async def stamp(self, data: bytes) -> bytes:
        """A granted TimeStampResp (DER) over SHA-256 of `data`, with the authority's certificate. Its signature is for
        verifiers to check. Raises `Retryable` when there is no answer in time, or none that is granted."""
        ...


class SealedStore(Protocol):
    """Private store of sealed scope files and round files (already encrypted). Blocking."""

    def write(self, name: str, blocks: Iterable[bytes]) -> bytes:
        """Write one file durably; its SHA-256. Replaces nothing: an existing file of that name raises `FileExistsError`
        unless it holds the same bytes."""
        ...

    def open(self, name: str) -> memoryview:
        """The whole file, mapped. Raises `FileNotFoundError`."""
        ...

    def read(self, name: str, position: int, length: int) -> bytes:
        """A part of a file."""
        ...


class KeyStore(Protocol):
    """Bucket keys: 32 random bytes per day, drawn once, destroyed on schedule. Request and sweep keys derive from them."""

    def bucket(self, day: date, *, create: bool = False) -> bytes:
        """The key of a bucket. Raises `Rejected("key-destroyed")` when it is gone, `Rejected("no-key")` when it never
        was (unless `create`)."""
        ...

    def destroy(self, day: date) -> None:
        """Destroy a bucket's key for good. Idempotent."""
        ...


class Signer(Protocol):
    """Signs statements under one role (and for executors, one store)."""

    role: Role
    public: PublicKey

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """A DSSE envelope. Deterministic: the same payload gives the same bytes."""
        ...


class Journal(Protocol):
    """The suppression journal: append-only, outside Postgres and its backups. Blocking."""

    key: bytes

    def append(self, records: bytes) -> None:
        """Append encoded records durably (`domain.suppression`)."""
        ...

    def read(self) -> bytes:
        """The whole journal."""
        ...
