"""The map is true: its tables against the stages' code, topics, consumer groups and metrics."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import get_args

import pytest

from expunge import metrics
from expunge.domain import events, lineage, request
from expunge.domain.topics import PUBLIC, TOPICS
from expunge.pipeline import FROM_OUTSIDE, PIPELINE, WORKERS, Stage
from expunge.wiring import build_worker
from expunge.workers import agent
from tests.guards.sources import PACKAGE, Mentions, mentions, modules, stage_files

NOT_OF_THE_PIPELINE = {
    "DeadLettered": "said by the delivery host around every stage, not by a stage",
    "BreakerOpened": "said by the breaker, which dispatch asks",
    "BreakerClosed": "said for the person who closes a breaker",
}
"""Event classes that no stage takes or emits, and why they exist."""

STAGES = pytest.mark.parametrize("stage", PIPELINE, ids=lambda stage: stage.name)

EVENTS = {f"{events.__name__}.{one.__name__}": one for one in events.EVENT_TYPES.values()}
WORK_DONE = f"{events.__name__}.WorkDone"
INPUTS = {
    f"{module.__name__}.{one.__name__}": one
    for module, types in ((request, request.REQUEST_TYPES), (lineage, lineage.LINEAGE_TYPES))
    for one in types.values()
}


def names(types: Iterable[type]) -> set[str]:
    return {one.__name__ for one in types}


def mentioned(stage: Stage) -> Mentions:
    """Over all files of a stage."""
    found = [mentions(module) for module in modules(stage_files(stage.name))]
    said = frozenset[str]().union(*(one.said for one in found))
    return Mentions(said, frozenset[str]().union(*(one.asked for one in found)))


def of_union(found: Iterable[str]) -> set[str]:
    """Names of event classes, a union of them taken apart."""
    expanded = set(found)
    if WORK_DONE in expanded:
        expanded |= {f"{events.__name__}.{one.__name__}" for one in get_args(events.WorkDone)}
    return names(EVENTS[one] for one in expanded & EVENTS.keys())


def test_every_file_in_stages_is_a_stage_of_the_map_and_the_other_way_round() -> None:
    here = {path.stem for path in (PACKAGE / "stages").iterdir() if not path.name.startswith("_")}
    assert here == {stage.name for stage in PIPELINE}


@STAGES
def test_a_stage_emits_what_the_map_says(stage: Stage) -> None:
    assert of_union(mentioned(stage).said) == names(stage.emits)


@STAGES
def test_a_stage_takes_what_the_map_says(stage: Stage) -> None:
    asked = mentioned(stage).asked
    internal = names(set(stage.takes) & set(EVENTS.values()))
    if "chunks.orders" in " ".join(mentioned(stage).said):
        internal.discard("WorkOrdered")  # the executors' inbox takes it, in one place for all three
    assert internal <= of_union(asked)
    assert of_union(asked) <= names(stage.takes)


def test_the_executors_inbox_takes_work_orders() -> None:
    (orders,) = modules(PACKAGE / "chunks" / "orders.py")
    assert f"{events.__name__}.WorkOrdered" in mentions(orders).asked


def test_whatever_enters_from_outside_is_taken_by_code() -> None:
    asked = mentioned(next(one for one in PIPELINE if one.name == "intake")).asked
    asked |= mentioned(next(one for one in PIPELINE if one.name == "register")).asked
    assert names(INPUTS[one] for one in asked & INPUTS.keys()) == names(FROM_OUTSIDE)


def test_every_event_taken_is_emitted_by_a_stage_or_enters_from_outside() -> None:
    taken = {event for stage in PIPELINE for event in stage.takes}
    emitted = {event for stage in PIPELINE for event in stage.emits}
    assert names(taken - emitted - set(FROM_OUTSIDE)) == set()


def test_every_internal_event_emitted_is_taken() -> None:
    taken = {event for stage in PIPELINE for event in stage.takes}
    internal = {one for name, one in events.EVENT_TYPES.items() if name not in events.TOPIC_OF}
    emitted = {event for stage in PIPELINE for event in stage.emits}
    assert names((emitted & internal) - taken) == set()


def test_every_event_class_is_in_the_map_or_has_a_reason_not_to_be() -> None:
    mapped = {event for stage in PIPELINE for event in (*stage.takes, *stage.emits)}
    assert names(set(EVENTS.values()) - mapped) == set(NOT_OF_THE_PIPELINE)


def test_dead_letters_are_the_hosts_to_say() -> None:
    (delivery,) = modules(PACKAGE / "workers" / "delivery.py")
    assert of_union(mentions(delivery).said) == {"DeadLettered"}


def test_every_stage_has_one_worker_and_every_worker_known_stages() -> None:
    hosted = [stage for worker in WORKERS.values() for stage in worker.stages]
    assert sorted(hosted) == sorted(stage.name for stage in PIPELINE)
    assert len(hosted) == len(set(hosted))


def test_every_topic_is_consumed_by_one_worker_or_is_there_for_others() -> None:
    consumed = [topic.name for worker in WORKERS.values() for topic in worker.consumes]
    outgoing = {topic.name for topic in PUBLIC if topic.name not in consumed}
    assert outgoing == set(events.TOPIC_OF.values())
    assert sorted([*consumed, *outgoing]) == sorted(TOPICS)


def test_an_internal_topic_of_work_is_named_after_its_worker() -> None:
    own = {name: [topic for topic in worker.consumes if not topic.public] for name, worker in WORKERS.items()}
    named = {name: [topic.name for topic in topics] for name, topics in own.items() if topics}
    assert named.pop("coordinate") == ["expunge.outcomes"], "the one that several workers write to"
    assert named == {name: [f"expunge.{name}"] for name in ("purge", "invalidate", "retrain", "rescan")}


def test_the_consumer_group_is_named_after_the_worker() -> None:
    # Importing the app's builder is cheap enough, building an app is not: its name is read from the source.
    assert 'f"expunge-{host.worker}"' in inspect.getsource(agent.build_app)
    assert "worker=name" in inspect.getsource(build_worker)


def test_outbox_rows_and_metrics_carry_names_of_workers() -> None:
    for stage in PIPELINE:
        worker = next(one for one in WORKERS.values() if stage.name in one.stages)
        said = [
            value.value
            for module in modules(stage_files(stage.name))
            for node in module.tree.body
            for value in [getattr(node, "value", None)]
            if getattr(getattr(node, "target", None), "id", "") == "WORKER" and value is not None
        ]
        assert set(said) <= {worker.name}
    about_workers = [
        metrics.DELIVERIES, metrics.BATCH_SECONDS, metrics.BATCHES, metrics.COMMITTED_ABOVE_HANDLED, metrics.RETRIES,
        metrics.DEAD_LETTERS,
    ]  # fmt: skip
    for metric in about_workers:
        assert metric._labelnames[0] == "worker"
