"""`expunge disclose` and `expunge disclosed`: an order's artifacts, for its regulator's eyes only."""

from __future__ import annotations

import asyncio
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.console import AsJson, document, say, unwritable, write_new
from expunge.domain.errors import Rejected
from expunge.private import read_secret

KEY_FILE = "disclosure.age"


def add(app: typer.Typer) -> None:
    """Add the commands."""
    _disclose(app)
    _disclosed(app)


def _disclose(app: typer.Typer) -> None:
    @app.command(help="Hand an order's key to its regulator, encrypted to their age key, with the sealed scope file.")
    def disclose(
        order: Annotated[str, typer.Argument(metavar="ORDER", help="request id")],
        to: Annotated[str, typer.Option("--to", metavar="AGE1...", help="the regulator's age recipient")],
        out: Annotated[Path, typer.Option("--out", help="a directory that is absent or empty")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.adapters.disclosure.age import encrypt
        from expunge.cli.deployed import reachable, request_id

        identity = request_id(order)
        encrypt(b"", to)  # a wrong recipient is told before anything is looked up
        found = reachable()
        from expunge.keeping import disclose_of
        from expunge.verify import write_bundle

        made = asyncio.run(disclose_of(found, identity))
        try:
            write_bundle({KEY_FILE: encrypt(made.plain, to), f"{made.sweep}.scope": bytes(made.scope_file)}, out)
        except OSError as error:
            raise unwritable("a disclosure at --out", error) from error
        if as_json:
            document({"order": order, "sweep": made.sweep, "out": str(out)})
        else:
            say(
                f"{out}: {KEY_FILE} opens with the regulator's identity only, and {made.sweep}.scope with what is in it"
            )


def _disclosed(app: typer.Typer) -> None:
    @app.command(
        help="The regulator's side: open a disclosure, check every leaf against the bundle, list what was erased."
    )
    def disclosed(
        directory: Annotated[Path, typer.Argument(help="as `expunge disclose` wrote it")],
        identity: Annotated[Path, typer.Option("--identity", help="your age identity file")],
        bundle: Annotated[Path, typer.Option("--bundle", help="the order's certificate")],
        trust: Annotated[Path, typer.Option("--trust", help="your own policy file")],
        listing: Annotated[
            Path | None, typer.Option("--csv", help="a new file: one line per artifact; - for output")
        ] = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge import verify
        from expunge.adapters.disclosure.age import decrypt
        from expunge.domain import bundle as bundles
        from expunge.domain import disclosure, evidence

        policy = verify.read_trust(trust)
        files = verify.read_bundle(bundle)
        verify.verify(bundle, policy).verified()
        try:
            plain = decrypt((directory / KEY_FILE).read_bytes(), read_secret(identity, "--identity").decode())
            opened = disclosure.parse(plain)
            buffer = (directory / f"{opened.sweep}.scope").read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise Rejected(
                "unreadable", f"expected a disclosure and an identity, got {type(error).__name__}"
            ) from error
        scope = evidence.scope_of(bundles.load(files), policy)
        counts: dict[tuple[str, str], int] = {}
        rows = []
        for one in disclosure.openings(opened, buffer, scope):
            counts[one.kind.value, one.store] = counts.get((one.kind.value, one.store), 0) + 1
            if listing is not None:
                rows.append(
                    (one.tree, one.index, one.kind.value, one.store, one.unit, one.locator, one.artifact, one.digest)
                )
        if listing is not None:
            _write(listing, rows)
        if as_json:
            document(
                {"sweep": opened.sweep, "artifacts": {f"{kind} in {store}": n for (kind, store), n in counts.items()}}
            )
        else:
            for (kind, store), number in counts.items():
                say(f"{kind} in {store}: {number} leaves open and hash to the root in the scope")


def _write(path: Path, rows: Sequence[tuple[object, ...]]) -> None:
    head = ("tree", "index", "kind", "store", "unit", "locator", "artifact", "sha256")
    if str(path) == "-":
        csv.writer(sys.stdout).writerows([head, *rows])
        return
    written = io.StringIO(newline="")
    csv.writer(written).writerows([head, *rows])
    write_new(path, written.getvalue().encode(), "--csv")
