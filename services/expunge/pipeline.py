"""THE MAP. Every stage: what it takes, what it does, what it emits; and which worker hosts it. Read this first.

Guards compare these tables with the files in `stages/`, the topics, the consumer groups, the metrics' labels, the compose
services, and check that every event taken is emitted by a stage or enters from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from expunge.domain import events, lineage, request
from expunge.domain.topics import INVALIDATE, LINEAGE, OUTCOMES, PURGE, REQUESTS, RESCAN, RETRAIN, Topic


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline. `takes` and `emits` are event types; a stage that takes none works from rows."""

    name: str
    takes: tuple[type, ...]
    does: str
    emits: tuple[type, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """One process kind: the unit of deployment, credentials and scale. Compose service: NAME; group: `expunge-NAME`."""

    name: str
    stages: tuple[str, ...]
    consumes: tuple[Topic, ...]
    may_touch: str


REQUEST_TYPES: Final = tuple(request.REQUEST_TYPES.values())
LINEAGE_TYPES: Final = tuple(lineage.LINEAGE_TYPES.values())
FROM_OUTSIDE: Final = (*REQUEST_TYPES, *LINEAGE_TYPES)
"""Events that product backends, authorities and trainers publish."""

_WORK_DONE: Final = (
    events.PresenceRecorded,
    events.ImagesPurged,
    events.VectorsInvalidated,
    events.ArtifactsBlocked,
    events.AbsenceVerified,
    events.ResidueFound,
)

PIPELINE: Final = (
    Stage(
        "register",
        LINEAGE_TYPES,
        "check suppression and closed sources, give ordinals, log a batch root of what came in",
        (events.Registered, events.RegistrationRefused, events.ModelArrived, events.SuccessorRegistered),
    ),
    Stage(
        "intake",
        REQUEST_TYPES,
        "verify signature, key scope, schema, replay; write suppression; apply holds, cancels and approvals",
        (events.RequestAccepted, events.RequestRejected),
    ),
    Stage("plan", (), "claim accepted requests, resolve their artifacts, build the sweep, seal its roots", ()),
    Stage("prove", (), "turn statement rows into log entries under a published checkpoint", (events.ProofSealed,)),
    Stage(
        "dispatch",
        _WORK_DONE,
        "order work for published, approved scopes; log statements; send each run to its next step",
        (events.ApprovalAwaited, events.TaintOrdered, events.WorkOrdered),
    ),
    Stage(
        "purge",
        (events.WorkOrdered,),
        "hide and erase image-like artifacts in object stores and shards",
        (events.ImagesPurged, events.ArtifactsBlocked),
    ),
    Stage(
        "invalidate",
        (events.WorkOrdered,),
        "hide embeddings at once, erase them per index unit",
        (events.VectorsInvalidated, events.ArtifactsBlocked),
    ),
    Stage(
        "retrain",
        (events.TaintOrdered, events.ModelArrived, events.SuccessorRegistered, events.DestructionOrdered),
        "find tainted models, choose remedies, queue and coalesce retraining, destroy what was replaced",
        (
            events.ModelTainted,
            events.RetrainingQueued,
            events.SuccessorRefused,
            events.DestructionOrdered,
            events.TaintResolved,
            events.ModelReplaced,
            events.ModelDestroyed,
            events.ModelsResolved,
        ),
    ),
    Stage(
        "rescan",
        (events.WorkOrdered,),
        "see that artifacts are there before, and are not after, under another key and read-only credentials",
        (events.PresenceRecorded, events.AbsenceVerified, events.ResidueFound),
    ),
    Stage(
        "certify",
        (events.AbsenceVerified, events.ResidueFound, events.TaintResolved, events.ModelsResolved),
        "account for every artifact of every request, seal completion rounds, drop the rows about a person",
        (events.CertificateIssued, events.RequestCompleted),
    ),
    Stage("reconcile", (), "count what came in, was erased and is in the stores: daily, and after every order", ()),
    Stage("audit", (), "replay the log, compare it with the rows", (events.AuditPassed, events.AuditFailed)),
)

WORKERS: Final = {
    one.name: one
    for one in (
        Worker("register", ("register",), (LINEAGE,), "catalogue"),
        Worker(
            "coordinate",
            ("intake", "plan", "prove", "dispatch", "certify"),
            (REQUESTS, OUTCOMES),
            "catalogue, log, keys; no store",
        ),
        Worker("purge", ("purge",), (PURGE,), "delete in object stores"),
        Worker("invalidate", ("invalidate",), (INVALIDATE,), "delete in indexes"),
        Worker("retrain", ("retrain",), (RETRAIN,), "model store"),
        Worker("rescan", ("rescan", "reconcile"), (RESCAN,), "read stores, nothing else"),
        Worker("audit", ("audit",), (), "read the log"),
    )
}
