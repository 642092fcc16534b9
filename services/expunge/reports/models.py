"""Every model and how it stands: what taints it, by which path, what is done about it by when; what the log says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from expunge.domain.replay import State
from expunge.domain.words import ModelStatus
from expunge.reports.document import Cell, Position, Report, Section, Table

COLUMNS: Final = (
    "model", "purpose", "status", "last said in the log", "metrics", "replaced by", "clean at log size", "weights (SHA-256)"
)  # fmt: skip


def build(
    models: Sequence[Mapping[str, Any]], state: State, *, log: Position, issuer: str, at: datetime
) -> Report:  # fmt: skip
    """The report. `models`: as `Reader.model` describes each."""
    standing: list[tuple[Cell, ...]] = []
    taints: list[tuple[Cell, ...]] = []
    lineage: list[tuple[Cell, ...]] = []
    for one in models:
        name = one["model"]
        logged = state.models.get(name)
        said = logged.status.value if logged and logged.status else None
        standing.append(
            (
                name, one["purpose"], one["status"], said, "void" if one["metric_void"] else "stand", one["replaced_by"],
                one["clean_at"], one["weights_sha256"],
            )
        )  # fmt: skip
        taints += [
            (
                name, taint["sweep"], taint["images"], taint["direct"], " from ".join(taint["path"]), taint["remedy"],
                taint["due"], taint["resolution"] or "open", taint["resolved_at"],
            )
            for taint in one["taints"]
        ]  # fmt: skip
        lineage += [(name, "trained-on", snapshot) for snapshot in one["trained_on"]]
        lineage += [(name, parent["relation"], parent["model"]) for parent in one["parents"]]
    unknown = [one["model"] for one in models if one["status"] == ModelStatus.UNKNOWN]
    notes = [f"{name}: not all that went into it is on record, so it is not called clean." for name in unknown]
    sections = [
        Section(
            "Models",
            tables=[
                Table(
                    "models",
                    COLUMNS,
                    standing,
                )
            ],
            notes=notes,
        ),
        Section(
            "What taints them",
            tables=[
                Table(
                    "taints",
                    ("model", "sweep", "images", "direct", "path", "remedy", "due", "resolution", "log entry"),
                    taints,
                )
            ],
        ),
        Section("What they came from", tables=[Table("lineage", ("model", "relation", "from"), lineage)]),
    ]  # fmt: skip
    return Report("models", "Models", issuer, at, log, sections)
