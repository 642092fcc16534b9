"""`expunge models ...`: which models are clean, which are not and why, and a gate for deployment pipelines."""

from __future__ import annotations

from typing import Annotated

import typer

from expunge.cli.console import AsJson, Exit, document, finish, say, table

Name = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="a registered model")]


def commands() -> typer.Typer:
    """The group `models`."""
    group = typer.Typer(help="Models: their status, what taints them, a gate.", no_args_is_help=True)

    @group.command("list", help="Every model and how it stands.")
    def every(*, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import ask

        found = ask(lambda reader: reader.models())
        if as_json:
            document(found)
            return
        columns = ("model", "status", "metric_void", "replaced_by", "due", "clean_at")
        table(columns, [[one[column] for column in columns] for one in found])

    @group.command(help="One model: what it came from, and each sweep that taints it, with the path.")
    def show(model: Name, *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import ask

        found = ask(lambda reader: reader.model(model))
        if as_json:
            document(found)
            return
        for name in ("model", "status", "metric_void", "replaced_by", "clean_at", "weights_sha256"):
            say(f"{name:<15} {found[name]}")
        say(f"{'trained on':<15} {', '.join(found['trained_on']) or 'not on record'}")
        for parent in found["parents"]:
            say(f"{parent['relation']:<15} {parent['model']}")
        for one in found["taints"]:
            state = f"{one['resolution']} at {one['resolved_at']}" if one["resolution"] else f"open, due {one['due']}"
            say(f"{'tainted by':<15} {one['sweep']}: {one['images']} images, {' <- '.join(one['path'])}; {state}")

    @group.command(help="Exit code 0 only if the model is clean, relative to the log's size now.")
    def gate(model: Name, *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import ask

        found = ask(lambda reader: reader.gate(model))
        if as_json:
            document(found)
        else:
            say(f"{model} is {found['status']} at log size {found['log_size']}")
        finish(Exit.OK if found["clean"] else Exit.NEGATIVE)

    return group
