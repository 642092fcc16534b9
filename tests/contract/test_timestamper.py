"""A time stamping authority over HTTP, and what its tokens are worth to a verifier."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from expunge.adapters.timestamp.http import HttpTimestamper
from expunge.domain import timestamp
from expunge.domain.errors import Retryable, Tampered
from tests.authority import Authority
from tests.witnessing import listening

DATA = b"a checkpoint\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def token(authority: Authority) -> bytes:
    async with listening(authority.application()) as url:
        return await HttpTimestamper(url, timeout_seconds=60).stamp(DATA)


async def test_a_token_is_good_to_us_and_to_openssl(authority: Authority, token: bytes) -> None:
    at = timestamp.time_of(token, DATA, [authority.root], "token")
    assert abs(at - datetime.now(UTC)) < timedelta(days=1)
    assert authority.verifies(token, DATA)


async def test_a_token_over_other_bytes_is_refused(authority: Authority, token: bytes) -> None:
    with pytest.raises(Tampered):
        timestamp.time_of(token, DATA + b" ", [authority.root], "token")
    assert not authority.verifies(token, DATA + b" ")


async def test_a_token_by_another_authority_is_refused(token: bytes, tmp_path: Path) -> None:
    other = Authority.found(tmp_path / "other", "other")
    with pytest.raises(Tampered):
        timestamp.time_of(token, DATA, [other.root], "token")


async def test_what_is_no_token_is_refused(authority: Authority, token: bytes) -> None:
    for bad in (b"", b"nonsense", token[:-1], token[: len(token) // 2]):
        with pytest.raises(Tampered):
            timestamp.time_of(bad, DATA, [authority.root], "token")


async def test_a_token_with_a_changed_time_or_signature_is_refused(authority: Authority, token: bytes) -> None:
    """Every byte of the signed part and of the signature, that is: all but certificates and wrapping."""
    spared = []
    for at in range(0, len(token), 7):
        changed = bytearray(token)
        changed[at] ^= 1
        try:
            timestamp.time_of(bytes(changed), DATA, [authority.root], "token")
        except Tampered:
            continue
        spared.append(at)
    assert len(spared) < len(token) // 7 // 3
    original = timestamp.time_of(token, DATA, [authority.root], "token")
    for at in spared:
        changed = bytearray(token)
        changed[at] ^= 1
        assert timestamp.time_of(bytes(changed), DATA, [authority.root], "token") == original


async def test_without_the_library_nothing_is_taken_on_trust(
    authority: Authority, token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rfc3161_client", None)
    with pytest.raises(timestamp.NotInstalled, match="not installed"):
        timestamp.time_of(token, DATA, [authority.root], "token")


async def test_an_authority_that_is_down_or_in_trouble_may_recover() -> None:
    async def trouble(_: web.Request) -> web.Response:
        return web.Response(status=503)

    async def nonsense(_: web.Request) -> web.Response:
        return web.Response(body=b"nonsense")

    async with listening(web.Application()) as gone:
        pass
    with pytest.raises(Retryable):
        await HttpTimestamper(gone, timeout_seconds=60).stamp(DATA)
    for answer in (trouble, nonsense):
        app = web.Application()
        app.router.add_post("/", answer)
        async with listening(app) as url:
            with pytest.raises(Retryable):
                await HttpTimestamper(url, timeout_seconds=60).stamp(DATA)


async def test_an_answer_to_another_question_is_not_taken(authority: Authority, token: bytes) -> None:
    async def replayed(_: web.Request) -> web.Response:
        return web.Response(body=token)

    app = web.Application()
    app.router.add_post("/", replayed)
    async with listening(app) as url:
        with pytest.raises(Retryable, match="nonce"):
            await HttpTimestamper(url, timeout_seconds=60).stamp(DATA)
