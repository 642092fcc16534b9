"""The compliance report of an order, for the authority that issued it.

Facts come from the verified log; what the log leaves out on purpose (who asked, for what, by when) from the order as it
was received. Late items and gaps are listed, never left out. The statement under oath at the end is a form: what it says
is for the person to judge who signs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from expunge.domain.errors import Rejected
from expunge.domain.page import LEVELS
from expunge.domain.replay import State, SweepState
from expunge.domain.report import ALWAYS_NOT_COVERED
from expunge.domain.statement import (
    Completion,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Reconciliation,
    ScopeApproved,
    ScopeUnwitnessed,
    ScopeVoid,
)
from expunge.domain.words import FINAL_ABSENT, Outcome, Provision, Step
from expunge.ports import Row, Tx
from expunge.reports.document import Cell, Position, Report, Section, Table, instant
from expunge.reports.reading import OfSweeps, StepFacts

ORDER_TYPE: Final = "expunge.request.order.v1"
NOT_AFFECTED: Final = "no image of the order in its training set or in those of what it came from"
UNKNOWN: Final = "not all that went into it is on record: neither shown to be affected nor shown not to be"
BLANK: Final = "____________________"


@dataclass(frozen=True, slots=True)
class Order:
    """An order's rows. `demand`: as it was signed (people of a list are counted, not named); `sweeps`: in the order in
    which they were certified, the present one last; `models`: name, status, and whether metrics are void."""

    request_id: UUID
    row: Row
    demand: Mapping[str, Any]
    certificates: Sequence[Row]
    sweeps: tuple[str, ...]
    excluded: Sequence[Row]
    approvers: Mapping[str, str]
    models: Sequence[tuple[str, str]]


async def read(tx: Tx, request_id: UUID) -> Order:
    """Raises `Rejected`: `unknown-request`, `not-an-order`."""
    rows = await tx.fetch("reports_request", request_id=request_id)
    if not rows:
        raise Rejected("unknown-request", "expected a request that was accepted, there is none of this id")
    if rows[0][0] != ORDER_TYPE:
        raise Rejected("not-an-order", "expected an order: the certificate of a person's request says all there is")
    certificates = await tx.fetch("reports_certificates", request_id=request_id)
    sweeps = dict.fromkeys([*(str(row[1]) for row in certificates), *([str(rows[0][8])] if rows[0][8] else [])])
    approvers = await tx.fetch("reports_approvers")
    models = await tx.fetch("readside_models")
    return Order(
        request_id,
        rows[0],
        _demand(bytes(rows[0][3])),
        certificates,
        tuple(sweeps),
        await tx.fetch("reports_excluded", sweeps=[UUID(one) for one in sweeps]),
        dict(approvers),
        [(row[0], row[1]) for row in models],
    )


def _demand(body: bytes) -> dict[str, Any]:
    demand: dict[str, Any] = json.loads(body)
    selection = demand["selection"]
    if "subjects" in selection:
        demand["selection"] = {"by": "list", "people": len(selection["subjects"])}
    return demand


def build(
    order: Order, state: State, seen: OfSweeps, *, log: Position, issuer: str, at: datetime, not_covered: Iterable[str]
) -> Report:
    """The report. `seen`: what a pass over the log kept about the order's sweeps."""
    sections: list[Section] = [
        _order(order, seen),
        _provisions(order, at),
        _data(order, state, seen),
        _reconciled(seen),
        _exceptions(order, state, seen),
        *_models(order, seen),
        Section("What this report does not cover", notes=(*not_covered, *ALWAYS_NOT_COVERED)),
        _kit(order, log),
        *_sworn(order, issuer),
    ]
    title = f"Report on order {order.request_id}"
    return Report("order", title, issuer, at, log, sections)


def _order(order: Order, seen: OfSweeps) -> Section:
    demand, row = order.demand, order.row
    selection = ", ".join(f"{name} {value}" for name, value in sorted(demand["selection"].items()) if name != "by")
    approvals = [
        f"{instant(said.at)}, log entry {index}, by {', '.join(_named(order, key) for key in said.approvers)}"
        for index, said in seen.said
        if isinstance(said, ScopeApproved)
    ]
    return Section(
        "The order",
        [
            ("Request", str(order.request_id)),
            ("Authority", demand["authority"]),
            ("Reference", demand["reference"]),
            ("Selection", f"by {demand['selection']['by']}: {selection}"),
            ("Issued", demand["issued_at"]),
            ("Accepted", instant(row[6])),
            ("Submitted by", row[5] or row[4]),
            ("Approved", "; ".join(approvals) or "not yet"),
            ("State", row[2]),
            ("Images", row[11]),
            ("Artifacts", row[12]),
        ],
    )


def _named(order: Order, key: str) -> str:
    return f"{order.approvers[key]} ({key[:16]})" if key in order.approvers else key[:16]


def _provisions(order: Order, at: datetime) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for demanded in order.demand["provisions"]:
        covers = demanded["covers"]
        closing = [row for row in order.certificates if row[0] == covers]
        # Without a tainted model the data certificate closes both.
        if not closing and covers == Provision.MODELS and order.row[10]:
            closing = [row for row in order.certificates if row[0] == Provision.DATA]
        result = order.row[9] if covers == Provision.DATA else order.row[10]
        closed = closing[-1][5] if closing and result else None
        due = datetime.fromisoformat(demanded["deadline"])
        late = max(0, ((closed or at) - due).days + 1) if (closed or at) > due else 0
        rows.append(
            (
                demanded["number"], covers, demanded.get("remedy"), demanded["deadline"], instant(closed),
                result or "open", late,
            )
        )  # fmt: skip
    columns = ("provision", "covers", "remedy", "due", "closed", "result", "days late")
    return Section("Provisions and their clocks", tables=[Table("provisions", columns, rows)])


def _data(order: Order, state: State, seen: OfSweeps) -> Section:
    rows: list[tuple[Cell, ...]] = []
    methods: list[tuple[Cell, ...]] = []
    for name, sweep in _known(order, state):
        coverage = sweep.coverage()
        for number, tree in enumerate(sweep.scope.trees):
            place = (tree.kind.value, tree.store)
            before = coverage.get((number, Step.PRESENCE))
            after = coverage.get((number, Step.ABSENCE))
            counts = after.outcomes if after else {}
            absent = sum(count for outcome, count in counts.items() if outcome in FINAL_ABSENT)
            looked = seen.steps.get((name, number, Step.ABSENCE))
            rows.append(
                (
                    *place, tree.leaves, before.outcomes[Outcome.PRESENT] if before else None, absent,
                    tree.leaves - absent, _level(looked), looked.sampled if looked else None,
                )
            )  # fmt: skip
            methods += [
                (
                    *place, step.value, instant(said.first), instant(said.last), said.attempts, _many(said.methods),
                    _many(said.residue),
                )
                for step in Step
                if (said := seen.steps.get((name, number, step)))
            ]  # fmt: skip
    counted = ("kind", "store", "in scope", "present before", "verified absent", "not", "level", "bytes looked for")
    told = ("kind", "store", "step", "first", "last", "attempts", "method", "may remain in")
    scopes = [
        (f"Scope of sweep {name}", f"log entry {sweep.index}, {instant(sweep.scope.at)}, {sweep.digest}")
        for name, sweep in _known(order, state)
    ]
    return Section(
        "Data: counts by kind and store",
        scopes,
        [Table("data", counted, rows), Table("steps", told, methods)],
        ["Present before and verified absent were seen by a key and with credentials that can only look."] if rows else
        ["No scope is fixed yet: nothing has been done."],
    )  # fmt: skip


def _known(order: Order, state: State) -> Iterator[tuple[str, SweepState]]:
    for name in order.sweeps:
        if name in state.sweeps:
            yield name, state.sweeps[name]


def _level(said: StepFacts | None) -> str | None:
    return LEVELS[min(said.levels)] if said and said.levels else None


def _many(values: Iterable[str]) -> str:
    return "; ".join(sorted(values))


def _reconciled(seen: OfSweeps) -> Section:
    said = [(index, one) for index, one in seen.said if isinstance(one, Reconciliation)]
    rows = [
        (
            index, instant(one.at), count.source, count.kind.value, count.registered, count.erased, count.under_way,
            count.present, count.difference,
        )
        for index, one in said
        for count in one.counts
    ]  # fmt: skip
    found = [
        f"Log entry {index}: all {one.sweep.leaves} artifacts of the scope were looked for again on {instant(one.at)};"
        f" {one.sweep.present} are in the stores."
        for index, one in said
        if one.sweep is not None and one.part == 0
    ]
    columns = ("log entry", "at", "source", "kind", "registered", "erased", "under way", "present", "difference")
    return Section(
        "Reconciliation after the order",
        tables=[Table("reconciliation", columns, rows)],
        notes=found or ["Not counted yet."],
    )


def _exceptions(order: Order, state: State, seen: OfSweeps) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for name, sweep in _known(order, state):
        for (number, step), count in sorted(sweep.coverage().items()):
            tree = sweep.scope.trees[number]
            rows += [
                (tree.kind.value, tree.store, outcome.name.lower().replace("_", " "), artifacts, None)
                for outcome, artifacts in sorted(count.outcomes.items())
                if step is Step.ABSENCE and outcome not in FINAL_ABSENT
            ]
        rows += [
            (sweep.scope.trees[tree].kind.value, sweep.scope.trees[tree].store, reason, int(leaves), "before anything was done")
            for sweep_id, tree, reason, leaves in order.excluded
            if str(sweep_id) == name
        ]  # fmt: skip
    notes = [*_gaps(seen)]
    columns = ("kind", "store", "why", "artifacts", "when")
    return Section(
        "Exceptions, gaps and late items",
        tables=[Table("exceptions", columns, rows)],
        notes=notes or ["No date was missed by a statement of the log."],
    )


def _gaps(seen: OfSweeps) -> Iterator[str]:
    for index, said in seen.said:
        match said:
            case Overdue():
                yield (
                    f"Log entry {index}: {said.provision.value} was due {instant(said.due)} and open on {instant(said.at)}."
                )
            case ScopeVoid():
                yield f"Log entry {index}: a scope was never carried out ({said.reason})."
            case ScopeUnwitnessed():
                yield (
                    f"Log entry {index}: work went ahead with {said.cosigned} of {said.quorum} witnesses"
                    f"{'' if said.timestamped else ' and without a time stamp'}."
                )
            case Completion() if any(result != "complete" for result in said.results):
                results = ", ".join(f"{count} {result}" for result, count in sorted(said.results.items()))
                yield f"Log entry {index}: {said.provision.value} ended as {results}."
            case _:
                pass


def _models(order: Order, seen: OfSweeps) -> Iterator[Section]:
    """Affected ones and their fate; the others, each with why it is not."""
    tainted = {said.model: (index, said) for index, said in seen.said if isinstance(said, ModelTainted)}
    fates = dict(_fates(seen))
    statuses = dict(order.models)
    rows: list[tuple[Cell, ...]] = [
        (
            name, said.images, said.direct, " from ".join(said.path), said.remedy.value, instant(said.due),
            fates.get(name, f"open: {statuses.get(name, 'not registered')}"), index,
        )
        for name, (index, said) in tainted.items()
    ]  # fmt: skip
    columns = ("model", "images of the order", "direct", "path", "remedy", "due", "fate", "log entry")
    void = [
        f"{said.model} was only evaluated on images of the order: its metrics are void (log entry {index})."
        for index, said in seen.said
        if isinstance(said, MetricVoid)
    ]
    yield Section("Models that the order affects", tables=[Table("affected-models", columns, rows)], notes=void)
    others: list[tuple[Cell, ...]] = [
        (name, status, UNKNOWN if status == "unknown" else NOT_AFFECTED)
        for name, status in order.models
        if name not in tainted
    ]
    note = "As the lineage on record says now; what is not on record is unknown, never clean."
    yield Section(
        "Models found not affected, and why",
        tables=[Table("other-models", ("model", "status", "why"), others)],
        notes=[note] if others else [],
    )


def _fates(seen: OfSweeps) -> Iterator[tuple[str, str]]:
    for index, said in seen.said:
        match said:
            case ModelReplaced():
                yield (
                    said.model,
                    (
                        f"replaced by {said.successor} on {instant(said.at)}, log entry {index}; weights {said.weights} erased:"
                        f" {said.method}, {LEVELS[said.level]}"
                    ),
                )
            case ModelDestroyed():
                yield (
                    said.model,
                    (
                        f"destroyed on {instant(said.at)}, log entry {index}; weights {said.weights}: {said.method},"
                        f" {LEVELS[said.level]}"
                    ),
                )
            case _:
                pass


def _kit(order: Order, log: Position) -> Section:
    rows: list[tuple[Cell, ...]] = [
        (row[0], row[3], instant(row[5]), row[6], bytes(row[4]).hex()) for row in order.certificates
    ]
    columns = ("certificate", "result", "issued", "log entry", "SHA-256")
    return Section(
        "Verification",
        [("Evidence log", log.origin), ("Size", log.size), ("Root", log.root)],
        [Table("certificates", columns, rows)],
        [
            (
                "Ask for the certificates as bundles, and check them offline with keys that you had some other way: "
                f"expunge certificate {order.request_id} --out BUNDLE, expunge verify BUNDLE --trust POLICY."
            ),
            "The format is documented so that others can write a verifier: schemas/EVIDENCE.md.",
        ],
    )


def _sworn(order: Order, issuer: str) -> Iterator[Section]:
    """One form per provision, unsigned."""
    for demanded in order.demand["provisions"]:
        exhibits = [bytes(row[4]).hex() for row in order.certificates if row[0] == demanded["covers"]]
        yield Section(
            f"Form of a sworn statement, provision {demanded['number']} ({demanded['covers']})",
            [
                ("Name", BLANK),
                ("Title", BLANK),
                ("On behalf of", issuer),
                ("Provision", f"{demanded['number']} of {order.demand['reference']}, due {demanded['deadline']}"),
                ("Statement", BLANK),
                ("Exhibits (SHA-256)", ", ".join(exhibits) or "none: this provision is open"),
                ("Date and place", BLANK),
                ("Signature", BLANK),
            ],
            notes=[
                (
                    "A form. Expunge states what is above and signs nothing here: whether it is complete and true is for the "
                    "person to judge who declares it under penalty of perjury."
                ),
            ],
        )
