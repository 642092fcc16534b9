"""`expunge request ...`: sign one request with the publisher's key and publish it. Prints the request's id.

Needs the core dependencies only: no database, no numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from expunge.cli.console import AsJson, document, say
from expunge.domain.errors import Misconfigured, Rejected

if TYPE_CHECKING:
    from expunge.client import Publisher
    from expunge.domain.request import OrderProvision, RequestId, Selection, SubjectRef

MODELS_AFTER: Final = timedelta(days=90)
"""An order's models provision, when no deadline is given for it."""


class Law(StrEnum):
    """Regulations, as `domain.request.Regulation` has them: repeated, so that help needs no pydantic."""

    GDPR = "gdpr"
    CCPA = "ccpa"
    BIPA = "bipa"
    AI_ACT = "ai-act"
    OTHER = "other"


class Orderer(StrEnum):
    """Who orders or holds."""

    REGULATOR = "regulator"
    COURT = "court"
    COMPANY = "company"


class ModelsRemedy(StrEnum):
    """What an order wants done about models."""

    RETRAIN = "retrain"
    RETRAIN_FROM_ANCESTOR = "retrain-from-ancestor"
    DROP = "drop"
    DESTROY = "destroy"


Key = Annotated[
    Path | None,
    typer.Option(
        "--key", envvar="EXPUNGE_PUBLISHER_KEY_FILE", help="signing key: a seed in hex, base64 or PEM, of mode 0600"
    ),
]
Kafka = Annotated[str | None, typer.Option("--kafka", envvar="EXPUNGE_KAFKA", help="bootstrap servers, host:port")]
Audience = Annotated[str | None, typer.Option("--audience", envvar="EXPUNGE_AUDIENCE", help="the deployment's name")]
Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="subject_ref of the person: KEYID.MAC")]
Purposes = Annotated[list[str], typer.Option("--purpose", "-p", help="a purpose; may be repeated")]
Received = Annotated[datetime | None, typer.Option("--received", help="when the person asked (UTC), if not just now")]
Reference = Annotated[str, typer.Option("--reference", help="file number")]
Id = Annotated[str, typer.Argument(metavar="REQUEST", help="request id")]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where and as whom to publish, as the options and variables say."""

    key: Path | None
    kafka: str | None
    audience: str | None

    @contextmanager
    def publisher(self) -> Iterator[Publisher]:
        """A publisher whose messages are acknowledged when the block ends. Raises `Misconfigured`, `Retryable`."""
        if self.key is None:
            raise Misconfigured("EXPUNGE_PUBLISHER_KEY_FILE: expected the publisher's key file, here or as --key")
        if not self.kafka:
            raise Misconfigured("EXPUNGE_KAFKA: expected bootstrap servers, here or as --kafka")
        if not self.audience:
            raise Misconfigured("EXPUNGE_AUDIENCE: expected the deployment's name, here or as --audience")
        from expunge.adapters.broker.topics import expect_answer
        from expunge.cli.keyfile import read_key

        key = read_key(self.key)
        expect_answer(self.kafka)
        from expunge.client import Publisher

        with Publisher(self.kafka, key, self.audience, "cli") as publisher:
            yield publisher


def commands() -> typer.Typer:
    """The group `request`."""
    group = typer.Typer(help="Sign a request and publish it; prints its id.", no_args_is_help=True)
    for add in (_people, _orders, _holds, _follow_ups):
        add(group)
    return group


def _people(group: typer.Typer) -> None:
    @group.command(help="A person asks that everything of theirs be deleted.")
    def delete(
        subject: Subject, regulation: Law = Law.GDPR, received: Received = None, deadline: datetime | None = None,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.domain.request import Regulation

        person = checked_subject(subject)
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.delete(
                person,
                regulation=Regulation(regulation),
                received_at=_utc(received),
                deadline=_utc(deadline),
            ),
            as_json=as_json,
        )

    @group.command(help="A person withdraws consent for some purposes.")
    def withdraw(
        subject: Subject, purposes: Purposes, regulation: Law = Law.GDPR, received: Received = None,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.domain.request import Regulation

        person = checked_subject(subject)
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.withdraw(
                person, tuple(purposes), regulation=Regulation(regulation), received_at=_utc(received)
            ),
            as_json=as_json,
        )

    @group.command(help="A person consents, for images registered from now on.")
    def consent(
        subject: Subject, purposes: Purposes,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        person = checked_subject(subject)
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.give_consent(person, tuple(purposes)),
            as_json=as_json,
        )

    @group.command(help="The retention period of a person's data has ended: for all purposes, or for those named.")
    def retention(
        subject: Subject,
        purposes: Annotated[list[str] | None, typer.Option("--purpose", "-p", help="may be repeated")] = None,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        person = checked_subject(subject)
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.expire(person, tuple(purposes) if purposes else None),
            as_json=as_json,
        )


def _orders(group: typer.Typer) -> None:
    @group.command(
        help="An authority orders a source, a period or a list of people erased, with every model made from them. "
        "Provision 1 covers data, provision 2 models."
    )
    def order(
        reference: Reference,
        data_deadline: Annotated[datetime, typer.Option("--data-deadline", help="UTC")],
        models_deadline: Annotated[datetime | None, typer.Option("--models-deadline", help="UTC; 90 days later")] = None,
        remedy: ModelsRemedy = ModelsRemedy.RETRAIN,
        authority: Orderer = Orderer.REGULATOR,
        source: Annotated[str | None, typer.Option("--source", help="a source's name")] = None,
        start: Annotated[datetime | None, typer.Option("--from", help="acquired from this day on")] = None,
        end: Annotated[datetime | None, typer.Option("--before", help="and before this one")] = None,
        subjects: Annotated[Path | None, typer.Option("--subjects", help="file with a subject_ref per line")] = None,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *,
        suppressed: Annotated[bool, typer.Option("--suppressed", help="what came back with an old backup")] = False,
        as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.domain.request import Authority

        selection = _selection(source, start and start.date(), end and end.date(), subjects, suppressed=suppressed)
        data_by = _required(data_deadline)
        provisions = _provisions(data_by, _utc(models_deadline) or data_by + MODELS_AFTER, remedy)
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.order(selection, authority=Authority(authority), reference=reference, provisions=provisions),
            as_json=as_json,
        )


def _holds(group: typer.Typer) -> None:
    @group.command(help="A legal duty to keep: nothing of the target is erased until release.")
    def hold(
        reference: Reference,
        subject: Annotated[str | None, typer.Option("--subject", help="one person")] = None,
        source: Annotated[str | None, typer.Option("--source", help="or one source")] = None,
        authority: Orderer = Orderer.COURT, until: datetime | None = None,
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.domain.request import Authority, BySource, BySubject

        if (subject is None) == (source is None):
            raise typer.BadParameter("expected one of --subject and --source")
        target = BySubject(subject_ref=checked_subject(subject)) if subject else BySource(source=source or "")
        _publish(
            Connection(key, kafka, audience),
            lambda to: to.hold(target, authority=Authority(authority), reference=reference, until=_utc(until)),
            as_json=as_json,
        )

    @group.command(help="A hold ends.")
    def release(
        request: Id, key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False
    ) -> None:
        from expunge.domain.request import RequestId

        _publish(Connection(key, kafka, audience), lambda to: to.release(RequestId(request)), as_json=as_json)


def _follow_ups(group: typer.Typer) -> None:
    @group.command(help="Take an earlier request back, as far as nothing was done yet.")
    def cancel(
        request: Id, key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False
    ) -> None:
        from expunge.domain.request import RequestId

        _publish(Connection(key, kafka, audience), lambda to: to.cancel(RequestId(request)), as_json=as_json)

    @group.command(help="Approve a sealed scope, with an approver's key. `expunge status` shows the scope root.")
    def approve(
        request: Id,
        scope_root: Annotated[str, typer.Option("--scope-root", help="SHA-256 of the scope statement, hex")],
        key: Key = None, kafka: Kafka = None, audience: Audience = None, *, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        from expunge.domain.request import RequestId

        _publish(
            Connection(key, kafka, audience), lambda to: to.approve(RequestId(request), scope_root), as_json=as_json
        )


def _publish(connection: Connection, ask: Callable[[Publisher], RequestId], *, as_json: bool) -> None:
    with connection.publisher() as publisher:
        request_id = ask(publisher)
    if as_json:
        document({"request": request_id})
    else:
        say(request_id)


def _selection(
    source: str | None, start: date | None, end: date | None, subjects: Path | None, *, suppressed: bool = False
) -> Selection:  # fmt: skip
    from expunge.domain.request import ByList, ByPeriod, BySource, BySuppressed

    if suppressed:
        if source or start or end or subjects:
            raise typer.BadParameter("expected --suppressed alone")
        return BySuppressed()
    if subjects is not None:
        if source or start or end:
            raise typer.BadParameter("expected --subjects alone")
        return _made(lambda: ByList(subjects=tuple(checked_subject(line) for line in _lines(subjects))))
    if start is not None and end is not None:
        return _made(lambda: ByPeriod(source=source, start=start, end=end))
    if source is None or start or end:
        raise typer.BadParameter("expected --source, --from with --before, --subjects, or --suppressed")
    return _made(lambda: BySource(source=source))


def checked_subject(text: str) -> SubjectRef:
    """A pseudonym, checked before any server is asked. What was given is not repeated: it may be a name."""
    from pydantic import TypeAdapter, ValidationError

    from expunge.domain.request import SUBJECT_REF, SubjectRef

    checked: TypeAdapter[str] = TypeAdapter(Annotated[str, SUBJECT_REF])
    try:
        return SubjectRef(checked.validate_python(text))
    except ValidationError:
        raise Rejected("malformed", "expected a subject_ref such as k1.AbCd..., a key id and a MAC") from None


def _made(make: Callable[[], Selection]) -> Selection:
    from pydantic import ValidationError

    try:
        return make()
    except ValidationError as error:
        kinds = ", ".join(sorted({str(one["type"]) for one in error.errors(include_input=False, include_url=False)}))
        raise Rejected("malformed", f"expected a selection that fits its schema, got mistakes: {kinds}") from None


def _provisions(data_by: datetime, models_by: datetime, remedy: ModelsRemedy) -> tuple[OrderProvision, ...]:
    from expunge.domain.request import OrderProvision
    from expunge.domain.words import Provision, Remedy

    return (
        OrderProvision(number=1, covers=Provision.DATA, deadline=data_by),
        OrderProvision(number=2, covers=Provision.MODELS, deadline=models_by, remedy=Remedy(remedy)),
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected("unreadable", f"expected a text file at --subjects, got {type(error).__name__}") from error


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else _required(at)


def _required(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
