"""Events: references only, each on its topic, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.domain import events, topics
from expunge.domain.cloudevents import CloudEvent, from_kafka, to_kafka
from expunge.domain.errors import Rejected

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
FILES = {name: sorted((EXAMPLES / name / "valid").glob("*.json")) for name in events.EVENT_TYPES}


def example(name: str) -> events.Event:
    return events.parse_event(FILES[name][0].read_bytes())


@pytest.mark.parametrize("name", sorted(events.EVENT_TYPES))
def test_an_event_survives_kafka_with_the_same_bytes(name: str) -> None:
    event = example(name)
    again = events.from_cloudevent(from_kafka(*to_kafka(events.to_cloudevent(event, "e-1", "urn:expunge"))))
    assert again == event
    assert events.dump_event(again) == events.dump_event(event)


@pytest.mark.parametrize("name", sorted(events.EVENT_TYPES))
def test_no_event_has_a_field_for_a_person_or_a_place(name: str) -> None:
    schema = str(events.EVENT_TYPES[name].model_json_schema())
    for word in ("subject_ref", "locator", "'unit'", "image_key", "'key'"):
        assert word not in schema


def test_keys_keep_what_is_said_of_one_thing_together() -> None:
    keys = {name: events.partition_key(example(name)) for name in events.EVENT_TYPES}
    assert keys["expunge.proof.request-accepted.v1"] == keys["expunge.proof.request-completed.v1"]
    assert keys["expunge.proof.model-tainted.v1"] == "face@1"
    assert keys["expunge.proof.registered.v1"] == keys["expunge.proof.registration-refused.v1"]
    assert keys["expunge.work.ordered.v1"] == keys["expunge.work.residue-found.v1"]
    assert keys["expunge.proof.audit-passed.v1"] == "audit"
    assert keys["expunge.proof.sealed.v1"] == "log.acme.example/expunge"
    assert keys["expunge.dead-letter.v1"] == "expunge.requests"
    rejected = events.parse_event((EXAMPLES / "expunge.proof.request-rejected.v1/valid/without-id.json").read_bytes())
    assert events.partition_key(rejected) is None


def test_public_events_have_a_public_topic_and_others_none() -> None:
    public = {topic.name for topic in topics.PUBLIC}
    assert set(events.TOPIC_OF.values()) == public - {"expunge.requests", "expunge.lineage"}
    internal = set(events.EVENT_TYPES) - set(events.TOPIC_OF)
    assert all(name.startswith(("expunge.work.", "expunge.sweep.")) for name in internal)


def test_topics_say_how_they_are_kept() -> None:
    assert topics.REQUESTS.config == {"cleanup.policy": "delete", "retention.ms": "604800000"}
    assert all(name == topic.name for name, topic in topics.TOPICS.items())


def test_a_record_of_another_type_than_its_data_is_refused() -> None:
    data = events.dump_event(example("expunge.sweep.taint-ordered.v1"))
    with pytest.raises(Rejected) as refused:
        events.from_cloudevent(CloudEvent("e-1", "urn:expunge", "expunge.sweep.taint-resolved.v1", data))
    assert refused.value.code == "header-mismatch"
