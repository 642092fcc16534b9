"""A time stamping authority over HTTP (RFC 3161 section 3.4)."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import aiohttp
from rfc3161_client import HashAlgorithm, TimeStampRequest, TimestampRequestBuilder, decode_timestamp_response

from expunge.domain.errors import Retryable

ANSWER_BYTES: Final = 65_536
"""Most that is read of an answer, bytes."""
_OK: Final = 200


class HttpTimestamper:
    """`Timestamper` at a URL. What comes back answers our request; its signature is for verifiers, who pin the authority."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def stamp(self, data: bytes) -> bytes:
        """As `ports.Timestamper.stamp`."""
        request = (
            TimestampRequestBuilder()
            .data(data)
            .hash_algorithm(HashAlgorithm.SHA256)
            .cert_request(cert_request=True)
            .build()
        )
        headers = {"Content-Type": "application/timestamp-query"}
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(self._url, data=request.as_bytes(), headers=headers) as answer,
            ):
                if answer.status != _OK:
                    raise Retryable(f"expected a time stamp, the authority answered {answer.status}")
                token = await answer.content.read(ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Retryable(f"the time stamping authority did not answer ({type(error).__name__})") from error
        _check(token, request, data)
        return token


def _check(token: bytes, request: TimeStampRequest, data: bytes) -> None:
    try:
        response = decode_timestamp_response(token)
        granted = response.status == 0
        info = response.tst_info if granted else None
    except ValueError as error:
        raise Retryable("expected a time stamp, the authority answered something else") from error
    if info is None or info.nonce != request.nonce or info.message_imprint.message != sha256(data).digest():
        raise Retryable("expected a granted time stamp over the checkpoint and the nonce, got another answer")
