"""A witness over HTTP, as C2SP tlog-witness has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import aiohttp

from expunge.domain.cosigning import SIZE_TYPE, Submission
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.note import NoteKey
from expunge.ports import WitnessAt

ANSWER_BYTES: Final = 65_536
"""Most that is read of an answer, bytes."""
_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")
_CODES: Final = {400: "bad-request", 403: "bad-signature", 404: "unknown-log", 422: "inconsistent"}
_OK: Final = 200
_CONFLICT: Final = 409


class HttpWitness:
    """`Witness` at a submission prefix. A connection per call: calls are seconds apart."""

    def __init__(self, url: str, key: NoteKey, *, timeout_seconds: float) -> None:
        self.key = key
        self._url = f"{url.rstrip('/')}/add-checkpoint"
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def cosign(self, old_size: int, proof: Sequence[bytes], note: bytes) -> bytes | WitnessAt:
        """As `ports.Witness.cosign`."""
        body = Submission(old_size, tuple(proof), note).encode()
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(self._url, data=body, allow_redirects=False) as answer,
            ):
                data = await answer.content.read(ANSWER_BYTES)
                return _taken(answer.status, answer.content_type, data)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Retryable(f"witness {self.key.name} did not answer ({type(error).__name__})") from error


def _taken(status: int, kind: str, data: bytes) -> bytes | WitnessAt:
    if status == _OK:
        return data
    if status == _CONFLICT and kind == SIZE_TYPE and (match := _SIZE.fullmatch(data)):
        return WitnessAt(int(match[1]))
    if status in _CODES:
        raise Rejected(_CODES[status], f"expected a cosignature, the witness answered {status}")
    raise Retryable(f"expected a cosignature, the witness answered {status}")
