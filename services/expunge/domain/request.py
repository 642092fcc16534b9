"""What may be asked of Expunge: the signed requests, and how bytes become one or are refused.

A request is the payload of a DSSE envelope (recipe: schemas/README.md). Whoever holds a `Request` knows that it fits
the schema, never that it is authentic: that is intake's to check. Refusals never repeat what was sent, because it may
hold personal data: they name known fields and the kind of mistake only.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NewType, Self, TypeAlias, TypeVar, assert_never, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from expunge.domain import canonical
from expunge.domain.cloudevents import CloudEvent
from expunge.domain.errors import Rejected
from expunge.domain.limits import ORDER_SUBJECTS, TEXT_CHARS
from expunge.domain.words import Provision, Remedy

PAYLOAD_TYPE: Final = "application/vnd.expunge.request+json"
"""DSSE payloadType of every request."""

ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
"""Content type of a DSSE envelope (the name that cosign and OCI registries use; DSSE itself registers none)."""

_NAMED_MISTAKES: Final = 8
"""Most mistakes named in one refusal."""
_TIME: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$"
_DAY: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"

T = TypeVar("T")


def _utc(value: object) -> datetime:
    if isinstance(value, str) and re.fullmatch(_TIME, value):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and value.utcoffset() == timedelta(0):
        return value.astimezone(UTC)
    raise PydanticCustomError("utc_time", "expected a UTC time such as 2026-01-31T12:00:00Z")


def _day(value: object) -> date:
    if isinstance(value, str) and re.fullmatch(_DAY, value):
        return date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise PydanticCustomError("day", "expected a day such as 2026-01-31")


@dataclass(frozen=True)
class Unique:
    """Annotation of a tuple: no value twice (`uniqueItems`)."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_no_repeats, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "uniqueItems": True}


def _no_repeats(values: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "expected no value twice")
    return values


RequestId = NewType("RequestId", str)
"""A UUID, lower case with hyphens; publishers draw version 4 or 7."""
SubjectRef = NewType("SubjectRef", str)
"""A keyed pseudonym of a person, `<key id>.<MAC>`, computed by the controller's identity service."""

UUID: Final = StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
SUBJECT_REF: Final = StringConstraints(pattern=r"^[a-z0-9]{1,16}\.[A-Za-z0-9_-]{16,86}$")

Time = Annotated[
    datetime, BeforeValidator(_utc), WithJsonSchema({"type": "string", "format": "date-time", "pattern": _TIME})
]
"""UTC, written with `Z`, to the microsecond at most."""
Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date", "pattern": _DAY})]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, lower-case hex."""
SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Purpose = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Purposes = Annotated[tuple[Purpose, ...], Field(min_length=1, max_length=16), Unique()]
Audience = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.:/_-]{0,127}$")]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARS, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""A file number or the like. One line."""


class Message(BaseModel):
    """Base of everything that crosses Kafka: frozen, unknown fields refused, nothing coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


def parse_as(adapter: TypeAdapter[T], payload: bytes) -> T:
    """One of the adapter's messages. Raises `Rejected` as `parse_request` does."""
    try:
        return adapter.validate_json(payload)
    except ValidationError as error:
        refusal = refused(adapter, error)
    raise refusal  # outside the handler, so that no context holds the input


def dump_as(message: Message) -> bytes:
    """RFC 8785; absent options are left out."""
    return canonical.dumps(message.model_dump(mode="json", exclude_none=True))


def refused(adapter: TypeAdapter[Any], error: ValidationError) -> Rejected:
    """A validation error without anything that came from the input: known names, indices and kinds of mistake."""
    mistakes = error.errors(include_url=False, include_input=False)
    names = _names(adapter)
    if mistakes[0]["type"] == "union_tag_invalid" and not mistakes[0]["loc"]:
        stem, dot, version = mistakes[0]["ctx"]["tag"].rpartition(".v")
        if dot and version.isdecimal() and stem and any(name.rpartition(".v")[0] == stem for name in names):
            return Rejected("unknown-version", "expected a version of this type that is known here")
        return Rejected("unknown-type", "expected a type that is known here")
    named = [f"{_place(mistake['loc'], names)} ({mistake['type']})" for mistake in mistakes[:_NAMED_MISTAKES]]
    more = f" and {len(mistakes) - _NAMED_MISTAKES} more" if len(mistakes) > _NAMED_MISTAKES else ""
    return Rejected("malformed", f"expected a message that fits its schema, got mistakes in {', '.join(named)}{more}")


def types_of(union: object) -> dict[str, type[Message]]:
    """Each member of a union discriminated by `type`, by that."""
    return {member.model_fields["type"].default: member for member in get_args(get_args(union)[0])}


def _place(loc: tuple[int | str, ...], names: frozenset[str]) -> str:
    return ".".join(str(part) if isinstance(part, int) or part in names else "?" for part in loc) or "message"


@lru_cache
def _names(adapter: TypeAdapter[Any]) -> frozenset[str]:
    """Every field name and constant of the adapter's messages: all that a refusal may repeat."""
    found = {"[key]"}
    pending: list[Any] = [adapter.json_schema()]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            found |= set(node.get("properties", ())) | ({node["const"]} if "const" in node else set())
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return frozenset(found)


class Regulation(StrEnum):
    """The law that a request relies on; policy derives its clock."""

    GDPR = "gdpr"
    CCPA = "ccpa"
    BIPA = "bipa"
    AI_ACT = "ai-act"
    OTHER = "other"


class Authority(StrEnum):
    """Who orders or holds."""

    REGULATOR = "regulator"
    COURT = "court"
    COMPANY = "company"


class BySubject(Message):
    """One person."""

    by: Literal["subject"] = "subject"
    subject_ref: Annotated[SubjectRef, SUBJECT_REF]


class BySource(Message):
    """Everything that came from one source."""

    by: Literal["source"] = "source"
    source: SourceName


class ByPeriod(Message):
    """What was acquired from `start` on and before `end`, of one source or of all."""

    by: Literal["period"] = "period"
    source: SourceName | None = None
    start: Day
    end: Day

    @model_validator(mode="after")
    def _start_is_before_end(self) -> Self:
        if self.start >= self.end:
            raise PydanticCustomError("empty_period", "expected start before end")
        return self


class ByList(Message):
    """These people."""

    by: Literal["list"] = "list"
    subjects: Annotated[
        tuple[Annotated[SubjectRef, SUBJECT_REF], ...], Field(min_length=1, max_length=ORDER_SUBJECTS), Unique()
    ]


class BySuppressed(Message):
    """What the suppression journal says must not be here: every image whose digest, or one of whose people, was erased or
    is to be. After an older backup was restored, that is what came back with it."""

    by: Literal["suppressed"] = "suppressed"


class OrderProvision(Message):
    """One numbered demand of an order. `remedy`: what to do about tainted models; none for data."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"covers": {"const": "models"}}},
            "then": {"required": ["remedy"], "properties": {"remedy": {"type": "string"}}},
            "else": {"properties": {"remedy": {"type": "null"}}},
        }
    )

    number: Annotated[int, Field(ge=1, le=9999)]
    covers: Provision
    deadline: Time
    remedy: Remedy | None = None

    @model_validator(mode="after")
    def _remedy_is_for_models(self) -> Self:
        if (self.covers is Provision.MODELS) != (self.remedy is not None):
            raise PydanticCustomError("remedy", "expected a remedy for models, and none for data")
        return self


def _ascending(provisions: tuple[OrderProvision, ...]) -> tuple[OrderProvision, ...]:
    numbers = [provision.number for provision in provisions]
    if numbers != sorted(set(numbers)):
        raise PydanticCustomError("not_ascending", "expected ascending numbers, none twice")
    return provisions


class _Signed(Message):
    """What every request states under its signature. `nonce` keeps two equal requests apart in the log."""

    id: Annotated[RequestId, UUID]
    audience: Audience
    issued_at: Time
    expires_at: Time
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

    @model_validator(mode="after")
    def _expires_after_issue(self) -> Self:
        if self.expires_at <= self.issued_at:
            raise PydanticCustomError("expires_before_issue", "expected expires_at after issued_at")
        return self


class DeletionRequested(_Signed):
    """A person asks that everything of theirs be deleted."""

    type: Literal["expunge.request.deletion.v1"] = "expunge.request.deletion.v1"
    subject_ref: Annotated[SubjectRef, SUBJECT_REF]
    regulation: Regulation
    received_at: Time
    deadline: Time | None = None


class RetentionExpired(_Signed):
    """The company's own schedule asks for deletion: of all purposes, or of those named."""

    type: Literal["expunge.request.retention.v1"] = "expunge.request.retention.v1"
    subject_ref: Annotated[SubjectRef, SUBJECT_REF]
    purposes: Purposes | None = None


class ConsentGiven(_Signed):
    """A person consents: lifts their suppression for these purposes, for images registered from now on."""

    type: Literal["expunge.request.consent-given.v1"] = "expunge.request.consent-given.v1"
    subject_ref: Annotated[SubjectRef, SUBJECT_REF]
    purposes: Purposes


class ConsentWithdrawn(_Signed):
    """A person withdraws consent for some purposes."""

    type: Literal["expunge.request.consent-withdrawal.v1"] = "expunge.request.consent-withdrawal.v1"
    subject_ref: Annotated[SubjectRef, SUBJECT_REF]
    purposes: Purposes
    regulation: Regulation
    received_at: Time


Selection: TypeAlias = Annotated[BySource | ByPeriod | ByList | BySuppressed, Field(discriminator="by")]
HoldTarget: TypeAlias = Annotated[BySubject | BySource, Field(discriminator="by")]


class OrderIssued(_Signed):
    """An authority orders that a selection be destroyed, with every model developed from it."""

    type: Literal["expunge.request.order.v1"] = "expunge.request.order.v1"
    selection: Selection
    authority: Authority
    reference: Reference
    provisions: Annotated[tuple[OrderProvision, ...], Field(min_length=1, max_length=16), AfterValidator(_ascending)]


class HoldPlaced(_Signed):
    """A legal duty to keep: nothing of the target is erased until release, or until `until`."""

    type: Literal["expunge.request.hold.v1"] = "expunge.request.hold.v1"
    target: HoldTarget
    authority: Authority
    reference: Reference
    until: Time | None = None


class HoldReleased(_Signed):
    """The hold that was placed under `hold_id` ends."""

    type: Literal["expunge.request.hold-release.v1"] = "expunge.request.hold-release.v1"
    hold_id: Annotated[RequestId, UUID]


class Cancelled(_Signed):
    """An earlier request is taken back, as far as nothing was done yet."""

    type: Literal["expunge.request.cancel.v1"] = "expunge.request.cancel.v1"
    request_id: Annotated[RequestId, UUID]


class Approved(_Signed):
    """An approver lets an exact scope be erased: `scope_root` is the SHA-256 of the sealed scope statement."""

    type: Literal["expunge.request.approval.v1"] = "expunge.request.approval.v1"
    request_id: Annotated[RequestId, UUID]
    scope_root: Digest


Request: TypeAlias = Annotated[
    DeletionRequested
    | RetentionExpired
    | ConsentGiven
    | ConsentWithdrawn
    | OrderIssued
    | HoldPlaced
    | HoldReleased
    | Cancelled
    | Approved,
    Field(discriminator="type"),
]
REQUEST_ADAPTER: Final[TypeAdapter[Request]] = TypeAdapter(Request)
REQUEST_TYPES: Final = types_of(Request)


def parse_request(payload: bytes) -> Request:
    """Raises `Rejected`: `malformed`, `unknown-type` or `unknown-version`. A name that stands twice in an object is
    malformed: what was signed must mean one thing to every reader."""
    canonical.loads(payload)
    return parse_as(REQUEST_ADAPTER, payload)


def dump_request(request: Request) -> bytes:
    """RFC 8785. Publishers need not sign canonical bytes, but ours do."""
    return dump_as(request)


def partition_key(request: Request) -> str:
    """The Kafka key: what is asked about one person stays in order; what is said about a request follows it there only
    if that one was keyed by its own id (orders, holds on a source)."""
    match request:
        case DeletionRequested() | RetentionExpired() | ConsentGiven() | ConsentWithdrawn():
            return request.subject_ref
        case HoldPlaced(target=BySubject(subject_ref=subject_ref)):
            return subject_ref
        case OrderIssued() | HoldPlaced():
            return request.id
        case HoldReleased():
            return request.hold_id
        case Cancelled() | Approved():
            return request.request_id
        case _:
            assert_never(request)


def to_cloudevent(request: Request, envelope: bytes, source: str) -> CloudEvent:
    """The event that carries `envelope`, the DSSE envelope over `dump_request(request)`."""
    return CloudEvent(
        id=request.id,
        source=source,
        type=request.type,
        data=envelope,
        datacontenttype=ENVELOPE_TYPE,
        time=request.issued_at,
        partitionkey=partition_key(request),
    )


def check_agrees(request: Request, event: CloudEvent) -> None:
    """Raises `Rejected` (`header-mismatch`) unless the unsigned headers repeat what was signed."""
    expected = to_cloudevent(request, b"", "")
    for name in ("id", "type", "datacontenttype", "partitionkey"):
        if getattr(event, name) != getattr(expected, name):
            raise Rejected("header-mismatch", f"expected {name} of the record to agree with the signed request")
