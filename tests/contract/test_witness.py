"""Every `Witness`: in memory, and over HTTP from a real witness process's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from expunge.adapters.witness.http import HttpWitness
from expunge.adapters.witness.memory import MemoryWitness
from expunge.domain import note
from expunge.domain.errors import Rejected, Retryable
from expunge.ports import Witness, WitnessAt
from expunge.witness.server import application
from tests.witnessing import LOG_KEY, WITNESS, listening, new_witness, seeded, signed, submission


@pytest.fixture(params=["memory", "http"])
async def witness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Witness]:
    if request.param == "memory":
        yield MemoryWitness(WITNESS, seeded("w"), LOG_KEY, lambda: datetime.now(UTC))
        return
    cosigner = new_witness(tmp_path)
    async with listening(application(cosigner)) as url:
        yield HttpWitness(url + "/", cosigner.key, timeout_seconds=60)


async def test_a_growing_log_is_cosigned(witness: Witness) -> None:
    for old, size in ((0, 5), (5, 5), (5, 300)):
        given = submission(old, size)
        lines = await witness.cosign(old, given.proof, given.note)
        assert isinstance(lines, bytes)
        assert note.verify_cosignature(given.note + lines, witness.key) > 0


async def test_it_tells_where_it_is(witness: Witness) -> None:
    await witness.cosign(0, [], signed(5))
    assert await witness.cosign(0, [], signed(8)) == WitnessAt(5)


@pytest.mark.parametrize(
    ("old", "given", "code"),
    [
        (0, signed(5, origin="other.example/log"), "unknown-log"),
        (0, signed(5, key=seeded("thief")), "bad-signature"),
        (5, signed(8, "fork"), "inconsistent"),
        (5, signed(5, "fork"), "inconsistent"),
    ],
)
async def test_it_refuses(witness: Witness, old: int, given: bytes, code: str) -> None:
    if old:
        await witness.cosign(0, [], signed(old))
    with pytest.raises(Rejected) as refused:
        await witness.cosign(old, [], given)
    assert refused.value.code == code


async def test_a_witness_that_is_down_may_come_back() -> None:
    async with listening(web.Application()) as gone:
        pass
    with pytest.raises(Retryable):
        await HttpWitness(gone, new_key(), timeout_seconds=60).cosign(0, [], signed(5))


async def test_a_server_in_trouble_may_recover() -> None:
    async def trouble(_: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.router.add_post("/add-checkpoint", trouble)
    async with listening(app) as url:
        with pytest.raises(Retryable):
            await HttpWitness(url, new_key(), timeout_seconds=60).cosign(0, [], signed(5))


def new_key() -> note.NoteKey:
    return note.NoteKey.witness(WITNESS, seeded("w").public)


async def test_the_wire_is_that_of_the_specification(tmp_path: Path) -> None:
    """C2SP tlog-witness, section add-checkpoint: statuses, content type, body."""
    async with listening(application(new_witness(tmp_path))) as url, aiohttp.ClientSession() as session:

        async def post(body: bytes) -> tuple[int, str, bytes]:
            async with session.post(f"{url}/add-checkpoint", data=body) as answer:
                return answer.status, answer.content_type, await answer.read()

        status, _, lines = await post(submission(0, 5).encode())
        assert (status, lines[:4], lines[-1:]) == (200, "\N{EM DASH} ".encode(), b"\n")
        assert await post(submission(0, 8).encode()) == (409, "text/x.tlog.size", b"5\n")
        assert (await post(submission(5, 8, "fork").encode()))[0] == 422
        assert (await post(b"old 9\n\n" + signed(5)))[0] == 400
        assert (await post(b"nonsense"))[0] == 400
        assert (await post(b"old 0\n\n" + signed(1, origin="x.example")))[0] == 404
        assert (await post(b"old 0\n\n" + signed(1, key=seeded("thief"))))[0] == 403
        async with session.get(f"{url}/add-checkpoint") as answer:
            assert answer.status == 405
        async with session.get(f"{url}/state") as answer:
            assert answer.status == 404
