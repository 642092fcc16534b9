"""Taking images into the catalogue: offers are checked against suppression, staged, and settled set-wise.

One path for events and bulk files: `open` a load in a transaction, `stage` pages of offers, `settle`, then `record`
with the log indices of the batch roots. Refusals are per image or artifact; what is the same as what is there is a
no-op.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from expunge.domain import leaf, merkle, statement
from expunge.domain.errors import Rejected
from expunge.domain.leaf import LEAF_BYTES, NO_DIGEST
from expunge.domain.limits import ORDINAL_BLOCK
from expunge.domain.words import Kind
from expunge.ports import KeyStore, Signer, Tx
from expunge.record import NAMESPACE
from expunge.stages.register.suppressed import EVERYTHING, Digests, Suppressed

ROOT_LEAVES: Final = 1_000_000
"""Most artifacts under one batch root: bounds the memory of a bulk load (about 0.2 GB)."""
PURPOSES: Final = 62
"""Most purposes of one deployment: bits of a signed 64-bit mask."""

_IMAGE_COLUMNS: Final = (
    "image", "batch", "line", "adds", "source", "key", "subjects", "digest", "acquired_on", "refused",
)  # fmt: skip
_STAGING: Final = (
    "register_stage_images", "register_stage_artifacts", "register_stage_settled", "register_stage_leaves",
)  # fmt: skip
_INSERTS: Final = (
    "register_images", "register_subjects", "register_stores", "register_units", "register_artifacts",
)  # fmt: skip
_ARTIFACT_COLUMNS: Final = ("image", "kind", "store", "unit", "locator", "purposes", "digest")


class OfferedArtifact(NamedTuple):
    """`purposes`: names. `digest`: 32 bytes, zeros where none was taken."""

    kind: str
    store: str
    unit: str
    locator: str
    purposes: tuple[str, ...]
    digest: bytes = NO_DIGEST


class Offer(NamedTuple):
    """An image with its artifacts, or (`adds`) artifacts for an image that is registered; then `subjects`, `digest` and
    `acquired_on` are not looked at. `batch` counts the load's batches from 0; `line`: where it stands in a file."""

    batch: int
    source: str
    key: str
    subjects: tuple[str, ...]
    digest: bytes | None
    acquired_on: date | None
    artifacts: Sequence[OfferedArtifact]
    adds: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one batch. `codes`: images and artifacts refused, by reason."""

    batch_id: UUID
    images: int
    artifacts: int
    codes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """`taken`: per batch. `entries`: signed batch roots for the log (none when nothing came in)."""

    taken: list[Taken]
    entries: list[tuple[str, bytes]]


class Purposes:
    """Purpose names and their bits, read in this transaction; new ones are added as they are met."""

    def __init__(self, bits: dict[str, int]) -> None:
        self._bits = bits
        self._masks: dict[tuple[str, ...], int] = {}

    @classmethod
    async def read(cls, tx: Tx) -> Purposes:
        return cls({name: bit for name, bit in await tx.fetch("register_purposes")})  # noqa: C416 - rows are untyped

    async def add(self, tx: Tx, names: Iterable[str]) -> None:
        """Raises `Rejected("too-many-purposes")` when the mask is full."""
        fresh = sorted(set(names) - self._bits.keys())
        if not fresh:
            return
        await tx.execute("register_purposes_lock")
        self._bits |= dict(await tx.fetch("register_purposes"))
        fresh = [name for name in fresh if name not in self._bits]
        if len(self._bits) + len(fresh) > PURPOSES:
            raise Rejected("too-many-purposes", f"expected at most {PURPOSES} purposes in all")
        await tx.execute("register_purposes_add", names=fresh)
        self._bits |= dict(await tx.fetch("register_purposes"))

    def bit(self, name: str) -> int:
        return self._bits[name]

    def mask(self, names: tuple[str, ...]) -> int:
        if names not in self._masks:
            self._masks[names] = sum(1 << self._bits[name] for name in set(names))
        return self._masks[names]


class Registrar:
    """What loads share: the suppression cache, keys and the signer of batch roots (role `register`)."""

    def __init__(self, *, keys: KeyStore, signer: Signer, suppression_key: bytes) -> None:
        self._keys = keys
        self._signer = signer
        self._suppression_key = suppression_key
        self._digests = Digests()

    async def open(self, tx: Tx) -> Load:
        """Begin a load: take the suppression lock (shared) and make the staging tables."""
        await tx.execute("register_lock")
        suppressed = Suppressed(self._suppression_key, self._digests)
        await suppressed.open(tx)
        for query in _STAGING:
            await tx.execute(query)
        return Load(tx, suppressed, await Purposes.read(tx), self._keys, self._signer)


@dataclass(slots=True)
class Load:
    """One load in one transaction."""

    tx: Tx
    suppressed: Suppressed
    purposes: Purposes
    keys: KeyStore
    signer: Signer
    _images: int = 0
    _refused: dict[int, Counter[str]] = field(default_factory=dict)

    async def stage(self, offers: Sequence[Offer]) -> None:
        """Check a page of offers against suppression and stage it."""
        named = {purpose for offer in offers for artifact in offer.artifacts for purpose in artifact.purposes}
        await self.purposes.add(self.tx, named)
        judge = await self._judge(offers, named)
        images: list[tuple[object, ...]] = []
        artifacts: list[tuple[object, ...]] = []
        for number, offer in enumerate(offers, start=self._images):
            kept, refused = self._kept(offer, judge) if judge else (offer.artifacts, None)
            images.append(
                (
                    number, offer.batch, offer.line, offer.adds, offer.source, offer.key, sorted(offer.subjects),
                    offer.digest, offer.acquired_on, refused,
                )
            )  # fmt: skip
            artifacts += [
                (
                    number,
                    one.kind,
                    one.store,
                    one.unit,
                    one.locator,
                    self.purposes.mask(one.purposes),
                    _content(offer, one),
                )
                for one in kept
            ]
        self._images += len(offers)
        await self.tx.copy("staged_image", _IMAGE_COLUMNS, images)
        await self.tx.copy("staged_artifact", _ARTIFACT_COLUMNS, artifacts)

    async def _judge(self, offers: Sequence[Offer], purposes: set[str]) -> _Judge | None:
        if self.suppressed.empty:
            return None
        added = [offer for offer in offers if offer.adds]
        rows = await self.tx.fetch(
            "register_owners", sources=[one.source for one in added], keys=[one.key for one in added]
        )
        owners = {(source, key): (bytes(digest), tuple(subjects)) for source, key, digest, subjects in rows}
        subjects = {one for offer in offers for one in offer.subjects} | {
            one for _, listed in owners.values() for one in listed
        }
        digests = {offer.digest for offer in offers if offer.digest} | {digest for digest, _ in owners.values()}
        digests |= {one.digest for offer in offers for one in offer.artifacts} - {NO_DIGEST}
        found = await self.suppressed.subjects(self.tx, subjects, purposes)
        return _Judge(owners, found, self.suppressed.digests(digests, purposes))

    def _kept(self, offer: Offer, judge: _Judge) -> tuple[list[OfferedArtifact], str | None]:
        """The artifacts that keep a purpose, and why the image is refused if it is."""
        barred = judge.barred(offer)
        kept = []
        if EVERYTHING not in barred:
            for one in offer.artifacts:
                own = barred | judge.digests.get(one.digest, frozenset())
                purposes = () if EVERYTHING in own else tuple(name for name in one.purposes if name not in own)
                if purposes:
                    kept.append(one._replace(purposes=purposes))
        if not kept:
            return [], "suppressed"
        if lost := len(offer.artifacts) - len(kept):
            self._refused.setdefault(offer.batch, Counter())["suppressed"] += lost
        return kept, None

    async def settle(self, batch_ids: Sequence[UUID], at: datetime) -> Settled:
        """Settle all that was staged.

        1. find sources, repeats and what is known; refuse what cannot be taken
        2. give ordinals, insert images, people, artifacts
        3. sign a root per million artifacts
        """
        tx = self.tx
        await tx.execute("register_analyze_images")
        await tx.execute("register_settle")
        await tx.execute("register_analyze_artifacts")
        await tx.execute("register_conflicts")
        await tx.execute("register_conflicting_artifacts")
        await self._give_ordinals()
        await tx.execute("register_analyze_settled")
        for query in _INSERTS:
            await tx.execute(query)
        codes = {number: Counter(counts) for number, counts in self._refused.items()}
        for batch, code, count in await tx.fetch("register_refused"):
            codes.setdefault(batch, Counter())[code] += count
        taken = {batch: (images, artifacts) for batch, images, artifacts in await tx.fetch("register_taken")}
        return Settled(
            [
                Taken(batch_id, *taken.get(number, (0, 0)), dict(codes.get(number, {})))
                for number, batch_id in enumerate(batch_ids)
            ],
            await self._roots(batch_ids, at),
        )

    async def _give_ordinals(self) -> None:
        """Fill each source's open block, then take new ones. The source's row is locked meanwhile."""
        needed: dict[int, int] = dict(await self.tx.fetch("register_needed"))
        if not needed:
            return
        await self.tx.execute("register_lock_sources", sources=list(needed))
        free: dict[int, list[tuple[int, int]]] = {}
        for source, first, used in await self.tx.fetch("register_blocks", sources=list(needed)):
            free.setdefault(source, []).append((first, used))
        short = {
            source: -(-(count - sum(ORDINAL_BLOCK - used for _, used in free.get(source, ()))) // ORDINAL_BLOCK)
            for source, count in needed.items()
        }
        fresh = iter(await self.tx.fetch("register_new_blocks", count=sum(max(one, 0) for one in short.values())))
        for source, count in short.items():
            free.setdefault(source, []).extend((next(fresh)[0], 0) for _ in range(count))
        blocks: list[tuple[int, int, int]] = []
        spans: list[tuple[int, int, int, int]] = []
        for source, count in needed.items():
            rank = 0
            for first, used in free[source]:
                if (take := min(ORDINAL_BLOCK - used, count - rank)) > 0:
                    spans.append((source, rank, first + used, take))
                    blocks.append((first, source, used + take))
                    rank += take
        firsts, owners, used_now = zip(*blocks, strict=True)
        await self.tx.execute("register_use_blocks", firsts=list(firsts), sources=list(owners), used=list(used_now))
        sources, ranks, starts, counts = (list(column) for column in zip(*spans, strict=True))
        await self.tx.execute("register_number", sources=sources, ranks=ranks, firsts=starts, counts=counts)
        await self.tx.execute("register_number_rest")

    async def _roots(self, batch_ids: Sequence[UUID], at: datetime) -> list[tuple[str, bytes]]:
        entries: list[tuple[str, bytes]] = []
        whole = uuid5(NAMESPACE, "batch:" + ",".join(map(str, batch_ids)))
        bucket = await asyncio.to_thread(lambda: self.keys.bucket(at.date(), create=True))
        after = -1
        while True:
            ((count, last, ids, digests),) = await self.tx.fetch("register_leaves", after=after, limit=ROOT_LEAVES)
            if not count:
                return entries
            batch = uuid5(whole, str(len(entries)))
            root = await asyncio.to_thread(batch_root, bucket, batch, bytes(ids), bytes(digests))
            counts = await self.tx.fetch("register_counts", after=after, last=last)
            predicate = statement.RegisteredBatch(
                batch=str(batch),
                leaves=count,
                root=root.hex(),
                images=sum(images for *_, images in counts),
                counts=tuple(
                    statement.SourceCount(source=source, kind=Kind(kind), artifacts=artifacts)
                    for source, kind, artifacts, _ in counts
                ),
                at=statement.instant(at),
            )
            payload = statement.payload(predicate, {"batch-root": root.hex()})
            entries.append((predicate.type, self.signer.sign(payload, statement.PAYLOAD_TYPE)))
            after = last

    async def refused_lines(self, limit: int) -> list[tuple[int, str]]:
        """(line, reason) of refused images, first lines first. After `settle`."""
        return [(line, code) for line, code in await self.tx.fetch("register_refused_lines", limit=limit)]

    async def record(self, settled: Settled, indices: Sequence[int], at: datetime) -> None:
        """Note the batches as registered, under the log indices of their roots."""
        taken = settled.taken
        await self.tx.execute(
            "register_batches",
            ids=[one.batch_id for one in taken],
            images=[one.images for one in taken],
            artifacts=[one.artifacts for one in taken],
            refused=[sum(one.codes.values()) for one in taken],
            indices=[max(indices) if indices and one.artifacts else None for one in taken],
            at=at,
        )


@dataclass(frozen=True, slots=True)
class _Judge:
    """What is suppressed among one page's offers, by subject and by digest."""

    owners: dict[tuple[str, str], tuple[bytes, tuple[str, ...]]]
    subjects: dict[str, set[str]]
    digests: dict[bytes, set[str]]

    def barred(self, offer: Offer) -> set[str]:
        """The purposes that this offer's image may not be kept for."""
        digest, subjects = offer.digest, offer.subjects
        if offer.adds:
            digest, subjects = self.owners.get((offer.source, offer.key), (None, ()))
        found = set(self.digests.get(digest, ())) if digest else set()
        return found.union(*(self.subjects.get(subject, ()) for subject in subjects))


def _content(offer: Offer, artifact: OfferedArtifact) -> bytes:
    """An artifact's digest. A raw image's content is the photo, so its owner can match a receipt with their own copy."""
    if artifact.kind == Kind.IMAGE and artifact.digest == NO_DIGEST and offer.digest:
        return offer.digest
    return artifact.digest


def batch_root(bucket: bytes, batch: UUID, artifact_ids: bytes, digests: bytes) -> bytes:
    """The root over a batch's blinded leaves, in order of artifact id. `artifact_ids`: 6 bytes each, big-endian."""
    key = leaf.derive_key(leaf.derive_key(bucket, "batch", batch.bytes), "nonces")
    leaves = leaf.pack_leaves(leaf.nonces(key, len(digests) // leaf.DIGEST_BYTES), artifact_ids, digests)
    return merkle.root(merkle.leaf_hashes(leaves, LEAF_BYTES))
