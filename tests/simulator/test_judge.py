"""The judge of histories, judged: good histories hold, and each way of breaking one is named."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.domain import dsse, merkle, note
from expunge.domain.words import Role
from tests.conftest import PostgresServer
from tests.coordination import ORIGIN
from tests.history import judge
from tests.history.evidence import ChunkSaid
from tests.history.judge import check
from tests.history.reading import MisreadError, read
from tests.history.world import build
from tests.simulator.__main__ import own_database
from tests.simulator.chance import LARGE
from tests.simulator.schedule import EXECUTORS, LOG_KEY, SIGNERS, Schedule, patched

Lines = list[dict[str, Any]]

ISSUED = "expunge.proof.certificate-issued.v1"
ACCEPTED = "expunge.proof.request-accepted.v1"
DELETION = "expunge.request.deletion.v1"
PHOTOS = ("image", "photos")


SEEDS = range(4, 40)
"""Which of them has a tale with all that tests here break, changes with the code: schedules draw their chances as it asks."""


class Tale(Schedule):
    """A schedule without faults in which a person is deleted, another too late cancelled, and a source ordered away."""

    def __init__(self, database: Any, seed: int) -> None:
        super().__init__(database, seed, size=LARGE)
        self.chance.rates = {}


@pytest.fixture(scope="module")
def told(postgres_server: PostgresServer) -> Iterator[Lines]:
    database = own_database(postgres_server.dsn)
    try:
        yield next(filter(rich, (tell(database, seed) for seed in SEEDS)))
    finally:
        database.close()


def tell(database: Any, seed: int) -> Lines:
    database.begin(seed)
    try:
        tale = Tale(database, seed)
        tale.company.plans = lambda: tale.company.todo.extend(  # type: ignore[method-assign]
            [tale.company._delete, tale.company._order, tale.company._withdraw, tale.company._hold]
        )
        with patched(tale):
            assert asyncio.run(tale.run()) == []
        return [json.loads(line) for line in tale.lines]
    finally:
        database.end()


def rich(lines: Lines) -> bool:
    """Whether a person's request is completed, of photos that no order selects, an order was approved, and somebody who asked
    nothing has a photo left."""
    rows = {row["request"]: row["state"] for row in of(lines, "ledger")[-1]["rows"]}
    log = [base64.b64decode(entry) for record in of(lines, "log") for entry in record["entries"]]
    listed = next((one for one in of(lines, "contents") if one["present"]), None)
    if listed is None or rows.get(next(closed(lines), "")) != "completed":
        return False
    approved = any(
        json.loads(dsse.parse(one).payload)["predicateType"] == "urn:expunge:scope-approved:v1" for one in log
    )
    without = copy.deepcopy(lines)
    next(one for one in of(without, "contents") if one["present"])["present"].pop()
    return approved and alone(lines) and ("I2", "unasked") in verdict(without)


def alone(lines: Lines) -> bool:
    """Whether something was erased that is of the person's who is done, and that no order selects."""
    world = build(read([json.dumps(line) for line in lines]))
    return any(
        world.requests[done(lines)].touches(one)
        and not any(order.touches(one) for order in world.of_type("order"))
        and any(what == "erase" for _, what, _ in one.moves)
        for one in world.artifacts.values()
    )


@pytest.fixture
def lines(told: Lines) -> Lines:
    return copy.deepcopy(told)


def verdict(lines: Lines, **options: Any) -> set[tuple[str, str]]:
    return {(one.invariant, one.code) for one in check([json.dumps(line) for line in lines], **options)}


def of(lines: Lines, kind: str, **fields: Any) -> Lines:
    return [
        one for one in lines if one["kind"] == kind and all(one.get(name) == value for name, value in fields.items())
    ]


def end(lines: Lines) -> int:
    return next(at for at, one in enumerate(lines) if one.get("phase") == "end")


def start(lines: Lines) -> int:
    return next(at for at, one in enumerate(lines) if one.get("phase") == "faults")


def closed(lines: Lines) -> Iterator[str]:
    """People's requests that are complete."""
    rows = of(lines, "ledger")[-1]["rows"]
    complete = {row["request"] for row in rows if row["data_result"] == "complete"}
    bodies = [one["body"] for one in of(lines, "published")]
    return (str(body["id"]) for body in bodies if body["id"] in complete and "subject_ref" in body)


def done(lines: Lines) -> str:
    """The first of them."""
    return next(closed(lines))


def published(body: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"kind": "published", "body": body, "signer": "backend", "sound": True} | options


def event(type_: str, identity: str = "e", **data: Any) -> dict[str, Any]:
    return {"kind": "event", "id": identity, "type": type_, "data": data}


def test_a_history_in_which_nothing_went_wrong_holds(lines: Lines) -> None:
    assert verdict(lines) == set()
    assert of(lines, "certificate")
    assert of(lines, "effect", op="hide")


# I1


def test_a_request_that_was_acknowledged_and_left_no_trace_is_lost(lines: Lines) -> None:
    body = {"id": "a", "type": DELETION, "subject_ref": "s"}
    lines[start(lines) : start(lines)] = [published(body), {"kind": "acknowledged", "request": "a"}]
    assert ("I1", "lost") in verdict(lines)


def test_a_request_that_the_ledger_has_no_more_is_lost(lines: Lines) -> None:
    of(lines, "ledger")[-1]["rows"].pop()
    assert ("I1", "vanished") in verdict(lines)


def test_a_hold_that_nobody_answered_is_lost(lines: Lines) -> None:
    body = {"id": "h", "type": "expunge.request.hold.v1", "target": {"by": "subject", "subject_ref": "s"}}
    lines[start(lines) : start(lines)] = [published(body), {"kind": "acknowledged", "request": "h"}]
    assert ("I1", "unanswered") in verdict(lines)


@pytest.mark.parametrize("state", ["planned", "held", "accepted", "cancelled"])
def test_a_request_does_not_go_back_from_its_end(lines: Lines, state: str) -> None:
    last = of(lines, "ledger")[-1]
    row = next(one for one in last["rows"] if one["state"] == "completed")
    row["state"] = state
    assert ("I1", "move") in verdict(lines)


# I2


def test_an_effect_on_someone_who_was_not_asked_about_is_named(lines: Lines) -> None:
    made = {
        "kind": "artifact", "artifact": "x", "store": "photos", "unit": "u", "locator": "x", "artifact_kind": "image",
        "image": "x", "source": "other", "day": "1990-01-01", "subjects": ["nobody"], "purposes": ["p"], "images": [],
    }  # fmt: skip
    effect = {"kind": "effect", "op": "erase", "artifacts": ["x"], "by": "purge"}
    lines[end(lines) : end(lines)] = [made, {"kind": "insert", "artifacts": ["x"]}, effect]
    assert ("I2", "unasked") in verdict(lines)


def test_an_insert_that_is_missing_in_the_end_is_named(lines: Lines) -> None:
    listed = next(one for one in of(lines, "contents") if one["present"])
    listed["present"].pop()
    assert ("I2", "unasked") in verdict(lines)


def test_an_effect_before_its_request_is_named(lines: Lines) -> None:
    first = next(at for at, one in enumerate(lines) if one["kind"] == "effect")
    lines.insert(start(lines), lines.pop(first))
    assert ("I2", "unasked") in verdict(lines)


def test_a_request_that_had_to_be_refused_and_was_taken_is_named(lines: Lines) -> None:
    next(one for one in of(lines, "published") if one["body"]["id"] == done(lines))["sound"] = False
    assert ("I2", "unsound") in verdict(lines)


def test_an_effect_of_a_cancelled_request_is_named(lines: Lines) -> None:
    cancel = {"id": "c", "type": "expunge.request.cancel.v1", "request_id": done(lines)}
    lines[start(lines) : start(lines)] = [published(cancel), event(ACCEPTED, request_id="c")]
    for one in of(lines, "published"):
        if one["body"].get("subject_ref") and one["body"]["id"] != done(lines):
            one["body"]["subject_ref"] = "another"
    assert ("I2", "unasked") in verdict(lines)


def test_an_effect_under_a_hold_is_named(lines: Lines) -> None:
    subject = next(one for one in of(lines, "published") if one["body"]["id"] == done(lines))["body"]["subject_ref"]
    hold = {"id": "h", "type": "expunge.request.hold.v1", "target": {"by": "subject", "subject_ref": subject}}
    lines[start(lines) : start(lines)] = [published(hold), event(ACCEPTED, request_id="h")]
    assert ("I2", "held") in verdict(lines)


# I3


def test_a_complete_request_whose_artifact_is_still_there_is_named(lines: Lines) -> None:
    for one in of(lines, "effect", op="erase"):
        lines.remove(one)
    assert ("I3", "still-there") in verdict(lines)


def test_what_comes_back_is_named(lines: Lines) -> None:
    gone = of(lines, "effect", op="erase")[0]["artifacts"][0]
    listed = next(one for one in of(lines, "contents") if one["store"] == gone.partition("/")[0])
    listed["present"].append(gone)
    assert ("I3", "came") in verdict(lines)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one["completed"]["outcomes"].pop(),
        lambda one: one["claim"]["trees"].pop(),
        lambda one: one.update(scope="0" * 64),
        lambda one: one["completed"].update(result="partial"),
        lambda one: one["claim_opening"].update(nonce="0" * 32),
        lambda one: one["indices"].pop(),
    ],
    ids=["fewer outcomes", "smaller claim", "another scope", "another result", "another nonce", "fewer leaves"],
)
def test_a_certificate_that_does_not_lead_to_the_log_is_named(lines: Lines, change: Callable[[Any], Any]) -> None:
    record = next(one for one in of(lines, "certificate") if json.loads(one["text"])["completed"]["outcomes"])
    opened = json.loads(record["text"])
    change(opened)
    record["text"] = json.dumps(opened, sort_keys=True, separators=(",", ":"))
    assert ("I3", "certificate") in verdict(lines)


def test_a_certificate_against_the_last_word_of_the_rescanner_is_named(lines: Lines) -> None:
    def found(said: dict[str, Any]) -> None:
        if said["predicate"].get("step") == "absence":
            said["predicate"]["outcomes"] = [[7, sum(count for _, count in said["predicate"]["outcomes"])]]

    _relog(lines, found)
    assert ("I3", "certificate") in verdict(lines)


@pytest.mark.parametrize(
    ("result", "outcomes", "level"),
    [
        ("complete", (1,), {PHOTOS: 1}),
        ("held", (1, 4), {PHOTOS: 1}),
        ("held", (1, 6), {}),
        ("failed", (1,), {}),
    ],
)  # fmt: skip
def test_how_far_a_certificate_looked_counts_where_it_found_nothing_again(
    result: str, outcomes: tuple[int, ...], level: dict[tuple[str, str], int]
) -> None:
    """Its rescanner looked for bytes in a sample, one leaf of two: a store that says "gone" of the other is believed."""
    told = [{"tree": 0, "outcome": one} for one in outcomes]
    body = {
        "request": "r", "provision": "data", "sweep": "s", "round": 0, "claim": {"trees": [{"tree": 0}]},
        "completed": {"result": result, "outcomes": told},
    }  # fmt: skip
    opened = judge.Opened(1, "", body)
    scope = SimpleNamespace(body={"trees": [{"kind": PHOTOS[0], "store": PHOTOS[1]}]})
    chunk = ChunkSaid({"absence": bytearray([1, 1])}, level=2, sampled=1)
    log: Any = SimpleNamespace(sweeps={"s": SimpleNamespace(scope=scope, then={0: {(0, 0): chunk}})})
    request: Any = SimpleNamespace(name="r")
    assert judge._levels(request, log, {opened.key: opened}) == level


@pytest.mark.parametrize(
    ("told", "looked"),
    [((1, 1), False), ((1, 4), True), ((1, 1, 4), False), ((1, 6), True), ((1, 1, 5), False), ((1, 2), False), ((1,), True)],
)  # fmt: skip
def test_a_chunk_counts_as_looked_at_unless_its_sample_left_out_what_was_said_to_be_gone(
    told: tuple[int, ...], *, looked: bool
) -> None:
    """A leaf that was left alone for a hold (4), or that the store refused (5), does not make it known of the others."""
    assert ChunkSaid({"absence": bytearray(told)}, level=2, sampled=1).looked is looked


# I4


def test_a_completed_request_without_a_proof_is_named(lines: Lines) -> None:
    for one in of(lines, "certificate"):
        if json.loads(one["text"])["request"] == done(lines):
            lines.remove(one)
    assert {("I4", "none"), ("I4", "unpaired"), ("incomplete", "lacking")} <= verdict(lines)


def test_a_second_proof_is_named(lines: Lines) -> None:
    record = next(one for one in of(lines, "certificate") if json.loads(one["text"])["request"] == done(lines))
    other = json.loads(record["text"])
    other["round"] += 1
    lines.append({"kind": "certificate", "text": json.dumps(other)})
    assert ("I4", "twice") in verdict(lines)


def test_a_proof_in_two_versions_is_named(lines: Lines) -> None:
    record = of(lines, "certificate")[0]
    other = json.loads(record["text"]) | {"not_covered": []}
    lines.append({"kind": "certificate", "text": json.dumps(other)})
    assert ("I4", "two-texts") in verdict(lines)


def test_two_announcements_of_one_proof_are_named(lines: Lines) -> None:
    issued = of(lines, "event", type=ISSUED)[0]
    lines.append({**issued, "id": "another"})
    assert ("I4", "announced-twice") in verdict(lines)


def test_an_announcement_of_other_bytes_is_named(lines: Lines) -> None:
    of(lines, "event", type=ISSUED)[0]["data"]["certificate_digest"] = "0" * 64
    assert ("I4", "other") in verdict(lines)


def test_a_proof_for_nobody_is_named(lines: Lines) -> None:
    issued = copy.deepcopy(of(lines, "event", type=ISSUED)[0])
    issued["data"]["request_id"] = "nobody"
    lines.append(issued)
    assert ("I4", "unknown") in verdict(lines)


# I5


def test_an_entry_with_another_byte_is_named(lines: Lines) -> None:
    record = of(lines, "log")[0]
    data = base64.b64decode(record["entries"][0]).replace(b'"sig":"', b'"sig":"AA', 1)
    record["entries"][0] = base64.b64encode(data).decode()
    assert {("I5", "root"), ("I5", "statement")} <= verdict(lines)


def test_an_entry_that_is_missing_is_named(lines: Lines) -> None:
    record = of(lines, "log")[-1]
    record["entries"].pop()
    assert ("I5", "uncovered") in verdict(lines)


def test_a_gap_is_named(lines: Lines) -> None:
    of(lines, "log")[0]["entries"].pop(0)
    of(lines, "log")[0]["first"] += 1
    assert ("I5", "gap") in verdict(lines)


def test_an_entry_that_is_not_what_it_was_is_named(lines: Lines) -> None:
    first = of(lines, "log")[0]
    lines.append({**first, "entries": [base64.b64encode(b"{}").decode()]})
    assert ("I5", "rewritten") in verdict(lines)


def test_a_checkpoint_by_another_key_is_named(lines: Lines) -> None:
    record = of(lines, "checkpoint")[-1]
    read_ = note.read_checkpoint(record["note"].encode())
    record["note"] = note.sign_checkpoint(read_, dsse.SigningKey.from_seed(b"x" * 32), ORIGIN).decode()
    assert ("I5", "checkpoint") in verdict(lines)


def test_a_log_that_shrinks_is_named(lines: Lines) -> None:
    checkpoints = of(lines, "checkpoint")
    lines.remove(checkpoints[0])
    lines.append(checkpoints[0])
    assert ("I5", "shrunk") in verdict(lines)


@pytest.mark.parametrize("type_", ["urn:expunge:scope:v1", "urn:expunge:chunk:v1", "urn:expunge:completion:v1"])
def test_a_statement_under_the_wrong_role_is_named(lines: Lines, type_: str) -> None:
    _relog(lines, lambda _said: None, wrong=type_)
    assert ("I5", "statement") in verdict(lines)


@pytest.mark.parametrize(
    ("type_", "field", "value"),
    [
        ("urn:expunge:chunk:v1", "scope", "0" * 64),
        ("urn:expunge:chunk:v1", "previous", "0" * 64),
        ("urn:expunge:chunk:v1", "start", 1),
        ("urn:expunge:chunk:v1", "sweep", "00000000-0000-4000-8000-000000000000"),
        ("urn:expunge:completion:v1", "round", 7),
        ("urn:expunge:scope-approved:v1", "approvers", ["a" * 64]),
    ],
)
def test_a_statement_that_cannot_stand_where_it_does_is_named(lines: Lines, type_: str, field: str, value: Any) -> None:
    def change(said: dict[str, Any]) -> None:
        if said["predicateType"] == type_:
            said["predicate"][field] = value

    _relog(lines, change)
    assert ("I5", "statement") in verdict(lines)


# I6


@pytest.mark.parametrize("state", ["planned", "held", "accepted"])
def test_a_request_that_stands_still_at_the_end_is_named(lines: Lines, state: str) -> None:
    wanted = done(lines)
    for one in of(lines, "ledger"):
        for row in one["rows"]:
            if row["request"] == wanted and row["state"] in {"completed", "data-certified"}:
                row |= {"state": state, "data_result": None, "models_result": None}
    for one in list(of(lines, "published")):
        if one["body"]["type"].startswith("expunge.request.hold"):
            lines.remove(one)
    assert ("I6", "unsettled") in verdict(lines)


def test_a_hold_of_which_a_repeat_was_quarantined_holds(lines: Lines) -> None:
    """Its worker had been killed three times with it in hand, the last time when it had been taken (schedule 45)."""
    wanted = done(lines)
    (asked,) = [one for one in of(lines, "published") if one["body"]["id"] == wanted]
    hold = next(one["body"] for one in of(lines, "published") if one["body"]["type"] == "expunge.request.hold.v1")
    hold["target"] = {"by": "subject", "subject_ref": asked["body"]["subject_ref"]}
    lines[:] = [one for one in lines if one.get("body", {}).get("hold_id") != hold["id"]]
    for one in of(lines, "ledger"):
        for row in one["rows"]:
            if row["request"] == wanted and row["state"] in {"completed", "data-certified"}:
                row |= {"state": "held", "data_result": "held", "models_result": None}
    of(lines, "dead")[-1]["rows"].append({"event": hold["id"], "reason": "poison"})
    assert ("I6", "unsettled") not in verdict(lines)
    lines[:] = [one for one in lines if one.get("type") != ACCEPTED or one["data"]["request_id"] != hold["id"]]
    assert ("I6", "unsettled") in verdict(lines)  # one that was never taken does not
    rejected = event("expunge.proof.request-rejected.v1", "r", request_id=hold["id"], code="expired")
    lines[end(lines) : end(lines)] = [rejected]
    assert ("I6", "unsettled") in verdict(lines)
    rejected["data"]["code"] = "too-late"
    assert ("I6", "unsettled") not in verdict(lines)  # it stands for what comes later


# What was not recorded, or not rightly


@pytest.mark.parametrize("kind", ["trust", "dead", "contents", "checkpoint", "log", "phase"])
def test_what_could_not_be_judged_is_said(lines: Lines, kind: str) -> None:
    left = [one for one in lines if one["kind"] != kind]
    assert ("incomplete", "lacking") in verdict(left)
    assert ("incomplete", "lacking") not in verdict(left, partial=True)


def test_a_misspelt_record_is_refused(lines: Lines) -> None:
    for wrong in ({"kind": "efect"}, {"kind": "effect", "op": "erase"}, {"kind": "dead", "rows": [], "row": 1}):
        with pytest.raises(MisreadError):
            read([json.dumps(line) for line in [*lines, wrong]])
    with pytest.raises(MisreadError):
        read([json.dumps(line) for line in lines[1:]])


def _relog(lines: Lines, change: Callable[[dict[str, Any]], None], wrong: str = "") -> None:
    """Sign the log anew with changed statements, as one who has all its keys could. `wrong`: sign these with another."""
    entries: list[bytes] = []
    for record in of(lines, "log"):
        assert record["first"] == len(entries)
        for at, encoded in enumerate(record["entries"]):
            envelope = dsse.parse(base64.b64decode(encoded))
            said = json.loads(envelope.payload)
            before = copy.deepcopy(said)
            change(said)
            signer = _signer(said)
            if said["predicateType"] == wrong:
                signer = SIGNERS[Role.REGISTER, None]
            if said != before or said["predicateType"] == wrong:
                payload = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
                record["entries"][at] = base64.b64encode(signer.sign(payload, envelope.payload_type)).decode()
            entries.append(base64.b64decode(record["entries"][at]))
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    for record in of(lines, "checkpoint"):
        size = note.read_checkpoint(record["note"].encode()).size
        made = note.Checkpoint(ORIGIN, size, merkle.root(b"".join(hashes[:size])))
        record["note"] = note.sign_checkpoint(made, LOG_KEY, ORIGIN).decode()


def _signer(said: dict[str, Any]) -> Any:
    body = said["predicate"]
    match said["predicateType"]:
        case "urn:expunge:chunk:v1" if body["step"] in {"hide", "erase"}:
            return EXECUTORS[body["store"]]
        case "urn:expunge:chunk:v1":
            return SIGNERS[Role.RESCANNER, None]
        case "urn:expunge:scope:v1" | "urn:expunge:scope-approved:v1":
            return SIGNERS[Role.SCOPE, None]
        case "urn:expunge:completion:v1":
            return SIGNERS[Role.CERTIFIER, None]
        case _:
            return SIGNERS[Role.RETRAINER, None]
