"""`expunge canary run`: the synthetic subject on a schedule, as a small service with metrics and probes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from expunge.cli.console import AsJson, Exit, document, finish, say

if TYPE_CHECKING:
    from expunge.canary import Canary
    from expunge.wiring import Deployment

UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `1h` or `1d`."""
    match = re.fullmatch(r"([1-9]\d{0,6})([smhd])", text)
    if match is None:
        raise typer.BadParameter(f"expected a duration such as 90s, 15m, 1h or 1d, got {text!r}")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


Every = Annotated[str, typer.Option("--every", metavar="DURATION", help="how often: 90s, 15m, 1h, 1d")]
Within = Annotated[str, typer.Option("--within", metavar="DURATION", help="when a proof is late")]


def commands() -> typer.Typer:
    """The group `canary`."""
    group = typer.Typer(help="A synthetic subject, erased end to end on a schedule.", no_args_is_help=True)

    @group.command(help="Register the canary's key, then run a synthetic subject each interval until told to stop.")
    def run(
        every: Every = "1h",
        within: Within = "15m",
        store: Annotated[
            str | None, typer.Option("--store", help="a file:// store; the first of them if absent")
        ] = None,
        *,
        once: Annotated[bool, typer.Option("--once", help="one subject; exit code 1 unless it was proved")] = False,
        as_json: AsJson = False,
    ) -> None:
        interval, patience = duration(every), duration(within)
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.canary import build, register
        from expunge.wiring.logs import configure_logging

        canary = build(found, store=store, within=patience)
        asyncio.run(register(found))
        configure_logging(found.settings.log_level)
        if not once:
            asyncio.run(_serve(found, canary, interval))
            return
        outcome = asyncio.run(_once(found, canary))
        document({"outcome": outcome}) if as_json else say(f"canary: {outcome}")
        finish(Exit.OK if outcome == "proved" else Exit.NEGATIVE)

    return group


async def _once(deployment: Deployment, canary: Canary) -> str:
    await deployment.ledger.open()
    try:
        return await canary.once()
    finally:
        await deployment.ledger.close()


async def _serve(deployment: Deployment, canary: Canary, every: timedelta) -> None:
    from expunge import __version__, metrics
    from expunge.workers.health import Health, serve

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics.BUILD.info({"version": __version__})
    await deployment.ledger.open()

    async def ready() -> bool:
        return True

    settings = deployment.settings
    # It waits on purpose, so nothing ever "waits to be done": it is live while its loop answers.
    health = Health(ready=ready, progress=lambda: canary.progress, waiting=lambda: False)
    runner = await serve(health, host=settings.metrics_host, port=settings.metrics_port)
    task = asyncio.ensure_future(canary.every(every))
    await stop.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await runner.cleanup()
    await deployment.ledger.close()
