"""The evidence log over HTTP for monitors, read-only: checkpoint, tiles, entry bundles, nothing else (C2SP tlog-tiles).

A path is served only in the one spelling that `domain.tiles` gives it, so that no other file can be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from expunge.domain import tiles
from expunge.domain.errors import Rejected
from expunge.ports import TileStore

CHECKPOINT: Final = "checkpoint"
FRESH: Final = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
IMMUTABLE: Final = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def application(store: TileStore) -> web.Application:
    """The log as an application."""

    async def read(request: web.Request) -> web.Response:
        path = request.match_info["path"]
        try:
            if path != CHECKPOINT:
                tiles.parse_path(path)
            data = await asyncio.to_thread(store.read, path)
        except (Rejected, FileNotFoundError):
            return web.Response(status=404, text="no such file of this log\n", headers=FRESH)
        if path == CHECKPOINT:
            return web.Response(body=data, content_type="text/plain", charset="utf-8", headers=FRESH)
        return web.Response(body=data, content_type="application/octet-stream", headers=IMMUTABLE)

    app = web.Application()
    app.router.add_get("/{path:.*}", read)
    return app


async def serve(store: TileStore, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until cancelled. `ready` is told the monitoring prefix."""
    runner = web.AppRunner(application(store), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        ready("http://{}:{}".format(*runner.addresses[0][:2]))
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
