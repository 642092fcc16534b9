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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import Any, Final, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge import metrics, restored
from expunge.chunks.spool import Spool
from expunge.crashing import crash_point
from expunge.domain import certificate, merkle, scopefile, statement, suppression
from expunge.domain import sweep as sweeps
from expunge.domain.leaf import LEAF_BYTES, derive_key, nonces, pack_leaves
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.policy import Policy
from expunge.domain.request import ByList, ByPeriod, BySource, BySuppressed, OrderIssued, parse_request
from expunge.domain.statement import PAYLOAD_TYPE
from expunge.domain.sweep import ALL_PURPOSES, I64
from expunge.domain.words import Kind
from expunge.ports import Clock, Journal, KeyStore, Ledger, Row, SealedStore, Signer, Tx
from expunge.record import log

PEOPLE: Final = "people"
ORDER: Final = "order"

PAGE_LEAVES: Final = 64 * CHUNK_LEAVES
"""Artifacts fetched together: whole chunks."""

SWEEPS_UNDER_WAY: Final = 2
"""People's sweeps that run at once while requests are too few to fill another: more would cost more, and end no sooner."""

STUCK_SECONDS: Final = 5.0
"""A sweep that has not moved for this long holds up nobody: its store may be down."""


@dataclass(frozen=True, slots=True)
class Page:
    """A run of one tree's artifacts in physical order: `PAGE_LEAVES` of them but for the tree's last page."""

    kind: str
    store_no: int
    ids: NDArray[Any]
    ordinal: I64
    unit: I64
    purposes: I64
    digests: bytes
    locators: list[str]

    @classmethod
    def of_row(cls, row: Row) -> Page:
        """From a row of `plan_artifacts` or `plan_page`."""
        kind, store_no, _page, ids, ordinals, units, purposes, digests, locators = row
        return cls(
            kind=kind,
            store_no=store_no,
            ids=np.frombuffer(ids, ">i8"),
            ordinal=np.frombuffer(ordinals, ">i8").astype(np.int64),
            unit=np.frombuffer(units, ">i4").astype(np.int64),
            purposes=np.frombuffer(purposes, ">i8").astype(np.int64),
            digests=digests,
            locators=locators,
        )

    @classmethod
    def joined(cls, pages: Sequence[Page]) -> Page:
        """Pages of one tree, laid end to end."""
        first = pages[0]
        if len(pages) == 1:
            return first
        return cls(
            kind=first.kind,
            store_no=first.store_no,
            ids=np.concatenate([page.ids for page in pages], dtype=">i8"),
            ordinal=np.concatenate([page.ordinal for page in pages]),
            unit=np.concatenate([page.unit for page in pages]),
            purposes=np.concatenate([page.purposes for page in pages]),
            digests=b"".join(page.digests for page in pages),
            locators=[locator for page in pages for locator in page.locators],
        )

    def only(self, keep: NDArray[np.bool_]) -> Page:
        """The artifacts where `keep`."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep)
        return Page(
            kind=self.kind,
            store_no=self.store_no,
            ids=self.ids[rows],
            ordinal=self.ordinal[rows],
            unit=self.unit[rows],
            purposes=self.purposes[rows],
            digests=np.frombuffer(self.digests, np.uint8).reshape(-1, 32)[rows].tobytes(),
            locators=[self.locators[row] for row in rows.tolist()],
        )


@dataclass(slots=True)
class TreeBuilder:
    """One tree while its pages come in: chunk roots, and the sections of the scope file, which go to `spool`."""

    number: int
    kind: Kind
    store: str
    nonce_key: bytes
    spool: Spool
    leaves: int = 0
    chunk_roots: list[bytes] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ordinals: list[I64] = field(default_factory=list)
    ids: list[NDArray[Any]] = field(default_factory=list)

    @property
    def root(self) -> bytes:
        """The tree's root."""
        return merkle.root_from_chunk_roots(self.leaves, self.chunk_roots)

    def add(self, page: Page) -> None:
        """Append a page: hash its leaves and cut its chunk sections."""
        base, count = self.leaves, len(page.ids)
        ids = page.ids.view(np.uint8).reshape(-1, 8)[:, 2:].tobytes()
        leaves = pack_leaves(nonces(self.nonce_key, count, base), ids, page.digests)
        hashes = merkle.leaf_hashes(leaves, LEAF_BYTES)
        unit = self._unit_indices(page.unit, base)
        ordinals = page.ordinal.astype("<u8").tobytes()
        for at in range(0, count, CHUNK_LEAVES):
            end = min(at + CHUNK_LEAVES, count)
            columns = {
                "artifact_id": ids[at * 6 : end * 6],
                "digest": page.digests[at * 32 : end * 32],
                "ordinal": ordinals[at * 8 : end * 8],
                "unit": unit[at * 4 : end * 4],
                "locator": scopefile.pack_strings(page.locators[at:end]),
                "hashes": hashes[at * 32 : end * 32],
            }
            name = f"{self.number}/{(base + at) // CHUNK_LEAVES}"
            self.spool.put(name, scopefile.pack_columns(columns))
            self.chunk_roots.append(merkle.root(columns["hashes"]))
        self.leaves += count
        self.ordinals.append(page.ordinal)
        self.ids.append(page.ids)

    def _unit_indices(self, unit: I64, base: int) -> bytes:
        """Each leaf's index in this tree's unit table. Units come in ascending runs, so a new one starts where they change."""
        starts = sweeps.unit_starts(unit)
        indices = np.zeros(len(unit), "<u4")
        ends = [*starts[1:].tolist(), len(unit)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            number = int(unit[start])
            if not self.units or self.units[-1] != number:
                self.units.append(number)
                self.starts.append(base + start)
            indices[start:end] = len(self.units) - 1
        return indices.tobytes()


@dataclass(slots=True)
class Forest:
    """All trees of a sweep under way, in the order of their first pages, and what is suppressed of their photos."""

    key: bytes
    stores: Mapping[int, str]
    spool: Spool
    trees: dict[tuple[str, int], TreeBuilder] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    photos: list[I64] = field(default_factory=lambda: [np.zeros(0, np.int64)])

    @property
    def leaves(self) -> int:
        """Leaves so far."""
        return sum(tree.leaves for tree in self.trees.values())

    def add(self, page: Page) -> None:
        """Append a page to its tree."""
        if not len(page.ids):
            return
        place = (page.kind, page.store_no)
        if place not in self.trees:
            number = len(self.trees)
            nonce_key = derive_key(self.key, "nonces", number.to_bytes(2, "big"))
            self.trees[place] = TreeBuilder(number, Kind(page.kind), self.stores[page.store_no], nonce_key, self.spool)
        self.trees[place].add(page)
        if page.kind == Kind.IMAGE:
            self.digests.append(page.digests)
            self.photos.append(page.ordinal)


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
    """Seals sweeps. `rewrites_unit`: stores whose erase rewrites a whole unit, so that runs should not split one."""

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

    async def waiting(self) -> Mapping[str, tuple[int, datetime]]:
        """Accepted requests by class: how many (no more than fill a sweep), and since when the oldest waits."""
        rows = await self._ledger.fetch("plan_waiting", limit=self._policy.sweep_requests)
        return {row[0]: (row[1], row[2]) for row in rows}

    async def crowded(self, waiting: int) -> bool:
        """Whether that many people's requests had better gather: they fill no sweep, and enough sweeps are moving."""
        if waiting >= self._policy.sweep_requests:
            return False
        ((under_way,),) = await self._ledger.fetch("plan_people_under_way", stuck=STUCK_SECONDS)
        return int(under_way) >= SWEEPS_UNDER_WAY

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
            return await self._seal(tx, claimed, _artifacts_of_order(tx, ordinal))

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
        return np.frombuffer(packed or b"", ">i8").astype(np.int64), source

    async def _suppressed_images(self, tx: Tx) -> I64:
        records, _rest = await asyncio.to_thread(lambda: suppression.decode(self._journal.read()))
        return await restored.images(tx, self._journal.key, restored.Standing.of(records))

    async def _seal(self, tx: Tx, claimed: Claimed, pages: AsyncIterator[Page]) -> UUID:
        at = statement.instant(self._clock())
        sweep_id: UUID = self._new_id()
        bucket = at.date()
        key = derive_key(self._keys.bucket(bucket, create=True), "sweep", sweep_id.bytes)
        stores: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_stores")}
        with closing(Spool()) as spool:
            forest = Forest(key, stores, spool)
            whole = await self._plant(tx, claimed, forest, pages)
            return await self._seal_forest(tx, claimed, forest, whole, sweep_id, bucket, at)

    async def _plant(self, tx: Tx, claimed: Claimed, forest: Forest, pages: AsyncIterator[Page]) -> sweeps.Claims:
        """Grow the trees; who claims what. Where everything is claimed, page by page; else all have to be seen first."""
        if claimed.everything:
            async for page in pages:
                await asyncio.to_thread(forest.add, page)
            return sweeps.claims_of_one(forest.leaves)
        listed = [page async for page in pages]
        trees = [Page.joined(list(some)) for _, some in groupby(listed, key=attrgetter("kind", "store_no"))]
        whole = await asyncio.to_thread(_decide, claimed.requests, trees)
        borders = np.cumsum([len(page.ids) for page in trees[:-1]])
        await self._retain(tx, trees, np.split(whole.remaining, borders))
        for page, keep in zip(trees, np.split(whole.in_scope, borders), strict=bool(trees)):
            await asyncio.to_thread(forest.add, page.only(keep))
        return whole

    async def _seal_forest(
        self, tx: Tx, claimed: Claimed, forest: Forest, whole: sweeps.Claims, sweep_id: UUID, bucket: date, at: datetime
    ) -> UUID:  # fmt: skip
        key = forest.key
        names: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_purposes")}
        built = await asyncio.to_thread(_build, claimed, whole, forest, names)
        wanted = sorted({unit for tree in built.trees for unit in tree.units})
        units: dict[int, str] = {row[0]: row[1] for row in await tx.fetch("plan_units", units=wanted)}
        overlaps = await self._overlaps(tx, built)
        held = await self._held(tx, built, at)
        header = {
            "sweep": str(sweep_id),
            "bucket": bucket.isoformat(),
            "trees": [{"kind": tree.kind, "store": tree.store, "leaves": tree.leaves} for tree in built.trees],
        }
        sections = chain(forest.spool, built.sections(units, overlaps))
        file_digest = await asyncio.to_thread(
            lambda: self._sealed.write(f"{sweep_id}.scope", scopefile.blocks(header, sections, key))
        )
        crash_point("plan.sealed")
        await self._suppress(tx, built, claimed.sweep_class)
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
                ids=np.concatenate([page.ids[which].astype(np.int64) for page, _, which in parts]),
                remaining=np.concatenate([left[which] for _, left, which in parts]),
            )

    async def _overlaps(self, tx: Tx, built: Built) -> list[bytes]:
        """Per tree, the leaves that an earlier sweep, now being carried out, holds too: packed columns."""
        found: list[list[tuple[NDArray[Any], bytes, NDArray[Any]]]] = [[] for _ in built.trees]
        images = BitMap64(built.images)
        for other_id, bucket, touched in await tx.fetch("plan_overlapping"):
            if not images.intersect(BitMap64.deserialize(touched)):
                continue
            key = derive_key(self._keys.bucket(bucket), "sweep", other_id.bytes)
            other = scopefile.ScopeFile.open(self._sealed.open(f"{other_id}.scope"), key)
            for tree, mine in enumerate(built.trees):
                index, theirs = _same_artifacts(mine, other)
                if len(index):
                    found[tree].append((index, other_id.bytes, theirs))
        return [
            scopefile.pack_columns(
                {
                    "leaf": b"".join(index.astype("<u4").tobytes() for index, _, _ in many),
                    "sweep": b"".join(other * len(index) for index, other, _ in many),
                    "index": b"".join(theirs.astype("<u4").tobytes() for _, _, theirs in many),
                }
            )
            for many in found
        ]

    async def _held(self, tx: Tx, built: Built, at: datetime) -> dict[int, NDArray[Any]]:
        """Leaves under a hold: {tree: indices}."""
        ((packed,),) = await tx.fetch("plan_held", at=at)
        held = np.frombuffer(packed or b"", ">i8").astype(np.int64)
        ranges = await tx.fetch("plan_held_ranges", at=at)
        found = {}
        for tree in built.trees:
            ordinal = np.concatenate(tree.ordinals)
            mask = np.isin(ordinal, held)
            for first, end in ranges:
                mask |= (ordinal >= first) & (ordinal < end)
            if mask.any():
                found[tree.number] = np.flatnonzero(mask)
        return found

    async def _suppress(self, tx: Tx, built: Built, sweep_class: str) -> None:
        """Remember the digests of photos that will be gone, so that none is uploaded again."""
        if not len(built.photos):
            return
        if sweep_class == ORDER:
            runs = sweeps.runs_of(built.photos)
            first, end = [run[0] for run in runs], [run[0] + run[1] for run in runs]
            ((known,),) = await tx.fetch("plan_image_digest_ranges", first=first, end=end)
        else:
            ((known,),) = await tx.fetch("plan_image_digests", ordinals=built.photos)
        # A photo's digest and that of its stored file may differ, and the file's need not be known.
        macs = await asyncio.to_thread(self._remember, built.image_digests + (known or b""))
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
            file_digest=bytes.fromhex(predicate.file), ordinals=BitMap64(built.images).serialize(),
            last_artifact=max((int(part.max()) for tree in built.trees for part in tree.ids if len(part)), default=0), at=at,
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
    claim_columns: dict[str, bytes]
    request_tree: merkle.Tree
    request_hashes: bytes
    images: I64
    photos: I64
    image_digests: bytes
    handles_root: bytes | None

    def sections(self, units: Mapping[int, str], overlaps: Sequence[bytes]) -> list[tuple[str, bytes]]:
        """The sections of the scope file beside the chunks."""
        found: list[tuple[str, bytes]] = []
        for tree, overlap in zip(self.trees, overlaps, strict=True):
            table = {
                "units": scopefile.pack_strings([units[unit] for unit in tree.units]),
                "first": np.array(tree.starts, "<u4").tobytes(),
            }
            roots = scopefile.pack_columns({"roots": b"".join(tree.chunk_roots)})
            found += [
                (f"{tree.number}/units", scopefile.pack_columns(table)),
                (f"{tree.number}/overlaps", overlap),
                (f"{tree.number}/roots", roots),
            ]
        bodies = scopefile.pack_strings([body.decode() for body in self.claim_bodies])
        found.append(("claims", scopefile.pack_columns(self.claim_columns)))
        found.append(("requests", scopefile.pack_columns({"bodies": bodies, "hashes": self.request_hashes})))
        return found


async def _artifacts(tx: Tx, ordinals: I64) -> AsyncIterator[Page]:
    """What people's images have, all at once."""
    for row in await tx.fetch("plan_artifacts", ordinals=sweeps.distinct(ordinals), page=PAGE_LEAVES):
        yield Page.of_row(row)


async def _artifacts_of_order(tx: Tx, ordinals: I64) -> AsyncIterator[Page]:
    """What an order's images (ascending) have, one page at a time."""
    runs = sweeps.runs_of(ordinals)
    images = {"first": [first for first, _ in runs], "end": [first + count for first, count in runs]}
    await tx.execute("plan_sort_in_memory")
    await tx.execute("plan_pages_create")
    for kind, store_no in await tx.fetch("plan_places", **images):
        await tx.execute("plan_pages_fill", kind=kind, store_no=store_no, page=PAGE_LEAVES, **images)
    for kind, store_no, page in await tx.fetch("plan_pages"):
        for row in await tx.fetch("plan_page", kind=kind, store_no=store_no, page=page):
            yield Page.of_row(row)


def _decide(requests: sweeps.Requests, pages: Sequence[Page]) -> sweeps.Claims:
    nothing = np.zeros(0, np.int64)
    ordinal = np.concatenate([nothing, *(page.ordinal for page in pages)])
    purposes = np.concatenate([nothing, *(page.purposes for page in pages)])
    return sweeps.claims(requests, ordinal, purposes)


def _build(claimed: Claimed, whole: sweeps.Claims, forest: Forest, purposes: Mapping[int, str]) -> Built:
    key = forest.key
    built = list(forest.trees.values())
    columns, claims = _claims(claimed, whole, built, purposes)
    bodies = [certificate.body_bytes(certificate.Claim.model_validate(one)) for one in claims]
    drawn = nonces(derive_key(key, "requests"), len(claims))
    leaves = b"".join(certificate.leaf(drawn[at * 16 : at * 16 + 16], body) for at, body in enumerate(bodies))
    request_hashes = merkle.leaf_hashes(leaves, certificate.OPENING_BYTES)
    handles = None
    if claimed.sweep_class == ORDER:
        every = [part.astype(np.int64) for tree in built for part in tree.ids]
        ids = np.concatenate(every) if every else np.zeros(0, np.int64)
        handles = sweeps.handles_root(derive_key(key, "handles"), ids)
    return Built(
        trees=built,
        roots=[tree.root for tree in built],
        claims=claims,
        claim_bodies=bodies,
        claim_columns=columns,
        request_tree=merkle.Tree(request_hashes),
        request_hashes=request_hashes,
        images=sweeps.distinct(claimed.requests.ordinal),
        photos=sweeps.distinct(np.concatenate(forest.photos)),
        image_digests=b"".join(forest.digests),
        handles_root=handles,
    )


def _claims(
    claimed: Claimed, whole: sweeps.Claims, trees: Sequence[TreeBuilder], purposes: Mapping[int, str]
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:  # fmt: skip
    """The scope file's `claims` section, and each request's claim body."""
    count = len(claimed.ids)
    requests = claimed.requests
    per_request = np.searchsorted(requests.request, np.arange(count + 1))
    columns = {
        "requests": b"".join(one.bytes for one in claimed.ids),
        "purposes": requests.purposes.astype("<i8").tobytes(),
        "ordinals": requests.ordinal.astype("<u8").tobytes(),
        "ordinal_offsets": per_request.astype("<u8").tobytes(),
    }
    # Positions among all artifacts become positions among those in scope, laid end to end by tree.
    rank = np.cumsum(whole.in_scope) - 1
    flat = rank[whole.leaf] if len(whole.leaf) else whole.leaf
    owner = np.repeat(np.arange(count), np.diff(whole.leaf_offset))
    base = 0
    bodies: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for tree in trees:
        mine = (flat >= base) & (flat < base + tree.leaves)
        indices, owners = flat[mine] - base, owner[mine]
        offsets = np.searchsorted(owners, np.arange(count + 1))
        packed = indices.astype("<u4").tobytes()
        columns[f"indices/{tree.number}"] = packed
        columns[f"offsets/{tree.number}"] = offsets.astype("<u8").tobytes()
        bounds = offsets.tolist()
        for one, (lo, hi) in enumerate(pairwise(bounds)):
            if hi > lo:
                digest = hashlib.sha256(packed[lo * 4 : hi * 4]).hexdigest()
                bodies[one].append({"tree": tree.number, "leaves": hi - lo, "indices": digest})
        base += tree.leaves
    images = np.diff(per_request).tolist()
    return columns, [
        {
            "request": str(request_id),
            "images": images[one],
            "trees": bodies[one],
            "retained": {_names(mask, purposes): number for mask, number in whole.retained[one].items()},
            "erased_earlier": claimed.erased_earlier,
        }
        for one, request_id in enumerate(claimed.ids)
    ]


def _names(mask: int, purposes: Mapping[int, str]) -> str:
    return "+".join(sorted(name for bit, name in purposes.items() if mask >> bit & 1))


def _same_artifacts(mine: TreeBuilder, other: scopefile.ScopeFile) -> tuple[NDArray[Any], NDArray[Any]]:
    """Leaves of `mine` that the other sweep's tree of the same (kind, store) has too: indices here and there."""
    for number, described in enumerate(cast("list[dict[str, Any]]", other.header["trees"])):
        if (described["kind"], described["store"]) != (mine.kind, mine.store):
            continue
        parts = [
            sweeps.artifact_ids(scopefile.unpack_columns(other.section(f"{number}/{chunk}"))["artifact_id"])
            for chunk in range(-(-described["leaves"] // CHUNK_LEAVES))
        ]
        theirs = np.concatenate(parts)
        ours = np.concatenate([part.astype(np.int64) for part in mine.ids])
        _, here, there = np.intersect1d(ours, theirs, return_indices=True)
        order = np.argsort(here)
        return here[order], there[order]
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
