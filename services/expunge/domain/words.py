"""The closed vocabularies: kinds, steps, outcomes, levels, remedies. Values are wire values and never change meaning."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Kind(StrEnum):
    """What an artifact is."""

    IMAGE = "image"
    DERIVATIVE = "derivative"
    SHARD_ROW = "shard-row"
    EMBEDDING = "embedding"
    MODEL = "model"


class Step(StrEnum):
    """What a chunk statement says was done to the chunk, in the order in which it happens."""

    PRESENCE = "presence"
    HIDE = "hide"
    ERASE = "erase"
    ABSENCE = "absence"


class Outcome(IntEnum):
    """What happened to one artifact in one step. One byte each in packed arrays."""

    OPEN = 0
    """No final outcome yet: a later attempt covers this index."""
    GONE = 1
    """Erased by this sweep (steps hide, erase), or verified absent (step absence)."""
    GONE_EARLIER = 2
    """Erased (or hidden, so far) by another sweep, which had a leaf for the same artifact and came to it first."""
    ABSENT_BEFORE = 3
    """Was not there before any intent of ours was recorded."""
    EXCLUDED = 4
    """Held or cancelled before intent: nothing was done to it."""
    BLOCKED = 5
    """The store refuses until a known time (object lock, legal hold in the store)."""
    FAILED = 6
    """Given up after the last attempt."""
    PRESENT = 7
    """Seen in the store (step presence); in step absence it is residue."""


FINAL_ABSENT = frozenset({Outcome.GONE, Outcome.GONE_EARLIER, Outcome.ABSENT_BEFORE})


class Level(IntEnum):
    """How far an erasure reached, per store: L0 acknowledged, L1 unreachable, L2 absent from files, L3 media."""

    ACKNOWLEDGED = 0
    UNREACHABLE = 1
    FILE_ABSENT = 2
    MEDIA = 3


class Role(StrEnum):
    """What a signing key may be used for; a statement under the wrong role does not verify."""

    PUBLISHER = "publisher"
    APPROVER = "approver"
    REGISTER = "register"
    SCOPE = "scope"
    EXECUTOR = "executor"
    RESCANNER = "rescanner"
    RETRAINER = "retrainer"
    CERTIFIER = "certifier"
    LOG = "log"
    WITNESS = "witness"


class Provision(StrEnum):
    """The two things a request asks for; each is closed by a certificate of its own."""

    DATA = "data"
    MODELS = "models"


class Remedy(StrEnum):
    """What is done about a tainted model."""

    RETRAIN = "retrain"
    RETRAIN_FROM_ANCESTOR = "retrain-from-ancestor"
    DROP = "drop"
    DESTROY = "destroy"


class ModelStatus(StrEnum):
    """What is known of a model, relative to a position in the evidence log."""

    CLEAN = "clean"
    UNKNOWN = "unknown"
    TAINTED = "tainted"
    REMEDIATING = "remediating"
    REPLACED = "replaced"
    DESTROYED = "destroyed"


class Relation(StrEnum):
    """How a model came from another. All but `evaluated-on` inherit taint."""

    FINE_TUNED_FROM = "fine-tuned-from"
    DISTILLED_FROM = "distilled-from"
    PSEUDO_LABELLED_BY = "pseudo-labelled-by"
    MERGED_FROM = "merged-from"
    QUANTISED_FROM = "quantised-from"
    ADAPTER_OF = "adapter-of"
    CODEBOOK_OF = "codebook-of"
    EVALUATED_ON = "evaluated-on"


class Grade(StrEnum):
    """How we know what a model saw, strongest first."""

    OBSERVED = "observed"
    COMMITTED = "committed"
    IMPORTED = "imported"
    DECLARED = "declared"
    UNKNOWN = "unknown"
