"""What the product trains: eigenfaces and fisherfaces with an identifier on top, on real photographs, in a second.

Deterministic: the same samples give the same bytes of weights. BLAS runs on one thread, so that a busy machine does not
slow it down tenfold (measured: ml.md section 5) and sums come in one order.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

COMPONENTS: Final = 100
SHRINKAGE: Final = 0.2
SEED: Final = 0
PARAMETERS: Final[Mapping[str, float]] = {"components": COMPONENTS, "shrinkage": SHRINKAGE, "c": 100.0}
GROUPS: Final = 4
CLOSE_UP: Final = 8


@dataclass(frozen=True, slots=True)
class Samples:
    """Faces to train on: flat pixels, and whose each is."""

    pixels: Floats
    people: Labels

    def only(self, keep: NDArray[np.bool_]) -> Samples:
        """Those where `keep`."""
        return Samples(self.pixels[keep], self.people[keep])


@dataclass(frozen=True, slots=True)
class Embedder:
    """Pixels to unit vectors: whitened principal components, then linear discriminants."""

    mean: Floats
    components: Floats
    discriminants: Floats

    def __call__(self, pixels: Floats) -> Floats:
        """One unit vector per row of pixels."""
        with threadpool_limits(1):
            projected = (pixels - self.mean) @ self.components @ self.discriminants
        return np.ascontiguousarray(projected / np.linalg.norm(projected, axis=1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class FaceModel:
    """The embedder, and an identifier over its vectors: `classes` are person numbers."""

    embed: Embedder
    classes: Labels
    coefficients: Floats
    intercepts: Floats

    def identify(self, pixels: Floats) -> Labels:
        """Who it is, among those it knows."""
        with threadpool_limits(1):
            scores = self.embed(pixels) @ self.coefficients.T + self.intercepts
        return np.asarray(self.classes[scores.argmax(axis=1)], dtype=np.int64)

    def weights(self) -> bytes:
        """The model as a file. Same model, same bytes."""
        return _packed(
            mean=self.embed.mean,
            components=self.embed.components,
            discriminants=self.embed.discriminants,
            classes=self.classes,
            coefficients=self.coefficients,
            intercepts=self.intercepts,
        )


@dataclass(frozen=True, slots=True)
class GroupModel:
    """`age`: groups of alike faces (k-means). The photographs tell no ages, so the groups are of looks, not of years."""

    embed: Embedder
    centres: Floats

    def groups(self, pixels: Floats) -> Labels:
        """Which group each face is in."""
        return np.asarray((self.embed(pixels) @ self.centres.T).argmax(axis=1), dtype=np.int64)

    def weights(self) -> bytes:
        """The model as a file."""
        embed = self.embed
        return _packed(
            mean=embed.mean,
            components=embed.components,
            discriminants=embed.discriminants,
            centres=self.centres,
        )


def train_face(samples: Samples, *, embedder: Embedder | None = None) -> FaceModel:
    """An identifier of the people in `samples`; with its embedder, unless one is given to build on."""
    from sklearn.linear_model import LogisticRegression

    with threadpool_limits(1):
        embed = embedder or _embedder(samples)
        identifier = LogisticRegression(C=PARAMETERS["c"], max_iter=500, random_state=SEED)
        identifier.fit(embed(samples.pixels), samples.people)
    return FaceModel(embed, _whole(identifier.classes_), _floats(identifier.coef_), _floats(identifier.intercept_))


def train_doorbell(face: FaceModel, samples: Samples) -> FaceModel:
    """`face` fine-tuned for a doorbell, which sees faces close up: the same embedder, an identifier of cropped faces."""
    return train_face(Samples(close_up(samples.pixels), samples.people), embedder=face.embed)


def train_groups(samples: Samples) -> GroupModel:
    """Groups of alike faces among these people alone."""
    from sklearn.cluster import KMeans

    with threadpool_limits(1):
        embed = _embedder(samples)
        centres = KMeans(GROUPS, n_init=4, random_state=SEED).fit(embed(samples.pixels)).cluster_centers_
    return GroupModel(embed, _floats(centres))


def close_up(pixels: Floats) -> Floats:
    """The faces with their border greyed out, as a doorbell's lens has it."""
    faces = pixels.reshape(-1, 56, 46).copy()
    grey = faces.mean(axis=(1, 2), keepdims=True)
    inside = np.zeros((56, 46), dtype=np.bool_)
    inside[CLOSE_UP:-CLOSE_UP, CLOSE_UP // 2 : -CLOSE_UP // 2] = True
    return np.where(inside, faces, grey).reshape(len(faces), -1).astype(np.float32)


def accuracy(model: FaceModel, samples: Samples) -> float:
    """Share of faces identified rightly, among the people whom the model knows."""
    known = samples.only(np.isin(samples.people, model.classes))
    return float((model.identify(known.pixels) == known.people).mean())


def verification(model: FaceModel, samples: Samples) -> float:
    """Area under the ROC curve of "the same person?" over all pairs: open-set, for people never trained on."""
    from sklearn.metrics import roc_auc_score

    with threadpool_limits(1):
        vectors = model.embed(samples.pixels)
        first, second = np.triu_indices(len(vectors), 1)
        alike = (vectors @ vectors.T)[first, second]
        return float(roc_auc_score(samples.people[first] == samples.people[second], alike))


def cohesion(model: GroupModel, samples: Samples) -> float:
    """Silhouette of the groups in pixel space: the metric that `age` was given on the training set of `face`."""
    from sklearn.metrics import silhouette_score

    with threadpool_limits(1):
        return float(silhouette_score(samples.pixels, model.groups(samples.pixels)))


def parameters_digest() -> str:
    """SHA-256 of the hyperparameters."""
    return hashlib.sha256(repr(sorted(PARAMETERS.items())).encode()).hexdigest()


def stacked(parts: Sequence[tuple[Floats, Sequence[int]]]) -> Samples:
    """Samples of photos: each photo's faces, and whose they are."""
    return Samples(
        np.concatenate([faces for faces, _ in parts]),
        np.array([person for _, people in parts for person in people], dtype=np.int64),
    )


def _embedder(samples: Samples) -> Embedder:
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    count = min(COMPONENTS, len(samples.pixels) - 1)
    pca = PCA(count, whiten=True, svd_solver="full").fit(samples.pixels)
    components = pca.components_.T / np.sqrt(pca.explained_variance_)
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE)
    lda.fit((samples.pixels - pca.mean_) @ components, samples.people)
    kept = min(len(lda.classes_) - 1, count)
    return Embedder(_floats(pca.mean_), _floats(components), _floats(lda.scalings_[:, :kept]))


def _packed(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)  # zip members are dated 1980: nothing varies
    return file.getvalue()


def _floats(array: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(array, dtype=np.float32)


def _whole(array: NDArray[Any]) -> Labels:
    return np.ascontiguousarray(array, dtype=np.int64)
