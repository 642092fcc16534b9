"""What is held about one person, and which models used it: the subject-access view. Personal: for that person only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pyroaring import BitMap64

from expunge.domain import suppression
from expunge.domain.taint import affected
from expunge.ports import Row, Tx
from expunge.reports.document import Cell, Report, Section, Table, instant
from expunge.stages.intake import EVERYTHING
from expunge.stages.retrain.world import Bitmaps, World

ABOUT: Final = (
    "What the catalogue says now. Rows about a person go when their deletion is certified: what was held until then is not "
    "listed any more, and a certificate shows what became of it."
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One person's rows. `suppressed`: purposes for which registration refuses them, `*` for all."""

    images: Sequence[Row]
    artifacts: Sequence[Row]
    consents: Sequence[Row]
    requests: Sequence[Row]
    holds: Sequence[Row]
    suppressed: Sequence[str]
    purposes: Mapping[int, str]
    world: World


async def read(tx: Tx, subject: str, journal_key: bytes) -> Subject:
    purposes: dict[int, str] = dict(await tx.fetch("reports_purposes"))
    names = [EVERYTHING, *purposes.values()]
    macs = {suppression.mac(journal_key, "subject", name, subject.encode()): name for name in names}
    found = {bytes(mac) for (mac,) in await tx.fetch("reports_suppressed", macs=list(macs))}
    return Subject(
        await tx.fetch("reports_subject_images", subject=subject),
        await tx.fetch("reports_subject_artifacts", subject=subject),
        await tx.fetch("reports_subject_consents", subject=subject),
        await tx.fetch("reports_subject_requests", subject=subject),
        await tx.fetch("reports_subject_holds", subject=subject),
        [name for mac, name in macs.items() if mac in found],
        purposes,
        await Bitmaps().world(tx),
    )


def build(subject: Subject, *, issuer: str, at: datetime) -> Report:
    """The report. It does not repeat the reference by which it was asked for."""
    sections = [
        _held(subject),
        _used(subject),
        _consents(subject),
        _requests(subject),
        Section(
            "Refused at registration",
            notes=[f"for {'every purpose' if one == EVERYTHING else one}" for one in subject.suppressed] or ["No."],
        ),
    ]
    return Report("subject", "What is held about you", issuer, at, None, sections, personal=True)


def _held(subject: Subject) -> Section:
    images: list[tuple[Cell, ...]] = [
        (source, basis, licence, count, f"{first} to {last}")
        for (source, basis, licence), (count, first, last) in _by_source(subject.images).items()
    ]
    artifacts: list[tuple[Cell, ...]] = [
        (kind, store, _purposes(subject, mask), count) for kind, store, mask, count in subject.artifacts
    ]
    return Section(
        "Images and what was made of them",
        [("Images", len(subject.images))],
        [
            Table("images", ("source", "ground", "licence", "images", "acquired"), images),
            Table("artifacts", ("kind", "store", "kept for", "artifacts"), artifacts),
        ],
        [ABOUT],
    )


def _by_source(rows: Sequence[Row]) -> dict[tuple[str, str, str], tuple[int, str, str]]:
    counts = Counter((source, basis, licence) for _, source, _, basis, licence in rows)
    days = {key: sorted(str(row[2]) for row in rows if (row[1], row[3], row[4]) == key) for key in counts}
    return {key: (count, days[key][0], days[key][-1]) for key, count in counts.items()}


def _purposes(subject: Subject, mask: int) -> str:
    return ", ".join(name for bit, name in subject.purposes.items() if mask >> bit & 1)


def _used(subject: Subject) -> Section:
    images = BitMap64(row[0] for row in subject.images)
    found = affected(subject.world.lineage, subject.world.snapshots, dict.fromkeys(subject.purposes, images))
    rows: list[tuple[Cell, ...]] = [
        (name, subject.world.entries[name].status.value, taint.images, taint.direct, " from ".join(taint.path))
        for name, taint in found.tainted.items()
    ]
    unknown = sorted(name for name in subject.world.entries if not subject.world.lineage.known(name))
    notes = [f"{name}: not all that went into it is on record; it may have used them." for name in unknown]
    columns = ("model", "status", "images of yours", "direct", "path")
    return Section("Models that used them", tables=[Table("models", columns, rows)], notes=notes)


def _consents(subject: Subject) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (instant(at), "given" if given else "withdrawn", _purposes(subject, mask))
        for at, given, mask in subject.consents
    ]
    return Section("Consents on record", tables=[Table("consents", ("at", "what", "purposes"), rows)])


def _requests(subject: Subject) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (str(request), kind, state, instant(at), instant(due), data, models)
        for request, kind, state, at, due, data, models in subject.requests
    ]
    holds: list[tuple[Cell, ...]] = [
        (str(hold), instant(at), instant(until), instant(released)) for hold, at, until, released in subject.holds
    ]
    return Section(
        "Requests and holds",
        tables=[
            Table("requests", ("request", "type", "state", "accepted", "due", "data", "models"), rows),
            Table("holds", ("hold", "placed", "until", "released"), holds),
        ],
        notes=["A request that is certified is not kept under a person's reference: ask by its id."],
    )
