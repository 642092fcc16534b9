"""Every metric: its name, meaning, labels and one owner, the only process that sets it.

Label values come from the closed sets in `VALUES`, and from names that the deployment itself gives (workers, topics, its
stores); never from a message, a person, an object key or an error's text. Rules, dashboards and runbooks are checked
against this file, and a test walks the registry after a real run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info

from expunge.domain.lifecycle import RequestState
from expunge.domain.request import Regulation
from expunge.domain.words import ModelStatus, Outcome, Role, Step

VALUES: Final[Mapping[str, frozenset[str]]] = {
    "class": frozenset({"people", "order"}),
    "regulation": frozenset(one.value for one in Regulation),
    "state": frozenset(one.value for one in RequestState) | {"queued", "leased", "reported", "done", "failed"},
    "step": frozenset(one.value for one in Step),
    "status": frozenset(one.value for one in ModelStatus) | {"1xx", "2xx", "3xx", "4xx", "5xx", "none"},
    "kind": frozenset({"store", "source"}),
    "answer": frozenset({"cosigned", "silent", "refused", "bad"}),
    "method": frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "other"}),
    "role": frozenset(one.value for one in Role),
    "stage": frozenset(
        {
            *("register", "intake", "plan", "prove", "dispatch", "purge", "invalidate", "retrain", "rescan", "certify"),
            "audit",
        }
    ),
}
"""What a label may be, for the labels that are the same in every deployment; `OUTCOMES` holds those of `outcome`."""

OUTCOMES: Final[Mapping[str, frozenset[str]]] = {
    "expunge_deliveries": frozenset({"handled", "duplicate", "parked", "dead"}),
    "expunge_artifacts": frozenset(one.name.lower() for one in Outcome),
    "expunge_canary_runs": frozenset({"proved", "late", "unsent"}),
}
"""Values of the label `outcome`, by metric."""

RETRAINING_STATES: Final = ("queued", "leased", "reported", "done", "failed")

# Every worker -----------------------------------------------------------------------------------------------------------

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
STAGE_SECONDS: Final = Histogram(
    "expunge_stage_seconds",
    "Time one stage took over one batch, turn or run.",
    ("stage",),
    buckets=(0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60, 300),
)
BATCHES: Final = Counter("expunge_batches_total", "Batches finished; what liveness watches.", ("worker",))
COMMITTED_ABOVE_HANDLED: Final = Gauge(
    "expunge_committed_above_handled",
    "Offsets that Kafka holds committed beyond what Postgres holds handled. Above 0 is a loss.",
    ("worker", "topic"),
)
CLOCK_OFFSET: Final = Gauge(
    "expunge_clock_offset_seconds", "How far this worker's clock is ahead of PostgreSQL's.", ("worker",)
)
STORE_CIRCUIT_OPEN: Final = Gauge(
    "expunge_store_circuit_open",
    "1 while a worker leaves a store alone that failed over and over.",
    ("worker", "store"),
)
BUILD: Final = Info("expunge_build", "Version that runs.")

# coordinate: state, from rows ---------------------------------------------------------------------------------------------

REQUESTS: Final = Gauge(
    "expunge_requests", "Requests by class, regulation and state.", ("class", "regulation", "state")
)
OLDEST_OPEN_SECONDS: Final = Gauge(
    "expunge_oldest_open_request_seconds",
    "Age of the oldest request without a data certificate; 0 when none is open.",
    ("class",),
)
NEAREST_DEADLINE: Final = Gauge(
    "expunge_nearest_deadline_timestamp_seconds",
    "When the open request or taint with least time left is due; 0 when none is open.",
)
WORK_OPEN: Final = Gauge("expunge_work_runs", "Runs of chunks not done, by step.", ("step",))
BACKLOG: Final = Gauge(
    "expunge_backlog_artifacts", "Artifacts of sealed scopes whose run of chunks is not done, by store.", ("store",)
)
CAME_BACK: Final = Gauge(
    "expunge_came_back_artifacts",
    "Artifacts of orders certified as complete that a later count found in their stores again.",
)
UNACCOUNTED: Final = Gauge(
    "expunge_unaccounted_artifacts",
    "Artifacts by which registered differs from erased, under way and present, in the newest count of everything.",
)
MODELS: Final = Gauge("expunge_models", "Models by status.", ("status",))
RETRAINING: Final = Gauge("expunge_retraining_jobs", "Retraining jobs by state.", ("state",))
RETRIES: Final = Gauge("expunge_parked_events", "Events that wait to be tried again.", ("worker",))
DEAD_LETTERS: Final = Gauge("expunge_dead_letters", "Messages given up and not yet dealt with.", ("worker",))
LOG_SIZE: Final = Gauge("expunge_log_size", "Entries under the newest published checkpoint.")
LOG_WITNESSED: Final = Gauge(
    "expunge_log_witnessed_timestamp_seconds",
    "When a checkpoint last had every cosignature and time stamp that the settings ask for; 0 before the first.",
)
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
OUTBOX: Final = Gauge("expunge_outbox_rows", "Events committed but not yet published.")
KEY_EXPIRY: Final = Gauge(
    "expunge_key_expiry_timestamp_seconds",
    "When the next key of a role that is still valid ends without a successor of the same name; 0 when none ends.",
    ("role",),
)

# coordinate: what it does -------------------------------------------------------------------------------------------------

ARTIFACTS: Final = Counter(
    "expunge_artifacts_total", "Artifacts by store, step and outcome.", ("store", "step", "outcome")
)
SWEEP_ARTIFACTS: Final = Histogram(
    "expunge_sweep_artifacts",
    "Artifacts in a sealed sweep.",
    ("class",),
    buckets=(1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000),
)
SWEEP_REQUESTS: Final = Histogram(
    "expunge_sweep_requests",
    "Requests in a sealed sweep.",
    ("class",),
    buckets=(1, 4, 16, 64, 256, 1_024, 4_096, 16_384),
)
CERTIFIED_SECONDS: Final = Histogram(
    "expunge_certified_seconds",
    "From a request's acceptance to its announced data certificate.",
    ("class",),
    buckets=(1, 2, 5, 10, 30, 60, 300, 1_800, 7_200, 86_400, 604_800, 2_592_000),
)

# audit --------------------------------------------------------------------------------------------------------------------

AUDIT_AT: Final = Gauge("expunge_audit_timestamp_seconds", "When the log last passed its audit.")
AUDIT_FAILED: Final = Gauge("expunge_audit_failed", "1 when the newest audit of the log found a difference, else 0.")

# api ----------------------------------------------------------------------------------------------------------------------

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

# canary -------------------------------------------------------------------------------------------------------------------

CANARY_LATE_SECONDS: Final = Gauge(
    "expunge_canary_late_seconds", "How long the proof of the synthetic subject under way is overdue; 0 when it is not."
)
CANARY_SECONDS: Final = Gauge(
    "expunge_canary_seconds", "From request to verified certificate, of the newest synthetic subject that was proved."
)
CANARY_AT: Final = Gauge("expunge_canary_timestamp_seconds", "When a synthetic subject was last proved erased.")
CANARY_RUNS: Final = Counter(
    "expunge_canary_runs_total",
    "Synthetic subjects by what became of them: proved, late (given up), unsent (Kafka or a store did not answer).",
    ("outcome",),
)

OWNERS: Final[Mapping[str, tuple[str, ...]]] = {
    "every worker": ("DELIVERIES", "BATCH_SECONDS", "STAGE_SECONDS", "BATCHES", "COMMITTED_ABOVE_HANDLED",
                     "CLOCK_OFFSET", "STORE_CIRCUIT_OPEN", "BUILD"),
    "coordinate": ("REQUESTS", "OLDEST_OPEN_SECONDS", "NEAREST_DEADLINE", "WORK_OPEN", "BACKLOG", "CAME_BACK",
                   "UNACCOUNTED", "MODELS", "RETRAINING", "RETRIES", "DEAD_LETTERS", "LOG_SIZE", "LOG_WITNESSED",
                   "UNATTESTED", "WITNESS_ANSWERS", "BREAKERS_OPEN", "OUTBOX", "KEY_EXPIRY", "ARTIFACTS", "SWEEP_ARTIFACTS",
                   "SWEEP_REQUESTS", "CERTIFIED_SECONDS"),
    "audit": ("AUDIT_AT", "AUDIT_FAILED"),
    "api": ("API_REQUESTS", "API_SECONDS"),
    "canary": ("CANARY_LATE_SECONDS", "CANARY_SECONDS", "CANARY_AT", "CANARY_RUNS"),
}  # fmt: skip
"""Who sets each metric. A gauge that a process does not own stands at 0 there: rules select the owner's."""
