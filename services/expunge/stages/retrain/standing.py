"""How models stand: for `expunge models list`, `show` and `gate`. Reads only.

Clean is a claim relative to a log position: nothing withdrawn by any sweep whose scope is below it is in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from expunge.domain.errors import Rejected
from expunge.domain.words import ModelStatus, Remedy
from expunge.ports import Tx


@dataclass(frozen=True, slots=True)
class Standing:
    """One line of the list. `open_taints`: sweeps not resolved; `due`: the earliest of them."""

    model: str
    purpose: str
    status: ModelStatus
    metric_void: bool
    clean_at: int | None
    replaced_by: str | None
    open_taints: int
    due: datetime | None


@dataclass(frozen=True, slots=True)
class TaintLine:
    """Why a model is or was tainted. `path`: from it to the model that was trained on the images."""

    sweep_id: UUID
    images: int
    direct: int
    path: tuple[str, ...]
    remedy: Remedy
    due: datetime
    resolution: str | None
    resolved_index: int | None


@dataclass(frozen=True, slots=True)
class Shown:
    standing: Standing
    metrics: dict[str, Any]
    weights_digest: str
    taints: tuple[TaintLine, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """`reasons`: why the model may not be deployed; none if it may. `position`: the log's size when asked."""

    model: str
    reasons: tuple[str, ...]
    clean_at: int | None
    position: int

    @property
    def open(self) -> bool:
        return not self.reasons


async def listed(tx: Tx) -> list[Standing]:
    """Every model, by name."""
    return [
        Standing(name, purpose, ModelStatus(status), void, clean_at, successor, taints, due)
        for name, purpose, status, void, clean_at, successor, taints, due in await tx.fetch("standing_list")
    ]


async def shown(tx: Tx, model: str) -> Shown:
    """Raises `Rejected("unknown-model")`."""
    rows = await tx.fetch("standing_model", name=model)
    if not rows:
        raise Rejected("unknown-model", "expected a model that is registered")
    name, purpose, status, void, clean_at, successor, metrics, digest = rows[0]
    taints = tuple(
        TaintLine(sweep_id, images, direct, tuple(path), Remedy(remedy), due, resolution, index)
        for sweep_id, images, direct, path, remedy, due, resolution, index in await tx.fetch(
            "standing_taints", name=model
        )
    )
    still = [taint for taint in taints if taint.resolution is None]
    standing = Standing(
        name,
        purpose,
        ModelStatus(status),
        void,
        clean_at,
        successor,
        len(still),
        min((t.due for t in still), default=None),
    )
    return Shown(standing, metrics, bytes(digest).hex(), taints)


async def gate(tx: Tx, model: str) -> Gate:
    """Whether a model may be deployed now. Raises `Rejected("unknown-model")`."""
    found = await shown(tx, model)
    ((position,),) = await tx.fetch("retrain_log_size")
    ((pending,),) = await tx.fetch("standing_pending", position=position)
    reasons = []
    if found.standing.status is not ModelStatus.CLEAN:
        reasons.append(f"status is {found.standing.status}")
    reasons += [
        f"tainted by sweep {taint.sweep_id} through {' <- '.join(taint.path)}, due {taint.due:%Y-%m-%d}"
        for taint in found.taints
        if taint.resolution is None
    ]
    if pending:
        reasons.append(f"{pending} published sweeps are not resolved yet")
    return Gate(model, tuple(reasons), found.standing.clean_at, position)
