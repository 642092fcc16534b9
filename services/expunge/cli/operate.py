"""Running a deployment: workers, the embedded mode, the demo, migrations, topics, imports, schemas, stores, dead letters."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.console import AsJson, AsJsonLines, Exit, document, error_line, finish, say, table
from expunge.domain.errors import Misconfigured

if TYPE_CHECKING:
    from expunge.cli.letters import Filter
    from expunge.wiring.up import Embedded

Letter = Annotated[int | None, typer.Argument(metavar="ID", help="as `expunge dead-letter list` shows it")]
OfWorker = Annotated[str | None, typer.Option("--worker", help="only this worker's")]
OfTopic = Annotated[str | None, typer.Option("--topic", help="only of this topic")]
OfReason = Annotated[str | None, typer.Option("--reason", help="only with this reason")]
OfStore = Annotated[str | None, typer.Option("--store", help="only work orders for this store")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="at most so many, the oldest first")]

WATCH_SECONDS = 0.5
"""How often `up` looks whether a worker or server has ended."""


def add(app: typer.Typer) -> None:
    """Add the commands."""
    for commands in (_running, _setting_up, _catalogue, _checking, _dead_letters):
        commands(app)


def _running(app: typer.Typer) -> None:
    @app.command(help="Run one worker until it is told to stop. Settings come from EXPUNGE_ variables.")
    def worker(name: Annotated[str, typer.Argument(help="a worker of the pipeline, such as coordinate")]) -> None:
        from expunge.settings import Settings

        settings = Settings.read()
        from expunge.wiring.run import run_worker

        run_worker(name, settings)

    @app.command(help="Everything on this machine until Ctrl-C: PostgreSQL, Kafka, all workers. No Docker, no Java.")
    def up(
        directory: Annotated[Path, typer.Option("--dir", help="where its data stays")] = Path(".expunge"),
        audience: Annotated[str, typer.Option("--audience", help="the deployment's name")] = "expunge:local",
        stores: Annotated[list[str] | None, typer.Option("--store", metavar="NAME=URL", help="may be repeated")] = None,
        *,
        api: Annotated[bool, typer.Option("--api", help="the read API too; its URL is printed")] = False,
        as_json: AsJsonLines = False,
    ) -> None:
        _up(directory.resolve(), audience, _named_urls(stores or []), api=api, as_json=as_json)

    @app.command(help="The whole story in one run, on real photographs and real servers, in a minute.")
    def demo(
        output: Annotated[Path, typer.Option("--output", help="where bundles are left")] = Path("demo-output"),
        keep: Annotated[Path | None, typer.Option("--keep", help="keep all files of the run in this directory")] = None,
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge import demo as story

        finish(Exit.OK if story.run(output, keep=keep, as_json=as_json) else Exit.NEGATIVE)


def _up(directory: Path, audience: str, stores: dict[str, str], *, api: bool, as_json: bool) -> None:
    from expunge.wiring.up import Embedded

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped like Ctrl-C, so nothing is left behind
    embedded = Embedded(directory, audience=audience, stores=stores)
    tell = (lambda text: document({"at": text})) if as_json else say
    try:
        embedded.start_servers(tell)
        embedded.start_workers(tell)
        if api:
            url = embedded.start_api()
            document({"api": url}) if as_json else say(f"read API at {url}, its documentation at {url}/docs")
        variables = _for_the_shell(embedded)
        if as_json:
            document({"environment": variables})
        else:
            for name, value in variables.items():
                say(f"export {name}='{value}'")
            say("running until Ctrl-C")
        while True:
            embedded.revive(error_line)
            time.sleep(WATCH_SECONDS)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
        embedded.stop()


def _for_the_shell(embedded: Embedded) -> dict[str, str]:
    """The variables with which other commands reach this deployment. Draws and registers keys for people, once."""
    from expunge.cli.keyfile import read_key
    from expunge.cli.keys import PEOPLE, draw_people
    from expunge.domain import statement, trust
    from expunge.domain.words import Role
    from expunge.wiring import now
    from expunge.wiring.up import register_key

    folder = embedded.settings.data / "keys"
    if not (folder / "publisher.key").exists():
        at = statement.instant(now())
        approvers = [
            trust.TrustedKey(role=Role.APPROVER, name=name, public=public.to_base64(), valid_from=at)
            for role, name, public in draw_people(folder)
            if role == "approver"
        ]
        (folder / "trust.json").write_bytes(trust.dump(embedded.deployment.signers.trust(approvers)))
    for role, name in PEOPLE:
        public = read_key(folder / f"{name}.key").public
        register_key(embedded.settings.database, role=role, name=name, public=public.raw, key_id=public.key_id)
    settings = embedded.settings
    return {
        "EXPUNGE_DATABASE": settings.database,
        "EXPUNGE_KAFKA": settings.kafka,
        "EXPUNGE_DATA": str(settings.data),
        "EXPUNGE_AUDIENCE": settings.audience,
        "EXPUNGE_STORES": json.dumps(dict(settings.stores)),
        "EXPUNGE_PUBLISHER_KEY_FILE": str(folder / "publisher.key"),
    }


def _named_urls(given: list[str]) -> dict[str, str]:
    named = {}
    for one in given:
        name, equals, url = one.partition("=")
        if not equals or ":" not in url:
            raise typer.BadParameter("expected --store NAME=URL")
        named[name] = url
    return named


def _setting_up(app: typer.Typer) -> None:
    @app.command(help="Bring the database to the newest schema.")
    def migrate(*, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.adapters.ledger import postgres

        ran = postgres.migrate(found.settings.database)
        document({"migrations": ran}) if as_json else say(f"{ran} migrations ran")

    topics = typer.Typer(help="Kafka topics.", no_args_is_help=True)
    app.add_typer(topics, name="topics")

    @topics.command(help="Create every topic that is not there, with its partitions and retention.")
    def create(
        kafka: Annotated[str | None, typer.Option("--kafka", envvar="EXPUNGE_KAFKA")] = None,
        replication: Annotated[int, typer.Option("--replication", min=1, help="copies of each partition")] = 1,
        *,
        as_json: AsJson = False,
    ) -> None:
        if not kafka:
            raise Misconfigured("EXPUNGE_KAFKA: expected bootstrap servers, here or as --kafka")
        from expunge.adapters.broker.topics import create_topics

        made = create_topics(kafka, replication)
        document({"created": made}) if as_json else say(f"{len(made)} topics created")

    @app.command(help="Generate schemas/ from the code; with --check, say what is out of step (exit code 1).")
    def schemas(
        *,
        check: Annotated[bool, typer.Option("--check", help="change nothing")] = False,
        target: Annotated[Path | None, typer.Argument(help="directory; schemas/ of this checkout")] = None,
    ) -> None:
        from expunge.api.application import openapi
        from expunge.schemas import main as generate

        arguments = (["--check"] if check else []) + ([str(target)] if target else [])
        finish(Exit.NEGATIVE if generate(arguments, {"openapi.json": openapi()}) else Exit.OK)


def _catalogue(app: typer.Typer) -> None:
    catalogue = typer.Typer(help="The catalogue.", no_args_is_help=True)
    app.add_typer(catalogue, name="catalogue")

    @catalogue.command("import", help="Load Parquet or CSV files: all of them or nothing; bad rows are named by line.")
    def load(
        files: Annotated[list[Path], typer.Argument(metavar="FILES...", exists=True, dir_okay=False)],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import reachable

        found = reachable()
        from expunge.cli.importing import import_catalogue
        from expunge.stages.register.bulk import ImportRefused

        try:
            loaded = asyncio.run(import_catalogue(found, files, quiet=as_json))
        except ImportRefused as refused:
            _bad_rows(files, refused, as_json=as_json)
            finish(Exit.USAGE)
            return
        if as_json:
            document(loaded)
            return
        say(f"{loaded['images']} images, {loaded['artifacts']} artifacts")
        for code, count in loaded["left_out"].items():
            say(f"left out: {count} {code}")
        if loaded["repeated"]:
            say(f"{loaded['repeated']} files were imported before")


def _bad_rows(files: list[Path], refused: Any, *, as_json: bool) -> None:  # noqa: ANN401 - its module is heavy
    rows = [{"file": str(files[one.file]), "line": one.line, "reason": one.code} for one in refused.rows]
    error_line(f"nothing was loaded: {len(rows)} bad rows")
    if as_json:
        document({"loaded": False, "bad_rows": rows})
        return
    for one in rows:
        say(f"{one['file']}:{one['line']}: {one['reason']}")


def _checking(app: typer.Typer) -> None:
    stores = typer.Typer(help="Stores.", no_args_is_help=True)
    app.add_typer(stores, name="stores")

    @stores.command(help="Look at every store of EXPUNGE_STORES before the first deletion: what could defeat erasure.")
    def check(*, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import deployment
        from expunge.cli.stores import looked_at

        rows = looked_at(deployment().settings.stores)
        if as_json:
            document(rows)
        else:
            columns = ("store", "scheme", "rewrites_unit", "max_level")
            table(columns, [[one[column] for column in columns] for one in rows])
            for one in rows:
                for remark in one["remarks"]:
                    say(f"{one['store']}: {remark['severity']}: {remark['words']}")
        if any(remark["severity"] == "wrong" for one in rows for remark in one["remarks"]):
            finish(Exit.NEGATIVE)


def _dead_letters(app: typer.Typer) -> None:
    letters = typer.Typer(help="Messages that were given up.", no_args_is_help=True)
    app.add_typer(letters, name="dead-letter")

    @letters.command("list", help="What was given up, where it was and why; never what it holds.")
    def every(
        worker: OfWorker = None, topic: OfTopic = None, reason: OfReason = None, store: OfStore = None,
        limit: Limit = 1000, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.cli.letters import Filter, listed

        rows = listed(Filter(worker=worker, topic=topic, reason=reason, store=store), limit)
        if as_json:
            document(rows)
        else:
            columns = ("id", "worker", "topic", "partition", "offset", "store", "reason", "at")
            table(columns, [[one[column] for column in columns] for one in rows])

    @letters.command(help="Hand one, or those that fit, to their worker again, now.")
    def retry(
        letter: Letter = None, worker: OfWorker = None, topic: OfTopic = None, reason: OfReason = None,
        store: OfStore = None, limit: Limit = 1000, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.cli.letters import Filter, retried

        done = retried(_meant(Filter(letter, worker, topic, reason, store)), limit)
        document({"ids": done, "retried": True}) if as_json else say(f"{len(done)} dead letters wait to be tried again")

    @letters.command(help="Remove one, or those that fit, for good: understood, or never to be.")
    def drop(
        letter: Letter = None, worker: OfWorker = None, topic: OfTopic = None, reason: OfReason = None,
        store: OfStore = None, limit: Limit = 1000, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.cli.letters import Filter, dropped

        done = dropped(_meant(Filter(letter, worker, topic, reason, store)), limit)
        document({"ids": done, "dropped": True}) if as_json else say(f"{len(done)} dead letters are gone")


def _meant(which: Filter) -> Filter:
    """Nobody retries or drops everything by leaving the id out."""
    if which.everything:
        raise typer.BadParameter("expected an ID, or one of --worker, --topic, --reason, --store")
    return which
