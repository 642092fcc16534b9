"""Invalidate: hide and erase orders for embeddings: hidden at once, erased by rewriting the index unit.

The work is `chunks.erasing`; here is which artifacts, and what is said when it is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from expunge.chunks.handling import ErasureHandler
from expunge.chunks.orders import unfinished
from expunge.domain.events import ArtifactsBlocked, VectorsInvalidated
from expunge.domain.words import Kind

if TYPE_CHECKING:
    from expunge.chunks.orders import Recorded

WORKER: Final = "invalidate"
KINDS: Final = frozenset({Kind.EMBEDDING})


class Invalidate(ErasureHandler):
    """Handler of `expunge.invalidate`, and of its task kind."""

    worker = WORKER
    kinds = KINDS

    def said(self, one: Recorded) -> VectorsInvalidated | ArtifactsBlocked:
        said = ArtifactsBlocked if unfinished(one.outcomes) else VectorsInvalidated
        return said.model_validate(one.order.model_dump(exclude={"type"}))
