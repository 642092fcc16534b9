"""A witness over HTTP: `POST /add-checkpoint` (C2SP tlog-witness v1.0.0), one submission at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web

from expunge.domain.cosigning import REQUEST_BYTES, SIZE_TYPE, Conflict
from expunge.domain.errors import Rejected, Retryable
from expunge.witness.cosigner import Cosigner

STATUS: Final = {"unknown-log": 404, "bad-signature": 403, "inconsistent": 422}
"""HTTP status by reason code; any other refusal is a bad request."""
_BAD_REQUEST: Final = 400

_log = logging.getLogger(__name__)


def application(cosigner: Cosigner) -> web.Application:
    """The witness as an application."""
    turn = asyncio.Lock()

    async def add_checkpoint(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            async with turn:  # judging, remembering and signing are one step to everybody else
                answer = await asyncio.to_thread(cosigner.add, body)
        except Rejected as error:
            status = STATUS.get(error.code, _BAD_REQUEST)
            _log.warning("refused %s: %s", status, error.code)
            return web.Response(status=status, text=f"{error}\n")
        except Retryable as error:
            _log.error("%s", error)
            return web.Response(status=503, text="the state could not be written\n")
        if isinstance(answer, Conflict):
            return web.Response(status=409, body=b"%d\n" % answer.size, content_type=SIZE_TYPE)
        return web.Response(body=answer, content_type="text/plain", charset="utf-8")

    app = web.Application(client_max_size=REQUEST_BYTES)
    app.add_routes([web.post("/add-checkpoint", add_checkpoint)])
    return app


async def serve(cosigner: Cosigner, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until cancelled. `ready` is told the submission prefix."""
    with cosigner.alone():
        runner = web.AppRunner(application(cosigner), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            ready("http://{}:{}".format(*runner.addresses[0][:2]))
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
