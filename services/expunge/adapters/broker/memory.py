"""A broker that keeps what was published, for tests and the simulator."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.domain.errors import Retryable
from expunge.ports import Outgoing


class MemoryBroker:
    """`Broker` that appends to `published`. `fail_next`: how many coming calls refuse."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []
        self.fail_next = 0

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Keep all, or refuse all."""
        if self.fail_next:
            self.fail_next -= 1
            message = "told to fail"
            raise Retryable(message)
        self.published += messages
