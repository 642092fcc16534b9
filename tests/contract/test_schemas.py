"""The contract in schemas/: in step with the models, true of its examples, and readable for ever."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter

from expunge import schemas
from expunge.api.application import openapi
from expunge.domain import dsse, events, lineage, request
from expunge.domain.errors import IllegalTransition, Rejected
from expunge.domain.lifecycle import RequestState, move
from expunge.domain.topics import PROOFS, PUBLIC

ROOT = Path(__file__).parents[2] / "schemas"
EXAMPLES = ROOT / "examples"
ADAPTERS: tuple[tuple[dict[str, type[request.Message]], TypeAdapter[Any]], ...] = (
    (request.REQUEST_TYPES, request.REQUEST_ADAPTER),
    (lineage.LINEAGE_TYPES, lineage.LINEAGE_ADAPTER),
    (events.EVENT_TYPES, events.EVENT_ADAPTER),
)
TYPES = {name: adapter for types, adapter in ADAPTERS for name in types}
PARSERS = {
    **dict.fromkeys(request.REQUEST_TYPES, request.parse_request),
    **dict.fromkeys(lineage.LINEAGE_TYPES, lineage.parse_lineage),
    **dict.fromkeys(events.EVENT_TYPES, events.parse_event),
}


def examples(pattern: str) -> list[Any]:
    found = sorted(EXAMPLES.glob(pattern))
    assert found, f"no examples match {pattern}"
    return [pytest.param(path, id=str(path.relative_to(EXAMPLES))) for path in found]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((ROOT / "json" / f"{name}.json").read_text()))


def test_the_committed_schemas_are_in_step_with_the_models() -> None:
    assert schemas.check(ROOT, {"openapi.json": openapi()}) == []


def test_drift_is_found_and_named(tmp_path: Path) -> None:
    schemas.generate(tmp_path, {})
    (tmp_path / "json" / "expunge.gone.v1.json").write_text("{}")
    (tmp_path / "asyncapi.json").write_text("{}")
    (tmp_path / "json" / "expunge.request.order.v1.json").unlink()
    assert schemas.check(tmp_path, {}) == [
        "json/expunge.gone.v1.json: no such message",
        "json/expunge.request.order.v1.json: missing",
        "asyncapi.json: out of step with services/expunge/domain",
    ]
    assert schemas.main(["--check", str(tmp_path)]) == 1
    assert schemas.main([str(tmp_path)]) == 0
    assert schemas.main(["--check", str(tmp_path)]) == 0


def test_the_module_runs_by_itself() -> None:
    done = subprocess.run([sys.executable, "-m", "expunge.schemas", "--check"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_type_has_a_sound_schema_that_says_it_is_generated(name: str) -> None:
    schema = json.loads((ROOT / "json" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert "Do not edit" in schema["$comment"]
    assert schema["properties"]["type"]["const"] == name
    assert "type" in schema["required"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", sorted(TYPES))
def test_every_type_has_valid_and_invalid_examples_and_an_archive(name: str) -> None:
    assert list((EXAMPLES / name / "valid").glob("*.json"))
    assert list((EXAMPLES / name / "invalid").glob("*.json"))
    assert list((EXAMPLES / "archive").glob(f"*/{name}/*.json"))


@pytest.mark.parametrize("path", examples("expunge.*/valid/*.json"))
def test_a_valid_example_is_valid_to_schema_and_model_and_survives_a_round_trip(path: Path) -> None:
    name = path.parts[-3]
    validator(name).validate(json.loads(path.read_text()))
    message = PARSERS[name](path.read_bytes())
    given, dumped = json.loads(path.read_text()), json.loads(request.dump_as(message))
    assert {field: value for field, value in dumped.items() if field in given or value not in ([], {})} == given
    assert PARSERS[name](request.dump_as(message)) == message


@pytest.mark.parametrize("path", examples("expunge.*/invalid/*.json"))
def test_an_invalid_example_is_refused_with_the_code_in_its_name(path: Path) -> None:
    name, code = path.parts[-3], path.name.partition(".")[0]
    with pytest.raises(Rejected) as refused:
        PARSERS[name](path.read_bytes())
    assert refused.value.code == code


@pytest.mark.parametrize("path", examples("expunge.*/invalid/*.json"))
def test_an_invalid_example_is_invalid_to_the_schema_unless_named_beyond_it(path: Path) -> None:
    accepted = validator(path.parts[-3]).is_valid(json.loads(path.read_text()))
    assert accepted is (".beyond-schema." in path.name)


@pytest.mark.parametrize("path", examples("archive/*/*/*.json"))
def test_an_archived_example_of_any_release_still_reads(path: Path) -> None:
    assert PARSERS[path.parts[-2]](path.read_bytes()).type == path.parts[-2]


def test_asyncapi_has_every_public_message_on_its_topic_and_no_other() -> None:
    document = json.loads((ROOT / "asyncapi.json").read_text())
    assert document["asyncapi"] == "3.1.0"
    assert set(document["channels"]) == {topic.name for topic in PUBLIC}
    channels = {name: set(channel["messages"]) for name, channel in document["channels"].items()}
    assert channels["expunge.requests"] == set(request.REQUEST_TYPES)
    assert channels["expunge.lineage"] == set(lineage.LINEAGE_TYPES)
    for name, topic in events.TOPIC_OF.items():
        assert name in channels[topic]
    assert set(document["components"]["messages"]) == set().union(*channels.values()) == set(schemas.PUBLIC_TYPES)
    assert sum(map(len, channels.values())) == len(schemas.PUBLIC_TYPES)


def test_the_outcomes_are_the_moves_of_the_code_and_name_events_that_exist() -> None:
    document = json.loads((ROOT / "outcomes.json").read_text())
    assert set(document["states"]) == {state.value for state in RequestState}
    for name, state in document["states"].items():
        for to in RequestState:
            if to.value in state["next"]:
                assert move(RequestState(name), to) is to
            else:
                with pytest.raises(IllegalTransition):
                    move(RequestState(name), to)
        assert state["final"] is (not state["next"])
        assert set(state["events"]) <= {one for one, topic in events.TOPIC_OF.items() if topic == PROOFS.name}
    page = (ROOT / "OUTCOMES.md").read_text()
    assert all(f"| `{name}` |" in page for name in (*document["states"], *document["results"]))


def test_openapi_is_valid_and_every_error_in_it_is_a_problem() -> None:
    document = json.loads((ROOT / "openapi.json").read_text())
    OpenAPIV31SpecValidator(document).validate()
    answers = [
        (path, status, answer)
        for path, found in document["paths"].items()
        for operation in found.values()
        for status, answer in operation["responses"].items()
        if status >= "400"
    ]
    assert answers
    for path, status, answer in answers:
        assert list(answer["content"]) == ["application/problem+json"], (path, status)


def test_asyncapi_says_who_sends_what() -> None:
    operations = json.loads((ROOT / "asyncapi.json").read_text())["operations"]
    assert {name: operation["action"] for name, operation in operations.items()} == {
        "receive-requests": "receive",
        "receive-lineage": "receive",
        "send-proofs": "send",
        "send-retraining": "send",
        "send-dead-letter": "send",
    }


def test_every_reference_in_asyncapi_leads_somewhere() -> None:
    document = json.loads((ROOT / "asyncapi.json").read_text())
    references: list[str] = []
    pending: list[Any] = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            references += [node["$ref"]] if "$ref" in node else []
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    assert references
    for reference in references:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


def test_requests_travel_in_an_envelope_and_others_do_not() -> None:
    messages = json.loads((ROOT / "asyncapi.json").read_text())["components"]["messages"]
    for name, message in messages.items():
        assert ("x-signed-payload" in message) is (name in request.REQUEST_TYPES)
        assert (message["contentType"] == request.ENVELOPE_TYPE) is (name in request.REQUEST_TYPES)


def test_signing_vectors_are_what_our_client_signs() -> None:
    document = json.loads((ROOT / "vectors" / "signing.json").read_text())
    key = dsse.SigningKey.from_seed(bytes.fromhex(document["seed_hex"]))
    assert (key.public.raw.hex(), key.key_id) == (document["public_key_hex"], document["key_id"])
    seen = set()
    for vector in document["vectors"]:
        parsed = request.parse_request((ROOT / vector["example"]).read_bytes())
        payload = request.dump_request(parsed)
        assert payload.decode() == vector["payload"]
        assert dsse.sign(payload, document["payload_type"], key).decode() == vector["envelope"]
        assert request.partition_key(parsed) == vector["kafka_key"]
        seen.add(parsed.type)
    assert seen == set(request.REQUEST_TYPES)


def test_signing_vectors_verify_with_an_independent_library() -> None:
    document = json.loads((ROOT / "vectors" / "signing.json").read_text())
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key_hex"]))
    kind = document["payload_type"]
    for vector in document["vectors"]:
        envelope = json.loads(vector["envelope"])
        payload = base64.b64decode(envelope["payload"])
        signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        assert signed == vector["pae"].encode()
        public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
