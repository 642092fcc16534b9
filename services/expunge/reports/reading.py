"""What reports take from the log, in one verified pass: statements about some sweeps, or counts over a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

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
    Reconciliation,
    RegisteredBatch,
    Scope,
    ScopeApproved,
    ScopeUnwitnessed,
    ScopeVoid,
)
from expunge.domain.words import Level, Provision, Step


@dataclass(slots=True)
class StepFacts:
    """What was stated of one step in one tree (mutable: grows with the pass). Times are of the first and the last
    statement; `attempts` counts from 1; `sampled`: artifacts whose bytes were looked for."""

    first: datetime | None = None
    last: datetime | None = None
    statements: int = 0
    attempts: int = 0
    sampled: int = 0
    levels: set[Level] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    residue: set[str] = field(default_factory=set)

    def add(self, said: Chunk) -> None:
        """Take in one statement."""
        self.first = said.at if self.first is None else min(self.first, said.at)
        self.last = said.at if self.last is None else max(self.last, said.at)
        self.statements += 1
        self.attempts = max(self.attempts, said.attempt + 1)
        self.sampled += said.sampled
        self.levels.add(said.level)
        self.methods.add(said.method)
        self.residue.update(said.residue)


Said = (
    Scope | ScopeApproved | ScopeVoid | ScopeUnwitnessed | Completion | Overdue | ModelTainted | MetricVoid
    | ModelReplaced | ModelDestroyed | Reconciliation
)  # fmt: skip
"""What is kept whole; chunk statements, of which there may be thousands, are added up."""


@dataclass(slots=True)
class OfSweeps:
    """An observer of `replay.replay` that keeps what is about some sweeps (mutable)."""

    sweeps: Collection[str]
    said: list[tuple[int, Said]] = field(default_factory=list)
    steps: dict[tuple[str, int, Step], StepFacts] = field(default_factory=dict)

    def __call__(self, index: int, predicate: Predicate) -> None:
        """Take in the statement at log `index`."""
        match predicate:
            case Chunk() if predicate.sweep in self.sweeps:
                key = (predicate.sweep, predicate.tree, predicate.step)
                self.steps.setdefault(key, StepFacts()).add(predicate)
            case ModelReplaced() | ModelDestroyed() if not set(predicate.sweeps).isdisjoint(self.sweeps):
                self.said.append((index, predicate))
            case Reconciliation() if predicate.sweep is not None and predicate.sweep.sweep in self.sweeps:
                self.said.append((index, predicate))
            case (
                Scope() | ScopeApproved() | ScopeVoid() | ScopeUnwitnessed() | Completion() | Overdue() | ModelTainted()
                | MetricVoid()
            ) if predicate.sweep in self.sweeps:  # fmt: skip
                self.said.append((index, predicate))
            case _:
                pass


@dataclass(slots=True)
class OfPeriod:
    """An observer that counts what was stated from `start` on and before `end` (mutable).

    `artifacts` and `images` of sealed scopes by class; `results` by provision and result; `models` by what became of
    them. A model's taint states no time: it counts with its sweep's scope.
    """

    start: datetime
    end: datetime
    entries: int = 0
    sweeps: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    artifacts: Counter[str] = field(default_factory=Counter)
    results: Counter[tuple[Provision, str]] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    registered: int = 0
    others: Counter[str] = field(default_factory=Counter)
    overdue: list[tuple[int, Overdue]] = field(default_factory=list)
    differences: list[tuple[int, str, str, int]] = field(default_factory=list)
    _sealed: set[str] = field(default_factory=set)

    def __call__(self, index: int, predicate: Predicate) -> None:
        """Take in the statement at log `index`."""
        if isinstance(predicate, ModelTainted):
            inside = predicate.sweep in self._sealed
        else:
            inside = self.start <= predicate.at < self.end
        if inside:
            self.entries += 1
            self._count(index, predicate)

    def _count(self, index: int, said: Predicate) -> None:  # noqa: C901 - one case per predicate that counts
        match said:
            case Scope():
                self._sealed.add(said.sweep)
                self.sweeps[said.sweep_class] += 1
                self.requests[said.sweep_class] += said.requests
                self.images[said.sweep_class] += said.images
                self.artifacts[said.sweep_class] += sum(tree.leaves for tree in said.trees)
            case Completion():
                self.results.update({(said.provision, result): count for result, count in said.results.items()})
            case RegisteredBatch():
                self.registered += said.images
            case ModelTainted():
                self.models["tainted"] += 1
            case ModelReplaced():
                self.models["replaced"] += 1
            case ModelDestroyed():
                self.models["destroyed"] += 1
            case MetricVoid():
                self.models["metrics void"] += 1
            case Overdue():
                self.overdue.append((index, said))
            case Reconciliation():
                self.differences += [
                    (index, one.source, one.kind.value, one.difference) for one in said.counts if one.difference
                ]
            case KeyEvent() | KeyDestroyed() | ScopeVoid() | ScopeUnwitnessed():
                self.others[WORDS[said.type]] += 1
            case _:
                pass


WORDS: Final = {
    "urn:expunge:key-event:v1": "signing keys that came, were retired or revoked",
    "urn:expunge:key-destroyed:v1": "days whose request keys were destroyed",
    "urn:expunge:scope-void:v1": "scopes that were never carried out",
    "urn:expunge:scope-unwitnessed:v1": "scopes that went ahead without witnesses",
}
