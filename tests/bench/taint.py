"""Taint at scale: 10M images, 200 snapshots in 20 lines, 500 models; one person, and a source of 3M images."""

from __future__ import annotations

import random
from typing import Any, Final

from pyroaring import BitMap64

from expunge.domain.taint import Edge, Lineage, Model, affected
from expunge.domain.words import Relation

IMAGES: Final = 10_000_000
SOURCE: Final = 3_000_000
LINES: Final = 20
VERSIONS: Final = 10
MODELS: Final = 500
PERSON: Final = 12
SEED: Final = 7


def snapshots(images: int) -> dict[int, BitMap64]:
    """Versions of datasets: stretches of images as they came in, one in fifty missing, each version a little less."""
    drawn = random.Random(SEED)
    found = {}
    for line in range(LINES):
        members = BitMap64()
        while len(members) < images // 3:
            start = drawn.randrange(images)
            members.add_range(start, min(images, start + drawn.randrange(images // 200, images // 7)))
        members -= BitMap64(drawn.sample(range(images), images // 50))
        for version in range(VERSIONS):
            members = members.copy()
            start = drawn.randrange(images)
            members.remove_range(start, start + images // 500)
            members.run_optimize()
            found[line * VERSIONS + version] = members
    return found


def lineage() -> Lineage:
    """Models with up to three snapshots and up to two parents each."""
    drawn = random.Random(SEED)
    models = []
    for number in range(MODELS):
        own = drawn.sample(range(LINES * VERSIONS), drawn.randint(1 if number <= MODELS // 10 else 0, 3))
        heirs = number > LINES and (drawn.random() < 0.6 or not own)
        parents = drawn.sample(range(number), drawn.randint(1, 2)) if heirs else []
        edges = tuple(Edge(f"model-{parent}@1", Relation.FINE_TUNED_FROM) for parent in parents)
        models.append(Model(f"model-{number}@1", 0, tuple(own), edges))
    return Lineage(models)


def cases(*, quick: bool) -> dict[str, Any]:
    """Calls to be timed, by name."""
    images = IMAGES // 20 if quick else IMAGES
    models, members = lineage(), snapshots(images)
    person = {0: BitMap64(random.Random(SEED).sample(range(images), PERSON))}
    source = {0: BitMap64(range(images * SOURCE // IMAGES))}
    return {
        f"taint, {PERSON} of {images / 1e6:g}M images": lambda: affected(models, members, person),
        f"taint, {images * SOURCE // IMAGES / 1e6:g}M of {images / 1e6:g}M images": lambda: affected(
            models, members, source
        ),
    }
