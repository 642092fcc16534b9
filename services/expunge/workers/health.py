"""`/metrics`, `/livez` and `/readyz` of one worker.

Live means progress: the event loop ticks, and whatever is waiting moves. Ready means that it can take work. Neither
says anything about a request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALLED_SECONDS = 120.0
"""Live no longer when work has been waiting this long and none was finished."""


@dataclass(slots=True)
class Health:
    """What the probes look at. `waiting`: whether something is known to wait; `progress`: how many batches are done."""

    ready: Callable[[], Awaitable[bool]]
    progress: Callable[[], int]
    waiting: Callable[[], bool]
    _seen: int = -1
    _since: float = field(default_factory=time.monotonic)

    def live(self) -> bool:
        """Progress within the limit, or nothing to do."""
        now, done = time.monotonic(), self.progress()
        if done != self._seen or not self.waiting():
            self._seen, self._since = done, now
        return now - self._since < STALLED_SECONDS


async def serve(health: Health, *, host: str, port: int) -> web.AppRunner:
    """Start serving; the caller cleans the runner up. Raises OSError when the port is taken."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def livez(_request: web.Request) -> web.Response:
        alive = health.live()
        return web.Response(status=200 if alive else 503, text="live\n" if alive else "no progress\n")

    async def readyz(_request: web.Request) -> web.Response:
        able = await health.ready()
        return web.Response(status=200 if able else 503, text="ready\n" if able else "not ready\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/livez", livez), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
