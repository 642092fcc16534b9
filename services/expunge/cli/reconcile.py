"""`expunge reconcile` and `expunge challenge`: count what is there, and open what an auditor draws."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from expunge.cli.console import AsJson, Exit, document, finish, say, write_new
from expunge.domain.errors import Rejected, Retryable


def add(app: typer.Typer) -> None:
    """Add the commands."""
    _reconcile(app)
    _challenge(app)
    _answered(app)


def _reconcile(app: typer.Typer) -> None:
    @app.command(
        help="Have worker rescan count what came in, was erased and is in the stores. Exit code 1 where it differs."
    )
    def reconcile(
        source: Annotated[list[str] | None, typer.Option("--source", help="only this one; may be repeated")] = None,
        wait: Annotated[float, typer.Option("--wait", min=0, help="seconds to wait for the worker")] = 600.0,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import reachable
        from expunge.domain import reconciliation

        found = reachable()
        from expunge.keeping import reconcile as run

        counts = asyncio.run(run(found, f"asked:{uuid4()}", source, seconds=wait))
        if counts is None:
            raise Retryable(f"expected worker rescan to finish within {wait:g} s, it goes on: see the log later")
        if as_json:
            document({"counts": [one.model_dump(mode="json") for one in counts]})
        else:
            for line in reconciliation.in_words(counts):
                say(line)
        finish(Exit.NEGATIVE if any(one.difference for one in counts) else Exit.OK)


def _challenge(app: typer.Typer) -> None:
    @app.command(
        help="Answer a challenge: open leaves of an order that follow from a later checkpoint, and look for them."
    )
    def challenge(
        order: Annotated[str, typer.Argument(metavar="ORDER", help="request id")],
        checkpoint: Annotated[Path, typer.Option("--checkpoint-file", metavar="NOTE", help="the auditor's checkpoint")],
        count: Annotated[int, typer.Option("--count", min=1, help="how many leaves: 299 find 1 % bad with 95 %")],
        out: Annotated[Path, typer.Option("--out", help="a new file")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import ask, deployment, request_id

        identity, drawn = request_id(order), _read(checkpoint, "--checkpoint-file")
        found = deployment()
        from expunge.adapters.stores.table import open_reader
        from expunge.domain import challenge as challenges
        from expunge.domain.words import Role
        from expunge.readside import trusted

        trust = asyncio.run(trusted(found))
        readers = {name: open_reader(url, name) for name, url in found.settings.stores.items()}
        at = datetime.now(UTC).replace(microsecond=0)
        said = ask(lambda reader: reader.challenge(identity, drawn, count, trust=trust, readers=readers, at=at))
        data = found.signers.signer(Role.RESCANNER).sign(said, challenges.PAYLOAD_TYPE)
        write_new(out, data)
        answer = challenges.parse(data)
        present = sum(one.present for one in answer.openings)
        _tell({"out": str(out), "leaves": len(answer.openings), "present": present}, as_json=as_json)


def _answered(app: typer.Typer) -> None:
    @app.command(help="The auditor's side: check the answer to a challenge offline. Exit code 1 when it does not hold.")
    def answered(
        answer: Annotated[Path, typer.Argument(help="as `expunge challenge` wrote it")],
        bundle: Annotated[Path, typer.Option("--bundle", help="the order's certificate")],
        trust: Annotated[Path, typer.Option("--trust", help="your own policy file")],
        checkpoint: Annotated[Path, typer.Option("--checkpoint-file", metavar="NOTE", help="the one you gave")],
        count: Annotated[int, typer.Option("--count", min=1, help="the count you gave")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge import verify

        found = verify.verify_challenge(
            _read(answer, "ANSWER"), verify.read_bundle(bundle), verify.read_trust(trust),
            _read(checkpoint, "--checkpoint-file"), count,
        )  # fmt: skip
        _tell({"leaves": found.leaves, "log_size": found.size, "present": len(found.present)}, as_json=as_json)
        finish(Exit.NEGATIVE if found.present else Exit.OK)


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        document(found)
    else:
        say(f"{found['leaves']} leaves opened, {found['present']} of them are in the stores")


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected("unreadable", f"expected a readable file at {name}, got {type(error).__name__}") from error
