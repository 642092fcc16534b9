"""Reconciliation: registered - erased = present, by source and kind. The arithmetic, for who states it and who checks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from expunge.domain.errors import Tampered
from expunge.domain.statement import ReconciledCount, Reconciliation
from expunge.domain.words import Kind

PART: Final = 100
"""Most counts in one statement, so that it fits a log entry."""


def counted(source: str, kind: Kind, *, registered: int, erased: int, under_way: int, present: int) -> ReconciledCount:
    """One count, with the difference that follows."""
    return ReconciledCount(
        source=source,
        kind=kind,
        registered=registered,
        erased=erased,
        under_way=under_way,
        present=present,
        difference=registered - erased - under_way - present,
    )


def check(said: Reconciliation, where: str) -> None:
    """Check that a statement's differences are those of its counts, and each count there once. Raises `Tampered(where)`."""
    if said.part >= said.parts or len(said.counts) > PART:
        raise Tampered(where, f"expected a part below {said.parts} with at most {PART} counts")
    places = [(one.source, one.kind) for one in said.counts]
    if places != sorted(set(places)):
        raise Tampered(where, "expected each source and kind once, ascending")
    for one in said.counts:
        if one.difference != one.registered - one.erased - one.under_way - one.present:
            raise Tampered(where, "expected registered - erased - under way - present as the difference, got another")
    if said.sweep is not None and said.sweep.present > said.sweep.leaves:
        raise Tampered(where, f"expected at most {said.sweep.leaves} leaves to be present, got {said.sweep.present}")


def in_words(counts: Iterable[ReconciledCount]) -> Iterator[str]:
    """A line each."""
    for one in counts:
        under_way = f" - {one.under_way} under way" if one.under_way else ""
        end = "" if one.difference == 0 else f": DIFFERS by {one.difference}"
        yield (
            f"{one.kind.value} from {one.source}: {one.registered} registered - {one.erased} erased{under_way},"
            f" {one.present} present{end}"
        )
