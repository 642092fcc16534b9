"""`log` and `witness`: the evidence log for monitors, its recovery, and the witness that an auditor runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.console import AsJson, AsJsonLines, document, say

Host = Annotated[str, typer.Option("--host", help="address to listen on")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port")]


def add(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_log(), name="log")
    app.add_typer(_witness(), name="witness")


def _log() -> typer.Typer:
    log = typer.Typer(help="The evidence log.", no_args_is_help=True)

    @log.command(help="Serve checkpoint, tiles and entries over HTTP, read-only, for monitors (C2SP tlog-tiles).")
    def serve(
        directory: Annotated[Path | None, typer.Option("--dir", help="the log's files; this deployment's if absent")] = None,
        host: Host = "127.0.0.1",
        port: Port = 0,
        *,
        as_json: AsJsonLines = False,
    ) -> None:  # fmt: skip
        if directory is None:
            from expunge.cli.deployed import deployment

            store = deployment().tiles
        else:
            from expunge.adapters.log.files import FileTiles

            store = FileTiles(directory)
        from expunge import serving

        _until_told(serving.serve(store, host=host, port=port, ready=_ready(as_json=as_json)))

    @log.command(help="After an older database was restored: put the log's missing entries back from its files.")
    def recover(*, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.domain.note import NoteKey
        from expunge.stages.prove import recover as put_back

        async def run() -> int:
            await found.ledger.open()
            try:
                key = NoteKey.log(found.settings.origin, found.signers.log_key().public)
                return await put_back(found.ledger, found.tiles, key)
            finally:
                await found.ledger.close()

        entries = asyncio.run(run())
        document({"recovered": entries}) if as_json else say(f"{entries} entries put back")

    return log


def _witness() -> typer.Typer:
    witness = typer.Typer(
        help="A witness of evidence logs, run by an auditor (C2SP tlog-witness).", no_args_is_help=True
    )

    @witness.command(help="Draw a witness's key and begin its state, once. Prints the verifier key that others pin.")
    def init(
        directory: Annotated[Path, typer.Option("--dir", help="new; holds key and state, and is backed up never")],
        name: Annotated[str, typer.Option("--name", help="a name of your own, such as auditor.example/w1")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.witness import cosigner

        key = cosigner.init(directory, name)
        document({"name": key.name, "vkey": key.encode()}) if as_json else say(key.encode())

    @witness.command(help="Cosign checkpoints of the logs named, as long as each only grows.")
    def serve(
        directory: Annotated[Path, typer.Option("--dir", help="as `expunge witness init` made it")],
        logs: Annotated[list[str], typer.Option("--log", metavar="VKEY", help="a log's verifier key; may be repeated")],
        host: Host = "127.0.0.1",
        port: Port = 0,
        *,
        as_json: AsJsonLines = False,
    ) -> None:
        from expunge.domain.note import NoteKey
        from expunge.witness import server
        from expunge.witness.cosigner import Cosigner

        cosigner = Cosigner(directory, [NoteKey.parse(text) for text in logs])
        _until_told(server.serve(cosigner, host=host, port=port, ready=_ready(as_json=as_json)))

    return witness


def _ready(*, as_json: bool) -> Any:  # noqa: ANN401 - a callable of one text
    return lambda url: document({"listening": url}) if as_json else say(f"listening on {url}")


def _until_told(serving: Coroutine[Any, Any, None]) -> None:
    """Run until SIGTERM or Ctrl-C; both end normally."""

    async def run() -> None:
        task = asyncio.ensure_future(serving)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
