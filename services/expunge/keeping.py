"""Keys that come and go: buckets destroyed, signing keys rotated and revoked, each said in the evidence log; and the key of
an order's sweep, disclosed to its regulator; a reconciliation, asked for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final
from uuid import UUID

from expunge.adapters.keys.signers import ListedKey
from expunge.domain import disclosure, dsse, statement
from expunge.domain.disclosure import Disclosure
from expunge.domain.errors import Rejected
from expunge.domain.leaf import derive_key
from expunge.domain.statement import KeyEvent, ReconciledCount, Reconciliation
from expunge.domain.words import Role
from expunge.ports import KeyStore, Ledger, SealedStore, Signer
from expunge.record import log
from expunge.stages.certify import destroy_bucket as destroy
from expunge.wiring import Deployment

GRACE: Final = timedelta(hours=1)
"""How long a rotated key still counts, while workers are restarted with the new one."""
POLL_SECONDS: Final = 0.5
"""How often it looks whether the worker is done."""


@dataclass(frozen=True, slots=True)
class Disclosed:
    """What is handed over: `plain` is yet to be encrypted; the scope file is sealed as it is."""

    sweep: str
    plain: bytes
    scope_file: memoryview


async def destroy_bucket(deployment: Deployment, day: date, *, at: datetime) -> int:
    """Destroy a bucket's key; the log index of the statement. Raises `Rejected("bucket-open")`."""
    async with deployment.ledger.opened() as ledger, ledger.transaction() as tx:
        return await destroy(tx, deployment.keys, deployment.signers.signer(Role.CERTIFIER), day, at=at)


async def rotate(
    deployment: Deployment, role: Role, store: str | None, *, at: datetime, grace: timedelta = GRACE
) -> tuple[ListedKey, ListedKey]:
    """A new key for a role; the retired and the new one. Restart the role's workers before `grace` is over."""
    async with deployment.ledger.opened() as ledger:
        at = statement.instant(at)
        retired, added = await asyncio.to_thread(deployment.signers.rotate, role, store, at=at, grace=grace)
        said = [_event("retired", retired, at + grace, at), _event("added", added, at, at)]
        await log_events(ledger, deployment.signers.signer(Role.CERTIFIER), said)
        return retired, added


async def revoke(deployment: Deployment, key_id: str, *, at: datetime) -> tuple[ListedKey, ListedKey | None]:
    """Nothing under this key counts from the log's present size on. Restart the role's workers at once."""
    async with deployment.ledger.opened() as ledger:
        at = statement.instant(at)
        async with ledger.transaction() as tx:
            ((size,),) = await tx.fetch("readside_log_size")
        revoked, added = await asyncio.to_thread(deployment.signers.revoke, key_id, at=at, index=size)
        said = [_event("revoked", revoked, at, at)]
        if added is not None:
            said.append(_event("added", added, at, at))
        await log_events(ledger, deployment.signers.signer(Role.CERTIFIER), said)
        return revoked, added


async def log_events(ledger: Ledger, signer: Signer, said: Sequence[KeyEvent]) -> list[int]:
    """Put key events in the evidence log; their indices."""
    entries = [
        (one.type, signer.sign(statement.payload(one, {"key": one.key_id}), statement.PAYLOAD_TYPE)) for one in said
    ]
    async with ledger.transaction() as tx:
        return await log(tx, entries)


async def disclose(
    ledger: Ledger, keys: KeyStore, sealed: SealedStore, request_id: UUID, *, issuer: str
) -> Disclosed:  # fmt: skip
    """What an order needs. Raises `Rejected`: `unknown-request`, `not-planned`, `shared-sweep`, `key-destroyed`."""
    async with ledger.transaction() as tx:
        if not await tx.fetch("readside_request", request_id=request_id):
            raise Rejected("unknown-request", "expected a request that was accepted, there is none of this id")
        rows = await tx.fetch("readside_scope", request_id=request_id)
    if not rows:
        raise Rejected("not-planned", "expected a request in a sealed sweep, it is in none yet")
    sweep_id, bucket, requests, scope, file = rows[0]
    if requests != 1:
        raise Rejected("shared-sweep", f"expected an order, this sweep's key would open {requests} requests")
    key = derive_key(keys.bucket(bucket), "sweep", sweep_id.bytes)
    made = Disclosure(
        issuer=issuer, sweep=str(sweep_id), scope=bytes(scope).hex(), file=bytes(file).hex(), key=key.hex()
    )  # fmt: skip
    return Disclosed(str(sweep_id), disclosure.dump(made), sealed.open(f"{sweep_id}.scope"))


async def disclose_of(deployment: Deployment, request_id: UUID) -> Disclosed:
    """As `disclose`, of a deployment."""
    issuer = deployment.settings.issuer or deployment.settings.audience
    async with deployment.ledger.opened() as ledger:
        return await disclose(ledger, deployment.keys, deployment.sealed, request_id, issuer=issuer)


async def reconcile(
    deployment: Deployment, key: str, sources: Sequence[str] | None, *, seconds: float
) -> list[ReconciledCount] | None:  # fmt: skip
    """Ask worker rescan for a run, and wait for it; what it counted, None where it has not in that time."""
    given = json.dumps({"sources": list(sources)} if sources else {})
    until = time.monotonic() + seconds
    async with deployment.ledger.opened() as ledger:
        async with ledger.transaction() as tx:
            ((first,),) = await tx.fetch("readside_log_size")
            await tx.execute("reconcile_ask", key=key, input=given)
        while True:
            async with ledger.transaction() as tx:
                ((done,),) = await tx.fetch("reconcile_done", key=key)
                rows = await tx.fetch("reconcile_said", first=first) if done else []
            if done:
                return _counts([bytes(entry) for _, entry in rows])
            if time.monotonic() >= until:
                return None
            await asyncio.sleep(POLL_SECONDS)


def _counts(entries: Sequence[bytes]) -> list[ReconciledCount]:
    """Of the newest run that was not about an order's scope."""
    said = [statement.parse(dsse.parse(one).payload).predicate for one in entries]
    runs = [one for one in said if isinstance(one, Reconciliation) and one.sweep is None]
    newest = max((one.log_size for one in runs), default=0)
    return [count for one in runs if one.log_size == newest for count in one.counts]


def _event(event: str, key: ListedKey, since: datetime, at: datetime) -> KeyEvent:
    values = {"event": event, "role": key.role, "store": key.store, "key_id": key.key_id, "since": since, "at": at}
    return KeyEvent.model_validate(values)
