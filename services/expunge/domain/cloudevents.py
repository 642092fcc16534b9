"""CloudEvents 1.0 over Kafka: one value, and its two shapes as a record (binary to write, either to read).

Spec: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md. Only what Expunge
uses: other extension attributes are ignored. Refusals never repeat what was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from expunge.domain import canonical, tracing
from expunge.domain.canonical import Json, base64_decode
from expunge.domain.errors import Rejected
from expunge.domain.limits import MESSAGE_BYTES, TEXT_CHARS

Headers = list[tuple[str, bytes]]

JSON: Final = "application/json"
STRUCTURED: Final = "application/cloudevents+json"
MAX_HEADERS: Final = 64
"""Most headers on one record; proxies and tracers add a few of their own."""

_READ: Final = ("id", "source", "type", "time", "subject", "dataschema", "partitionkey", "datacontenttype")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event: context attributes, and data as the exact bytes that were sent."""

    id: str
    source: str
    type: str
    data: bytes
    datacontenttype: str = JSON
    time: datetime | None = None
    subject: str | None = None
    dataschema: str | None = None
    partitionkey: str | None = None
    traceparent: str | None = None
    """W3C trace context, in the extension attribute and in the header that tracers look for."""


def to_kafka(event: CloudEvent) -> tuple[bytes | None, bytes, Headers]:
    """Key, value and headers of a record in binary mode. The key is the partition key."""
    headers = [("content-type", event.datacontenttype.encode()), ("ce_specversion", b"1.0")]
    headers += [(f"ce_{name}", value.encode()) for name, value in _attributes(event)]
    if event.traceparent is not None:
        headers += [(name, event.traceparent.encode()) for name in ("ce_traceparent", "traceparent")]
    return event.partitionkey.encode() if event.partitionkey is not None else None, event.data, headers


def from_kafka(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> CloudEvent:
    """The event in a record. Raises `Rejected`: `malformed`, `oversized` or `unknown-specversion`."""
    headers = list(headers)
    if value is None:
        raise Rejected("malformed", "expected a value, got a tombstone")
    if len(value) > MESSAGE_BYTES:
        raise Rejected("oversized", f"expected a value of at most {MESSAGE_BYTES} bytes, got {len(value)}")
    if len(headers) > MAX_HEADERS:
        raise Rejected("oversized", f"expected at most {MAX_HEADERS} headers, got {len(headers)}")
    attributes = _from_headers(headers)
    body = value
    if attributes.get("datacontenttype", "").lower().startswith("application/cloudevents"):
        attributes, value = _from_structured(attributes["datacontenttype"], value)
    if key is not None:
        text = _text("key", key)
        if attributes.setdefault("partitionkey", text) != text:
            raise Rejected("malformed", "expected the key to be the partitionkey attribute")
    return replace(_event(attributes, value), traceparent=_trace(headers, body if body is not value else None))


def _attributes(event: CloudEvent) -> list[tuple[str, str]]:
    time = None if event.time is None else event.time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    named = [
        ("id", event.id),
        ("source", event.source),
        ("type", event.type),
        ("time", time),
        ("subject", event.subject),
    ]
    named += [("dataschema", event.dataschema), ("partitionkey", event.partitionkey)]
    return [(name, value) for name, value in named if value is not None]


def _trace(headers: Iterable[tuple[str, bytes | None]], structured: bytes | None) -> str | None:
    """The hop's header first, then the attribute, wherever that is. What is no traceparent is as good as none."""
    found = {name.lower(): (value or b"").decode("ascii", "replace") for name, value in headers}
    given = [found.get("traceparent"), found.get("ce_traceparent")]
    if structured is not None:
        body = canonical.loads(structured)
        given.append(str(body.get("traceparent")) if isinstance(body, dict) else None)
    return next((one for one in map(tracing.accepted, given) if one is not None), None)


def _from_headers(headers: list[tuple[str, bytes | None]]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for header, value in headers:
        name = header.lower()
        name = "datacontenttype" if name == "content-type" else name[3:] if name.startswith("ce_") else ""
        if name not in (*_READ, "specversion"):
            continue
        if name in attributes:
            raise Rejected("malformed", f"expected one {name}, got two")
        attributes[name] = _text(name, value if value is not None else b"")
    return attributes


def _from_structured(content_type: str, value: bytes) -> tuple[dict[str, str], bytes]:
    if content_type.partition(";")[0].strip().lower() != STRUCTURED:
        raise Rejected("malformed", f"expected the structured format {STRUCTURED}")
    body = canonical.loads(value)
    if not isinstance(body, dict):
        raise Rejected("malformed", "expected a JSON object")
    attributes: dict[str, str] = {}
    for name in (*_READ, "specversion"):
        attribute = body.get(name)
        if isinstance(attribute, str):
            attributes[name] = attribute
        elif attribute is not None:
            raise Rejected("malformed", f"expected {name} to be a string")
    return attributes, _structured_data(body, attributes.setdefault("datacontenttype", JSON))


def _structured_data(body: dict[str, Json], content_type: str) -> bytes:
    match body:
        case {"data": _, "data_base64": _}:
            pass
        case {"data_base64": str(text)}:
            return base64_decode(text)
        case {"data": str(text)} if not content_type.partition(";")[0].strip().lower().endswith("json"):
            return text.encode()
        case {"data": data}:
            return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    raise Rejected("malformed", "expected one of data and data_base64")


def _event(attributes: dict[str, str], data: bytes) -> CloudEvent:
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise Rejected("malformed", f"expected the attribute {name}")
    if attributes.pop("specversion") != "1.0":
        raise Rejected("unknown-specversion", "expected specversion 1.0")
    for name, value in attributes.items():
        if len(value) > TEXT_CHARS or _CONTROL.search(value):
            raise Rejected("malformed", f"expected {name} of at most {TEXT_CHARS} plain characters")
    time = _time(attributes.pop("time")) if "time" in attributes else None
    return CloudEvent(data=data, time=time, **attributes)


def _time(text: str) -> datetime:
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # raised below, without the cause, which holds the input
    raise Rejected("malformed", "expected time as in RFC 3339")


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        pass  # raised below, without the cause, which holds the input
    raise Rejected("malformed", f"expected {name} in UTF-8")
