"""Snapshots and models as they come. A snapshot is refused if any member is erased or excluded; a model is taken as
`unknown` and linked to what it names, now or when that comes. Whether it is clean is for stage retrain to say."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from pyroaring import BitMap64

from expunge.domain import canonical, snapshot
from expunge.domain.errors import Rejected
from expunge.domain.lineage import ModelRegistered, SnapshotCommitted
from expunge.ports import Tx
from expunge.stages.register.registrar import Purposes


class UnknownMember(Rejected):
    """A member of a snapshot is not registered: it may still be on its way."""

    def __init__(self) -> None:
        super().__init__("unknown-image", "expected every member to be registered")


async def take_snapshot(tx: Tx, purposes: Purposes, event: SnapshotCommitted, at: datetime) -> None:
    """Raises `UnknownMember`; `Rejected`: `erased`, `excluded`, `root-mismatch`, `duplicate-snapshot`, `malformed`."""
    await purposes.add(tx, [event.purpose])
    purpose = purposes.bit(event.purpose)
    known = await tx.fetch("register_snapshot_known", name=event.snapshot)
    members = await _members(tx, event) if not known or event.root is None else None
    root = snapshot.root(members) if members is not None else bytes.fromhex(event.root or "")
    if known:
        if (purpose, root, event.grade) != (known[0][0], bytes(known[0][1]), known[0][2]):
            raise Rejected("duplicate-snapshot", "expected a name that no other snapshot has")
        return
    assert members is not None  # noqa: S101 - only a known snapshot is compared without its members
    if event.root is not None and event.root != root.hex():
        raise Rejected("root-mismatch", "expected the root of the members that are named")
    await _refuse_excluded(tx, members, purpose)
    members.run_optimize()
    await tx.execute(
        "register_snapshot",
        name=event.snapshot,
        purpose=purpose,
        root=root,
        images=len(members),
        bitmap=members.serialize(),
        grade=event.grade.value,
        at=at,
    )


async def _members(tx: Tx, event: SnapshotCommitted) -> BitMap64:
    if event.members_roaring is not None:
        members = snapshot.decode(base64.b64decode(event.members_roaring))
        firsts, ends = snapshot.ranges(members)
        ((present,),) = await tx.fetch("register_present", firsts=firsts, ends=ends)
        if present != len(members):
            erased = BitMap64().union(*[BitMap64.deserialize(row[0]) for row in await tx.fetch("register_tombstones")])
            if not erased.isdisjoint(members):
                raise Rejected("erased", "expected no member that was erased")
            raise UnknownMember
        return members
    listed = [(part.source, key) for part in event.members_by_key or () for key in part.keys]
    rows = await tx.fetch("register_members", sources=[one for one, _ in listed], keys=[key for _, key in listed])
    packed, count = rows[0]
    if count != len(listed):
        raise UnknownMember
    return BitMap64(np.frombuffer(packed, ">i8").astype(np.uint64))


async def _refuse_excluded(tx: Tx, members: BitMap64, purpose: int) -> None:
    for (packed,) in await tx.fetch("register_exclusions", purpose=purpose):
        if not members.isdisjoint(BitMap64.deserialize(packed)):
            raise Rejected("excluded", "expected no member that was withdrawn from the snapshot's purpose")


async def take_model(tx: Tx, purposes: Purposes, event: ModelRegistered, at: datetime) -> bool:
    """Whether it is new. Raises `Rejected("duplicate-model")` for another model of that name."""
    await purposes.add(tx, [event.purpose])
    manifest = event.model_dump(mode="json", exclude_none=True)
    place = event.weights
    fresh = await tx.execute(
        "register_model",
        name=event.model,
        purpose=purposes.bit(event.purpose),
        weights=bytes.fromhex(event.weights_digest),
        store=place.store if place else None,
        unit=place.unit if place else None,
        locator=place.locator if place else None,
        metrics=canonical.dumps(manifest.get("metrics", {})).decode(),
        manifest=canonical.dumps(manifest).decode(),
        at=at,
    )
    if not fresh:
        ((known,),) = await tx.fetch("register_model_known", name=event.model)
        if canonical.dumps(known) != canonical.dumps(manifest):
            raise Rejected("duplicate-model", "expected a name that no other model has")
    return bool(fresh)


async def link(tx: Tx, fresh: Sequence[str]) -> list[dict[str, Any]]:
    """Tie models to the snapshots and parents that they name and that are here. The manifests of the fresh ones and of
    those that something was added to: a successor whose snapshot came after it is judged then."""
    waiting = [name for (name,) in await tx.fetch("register_unlinked")]
    changed = set(fresh)
    for name in dict.fromkeys([*fresh, *waiting]):
        added = await tx.execute("register_link_snapshots", name=name)
        added += await tx.execute("register_link_parents", name=name)
        if added:
            changed.add(name)
    return [manifest for (manifest,) in await tx.fetch("register_manifests", names=sorted(changed))]
