"""The language-neutral contract, generated from `domain`: one JSON Schema per message, one AsyncAPI document.

`python -m expunge.schemas [--check] [TARGET]`; the target is the `schemas` folder of the repository unless named. The
files are committed; CI runs `--check`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from expunge.domain import topics
from expunge.domain.events import EVENT_TYPES, TOPIC_OF
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


def documents() -> dict[str, str]:
    """Every generated file's text by its path under the target."""
    files = {f"json/{name}.json": _text(_json_schema(name, message)) for name, message in sorted(_all_types().items())}
    return files | {"asyncapi.json": _text(asyncapi())}


def generate(target: Path) -> None:
    """Write every document; drop schemas of types that are gone."""
    files = documents()
    for path in _stale(target, files):
        path.unlink()
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)


def check(target: Path) -> list[str]:
    """What `generate` would change, one line each; empty when in step."""
    files = documents()
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


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if `--check` finds drift."""
    parser = argparse.ArgumentParser(prog="expunge.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, list what is out of step")
    parser.add_argument("target", nargs="?", type=Path, default=Path(__file__).parents[2] / "schemas")
    given = parser.parse_args(arguments)
    if not given.check:
        generate(given.target)
        return 0
    drift = check(given.target)
    sys.stderr.writelines(f"{line}\n" for line in drift)
    return 1 if drift else 0


if __name__ == "__main__":
    sys.exit(main())
