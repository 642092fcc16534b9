"""Which models a withdrawal touches, why, and what may be done about each.

One image taints ("developed in whole or in part"), counts are for people to weigh. Membership is a Roaring bitmap per
snapshot; the rest is one walk over the models, parents before children. Pure: bitmaps and edges in, findings out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from expunge.domain.errors import Rejected
from expunge.domain.words import Relation, Remedy

Snapshots = Mapping[int, BitMap64]
"""Image ordinals by snapshot number."""
Scopes = Mapping[int, BitMap64]
"""Withdrawn image ordinals by the bit of the purpose that they were withdrawn from."""


_SMALL: Final = 512
"""Scopes up to this many images are handled as bits of one int: a person's query is a few hundred microseconds."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What a model came from."""

    parent: str
    relation: Relation


@dataclass(frozen=True, slots=True)
class Model:
    """A node. `known`: false where anything that went into it is not on record; such a model is never clean."""

    name: str
    purpose: int
    snapshots: tuple[int, ...]
    parents: tuple[Edge, ...] = ()
    known: bool = True


class Taint(NamedTuple):  # made for every model of a registry at each request: half the time of a frozen dataclass
    """`images` of the scope are in the model's transitive training set, `direct` of them in its own snapshots. `path`:
    from the model to the nearest one trained on such images."""

    images: int
    direct: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Affected:
    """`tainted`: by model, parents first. `void`: models that were only evaluated on tainted ground, with the images;
    their metrics are void, their weights are not tainted."""

    tainted: dict[str, Taint]
    void: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Node:
    model: Model
    parents: tuple[int, ...]
    evaluated: tuple[int, ...]
    own: tuple[tuple[int, int], ...]
    """(snapshot, purpose) of each snapshot: what `affected` looks up."""


class Lineage:
    """All models, parents before children. Raises `Rejected`: `unknown-parent`, `cycle`."""

    def __init__(self, models: Iterable[Model]) -> None:
        by_name = {model.name: model for model in models}
        if any(edge.parent not in by_name for model in by_name.values() for edge in model.parents):
            raise Rejected("unknown-parent", "expected every parent among the models")
        self.position = {name: at for at, name in enumerate(_sorted(by_name))}
        self.nodes = tuple(self._node(by_name[name]) for name in self.position)
        self.users: dict[tuple[int, int], list[int]] = {}
        """Positions of the models that are trained on a snapshot, by (snapshot, purpose)."""
        for at, node in enumerate(self.nodes):
            for pair in node.own:
                self.users.setdefault(pair, []).append(at)
        self.snapshots = frozenset(number for number, _ in self.users)
        self.walk = [(node.model.name, node.parents, node.evaluated) for node in self.nodes]
        known: list[bool] = []
        for node in self.nodes:
            known.append(node.model.known and all(known[parent] for parent in node.parents))
        self._known = known

    def _node(self, model: Model) -> _Node:
        places = [(self.position[edge.parent], edge.relation) for edge in model.parents]
        return _Node(
            model,
            tuple(sorted({at for at, relation in places if relation is not Relation.EVALUATED_ON})),
            tuple(sorted({at for at, relation in places if relation is Relation.EVALUATED_ON})),
            tuple((number, model.purpose) for number in model.snapshots),
        )

    def known(self, name: str) -> bool:
        """Whether the whole of what went into the model is on record."""
        return self._known[self.position[name]]

    def ancestry(self, name: str) -> set[int]:
        """Positions of the model and of all it inherits from."""
        found: set[int] = set()
        pending = [self.position[name]]
        while pending:
            at = pending.pop()
            if at not in found:
                found.add(at)
                pending += self.nodes[at].parents
        return found

    def training_set(self, name: str, snapshots: Snapshots) -> BitMap64:
        """Every image in the model's snapshots or in those of what it inherits from."""
        numbers = {number for at in self.ancestry(name) for number in self.nodes[at].model.snapshots}
        return BitMap64().union(*(snapshots[number] for number in numbers))


def _sorted(by_name: Mapping[str, Model]) -> list[str]:
    """Names, parents first, stable."""
    waiting = {name: len({edge.parent for edge in model.parents}) for name, model in by_name.items()}
    children: dict[str, list[str]] = {name: [] for name in by_name}
    for name, model in by_name.items():
        for parent in {edge.parent for edge in model.parents}:
            children[parent].append(name)
    order = [name for name, count in waiting.items() if not count]
    for name in order:  # grows while it is walked
        for child in children[name]:
            waiting[child] -= 1
            if not waiting[child]:
                order.append(child)
    if len(order) != len(by_name):
        raise Rejected("cycle", "expected models to form no cycle")
    return order


def affected(lineage: Lineage, snapshots: Snapshots, scopes: Scopes) -> Affected:
    """What withdrawing `scopes` does to every model.

    A snapshot's images count for a model by the model's own purpose; what a parent has, its children have, whatever
    theirs. A set of images is an int (bit per image) in small scopes and a bitmap in large ones: same operators.
    """
    hits, count = _hits(lineage, snapshots, scopes)
    own: list[Any] = [None] * len(lineage.walk)
    for pair, hit in hits.items():
        for at in lineage.users[pair]:
            own[at] = hit if own[at] is None else own[at] | hit
    tainted: dict[str, Taint] = {}
    void: dict[str, int] = {}
    sets: list[Any] = []
    paths: list[tuple[str, ...]] = []
    made = tuple.__new__  # half the time of what a NamedTuple makes of itself
    for (name, parents, evaluated), mine in zip(lineage.walk, own, strict=True):
        total: Any = mine
        nearest: tuple[str, ...] = ()
        for parent in parents:
            if (above := sets[parent]) is not None:
                total = above if total is None or total is above else total | above
                if not nearest or len(paths[parent]) < len(nearest):
                    nearest = paths[parent]
        path = (name,) if mine is not None else (name, *nearest)
        sets.append(total)
        paths.append(path)
        if total is not None:
            tainted[name] = made(Taint, (count(total), 0 if mine is None else count(mine), path))
        elif evaluated and (ground := [sets[parent] for parent in evaluated if sets[parent] is not None]):
            void[name] = count(_union(ground[0], ground[1:]))
    return Affected(tainted, void)


def _union(total: Any, others: Iterable[Any]) -> Any:  # noqa: ANN401 - ints or bitmaps, see `affected`
    for one in others:
        if one is not total:
            total = total | one
    return total


def _hits(
    lineage: Lineage, snapshots: Snapshots, scopes: Scopes
) -> tuple[dict[tuple[int, int], Any], Callable[[Any], int]]:
    """Per (snapshot, purpose) in use: which images of the scope it has, if any; and how to count such sets."""
    union = BitMap64().union(*scopes.values())
    if len(union) > _SMALL:
        return _large_hits(lineage, snapshots, scopes), len
    bits = [(image, 1 << at) for at, image in enumerate(union)]
    place = dict(bits)
    masks = {purpose: sum(map(place.__getitem__, scope)) for purpose, scope in scopes.items()}
    inside: dict[int, int] = {}
    for number in lineage.snapshots:
        members, found = snapshots[number], 0
        for image, bit in bits:
            if image in members:
                found |= bit
        if found:
            inside[number] = found
    hits = {}
    for pair in lineage.users:
        number, purpose = pair
        if number in inside and purpose in masks and (hit := inside[number] & masks[purpose]):
            hits[pair] = hit
    return hits, int.bit_count


def _large_hits(lineage: Lineage, snapshots: Snapshots, scopes: Scopes) -> dict[tuple[int, int], BitMap64]:
    found: dict[tuple[int, int], BitMap64] = {}
    known: dict[tuple[int, int], BitMap64] = {}  # purposes mostly share one scope
    for number, purpose in lineage.users:
        if scope := scopes.get(purpose):
            key = (number, id(scope))
            if key not in known:
                known[key] = snapshots[number] & scope
            if known[key]:
                found[number, purpose] = known[key]
    return found


@dataclass(frozen=True, slots=True)
class Claims:
    """Who withdrew what in a sweep, in columns: request `i` withdrew purposes `masks[i]` (-1: all) from the images
    `ordinals[offsets[i]:offsets[i + 1]]`."""

    masks: NDArray[np.int64]
    ordinals: NDArray[np.uint64]
    offsets: NDArray[np.uint64]

    def without(self, leaves: Collection[int]) -> Claims:
        """The same with nothing claimed by these requests; the others keep their leaf numbers."""
        masks = self.masks.copy()
        masks[list(leaves)] = 0
        return Claims(masks, self.ordinals, self.offsets)

    def scopes(self, purposes: Iterable[int]) -> dict[int, BitMap64]:
        """Withdrawn images by purpose. Purposes with the same claimants share one bitmap."""
        shared: dict[bytes, BitMap64] = {}
        scopes: dict[int, BitMap64] = {}
        for purpose in purposes:
            claimants = self._claimants(purpose)
            key = claimants.tobytes()
            if key not in shared:
                shared[key] = BitMap64(self.ordinals[self._spread(claimants)])
            if shared[key]:
                scopes[purpose] = shared[key]
        return scopes

    def _claimants(self, purpose: int) -> NDArray[np.bool_]:
        touched: NDArray[np.bool_] = (self.masks & np.int64(1 << purpose)) != 0
        return touched

    def _spread(self, claimants: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.repeat(claimants, self._lengths())

    def _lengths(self) -> NDArray[np.int64]:
        ends = self.offsets.astype(np.int64)
        return ends[1:] - ends[:-1]

    def owners(self, purpose: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Claimed ordinals ascending, and the request of each (an ordinal may have several)."""
        claimed = self._spread(self._claimants(purpose))
        owner = np.repeat(np.arange(len(self.masks)), self._lengths())[claimed]
        ordinals = self.ordinals[claimed]
        order = np.argsort(ordinals, kind="stable")
        return ordinals[order], owner[order]


def claimants(lineage: Lineage, snapshots: Snapshots, claims: Claims, found: Affected) -> dict[str, BitMap64]:
    """By tainted model: the requests (leaf numbers) that taint it."""
    direct: dict[tuple[int, int], BitMap64] = {}
    leaves: dict[str, BitMap64] = {}
    owners: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = {}
    for name, taint in found.tainted.items():
        node = lineage.nodes[lineage.position[name]]
        purpose = node.model.purpose
        parts: list[BitMap64] = []
        if taint.direct:
            if purpose not in owners:
                owners[purpose] = claims.owners(purpose)
            for number in node.model.snapshots:
                if (number, purpose) not in direct:
                    direct[number, purpose] = _leaves(*owners[purpose], snapshots[number])
                parts.append(direct[number, purpose])
        parts += [leaves[above] for parent in node.parents if (above := lineage.nodes[parent].model.name) in leaves]
        leaves[name] = BitMap64().union(*parts)
    return leaves


def _leaves(ordinals: NDArray[np.uint64], owner: NDArray[np.int64], inside: BitMap64) -> BitMap64:
    if len(owner) and (owner == owner[0]).all():  # an order: one claimant, perhaps millions of images
        return BitMap64() if inside.isdisjoint(BitMap64(ordinals)) else BitMap64([int(owner[0])])
    hits = np.frombuffer((inside & BitMap64(ordinals)).to_array(), dtype=np.uint64)
    claimed = np.zeros(len(ordinals), dtype=np.bool_)
    low, high = np.searchsorted(ordinals, hits, "left"), np.searchsorted(ordinals, hits, "right")
    widest = int((high - low).max(initial=0))
    for step in range(widest):  # people share few photos
        at = low + step
        claimed[at[at < high]] = True
    return BitMap64(np.unique(owner[claimed]).astype(np.uint64))


def remedy(lineage: Lineage, found: Affected, name: str, ordered: Remedy | None) -> Remedy:
    """What to do about a tainted model: what an order says; else what costs least and is still whole.

    1. a merge of which only some members are tainted: drop those
    2. fine-tuned on tainted images, but from clean known models only: train again from there
    3. else train again
    """
    if ordered is not None:
        return ordered
    node = lineage.nodes[lineage.position[name]]
    direct = found.tainted[name].direct
    above = {edge.parent: edge.relation for edge in node.model.parents if edge.relation is not Relation.EVALUATED_ON}
    clean = {parent for parent in above if parent not in found.tainted and lineage.known(parent)}
    if not direct and clean and all(relation is Relation.MERGED_FROM for relation in above.values()):
        return Remedy.DROP
    if direct and clean and clean == set(above):
        return Remedy.RETRAIN_FROM_ANCESTOR
    return Remedy.RETRAIN


def families(lineage: Lineage, names: Collection[str], limit: int) -> list[tuple[str, ...]]:
    """The models of `names` in groups joined by inheritance, each parents first. Groups above `limit` are cut: what is
    cut off comes in a later group."""
    group = {name: name for name in names}

    def top(name: str) -> str:
        while group[name] != name:
            name = group[name] = group[group[name]]
        return name

    ordered = sorted(group, key=lineage.position.__getitem__)
    for name in ordered:
        for parent in lineage.nodes[lineage.position[name]].parents:
            if (above := lineage.nodes[parent].model.name) in group:
                group[top(name)] = top(above)
    members: dict[str, list[str]] = {}
    for name in ordered:
        members.setdefault(top(name), []).append(name)
    return [cut for whole in members.values() for cut in _cut(whole, limit)]


def _cut(names: Sequence[str], limit: int) -> Iterable[tuple[str, ...]]:
    return (tuple(names[at : at + limit]) for at in range(0, len(names), limit))
