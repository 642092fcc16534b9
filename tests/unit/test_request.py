"""Requests: what is refused, with which code, and that a refusal never repeats what was sent."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from expunge.domain import dsse, events, lineage, request
from expunge.domain.cloudevents import CloudEvent, from_kafka, to_kafka
from expunge.domain.errors import Rejected
from expunge.domain.request import BySubject, RequestId, SubjectRef
from expunge.domain.words import Provision, Remedy

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PERSON = SubjectRef("k1.0123456789abcdef")
ID = RequestId("00000001-0000-4000-8000-000000000001")
OTHER_ID = RequestId("00000002-0000-4000-8000-000000000002")
COMMON: dict[str, Any] = {
    "id": ID,
    "audience": "expunge:acme",
    "issued_at": NOW,
    "expires_at": NOW + timedelta(days=1),
    "nonce": "0" * 32,
}
CANCELLED = request.Cancelled(**COMMON, request_id=OTHER_ID)
SOURCE = request.BySource(source="okface")
PROVISION = request.OrderProvision(number=1, covers=Provision.DATA, deadline=NOW)


def body(**changes: object) -> bytes:
    return json.dumps(json.loads(request.dump_request(CANCELLED)) | changes).encode()


def refusal(payload: bytes) -> Rejected:
    with pytest.raises(Rejected) as refused:
        request.parse_request(payload)
    return refused.value


def test_a_request_is_dumped_as_canonical_json_without_absent_options() -> None:
    hold = request.HoldPlaced(**COMMON, target=SOURCE, authority=request.Authority.COURT, reference="2 O 17/26")
    assert request.dump_request(hold) == (
        b'{"audience":"expunge:acme","authority":"court","expires_at":"2026-02-01T12:00:00Z",'
        b'"id":"00000001-0000-4000-8000-000000000001","issued_at":"2026-01-31T12:00:00Z",'
        b'"nonce":"00000000000000000000000000000000","reference":"2 O 17/26",'
        b'"target":{"by":"source","source":"okface"},"type":"expunge.request.hold.v1"}'
    )


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (b"[]", "malformed"),
        (b"null", "malformed"),
        (b"[" * 5000, "malformed"),
        (b'{"type":"expunge.request.cancel.v1","type":"expunge.request.cancel.v1"}', "malformed"),
        (b'{"nonce":NaN}', "malformed"),
        (body(type="expunge.request.cancel.v2"), "unknown-version"),
        (body(type="expunge.request.cancel.v"), "unknown-type"),
        (body(type="expunge.request.cancel.vx"), "unknown-type"),
        (body(type=".v1"), "unknown-type"),
        (body(type="expunge.lineage.source.v1"), "unknown-type"),
        (body(type=7), "unknown-type"),
        (body(type=None), "unknown-type"),
    ],
)
def test_bytes_that_are_no_request_are_refused_with_a_code(payload: bytes, code: str) -> None:
    assert refusal(payload).code == code


@pytest.mark.parametrize(
    "wrong",
    [
        "2026-01-31T12:00:00+01:00",
        "2026-01-31T12:00:00",
        "2026-01-31 12:00:00Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00:00.1234567Z",
        "2026-01-31T12:00:00Z\n",
        "٢٠٢٦-01-31T12:00:00Z",
        1769860800,
        None,
    ],
)
def test_a_time_that_is_not_plain_utc_is_refused(wrong: object) -> None:
    assert "issued_at" in str(refusal(body(issued_at=wrong)))


def test_times_built_in_python_are_aware_utc_too() -> None:
    for wrong in (NOW.replace(tzinfo=None), NOW.astimezone(timezone(timedelta(hours=1)))):
        with pytest.raises(ValidationError):
            request.Cancelled(**{**COMMON, "issued_at": wrong}, request_id=OTHER_ID)


def test_a_day_is_a_day() -> None:
    period = request.ByPeriod(start=date(2014, 1, 1), end=date(2015, 1, 1))
    assert request.ByPeriod.model_validate_json(period.model_dump_json()) == period
    for wrong in (NOW, "2014-02-30", "2014-1-1", 0):
        with pytest.raises(ValidationError):
            request.ByPeriod.model_validate({"by": "period", "start": wrong, "end": date(2015, 1, 1)})


def test_requests_are_frozen() -> None:
    with pytest.raises(ValidationError):
        CANCELLED.nonce = "1" * 32  # type: ignore[misc]  # the point of the test


def test_a_remedy_is_required_for_models_and_for_nothing_else() -> None:
    for covers, remedy in ((Provision.MODELS, None), (Provision.DATA, Remedy.RETRAIN)):
        with pytest.raises(ValidationError):
            request.OrderProvision(number=1, covers=covers, deadline=NOW, remedy=remedy)


def test_provisions_ascend_without_repeats() -> None:
    for numbers in ((2, 1), (1, 1)):
        provisions = tuple(PROVISION.model_copy(update={"number": number}) for number in numbers)
        with pytest.raises(ValidationError):
            request.OrderIssued(
                **COMMON,
                selection=SOURCE,
                authority=request.Authority.COURT,
                reference="x",
                provisions=provisions,
            )


def test_only_requests_about_one_person_have_a_subject_ref() -> None:
    having = {name for name, kind in request.REQUEST_TYPES.items() if "subject_ref" in kind.model_fields}
    stems = ("deletion", "retention", "consent-given", "consent-withdrawal")
    assert having == {f"expunge.request.{stem}.v1" for stem in stems}


def test_what_is_about_a_person_is_keyed_by_them_and_what_is_about_a_request_by_that() -> None:
    gdpr, court = request.Regulation.GDPR, request.Authority.COURT
    person: list[request.Request] = [
        request.DeletionRequested(**COMMON, subject_ref=PERSON, regulation=gdpr, received_at=NOW),
        request.RetentionExpired(**COMMON, subject_ref=PERSON),
        request.ConsentGiven(**COMMON, subject_ref=PERSON, purposes=("training",)),
        request.ConsentWithdrawn(
            **COMMON, subject_ref=PERSON, purposes=("training",), regulation=gdpr, received_at=NOW
        ),
        request.HoldPlaced(**COMMON, target=BySubject(subject_ref=PERSON), authority=court, reference="x"),
    ]
    itself: list[request.Request] = [
        request.OrderIssued(**COMMON, selection=SOURCE, authority=court, reference="x", provisions=(PROVISION,)),
        request.HoldPlaced(**COMMON, target=SOURCE, authority=court, reference="x"),
    ]
    another: list[request.Request] = [
        request.HoldReleased(**COMMON, hold_id=OTHER_ID),
        CANCELLED,
        request.Approved(**COMMON, request_id=OTHER_ID, scope_root="5" * 64),
    ]
    assert {request.partition_key(one) for one in person} == {PERSON}
    assert {request.partition_key(one) for one in itself} == {ID}
    assert {request.partition_key(one) for one in another} == {OTHER_ID}
    assert {one.type for one in (*person, *itself, *another)} == set(request.REQUEST_TYPES)


def test_a_record_must_agree_with_the_request_that_it_carries() -> None:
    key = dsse.SigningKey.from_seed(bytes(32))
    envelope = dsse.sign(request.dump_request(CANCELLED), request.PAYLOAD_TYPE, key)
    event = from_kafka(*to_kafka(request.to_cloudevent(CANCELLED, envelope, "urn:x")))
    opened = request.parse_request(dsse.verify(dsse.parse(event.data), key.public, request.PAYLOAD_TYPE))
    request.check_agrees(opened, event)
    fields = {name: getattr(event, name) for name in event.__slots__}
    for name in ("id", "type", "datacontenttype", "partitionkey"):
        with pytest.raises(Rejected, match=name) as refused:
            request.check_agrees(opened, CloudEvent(**{**fields, name: "other"}))
        assert refused.value.code == "header-mismatch"


def test_a_refusal_names_known_places_up_to_a_limit() -> None:
    people = ["x"] * 20  # 21 mistakes: pydantic then also finds the list too short
    order = request.OrderIssued(
        **COMMON,
        selection=request.ByList(subjects=(PERSON,)),
        authority=request.Authority.COURT,
        reference="x",
        provisions=(PROVISION,),
    )
    payload = json.loads(request.dump_request(order)) | {"selection": {"by": "list", "subjects": people}}
    told = str(refusal(json.dumps(payload).encode()))
    assert "expunge.request.order.v1.selection.list.subjects.0 (string_pattern_mismatch)" in told
    assert told.endswith("and 13 more")


PLACES = [
    (parse, path)
    for parse, folder in (
        (request.parse_request, "expunge.request.*"),
        (lineage.parse_lineage, "expunge.lineage.*"),
        (events.parse_event, "expunge.[!rl]*"),
    )
    for path in sorted(EXAMPLES.glob(f"{folder}/valid/*.json"))
]
assert PLACES


@given(
    where=st.sampled_from(PLACES),
    needle=st.text(st.characters(codec="utf-8", min_codepoint=0x400, max_codepoint=0x2FFF), min_size=4, max_size=40)
    | st.emails().map(lambda mail: f"zq{mail}"),
    as_name=st.booleans(),
    draw=st.data(),
)
def test_no_refusal_repeats_what_was_sent(where: Any, needle: str, as_name: bool, draw: st.DataObject) -> None:  # noqa: FBT001 - drawn
    """A value, or a field's name, anywhere in any message is replaced by something recognisable."""
    parse, path = where
    message = json.loads(path.read_text())
    holders = [message]
    for holder in holders:
        values = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in values if isinstance(value, dict | list) and value]
    holder = draw.draw(st.sampled_from(holders))
    if as_name and isinstance(holder, dict):
        holder[needle] = needle
    else:
        holder[draw.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))] = needle
    for payload in (json.dumps(message).encode(), json.dumps(message, ensure_ascii=False).encode()):
        try:
            parse(payload)
        except Rejected as refused:
            told = "".join(traceback.format_exception(refused)) + repr(refused) + refused.code
            assert needle not in told
            assert refused.__context__ is None or not isinstance(refused.__context__, ValidationError)  # noqa: PT017
