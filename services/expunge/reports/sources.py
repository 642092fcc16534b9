"""The source ledger: where images came from, on what ground, what became of them, and what is owed.

Data debt is what a source holds that nobody could defend: images without consent, licence or known origin, and the
models that depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pyroaring import BitMap64

from expunge.domain.lineage import ConsentBasis
from expunge.domain.replay import State
from expunge.domain.taint import affected
from expunge.ports import Row, Tx
from expunge.reports.document import Cell, Position, Report, Section, Table, instant
from expunge.stages.retrain.world import Bitmaps, World

NOT_STATED: Final = frozenset({"", "-", "n/a", "na", "none", "none recorded", "not known", "not recorded", "unknown"})
"""What people write, in any case, where they do not know a licence, an agreement or a supplier."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Rows of the catalogue. `unconsented`: images by source number; `ordinals`: all that a source was ever given;
    `purposes`: name by bit."""

    sources: Sequence[Row]
    unconsented: Mapping[int, int]
    ordinals: Mapping[int, BitMap64]
    erased: Mapping[tuple[int, str], int]
    present: Mapping[tuple[int, str], int]
    purposes: Mapping[int, str]
    world: World


async def read(tx: Tx) -> Ledger:
    ordinals: dict[int, BitMap64] = {}
    for source, first, used in await tx.fetch("reports_blocks"):
        ordinals.setdefault(source, BitMap64()).add_range(first, first + used)
    return Ledger(
        await tx.fetch("reports_sources"),
        dict(await tx.fetch("reports_unconsented")),
        ordinals,
        {(source, kind): count for source, kind, count in await tx.fetch("reports_erased")},
        {(source, kind): count for source, kind, count in await tx.fetch("reports_artifacts")},
        dict(await tx.fetch("reports_purposes")),
        await Bitmaps().world(tx),
    )


def build(ledger: Ledger, state: State, *, log: Position, issuer: str, at: datetime) -> Report:
    """The report."""
    dependents = {row[0]: _dependents(ledger, row[0]) for row in ledger.sources}
    sections = [
        _ledger(ledger),
        _counts(ledger, state),
        _debt(ledger, dependents),
        _interests(ledger),
        _models(ledger, dependents),
    ]
    return Report("sources", "Source ledger", issuer, at, log, sections)


def _ledger(ledger: Ledger) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for _, name, said, closed_at, _, images in ledger.sources:
        rows.append(
            (
                name, said["supplier"], said["agreement"], said["licence"], said["consent_basis"], said["acquired_on"],
                said["approved_by"], images, instant(closed_at) or "open",
            )
        )  # fmt: skip
    columns = (
        "source",
        "supplier",
        "agreement",
        "licence",
        "ground",
        "acquired",
        "approved by",
        "images now",
        "closed",
    )
    return Section("Where images came from", tables=[Table("sources", columns, rows)])


def _counts(ledger: Ledger, state: State) -> Section:
    names = {row[0]: row[1] for row in ledger.sources}
    numbers = {name: number for number, name in names.items()}
    kinds = {(names[number], kind) for number, kind in (*ledger.erased, *ledger.present)}
    rows: list[tuple[Cell, ...]] = []
    for name, kind in sorted(kinds | {(name, kind.value) for name, kind in state.registered}):
        registered = sum(count for (of, one), count in state.registered.items() if (of, one.value) == (name, kind))
        key = (numbers.get(name, -1), kind)
        rows.append((name, kind, registered, ledger.erased.get(key, 0), ledger.present.get(key, 0)))
    note = (
        "Registered by the log; erased and in the catalogue by its rows. Reconciliation counts the stores themselves."
    )
    columns = ("source", "kind", "registered", "erased", "in the catalogue")
    return Section("What came in and what is left", tables=[Table("counts", columns, rows)], notes=[note])


def _debt(ledger: Ledger, dependents: Mapping[int, Mapping[str, int]]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for number, name, said, _, _, images in ledger.sources:
        without = images if said["consent_basis"] == ConsentBasis.NONE_RECORDED else ledger.unconsented.get(number, 0)
        missing = [word for word in ("licence", "agreement", "supplier") if _not_stated(said, word)]
        if without or missing:
            users = [one for one in dependents[number] if not _gone(ledger, one)]
            rows.append((name, images, without, *(images if _not_stated(said, word) else 0 for word in ("licence", "supplier")),
                         ", ".join(missing) or None, len(users)))  # fmt: skip
    columns = (
        "source", "images now", "without consent", "without licence", "without known origin", "not stated", "models in use"
    )  # fmt: skip
    note = (
        "Without consent: no ground is recorded, or the ground is consent and no consent, or no person, is on record for "
        "the image. Not stated: the record says none, unknown, not recorded or the like."
    )  # fmt: skip
    return Section("Data debt", tables=[Table("debt", columns, rows)], notes=[note])


def _not_stated(said: Mapping[str, Any], word: str) -> bool:
    return str(said[word]).strip().lower() in NOT_STATED


def _interests(ledger: Ledger) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (name, said["approved_by"], interest)
        for _, name, said, *_ in ledger.sources
        for interest in said.get("declared_interests", ())
    ]
    columns = ("source", "approved by", "declared interest")
    return Section(
        "Interests declared by those who brought or approved a source", tables=[Table("interests", columns, rows)]
    )


def _dependents(ledger: Ledger, source: int) -> dict[str, int]:
    """Models with images of the source in their transitive training set, and how many: erased ones count, for the model
    has seen them."""
    images = ledger.ordinals.get(source, BitMap64())
    scopes = dict.fromkeys(ledger.purposes, images)
    found = affected(ledger.world.lineage, ledger.world.snapshots, scopes)
    return {name: taint.images for name, taint in found.tainted.items()}


def _gone(ledger: Ledger, model: str) -> bool:
    return ledger.world.entries[model].status.value in {"replaced", "destroyed"}


def _models(ledger: Ledger, dependents: Mapping[int, Mapping[str, int]]) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (row[1], model, images, ledger.world.entries[model].status.value)
        for row in ledger.sources
        for model, images in dependents[row[0]].items()
    ]
    unknown = [name for name in ledger.world.entries if not ledger.world.lineage.known(name)]
    notes = [
        f"{name}: not all that went into it is on record; it may depend on any source." for name in sorted(unknown)
    ]
    columns = ("source", "model", "images", "status")
    return Section("Models that depend on a source", tables=[Table("dependents", columns, rows)], notes=notes)
