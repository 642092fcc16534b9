"""`expunge receipt`: what a person keeps of one of their photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.console import AsJson, document, say, write_new
from expunge.domain.errors import Rejected


def add(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(help="Write the receipt of one image: `expunge verify` checks it, it opens that image only.")
    def receipt(
        request: Annotated[str, typer.Argument(metavar="REQUEST", help="request id")],
        out: Annotated[Path, typer.Option("--out", help="a new file")],
        image: Annotated[str | None, typer.Option("--image", help="locator or SHA-256 of one of its artifacts")] = None,
        photo: Annotated[Path | None, typer.Option("--photo", help="a copy of the image")] = None,
        leaf: Annotated[str | None, typer.Option("--leaf", metavar="TREE:INDEX", help="one artifact only")] = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        if sum(one is not None for one in (image, photo, leaf)) != 1:
            raise Rejected("malformed", "expected one of --image, --photo and --leaf")
        from expunge.cli.deployed import ask, request_id
        from expunge.domain import receipt as receipts
        from expunge.openings import Wanted

        identity = request_id(request)
        try:
            wanted = Wanted.copy(photo.read_bytes()) if photo else Wanted(image) if image else _place(leaf or "")
        except OSError as error:
            raise Rejected("unreadable", f"expected a readable file at --photo, got {type(error).__name__}") from error
        data = ask(lambda reader: reader.receipt(identity, wanted))
        write_new(out, data)
        made = receipts.parse(data)
        if as_json:
            document({"out": str(out), "bytes": len(data), "leaves": len(made.leaves), "alone": made.alone})
        else:
            checked = "by itself" if made.alone else "with --sweep: the bundle of any certificate of the sweep"
            say(f"{out}: {len(data)} bytes, opens {len(made.leaves)} artifacts, is checked {checked}")


def _place(text: str) -> tuple[int, int]:
    tree, _, index = text.partition(":")
    if not (tree.isdecimal() and index.isdecimal()):
        raise Rejected("malformed", "expected --leaf as TREE:INDEX, two numbers")
    return int(tree), int(index)
