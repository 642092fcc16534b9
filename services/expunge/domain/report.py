"""What a verification found, in words and as a value. It never claims more than was checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from pydantic import AwareDatetime

from expunge.domain import reconciliation
from expunge.domain.certificate import ModelDue, Result
from expunge.domain.errors import Tampered
from expunge.domain.statement import Count, Frozen, ReconciledCount, Uuid
from expunge.domain.words import Kind, Level, Provision

ALWAYS_NOT_COVERED: Final = (
    "copies outside the stores named here, unless a store of the scope holds them",
    "whether the scope named everything there was: see the reconciliation statements in the log",
    "what a model that was not replaced or destroyed remembers",
)
"""What no certificate of ours shows, whoever wrote it."""


class StepResult(Frozen):
    """One numbered step: whether it held, and what was seen."""

    number: int
    name: str
    ok: bool
    detail: str


S = TypeVar("S", bound="Told")


class Told(Frozen, ABC):
    """A summary that can be put in words."""

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """In words, a line each."""


class Verdict(Frozen, Generic[S]):
    """The steps as far as they went. `where`: the first thing that is wrong; `summary`: only when all held."""

    steps: tuple[StepResult, ...]
    where: str | None
    summary: S | None

    @property
    def ok(self) -> bool:
        """Whether every step held."""
        return self.summary is not None

    def verified(self) -> S:
        """The summary. Raises `Tampered` naming the first thing that is wrong."""
        if self.summary is None:
            raise Tampered(self.where or "evidence", self.steps[-1].detail)
        return self.summary

    def lines(self) -> Iterator[str]:
        """In words, a line each."""
        for step in self.steps:
            yield f"{step.number:2} {step.name}: {'ok' if step.ok else 'FAILED'}: {step.detail}"
        if self.summary is not None:
            yield from self.summary.lines()


class Steps:
    """The steps of one verification as they are taken, in the order of their `names` (mutable)."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._done: list[StepResult] = []

    def passed(self, detail: str) -> None:
        """The next step held; what was seen."""
        self._add(detail, ok=True)

    def failed(self, error: Tampered) -> tuple[StepResult, ...]:
        """All steps, the next of which failed."""
        self._add(str(error), ok=False)
        return self.taken

    @property
    def taken(self) -> tuple[StepResult, ...]:
        """Those so far."""
        return tuple(self._done)

    def _add(self, detail: str, *, ok: bool) -> None:
        number = len(self._done)
        self._done.append(StepResult(number=number + 1, name=self._names[number], ok=ok, detail=detail))


class StoreSummary(Frozen):
    """The request's artifacts of one kind in one store. `absent`: verified absent; `level`, `verified_at`: the least
    level and the latest time of the rescans that say so, None where none does; `methods`: theirs; `erased_by`: the
    executors'; `residue`: where bytes may remain; `sampled`: artifacts whose bytes were looked for in those chunks."""

    kind: Kind
    store: str
    outcomes: dict[str, Count]
    absent: Count
    level: Level | None
    methods: tuple[str, ...]
    erased_by: tuple[str, ...]
    residue: tuple[str, ...]
    sampled: Count
    verified_at: AwareDatetime | None


class Summary(Told):
    """What a verified bundle says. `not_covered` is the issuer's own list, not signed. `reconciled`: what the
    rescanner counted of the sources after an order, if that is in the bundle."""

    issuer: str
    request: Uuid
    provision: Provision
    sweep: Uuid
    result: Result
    images: Count
    stores: tuple[StoreSummary, ...]
    retained: dict[str, Count]
    erased_earlier: Count
    models: tuple[ModelDue, ...]
    not_covered: tuple[str, ...]
    log: str
    log_size: Count
    scope_index: Count
    completion_index: Count
    scope_at: AwareDatetime
    completed_at: AwareDatetime
    reconciled: tuple[ReconciledCount, ...] = ()

    def lines(self) -> Iterator[str]:
        """In words, a line each."""
        yield f"{self.issuer}: {self.provision.value} of request {self.request}: {self.result}"
        yield f"scope fixed {self.scope_at.isoformat()} (log index {self.scope_index}), {self.images} images"
        for one in self.stores:
            yield from _store_lines(one)
        for purposes, count in sorted(self.retained.items()):
            yield f"{count} artifacts retained for {purposes.replace('+', ', ')}"
        if self.erased_earlier:
            yield f"{self.erased_earlier} images erased by earlier sweeps"
        for model in self.models:
            due = f"due {model.due.isoformat()}" if model.resolution == "open" else model.resolution
            yield f"model {model.model}: {model.remedy.value}, {due}"
        for line in reconciliation.in_words(self.reconciled):
            yield f"reconciled: {line}"
        for text in (*self.not_covered, *ALWAYS_NOT_COVERED):
            yield f"not covered: {text}"


Report: TypeAlias = Verdict[Summary]
"""Of a bundle."""


def _store_lines(one: StoreSummary) -> Iterator[str]:
    name = f"{one.kind.value} in {one.store}"
    if one.absent and one.verified_at is not None and one.level is not None:
        methods = ", ".join(one.methods)
        when = one.verified_at.isoformat()
        yield f"{name}: {one.absent} verified absent at {when} by {methods}, level L{one.level:d}"
    yield f"{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in one.outcomes.items())
    for text in one.residue:
        yield f"{name}: may remain in {text}"
