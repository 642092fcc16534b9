"""The model registry as it is now: nodes, edges and bitmaps. Snapshots never change, so bitmaps are kept by root."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from pyroaring import BitMap64

from expunge.domain.taint import Edge, Lineage, Model
from expunge.domain.words import ModelStatus, Relation
from expunge.ports import Tx

GONE = frozenset({ModelStatus.REPLACED, ModelStatus.DESTROYED})


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's file is."""

    store: str
    unit: str
    locator: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A model's row. `linked`: whatever it names is registered."""

    number: int
    name: str
    purpose: int
    status: ModelStatus
    linked: bool
    digest: bytes
    weights: Weights | None
    metric_void: bool


@dataclass(frozen=True, slots=True)
class World:
    lineage: Lineage
    entries: Mapping[str, Entry]
    by_number: Mapping[int, Entry]
    snapshots: Mapping[int, BitMap64]
    roots: Mapping[int, bytes]

    def descendants(self, names: Iterable[str]) -> list[str]:
        """`names` and all that inherits from them, parents first."""
        found = {self.lineage.position[name] for name in names}
        for at, node in enumerate(self.lineage.nodes):
            if not found.isdisjoint(node.parents):
                found.add(at)
        return [self.lineage.nodes[at].model.name for at in sorted(found)]

    def ordered(self, numbers: Iterable[int]) -> list[int]:
        """Model numbers, parents first."""
        return sorted(set(numbers), key=lambda number: self.lineage.position[self.by_number[number].name])

    def training_roots(self, name: str) -> tuple[str, ...]:
        """Roots (hex) of every snapshot in the model's ancestry, sorted."""
        numbers = {number for at in self.lineage.ancestry(name) for number in self.lineage.nodes[at].model.snapshots}
        return tuple(sorted(self.roots[number].hex() for number in numbers))


class Bitmaps:
    """Reads the registry; keeps bitmaps between batches."""

    def __init__(self) -> None:
        self._by_root: dict[bytes, BitMap64] = {}

    async def world(self, tx: Tx) -> World:
        roots = {number: bytes(root) for number, root in await tx.fetch("retrain_snapshots")}
        missing = sorted(set(roots.values()) - self._by_root.keys())
        if missing:
            for root, bitmap in await tx.fetch("retrain_bitmaps", roots=missing):
                self._by_root[bytes(root)] = BitMap64.deserialize(bitmap)
        snapshots = {number: self._by_root[root] for number, root in roots.items()}
        entries: dict[str, Entry] = {}
        trained: dict[int, tuple[tuple[int, ...], bool]] = {}
        for row in await tx.fetch("retrain_models"):
            number, name, purpose, status, linked, known, numbers, digest, store, unit, locator, void = row
            weights = Weights(store, unit, locator) if store is not None else None
            entries[name] = Entry(number, name, purpose, ModelStatus(status), linked, bytes(digest), weights, void)
            trained[number] = (tuple(numbers), known)
        by_number = {entry.number: entry for entry in entries.values()}
        parents: dict[int, list[Edge]] = {}
        for child, parent, relation in await tx.fetch("retrain_edges"):
            parents.setdefault(child, []).append(Edge(by_number[parent].name, Relation(relation)))
        lineage = Lineage(
            Model(
                one.name,
                one.purpose,
                trained[one.number][0],
                tuple(parents.get(one.number, ())),
                trained[one.number][1],
            )
            for one in entries.values()
        )
        return World(lineage, entries, by_number, snapshots, roots)


async def exclusions(tx: Tx, purposes: Iterable[int]) -> dict[UUID, dict[int, BitMap64]]:
    """Withdrawn images by sweep and purpose."""
    found: dict[UUID, dict[int, BitMap64]] = {}
    for sweep, purpose, bitmap in await tx.fetch("retrain_exclusions", purposes=sorted(set(purposes))):
        found.setdefault(sweep, {})[purpose] = BitMap64.deserialize(bitmap)
    return found
