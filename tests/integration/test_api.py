"""The read API on a real database: who may see what, what it says, and that it says no more."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from expunge import metrics, verify
from expunge.adapters.ledger.postgres import PostgresLedger
from expunge.api import tokens
from expunge.api.application import openapi
from expunge.api.tokens import Scope
from expunge.domain import opening, request
from expunge.domain.errors import Rejected
from expunge.domain.limits import MESSAGE_BYTES
from expunge.domain.request import ENVELOPE_TYPE
from expunge.domain.words import Provision, Role
from tests.apiworld import Api, is_problem, same, served
from tests.coordination import PUBLISHER, Deployment, Party, album, deployed, digest, subject

OTHER = Party.named("other backend")


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database, tmp_path) as made:
        yield made


@pytest.fixture
async def api(world: Deployment) -> AsyncIterator[Api]:
    async with served(world) as made:
        yield made


def operations() -> list[tuple[str, str]]:
    """Every operation that asks for a token: method and path."""
    paths: dict[str, dict[str, Any]] = openapi()["paths"]
    return [
        (method.upper(), path)
        for path, found in paths.items()
        for method, operation in found.items()
        if operation.get("security")
    ]


def filled(path: str) -> str:
    for name, value in {
        "request_id": str(uuid4()), "provision": "data", "name": "face@1", "tree": "0", "leaf": "0",
    }.items():  # fmt: skip
        path = path.replace("{" + name + "}", value)
    return path


def test_all_but_health_asks_for_a_token() -> None:
    asking = {path for _, path in operations()}
    assert set(openapi()["paths"]) - asking == {"/livez", "/readyz", "/health"}


async def test_who_shows_no_good_token_is_told_the_same_whatever_is_wrong(api: Api) -> None:
    good = await api.token()
    revoked = await api.token()
    await tokens.revoke(api.world.ledger, revoked.split("_")[1], at=api.world.clock())
    expired = await api.token(days=0)
    api.world.clock.pass_(seconds=1)
    guess = "_".join((*good.split("_", 2)[:2], "A" * 43))
    shown = (None, "", "nonsense", guess, "exp_000000000000_" + "A" * 43, revoked, expired)
    answers = [await api.ask(method, filled(path), token) for method, path in operations() for token in shown]
    assert len(answers) == len(shown) * len(operations())
    same(answers)
    is_problem(answers[0], 401, "unauthenticated")
    assert answers[0].headers["www-authenticate"] == "Bearer"


async def test_a_token_does_what_its_scopes_say_and_no_more(api: Api) -> None:
    without = {scope: await api.token(*(set(Scope) - {scope})) for scope in Scope}
    alone = {scope: await api.token(scope) for scope in Scope}
    asked = set()
    for method, path in operations():
        answers = {scope: await api.ask(method, filled(path), token) for scope, token in without.items()}
        (scope,) = (one for one, answer in answers.items() if answer.status_code == 403)
        is_problem(answers[scope], 403, "out-of-scope")
        assert (await api.ask(method, filled(path), alone[scope])).status_code != 403
        asked.add(scope)
    assert asked == set(Scope)


async def test_what_is_not_there_and_what_is_anothers_cannot_be_told_apart(api: Api) -> None:
    world = api.world
    world.trust_party(OTHER, Role.PUBLISHER)
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    mine = await api.token(publisher=PUBLISHER.name)
    theirs = await api.token(publisher=OTHER.name)
    for path in ("", "/certificates/data", "/receipts/0/0"):
        assert (await api.get(f"/requests/{asked.id}{path}", mine)).status_code == 200
        same([await api.get(f"/requests/{one}{path}", theirs) for one in (asked.id, uuid4())])
    wanted = {"image": digest("p1-0")}
    same([await api.ask("POST", f"/requests/{one}/receipts", theirs, json=wanted) for one in (asked.id, uuid4())])
    is_problem(await api.get(f"/requests/{asked.id}", theirs), 404, "not-found")
    assert (await api.get("/requests", theirs)).json() == {"items": [], "next": None}
    assert [one["request"] for one in (await api.get("/requests", mine)).json()["items"]] == [asked.id]


async def test_a_request_is_followed_from_acceptance_to_its_certificates(api: Api) -> None:
    world = api.world
    await world.seed(*album(1), *album(2))
    asked = world.deletion(1)
    token = await api.token()
    is_problem(await api.get(f"/requests/{asked.id}", token), 404, "not-found")
    await world.take(asked)
    found = (await api.get(f"/requests/{asked.id}", token)).json()
    assert (found["kind"], found["state"], found["final"], found["results"]["data"]) == (
        "erasing",
        "accepted",
        False,
        None,
    )
    is_problem(await api.get(f"/requests/{asked.id}/certificates/data", token), 404, "no-certificate")
    await world.settle()
    found = (await api.get(f"/requests/{asked.id}", token)).json()
    assert (found["state"], found["final"], found["results"]) == (
        "completed",
        True,
        {"data": "complete", "models": "complete"},
    )
    assert [one["provision"] for one in found["certificates"]] == ["data"]
    assert found["class"] == "people"
    assert str(subject(1)) not in json.dumps(found)


async def test_a_hold_is_completed_at_once_and_a_rejected_request_says_why(api: Api) -> None:
    world = api.world
    await world.seed(*album(1))
    hold = world.hold(request.BySubject(subject_ref=subject(1)))
    stranger, late = world.deletion(99), world.deletion(1, audience="another")
    world.ask(hold, stranger, late)
    await world.settle()
    token = await api.token(publisher=PUBLISHER.name)
    states = {}
    for one in (hold, stranger, late):
        found = (await api.get(f"/requests/{one.id}", token)).json()
        assert (found["kind"], found["type"], found["final"]) == ("answered", one.type, True)
        states[one.id] = (found["state"], found["code"])
    assert states == {
        hold.id: ("completed", None),
        stranger.id: ("rejected", "unknown-subject"),
        late.id: ("rejected", "wrong-audience"),
    }
    world.trust_party(OTHER, Role.PUBLISHER)
    is_problem(await api.get(f"/requests/{hold.id}", await api.token(publisher=OTHER.name)), 404, "not-found")


async def test_a_repeat_that_is_refused_does_not_undo_what_was_carried_out(api: Api) -> None:
    world = api.world
    await world.seed(*album(1))
    hold = world.hold(request.BySubject(subject_ref=subject(1)))
    await world.take(hold)
    world.clock.pass_(days=400)
    await world.take(hold)
    assert world.codes(hold) == ["expired"]
    token = await api.token()
    assert (await api.get(f"/requests/{hold.id}", token)).json()["state"] == "completed"


async def test_a_certificate_verifies_offline_and_is_spared_who_has_it(api: Api, tmp_path: Path) -> None:
    world = api.world
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    token = await api.token()
    path = f"/requests/{asked.id}/certificates/data"
    answer = await api.get(path, token)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    (tmp_path / "bundle.zip").write_bytes(answer.content)
    assert verify.verify(tmp_path / "bundle.zip", world.trust).ok
    etag = answer.headers["etag"]
    assert (await api.get(path, token)).headers["etag"] == etag
    for given in (etag, f'"other", W/{etag}', "*"):
        spared = await api.get(path, token, headers={"If-None-Match": given})
        assert (spared.status_code, spared.content, spared.headers["etag"]) == (304, b"", etag)
    assert (await api.get(path, token, headers={"If-None-Match": '"other"'})).content == answer.content
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert str(subject(1)).encode() not in b"".join(map(archive.read, archive.namelist()))


async def test_a_receipt_is_found_by_photo_or_place_and_verifies(api: Api) -> None:
    world = api.world
    await world.seed(*album(1, hashed=True))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    token = await api.token()
    found = await api.ask("POST", f"/requests/{asked.id}/receipts", token, json={"image": digest("p1-0")})
    assert found.status_code == 200, found.text
    files = await world.reader.certificate(UUID(asked.id), Provision.DATA)
    assert opening.verify(found.content, world.trust, sweep=files, copy=bytes.fromhex(digest("p1-0"))).ok
    by_place = await api.get(f"/requests/{asked.id}/receipts/0/0", token)
    assert by_place.status_code == 200
    spared = await api.get(
        f"/requests/{asked.id}/receipts/0/0", token, headers={"If-None-Match": by_place.headers["etag"]}
    )
    assert spared.status_code == 304
    unknown = await api.ask("POST", f"/requests/{asked.id}/receipts", token, json={"image": "f" * 64})
    is_problem(unknown, 404, "unknown-image")
    is_problem(await api.get(f"/requests/{asked.id}/receipts/9/9", token), 404, "unknown-leaf")


async def test_a_certificate_whose_key_is_destroyed_is_gone(api: Api) -> None:
    world = api.world
    await world.seed(*album(1))
    asked = world.deletion(1)
    world.ask(asked)
    await world.settle()
    world.keys.destroy(world.clock.now.date())
    answer = await api.get(f"/requests/{asked.id}/certificates/data", await api.token())
    is_problem(answer, 410, "key-destroyed")


async def test_models_say_how_they_stand_at_a_position_of_the_log(api: Api) -> None:
    world = api.world
    await world.seed(*album(1), *album(2))
    await world.trained("face@1", album(1))
    await world.trained("door@1", album(2))
    token = await api.token(Scope.MODELS_READ)
    clean = (await api.get("/models/face@1", token)).json()
    assert (clean["status"], clean["clean"]) == ("clean", True)
    world.ask(world.deletion(1))
    await world.settle()
    tainted = (await api.get("/models/face@1", token)).json()
    assert tainted["clean"] is False
    assert tainted["status"] in {"tainted", "remediating"}
    assert tainted["log_size"] > clean["log_size"]
    assert tainted["taints"][0]["path"] == ["face@1"]
    is_problem(await api.get("/models/none@1", token), 404, "not-found")
    page = (await api.get("/models", token, params={"limit": 1})).json()
    rest = (await api.get("/models", token, params={"cursor": page["next"]})).json()
    assert [one["model"] for one in (*page["items"], *rest["items"])] == ["face@1", "door@1"]
    assert rest["next"] is None
    is_problem(await api.get("/models", token, params={"cursor": "none@1"}), 422, "bad-cursor")


async def test_a_walk_over_pages_meets_everything_once_while_more_comes_in(api: Api) -> None:
    world = api.world
    await world.seed(*(photo for person in range(1, 8) for photo in album(person, 1)))
    asked = [world.deletion(person) for person in range(1, 6)]
    await world.take(*asked)
    token = await api.token()
    met: list[str] = []
    cursor: str | None = None
    late = [world.deletion(6), world.deletion(7)]
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await api.get("/requests", token, params=params)).json()
        met += [one["request"] for one in page["items"]]
        if len(met) == 2:
            await world.take(*late)
            await world.settle()  # what was met moves on; what was not is where it was
        cursor = page["next"]
        if cursor is None:
            break
    assert met == [one.id for one in (*asked, *late)]
    done = (await api.get("/requests", token, params={"state": "completed"})).json()["items"]
    assert len(done) == 7
    assert (await api.get("/requests", token, params={"state": "held"})).json()["items"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "malformed"),
        ("limit=201", "malformed"),
        ("limit=many", "malformed"),
        ("state=gone", "malformed"),
        ("cursor=!", "malformed"),
        ("cursor=short", "bad-cursor"),
        ("cursor=AAAAAAAAAAAAAAAAAAAAAA", "bad-cursor"),
    ],
)
async def test_bad_parameters_are_named_and_never_repeated(api: Api, query: str, code: str) -> None:
    answer = await api.get(f"/requests?{query}", await api.token())
    found = is_problem(answer, 422, code)
    if code == "malformed":
        assert found["errors"][0]["where"] == ["query", query.partition("=")[0]]
    assert "many" not in answer.text
    assert "gone" not in answer.text


async def test_every_refusal_is_a_problem(api: Api) -> None:
    token = await api.token()
    is_problem(await api.get("/nowhere", token), 404, "no-such-path")
    is_problem(await api.get("/requests/", token), 404, "no-such-path")
    is_problem(await api.get("/requests/not-a-uuid", token), 422, "malformed")
    wrong = await api.ask("DELETE", "/requests", token)
    is_problem(wrong, 405, "method-not-allowed")
    assert wrong.headers["allow"] == "GET, POST"
    assert (await api.ask("DELETE", "/livez", token)).headers["allow"] == "GET"
    is_problem(await api.ask("POST", "/requests", token, content=b"{}"), 415, "unsupported-media-type")
    large = {"content": b" " * (MESSAGE_BYTES + 1), "headers": {"Content-Type": ENVELOPE_TYPE}}
    is_problem(await api.ask("POST", "/requests", token, **large), 413, "oversized")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    unannounced = {"content": endless(), "headers": {"Content-Type": ENVELOPE_TYPE}}
    is_problem(await api.ask("POST", "/requests", token, **unannounced), 413, "oversized")
    receipts = f"/requests/{uuid4()}/receipts"
    is_problem(await api.ask("POST", receipts, token, content=b" " * (MESSAGE_BYTES + 1)), 413, "oversized")
    is_problem(await api.ask("POST", receipts, token, json={"photo": "x"}), 422, "malformed")


async def test_a_failure_of_ours_says_nothing_of_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr("expunge.readside.Reader.status", broken)
    world = api.world
    await world.seed(*album(1))
    asked = world.deletion(1)
    await world.take(asked)
    with capture_logs() as lines:
        answer = await api.get(f"/requests/{asked.id}", await api.token())
    is_problem(answer, 500, "internal")
    assert "secret" not in answer.text + json.dumps(lines)
    assert {"event": "unexpected", "error": "RuntimeError"}.items() <= lines[0].items()


async def test_a_database_that_does_not_answer_is_503_and_not_ready(world: Deployment, tmp_path: Path) -> None:
    async with served(world) as api:
        token = await api.token()
        assert (await api.client.get("/readyz")).json()["status"] == "ok"
        services = api.client._transport.app.state.services  # type: ignore[attr-defined] # httpx hides it
        broken = PostgresLedger("host=127.0.0.1 port=9 user=nobody", wait_seconds=0.2)
        object.__setattr__(services, "ledger", broken)
        await broken._pool.open(wait=False)
        try:
            for path in ("/readyz", "/health", "/models"):
                answer = await api.get(path, token)
                is_problem(answer, 503, "unavailable")
                assert int(answer.headers["retry-after"]) > 0
            assert (await api.client.get("/livez")).status_code == 200
        finally:
            await broken.close()


async def test_questions_are_asked_on_connections_that_refuse_to_write(world: Deployment) -> None:
    reading = PostgresLedger(world.dsn, read_only=True)
    await reading.open()
    try:
        async with reading.transaction() as tx:
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await tx.execute("api_revoke_token", token_id="0" * 12, at=world.clock())
    finally:
        await reading.close()


async def test_a_token_is_kept_as_its_digest_alone(api: Api) -> None:
    token = await api.token()
    kept = api.world.sql("select row_to_json(t)::text, digest from api_token t")
    assert token.split("_", 2)[2] not in str(kept)
    assert len(kept[0][1]) == 32


async def test_a_token_for_nobody_or_for_nothing_is_not_drawn(world: Deployment) -> None:
    for scopes, publisher, code in (((), None, "no-scope"), ((Scope.MODELS_READ,), "nobody", "unknown-publisher")):
        with pytest.raises(Rejected) as refused:
            await tokens.create(
                world.ledger, name="x", scopes=scopes, publisher=publisher, at=world.clock(), until=None
            )  # fmt: skip
        assert refused.value.code == code
    with pytest.raises(Rejected, match="the id of a token"):
        await tokens.revoke(world.ledger, "0" * 12, at=world.clock())


async def test_logs_and_metrics_know_routes_and_no_ids(api: Api) -> None:
    world = api.world
    await world.seed(*album(1))
    asked = world.deletion(1)
    await world.take(asked)
    token = await api.token()
    labels = {"route": "/requests/{request_id}", "method": "GET", "status": "2xx"}
    before = REGISTRY.get_sample_value("expunge_api_requests_total", labels) or 0
    structlog.reset_defaults()
    with capture_logs() as lines:
        await api.get(f"/requests/{asked.id}?{subject(1)}", token)
        await api.get(f"/{subject(1)}", token)
        await api.ask("BREW", "/models", token)
    assert REGISTRY.get_sample_value("expunge_api_requests_total", labels) == before + 1
    assert [one["route"] for one in lines] == ["/requests/{request_id}", "unmatched", "/models"]
    assert [one["method"] for one in lines] == ["GET", "GET", "other"]
    assert all(one.keys() == {"event", "log_level", "route", "method", "status", "ms", "token"} for one in lines)
    told = json.dumps(lines)
    assert not [one for one in (asked.id, str(subject(1)), token.split("_", 2)[2]) if one in told]
    for one in REGISTRY.collect():
        if one.name.startswith("expunge_api"):
            routes = {*openapi()["paths"], "unmatched", "/docs"}
            assert {str(sample.labels["route"]) for sample in one.samples} <= routes
            for name in ("method", "status"):
                assert {sample.labels[name] for sample in one.samples if name in sample.labels} <= metrics.VALUES[name]


async def test_the_documentation_loads_nothing_from_elsewhere(api: Api) -> None:
    page = await api.client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert (await api.client.get(f"/static-offline-docs/{name}")).status_code == 200
    assert (await api.client.get("/openapi.json")).json()["openapi"].startswith("3.1")
