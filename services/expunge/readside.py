"""The read side: where a request stands, what is known of a model, and certificates as bundles. Changes nothing but
`register_keys`, which the operator runs.

Works from the database, the sealed files and the log's tiles. Signs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from expunge import openings, replay
from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.chunks.scopes import open_scope
from expunge.domain import (
    attestation,
    bundle,
    certificate,
    challenge,
    evidence,
    folded,
    leaf,
    merkle,
    note,
    statement,
    tiles,
)
from expunge.domain.dsse import PublicKey
from expunge.domain.errors import Rejected, Tampered, Unpublished
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.scopefile import chunk_roots
from expunge.domain.trust import Trust, TrustedKey
from expunge.domain.words import ModelStatus, Provision, Role
from expunge.ports import KeyStore, Ledger, Row, SealedStore, StoreReader, TileStore, Tx
from expunge.stages.certify import round_file
from expunge.wiring import Deployment

CLEAN: Final = ModelStatus.CLEAN


class Reader:
    """Answers about one deployment. The ledger is open."""

    def __init__(
        self, *, ledger: Ledger, sealed: SealedStore, keys: KeyStore, tiles: TileStore, approval_images: int = 5_000
    ) -> None:  # fmt: skip
        self._approval_images = approval_images
        self._ledger = ledger
        self._sealed = sealed
        self._keys = keys
        self._tiles = tiles

    async def status(self, request_id: UUID) -> dict[str, Any]:
        """Where a request stands. Raises `Rejected("unknown-request")`."""
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("readside_request", request_id=request_id)
            if not rows:
                raise Rejected("unknown-request", "expected a request that was accepted, there is none of this id")
            certificates = await tx.fetch("readside_certificates", request_id=request_id)
        (_, kind, sweep_class, state, due, accepted, sweep, data, models, images, artifacts, *rest) = rows[0]
        sweep_state, scope, scope_index, _bucket, leaves, open_runs, approvals = rest
        return {
            "request": str(request_id),
            "type": kind,
            "class": sweep_class,
            "state": state,
            "accepted_at": _instant(accepted),
            "due": _instant(due),
            "images": images,
            "artifacts": artifacts,
            "sweep": None
            if sweep is None
            else {
                "id": str(sweep),
                "state": sweep_state,
                "scope_root": bytes(scope).hex(),
                "scope_index": scope_index,
                "artifacts": leaves,
                "runs_open": open_runs,
                "approvals": approvals,
            },
            "results": {"data": data, "models": models},
            "certificates": [
                {"provision": provision, "sweep": str(of), "round": number, "result": result, "sha256": digest.hex()}
                for provision, of, number, result, digest in certificates
            ],
        }

    async def certificate(self, request_id: UUID, provision: Provision) -> dict[str, bytes]:
        """A certificate with all that an auditor needs, as files.

        1. the box is opened with the request's key, 2. what was logged about its sweep is gathered, 3. inclusion is
        proved against the newest checkpoint that others vouch for, where anybody does. Raises `Rejected`:
        `no-certificate`, `key-destroyed`; `Unpublished` while no published checkpoint covers it.
        """
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("readside_box", request_id=request_id, provision=provision.value)
            if not rows:
                raise Rejected("no-certificate", f"expected a {provision.value} certificate, none was issued yet")
            sweep_id, number = rows[0][:2]
            ((scope, completion, newest),) = await tx.fetch("readside_positions", sweep_id=sweep_id, round=number)
            if newest <= completion:
                raise Unpublished
            statements = await tx.fetch("readside_statements", sweep_id=sweep_id, size=newest)
            last = max((index for index, _ in statements), default=-1)
            ((size, newest_note, token),) = await tx.fetch("readside_checkpoint", last=last, completion=completion)
            vouched = await tx.fetch("readside_scope_checkpoint", scope=scope, size=size)
            covered: dict[int, int] = dict(await tx.fetch("readside_covered", sweep_id=sweep_id))
        return await asyncio.to_thread(
            self._bundle, request_id, rows[0], (size, bytes(newest_note), token), statements, vouched, covered
        )

    def _bundle(
        self, request_id: UUID, row: Row, newest: tuple[int, bytes, bytes | None], statements: Sequence[Row],
        vouched: Sequence[Row], covered: Mapping[int, int],
    ) -> dict[str, bytes]:  # fmt: skip
        """Steps 1 to 3 of `certificate`: from files. Blocking."""
        sweep_id, number, _, digest, position, length, file_digest, bucket, sweep_bucket, trees = row
        size, newest_note, token = newest
        # 1
        name = round_file(sweep_id, number, bytes(file_digest))
        key = leaf.derive_key(self._keys.bucket(bucket), "request", request_id.bytes)
        data = certificate.unseal(key, number, self._sealed.read(name, position, length))
        if hashlib.sha256(data).digest() != digest:
            raise Tampered("certificate", "expected the certificate whose digest was recorded")
        made = certificate.Certificate.model_validate_json(data)
        # 2, 3
        tree = tiles.TileTree(size, tiles.fetcher(self._tiles.read))
        logged = [
            bundle.Logged(index, bytes(entry), tuple(tree.inclusion_path(index)))
            for index, entry in statements
            if index < size
        ]
        roots = self._roots(sweep_id, sweep_bucket, trees, covered)
        earlier = [(at, bytes(old), stamp, merkle.consistency_path(tree, at)) for at, old, stamp in vouched]
        return bundle.build(made, logged, newest_note, chunk_roots=roots) | attestation.files(token, earlier)

    async def receipt(self, request_id: UUID, wanted: openings.Wanted | openings.Place) -> bytes:
        """The receipt of one of a request's images, or of one leaf. Raises as `certificate` and `openings.receipt_of`."""
        made = bundle.load(await self.certificate(request_id, Provision.DATA))
        async with self._ledger.transaction() as tx:
            ((bucket,),) = await tx.fetch("readside_bucket", sweep_id=UUID(made.certificate.sweep))
        return await asyncio.to_thread(
            openings.receipt_of, made, wanted, bucket=bucket, sealed=self._sealed, keys=self._keys
        )

    async def challenge(
        self, request_id: UUID, checkpoint: bytes, count: int, *, trust: Trust, readers: Mapping[str, StoreReader], at: datetime
    ) -> bytes:  # fmt: skip
        """The answer to a challenge of an order (`domain.challenge`), yet to be signed under role `rescanner`. `trust`: of
        the log that the checkpoint must be of. Raises as `certificate` and `openings.answer_of`; `Tampered` for a
        checkpoint that is not the log's."""
        note.open_checkpoint(checkpoint, trust.log_keys, trust.origin)
        made = bundle.load(await self.certificate(request_id, Provision.DATA))
        scope = evidence.scope_of(made, trust)
        async with self._ledger.transaction() as tx:
            ((bucket,),) = await tx.fetch("readside_bucket", sweep_id=UUID(made.certificate.sweep))
        answer = await asyncio.to_thread(
            openings.answer_of, made, scope, checkpoint, count, bucket=bucket, sealed=self._sealed, keys=self._keys,
            readers=readers, at=at,
        )  # fmt: skip
        return challenge.dump(answer)

    async def dry_run(
        self, *, subjects: Sequence[str] = (), source: str | None = None, days: tuple[date, date] | None = None
    ) -> dict[str, Any]:
        """What a request would erase, at most: purposes that others keep are counted too. Changes nothing."""
        start, end = days or (None, None)
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("dryrun_images", subjects=list(subjects), source=source, start=start, end=end)
            ordinals = [row[0] for row in rows]
            counts = await tx.fetch("dryrun_counts", ordinals=ordinals)
            ((people,),) = await tx.fetch("dryrun_people", ordinals=ordinals)
            ((held,),) = await tx.fetch("dryrun_held", ordinals=ordinals)
        return {
            "images": len(ordinals),
            "people": people,
            "held": held,
            "artifacts": [{"kind": kind, "store": store, "artifacts": number} for kind, store, number in counts],
            "approval": len(subjects) != 1 or len(ordinals) > self._approval_images,
        }

    def _roots(
        self, sweep_id: UUID, bucket: date, trees: Sequence[Mapping[str, Any]], covered: Mapping[int, int]
    ) -> dict[int, bytes]:
        """Chunk roots of trees that the sweep's statements do not cover whole yet."""
        partly = [
            number for number, tree in enumerate(trees) if covered.get(number, 0) < -(-tree["leaves"] // CHUNK_LEAVES)
        ]
        if not partly:
            return {}
        file, _ = open_scope(self._keys, self._sealed, sweep_id, bucket)
        return {number: b"".join(chunk_roots(file, number)) for number in partly}

    async def models(self) -> list[dict[str, Any]]:
        """Every model and how it stands."""
        async with self._ledger.transaction() as tx:
            rows = await tx.fetch("readside_models")
        return [
            {
                "model": name,
                "status": status,
                "metric_void": void,
                "purpose": purpose,
                "replaced_by": successor,
                "clean_at": clean_at,
                "registered_at": _instant(at),
                "due": _instant(due),
                "open_taints": taints,
            }
            for name, status, void, purpose, successor, clean_at, at, due, taints in rows
        ]

    async def model(self, name: str) -> dict[str, Any]:
        """One model: what it came from and what taints it. Raises `Rejected("unknown-model")`."""
        async with self._ledger.transaction() as tx:
            return await _model(tx, name)

    async def gate(self, name: str) -> dict[str, Any]:
        """Whether a model may be deployed: clean, relative to a log position. Raises `Rejected("unknown-model")`."""
        found = await self.standing(name)
        open_taints = [one["sweep"] for one in found["taints"] if one["resolution"] is None]
        told = {key: found[key] for key in ("model", "clean", "status", "metric_void", "log_size")}
        return {**told, "tainted_by": open_taints}

    async def standing(self, name: str) -> dict[str, Any]:
        """One model as `model` has it, and whether it is clean at the log's size. Raises as that."""
        async with self._ledger.transaction() as tx:
            found = await _model(tx, name)
            ((size,),) = await tx.fetch("readside_log_size")
        tainted = any(one["resolution"] is None for one in found["taints"])
        return {**found, "clean": found["status"] == CLEAN and not tainted, "log_size": size}


async def _model(tx: Tx, name: str) -> dict[str, Any]:
    rows = await tx.fetch("readside_model", name=name)
    if not rows:
        raise Rejected("unknown-model", "expected a model that is registered, as NAME@VERSION")
    number, _, status, void, purpose, successor, clean_at, weights, metrics, manifest, at = rows[0]
    taints = await tx.fetch("readside_model_taints", model_no=number)
    parents = await tx.fetch("readside_model_parents", model_no=number)
    return {
        "model": name,
        "status": status,
        "metric_void": void,
        "purpose": purpose,
        "replaced_by": successor,
        "clean_at": clean_at,
        "weights_sha256": bytes(weights).hex(),
        "metrics": metrics,
        "trained_on": manifest.get("trained_on", []),
        "parents": [{"model": parent, "relation": relation} for parent, relation in parents],
        "registered_at": _instant(at),
        "taints": [
            {
                "sweep": str(sweep),
                "images": images,
                "direct": direct,
                "path": path,
                "remedy": remedy,
                "due": _instant(due),
                "resolution": resolution,
                "resolved_at": resolved,
                "scope_index": scope,
            }
            for sweep, images, direct, path, remedy, due, resolution, resolved, scope in taints
        ],
    }


async def register_keys(
    deployment: Deployment, keys: Iterable[tuple[Role, str, PublicKey, Mapping[str, Any]]], *, at: datetime
) -> int:
    """Let these keys sign requests: role, name, public half, scope. A key that is registered stays as it is; how many
    are new."""
    listed = list(keys)
    async with deployment.ledger.opened() as ledger, ledger.transaction() as tx:
        return await tx.execute(
            "readside_put_keys",
            ids=[public.key_id for _, _, public, _ in listed],
            roles=[role.value for role, *_ in listed],
            names=[name for _, name, *_ in listed],
            publics=[public.raw for _, _, public, _ in listed],
            scopes=[json.dumps(dict(scope)) for *_, scope in listed],
            at=at,
        )


async def trusted(deployment: Deployment) -> Trust:
    """The policy of this deployment's own keys and of the approvers that it knows. An auditor keeps one of their own."""
    own = PostgresLedger(deployment.settings.database)  # the deployment's can be opened once
    async with own.opened() as ledger, ledger.transaction() as tx:
        rows = await tx.fetch("readside_approvers")
    approvers = [
        TrustedKey(
            role=Role.APPROVER,
            name=name,
            public=PublicKey(bytes(public)).to_base64(),
            valid_from=statement.instant(since),  # statements carry whole seconds
            valid_to=until,
        )
        for name, public, since, until in rows
    ]
    return deployment.signers.trust(approvers)


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")


async def replay_into(
    deployment: Deployment,
    dsn: str | None,
    trust: Trust,
    *,
    compare: bool,
    until: int | None = None,
    resume: Path | None = None,
    progress: replay.Progress = lambda _done, _all: None,
) -> dict[str, Any]:
    """Replay the log, or its first `until` entries, into an empty database if `dsn` names one, and compare with the live
    system if asked. `resume`: a file of the reader's own, where a run that was ended goes on.

    Public state always, sealed state while keys live. Raises `Tampered` for a log that does not verify, `Rejected`:
    `not-empty`, `other-replay`, `unwritable`.
    """
    earlier = None if resume is None else await asyncio.to_thread(_saved, resume)
    save = None if resume is None else partial(_save, resume)
    found = await asyncio.to_thread(
        replay.replay, deployment.tiles, trust, until=until, resume=earlier, save=save, progress=progress
    )
    unsealed = await asyncio.to_thread(replay.sealed, found.state, deployment.sealed, deployment.keys)
    if dsn is not None:
        async with PostgresLedger(dsn, application="expunge-replay").opened() as into:
            await replay.store(found, into, unsealed)
    differences = []
    if compare:
        async with PostgresLedger(deployment.settings.database, application="expunge-replay").opened() as live:
            differences = await replay.compare(found, live, unsealed)
    return {
        "origin": found.checkpoint.origin,
        "entries": found.checkpoint.size,
        "read": found.state.size,
        "root": found.checkpoint.root.hex(),
        "sweeps": len(found.state.sweeps),
        "sealed_requests": len(unsealed.results),
        "closed": len(unsealed.closed),
        "unreconciled": [
            {"source": one.source, "kind": one.kind.value, "difference": one.difference}
            for one in found.state.differences()
        ],
        "compared": compare,
        "equal": not differences,
        "differences": [{"kind": one.kind, "what": one.what} for one in differences],
    }


def _saved(path: Path) -> folded.Folded | None:
    return folded.load(path.read_bytes()) if path.exists() else None


def _save(path: Path, state: folded.Folded) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(folded.dump(state))
        part.rename(path)
    except OSError as error:
        raise Rejected("unwritable", f"expected to write --resume, got {os.strerror(error.errno or 0)}") from error


@asynccontextmanager
async def reader(deployment: Deployment) -> AsyncIterator[Reader]:
    """A reader of this deployment, while it is open."""
    async with deployment.ledger.opened() as ledger:
        yield Reader(
            ledger=ledger, sealed=deployment.sealed, keys=deployment.keys, tiles=deployment.tiles,
            approval_images=deployment.policy.approval_images,
        )  # fmt: skip
