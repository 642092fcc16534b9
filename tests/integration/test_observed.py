"""Every metric moves when what it counts happens, no label has a value outside its closed set, and a trace goes from the
publisher's message to the announcement."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from expunge import metrics
from expunge.api.application import openapi
from expunge.api.middleware import UNMATCHED
from expunge.domain import cloudevents, events, request, topics, tracing
from expunge.domain.events import AuditFailed, AuditPassed
from expunge.domain.words import Role
from expunge.pipeline import PIPELINE, WORKERS
from expunge.wiring import note_audit
from expunge.wiring.gauges import count_requests, set_gauges
from expunge.wiring.run import measure_clock
from tests.coordination import FACES, PHOTOS, REWRITES, Deployment, album, deployed, subject

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


def value(name: str, **labels: str) -> float:
    """A sample's value now; 0 while there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def gauged(world: Deployment) -> None:
    async with world.ledger.transaction() as tx:
        await set_gauges(tx, REWRITES)
        await count_requests(tx)


def outside(samples: Iterator[tuple[str, dict[str, str]]], *, stores: set[str]) -> set[str]:
    """Labels whose value is in no closed set: `metric{label="value"}`."""
    known = {
        **metrics.VALUES,
        "worker": frozenset(WORKERS),
        "topic": frozenset(topics.TOPICS),
        "store": frozenset(stores),
        "route": frozenset({*openapi()["paths"], UNMATCHED}),
    }
    found = set()
    for name, labels in samples:
        family = name.removesuffix("_total").removesuffix("_created")
        for label, text in labels.items():
            allowed = metrics.OUTCOMES.get(family, frozenset()) if label == "outcome" else known.get(label, frozenset())
            if label not in {"le", "version"} and text not in allowed:
                found.add(f'{name}{{{label}="{text}"}}')
    return found


def ours() -> Iterator[tuple[str, dict[str, str]]]:
    for family in REGISTRY.collect():
        if family.name.startswith("expunge_"):
            for sample in family.samples:
                yield sample.name, sample.labels


async def test_a_run_moves_what_it_should_and_no_label_is_outside_its_set(world: Deployment) -> None:
    for family in vars(metrics).values():
        if isinstance(family, Counter | Gauge | Histogram):
            family.clear()  # other tests have stores, workers and witnesses of their own
    before = {name: value(name, **labels) for name, labels in COUNTED}
    await world.seed(*album(1), *album(2))
    await world.trained("face@1", album(1))
    asked = world.deletion(1)
    world.ask(asked)
    await world._deliver()
    await gauged(world)
    assert value("expunge_requests", **{"class": "people", "regulation": "gdpr", "state": "accepted"}) == 1
    assert value("expunge_oldest_open_request_seconds", **{"class": "people"}) > 0
    assert value("expunge_nearest_deadline_timestamp_seconds") > 0
    assert value("expunge_backlog_artifacts", store=PHOTOS) == 0
    await world.coordinator.turn()
    await gauged(world)
    assert value("expunge_backlog_artifacts", store=PHOTOS) == 4
    assert value("expunge_work_runs", step="presence") == 4
    await world.settle()
    await gauged(world)
    assert value("expunge_backlog_artifacts", store=PHOTOS) == 0
    assert value("expunge_work_runs", step="presence") == 0
    assert value("expunge_models", status="remediating") + value("expunge_models", status="tainted") == 1
    assert value("expunge_retraining_jobs", state="queued") == 1
    assert value("expunge_log_size") > 0
    assert value("expunge_outbox_rows") == 0
    closed = {"class": "people", "regulation": "gdpr", "state": "data-certified"}
    assert value("expunge_requests", **closed) == 1
    assert value("expunge_artifacts_total", store=FACES, step="absence", outcome="gone") >= 4
    assert REGISTRY.get_sample_value("expunge_breakers_open", {"kind": "source"}) == 0
    assert REGISTRY.get_sample_value("expunge_store_circuit_open", {"worker": "purge", "store": PHOTOS}) == 0
    for name, labels in COUNTED:
        assert value(name, **labels) > before[name], name
    assert outside(ours(), stores=set(REWRITES)) == set()


async def unsent(world: Deployment) -> None:
    """A turn's announcement, to a broker that is away."""
    async with world.ledger.transaction() as tx:
        assert await world.certify.issue(tx)
        raise ConnectionError


async def test_a_certificate_whose_announcement_is_repeated_is_counted_once(world: Deployment) -> None:
    await world.seed(*album(1))
    world.ask(world.deletion(1))
    await world.settle()
    world.sql("update round set issued = false")
    before = value("expunge_certified_seconds_count", **{"class": "people"})
    for _ in range(3):  # Kafka was away, and nothing was committed
        with pytest.raises(ConnectionError):
            await unsent(world)
    assert value("expunge_certified_seconds_count", **{"class": "people"}) == before
    async with world.ledger.transaction() as tx:
        assert await world.certify.issue(tx)
    world.certify.announced()
    world.certify.announced()
    assert value("expunge_certified_seconds_count", **{"class": "people"}) == before + 1


COUNTED: list[tuple[str, dict[str, str]]] = [
    ("expunge_sweep_artifacts_sum", {"class": "people"}),
    ("expunge_sweep_requests_sum", {"class": "people"}),
    ("expunge_certified_seconds_count", {"class": "people"}),
    ("expunge_deliveries_total", {"worker": "purge", "topic": "expunge.purge", "outcome": "handled"}),
    ("expunge_batch_seconds_count", {"worker": "purge", "topic": "expunge.purge"}),
    *(
        ("expunge_stage_seconds_count", {"stage": stage.name})
        for stage in PIPELINE
        if stage.name not in {"reconcile", "audit"}
    ),
]


def test_the_walk_sees_a_value_that_is_in_no_set() -> None:
    planted = [
        ("expunge_requests", {"class": "people", "regulation": "gdpr", "state": "canary@example"}),
        ("expunge_deliveries_total", {"worker": "purge", "topic": "k1.subject", "outcome": "handled"}),
        ("expunge_artifacts_total", {"store": "p1/x.jpg", "step": "erase", "outcome": "handled"}),
    ]
    assert len(outside(iter(planted), stores={PHOTOS})) == 4


def test_stages_in_metrics_are_those_of_the_map() -> None:
    assert metrics.VALUES["stage"] == {stage.name for stage in PIPELINE} - {"reconcile"}


def test_every_metric_has_one_owner() -> None:
    declared = {name for name, value in vars(metrics).items() if name.isupper() and hasattr(value, "describe")}
    owned = [name for names in metrics.OWNERS.values() for name in names]
    assert sorted(owned) == sorted(declared)


async def test_dead_letters_and_parked_events_are_counted_under_their_worker(world: Deployment) -> None:
    world.send(cloudevents.CloudEvent("x", "somebody", "expunge.request.deletion.v1", b"{"), "expunge.requests")
    await world._deliver()
    world.sql(
        'insert into retry (worker, event_id, scope, topic, partition, "offset", sealed, reason, not_before)'
        " values ('purge', 'e', 's', 'expunge.purge', 0, 0, '', 'retryable', now())"
    )
    await gauged(world)
    assert value("expunge_dead_letters", worker="coordinate") == 1
    assert value("expunge_parked_events", worker="purge") == 1
    world.sql("delete from dead_letter")
    world.sql("delete from retry")
    await gauged(world)
    assert value("expunge_dead_letters", worker="coordinate") == 0
    assert REGISTRY.get_sample_value("expunge_parked_events", {"worker": "purge"}) == 0


async def test_what_waits_for_witnesses_is_shown_with_its_age(world: Deployment) -> None:
    await world.seed(*album(1))
    world.ask(world.deletion(1))
    await world.settle()
    await gauged(world)
    assert value("expunge_unattested_seconds") == 0
    assert value("expunge_log_witnessed_timestamp_seconds") == 0, "nobody was asked"
    world.sql("update log_checkpoint set attested = false, attested_at = null")
    world.sql(
        "update log_checkpoint set attested = true, cosigned = 1, attested_at = now()"
        " where size = (select min(size) from log_checkpoint)"
    )
    await gauged(world)
    assert value("expunge_unattested_seconds") > 0
    assert value("expunge_log_witnessed_timestamp_seconds") == pytest.approx(datetime.now(UTC).timestamp(), abs=60)


async def test_a_key_that_ends_without_a_successor_is_shown(world: Deployment) -> None:
    ends = datetime.now(UTC) + timedelta(days=3)
    world.sql("update trusted_key set valid_to = %s where name = 'ann'", ends)
    await gauged(world)
    assert value("expunge_key_expiry_timestamp_seconds", role="approver") == pytest.approx(ends.timestamp(), abs=1)
    assert value("expunge_key_expiry_timestamp_seconds", role="publisher") == 0
    world.sql(
        "insert into trusted_key (key_id, role, name, public, scope, valid_from)"
        " values ('next', %s, 'ann', %s, '{}', now())",
        Role.APPROVER, b"p" * 32,
    )  # fmt: skip
    await gauged(world)
    assert value("expunge_key_expiry_timestamp_seconds", role="approver") == 0


async def test_what_comes_back_after_a_complete_certificate_is_shown(world: Deployment) -> None:
    photos = album(1)
    await world.seed(*photos)
    order = world.order(request.BySource(source="studio"))
    world.ask(order)
    await world.settle()
    await world.approve(order)
    await world.settle()
    await gauged(world)
    assert value("expunge_came_back_artifacts") == 0
    assert value("expunge_unaccounted_artifacts") == 0
    world.fill(*photos)
    world.sql("delete from task where kind = 'reconcile'")
    world.sql(
        "insert into task (kind, key, input) select 'reconcile', 'again', jsonb_build_object('sweep', sweep_id) from sweep"
    )
    await world.settle()
    await gauged(world)
    assert value("expunge_came_back_artifacts") == 16


async def test_a_store_that_lost_something_shows_as_unaccounted(world: Deployment) -> None:
    await world.seed(*album(1))
    world.spaces[PHOTOS].units.clear()
    await world.reconcile.ask("now")
    await world.settle()
    await gauged(world)
    assert value("expunge_unaccounted_artifacts") == 4


async def test_clock_offset_is_against_the_database(world: Deployment) -> None:
    await measure_clock(world.hosts["purge"])
    assert abs(value("expunge_clock_offset_seconds", worker="purge")) < 5
    assert REGISTRY.get_sample_value("expunge_clock_offset_seconds", {"worker": "purge"}) is not None


async def test_an_audit_says_whether_it_passed() -> None:
    at = datetime.now(UTC)
    note_audit(AuditFailed(size=1, difference="root", at=at))
    assert value("expunge_audit_failed") == 1
    note_audit(AuditPassed(size=1, at=at))
    assert value("expunge_audit_failed") == 0
    assert value("expunge_audit_timestamp_seconds") == pytest.approx(at.timestamp(), abs=60)


async def test_a_trace_goes_from_the_request_to_work_orders_and_certificate(world: Deployment) -> None:
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.ask(asked)
    sent = world.broker.published[-1]
    headers = [*sent.headers, ("traceparent", TRACE.encode())]
    world.broker.published[-1] = replace(sent, headers=headers)
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        await world.settle()
    traced = {
        (one.topic, found["traceparent"].decode())
        for one in world.broker.published
        if one.topic != "expunge.requests"
        for found in [dict(one.headers)]
        if "traceparent" in found
    }
    assert {topic for topic, _ in traced} >= {"expunge.purge", "expunge.rescan", "expunge.outcomes", "expunge.proofs"}
    assert {tracing.trace_id(one) for _, one in traced} == {tracing.trace_id(TRACE)}
    assert TRACE not in {one for _, one in traced}, "each message has a span of its own"
    (issued,) = [
        cloudevents.from_kafka(one.key, one.value, one.headers)
        for one in world.broker.published
        if dict(one.headers).get("ce_type") == events.CertificateIssued.model_fields["type"].default.encode()
    ]
    assert issued.traceparent is not None
    assert tracing.trace_id(issued.traceparent) == tracing.trace_id(TRACE)
    batches: list[Any] = [one for one in lines if one["event"] == "batch handled" and "trace" in one]
    assert {one["worker"] for one in batches} >= {"coordinate", "purge", "rescan"}
    assert {tuple(one["trace"]) for one in batches} == {(tracing.trace_id(TRACE),)}


@pytest.mark.parametrize(
    "bad", ["", "00-0-0-00", TRACE.upper(), TRACE + "-x", "00-" + "0" * 32 + TRACE[35:], subject(1)]
)
def test_what_is_no_traceparent_is_dropped(bad: str) -> None:
    event = cloudevents.CloudEvent("i", "s", "t", b"{}")
    key, data, headers = cloudevents.to_kafka(event)
    read = cloudevents.from_kafka(key, data, [*headers, ("traceparent", bad.encode())])
    assert read == event


def test_both_shapes_carry_a_trace() -> None:
    event = cloudevents.CloudEvent("i", "s", "t", b"{}", traceparent=TRACE)
    assert cloudevents.from_kafka(*cloudevents.to_kafka(event)) == event
    body = b'{"specversion":"1.0","id":"i","source":"s","type":"t","data":{},"traceparent":"%b"}' % TRACE.encode()
    structured = cloudevents.from_kafka(None, body, [("content-type", b"application/cloudevents+json")])
    assert structured.traceparent == TRACE


def test_a_span_follows_from_its_message() -> None:
    assert tracing.child(TRACE, "a") == tracing.child(TRACE, "a") != tracing.child(TRACE, "b")
    assert tracing.accepted(tracing.child(TRACE, "a")) is not None
    assert tracing.accepted(tracing.new()) is not None
    assert tracing.new() != tracing.new()
