"""What the read API answers with. References only: ids, states, counts, times; never a subject, a locator, a digest of a
photo."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from expunge.domain.events import Result
from expunge.domain.lifecycle import FINAL, RequestState
from expunge.domain.words import ModelStatus, Provision, Relation, Remedy

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Shape(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Submitted(Shape):
    """The request is on Kafka, acknowledged by all replicas. What becomes of it is said at `location`."""

    request: UUID
    location: str


class SweepStanding(Shape):
    """The sweep that a request is in. `scope_root`: SHA-256 of its sealed scope statement, which approvals name."""

    id: UUID
    state: str
    scope_root: Hex
    scope_index: int
    artifacts: int
    runs_open: int
    approvals: int


class Results(Shape):
    """By provision; none while it is open."""

    data: Result | None
    models: Result | None


class CertificateEntry(Shape):
    """One certificate that was issued. `sha256`: of the certificate inside the bundle."""

    provision: Provision
    sweep: UUID
    round: int
    result: Result
    sha256: Hex


class RequestStanding(Shape):
    """Where a request stands that erases: a deletion, withdrawal, retention expiry or order."""

    kind: Literal["erasing"] = "erasing"
    request: UUID
    type: str
    request_class: Literal["people", "order"] = Field(serialization_alias="class", validation_alias="class")
    state: RequestState
    final: bool
    accepted_at: datetime
    due: datetime
    images: int | None
    artifacts: int | None
    sweep: SweepStanding | None
    results: Results
    certificates: list[CertificateEntry]

    @classmethod
    def of(cls, status: dict[str, Any]) -> RequestStanding:
        """From `readside.Reader.status`."""
        return cls.model_validate({**status, "final": status["state"] in FINAL})


class RequestAnswer(Shape):
    """What a request was answered that leaves nothing to follow: `completed` at once (a consent, hold, release, cancel or
    approval), or `rejected` with a code. `type` is null where the signed payload could not be read."""

    kind: Literal["answered"] = "answered"
    request: UUID
    type: str | None
    state: Literal[RequestState.COMPLETED, RequestState.REJECTED]
    final: Literal[True] = True
    code: str | None
    at: datetime


class RequestLine(Shape):
    """One request in a list."""

    request: UUID
    type: str
    request_class: Literal["people", "order"] = Field(serialization_alias="class", validation_alias="class")
    state: RequestState
    final: bool
    accepted_at: datetime
    due: datetime
    results: Results


class RequestPage(Shape):
    """Requests, oldest first. `next`: the cursor of the page after this one, null on the last."""

    items: list[RequestLine]
    next: str | None


class ModelLine(Shape):
    """One model in a list. `clean_at`: log size relative to which it was found clean; `due`: of its first open taint."""

    model: str
    status: ModelStatus
    metric_void: bool
    purpose: str
    replaced_by: str | None
    clean_at: int | None
    registered_at: datetime
    due: datetime | None
    open_taints: int


class ModelPage(Shape):
    """Models, in the order of their registration."""

    items: list[ModelLine]
    next: str | None


class Parent(Shape):
    """What a model came from, and how."""

    model: str
    relation: Relation


class Taint(Shape):
    """A sweep whose images are in the model's transitive training set. `resolution` is null while it is open;
    `resolved_at`, `scope_index`: positions in the evidence log."""

    sweep: UUID
    images: int
    direct: int
    path: list[str]
    remedy: Remedy
    due: datetime
    resolution: str | None
    resolved_at: int | None
    scope_index: int


class ModelStanding(Shape):
    """How a model stands at `log_size` entries of the evidence log. `clean` is what a deployment pipeline should ask; a
    model whose history is not on record is `unknown`, never clean."""

    model: str
    status: ModelStatus
    clean: bool
    log_size: int
    metric_void: bool
    purpose: str
    replaced_by: str | None
    clean_at: int | None
    weights_sha256: Hex
    metrics: dict[str, float]
    trained_on: list[str]
    parents: list[Parent]
    registered_at: datetime
    taints: list[Taint]


class ReceiptOf(Shape):
    """Which image: the locator of one of its artifacts, or the SHA-256 (hex) of the photo. Travels in the body, because
    paths end up in logs."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Health(Shape):
    """Whether the API answers, and whether its database does."""

    status: Literal["ok", "unavailable"]
    version: str
