"""Where the time of sweeps went, from the rows and log entries that they left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from expunge.domain import dsse
from expunge.domain.events import TaintResolved
from expunge.domain.words import Step
from expunge.record import event_id

_SEALED: Final = "urn:expunge:scope:v1"
_CHUNK: Final = "urn:expunge:chunk:v1"
_COMPLETED: Final = "urn:expunge:completion:v1"


@dataclass(slots=True)
class Requested:
    """One request: when it was published and when its data certificate was seen, both on this machine's clock."""

    request_id: str
    sent: float
    seen: float


def stages(dsn: str, requests: Sequence[Requested]) -> dict[str, Any]:
    """Mean seconds per request in each stage, and how many sweeps and chunk statements there were. A step's time runs
    from the end of the step before to its own last statement; stores work side by side, so each has its own."""
    ids = [UUID(one.request_id) for one in requests]
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "select r.request_id, r.sweep_id, extract(epoch from r.accepted_at)::float8,"
            " extract(epoch from s.published_at)::float8"
            " from request r join sweep s using (sweep_id) where request_id = any(%s)",
            (ids,),
        ).fetchall()
        sweeps = {row[1] for row in rows}
        marks = _marks(connection, sweeps)
        tasks = connection.execute(
            "select kind, count(*) from task where split_part(key, '/', 1) = any(%s) group by 1",
            ([str(sweep) for sweep in sweeps],),
        ).fetchall()
    total: dict[str, float] = {}
    by_id = {row[0]: row for row in rows}
    for one in requests:
        _, sweep, accepted, published = by_id[UUID(one.request_id)]
        for name, seconds in _split(one, accepted, published, marks[sweep]).items():
            total[name] = total.get(name, 0.0) + seconds
    return {
        "seconds": {name: value / len(requests) for name, value in total.items()},
        "sweeps": len(sweeps),
        "requests_per_sweep": len(requests) / len(sweeps),
        "tasks": dict(tasks),
        "chunk_statements": sum(one.get("statements", 0) for one in marks.values()),
    }


def _marks(connection: psycopg.Connection, sweeps: set[UUID]) -> dict[UUID, dict[str, Any]]:
    marks: dict[UUID, dict[str, Any]] = {sweep: {} for sweep in sweeps}
    for predicate, entry, at in connection.execute(
        "select predicate, entry, extract(epoch from at)::float8 from log_entry"
    ):
        if predicate not in (_SEALED, _CHUNK, _COMPLETED):
            continue
        said = json.loads(dsse.parse(entry).payload)["predicate"]
        mine = marks.get(UUID(said["sweep"]))
        if mine is None:
            continue
        name = {_SEALED: "sealed", _COMPLETED: "completed"}.get(predicate)
        if name is None:
            name = f"{said['store']} {said['step']}"
            mine["statements"] = mine.get("statements", 0) + 1
        mine[name] = max(mine.get(name, 0.0), at)
    resolved = {event_id(TaintResolved(sweep_id=str(sweep))): sweep for sweep in sweeps}  # type: ignore[arg-type] # NewType
    found = connection.execute(
        "select event_id, extract(epoch from at)::float8 from applied_event where event_id = any(%s)", (list(resolved),)
    )
    for identity, at in found:
        marks[resolved[identity]]["taint"] = at
    return marks


def _split(one: Requested, accepted: float, published: float, marks: Mapping[str, Any]) -> dict[str, float]:
    found = {
        "intake": accepted - one.sent,
        "plan": marks["sealed"] - accepted,
        "prove": published - marks["sealed"],  # of an order, with the approvals' way through Kafka
    }
    last = published
    for store in sorted({name.split(" ")[0] for name in marks if " " in name}):
        before = published
        for step in Step:
            at = marks.get(f"{store} {step.value}")
            if at is not None:
                found[f"{step.value} {store}"] = at - before
                before = at
        last = max(last, before)
    if "taint" in marks:
        found["taint"] = marks["taint"] - published
        last = max(last, marks["taint"])
    found["certify"] = marks["completed"] - last
    found["announce"] = one.seen - marks["completed"]
    found["whole"] = one.seen - one.sent
    return found
