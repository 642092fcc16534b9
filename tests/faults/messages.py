"""Faults of messages: 16, 17, 24."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Final

from kafka import KafkaProducer

from expunge.client import Drawn, Publisher
from expunge.domain import dsse
from expunge.domain.events import BreakerOpened
from expunge.domain.request import Regulation
from tests.faults.ground import Ground, Report, certified
from tests.faults.small import AUDIENCE, eventually, key_of, subject

SECRET: Final = b"a-secret-that-must-not-leak"


def duplicates(ground: Ground) -> Report:
    """16: every message ten times, out of order, and a cancel before what it cancels."""
    small, report = ground.small, Report()
    people = small.register(12)
    drawn = {person: Drawn.now() for person in people}
    cancelled = people[-1]
    small.publisher.cancel(drawn[cancelled].id)
    small.publisher.flush()
    for turn in range(10):
        order = list(people) if turn % 2 else list(reversed(people))
        for person in order:
            small.publisher.delete(subject(person), regulation=Regulation.GDPR, drawn=drawn[person])
    small.publisher.flush()
    rest = [drawn[person].id for person in people if person != cancelled]
    certified(small, rest, report)
    state = eventually(lambda: _final(small.state(drawn[cancelled].id)), "the cancelled request", 60)
    report.expect(state in {"cancelled", "completed"}, f"cancelled before its request, it is {state}")
    certificates = small.one("select count(*) from certificate where request_id = any(%s)", [*rest])
    requests = small.one("select count(*) from request where request_id = any(%s)", [*rest])
    report.figure = {
        "messages": 10 * len(people), "effects_per_request": certificates / requests, "cancel_first": state
    }  # fmt: skip
    report.expect(certificates == requests == len(rest), f"{certificates} certificates of {requests} requests")
    return report


def _final(state: str | None) -> str | None:
    return state if state in {"cancelled", "completed"} else None


def malformed(ground: Ground) -> Report:
    """17: what cannot be read is a dead letter with a reason, and holds nothing up."""
    small, report = ground.small, Report()
    before = len(small.letters())
    bad: dict[str, bytes] = {
        "no JSON": SECRET,
        "another version": b'{"payload":"","payloadType":"application/vnd.expunge.request.v9+json","signatures":[]}'
        + SECRET,
        "nested bomb": b"[" * 200_000 + SECRET,
        "oversized": SECRET * 37_000,
        "unsigned": b'{"type":"expunge.request.deletion.v1","note":"' + SECRET + b'"}',
        "empty": b"",
    }
    producer = KafkaProducer(bootstrap_servers=small.kafka, max_request_size=2 << 20)
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"x"),
        ("ce_source", b"s"),
        ("ce_type", b"expunge.request.deletion.v1"),
    ]
    for body in bad.values():
        for some in (headers, []):
            producer.send("expunge.requests", body, b"key", some, partition=0).get(timeout=30)
    producer.close()
    began = time.monotonic()
    good = small.delete(small.register(1)[0])
    certified(small, [good], report)
    stall = time.monotonic() - began
    count = 2 * len(bad)
    eventually(lambda: len(small.letters()) - before >= count or None, "the dead letters", 60)
    letters = small.sql("select reason, sealed, event_id from dead_letter order by id")[before:]
    leaked = sum(SECRET in bytes(sealed) or SECRET in str(event).encode() for _, sealed, event in letters)
    logs = sum(SECRET in path.read_bytes() for path in (small.embedded.directory / "logs").glob("*.log"))
    said = [one for one in small.proofs.seen if SECRET.decode() in str(one)]
    report.expect(not leaked and not logs and not said, f"leaked: {leaked} letters, {logs} logs, {len(said)} events")
    report.expect(len(letters) == count, f"{len(letters)} dead letters for {count} messages")
    reasons = sorted({reason for reason, _, _ in letters})
    report.figure = {
        "messages": count,
        "reasons": reasons,
        "next_request_s": round(stall, 1),
        "bytes_leaked": leaked + logs,
    }
    report.runs = count
    small.sql("delete from dead_letter")
    return report


def flood(ground: Ground) -> Report:
    """24: a stolen key asks for everybody; how many are gone before the breaker stops it."""
    report, cap = Report(), 20
    overrides = {"breaker_share": 0.1, "breaker_floor": cap, "sweep_requests": 4}
    with ground.own(overrides=overrides) as small:
        people = small.register(60)
        forged = Publisher(small.kafka, dsse.SigningKey.from_seed(os.urandom(32)), AUDIENCE, "forger")
        for person in people:
            forged.delete(subject(person), regulation=Regulation.GDPR)
        forged.close()
        stolen = Publisher(small.kafka, key_of("backend"), AUDIENCE, "thief")
        for person in people:
            stolen.delete(subject(person), regulation=Regulation.GDPR)
        stolen.flush()
        stolen.close()
        eventually(lambda: small.one("select count(*) from breaker where closed_at is null") or None, "an open breaker")
        eventually(
            lambda: _still(small.one("select count(*) from work where step not in ('done', 'waiting')")), "a standstill"
        )
        gone = sum(not any(small.left(person).values()) for person in people)
        photos = gone * 2
        report.expect(photos <= cap, f"{photos} photos gone, the cap is {cap}")
        report.expect(len(small.letters()) == 60, "forged requests that are no dead letters")
        small.announced()
        report.expect(list(small.proofs.of(BreakerOpened)), "nobody was told")
        from expunge.breaker import close

        _in_transaction(small, close)
        eventually(
            lambda: small.one("select count(*) from breaker where closed_at is null") == 0 or None, "it to be closed"
        )
        report.figure = {
            "subjects_asked": 60, "forged_refused": len(small.letters()), "photos_cap": cap, "photos_gone": photos,
            "subjects_gone": gone, "overshoot": max(0, photos - cap),
        }  # fmt: skip
    return report


def _still(moving: int) -> bool | None:
    return True if moving == 0 else None


def _in_transaction(small, close) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    import asyncio

    async def run() -> None:
        ledger = small.embedded.deployment.ledger
        await ledger.open()
        try:
            for (scope,) in small.sql("select scope from breaker where closed_at is null"):
                async with ledger.transaction() as tx:
                    await close(tx, scope, key_of("ann"), "a drill", datetime.now(UTC))
        finally:
            await ledger.close()

    asyncio.run(run())
