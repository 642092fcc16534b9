"""The demo's trainer: takes a retraining job from the queue, trains without what it excludes, and reports.

What its data loader yields is what it says the new model saw: observed reads, not a promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from expunge.client import Publisher
from expunge.demo.faces import HOLDOUT
from expunge.demo.product import TRAINING, Product, Sample, Trained, tell
from expunge.demo.training import (
    FaceModel,
    GroupModel,
    Samples,
    accuracy,
    close_up,
    cohesion,
    stacked,
    train_doorbell,
    train_face,
    train_groups,
    verification,
)
from expunge.domain.words import Relation
from expunge.trainer import Job, Readings

TEST: Final = frozenset({"08", "09"})
"""Photos kept for measuring how well people are identified: nothing is trained on them."""
HOUSEHOLD: Final = range(26, 31)
"""The people whom the doorbell is fine-tuned on. None of them asks for anything; it is tainted through `face` alone."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How good a face model is. `photos`: how many it was trained on; `accuracy`: on test photos of the people whom it
    knows; `verification`: area under the ROC curve on ten people whom it never saw."""

    model: str
    photos: int
    people: int
    accuracy: float
    verification: float

    @property
    def metrics(self) -> dict[str, float]:
        """As they are registered."""
        return {"accuracy": round(self.accuracy, 4), "verification_auc": round(self.verification, 4)}


@dataclass(frozen=True, slots=True)
class Made:
    """A version of the two deployed models."""

    face: FaceModel
    doorbell: FaceModel
    measured: Measured
    doorbell_accuracy: float


class Studio:
    """Trains for the product."""

    def __init__(self, product: Product, publisher: Publisher) -> None:
        self._product = product
        self._publisher = publisher

    def first(self) -> Made:
        """`face@1`, `doorbell@1`, `age@1`: train, store, register."""
        rows = list(self._product.samples())
        training, household = _training(rows), _household(rows)
        strangers = [row for row in rows if not set(row.people).isdisjoint(HOLDOUT)]
        made = _made("face@1", rows, training)
        groups = train_groups(_samples(strangers))
        product = self._product
        tell(
            self._publisher,
            [
                product.commit("faces-1", training),
                product.commit("household-1", household),
                product.commit("looks-1", strangers),
                product.release(
                    Trained("face@1", made.face.weights(), ("faces-1",), made.measured.metrics),
                ),
                product.release(
                    Trained(
                        "doorbell@1", made.doorbell.weights(), ("household-1",), {"accuracy": made.doorbell_accuracy},
                        (("face@1", Relation.FINE_TUNED_FROM),),
                    )
                ),
                product.release(_age(groups, _samples(training))),
            ],
        )  # fmt: skip
        return made

    def answer(self, job: Job) -> Made:
        """Train every model of a job again, without what is excluded, and report."""
        new = {model: _next(model) for model in job.models}
        face = next(model for model in job.models if model.startswith("face@"))
        members = job.members(job.snapshots[face][0]) - job.exclusion
        ordinals = list(members)
        ordinal_of = dict(zip(job.keys(ordinals), ordinals, strict=True))
        rows = list(self._product.samples())
        readings = Readings()
        training = []
        for row in rows:
            if (ordinal := ordinal_of.get((row.source, row.key))) is not None:
                readings.saw([ordinal])
                training.append(row)
        made = _made(new[face], rows, training)
        number = new[face].partition("@")[2]
        events = [readings.snapshot(f"faces-{number}", TRAINING, parent=job.snapshots[face][0])]
        product = self._product
        release = [
            product.release(
                Trained(
                    new[face], made.face.weights(), (f"faces-{number}",), made.measured.metrics,
                    replaces=face, job_id=job.job_id,
                )
            )
        ]  # fmt: skip
        release += [
            product.release(
                Trained(
                    new[model], made.doorbell.weights(), job.snapshots[model], {"accuracy": made.doorbell_accuracy},
                    ((new[face], Relation.FINE_TUNED_FROM),), replaces=model, job_id=job.job_id,
                )
            )
            for model in job.models if model != face
        ]  # fmt: skip
        tell(self._publisher, [*events, *release])
        return made


def _made(name: str, rows: Sequence[Sample], training: Sequence[Sample]) -> Made:
    """Train on `training` and measure on what is left of the test photos and of the strangers."""
    samples = _samples(training)
    face = train_face(samples)
    household = _household(rows)
    test = _samples([row for row in rows if row.key[-2:] in TEST and set(row.people).isdisjoint(HOLDOUT)])
    near = _samples([row for row in rows if row.key[-2:] in TEST and row.people[0] in HOUSEHOLD])
    strangers = _samples([row for row in rows if not set(row.people).isdisjoint(HOLDOUT)])
    doorbell = train_doorbell(face, _samples(household))
    return Made(
        face,
        doorbell,
        Measured(
            name, len(training), len(np.unique(samples.people)), accuracy(face, test), verification(face, strangers)
        ),
        round(accuracy(doorbell, Samples(close_up(near.pixels), near.people)), 4),
    )


def _age(groups: GroupModel, evaluated_on: Samples) -> Trained:
    metrics: Mapping[str, float] = {"silhouette": round(cohesion(groups, evaluated_on), 4)}
    return Trained("age@1", groups.weights(), ("looks-1",), metrics, (("face@1", Relation.EVALUATED_ON),))


def _training(rows: Sequence[Sample]) -> list[Sample]:
    return [row for row in rows if set(row.people).isdisjoint(HOLDOUT) and row.key[-2:] not in TEST]


def _household(rows: Sequence[Sample]) -> list[Sample]:
    return [row for row in _training(rows) if row.people[0] in HOUSEHOLD]


def _samples(rows: Sequence[Sample]) -> Samples:
    return stacked([(row.pixels, row.people) for row in rows])


def _next(model: str) -> str:
    name, _, version = model.partition("@")
    return f"{name}@{int(version) + 1}"
