"""A time stamping authority in this process, for tests: its answers prove nothing. `down` makes it not answer."""

from __future__ import annotations

from hashlib import sha256

from expunge.domain.errors import Retryable


class MemoryTimestamper:
    """`Timestamper` whose tokens are digests."""

    def __init__(self) -> None:
        self.stamped: list[bytes] = []
        self.down = False

    async def stamp(self, data: bytes) -> bytes:
        """As `ports.Timestamper.stamp`."""
        if self.down:
            raise Retryable("this authority was made not to answer")
        self.stamped.append(data)
        return sha256(data).digest()
