"""A witness in this process, for tests. `down` makes it not answer, `log` is who it knows."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.domain import cosigning
from expunge.domain.cosigning import Conflict, Latest, Submission
from expunge.domain.dsse import SigningKey
from expunge.domain.errors import Retryable
from expunge.domain.note import NoteKey, sign_cosignature
from expunge.ports import Clock, WitnessAt


class MemoryWitness:
    """`Witness` with its state in a dict."""

    def __init__(self, name: str, key: SigningKey, log: NoteKey, clock: Clock) -> None:
        self.key = NoteKey.witness(name, key.public)
        self.latest: dict[str, Latest] = {}
        self.down = False
        self._signing = key
        self._log = log
        self._clock = clock

    async def cosign(self, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes | WitnessAt:
        """As `ports.Witness.cosign`."""
        if self.down:
            raise Retryable("this witness was made not to answer")
        found = cosigning.judge(Submission(old_size, tuple(proof), note), {self._log.name: self._log}, self.latest)
        if isinstance(found, Conflict):
            return WitnessAt(found.size)
        self.latest[found.origin] = Latest(found.size, found.root)
        return sign_cosignature(note, self._signing, self.key.name, int(self._clock().timestamp()))
