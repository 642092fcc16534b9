"""The Kafka binding: agrees with the CloudEvents SDK both ways, and refuses what is not a CloudEvent."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as sdk
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given
from hypothesis import strategies as st

from expunge.domain.cloudevents import MAX_HEADERS, CloudEvent, from_kafka, to_kafka
from expunge.domain.errors import Rejected
from expunge.domain.limits import MESSAGE_BYTES

FULL = CloudEvent(
    id="e-1",
    source="urn:product",
    type="expunge.request.cancel.v1",
    data=b'{"a":1}',
    time=datetime(2026, 1, 31, 12, 0, 0, 250000, tzinfo=UTC),
    subject="grüße",
    dataschema="urn:schema",
    partitionkey="k-1",
)
REQUIRED = [("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_source", b"urn:x"), ("ce_type", b"t.v1")]
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=utf-8")]
ENVELOPE = {"specversion": "1.0", "id": "e-1", "source": "urn:x", "type": "t.v1"}

plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
sdk_events = st.builds(
    lambda attributes, time, data: SdkEvent(
        {**attributes, "time": time, "specversion": "1.0", "datacontenttype": "application/json"}, data
    ),
    st.fixed_dictionaries(dict.fromkeys(("id", "source", "type", "subject", "partitionkey"), plain)),
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 28), timezones=zones),  # noqa: DTZ001 - bounds are naive
    st.dictionaries(plain, st.integers(0, 9) | plain, max_size=4),
)


def refused(value: bytes | None, headers: list[tuple[str, bytes | None]], key: bytes | None = None) -> str:
    with pytest.raises(Rejected) as refusal:
        from_kafka(key, value, headers)
    return refusal.value.code


def structured(**changes: object) -> bytes:
    return json.dumps({**ENVELOPE, "data": {}, **changes}).encode()


def test_an_event_survives_the_round_trip() -> None:
    bare = CloudEvent("e-1", "urn:x", "t.v1", b"\x00\xff", datacontenttype="application/octet-stream")
    for event in (FULL, bare):
        assert from_kafka(*to_kafka(event)) == event
    assert to_kafka(bare)[0] is None


def test_the_sdk_reads_what_we_write() -> None:
    key, value, headers = to_kafka(FULL)
    assert len(dict(headers)) == len(headers)
    event = sdk.from_kafka(sdk.KafkaMessage(dict(headers), key, value), JSONFormat())
    assert (event.get_id(), event.get_source(), event.get_type()) == (FULL.id, FULL.source, FULL.type)
    assert (event.get_time(), event.get_subject(), event.get_dataschema()) == (FULL.time, FULL.subject, FULL.dataschema)
    assert event.get_extension("partitionkey") == FULL.partitionkey
    assert (event.get_data(), event.get_datacontenttype()) == ({"a": 1}, "application/json")


@given(sdk_events)
def test_we_read_what_the_sdk_writes_in_both_modes(event: Any) -> None:
    for write in (sdk.to_binary, sdk.to_structured):
        message = write(event, JSONFormat())
        key = message.key.encode() if isinstance(message.key, str) else message.key
        ours = from_kafka(key, message.value, list(message.headers.items()))
        assert (ours.id, ours.source, ours.type) == (event.get_id(), event.get_source(), event.get_type())
        assert (ours.subject, ours.time) == (event.get_subject(), event.get_time())
        assert ours.partitionkey == event.get_extension("partitionkey")
        assert json.loads(ours.data) == event.get_data()


def test_header_names_are_read_in_any_case_and_strange_ones_ignored() -> None:
    headers = [("CE_ID", b"e-1"), *REQUIRED[:1], *REQUIRED[2:], ("Content-Type", b"text/plain")]
    event = from_kafka(None, b"x", [*headers, ("traceparent", b"\xff"), ("ce_sequence", b"7"), ("x", None)])
    assert (event.id, event.datacontenttype, event.time) == ("e-1", "text/plain", None)


def test_the_key_is_the_partition_key() -> None:
    assert from_kafka(b"k", b"", REQUIRED).partitionkey == "k"
    assert from_kafka(None, b"", [*REQUIRED, ("ce_partitionkey", b"k")]).partitionkey == "k"
    assert refused(b"", [*REQUIRED, ("ce_partitionkey", b"k")], key=b"other") == "malformed"
    assert refused(b"", list(REQUIRED), key=b"\xff") == "malformed"


def test_times_are_read_as_in_rfc_3339_and_kept_in_utc() -> None:
    event = from_kafka(None, b"", [*REQUIRED, ("ce_time", b"2026-01-31T13:00:00.5+01:00")])
    assert event.time == datetime(2026, 1, 31, 12, 0, 0, 500000, tzinfo=UTC)
    for wrong in (b"yesterday", b"2026-02-30T12:00:00Z", b"0001-01-01T00:00:00+01:00", b"2026-01-31"):
        assert refused(b"", [*REQUIRED, ("ce_time", wrong)]) == "malformed"


@pytest.mark.parametrize("position", range(4))
def test_every_required_attribute_is_required(position: int) -> None:
    assert refused(b"", [*REQUIRED[:position], *REQUIRED[position + 1 :]]) == "malformed"
    name = REQUIRED[position][0]
    assert refused(b"", [*REQUIRED[:position], *REQUIRED[position + 1 :], (name, None)]) == "malformed"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (("ce_id", b"again"), "malformed"),
        (("ce_subject", b"\xff"), "malformed"),
        (("ce_subject", b"two\nlines"), "malformed"),
        (("ce_subject", b"x" * 513), "malformed"),
        (("content-type", b"application/cloudevents+avro"), "malformed"),
        (("content-type", b"application/cloudevents-batch+json"), "malformed"),
    ],
)
def test_bad_headers_are_refused(header: tuple[str, bytes], code: str) -> None:
    assert refused(b"{}", [*REQUIRED, header]) == code


def test_other_versions_of_the_specification_are_refused() -> None:
    assert refused(b"", [("ce_specversion", b"0.3"), *REQUIRED[1:]]) == "unknown-specversion"
    assert refused(structured(specversion="2.0"), list(STRUCTURED)) == "unknown-specversion"


def test_too_much_is_refused() -> None:
    assert refused(b"x" * (MESSAGE_BYTES + 1), list(REQUIRED)) == "oversized"
    assert refused(b"", [*REQUIRED, *[("x", b"")] * (MAX_HEADERS - 3)]) == "oversized"
    assert from_kafka(None, b"x" * MESSAGE_BYTES, [*REQUIRED, *[("x", b"")] * (MAX_HEADERS - 4)]).id == "e-1"


def test_a_tombstone_is_refused() -> None:
    assert refused(None, list(REQUIRED)) == "malformed"


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"data": {"a": "ü"}}, '{"a":"ü"}'.encode()),
        ({"data": None}, b"null"),
        ({"data": "text"}, b'"text"'),
        ({"data": "text", "datacontenttype": "text/plain; charset=utf-8"}, b"text"),
        ({"data": {}, "datacontenttype": "application/vnd.dsse.envelope.v1+json"}, b"{}"),
    ],
)
def test_structured_data_is_read_by_its_content_type(changes: dict[str, object], data: bytes) -> None:
    assert from_kafka(None, structured(**changes), STRUCTURED).data == data


def test_structured_data_may_be_base64() -> None:
    value = json.dumps({**ENVELOPE, "data_base64": base64.b64encode(b"\x00\xff").decode()}).encode()
    assert from_kafka(None, value, STRUCTURED).data == b"\x00\xff"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"id":"a","id":"b"}',
        json.dumps(ENVELOPE).encode(),
        structured(id=7),
        structured(data_base64="AA=="),
        json.dumps({**ENVELOPE, "data_base64": "%"}).encode(),
        json.dumps({**ENVELOPE, "data_base64": 7}).encode(),
        structured(data="\ud800", datacontenttype="text/plain"),
        structured(id="\ud800"),
    ],
)
def test_structured_nonsense_is_refused(value: bytes) -> None:
    assert refused(value, list(STRUCTURED)) == "malformed"
