"""Every metric: its name, meaning and labels. Label values come from closed sets: workers, topics, states, never a person.

Rules, dashboards and runbooks are checked against this file.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info

DELIVERIES: Final = Counter(
    "expunge_deliveries_total",
    "Kafka messages by what became of them: handled, duplicate, parked, dead.",
    ("worker", "topic", "outcome"),
)
BATCH_SECONDS: Final = Histogram(
    "expunge_batch_seconds",
    "Time to handle one batch, from decoding to commit.",
    ("worker", "topic"),
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60),
)
BATCHES: Final = Counter("expunge_batches_total", "Batches finished; what liveness watches.", ("worker",))
COMMITTED_ABOVE_HANDLED: Final = Gauge(
    "expunge_committed_above_handled",
    "Offsets that Kafka holds committed beyond what Postgres holds handled. Above 0 is a loss.",
    ("worker", "topic"),
)
REQUESTS: Final = Gauge("expunge_requests", "Requests by class and state.", ("class", "state"))
OLDEST_OPEN_SECONDS: Final = Gauge(
    "expunge_oldest_open_request_seconds", "Age of the oldest request without a data certificate.", ("class",)
)
NEAREST_DEADLINE: Final = Gauge(
    "expunge_nearest_deadline_timestamp_seconds", "When the open request with least time left is due."
)
ARTIFACTS: Final = Counter(
    "expunge_artifacts_total", "Artifacts by store, step and outcome.", ("store", "step", "outcome")
)
WORK_OPEN: Final = Gauge("expunge_work_runs", "Runs of chunks not done, by step.", ("step",))
MODELS: Final = Gauge("expunge_models", "Models by status.", ("status",))
RETRAINING: Final = Gauge("expunge_retraining_jobs", "Retraining jobs by state.", ("state",))
RETRIES: Final = Gauge("expunge_parked_events", "Events that wait to be tried again.", ("worker",))
DEAD_LETTERS: Final = Gauge("expunge_dead_letters", "Messages given up and not yet dealt with.", ("worker",))
LOG_SIZE: Final = Gauge("expunge_log_size", "Entries under the newest published checkpoint.")
UNATTESTED: Final = Gauge(
    "expunge_unattested_seconds",
    "Since when checkpoints lack the cosignatures or the time stamp that this log asks for; 0 when the newest has them.",
)
WITNESS_ANSWERS: Final = Counter(
    "expunge_witness_answers_total",
    "What witnesses said to a checkpoint: cosigned, silent, refused, bad (its signature).",
    ("witness", "answer"),
)
BREAKERS_OPEN: Final = Gauge(
    "expunge_breakers_open", "Scopes whose blast-radius breaker is open, by kind: store, source.", ("kind",)
)
STORE_CIRCUIT_OPEN: Final = Gauge(
    "expunge_store_circuit_open",
    "1 while a worker leaves a store alone that failed over and over.",
    ("worker", "store"),
)
OUTBOX: Final = Gauge("expunge_outbox_rows", "Events committed but not yet published.")
AUDIT_AT: Final = Gauge("expunge_audit_timestamp_seconds", "When the log last passed its audit.")
BUILD: Final = Info("expunge_build", "Version that runs.")
API_REQUESTS: Final = Counter(
    "expunge_api_requests_total",
    "HTTP requests to the read API by route template, method and class of status.",
    ("route", "method", "status"),
)
API_SECONDS: Final = Histogram(
    "expunge_api_seconds",
    "Time from a request's head to the end of its answer.",
    ("route",),
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15),
)
