"""Purge: hide and erase orders for image-like artifacts, in object stores and shards.

The work is `chunks.erasing`; here is which artifacts, and what is said when it is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from expunge.chunks.handling import ErasureHandler
from expunge.chunks.orders import unfinished
from expunge.domain.events import ArtifactsBlocked, ImagesPurged
from expunge.domain.words import Kind

if TYPE_CHECKING:
    from expunge.chunks.orders import Recorded

WORKER: Final = "purge"
KINDS: Final = frozenset({Kind.IMAGE, Kind.DERIVATIVE, Kind.SHARD_ROW})


class Purge(ErasureHandler):
    """Handler of `expunge.purge`, and of its task kind."""

    worker = WORKER
    kinds = KINDS

    def said(self, one: Recorded) -> ImagesPurged | ArtifactsBlocked:
        said = ArtifactsBlocked if unfinished(one.outcomes) else ImagesPurged
        return said.model_validate(one.order.model_dump(exclude={"type"}))
