"""`expunge backup ...`: look at a restored database, and finish its restoration. See ops/BACKUP.md."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from expunge.cli.console import AsJson, Exit, document, finish, say
from expunge.domain.errors import Misconfigured

if TYPE_CHECKING:
    from expunge.backup import Finished, Found
    from expunge.wiring import Deployment

DEADLINE: Final = timedelta(days=30)
"""By when the order to erase again what came back asks for it."""

Database = Annotated[
    str | None, typer.Option("--database", metavar="DSN", help="the restored database; EXPUNGE_DATABASE if absent")
]


def commands() -> typer.Typer:
    """The group `backup`."""
    group = typer.Typer(help="Databases restored from a backup.", no_args_is_help=True)

    @group.command(
        help="What a restored database lacks, and what came back with it. Exit code 1 if anything is to be done."
    )
    def verify(database: Database = None, *, as_json: AsJson = False) -> None:
        from expunge.cli.deployed import deployment

        deployed = deployment()
        from expunge import backup

        found = asyncio.run(backup.verify(deployed, database or deployed.settings.database))
        if as_json:
            document({**asdict(found), "usable": found.usable, "clean": found.clean})
        else:
            _tell(found)
        finish(Exit.OK if found.clean else Exit.NEGATIVE)

    @group.command(
        "finish",
        help="Before the workers start: put back what can be worked out, and ask that what came back be erased again.",
    )
    def finish_it(
        key: Annotated[Path, typer.Option("--key", envvar="EXPUNGE_PUBLISHER_KEY_FILE", help="signs what is asked")],
        reference: Annotated[str, typer.Option("--reference", help="file number of the restoration")],
        *,
        as_json: AsJson = False,
    ) -> None:
        from expunge.cli.deployed import reachable

        deployed = reachable()
        from expunge import backup
        from expunge.adapters.broker.topics import expect_answer, set_offsets

        expect_answer(deployed.settings.kafka)  # before anything is changed
        if not key.is_file():
            raise Misconfigured(f"EXPUNGE_PUBLISHER_KEY_FILE: expected the publisher's key file at {key}")
        done = asyncio.run(backup.finish(deployed, deployed.settings.database))
        set_offsets(
            deployed.settings.kafka,
            {(f"expunge-{worker}", topic, part): at for (worker, topic, part), at in done.offsets.items()},
        )
        order = _ask(deployed, key, reference, done)
        shown = {
            "log_entries_put_back": done.entries,
            "suppressions_put_back": done.projected,
            "images_back": done.images,
            "people_withdrawn_again": len(done.people),
            "order": order,
        }
        if as_json:
            document(shown)
        else:
            for name, value in shown.items():
                say(f"{name.replace('_', ' '):<24} {value if value is not None else 'not needed'}")

    return group


def _tell(found: Found) -> None:
    say(f"schema        {found.schema} of {found.newest}")
    say(f"log           {found.entries} entries, {found.behind} of them not in this database")
    if found.diverged:
        say(
            "log           this database has entries that the log has not: it went on after it was restored. Not usable"
        )
    if found.unread:
        say(f"open sweeps   {found.unread} whose scope file or key is gone. Not usable: restore these too")
    say(f"suppression   {'behind the journal' if found.projection_behind else 'as the journal says'}")
    say(f"came back     {found.images} images; {found.people} people with purposes that they withdrew")
    say(
        "nothing to do"
        if found.clean
        else "run `expunge backup finish` before the workers start"
        if found.usable
        else ""
    )


def _ask(deployed: Deployment, key: Path, reference: str, done: Finished) -> str | None:
    """Publish what erases again: one order for what must not be here at all, which two people approve, and a withdrawal
    for each person who withdrew some purposes. The order's id, if there was need of one."""
    from expunge.cli.keyfile import read_key
    from expunge.client import Publisher
    from expunge.domain.request import Authority, BySuppressed, OrderProvision, SubjectRef
    from expunge.domain.words import Provision

    order = None
    due = (datetime.now(UTC) + DEADLINE).replace(microsecond=0)
    with Publisher(deployed.settings.kafka, read_key(key), deployed.settings.audience, "restore") as publisher:
        for person, purposes in done.people.items():
            publisher.expire(SubjectRef(person), purposes)
        if done.images:
            provision = OrderProvision(number=1, covers=Provision.DATA, deadline=due)
            order = publisher.order(
                BySuppressed(), authority=Authority.COMPANY, reference=reference, provisions=(provision,)
            )
    return order
