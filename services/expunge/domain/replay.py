"""The public state that the evidence log says there is, folded from statements alone; the one function for replay.

`fold` changes its state in place: a log has millions of entries, and copying per entry would cost more than checking
them. Nothing else in the domain is mutable like this. Order is the log's; an entry that cannot follow from those before
it is `Tampered`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import assert_never

from expunge.domain import coverage, reconciliation, tiles
from expunge.domain.coverage import DEEDS, ChunkState
from expunge.domain.errors import Tampered
from expunge.domain.limits import CHUNK_LEAVES
from expunge.domain.statement import (
    Chunk,
    Completion,
    KeyDestroyed,
    KeyEvent,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Predicate,
    ReconciledCount,
    Reconciliation,
    RegisteredBatch,
    Scope,
    ScopeApproved,
    ScopeUnwitnessed,
    ScopeVoid,
)
from expunge.domain.words import Kind, ModelStatus, Outcome, Provision, Step


@dataclass(slots=True)
class StepCount:
    """What one step did to one tree: chunks with a statement, and the last outcome of each leaf in them."""

    chunks: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Round:
    """A completion statement, at log `index`."""

    index: int
    round: int
    provision: Provision
    requests: int
    results: dict[str, int]
    root: str


@dataclass(slots=True)
class SweepState:
    """One sweep. `digest`: SHA-256 (hex) of the scope's payload; `index`: where it is logged; `overdue`: provisions
    whose date passed."""

    scope: Scope
    digest: str
    index: int
    approved: bool = False
    unwitnessed: bool = False
    void: str | None = None
    chunks: dict[tuple[int, int], ChunkState] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    overdue: set[Provision] = field(default_factory=set)

    def coverage(self) -> dict[tuple[int, Step], StepCount]:
        """By tree and step."""
        found: dict[tuple[int, Step], StepCount] = {}
        for (tree, _), chunk in self.chunks.items():
            for step, state in chunk.steps.items():
                one = found.setdefault((tree, step), StepCount())
                one.chunks += 1
                one.outcomes.update({Outcome(code): state.outcomes.count(code) for code in set(state.outcomes)})
        return found

    def absences(self, tree: int) -> bytes:
        """The last outcome of step absence of every leaf of a tree; open where there is none."""
        leaves = self.scope.trees[tree].leaves
        return b"".join(
            self._absence(tree, start // CHUNK_LEAVES, min(CHUNK_LEAVES, leaves - start))
            for start in range(0, leaves, CHUNK_LEAVES)
        )

    def _absence(self, tree: int, chunk: int, leaves: int) -> bytes:
        state = self.chunks.get((tree, chunk))
        if state is None or Step.ABSENCE not in state.steps:
            return bytes(leaves)
        return state.steps[Step.ABSENCE].outcomes


@dataclass(slots=True)
class ModelState:
    """One model that the log speaks of. `sweeps`: whose taint is not resolved yet."""

    status: ModelStatus | None = None
    sweeps: set[str] = field(default_factory=set)
    metric_void: bool = False
    successor: str | None = None


@dataclass(slots=True)
class State:
    """Everything public. `size`: entries folded; `destroyed`: key buckets that are gone, and the log index that says so;
    `sums`: how `registered` grew, as (log index, sum with that entry); `reconciled`: the last count of each source and
    kind, and the log index that says so."""

    size: int = 0
    sweeps: dict[str, SweepState] = field(default_factory=dict)
    models: dict[str, ModelState] = field(default_factory=dict)
    batches: set[str] = field(default_factory=set)
    images: int = 0
    registered: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    destroyed: dict[date, int] = field(default_factory=dict)
    sums: dict[tuple[str, Kind], list[tuple[int, int]]] = field(default_factory=dict)
    reconciled: dict[tuple[str, Kind], tuple[int, ReconciledCount]] = field(default_factory=dict)

    def differences(self) -> list[ReconciledCount]:
        """The last counts that do not come out even, by source and kind."""
        return [one for _, (_, one) in sorted(self.reconciled.items()) if one.difference]

    def registered_at(self, source: str, kind: Kind, size: int) -> int:
        """Artifacts of a kind from a source that the first `size` entries say came in."""
        sums = self.sums.get((source, kind), [])
        before = bisect_left(sums, (size, 0))
        return sums[before - 1][1] if before else 0


def fold(  # noqa: C901, PLR0912 - one case per predicate
    state: State, index: int, digest: str, predicate: Predicate
) -> State:
    """Apply the statement at log `index`, `digest` (hex) of its payload; returns `state`, changed.

    Raises `Tampered` for one that cannot follow from what was folded before."""
    if index != state.size:
        raise Tampered(f"log index {index}", f"expected index {state.size} next")
    match predicate:
        case Chunk():  # first: nearly all are
            _fold_chunk(_sweep(state, index, predicate.sweep, predicate.scope), index, digest, predicate)
        case Scope():
            if predicate.sweep in state.sweeps:
                raise Tampered(f"log index {index}", "expected one scope per sweep, got a second")
            state.sweeps[predicate.sweep] = SweepState(predicate, digest, index)
        case ScopeApproved():
            _sweep(state, index, predicate.sweep, predicate.scope).approved = True
        case ScopeVoid():
            _sweep(state, index, predicate.sweep, predicate.scope).void = predicate.reason
        case ScopeUnwitnessed():
            _sweep(state, index, predicate.sweep, predicate.scope).unwitnessed = True
        case Completion():
            _fold_completion(_sweep(state, index, predicate.sweep, predicate.scope), index, predicate)
        case RegisteredBatch():
            _fold_batch(state, index, predicate)
        case ModelTainted():
            _sweep(state, index, predicate.sweep, predicate.scope)
            _fold_tainted(state.models.setdefault(predicate.model, ModelState()), predicate)
        case MetricVoid():
            _sweep(state, index, predicate.sweep, predicate.scope)
            state.models.setdefault(predicate.model, ModelState()).metric_void = True
        case ModelReplaced():
            model = _resolved(state, predicate, ModelStatus.REPLACED)
            model.successor = predicate.successor
        case ModelDestroyed():
            _resolved(state, predicate, ModelStatus.DESTROYED)
        case Overdue():
            _sweep(state, index, predicate.sweep, None).overdue.add(predicate.provision)
        case KeyDestroyed():
            state.destroyed.setdefault(predicate.bucket, index)
        case KeyEvent():
            pass  # whom to believe is the reader's own policy
        case Reconciliation():
            _fold_reconciliation(state, index, predicate)
        case _:
            assert_never(predicate)
    state.size += 1
    return state


def scope_time(state: State, predicate: Predicate) -> datetime | None:
    """The time that stands for that of a statement which holds none: its scope's."""
    if isinstance(predicate, ModelTainted) and (sweep := state.sweeps.get(predicate.sweep)):
        return sweep.scope.at
    return None


def entries(first: int, size: int, fetch: tiles.Fetch) -> Iterator[tuple[int, bytes]]:
    """Log entries [first, size) with their indices, from the bundles of a log of `size` entries.

    `fetch` gives a stored file or raises `LookupError`. Raises `Tampered` for a bundle that is not whole or missing.
    """
    for bundle in tiles.new_bundles(first, size):
        for index, entry in enumerate(_bundle(bundle, fetch), start=bundle.start):
            if index >= first:
                yield index, entry


def _bundle(bundle: tiles.Bundle, fetch: tiles.Fetch) -> list[bytes]:
    try:
        return tiles.parse_bundle(fetch(bundle.path), bundle.width)
    except LookupError:
        pass
    # A partial bundle may be deleted once the full one is there.
    full = tiles.Bundle(bundle.index)
    try:
        return tiles.parse_bundle(fetch(full.path), full.width)[: bundle.width]
    except LookupError as error:
        raise Tampered(bundle.path, "expected this entry bundle of the log, got none") from error


def _sweep(state: State, index: int, sweep: str, scope: str | None) -> SweepState:
    found = state.sweeps.get(sweep)
    if found is None:
        raise Tampered(f"log index {index}", "expected the sweep's scope to be logged before, it is not")
    if scope not in {None, found.digest}:
        raise Tampered(f"log index {index}", "expected a statement about the sweep's scope, got another's")
    return found


def _fold_chunk(sweep: SweepState, index: int, digest: str, chunk: Chunk) -> None:
    coverage.check_place(chunk, sweep.scope.trees)
    if chunk.step in DEEDS and (sweep.void or (sweep.scope.sweep_class == "order" and not sweep.approved)):
        raise Tampered(f"log index {index}", "expected an approved scope that stands before any deed")
    key = (chunk.tree, chunk.start // CHUNK_LEAVES)
    state = sweep.chunks.get(key)
    if state is None:
        state = sweep.chunks[key] = ChunkState(chunk.end - chunk.start, chunk.chunk_root)
    state.add(chunk, digest, index)


def _fold_completion(sweep: SweepState, index: int, said: Completion) -> None:
    if said.round in sweep.rounds:
        raise Tampered(f"log index {index}", f"expected one completion of round {said.round}, got a second")
    sweep.rounds[said.round] = Round(index, said.round, said.provision, said.requests, dict(said.results), said.root)


def _fold_batch(state: State, index: int, said: RegisteredBatch) -> None:
    if said.batch in state.batches:
        raise Tampered(f"log index {index}", "expected each registration batch once, got it twice")
    state.batches.add(said.batch)
    state.images += said.images
    for one in said.counts:
        state.registered[one.source, one.kind] += one.artifacts
        sums = state.sums.setdefault((one.source, one.kind), [])
        sums.append((state.size, state.registered[one.source, one.kind]))


def _fold_reconciliation(state: State, index: int, said: Reconciliation) -> None:
    where = f"log index {index}"
    reconciliation.check(said, where)
    if said.log_size > index:
        raise Tampered(where, f"expected a reconciliation of entries before it, got one of {said.log_size}")
    if said.sweep is not None:
        leaves = sum(tree.leaves for tree in _sweep(state, index, said.sweep.sweep, said.sweep.scope).scope.trees)
        if said.sweep.leaves != leaves:
            raise Tampered(where, f"expected {leaves} leaves of the sweep's scope, got {said.sweep.leaves}")
    for one in said.counts:
        registered = state.registered_at(one.source, one.kind, said.log_size)
        if one.registered != registered:
            raise Tampered(where, f"expected {registered} registered {one.kind} artifacts, got {one.registered}")
    for one in said.counts:
        state.reconciled[one.source, one.kind] = index, one


def _fold_tainted(model: ModelState, said: ModelTainted) -> None:
    model.sweeps.add(said.sweep)
    if model.status is None:  # a model that is gone stays gone
        model.status = ModelStatus.TAINTED


def _resolved(state: State, said: ModelReplaced | ModelDestroyed, status: ModelStatus) -> ModelState:
    model = state.models.setdefault(said.model, ModelState())
    model.status = status
    model.sweeps.difference_update(said.sweeps)
    return model
