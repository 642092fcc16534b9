"""Lineage events: what each may say, and where it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from expunge.domain import lineage
from expunge.domain.cloudevents import CloudEvent, from_kafka, to_kafka
from expunge.domain.errors import Rejected
from expunge.domain.words import Kind

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"


def example(stem: str, name: str = "full") -> lineage.Lineage:
    return lineage.parse_lineage((EXAMPLES / f"expunge.lineage.{stem}.v1" / "valid" / f"{name}.json").read_bytes())


@pytest.mark.parametrize(
    ("stem", "name", "key"),
    [
        ("source", "full", "okface"),
        ("images", "full", "uploads"),
        ("artifacts", "full", "uploads"),
        ("snapshot", "by-key", "train-2026-01"),
        ("model", "full", "face@2"),
    ],
)
def test_an_event_survives_kafka_and_is_keyed_by_what_it_tells_of(stem: str, name: str, key: str) -> None:
    event = example(stem, name)
    record = to_kafka(lineage.to_cloudevent(event, "e-1", "urn:product"))
    assert record[0] == key.encode()
    assert lineage.from_cloudevent(from_kafka(*record)) == event


def test_a_record_of_another_type_than_its_data_is_refused() -> None:
    event = CloudEvent("e-1", "urn:product", "expunge.lineage.model.v1", lineage.dump_lineage(example("source")))
    with pytest.raises(Rejected) as refused:
        lineage.from_cloudevent(event)
    assert refused.value.code == "header-mismatch"


def test_a_model_is_no_artifact_of_an_image() -> None:
    kinds = {"image", "derivative", "shard-row", "embedding", "model"}
    assert kinds == set(Kind)
    image = example("images").model_dump(mode="json")["images"][0]
    for kind in kinds:
        image["artifacts"][0]["kind"] = kind
        if kind == "model":
            with pytest.raises(ValidationError):
                lineage.ImageRecord.model_validate_json(json.dumps(image))
        else:
            assert lineage.ImageRecord.model_validate_json(json.dumps(image)).artifacts[0].kind == kind


def test_metrics_are_finite_and_integers_among_them_are_numbers() -> None:
    model = json.loads(lineage.dump_lineage(example("model")))
    whole = lineage.parse_lineage(json.dumps(model | {"metrics": {"eer": 0}}).encode())
    assert isinstance(whole, lineage.ModelRegistered)
    assert whole.metrics == {"eer": 0.0}
    assert b'"eer":0}' in lineage.dump_lineage(whole)
    for wrong in ("NaN", "1e999"):
        payload = json.dumps(model | {"metrics": {"eer": 1}}).replace('"eer": 1', f'"eer": {wrong}')
        with pytest.raises(Rejected):
            lineage.parse_lineage(payload.encode())
