"""Plan: accepted requests become one sealed sweep. Nothing is touched here: scope first, deed later.

1. claim requests, 2. find their images, 3. fetch their artifacts packed and in physical order, 4. decide what is in scope
and what is retained, 5. draw the sweep's key and build one tree per (kind, store), 6. the tree of requests, 7. write the
sealed scope file, 8. sign the scope, log it, and record the sweep. All rows change in one transaction; a crash before
its commit leaves at most a scope file that no row names.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from itertools import chain, groupby, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge import metrics, restored
from expunge.chunks.forest import Forest, Page, TreeBuilder, same_artifacts
from expunge.chunks.scopes import open_scope
from expunge.chunks.spool import Spool
from expunge.crashing import crash_point
from expunge.domain import certificate, extents, merkle, scopefile, statement, suppression
from expunge.domain import sweep as sweeps
from expunge.domain.errors import Rejected
from expunge.domain.extents import PAGE_LEAVES
from expunge.domain.leaf import derive_key, nonces
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.policy import Policy
from expunge.domain.request import ByList, ByPeriod, BySource, BySuppressed, OrderIssued, parse_request
from expunge.domain.statement import PAYLOAD_TYPE
from expunge.domain.sweep import ALL_PURPOSES, I64
from expunge.ports import Clock, Journal, KeyStore, Ledger, Row, SealedStore, Signer, Tx
from expunge.record import log

PEOPLE: Final = "people"
ORDER: Final = "order"

ClaimColumns: TypeAlias = "dict[str, Callable[[], bytes]]"
"""Columns of the claims section by name, each made when it is asked for."""

HANDLES_IN_MEMORY: Final = 8 << 20
"""Bytes of an order's blinded handles that are kept in memory until all are known."""

DIGESTS: Final = 1 << 16
"""Photos whose digests are suppressed together."""

SWEEPS_UNDER_WAY: Final = 2
"""People's sweeps that run at once while requests are too few to fill another: more would cost more, and end no sooner."""

ALONE_SECONDS: Final = 2.0
"""How long a people's sweep runs alone while requests are too few to fill another. A small one costs nearly what a large one
does: two that share a machine end later than one after the other. One that takes longer waits for a store, not for a core."""

STUCK_SECONDS: Final = 5.0
"""A sweep that has not moved for this long holds up nobody: its store may be down."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The requests of a sweep to be. `ordinals`: which images each touches, sorted by request."""

    sweep_class: str
    ids: list[UUID]
    requests: sweeps.Requests
    body_digests: list[bytes]
    erased_earlier: int

    @property
    def everything(self) -> bool:
        """One request that takes every artifact of its images: who claims what needs no join, however many there are."""
        return len(self.ids) == 1 and int(self.requests.purposes[0]) == ALL_PURPOSES


class Plan:
    """Seals sweeps. `rewrites_unit`: stores whose erase rewrites a whole unit, so that runs should not split one. `spools`:
    folder with room for a scope file and a fifth more, while it is made; else where temporary files are."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        journal: Journal,
        keys: KeyStore,
        sealed: SealedStore,
        signer: Signer,
        clock: Clock,
        policy: Policy,
        new_id: Any,  # noqa: ANN401 - Callable[[], UUID]; drawn once, here
        rewrites_unit: Mapping[str, bool],
        spools: Path | None = None,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._keys = keys
        self._sealed = sealed
        self._signer = signer
        self._clock = clock
        self._policy = policy
        self._new_id = new_id
        self._rewrites_unit = rewrites_unit
        self._spools = spools

    async def waiting(self) -> Mapping[str, tuple[int, datetime]]:
        """Accepted requests by class: how many (no more than fill a sweep), and since when the oldest waits."""
        rows = await self._ledger.fetch("plan_waiting", limit=self._policy.sweep_requests)
        return {row[0]: (row[1], row[2]) for row in rows}

    async def crowded(self, waiting: int) -> bool:
        """Whether that many people's requests had better gather: they fill no sweep, and enough sweeps are moving."""
        if waiting >= self._policy.sweep_requests:
            return False
        ((under_way, newest),) = await self._ledger.fetch("plan_people_under_way", stuck=STUCK_SECONDS)
        alone = under_way and 0 <= (self._clock() - newest).total_seconds() < ALONE_SECONDS
        return bool(alone or under_way >= SWEEPS_UNDER_WAY)

    async def seal_people(self) -> UUID | None:
        """Seal one sweep of people's requests, if any wait."""
        async with self._ledger.transaction() as tx:
            await tx.execute("plan_lock")
            rows = await tx.fetch("plan_claim_people", limit=self._policy.sweep_requests)
            if not rows:
                return None
            crash_point("plan.claimed")
            ((index, ordinal),) = await tx.fetch("plan_images", subjects=[row[1] for row in rows])
            requests = sweeps.Requests(
                purposes=np.array([row[2] for row in rows], np.int64),
                request=np.frombuffer(index or b"", ">i4").astype(np.int64),
                ordinal=np.frombuffer(ordinal or b"", ">i8").astype(np.int64),
            )
            counts = np.bincount(requests.request, minlength=len(rows))
            large = [
                row[0] for row, count in zip(rows, counts.tolist(), strict=True) if count > self._policy.approval_images
            ]
            if large:
                # Over the threshold: like an order it is a sweep of its own and needs approval. Plan the rest next time.
                await tx.execute("plan_becomes_order", ids=large)
                return None
            claimed = Claimed(PEOPLE, [row[0] for row in rows], requests, [row[3] for row in rows], 0)
            return await self._seal(tx, claimed, _artifacts(tx, requests.ordinal))

    async def seal_order(self) -> UUID | None:
        """Seal one order, or one person's request that needs approval, if any waits."""
        async with self._ledger.transaction() as tx:
            await tx.execute("plan_lock")
            rows = await tx.fetch("plan_claim_order")
            if not rows:
                return None
            ((request_id, subject, purposes, body_digest, _bucket, body, _type),) = rows
            ordinal, source = await self._selected(tx, subject, body)
            earlier = 0
            if source is not None:
                earlier = sum(
                    len(BitMap64.deserialize(row[0])) for row in await tx.fetch("plan_tombstones", source=source)
                )
            requests = sweeps.Requests(
                purposes=np.array([purposes], np.int64), request=np.zeros(len(ordinal), np.int64), ordinal=ordinal
            )
            claimed = Claimed(ORDER, [request_id], requests, [body_digest], earlier)
            return await self._seal(tx, claimed, _artifacts_of_order(tx, ordinal, purposes=not claimed.everything))

    async def _selected(self, tx: Tx, subject: str | None, body: bytes) -> tuple[I64, str | None]:
        """An order's images, ascending, and the source whose earlier erasures count."""
        source: str | None = None
        rows: list[Row] = []
        if subject is not None:
            rows = await tx.fetch("plan_ordinals_of_subjects", subjects=[subject])
        else:
            order = parse_request(body)
            assert isinstance(order, OrderIssued)  # noqa: S101 - intake gives class `order` to nothing else
            match order.selection:
                case BySource(source=source):
                    ranges = await tx.fetch("plan_source_ranges", source=source)
                    rows = await tx.fetch(
                        "plan_ordinals_in_ranges", first=[one[0] for one in ranges], end=[one[1] for one in ranges]
                    )
                case ByPeriod(source=source, start=start, end=end):
                    rows = await tx.fetch("plan_ordinals_of_period", source=source, start=start, end=end)
                case ByList(subjects=subjects):
                    rows = await tx.fetch("plan_ordinals_of_subjects", subjects=list(subjects))
                case BySuppressed():
                    return await self._suppressed_images(tx), None
        ((packed,),) = rows
        ordinals = np.frombuffer(packed or b"", ">i8").astype(np.int64)
        ordinals.sort()
        return ordinals, source

    async def _suppressed_images(self, tx: Tx) -> I64:
        records, _rest = await asyncio.to_thread(lambda: suppression.decode(self._journal.read()))
        return await restored.images(tx, self._journal.key, restored.Standing.of(records))

    async def _seal(self, tx: Tx, claimed: Claimed, pages: AsyncIterator[Page]) -> UUID:
        at = statement.instant(self._clock())
        sweep_id: UUID = self._new_id()
        bucket = at.date()
        key = derive_key(self._keys.bucket(bucket, create=True), "sweep", sweep_id.bytes)
        stores: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_stores")}
        with (
            closing(Spool(folder=self._spools)) as spool,
            closing(Spool(HANDLES_IN_MEMORY, self._spools)) as handles,
        ):
            forest = Forest(key, stores, spool, handles if claimed.sweep_class == ORDER else None)
            whole = await self._plant(tx, claimed, forest, pages)
            return await self._seal_forest(tx, claimed, forest, whole, sweep_id, bucket, at)

    async def _plant(
        self, tx: Tx, claimed: Claimed, forest: Forest, pages: AsyncIterator[Page]
    ) -> sweeps.Claims | None:
        """Grow the trees; who claims what, or None: one request everything. Then page by page; else all have to be seen
        first."""

        def arranged(page: Page) -> Page:
            """An order's pages come as the database has them."""
            return page.in_order() if claimed.sweep_class == ORDER else page

        if claimed.everything:

            def grow(page: Page) -> None:
                forest.add(arranged(page))

            growing: asyncio.Future[None] | None = None
            try:
                async for page in pages:  # the database gathers the next page while this one is hashed
                    if growing is not None:
                        await growing
                    growing = asyncio.ensure_future(asyncio.to_thread(grow, page))
            finally:
                if growing is not None:
                    await growing
            await asyncio.to_thread(forest.close)
            return None
        listed = [arranged(page) async for page in pages]
        trees = [Page.joined(list(some)) for _, some in groupby(listed, key=attrgetter("kind", "store_no"))]
        whole = await asyncio.to_thread(_decide, claimed.requests, trees)
        borders = np.cumsum([len(page.ids) for page in trees[:-1]])
        await self._retain(tx, trees, np.split(whole.remaining, borders))
        for page, keep in zip(trees, np.split(whole.in_scope, borders), strict=bool(trees)):
            await asyncio.to_thread(forest.add, page.only(keep))
        await asyncio.to_thread(forest.close)
        return whole

    async def _seal_forest(
        self, tx: Tx, claimed: Claimed, forest: Forest, whole: sweeps.Claims | None, sweep_id: UUID, bucket: date, at: datetime
    ) -> UUID:  # fmt: skip
        key = forest.key
        # Beside the rest: that is mostly the database and the journal, this mostly ciphers and a file.
        suppressing = asyncio.ensure_future(self._suppress(tx, forest, claimed.sweep_class))
        try:
            names: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_purposes")}
            built = await asyncio.to_thread(_build, claimed, whole, forest, names)
            wanted = sorted({unit for tree in built.trees for unit in tree.units})
            units: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_units", units=wanted)}
            overlaps, others = await self._overlaps(tx, built)
            held = await self._held(tx, built, at)
            header = {
                "sweep": str(sweep_id),
                "bucket": bucket.isoformat(),
                "trees": [{"kind": tree.kind, "store": tree.store, "leaves": tree.leaves} for tree in built.trees],
            }
            sections = chain[tuple[str, scopefile.Section]](forest.spool, built.sections(units, overlaps))
            file_digest = await asyncio.to_thread(
                lambda: self._sealed.write(f"{sweep_id}.scope", scopefile.blocks(header, sections, key))
            )
            crash_point("plan.sealed")
        finally:
            await suppressing
        crash_point("plan.suppressed")
        ((catalogue_index,),) = await tx.fetch("plan_catalogue_index")
        predicate = statement.Scope(
            sweep=str(sweep_id),
            sweep_class="order" if claimed.sweep_class == ORDER else "people",
            trees=tuple(
                statement.TreeScope(kind=tree.kind, store=tree.store, leaves=tree.leaves, root=root.hex())
                for tree, root in zip(built.trees, built.roots, strict=True)
            ),
            requests=len(claimed.ids),
            requests_root=built.request_tree.root.hex(),
            images=len(built.images),
            selection=hashlib.sha256(b"".join(claimed.body_digests)).hexdigest(),
            catalogue_index=catalogue_index,
            policy=self._policy.version,
            handles_root=built.handles_root.hex() if built.handles_root is not None else None,
            excluded=sum(len(indices) for indices in held.values()),
            file=file_digest.hex(),
            at=at,
        )
        payload = statement.payload(predicate, {"scope-file": file_digest.hex()})
        envelope = self._signer.sign(payload, PAYLOAD_TYPE)
        await self._record(tx, claimed, built, predicate, payload, envelope, held, bucket, at)
        if others:
            await tx.execute("plan_put_overlaps", sweep_id=sweep_id, others=others)
        metrics.SWEEP_REQUESTS.labels(claimed.sweep_class).observe(len(claimed.ids))
        metrics.SWEEP_ARTIFACTS.labels(claimed.sweep_class).observe(sum(tree.leaves for tree in built.trees))
        crash_point("plan.recorded")
        return sweep_id

    async def _retain(self, tx: Tx, pages: Sequence[Page], remains: Sequence[I64]) -> None:
        """Take the withdrawn purposes from artifacts that stay."""
        changed = [(left != page.purposes) & (left != 0) for page, left in zip(pages, remains, strict=bool(pages))]
        if any(one.any() for one in changed):
            parts = list(zip(pages, remains, changed, strict=True))
            await tx.execute(
                "plan_retain",
                ordinals=np.concatenate([page.ordinal[which] for page, _, which in parts]),
                ids=np.concatenate([page.ids[which] for page, _, which in parts]),
                remaining=np.concatenate([left[which] for _, left, which in parts]),
            )

    async def _overlaps(self, tx: Tx, built: Built) -> tuple[list[bytes], list[UUID]]:
        """Per tree, the leaves that an earlier sweep holds too, which is being carried out or ended without some artifact:
        packed columns. And which sweeps these are."""
        found: list[list[tuple[NDArray[Any], bytes, NDArray[Any]]]] = [[] for _ in built.trees]
        images = sweeps.bitmap(built.images)
        for other_id, bucket, touched in await tx.fetch("plan_overlapping"):
            if not images.intersect(BitMap64.deserialize(touched)):
                continue
            try:
                other, _ = open_scope(self._keys, self._sealed, other_id, bucket)
            except Rejected:
                continue  # it ended, and its key was destroyed since: nobody can say any more what it held
            for tree, mine in enumerate(built.trees):
                index, theirs = await asyncio.to_thread(same_artifacts, mine, other)
                if len(index):
                    found[tree].append((index, other_id.bytes, theirs))
        sections = [
            scopefile.pack_columns(
                {
                    "leaf": b"".join(index.astype("<u4").tobytes() for index, _, _ in many),
                    "sweep": b"".join(other * len(index) for index, other, _ in many),
                    "index": b"".join(theirs.astype("<u4").tobytes() for _, _, theirs in many),
                }
            )
            for many in found
        ]
        return sections, sorted({UUID(bytes=other) for many in found for _, other, _ in many})

    async def _held(self, tx: Tx, built: Built, at: datetime) -> dict[int, NDArray[Any]]:
        """Leaves under a hold: {tree: indices}."""
        ((packed,),) = await tx.fetch("plan_held", at=at)
        held = np.frombuffer(packed or b"", ">i8").astype(np.int64)
        ranges = await tx.fetch("plan_held_ranges", at=at)
        if not len(held) and not ranges:
            return {}
        found = {tree.number: await asyncio.to_thread(_held_leaves, tree, held, ranges) for tree in built.trees}
        return {number: leaves for number, leaves in found.items() if len(leaves)}

    async def _suppress(self, tx: Tx, forest: Forest, sweep_class: str) -> None:
        """Remember the digests of photos that will be gone, so that none is uploaded again. A photo's digest and that of
        its stored file may differ, and the file's need not be known."""
        files = forest.digests(DIGESTS)
        count = len(forest.photos)
        theirs: bytes | None = b""
        at = 0
        remembering: asyncio.Future[bytes] | None = None
        try:
            # A photo may have several files: then these are more.
            while (theirs := await asyncio.to_thread(next, files, None)) is not None or at < count:
                photos = np.array(forest.photos[at : at + DIGESTS].to_array(), np.int64)
                at += DIGESTS
                if not len(photos):
                    known = b""
                elif sweep_class == ORDER:
                    runs = np.array(sweeps.runs_of(photos), np.int64)
                    ((known,),) = await tx.fetch(
                        "plan_image_digest_ranges", first=runs[:, 0].copy(), end=runs.sum(axis=1)
                    )
                else:
                    ((known,),) = await tx.fetch("plan_image_digests", ordinals=photos)
                if remembering is not None:
                    await tx.execute("plan_suppress_page", macs=await remembering)
                digests = theirs if theirs == known else (theirs or b"") + (known or b"")
                # The journal takes these while the database says what the next are.
                remembering = asyncio.ensure_future(asyncio.to_thread(self._remember, digests))
        finally:
            macs = await remembering if remembering is not None else b""
        if macs:
            await tx.execute("plan_suppress_page", macs=macs)

    def _remember(self, digests: bytes) -> bytes:
        """Journal that these are suppressed; their MACs."""
        macs = suppression.macs(self._journal.key, "digest", "*", sweeps.distinct_digests(digests), 32)
        everything = suppression.purpose_digest("*")
        self._journal.append(suppression.encode_many("digest", suppression.Action.ADD, everything, macs))
        return macs

    async def _record(
        self, tx: Tx, claimed: Claimed, built: Built, predicate: statement.Scope, payload: bytes, envelope: bytes,
        held: Mapping[int, NDArray[Any]], bucket: date, at: datetime,
    ) -> None:  # fmt: skip
        sweep_id = UUID(predicate.sweep)
        runs = [
            (tree.number, first, end)
            for tree in built.trees
            for first, end in sweeps.work_runs(
                tree.leaves, np.array(tree.starts, np.uint32), whole_units=self._rewrites_unit.get(tree.store, False)
            )
        ]
        await tx.execute(
            "plan_planned", sweep_id=sweep_id, ids=claimed.ids, leaves=list(range(len(claimed.ids))),
            images=[one["images"] for one in built.claims],
            artifacts=[sum(tree["leaves"] for tree in one["trees"]) for one in built.claims],
        )  # fmt: skip
        (index,) = await log(tx, [(predicate.type, envelope)])
        await tx.execute(
            "plan_put_sweep", sweep_id=sweep_id, **{"class": claimed.sweep_class}, bucket=bucket, requests=len(claimed.ids),
            images=predicate.images, leaves=sum(tree.leaves for tree in predicate.trees),
            trees=json.dumps([tree.model_dump(mode="json") for tree in predicate.trees]),
            scope_digest=hashlib.sha256(payload).digest(), scope_envelope=envelope, scope_index=index,
            file_digest=bytes.fromhex(predicate.file), ordinals=sweeps.bitmap(built.images).serialize(),
            last_artifact=built.last_artifact, at=at,
            expires_at=at + self._policy.approval_time if claimed.sweep_class == ORDER else None, first=claimed.ids[0],
        )  # fmt: skip
        await tx.execute(
            "plan_put_work", sweep_id=sweep_id, trees=[run[0] for run in runs], first=[run[1] for run in runs],
            end=[run[2] for run in runs],
        )  # fmt: skip
        for tree, indices in held.items():
            await tx.execute(
                "plan_put_excluded",
                sweep_id=sweep_id,
                tree=tree,
                cause=sweep_id,
                indices=indices.astype("<u4").tobytes(),
            )


@dataclass(frozen=True, slots=True)
class Built:
    """A sweep's trees, ready to be sealed."""

    trees: list[TreeBuilder]
    roots: list[bytes]
    claims: list[dict[str, Any]]
    claim_bodies: list[bytes]
    claim_columns: ClaimColumns
    request_tree: merkle.Tree
    request_hashes: bytes
    images: I64
    handles_root: bytes | None
    last_artifact: int

    def sections(self, units: Mapping[int, str], overlaps: Sequence[bytes]) -> Iterator[tuple[str, scopefile.Section]]:
        """The sections of the scope file beside the chunks, each made when its turn comes: that of the claims is large."""
        for tree, overlap in zip(self.trees, overlaps, strict=True):
            table = {
                "units": scopefile.pack_strings([units[unit] for unit in tree.units]),
                "first": np.array(tree.starts, "<u4").tobytes(),
            }
            roots = scopefile.pack_columns({"roots": b"".join(tree.chunk_roots)})
            yield f"{tree.number}/units", scopefile.pack_columns(table)
            yield f"{tree.number}/overlaps", overlap
            yield f"{tree.number}/roots", roots
        yield "claims", scopefile.pack_large(self.claim_columns)
        bodies = scopefile.pack_strings([body.decode() for body in self.claim_bodies])
        yield "requests", scopefile.pack_columns({"bodies": bodies, "hashes": self.request_hashes})


async def _artifacts(tx: Tx, ordinals: I64) -> AsyncIterator[Page]:
    """What people's images have, all at once."""
    for row in await tx.fetch("plan_artifacts", ordinals=sweeps.distinct(ordinals), page=PAGE_LEAVES):
        yield Page.of_row(row)


async def _artifacts_of_order(tx: Tx, ordinals: I64, *, purposes: bool) -> AsyncIterator[Page]:
    """What an order's images (ascending) have, page by page, each still to be brought `in_order`: then they are in that of
    `domain.extents`. `purposes`: whether the artifacts' purposes are asked for."""
    runs = np.array(sweeps.runs_of(ordinals), np.int64).reshape(-1, 2)
    first, end = runs[:, 0].copy(), runs.sum(axis=1)
    found = await tx.fetch("plan_extents", first=first, end=end)
    for (kind, store_no), units in groupby(found, key=itemgetter(0, 1)):
        for read in extents.reads([extents.Extent(*one[2:]) for one in units]):
            lo, hi = np.searchsorted(end, read.first, "right"), np.searchsorted(first, read.end, "left")
            (row,) = await tx.fetch(
                "plan_page", kind=kind, store_no=store_no, first_unit=read.first_unit, last_unit=read.last_unit,
                purposes=purposes, first=np.maximum(first[lo:hi], read.first), end=np.minimum(end[lo:hi], read.end),
            )  # fmt: skip
            if row[2] is not None:
                yield Page.of_row(row)


def _decide(requests: sweeps.Requests, pages: Sequence[Page]) -> sweeps.Claims:
    nothing = np.zeros(0, np.int64)
    ordinal = np.concatenate([nothing, *(page.ordinal for page in pages)])
    purposes = np.concatenate([nothing, *(page.purposes for page in pages)])
    return sweeps.claims(requests, ordinal, purposes)


def _held_leaves(tree: TreeBuilder, held: I64, ranges: Sequence[Row]) -> I64:
    """Leaves of a tree whose image is among `held`, or in one of the ranges."""
    found = []
    for chunk, columns in enumerate(tree.columns()):
        ordinal = np.frombuffer(columns["ordinal"], "<u8").astype(np.int64)
        mask = np.isin(ordinal, held)
        for first, end in ranges:
            mask |= (ordinal >= first) & (ordinal < end)
        found.append(np.flatnonzero(mask) + chunk * CHUNK_LEAVES)
    return np.concatenate([np.zeros(0, np.int64), *found])


def _build(claimed: Claimed, whole: sweeps.Claims | None, forest: Forest, purposes: Mapping[int, str]) -> Built:
    key = forest.key
    built = list(forest.trees.values())
    columns, claims = _claims(claimed, whole, built, purposes)
    bodies = [certificate.body_bytes(certificate.Claim.model_validate(one)) for one in claims]
    drawn = nonces(derive_key(key, "requests"), len(claims))
    leaves = b"".join(certificate.leaf(drawn[at * 16 : at * 16 + 16], body) for at, body in enumerate(bodies))
    request_hashes = merkle.leaf_hashes(leaves, certificate.OPENING_BYTES)
    return Built(
        trees=built,
        roots=[tree.root for tree in built],
        claims=claims,
        claim_bodies=bodies,
        claim_columns=columns,
        request_tree=merkle.Tree(request_hashes),
        request_hashes=request_hashes,
        images=sweeps.distinct(claimed.requests.ordinal),
        handles_root=forest.handles_root(),
        last_artifact=forest.last_artifact,
    )


def _claims(
    claimed: Claimed, whole: sweeps.Claims | None, trees: Sequence[TreeBuilder], purposes: Mapping[int, str]
) -> tuple[ClaimColumns, list[dict[str, Any]]]:  # fmt: skip
    """The columns of the scope file's `claims` section, and each request's claim body."""
    count = len(claimed.ids)
    requests = claimed.requests
    per_request = np.searchsorted(requests.request, np.arange(count + 1))
    columns: ClaimColumns = {
        "requests": partial(b"".join, [one.bytes for one in claimed.ids]),
        "purposes": partial(_packed, requests.purposes, "<i8"),
        "ordinals": partial(_packed, requests.ordinal, "<u8"),
        "ordinal_offsets": partial(_packed, per_request, "<u8"),
    }
    bodies: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    listed = _all_leaves(trees) if whole is None else _claimed_leaves(whole, trees, count)
    for tree, (indices, offsets) in zip(trees, listed, strict=True):
        columns[f"indices/{tree.number}"] = indices
        columns[f"offsets/{tree.number}"] = partial(_packed, offsets, "<u8")
        packed = indices()
        for one, (lo, hi) in enumerate(pairwise(offsets.tolist())):
            if hi > lo:
                digest = hashlib.sha256(packed[lo * 4 : hi * 4]).hexdigest()
                bodies[one].append({"tree": tree.number, "leaves": hi - lo, "indices": digest})
    images = np.diff(per_request).tolist()
    retained = ({},) if whole is None else whole.retained
    return columns, [
        {
            "request": str(request_id),
            "images": images[one],
            "trees": bodies[one],
            "retained": {_names(mask, purposes): number for mask, number in retained[one].items()},
            "erased_earlier": claimed.erased_earlier,
        }
        for one, request_id in enumerate(claimed.ids)
    ]


def _packed(numbers: I64, as_type: str) -> bytes:
    return numbers.astype(as_type).tobytes()


def _all_leaves(trees: Sequence[TreeBuilder]) -> Iterator[tuple[Callable[[], bytes], I64]]:
    """Of each tree, the packed indices of the leaves that the only request claims, and where they begin and end: all.
    Counted whenever they are asked for: there may be millions."""
    for tree in trees:
        yield partial(_count_to, tree.leaves), np.array([0, tree.leaves])


def _count_to(leaves: int) -> bytes:
    return np.arange(leaves, dtype="<u4").tobytes()


def _claimed_leaves(
    whole: sweeps.Claims, trees: Sequence[TreeBuilder], count: int
) -> Iterator[tuple[Callable[[], bytes], I64]]:
    """Of each tree, the packed indices of the claimed leaves, by request, and where each request's begin (count + 1)."""
    owner = np.repeat(np.arange(count), np.diff(whole.leaf_offset))
    # Positions among all artifacts become positions among those in scope, laid end to end by tree.
    flat = whole.leaf
    if not whole.in_scope.all() and len(flat):
        flat = (np.cumsum(whole.in_scope) - 1)[flat]
    base = 0
    for tree in trees:
        mine = (flat >= base) & (flat < base + tree.leaves)
        packed = (flat[mine] - base).astype("<u4").tobytes()
        yield partial(bytes, packed), np.searchsorted(owner[mine], np.arange(count + 1))
        base += tree.leaves


def _names(mask: int, purposes: Mapping[int, str]) -> str:
    return "+".join(sorted(name for bit, name in purposes.items() if mask >> bit & 1))
