"""What Expunge says: everything that crosses Kafka from or between its workers, and what stages hand each other.

References only: request, sweep and batch ids, positions in a sweep, model names, counts. Never a subject, a locator or
a digest of a photo. Public events are part of the contract (schemas/); the rest may change with any release.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, NewType, Self, TypeAlias, assert_never

from pydantic import Field, StringConstraints, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from expunge.domain import topics
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.errors import Rejected
from expunge.domain.lineage import BatchId, JobId, ModelName, StoreName
from expunge.domain.request import (
    UUID,
    Digest,
    Message,
    RequestId,
    Time,
    Unique,
    dump_as,
    parse_as,
    types_of,
)
from expunge.domain.words import Kind, Level, Provision, Step

SweepId = NewType("SweepId", str)

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**53 - 1)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
"""A reason code, as in `Rejected.code`."""
LogOrigin = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}$")]
Predicate = Annotated[str, StringConstraints(pattern=r"^(urn|https):[A-Za-z0-9._:/#-]{1,200}$")]
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class Result(StrEnum):
    """How a provision of a request stands."""

    COMPLETE = "complete"
    BLOCKED = "blocked"
    PARTIAL = "partial"
    UNVERIFIED = "unverified"
    HELD = "held"
    OVERDUE = "overdue"
    CANCELLED = "cancelled"
    VOID = "void"


# Public, on expunge.proofs


class RequestRejected(Message):
    """A request was refused. `request_id` is absent where none could be read from a verified envelope."""

    type: Literal["expunge.proof.request-rejected.v1"] = "expunge.proof.request-rejected.v1"
    request_id: Annotated[RequestId, UUID] | None = None
    code: Code
    at: Time


class RequestAccepted(Message):
    """A request is authentic, allowed and recorded; suppression is in force."""

    type: Literal["expunge.proof.request-accepted.v1"] = "expunge.proof.request-accepted.v1"
    request_id: Annotated[RequestId, UUID]
    at: Time


class ScopeCount(Message):
    """How many artifacts of one kind a scope has in one store."""

    kind: Kind
    store: StoreName
    artifacts: Count


class ApprovalAwaited(Message):
    """A sealed scope waits for approvals that name `scope_root`."""

    type: Literal["expunge.proof.approval-awaited.v1"] = "expunge.proof.approval-awaited.v1"
    request_id: Annotated[RequestId, UUID]
    sweep_id: Annotated[SweepId, UUID]
    scope_root: Digest
    counts: Annotated[tuple[ScopeCount, ...], Field(max_length=1024), Unique()]
    images: Count
    at: Time


BreakerScope: TypeAlias = Annotated[str, Field(pattern=r"^(store|source):[a-z0-9][a-z0-9._-]{0,63}$")]
"""What a breaker guards: `store:NAME` or `source:NAME`."""


class BreakerOpened(Message):
    """More would have been erased in an hour than the caps allow. What touches this scope waits for a person."""

    type: Literal["expunge.proof.breaker-opened.v1"] = "expunge.proof.breaker-opened.v1"
    scope: BreakerScope
    counted: Count
    cap: Count
    at: Time


class BreakerClosed(Message):
    """A person has looked, and what waited goes on."""

    type: Literal["expunge.proof.breaker-closed.v1"] = "expunge.proof.breaker-closed.v1"
    scope: BreakerScope
    at: Time


class SealedStatement(Message):
    """Where one statement is in the log."""

    index: Count
    leaf_hash: Digest
    predicate: Predicate


class ProofSealed(Message):
    """Statements are in the log, under a published checkpoint of this size."""

    type: Literal["expunge.proof.sealed.v1"] = "expunge.proof.sealed.v1"
    origin: LogOrigin
    size: Positive
    statements: Annotated[tuple[SealedStatement, ...], Field(min_length=1, max_length=256), Unique()]

    @model_validator(mode="after")
    def _size_covers_them(self) -> Self:
        if any(statement.index >= self.size for statement in self.statements):
            raise PydanticCustomError("beyond_size", "expected every index below size")
        return self


class CertificateIssued(Message):
    """One provision of one request has a result. `number`: which of an order's provisions."""

    type: Literal["expunge.proof.certificate-issued.v1"] = "expunge.proof.certificate-issued.v1"
    request_id: Annotated[RequestId, UUID]
    provision: Provision
    number: Annotated[int, Field(ge=1, le=9999)] | None = None
    sweep_id: Annotated[SweepId, UUID]
    round: Count
    result: Result
    certificate_digest: Digest
    at: Time


class RequestCompleted(Message):
    """Every provision of a request is closed."""

    type: Literal["expunge.proof.request-completed.v1"] = "expunge.proof.request-completed.v1"
    request_id: Annotated[RequestId, UUID]
    at: Time


class Registered(Message):
    """A batch is in the catalogue, and its root in the log."""

    type: Literal["expunge.proof.registered.v1"] = "expunge.proof.registered.v1"
    batch_id: Annotated[BatchId, UUID]
    images: Count
    artifacts: Count
    at: Time


class RegistrationRefused(Message):
    """Images or artifacts of a batch were not taken. `codes`: how many for which reason."""

    type: Literal["expunge.proof.registration-refused.v1"] = "expunge.proof.registration-refused.v1"
    batch_id: Annotated[BatchId, UUID]
    codes: Annotated[dict[Code, Positive], Field(min_length=1, max_length=64)]
    at: Time


class ModelTainted(Message):
    """A sweep's images are in a model's transitive training set. `by`: the path of models from where they entered."""

    type: Literal["expunge.proof.model-tainted.v1"] = "expunge.proof.model-tainted.v1"
    model: ModelName
    sweep_id: Annotated[SweepId, UUID]
    images: Positive
    by: Annotated[tuple[ModelName, ...], Field(max_length=64)] = ()
    at: Time


class ModelReplaced(Message):
    """A tainted model has a clean successor. `sweeps`: how many sweeps it was tainted by."""

    type: Literal["expunge.proof.model-replaced.v1"] = "expunge.proof.model-replaced.v1"
    model: ModelName
    successor: ModelName
    sweeps: Positive
    at: Time


class ModelDestroyed(Message):
    """A model's file was erased, to this level."""

    type: Literal["expunge.proof.model-destroyed.v1"] = "expunge.proof.model-destroyed.v1"
    model: ModelName
    level: Level
    at: Time


class AuditPassed(Message):
    """The log replayed up to `size` without a difference."""

    type: Literal["expunge.proof.audit-passed.v1"] = "expunge.proof.audit-passed.v1"
    size: Count
    at: Time


class AuditFailed(Message):
    """The log and what it should agree with differ. `difference`: the kind of the first one."""

    type: Literal["expunge.proof.audit-failed.v1"] = "expunge.proof.audit-failed.v1"
    size: Count
    difference: Code
    at: Time


# Public, on expunge.retraining and expunge.dead-letter


class RetrainingQueued(Message):
    """A job for a trainer. `cut`: log index up to which exclusions count; `exclusion_digest`: of the excluded set."""

    type: Literal["expunge.retraining.queued.v1"] = "expunge.retraining.queued.v1"
    job_id: Annotated[JobId, UUID]
    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=64), Unique()]
    cut: Count
    due: Time
    excluded_images: Count
    exclusion_digest: Digest


class SuccessorRefused(Message):
    """A successor did not answer its job; the job is queued again. `code`: why."""

    type: Literal["expunge.retraining.successor-refused.v1"] = "expunge.retraining.successor-refused.v1"
    model: ModelName
    job_id: Annotated[JobId, UUID]
    code: Code
    at: Time


class DeadLettered(Message):
    """A message was given up; its bytes are parked. `event_id` is absent where there is none that is a UUID."""

    type: Literal["expunge.dead-letter.v1"] = "expunge.dead-letter.v1"
    event_id: Annotated[str, UUID] | None = None
    topic: TopicName
    partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    offset: Count
    reason: Code
    at: Time


# Internal: work orders, their outcomes, and what stages hand over


class _Chunks(Message):
    """Chunks [first_chunk, end_chunk) of one tree of a sweep, in one attempt at one step."""

    step: Step
    sweep_id: Annotated[SweepId, UUID]
    tree: Annotated[int, Field(ge=0, le=65_535)]
    first_chunk: Count
    end_chunk: Count
    attempt: Annotated[int, Field(ge=0, le=65_535)]

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.first_chunk >= self.end_chunk:
            raise PydanticCustomError("empty_range", "expected first_chunk below end_chunk")
        return self


class WorkOrdered(_Chunks):
    """Do this step; on the topic of the worker that can."""

    type: Literal["expunge.work.ordered.v1"] = "expunge.work.ordered.v1"


class PresenceRecorded(_Chunks):
    """What was there before is recorded."""

    type: Literal["expunge.work.presence-recorded.v1"] = "expunge.work.presence-recorded.v1"
    step: Literal[Step.PRESENCE]


class ImagesPurged(_Chunks):
    """Every image-like artifact of these chunks has a final outcome in this step, none of them blocked."""

    type: Literal["expunge.work.images-purged.v1"] = "expunge.work.images-purged.v1"
    step: Literal[Step.HIDE, Step.ERASE]


class VectorsInvalidated(_Chunks):
    """Every embedding of these chunks has a final outcome in this step, none of them blocked."""

    type: Literal["expunge.work.vectors-invalidated.v1"] = "expunge.work.vectors-invalidated.v1"
    step: Literal[Step.HIDE, Step.ERASE]


class ArtifactsBlocked(_Chunks):
    """Some artifacts of these chunks are blocked, failed or open: the recorded outcomes say which."""

    type: Literal["expunge.work.artifacts-blocked.v1"] = "expunge.work.artifacts-blocked.v1"
    step: Literal[Step.HIDE, Step.ERASE]


class AbsenceVerified(_Chunks):
    """Nothing of these chunks was found again."""

    type: Literal["expunge.work.absence-verified.v1"] = "expunge.work.absence-verified.v1"
    step: Literal[Step.ABSENCE]


class ResidueFound(_Chunks):
    """Something of these chunks was found again."""

    type: Literal["expunge.work.residue-found.v1"] = "expunge.work.residue-found.v1"
    step: Literal[Step.ABSENCE]


class TaintOrdered(Message):
    """Find the models that a sweep's images are in, and settle their remedies."""

    type: Literal["expunge.sweep.taint-ordered.v1"] = "expunge.sweep.taint-ordered.v1"
    sweep_id: Annotated[SweepId, UUID]


class TaintResolved(Message):
    """Every model that a sweep taints is recorded with its remedy and due date."""

    type: Literal["expunge.sweep.taint-resolved.v1"] = "expunge.sweep.taint-resolved.v1"
    sweep_id: Annotated[SweepId, UUID]


class ModelArrived(Message):
    """A model was registered, or something that it came from was: say what its status is."""

    type: Literal["expunge.sweep.model-arrived.v1"] = "expunge.sweep.model-arrived.v1"
    model: ModelName
    at: Time


class SuccessorRegistered(Message):
    """A trainer answered a job: check the successor, then destroy what it replaces."""

    type: Literal["expunge.sweep.successor-registered.v1"] = "expunge.sweep.successor-registered.v1"
    model: ModelName
    replaces: ModelName
    job_id: Annotated[JobId, UUID]
    at: Time


class DestructionOrdered(Message):
    """Erase the file of a model whose remedy is destruction."""

    type: Literal["expunge.sweep.destruction-ordered.v1"] = "expunge.sweep.destruction-ordered.v1"
    model: ModelName
    at: Time


class ModelsResolved(Message):
    """A tainted model is replaced or destroyed: these sweeps may have finished requests."""

    type: Literal["expunge.sweep.models-resolved.v1"] = "expunge.sweep.models-resolved.v1"
    model: ModelName
    sweep_ids: Annotated[tuple[Annotated[SweepId, UUID], ...], Field(min_length=1, max_length=4096), Unique()]
    at: Time


WorkDone: TypeAlias = (
    PresenceRecorded | ImagesPurged | VectorsInvalidated | ArtifactsBlocked | AbsenceVerified | ResidueFound
)

Event: TypeAlias = Annotated[
    RequestRejected
    | RequestAccepted
    | ApprovalAwaited
    | BreakerOpened
    | BreakerClosed
    | ProofSealed
    | CertificateIssued
    | RequestCompleted
    | Registered
    | RegistrationRefused
    | ModelTainted
    | ModelReplaced
    | ModelDestroyed
    | AuditPassed
    | AuditFailed
    | RetrainingQueued
    | DeadLettered
    | WorkOrdered
    | PresenceRecorded
    | ImagesPurged
    | VectorsInvalidated
    | ArtifactsBlocked
    | AbsenceVerified
    | ResidueFound
    | TaintOrdered
    | TaintResolved
    | SuccessorRefused
    | ModelArrived
    | SuccessorRegistered
    | DestructionOrdered
    | ModelsResolved,
    Field(discriminator="type"),
]
EVENT_ADAPTER: Final[TypeAdapter[Event]] = TypeAdapter(Event)
EVENT_TYPES: Final = types_of(Event)

_PUBLIC: Final = {
    "expunge.proof.": topics.PROOFS,
    "expunge.retraining.": topics.RETRAINING,
    "expunge.dead-letter.": topics.DEAD_LETTER,
}
TOPIC_OF: Final = {
    name: topic.name for name in EVENT_TYPES for prefix, topic in _PUBLIC.items() if name.startswith(prefix)
}
"""The topic of each public type."""


def parse_event(data: bytes) -> Event:
    """Raises `Rejected`: `malformed`, `unknown-type` or `unknown-version`."""
    return parse_as(EVENT_ADAPTER, data)


def dump_event(event: Event) -> bytes:
    """RFC 8785."""
    return dump_as(event)


def partition_key(event: Event) -> str | None:
    """The Kafka key: what is said about one request, batch, model, job or log stays in order. Work is spread: chunks of
    one sweep need no order."""
    match event:
        case _Chunks():
            return f"{event.sweep_id}/{event.tree}/{event.first_chunk}"
        case RequestRejected() | RequestAccepted() | ApprovalAwaited() | CertificateIssued() | RequestCompleted():
            return event.request_id
        case TaintOrdered() | TaintResolved():
            return event.sweep_id
        case Registered() | RegistrationRefused():
            return event.batch_id
        case (
            ModelTainted()
            | ModelReplaced()
            | ModelDestroyed()
            | ModelArrived()
            | SuccessorRegistered()
            | DestructionOrdered()
            | ModelsResolved()
        ):
            return event.model
        case RetrainingQueued() | SuccessorRefused():
            return event.job_id
        case ProofSealed():
            return event.origin
        case BreakerOpened() | BreakerClosed() | DeadLettered() | AuditPassed() | AuditFailed():
            return _of_the_deployment(event)
        case _:
            assert_never(event)


def _of_the_deployment(event: BreakerOpened | BreakerClosed | DeadLettered | AuditPassed | AuditFailed) -> str:
    match event:
        case BreakerOpened() | BreakerClosed():
            return event.scope
        case DeadLettered():
            return event.topic
        case _:
            return "audit"


def to_cloudevent(event: Event, event_id: str, source: str) -> CloudEvent:
    """The event as a record. `event_id` is derived from the cause (UUIDv5), so that a repeat is recognised."""
    return CloudEvent(
        id=event_id, source=source, type=event.type, data=dump_event(event), partitionkey=partition_key(event)
    )


def from_cloudevent(event: CloudEvent) -> Event:
    """Raises `Rejected` as `parse_event` does, and `header-mismatch` where the record's type is another."""
    parsed = parse_event(event.data)
    if parsed.type != event.type:
        raise Rejected("header-mismatch", "expected type of the record to agree with its data")
    return parsed
