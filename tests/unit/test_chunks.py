from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from expunge.adapters.stores.memory import MemoryReader, Space
from expunge.chunks import orders, units
from expunge.chunks.forest import Forest, Page
from expunge.chunks.orders import Claim, Finding, Past
from expunge.chunks.scopes import OpenScope
from expunge.chunks.spool import Spool
from expunge.chunks.units import Doing, UnitWork, around_hostile, both, gather
from expunge.domain import dsse, hashing, merkle, needles, scopefile, statement
from expunge.domain import sweep as sweeps
from expunge.domain.errors import Rejected, Tampered
from expunge.domain.events import SweepId, WorkOrdered
from expunge.domain.leaf import derive_key
from expunge.domain.locators import Locators
from expunge.domain.needles import Needle
from expunge.domain.words import Kind, Level, Outcome, Role, Step
from expunge.ports import UNITS_AT_ONCE, Outcomes
from tests.scopes import Sealing, SeedSigner, TreeOf

SWEEP = UUID("11111111-1111-4111-8111-111111111111")
OTHER = UUID("22222222-2222-4222-8222-222222222222")
AT = datetime(2026, 11, 23, 4, 5, 6, 789, tzinfo=UTC)


def order_of(sweep: UUID, end: int = 1, step: Step = Step.ERASE, attempt: int = 0) -> WorkOrdered:
    return WorkOrdered(
        step=step, sweep_id=SweepId(str(sweep)), tree=0, first_chunk=0, end_chunk=end, attempt=attempt
    )  # fmt: skip


def codes(*values: int) -> Outcomes:
    return np.array(values, np.uint8)


def doing_of(
    sealing: Sealing, sweep_id: UUID, artifacts: Sequence[tuple[str, str]], excluded: Sequence[int] = (), end: int = 1
) -> Doing:
    sweep = sealing.seal(sweep_id, [TreeOf(Kind.IMAGE, "fs", artifacts)])
    claim = Claim(order_of(sweep_id, end), sweep, np.array(excluded, np.uint32), {})
    return Doing(claim, sealing.scopes().open(sweep))


def test_a_run_is_read_in_physical_order_with_one_slice_per_unit() -> None:
    artifacts = [(f"u{n % 3}", f"a{n:05}") for n in range(2500)]
    doing = doing_of(Sealing(), SWEEP, artifacts, end=3)
    assert list(zip([doing.run.units[u] for u in doing.run.unit], doing.run.locators, strict=True)) == sorted(artifacts)
    assert doing.run.slices() == [("u0", 0, 834), ("u1", 834, 1667), ("u2", 1667, 2500)]
    assert doing.run.positions(2) == slice(2048, 2500)


def test_chunks_that_the_sweep_does_not_have_are_rejected() -> None:
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, [TreeOf(Kind.IMAGE, "fs", [("u", "a")])])
    scope = sealing.scopes().open(sweep)
    for tree, first, end in ((1, 0, 1), (0, 0, 2), (0, 1, 1)):
        with pytest.raises(Rejected, match="expected chunks"):
            scope.run(tree, first, end)


def leaf_hashes(scope: OpenScope, chunk: int) -> bytes:
    return scopefile.unpack_columns(scope._file.section(f"0/{chunk}"))["hashes"]


def test_a_scope_file_that_is_not_the_sealed_one_is_tampered() -> None:
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, [TreeOf(Kind.IMAGE, "fs", [("u", "a")])])
    sealing.sealed.files[f"{SWEEP}.scope"] += b"x"
    with pytest.raises(Tampered):
        sealing.scopes().open(sweep)


def test_a_scope_file_whose_chunk_roots_lead_elsewhere_is_tampered() -> None:
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, [TreeOf(Kind.IMAGE, "fs", [("u", f"{n:04}") for n in range(1030)])])
    scope = sealing.scopes().open(sweep)
    hashes = [leaf_hashes(scope, chunk) for chunk in (0, 1)]
    assert [scope.chunk_root(0, chunk) for chunk in (0, 1)] == [merkle.root(one) for one in hashes]
    assert scope.run(0, 0, 2).digests == tuple(hashlib.sha256(one).digest() for one in hashes)
    with pytest.raises(Tampered, match="published root"):
        sealing.scopes().open(replace(sweep, roots=(bytes(32),)))


def test_a_lost_file_and_a_destroyed_key_are_rejected_by_name() -> None:
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, [TreeOf(Kind.IMAGE, "fs", [("u", "a")])])
    data = sealing.sealed.files.pop(f"{SWEEP}.scope")
    with pytest.raises(Rejected) as lost:
        sealing.scopes().open(sweep)
    sealing.sealed.files[f"{SWEEP}.scope"] = data
    sealing.keys.destroy(sweep.bucket)
    with pytest.raises(Rejected) as destroyed:
        sealing.scopes().open(sweep)
    assert (lost.value.code, destroyed.value.code) == ("scope-lost", "key-destroyed")


@pytest.mark.parametrize("in_memory", [0, 20, 1 << 20])
def test_what_is_spooled_comes_back_in_order_and_is_never_plain_in_a_file(in_memory: int) -> None:
    spool = Spool(in_memory)
    put = [(f"{number}", b"somebody" * number) for number in range(5)]
    for name, data in put[:3]:
        spool.put(name, data)
    assert list(spool) == put[:3]
    for name, data in put[3:]:
        spool.put(name, data)
    assert list(spool) == list(spool) == put
    assert [spool.get(name) for name, _ in reversed(put)] == [data for _, data in reversed(put)]
    assert "4" in spool
    assert "5" not in spool
    with pytest.raises(ValueError, match="4 twice"):
        spool.put("4", b"")
    assert (spool._file is None) == (in_memory == 1 << 20)
    if spool._file is not None:
        spool._file.seek(0)
        assert b"somebody" not in spool._file.read()
    spool.close()
    assert list(Spool()) == []


def test_what_is_spooled_lies_where_it_was_told_to(tmp_path: Path) -> None:
    with closing(Spool(0, tmp_path)) as spool:
        spool.put("one", b"data")
        assert spool._file is not None
        assert Path(f"/proc/self/fd/{spool._file.fileno()}").readlink().is_relative_to(tmp_path)
        assert not list(tmp_path.iterdir())


def page_of(first: int, count: int, *, kind: Kind = Kind.IMAGE, store_no: int = 1) -> Page:
    """Artifact `n` is of image `n // 2`, in unit `n // 1000`, under the digest of its number."""
    ids = np.arange(first, first + count)
    return Page(
        kind=kind,
        store_no=store_no,
        ids=ids,
        ordinal=ids // 2,
        unit=ids // 1000,
        purposes=np.zeros(0, np.int64),
        digests=b"".join(int(one).to_bytes(32, "big") for one in ids),
        locators=Locators.of([f"{one:08d}" for one in ids]),
    )


@pytest.fixture
def forest() -> Iterator[Forest]:
    with closing(Spool(0)) as spool, closing(Spool(0)) as handles:
        yield Forest(b"k" * 32, {1: "fs", 2: "copies"}, spool, handles)


def test_a_forest_says_of_what_it_spooled_what_was_in_its_pages(forest: Forest) -> None:
    pages = [page_of(first, 600) for first in range(10, 3010, 600)]
    pages += [page_of(7000, 5, store_no=2), page_of(4000, 1500, kind=Kind.EMBEDDING)]
    for page in pages:
        forest.add(page)
    forest.close()
    digests = b"".join(page.digests for page in pages[:-1])
    assert list(forest.digests(700)) == [digests[at : at + 700 * 32] for at in range(0, len(digests), 700 * 32)]
    assert set(forest.photos) == {*range(5, 1505), *range(3500, 3503)}
    assert (forest.leaves, forest.last_artifact) == (4505, 7004)
    first, *_, last = forest.trees.values()
    assert [len(columns["ordinal"]) // 8 for columns in first.columns()] == [1024, 1024, 952]
    assert b"".join(columns["digest"] for columns in last.columns()) == pages[-1].digests
    every = np.concatenate([page.ids for page in pages])
    whole = sweeps.handles(derive_key(b"k" * 32, "handles"), every)
    assert forest.handles_root() == sweeps.handles_root([whole])


def test_of_a_forest_nothing_stays_in_memory_that_grows_with_its_leaves(forest: Forest) -> None:
    hashing.prepare()  # what that loads is no leaf's
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for first in range(0, 1 << 17, 1 << 14):
            forest.add(page_of(first, 1 << 14))
        forest.close()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept < 4 * forest.leaves


def test_leaves_of_several_orders_meet_in_one_unit_work() -> None:
    sealing = Sealing()
    one = doing_of(sealing, SWEEP, [("u", "a"), ("u", "b"), ("v", "c")], excluded=[1])
    other = doing_of(sealing, OTHER, [("u", "a"), ("u", "d")])
    works = gather([one, other], lambda doing: doing.cover & ~doing.excluded())
    assert [(work.unit, list(work.locators())) for work in works] == [("u", ["a", "d"]), ("v", ["c"])]
    works[0].spread(["a", "d"], codes(Outcome.GONE, Outcome.BLOCKED))
    assert [said.tolist() for said in works[0].said] == [[Outcome.GONE], [Outcome.GONE, Outcome.BLOCKED]]


def test_work_is_cut_into_stretches_of_like_size() -> None:
    doing = doing_of(Sealing(), SWEEP, [(f"u{n // 10:02}", f"{n:03}") for n in range(200)])
    works = gather([doing], lambda one: one.cover)
    assert [len(piece) for piece in units.pieces(works, 4)] == [5, 5, 5, 5]
    assert units.pieces([], 4) == []


@pytest.mark.parametrize("at_once", [UNITS_AT_ONCE, 4])
async def test_a_store_works_on_as_many_units_at_once_as_it_says(at_once: int) -> None:
    doing = doing_of(Sealing(), SWEEP, [(f"u{n:02}", f"{n:03}") for n in range(at_once)])
    works = gather([doing], lambda one: one.cover)
    store = MemoryReader(Space(), doing.store, rewrites_unit=False)
    assert store.capabilities.units_at_once == UNITS_AT_ONCE
    store.capabilities = replace(store.capabilities, units_at_once=at_once)
    together = threading.Barrier(at_once, timeout=30)

    def call(_: UnitWork) -> None:
        together.wait()

    await units.call_all(works, call, {doing.store: store})
    await units.call_all([], call, {})


def test_one_hostile_name_costs_only_itself() -> None:
    def call(some: Sequence[str]) -> Outcomes:
        if "../x" in some:
            raise Rejected("hostile-locator", "expected a name, got a path")
        return np.full(len(some), Outcome.GONE, np.uint8)

    told = around_hostile(["a", "b", "../x", "c", "d"], call, Outcome.FAILED)
    assert told.tolist() == [1, 1, Outcome.FAILED, 1, 1]


G, E, A, X, B, F, P = (Outcome(n) for n in range(1, 8))


@pytest.mark.parametrize(
    ("answered", "presence", "outcome"),
    [(G, P, G), (A, P, G), (A, A, A), (A, E, E), (G, A, G), (B, P, B), (0, P, 0), (F, P, F)],
)
def test_what_a_stores_answer_means(answered: int, presence: int, outcome: int) -> None:
    assert orders.erased(codes(answered), codes(presence)).tolist() == [outcome]


@pytest.mark.parametrize(
    ("present", "presence", "stands", "outcome"),
    [
        (False, P, G, G), (False, A, A, A), (False, E, E, E), (False, A, G, G), (False, P, 0, G), (False, P, B, G),
        (True, P, G, P), (True, P, 0, 0), (True, P, B, B), (True, P, F, F), (True, A, A, P), (True, P, X, X),
        (False, P, X, X),
    ],
)  # fmt: skip
def test_what_step_absence_makes_of_what_it_sees(present: bool, presence: int, stands: int, outcome: int) -> None:  # noqa: FBT001
    assert orders.verified(np.array([present]), codes(presence), codes(stands)).tolist() == [outcome]


@pytest.mark.parametrize("stands", [0, B, F])
def test_what_is_only_hidden_is_not_verified_absent(stands: int) -> None:
    """A unit is rewritten as a whole: until then its hidden artifacts are not shown, and their bytes are there."""
    for presence in (P, A, E):
        told = orders.verified(np.array([False]), codes(presence), codes(stands), rewrites_unit=True)
        assert told.tolist() == [stands]
    assert orders.verified(np.array([False]), codes(P), codes(G), rewrites_unit=True).tolist() == [G]


def test_what_was_verified_absent_is_not_erased_anew() -> None:
    """Two executors: one answered "try again", the other had erased it. Erasing it anew would open its absence anew, and
    a certificate that counts it would not verify (schedule 120)."""
    past = [
        Past(Step.PRESENCE, 0, codes(P, P, P), None),
        Past(Step.ERASE, 0, codes(G, 0, B), None),
        Past(Step.ABSENCE, 0, codes(G, G, 0), None),
    ]
    assert orders.standing(past, 3).tolist() == [G, G, B]
    assert orders.covered(past, Step.ERASE, 3).tolist() == [False, False, True]


def test_a_later_attempt_covers_what_is_open_blocked_or_found_again() -> None:
    past = [
        Past(Step.PRESENCE, 0, codes(P, P, P, P, A), None),
        Past(Step.ERASE, 0, codes(G, 0, B, G, A), None),
        Past(Step.ABSENCE, 0, codes(G, 0, B, P, A), None),
    ]
    assert orders.covered(past, Step.ERASE, 5).tolist() == [False, True, True, True, False]
    assert orders.covered(past, Step.ABSENCE, 5).tolist() == [False, True, True, True, False]
    past.append(Past(Step.ERASE, 1, codes(0, G, G, G, 0), None))
    assert orders.covered(past, Step.ERASE, 5).tolist() == [False] * 5
    assert orders.standing(past, 5).tolist() == [G, G, G, G, A]
    assert orders.covered_outcomes(past, Step.ERASE, 1).tolist() == [G, G, G]


def test_run_lengths_are_those_of_the_statement() -> None:
    outcomes = np.random.default_rng(5).integers(0, 3, 1000).astype(np.uint8)
    assert orders.encoded(outcomes) == statement.runs(outcomes.tolist())


def test_units_of_a_chunk_are_told_together_at_the_lower_level() -> None:
    told = both(Finding(Level.FILE_ABSENT, "unlink", ("b",)), Finding(Level.UNREACHABLE, "rewrite", ("a", "b")))
    assert told == Finding(Level.UNREACHABLE, "rewrite+unlink", ("a", "b"))


def test_a_chunk_statement_names_its_subtree_and_its_predecessor() -> None:
    sealing = Sealing()
    sweep = sealing.seal(SWEEP, [TreeOf(Kind.IMAGE, "fs", [("u", f"{n:04}") for n in range(1030)])])
    signer = SeedSigner(Role.EXECUTOR)
    past: dict[int, list[Past]] = {}
    first = Doing(Claim(order_of(SWEEP, 2), sweep, np.zeros(0, np.uint32), past), sealing.scopes().open(sweep))
    first.outcomes[:] = Outcome.GONE
    first.outcomes[1027] = Outcome.OPEN
    rows = first.rows(signer, AT)
    assert first.rows(signer, AT) == rows
    for row in rows:
        past[row.chunk] = [Past(row.step, row.attempt, np.frombuffer(row.outcomes, np.uint8), row.envelope)]
    again = Doing(
        Claim(order_of(SWEEP, 2, attempt=1), sweep, np.zeros(0, np.uint32), past), sealing.scopes().open(sweep)
    )
    again.outcomes[:] = Outcome.GONE
    (row,) = again.rows(signer, AT)

    read = dsse.verify(dsse.parse(row.envelope), signer.public, statement.PAYLOAD_TYPE)
    parsed = statement.parse(read)
    said = parsed.predicate
    assert isinstance(said, statement.Chunk)
    hashes = leaf_hashes(first.scope, 1)
    assert (said.start, said.end, said.attempt) == (1024, 1030, 1)
    assert said.outcomes == ((Outcome.OPEN, 3), (Outcome.GONE, 1), (Outcome.OPEN, 2))
    assert said.chunk_root == merkle.root(hashes).hex()
    assert parsed.subjects == {"leaf-hashes": hashlib.sha256(hashes).hexdigest()}
    assert said.previous == hashlib.sha256(dsse.parse(rows[1].envelope).payload).hexdigest()
    assert said.scope == sweep.scope_digest.hex()
    assert said.at == AT.replace(microsecond=0)


def test_the_sample_follows_from_the_checkpoint_and_nothing_else() -> None:
    root = bytes(range(32))
    drawn = needles.sample(root, SWEEP, tree=1, chunk=7, leaves=1024, count=8)
    assert drawn == needles.sample(root, SWEEP, tree=1, chunk=7, leaves=1024, count=8)
    assert drawn == [0, 37, 465, 532, 566, 626, 701, 796]
    assert drawn != needles.sample(root[::-1], SWEEP, tree=1, chunk=7, leaves=1024, count=8)
    assert drawn != needles.sample(root, SWEEP, tree=1, chunk=8, leaves=1024, count=8)
    assert needles.sample(root, SWEEP, tree=1, chunk=7, leaves=3, count=8) == [0, 1, 2]
    assert needles.sample(root, SWEEP, tree=1, chunk=7, leaves=0, count=8) == []


def test_samples_are_spread_evenly() -> None:
    counts = np.zeros(64)
    for chunk in range(2000):
        drawn = needles.sample(bytes(32), SWEEP, tree=0, chunk=chunk, leaves=64, count=8)
        assert len(drawn) == 8
        counts[drawn] += 1
    assert 190 < counts.min() <= counts.max() < 310


def test_needle_files_open_only_under_their_key_and_name() -> None:
    cut = [Needle(5, 1, b"x" * 32), Needle(70000, 2**40, b"y" * 12)]
    sealed = needles.seal(b"k" * 32, "name", cut)
    assert needles.unseal(b"k" * 32, "name", sealed) == [cut[0], Needle(70000, 2**32 - 1, b"y" * 12)]
    assert needles.unseal(b"k" * 32, "name", needles.seal(b"k" * 32, "name", [])) == []
    assert b"xxxx" not in sealed
    for key, name, data in (
        (b"l" * 32, "name", sealed),
        (b"k" * 32, "other", sealed),
        (b"k" * 32, "name", sealed[:-1]),
    ):
        with pytest.raises(Tampered):
            needles.unseal(key, name, data)
