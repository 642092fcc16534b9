from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from expunge.domain import canonical, statement
from expunge.domain.errors import Rejected
from expunge.domain.statement import (
    Chunk,
    Completion,
    KeyDestroyed,
    KeyEvent,
    MetricVoid,
    ModelDestroyed,
    ModelReplaced,
    ModelTainted,
    Overdue,
    Predicate,
    ReconciledCount,
    ReconciledSweep,
    Reconciliation,
    RegisteredBatch,
    Scope,
    ScopeApproved,
    ScopeVoid,
    SourceCount,
    TreeScope,
)
from expunge.domain.words import Kind, Level, Outcome, Provision, Remedy, Role, Step

SWEEP = "5b1f6f9e-0000-4000-8000-000000000001"
ONE, TWO = "1" * 64, "2" * 64
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)

PREDICATES: list[Predicate] = [
    Scope(
        sweep=SWEEP, sweep_class="order", trees=(TreeScope(kind=Kind.IMAGE, store="photos", leaves=3, root=ONE),), requests=1,
        requests_root=ONE, images=3, selection=ONE, catalogue_index=-1, policy="1", handles_root=None, excluded=0, file=ONE,
        at=AT,
    ),
    Chunk(
        sweep=SWEEP, scope=ONE, tree=0, kind=Kind.IMAGE, store="photos", step=Step.ERASE, attempt=0, start=0, end=3,
        chunk_root=ONE, outcomes=((Outcome.GONE, 3),), previous=None, level=Level.UNREACHABLE, method="unlink",
        residue=("free space",), sampled=0, at=AT,
    ),
    Completion(
        sweep=SWEEP, scope=ONE, round=0, provision=Provision.DATA, requests=1, root=ONE, results={"complete": 1}, at=AT
    ),
    RegisteredBatch(
        batch=SWEEP, leaves=3, root=ONE, images=3,
        counts=(SourceCount(source="studio", kind=Kind.IMAGE, artifacts=3),), at=AT,
    ),
    ScopeApproved(sweep=SWEEP, scope=ONE, approvers=(ONE, TWO), at=AT),
    ScopeVoid(sweep=SWEEP, scope=ONE, reason="cancelled", at=AT),
    ModelTainted(
        sweep=SWEEP, scope=ONE, model="face@1", images=3, direct=3, path=("face@1",), remedy=Remedy.RETRAIN, due=AT
    ),
    MetricVoid(sweep=SWEEP, scope=ONE, model="age@1", images=3, at=AT),
    ModelReplaced(
        model="face@1", successor="face@2", weights=ONE, successor_weights=TWO, snapshots=(ONE,), cut=7, exclusion=ONE,
        sweeps=(SWEEP,), level=Level.FILE_ABSENT, method="unlink", at=AT,
    ),
    ModelDestroyed(model="face@1", weights=ONE, sweeps=(SWEEP,), level=Level.FILE_ABSENT, method="unlink", at=AT),
    Overdue(sweep=SWEEP, provision=Provision.MODELS, due=AT, at=AT),
    KeyDestroyed(bucket=AT.date(), at=AT),
    KeyEvent(event="revoked", role=Role.EXECUTOR, store="photos", key_id=ONE, since=AT, at=AT),
    Reconciliation(
        log_size=3, part=0, parts=1, sweep=ReconciledSweep(sweep=SWEEP, scope=ONE, leaves=3, present=0), at=AT,
        counts=(
            ReconciledCount(
                source="studio", kind=Kind.IMAGE, registered=3, erased=3, under_way=1, present=0, difference=-1
            ),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("predicate", PREDICATES, ids=lambda one: type(one).__name__)
def test_every_predicate_is_read_back_as_it_was_written(predicate: Predicate) -> None:
    data = statement.payload(predicate, {"a": ONE, "b": TWO})
    assert data == canonical.dumps(canonical.loads(data))
    read = statement.parse(data)
    assert (read.predicate, read.subjects) == (predicate, {"a": ONE, "b": TWO})
    assert data == statement.payload(read.predicate, {"b": TWO, "a": ONE})
    body = json.loads(data)
    assert body["_type"] == "https://in-toto.io/Statement/v1"
    assert body["predicateType"] == predicate.type
    assert "type" not in body["predicate"]


@pytest.mark.parametrize("predicate", PREDICATES, ids=lambda one: type(one).__name__)
def test_a_predicate_counts_under_one_role_only(predicate: Predicate) -> None:
    roles = {
        Scope: Role.SCOPE, ScopeApproved: Role.SCOPE, ScopeVoid: Role.SCOPE, Chunk: Role.EXECUTOR,
        Completion: Role.CERTIFIER, Overdue: Role.CERTIFIER, RegisteredBatch: Role.REGISTER,
        ModelTainted: Role.RETRAINER, MetricVoid: Role.RETRAINER, ModelReplaced: Role.RETRAINER,
        ModelDestroyed: Role.RETRAINER, KeyDestroyed: Role.CERTIFIER, KeyEvent: Role.CERTIFIER,
        Reconciliation: Role.RESCANNER,
    }  # fmt: skip
    assert statement.role_of(predicate) is roles[type(predicate)]


@pytest.mark.parametrize(
    ("step", "role"),
    [
        (Step.PRESENCE, Role.RESCANNER),
        (Step.HIDE, Role.EXECUTOR),
        (Step.ERASE, Role.EXECUTOR),
        (Step.ABSENCE, Role.RESCANNER),
    ],
)
def test_who_erases_does_not_say_that_it_is_gone(step: Step, role: Role) -> None:
    assert statement.role_of(PREDICATES[1].model_copy(update={"step": step})) is role


GOOD: dict[str, Any] = json.loads(statement.payload(PREDICATES[5], {"scope": ONE}))
WRONG: dict[str, Any] = {
    "a list": [],
    "no predicate": {name: value for name, value in GOOD.items() if name != "predicate"},
    "no predicate type": {name: value for name, value in GOOD.items() if name != "predicateType"},
    "a predicate that is text": {**GOOD, "predicate": "void"},
    "another statement type": {**GOOD, "_type": "https://in-toto.io/Statement/v2"},
    "an unknown predicate": {**GOOD, "predicateType": "urn:expunge:wish:v1"},
    "a field too many": {**GOOD, "more": 1},
    "a field too many inside": {**GOOD, "predicate": {**GOOD["predicate"], "more": 1}},
    "no subject": {**GOOD, "subject": []},
    "one subject twice": {**GOOD, "subject": GOOD["subject"] * 2},
    "a digest of another kind": {**GOOD, "subject": [{"name": "scope", "digest": {"sha512": ONE}}]},
    "a subject that has a number for a name": {**GOOD, "subject": [{"name": 5, "digest": {"sha256": ONE}}]},
    "a subject with a field too many": {**GOOD, "subject": [{"name": "scope", "digest": {"sha256": ONE}, "uri": "a"}]},
    "a subject with a digest too many": {**GOOD, "subject": [{"name": "a", "digest": {"sha256": ONE, "sha512": "b"}}]},
    "a type inside": {**GOOD, "predicate": {**GOOD["predicate"], "type": GOOD["predicateType"]}},
    "a predicate type that is a list": {**GOOD, "predicateType": [GOOD["predicateType"]]},
    "a digest in capitals": {**GOOD, "subject": [{"name": "scope", "digest": {"sha256": "A" * 64}}]},
    "a time without a zone": {**GOOD, "predicate": {**GOOD["predicate"], "at": "2026-03-01T12:00:00"}},
    "an unknown reason": {**GOOD, "predicate": {**GOOD["predicate"], "reason": "tired"}},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_exactly_a_statement_is_refused(case: str) -> None:
    with pytest.raises(Rejected) as refused:
        statement.parse(canonical.dumps(WRONG[case]))
    assert refused.value.code == "malformed"


def _refused_instead(data: bytes, old: bytes, new: bytes) -> None:
    """The statement is refused where one spelling in it is another."""
    assert old in data
    with pytest.raises(Rejected):
        statement.parse(data.replace(old, new, 1))


def test_the_same_values_spelled_otherwise_are_refused() -> None:
    data = statement.payload(PREDICATES[1], {"scope": ONE})
    for old, new in (
        (b'"attempt":0', b'"attempt":0.0'),
        (b'"attempt":0', b'"attempt":"0"'),
        (b'"attempt":0', b'"attempt":false'),
        (b'"attempt":0', b'"attempt":0,"attempt":0'),
        (b'"method":"unlink"', b'"method":"\\u0075nlink"'),
        (b'{"_type"', b'{ "_type"'),
        (b"12:00:00Z", b"12:00:00+00:00"),
    ):
        _refused_instead(data, old, new)
    with pytest.raises(Rejected):
        statement.parse(data + b" ")


@given(
    chunk=st.builds(
        Chunk.model_copy,
        st.just(PREDICATES[1]),
        update=st.fixed_dictionaries(
            {
                "attempt": st.integers(0, 2**53 - 1),
                "at": st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - `timezones` gives it
                "kind": st.sampled_from(Kind),
                "step": st.sampled_from(Step),
                "level": st.sampled_from(Level),
                "outcomes": st.lists(st.tuples(st.sampled_from(Outcome), st.integers(0, 2**53 - 1))).map(tuple),
                "previous": st.none() | st.just(TWO),
                "store": st.text(),
                "method": st.text(),
                "residue": st.lists(st.text()).map(tuple),
            }
        ),
    ),
    name=st.text(),
)
def test_a_chunk_statement_written_out_is_what_the_encoder_gives(chunk: Chunk, name: str) -> None:
    body = chunk.model_dump(mode="json", exclude={"type"})
    whole = {
        "_type": statement.STATEMENT_TYPE, "predicate": body, "predicateType": chunk.type,
        "subject": [{"name": name, "digest": {"sha256": ONE}}],
    }  # fmt: skip
    data = statement.payload(chunk, {name: ONE})
    assert data == canonical.dumps(whole)
    assert statement.parse(data) == statement.Statement({name: ONE}, chunk)


VARYING = {
    "at": st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - `timezones` gives it
    "attempt": st.integers(0, 2**53 - 1),
    "chunk_root": st.sampled_from([ONE, TWO]),
    "end": st.integers(0, 2**53 - 1),
    "outcomes": st.lists(st.tuples(st.sampled_from(Outcome), st.integers(0, 2**53 - 1))).map(tuple),
    "previous": st.none() | st.just(TWO),
    "sampled": st.integers(0, 2**53 - 1),
    "start": st.integers(0, 2**53 - 1),
}


USUAL = VARYING | {
    "at": st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)).map(statement.instant),  # noqa: DTZ001 - `timezones` gives it
    **dict.fromkeys(("attempt", "end", "sampled", "start"), st.integers(0, 10**15 - 1)),
    "outcomes": st.lists(st.tuples(st.sampled_from(Outcome), st.integers(1, 10**15 - 1)), min_size=1).map(tuple),
}
"""What the short way of reading takes."""
FIELDS = st.fixed_dictionaries(USUAL) | st.fixed_dictionaries(VARYING)


@given(fields=FIELDS, digest=st.sampled_from([ONE, TWO]))
def test_a_statement_like_one_that_was_read_is_read_as_if_it_were_the_first(
    fields: dict[str, Any], digest: str
) -> None:
    chunk = PREDICATES[1].model_copy(update=fields)
    data = statement.payload(chunk, {"b": digest, "a": ONE})
    statement._SEEN.clear()
    assert statement.parse(data) == statement.Statement({"a": ONE, "b": digest}, chunk)
    statement.parse(statement.payload(PREDICATES[1], {"a": ONE, "b": ONE}))
    assert statement._SEEN
    assert statement.parse(data) == statement.Statement({"a": ONE, "b": digest}, chunk)


def test_only_the_first_of_statements_alike_is_read_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    again = PREDICATES[1].model_copy(update={"start": 1024, "end": 2048})
    statement._SEEN.clear()
    statement.parse(statement.payload(PREDICATES[1], {"leaf-hashes": ONE}))
    monkeypatch.setattr(statement, "from_json", None)
    assert statement.parse(statement.payload(again, {"leaf-hashes": TWO})).predicate == again


LIKE_MORE = st.sampled_from(
    ["]", "[", '"', "[[1,3]]", '],"sampled":7', f'"sha256":"{ONE}"', '","previous":null', "a,", "a[1],", "a],"]
)


@given(
    texts=st.fixed_dictionaries(
        {"method": LIKE_MORE, "store": LIKE_MORE, "residue": st.lists(LIKE_MORE).map(tuple)},
    ),
    name=LIKE_MORE,
    fields=FIELDS,
    digest=st.sampled_from([ONE, TWO]),
)
def test_texts_that_look_like_the_statement_around_them_are_read_as_texts(
    texts: dict[str, Any], name: str, fields: dict[str, Any], digest: str
) -> None:
    first = PREDICATES[1].model_copy(update=texts)
    chunk = first.model_copy(update=fields)
    statement._SEEN.clear()
    statement.parse(statement.payload(first, {name: ONE}))
    assert statement.parse(statement.payload(chunk, {name: digest})) == statement.Statement({name: digest}, chunk)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"2026-03-01T12:00:00Z", b"2026-02-30T12:00:00Z"),
        (b"2026-03-01T12:00:00Z", b"2026-03-01 12:00:00Z"),
        (b"2026-03-01T12:00:00Z", b"20260301T1200+00:00Z"),
        (b"2026-03-01T12:00:00Z", b"2026-03-01T12:00:60Z"),
        (b"[[1,3]]", b"[[8,3]]"),
        (b"[[1,3]]", b"[[1,03]]"),
        (b"[[1,3]]", b"[[1,3],]"),
        (b"[[1,3]]", b"[[1,1][1,2]]"),
        (b"[[1,3]]", b"[[1,3,1]]"),
        (b"[[1,3]]", b"[1,3]"),
        (b"[[1,3]]", b"[[[1,3]]]"),
    ],
)
def test_times_and_outcomes_spelled_otherwise_are_refused_after_one_was_read(old: bytes, new: bytes) -> None:
    data = statement.payload(PREDICATES[1], {"leaf-hashes": ONE})
    statement.parse(data)
    _refused_instead(data, old, new)


def test_what_is_read_the_short_way_is_a_model_like_any_other() -> None:
    data = statement.payload(PREDICATES[1], {"leaf-hashes": ONE})
    statement._SEEN.clear()
    first, second = statement.parse(data).predicate, statement.parse(data).predicate
    assert first is not second
    assert first.model_fields_set == second.model_fields_set
    assert second.model_dump() == first.model_dump()
    assert Chunk.model_validate_json(second.model_dump_json()) == second == pickle.loads(pickle.dumps(second))  # noqa: S301 - our own
    with pytest.raises(ValidationError):
        second.attempt = 1  # type: ignore[misc] # frozen


def _read(data: bytes) -> statement.Statement | str:
    try:
        return statement.parse(data)
    except Rejected as error:
        return error.code


def test_no_change_of_a_byte_is_taken_for_what_was_read_before() -> None:
    data = statement.payload(PREDICATES[1], {"leaf-hashes": ONE})
    read = 0
    for at in range(len(data)):
        for byte in b'09aZ"\\],{} \xff':
            changed = data[:at] + bytes([byte]) + data[at + 1 :]
            statement._SEEN.clear()
            alone = _read(changed)
            statement._SEEN.clear()
            statement.parse(data)
            assert _read(changed) == alone
            read += alone != "malformed"
    assert read > len(data)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1,"a":2}'])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        statement.parse(data)


@given(st.lists(st.sampled_from(Outcome)))
def test_run_lengths_expand_to_the_outcomes_again(outcomes: list[Outcome]) -> None:
    encoded = statement.runs(outcomes)
    assert statement.expand(encoded) == bytes(outcomes)
    assert all(count > 0 for _, count in encoded)
    assert all(before[0] != after[0] for before, after in pairwise(encoded))


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_is_whole_seconds_never_later(at: datetime) -> None:
    cut = statement.instant(at)
    assert cut.microsecond == 0
    assert 0 <= (at - cut).total_seconds() < 1
