"""`status`, `certificate`, `verify`, `replay`: what became of a request, and proof of it.

`verify` needs the core dependencies only.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.console import AsJson, AsJsonLines, Exit, document, finish, progress, say, table, unwritable

if TYPE_CHECKING:
    from expunge.domain.opening import ReceiptReport
    from expunge.domain.report import Report

Id = Annotated[str, typer.Argument(metavar="REQUEST", help="request id")]


class Format(StrEnum):
    """How a certificate's evidence is written."""

    BUNDLE = "bundle"
    SCITT = "scitt"


class Which(StrEnum):
    """The two provisions of a request."""

    DATA = "data"
    MODELS = "models"


def add(app: typer.Typer) -> None:
    """Add the commands."""
    _status(app)
    _certificate(app)
    _verify(app)
    _replay(app)


def _status(app: typer.Typer) -> None:
    @app.command(help="Where a request stands: state, sweep, results, certificates, due date.")
    def status(request: Id, *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import ask, request_id

        identity = request_id(request)
        found = ask(lambda reader: reader.status(identity))
        if as_json:
            document(found)
        else:
            _tell(found)


def _tell(found: dict[str, Any]) -> None:
    say(f"request   {found['request']}")
    say(f"type      {found['type']}")
    say(f"state     {found['state']}")
    say(f"accepted  {found['accepted_at']}, due {found['due']}")
    if sweep := found["sweep"]:
        say(f"sweep     {sweep['id']}, {sweep['state']}, scope at log index {sweep['scope_index']}")
        say(f"scope     {sweep['scope_root']}, {found['images']} images, {found['artifacts']} artifacts")
        say(f"open      {sweep['runs_open']} runs; {sweep['approvals']} approvals")
    for provision, result in found["results"].items():
        say(f"{provision:<9} {result or 'open'}")
    if found["certificates"]:
        table(
            ("certificate", "round", "result", "sha256"),
            [(one["provision"], one["round"], one["result"], one["sha256"]) for one in found["certificates"]],
        )


def _certificate(app: typer.Typer) -> None:
    @app.command(help="Write a certificate as a bundle that `expunge verify` checks offline.")
    def certificate(
        request: Id,
        out: Annotated[Path, typer.Option("--out", help="a directory that is empty or absent, or FILE.zip")],
        provision: Which = Which.DATA,
        form: Annotated[
            Format, typer.Option("--format", help="scitt: statements with COSE receipts (RFC 9942)")
        ] = Format.BUNDLE,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import ask, request_id
        from expunge.domain.words import Provision
        from expunge.verify import write_bundle

        identity = request_id(request)
        files = ask(lambda reader: reader.certificate(identity, Provision(provision)))
        if form is Format.SCITT:
            files = _as_scitt(files)
        try:
            write_bundle(files, out)
        except OSError as error:
            raise unwritable("a bundle at --out", error) from error
        size = sum(map(len, files.values()))
        if as_json:
            document({"request": request, "provision": provision, "out": str(out), "files": len(files), "bytes": size})
        else:
            say(f"{out}: {len(files)} files, {size} bytes")


def _as_scitt(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same certificate and statements, each with a receipt that this deployment's log signs."""
    from expunge.cli.deployed import deployment
    from expunge.domain import bundle, note, scitt

    made = bundle.load(files)
    signers = deployment().signers
    checkpoint = note.open_checkpoint(made.checkpoint, signers.trust().log_keys, signers.origin)
    return {bundle.CERTIFICATE: files[bundle.CERTIFICATE]} | scitt.export(
        made.statements, checkpoint, signers.log_key()
    )


def _verify(app: typer.Typer) -> None:
    @app.command(help="Check bundles offline against your own policy file. Exit code 1 when one does not hold.")
    def verify(
        bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="directories, zip files or receipts")],
        trust: Annotated[Path, typer.Option("--trust", help="your own policy file")],
        sweep: Annotated[Path | None, typer.Option("--sweep", help="files that a sweep's certificates share")] = None,
        photo: Annotated[Path | None, typer.Option("--photo", help="your own copy, to compare with a receipt")] = None,
        *,
        as_json: AsJsonLines = False,
    ) -> None:
        from expunge import verify as verifier

        policy = verifier.read_trust(trust)
        reports = []
        for bundle in bundles:
            report = verifier.verify_any(bundle, policy, sweep, photo)
            reports.append(report)
            _show(bundle, report, several=len(bundles) > 1, as_json=as_json)
        finish(Exit.OK if all(report.ok for report in reports) else Exit.NEGATIVE)


def _show(bundle: Path, report: Report | ReceiptReport, *, several: bool, as_json: bool) -> None:
    if as_json:
        document({"bundle": str(bundle), "ok": report.ok, **report.model_dump(mode="json")})
        return
    if several:
        say(f"{bundle}")
    for line in report.lines():
        say(line)
    say("verified" if report.ok else f"NOT verified: {report.where}")


def _replay(app: typer.Typer) -> None:
    @app.command(help="Replay the evidence log, and compare. Exit code 1 when it differs from the live system.")
    def replay(
        into: Annotated[str | None, typer.Option("--into", metavar="DSN", help="an empty database to fill")] = None,
        trust: Annotated[Path | None, typer.Option("--trust", help="policy file; the deployment's own keys if absent")] = None,
        until: Annotated[int | None, typer.Option("--until", min=0, help="only the log's first N entries")] = None,
        resume: Annotated[Path | None, typer.Option("--resume", help="your own file: a run that was ended goes on")] = None,
        *,
        compare: Annotated[bool, typer.Option("--compare", help="compare with the live system")] = False,
        as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.readside import replay_into, trusted
        from expunge.verify import read_trust

        policy = read_trust(trust) if trust is not None else asyncio.run(trusted(found))
        with progress("log entries") as tell:
            result = asyncio.run(
                replay_into(found, into, policy, compare=compare, until=until, resume=resume, progress=tell)
            )
        if as_json:
            document(result)
        else:
            of = "" if result["read"] == result["entries"] else f", the first {result['read']} read"
            say(f"{result['entries']} entries of {result['origin']} verified{of}, {result['sweeps']} sweeps")
            for one in result["unreconciled"]:
                say(f"  reconciliation: {one['kind']} from {one['source']} differs by {one['difference']}")
            if compare:
                say("equal to the live system" if result["equal"] else "DIFFERS from the live system:")
            for one in result["differences"]:
                say(f"  {one['kind']}: {one['what']}")
        finish(Exit.OK if result["equal"] else Exit.NEGATIVE)
