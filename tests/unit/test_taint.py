"""Taint against a naive model of sets, and its corner cases."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from expunge.domain import taint
from expunge.domain.errors import Rejected
from expunge.domain.taint import Claims, Edge, Lineage, Model, affected, claimants, families, remedy
from expunge.domain.words import Relation, Remedy

FINE_TUNED = Relation.FINE_TUNED_FROM
EVALUATED = Relation.EVALUATED_ON
MERGED = Relation.MERGED_FROM


def claims_of(*claims: tuple[int, list[int]]) -> Claims:
    offsets = np.cumsum([0, *(len(ordinals) for _, ordinals in claims)])
    return Claims(
        np.array([mask for mask, _ in claims], dtype=np.int64),
        np.array([ordinal for _, ordinals in claims for ordinal in ordinals], dtype=np.uint64),
        offsets.astype(np.uint64),
    )


class Naive:
    """The same by plain sets and recursion."""

    def __init__(
        self, models: dict[str, Model], snapshots: dict[int, set[int]], claims: list[tuple[int, list[int]]]
    ) -> None:
        self.models, self.snapshots, self.claims = models, snapshots, claims

    def direct(self, name: str) -> set[tuple[int, int]]:
        """(leaf, image) pairs."""
        model = self.models[name]
        return {
            (leaf, image)
            for leaf, (mask, images) in enumerate(self.claims)
            if mask >> model.purpose & 1
            for image in images
            if any(image in self.snapshots[number] for number in model.snapshots)
        }

    def total(self, name: str) -> set[tuple[int, int]]:
        found = self.direct(name)
        for edge in self.models[name].parents:
            if edge.relation is not EVALUATED:
                found |= self.total(edge.parent)
        return found


@st.composite
def registries(draw: st.DrawFn) -> tuple[dict[str, Model], dict[int, set[int]], list[tuple[int, list[int]]]]:
    wide = draw(st.booleans())
    images = st.integers(0, 200_000 if wide else 40)
    snapshots = {number: draw(st.sets(images, max_size=30)) for number in range(draw(st.integers(1, 4)))}
    models: dict[str, Model] = {}
    for at in range(draw(st.integers(0, 7))):
        edges = draw(
            st.lists(
                st.builds(Edge, st.sampled_from(sorted(models)), st.sampled_from([FINE_TUNED, EVALUATED, MERGED])),
                max_size=3,
            )
            if models
            else st.just([])
        )
        models[f"m{at}@1"] = Model(
            f"m{at}@1",
            draw(st.integers(0, 2)),
            tuple(draw(st.sets(st.sampled_from(sorted(snapshots)), max_size=2))),
            tuple(edges),
            known=draw(st.booleans()),
        )
    pool = sorted(set().union(*snapshots.values()) | {1, 2, 3})
    claim = st.tuples(st.sampled_from([-1, 0, 1, 2, 3, 4, 5]), st.lists(st.sampled_from(pool), max_size=8, unique=True))
    return models, snapshots, draw(st.lists(claim, max_size=5))


@pytest.mark.parametrize("small", [0, 512])
@settings(max_examples=150, deadline=None)
@given(registry=registries(), data=st.data())
def test_what_is_affected_and_by_whom_agrees_with_plain_sets(
    small: int,
    registry: tuple[dict[str, Model], dict[int, set[int]], list[tuple[int, list[int]]]],
    data: st.DataObject,
) -> None:
    models, sets, listed = registry
    naive = Naive(models, sets, listed)
    lineage = Lineage(data.draw(st.permutations(list(models.values()))))
    snapshots = {number: BitMap64(sorted(members)) for number, members in sets.items()}
    claims = claims_of(*listed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taint, "_SMALL", small)
        found = affected(lineage, snapshots, claims.scopes(range(3)))
    by = claimants(lineage, snapshots, claims, found)

    for name in models:
        total = naive.total(name)
        images = {image for _, image in total}
        assert (name in found.tainted) == bool(images)
        if images:
            got = found.tainted[name]
            assert (got.images, got.direct) == (len(images), len({image for _, image in naive.direct(name)}))
            assert set(by[name]) == {leaf for leaf, _ in total}
            assert got.path[0] == name
            assert naive.direct(got.path[-1])
            for child, parent in zip(got.path, got.path[1:], strict=False):
                assert any(e.parent == parent and e.relation is not EVALUATED for e in models[child].parents)
        ground = {i for e in models[name].parents if e.relation is EVALUATED for _, i in naive.total(e.parent)}
        assert found.void.get(name, 0) == (0 if images else len(ground))
    order = list(found.tainted)
    for name in order:
        assert all(order.index(e.parent) < order.index(name) for e in models[name].parents if e.parent in order)


@given(registry=registries())
def test_training_sets_and_knowledge_run_through_all_ancestors(
    registry: tuple[dict[str, Model], dict[int, set[int]], list[tuple[int, list[int]]]],
) -> None:
    models, sets, _ = registry
    lineage = Lineage(models.values())
    snapshots = {number: BitMap64(sorted(members)) for number, members in sets.items()}

    def ancestors(name: str) -> set[str]:
        above = [e.parent for e in models[name].parents if e.relation is not EVALUATED]
        return {name}.union(*(ancestors(parent) for parent in above))

    for name in models:
        line = ancestors(name)
        assert set(lineage.training_set(name, snapshots)) == set().union(
            *(sets[number] for one in line for number in models[one].snapshots)
        )
        assert lineage.known(name) == all(models[one].known for one in line)


def test_withdrawing_one_purpose_spares_models_of_another_but_not_their_children() -> None:
    lineage = Lineage([Model("a@1", 0, (1,)), Model("b@1", 1, (1,)), Model("c@1", 1, (), (Edge("a@1", FINE_TUNED),))])
    found = affected(lineage, {1: BitMap64([7, 8])}, claims_of((1 << 0, [7])).scopes(range(2)))
    assert list(found.tainted) == ["a@1", "c@1"]
    assert found.tainted["c@1"].path == ("c@1", "a@1")
    assert found.tainted["c@1"].direct == 0


def test_a_request_that_is_taken_back_taints_nothing_and_keeps_its_leaf() -> None:
    lineage = Lineage([Model("a@1", 0, (1,))])
    snapshots = {1: BitMap64([7, 8])}
    claims = claims_of((-1, [7]), (-1, [8])).without([0])
    found = affected(lineage, snapshots, claims.scopes([0]))
    assert found.tainted["a@1"].images == 1
    assert set(claimants(lineage, snapshots, claims, found)["a@1"]) == {1}


def test_the_witness_is_the_nearest_model_that_was_trained_on_the_images() -> None:
    lineage = Lineage(
        [
            Model("far@1", 0, (1,)),
            Model("mid@1", 0, (), (Edge("far@1", FINE_TUNED),)),
            Model("near@1", 0, (1,)),
            Model("child@1", 0, (), (Edge("mid@1", FINE_TUNED), Edge("near@1", MERGED))),
        ]
    )
    found = affected(lineage, {1: BitMap64([1])}, {0: BitMap64([1])})
    assert found.tainted["child@1"].path == ("child@1", "near@1")


def test_unknown_parents_and_cycles_are_refused() -> None:
    with pytest.raises(Rejected) as unknown:
        Lineage([Model("a@1", 0, (), (Edge("b@1", FINE_TUNED),))])
    assert unknown.value.code == "unknown-parent"
    with pytest.raises(Rejected) as cycle:
        Lineage([Model("a@1", 0, (), (Edge("b@1", FINE_TUNED),)), Model("b@1", 0, (), (Edge("a@1", FINE_TUNED),))])
    assert cycle.value.code == "cycle"


def test_remedies() -> None:
    lineage = Lineage(
        [
            Model("clean@1", 0, (1,)),
            Model("unknown@1", 0, (1,), known=False),
            Model("bad@1", 0, (2,)),
            Model("tuned@1", 0, (2,), (Edge("clean@1", FINE_TUNED),)),
            Model("tuned@2", 0, (2,), (Edge("unknown@1", FINE_TUNED),)),
            Model("merged@1", 0, (), (Edge("clean@1", MERGED), Edge("bad@1", MERGED), Edge("bad@1", EVALUATED))),
            Model("grown@1", 0, (), (Edge("clean@1", MERGED), Edge("bad@1", FINE_TUNED))),
        ]
    )
    found = affected(lineage, {1: BitMap64([1]), 2: BitMap64([2])}, {0: BitMap64([2])})
    chosen = {name: remedy(lineage, found, name, None) for name in found.tainted}
    assert chosen == {
        "bad@1": Remedy.RETRAIN,
        "tuned@1": Remedy.RETRAIN_FROM_ANCESTOR,
        "tuned@2": Remedy.RETRAIN,
        "merged@1": Remedy.DROP,
        "grown@1": Remedy.RETRAIN,
    }
    assert remedy(lineage, found, "bad@1", Remedy.DESTROY) is Remedy.DESTROY


def test_families_are_joined_by_inheritance_parents_first_and_cut_at_the_limit() -> None:
    lineage = Lineage(
        [
            Model("a@1", 0, ()),
            Model("b@1", 0, (), (Edge("a@1", FINE_TUNED),)),
            Model("c@1", 0, (), (Edge("b@1", FINE_TUNED), Edge("x@1", EVALUATED))),
            Model("x@1", 0, ()),
            Model("y@1", 0, (), (Edge("x@1", FINE_TUNED), Edge("a@1", FINE_TUNED))),
        ]
    )
    assert families(lineage, ["c@1", "b@1", "x@1"], 64) == [("x@1",), ("b@1", "c@1")]
    (whole,) = families(lineage, ["c@1", "y@1", "x@1", "a@1", "b@1"], 64)
    assert whole.index("a@1") < whole.index("b@1") < whole.index("c@1")
    cut = families(lineage, ["a@1", "b@1", "c@1"], 2)
    assert cut == [("a@1", "b@1"), ("c@1",)]


def test_one_persons_query_over_five_hundred_models_is_quick() -> None:
    random = np.random.default_rng(7)
    people = random.choice(1_000_000, 12, replace=False)
    snapshots = {
        number: BitMap64(np.flatnonzero(random.random(1_000_000) < 0.5).astype(np.uint64)) for number in range(40)
    }
    models = []
    for at in range(500):
        trained = tuple(int(number) for number in random.choice(40, random.integers(1, 4), replace=False))
        parents = tuple(
            {Edge(f"m{int(one)}@1", FINE_TUNED) for one in random.choice(at, min(at, 2))} if at > 20 else ()
        )
        models.append(Model(f"m{at}@1", 0, trained, parents))
    lineage = Lineage(models)
    scopes = {0: BitMap64(np.sort(people).astype(np.uint64))}
    best = min(_seconds(lineage, snapshots, scopes) for _ in range(5))
    assert best < 0.05  # measured about 1 ms; the bound is for a busy machine


def _seconds(lineage: Lineage, snapshots: dict[int, BitMap64], scopes: dict[int, BitMap64]) -> float:
    started = time.perf_counter()
    affected(lineage, snapshots, scopes)
    return time.perf_counter() - started
