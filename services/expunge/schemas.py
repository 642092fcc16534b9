"""The language-neutral contract, generated from `domain`: one JSON Schema per message, one AsyncAPI document.

`python -m expunge.schemas [--check] [TARGET]`; the target is the `schemas` folder of the repository unless named. The
files are committed; CI runs `--check`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from expunge.domain import topics
from expunge.domain.events import EVENT_TYPES, TOPIC_OF, Result
from expunge.domain.lifecycle import FINAL, MEANING, MOVES, SAID, RequestState
from expunge.domain.lineage import LINEAGE_TYPES
from expunge.domain.request import ENVELOPE_TYPE, PAYLOAD_TYPE, REQUEST_TYPES, Message

MARKER: Final = "Generated from services/expunge/domain by `python -m expunge.schemas`. Do not edit."
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CONTRACT_VERSION: Final = "1.0.0"
KAFKA_BINDING: Final = "0.5.0"

PUBLIC_TYPES: Final[dict[str, type[Message]]] = {
    **REQUEST_TYPES,
    **LINEAGE_TYPES,
    **{name: message for name, message in EVENT_TYPES.items() if name in TOPIC_OF},
}
_TOPIC: Final = (
    dict.fromkeys(REQUEST_TYPES, topics.REQUESTS.name) | dict.fromkeys(LINEAGE_TYPES, topics.LINEAGE.name) | TOPIC_OF
)
_KEYS: Final = {
    topics.REQUESTS.name: "subject_ref of a request about a person; else the id of the order or hold concerned",
    topics.LINEAGE.name: "source of a source, its images and artifacts; name of a snapshot; name@version of a model",
    topics.PROOFS.name: "request_id, batch_id, model or log origin, whichever the event is about; `audit` for audits",
    topics.RETRAINING.name: "job_id",
    topics.DEAD_LETTER.name: "topic that the message came from",
}

JsonObject = dict[str, Any]

RESULTS: Final[dict[Result, str]] = {
    Result.COMPLETE: "every artifact is verified absent; every tainted model is replaced or destroyed",
    Result.BLOCKED: "a store refuses until a time that the certificate names",
    Result.PARTIAL: "some artifacts could not be erased after the last attempt",
    Result.UNVERIFIED: "some artifacts have no outcome yet, or were seen again",
    Result.HELD: "a legal hold keeps some artifacts; the request is planned again when it is released",
    Result.OVERDUE: "tainted models are neither replaced nor destroyed, and their date has passed",
    Result.CANCELLED: "it was taken back before its artifacts were touched",
    Result.VOID: "its scope was never approved",
}
"""What a result of a provision means, in a clause."""

OUTCOMES_PAGE: Final = """<!-- {marker} -->
# What became of a request

A request that erases (deletion, withdrawal, retention expiry, order) goes through these states, and no move but these is
ever made. The names are part of the contract: none is renamed or removed within a major version, and a new one would only
come between two that are there. Programs read the same from `outcomes.json`.

```mermaid
stateDiagram-v2
{diagram}
```

| state | meaning | goes on to | events on `expunge.proofs` |
| --- | --- | --- | --- |
{states}

A consent, hold, release, cancel or approval has no course to follow: it is `completed` or `rejected` as soon as it is read.

## How to hear of it

- **Events.** Every answer is an event on `expunge.proofs`, keyed by the request, so they come in order. Event ids are made of
  their content: one that is repeated has the same id. Acceptance is announced of orders, consents, holds, releases, cancels and
  approvals, and to whoever sends a request again. A person's request is not announced when it is accepted: it is rejected, or
  its certificate follows within seconds. A state without an event is seen by asking.
- **Asking.** `GET /requests/{{id}}` of the read API (`openapi.json`) answers with state, results by provision and certificates.
  It is 404 until the request was read from Kafka, and for whoever may not see it.
- **No answer at all** gets what does not verify: a bad signature, an unregistered key, no envelope, headers that do not agree.
  Anybody could provoke an answer about somebody else's request with it. It goes to the dead letter, whose event on
  `expunge.dead-letter` names place and reason.

## Results

A provision (`data`, `models`) is closed by a certificate with a result. `certificate-issued` carries it; a provision may get
several certificates over time, of which the last counts.

| result | meaning |
| --- | --- |
{results}

`request-completed` follows when every provision is `complete`. A request stays `data-certified` for as long as a model that it
taints is open, or its data result is not `complete`.
"""


def documents() -> dict[str, str]:
    """Every generated file's text by its path under the target."""
    files = {f"json/{name}.json": _text(_json_schema(name, message)) for name, message in sorted(_all_types().items())}
    return files | {
        "asyncapi.json": _text(asyncapi()),
        "outcomes.json": _text(outcomes()),
        "OUTCOMES.md": outcomes_page(),
    }


def generate(target: Path, more: Mapping[str, JsonObject]) -> None:
    """Write every document, and `more` of them, by name; drop schemas of types that are gone."""
    files = documents() | {name: _text(one) for name, one in more.items()}
    for path in _stale(target, files):
        path.unlink()
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)


def check(target: Path, more: Mapping[str, JsonObject]) -> list[str]:
    """What `generate` would change, one line each; empty when in step."""
    files = documents() | {name: _text(one) for name, one in more.items()}
    drift = [f"{path.relative_to(target)}: no such message" for path in _stale(target, files)]
    for name, text in files.items():
        if not (target / name).exists():
            drift.append(f"{name}: missing")
        elif (target / name).read_text() != text:
            drift.append(f"{name}: out of step with services/expunge/domain")
    return drift


def asyncapi() -> JsonObject:
    """The public topics and messages as AsyncAPI 3.1. Schemas are embedded: one file is the whole contract."""
    names = sorted(PUBLIC_TYPES)
    _, combined = models_json_schema(
        [(PUBLIC_TYPES[name], "validation") for name in names], ref_template="#/components/schemas/{model}"
    )
    schemas = {name: _on_the_wire(schema) for name, schema in sorted(combined["$defs"].items())}
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Expunge",
            "version": CONTRACT_VERSION,
            "description": f"{MARKER} How to sign, key and encode: schemas/README.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic, names) for topic in topics.PUBLIC},
        "operations": {_operation_name(topic): _operation(topic) for topic in topics.PUBLIC},
        "components": {
            "messages": {name: _message(name) for name in names},
            "messageTraits": {"cloudevent": {"headers": _HEADERS}},
            "schemas": {**schemas, "DsseEnvelope": _ENVELOPE},
        },
    }


def outcomes() -> JsonObject:
    """The states of a request, the moves between them, and the events that tell of them, for programs."""
    return {
        "$comment": f"{MARKER} In words: OUTCOMES.md.",
        "initial": [RequestState.ACCEPTED, RequestState.HELD, RequestState.REJECTED],
        "states": {
            state.value: {
                "meaning": MEANING[state],
                "final": state in FINAL,
                "next": [one.value for one in RequestState if one in MOVES.get(state, ())],
                "events": list(SAID.get(state, ())),
            }
            for state in RequestState
        },
        "results": {result.value: RESULTS[result] for result in Result},
    }


def outcomes_page() -> str:
    """The same for people."""
    rows = [
        f"| `{state}` | {MEANING[state]} | "
        + (", ".join(f"`{one.value}`" for one in RequestState if one in MOVES.get(state, ())) or "final")
        + " | "
        + (
            ", ".join(f"`{name.removeprefix('expunge.proof.').removesuffix('.v1')}`" for name in SAID.get(state, ()))
            or "none"
        )
        + " |"
        for state in RequestState
    ]
    results = [f"| `{result}` | {RESULTS[result]} |" for result in Result]
    arrows = [f"    {now} --> {to}" for now in RequestState for to in RequestState if to in MOVES.get(now, ())]
    ends = [f"    {state} --> [*]" for state in RequestState if state in FINAL]
    starts = [f"    [*] --> {state}" for state in (RequestState.ACCEPTED, RequestState.HELD, RequestState.REJECTED)]
    drawn = [line.replace("data-certified", "data_certified") for line in (*starts, *arrows, *ends)]
    return OUTCOMES_PAGE.format(
        marker=MARKER, states="\n".join(rows), results="\n".join(results), diagram="\n".join(drawn)
    )


def _all_types() -> dict[str, type[Message]]:
    return {**REQUEST_TYPES, **LINEAGE_TYPES, **EVENT_TYPES}


def _json_schema(name: str, message: type[Message]) -> JsonObject:
    schema: JsonObject = _on_the_wire(message.model_json_schema())
    visibility = "public" if name in PUBLIC_TYPES else "internal: may change with any release"
    return {"$schema": DIALECT, "$id": f"urn:expunge:schema:{name}", "$comment": f"{MARKER} {visibility}.", **schema}


def _on_the_wire(node: Any) -> Any:  # noqa: ANN401 - any JSON value
    """A schema as a reader of messages needs it: tags are required; what is only Python's or OpenAPI's goes."""
    if isinstance(node, list):
        return [_on_the_wire(part) for part in node]
    if not isinstance(node, dict):
        return node
    schema = {key: _on_the_wire(part) for key, part in node.items() if key not in ("title", "default", "discriminator")}
    tags = [key for key, part in node.get("properties", {}).items() if {"const", "default"} <= part.keys()]
    if tags:
        schema["required"] = sorted({*tags, *schema.get("required", ())})
    return schema


def _channel(topic: topics.Topic, names: list[str]) -> JsonObject:
    return {
        "address": topic.name,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names if _TOPIC[name] == topic.name},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms},
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _operation_name(topic: topics.Topic) -> str:
    return f"{_action(topic)}-{topic.name.removeprefix('expunge.')}"


def _action(topic: topics.Topic) -> str:
    """From Expunge's side, as AsyncAPI has it."""
    return "receive" if topic in (topics.REQUESTS, topics.LINEAGE) else "send"


def _operation(topic: topics.Topic) -> JsonObject:
    return {"action": _action(topic), "channel": {"$ref": f"#/channels/{topic.name}"}}


def _message(name: str) -> JsonObject:
    title = PUBLIC_TYPES[name].__name__
    body = f"#/components/schemas/{title}"
    message: JsonObject = {
        "name": name,
        "title": title,
        "contentType": "application/json",
        "payload": {"$ref": body},
        "traits": [{"$ref": "#/components/messageTraits/cloudevent"}],
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": _KEYS[_TOPIC[name]]},
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }
    if name in REQUEST_TYPES:
        envelope = {"$ref": "#/components/schemas/DsseEnvelope"}
        message |= {"contentType": ENVELOPE_TYPE, "payload": envelope, "x-signed-payload": {"$ref": body}}
    return message


def _stale(target: Path, files: dict[str, str]) -> list[Path]:
    return [path for path in sorted((target / "json").glob("*.json")) if f"json/{path.name}" not in files]


def _text(document: JsonObject) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_HEADERS: Final[JsonObject] = {
    "type": "object",
    "description": "CloudEvents 1.0, binary mode. Structured mode is read as well.",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "description": "Of a request: the signed id. Else: what repeats are known by."},
        "ce_source": {"type": "string", "description": "URI reference of the publisher."},
        "ce_type": {"type": "string", "description": "As in the payload."},
        "ce_time": {"type": "string", "format": "date-time"},
        "ce_partitionkey": {"type": "string", "description": "The record's key."},
        "content-type": {"type": "string"},
    },
}
_ENVELOPE: Final[JsonObject] = {
    "type": "object",
    "description": "DSSE envelope (https://github.com/secure-systems-lab/dsse/blob/master/envelope.md), Ed25519.",
    "required": ["payload", "payloadType", "signatures"],
    "properties": {
        "payload": {"type": "string", "contentEncoding": "base64", "description": "The request, see x-signed-payload."},
        "payloadType": {"type": "string", "const": PAYLOAD_TYPE},
        "signatures": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["keyid", "sig"],
                "properties": {"keyid": {"type": "string"}, "sig": {"type": "string", "contentEncoding": "base64"}},
            },
        },
    },
}


def main(arguments: list[str] | None = None, more: Mapping[str, JsonObject] | None = None) -> int:
    """Exit code 1 if `--check` finds drift. `more`: documents that are made above this layer, by name."""
    parser = argparse.ArgumentParser(prog="expunge.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, list what is out of step")
    parser.add_argument("target", nargs="?", type=Path, default=Path(__file__).parents[2] / "schemas")
    given = parser.parse_args(arguments)
    if not given.check:
        generate(given.target, more or {})
        return 0
    drift = check(given.target, more or {})
    sys.stderr.writelines(f"{line}\n" for line in drift)
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
