"""The read API as an ASGI application: its routes, in the order in which a product backend meets them.

`application()` needs no server and no settings, so that `schemas/openapi.json` is generated from it; what it works with
is set as `app.state.services` by whoever serves it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from expunge import __version__, openings, verify
from expunge.api import problems, shapes, tokens
from expunge.api.door import TAKEN, Door, Handed
from expunge.api.middleware import Watched
from expunge.api.problems import Problem, ProblemDetails, answers
from expunge.api.tokens import Scope, Token
from expunge.domain.errors import Rejected, Retryable
from expunge.domain.lifecycle import FINAL, RequestState
from expunge.domain.lineage import ModelName
from expunge.domain.words import Provision
from expunge.ports import Clock, Ledger
from expunge.readside import Reader

T = TypeVar("T")

PAGE: Final = 50
"""Items of a page, unless `limit` says otherwise."""
MOST: Final = 200
DOCS: Final = "/docs"
DESCRIPTION: Final = """What became of a request, its certificates and receipts, and how models stand.

Requests are signed by their publisher (schemas/README.md says how) and may be handed in here instead of to Kafka; nothing
is signed on anybody's behalf. States and outcomes: schemas/OUTCOMES.md. Every error is a problem (RFC 9457) whose `type`
never changes its meaning. What a token may not see does not exist for it: the answers are the same."""

_CURSOR: Final = r"^[A-Za-z0-9_@.-]{1,140}$"
_IDEMPOTENCY: Final = r"^[\x21-\x7e]{1,255}$"
_CE: Final = ("ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-partitionkey")

RequestId = Annotated[UUID, Path(description="The id that the publisher drew and signed.")]
Cursor = Annotated[str | None, Query(description="`next` of the page before.", pattern=_CURSOR)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Most items.")]
IfNoneMatch = Annotated[
    str | None, Header(alias="If-None-Match", description="An ETag, to be spared what has not changed.")
]


@dataclass(frozen=True, slots=True)
class Services:
    """What the API works with. `ledger` refuses to write; only `door` has one that does."""

    ledger: Ledger
    reader: Reader
    door: Door
    clock: Clock


def application() -> FastAPI:
    """The application, without services."""
    app = FastAPIOffline(
        docs_url=DOCS,
        redoc_url=None,
        title="Expunge",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        separate_input_output_schemas=False,
        redirect_slashes=False,
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    for router in _routers():
        app.include_router(router)
    app.add_exception_handler(Problem, problems.on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, problems.on_validation)
    app.add_middleware(Watched, docs=DOCS)
    _with_problems(app.openapi())  # which the application keeps, and serves
    return app


def openapi() -> dict[str, Any]:
    """OpenAPI 3.1 of the API, as it serves it."""
    return application().openapi()


def _with_problems(document: dict[str, Any]) -> None:
    """Add the schema that every error refers to, which no route returns as a model."""
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= schema.pop("$defs", {}) | {"ProblemDetails": schema}


def _routers() -> tuple[APIRouter, ...]:
    return (_requests, _proofs, _models, _health)


async def _on_http(request: Request, error: Exception) -> Response:
    """As `problems.on_http`; Allow names every method of the path, where the framework names those of one route."""
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        routes = [route for router in _routers() for route in router.routes if isinstance(route, APIRoute)]
        allowed = {
            one for route in routes if route.matches(request.scope)[0] is not Match.NONE for one in route.methods or ()
        }
        if allowed:
            error.headers = {**(error.headers or {}), "Allow": ", ".join(sorted(allowed))}
    return await problems.on_http(request, error)


# Who asks

_bearer = HTTPBearer(auto_error=False, description="`expunge token create`; what it may do is its scopes.")


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(_services)]


def may(scope: Scope) -> Callable[..., Awaitable[Token]]:
    """A dependency: the token, if it has this scope. Raises `Problem` 401, 403."""

    async def holder(
        request: Request,
        services: Given,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Token:
        async with services.ledger.transaction() as tx:
            token = await tokens.holder(tx, given.credentials if given else "", services.clock())
        if token is None:
            raise Problem.unauthenticated()
        request.state.token_id = token.token_id
        if scope not in token.scopes:
            raise Problem(403, f"expected a token with the scope {scope}")
        return token

    return holder


async def _seen(services: Services, token: Token, request_id: UUID) -> tuple[bool, str | None, str | None, Any]:
    """What this token may see of a request: whether it has a row, its type, the code of its rejection, when. Raises
    `Problem` 404, the same for what is another's."""
    async with services.ledger.transaction() as tx:
        rows = await tx.fetch("api_request", request_id=request_id, publisher=token.publisher)
    if not rows:
        raise Problem.not_found()
    (found,) = rows
    return found[0], found[1], found[2], found[3]


async def _proof(made: Awaitable[T]) -> T:
    """A proof, or the problem that it has. Raises `Problem`: 404, 410, 422, 503."""
    try:
        return await made
    except Rejected as error:
        status = {"key-destroyed": 410, "ambiguous-image": 422, "too-large": 422}.get(error.code, 404)
        raise Problem(status, str(error), code=error.code) from None
    except Retryable:
        raise Problem.unavailable("expected a published checkpoint that covers it, there is none yet") from None


def _with_etag(data: bytes, media_type: str, given: str | None, name: str) -> Response:
    """The bytes, or 304 where `given` (If-None-Match, RFC 9110) names them."""
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    known = {one.strip().removeprefix("W/") for one in (given or "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=media_type, headers=headers)


# Requests

_requests = APIRouter(tags=["requests"])
_SUBMITTED: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The DSSE envelope that the publisher signed, or a structured CloudEvent that carries it.",
        "content": {
            TAKEN[0]: {
                "schema": {
                    "type": "object",
                    "required": ["payload", "payloadType", "signatures"],
                    "properties": {
                        "payload": {"type": "string", "contentEncoding": "base64"},
                        "payloadType": {"type": "string", "const": "application/vnd.expunge.request+json"},
                        "signatures": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 16,
                            "items": {
                                "type": "object",
                                "required": ["sig"],
                                "properties": {"keyid": {"type": "string"}, "sig": {"type": "string"}},
                            },
                        },
                    },
                }
            },
            TAKEN[1]: {
                "schema": {
                    "type": "object",
                    "required": ["specversion", "id", "source", "type", "datacontenttype"],
                    "properties": {
                        "specversion": {"const": "1.0"},
                        "id": {"type": "string", "format": "uuid"},
                        "source": {"type": "string"},
                        "type": {"type": "string"},
                        "datacontenttype": {"const": TAKEN[0]},
                        "partitionkey": {"type": "string"},
                        "data": {"type": "object"},
                        "data_base64": {"type": "string", "contentEncoding": "base64"},
                    },
                }
            },
        },
    }
}


@_requests.post(
    "/requests",
    status_code=202,
    response_model=shapes.Submitted,
    summary="Hand in a request that its publisher signed",
    responses=answers(400, 401, 403, 408, 409, 413, 415, 422, 503)
    | {202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "Where it is followed."}}}},
    openapi_extra=_SUBMITTED,
)
async def submit(
    request: Request,
    response: Response,
    services: Given,
    token: Annotated[Token, Depends(may(Scope.REQUESTS_SUBMIT))],
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=_IDEMPOTENCY,
            description="Any text of yours: the same key and body are taken once.",
        ),
    ] = None,
) -> shapes.Submitted:
    """Puts the body on Kafka unchanged; 202 once all replicas have it. Handing in the same bytes again is always safe: a
    request is known by its signed id. Where a caller cannot keep the bytes, `Idempotency-Key` says the same for it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in TAKEN:
        raise Problem(415, f"expected content of type {' or '.join(TAKEN)}", headers={"Accept-Post": ", ".join(TAKEN)})
    headers = {name: request.headers[name] for name in _CE if name in request.headers}
    handed = Handed(media_type, headers, await request.body())
    request_id = await services.door.submit(handed, token, idempotency_key)
    response.headers["Location"] = f"/requests/{request_id}"
    return shapes.Submitted(request=request_id, location=f"/requests/{request_id}")


@_requests.get(
    "/requests",
    response_model=shapes.RequestPage,
    summary="Requests that this token may see",
    responses=answers(401, 403, 422, 503),
)
async def list_requests(
    services: Given,
    token: Annotated[Token, Depends(may(Scope.REQUESTS_LIST))],
    state: Annotated[RequestState | None, Query(description="Only those that are in this state now.")] = None,
    cursor: Cursor = None,
    limit: Limit = PAGE,
) -> shapes.RequestPage:
    """In the order in which they were accepted. A cursor stays good: nothing that a walk has passed comes again, and what
    is accepted meanwhile comes at the end."""
    async with services.ledger.transaction() as tx:
        after = 0
        if cursor is not None:
            rows = await tx.fetch("api_page_start", request_id=_cursor_id(cursor), publisher=token.publisher)
            if not rows:
                raise _bad_cursor()
            after = rows[0][0]
        found = await tx.fetch(
            "api_requests", after=after, state=state and state.value, publisher=token.publisher, limit=limit + 1
        )
    lines = [
        shapes.RequestLine.model_validate(
            {
                "request": request_id,
                "type": kind,
                "class": request_class,
                "state": now,
                "final": now in FINAL,
                "accepted_at": accepted,
                "due": due,
                "results": {"data": data, "models": models},
            }
        )
        for request_id, kind, request_class, now, accepted, due, data, models in found[:limit]
    ]
    more = len(found) > limit
    return shapes.RequestPage(items=lines, next=_id_cursor(lines[-1].request) if more else None)


def _id_cursor(request_id: UUID) -> str:
    return base64.urlsafe_b64encode(request_id.bytes).decode().rstrip("=")


def _cursor_id(cursor: str) -> UUID:
    if not re.fullmatch(r"[A-Za-z0-9_-]{22}", cursor):
        raise _bad_cursor()
    return UUID(bytes=base64.urlsafe_b64decode(cursor + "=="))


def _bad_cursor() -> Problem:
    return Problem(422, "expected `next` of a page that this token was given", code="bad-cursor")


@_requests.get(
    "/requests/{request_id}",
    response_model=shapes.RequestStanding | shapes.RequestAnswer,
    summary="Where a request stands",
    responses=answers(401, 403, 404, 422, 503),
)
async def read_request(
    request_id: RequestId, services: Given, token: Annotated[Token, Depends(may(Scope.REQUESTS_READ))]
) -> shapes.RequestStanding | shapes.RequestAnswer:
    """404 also while a request is on its way from Kafka: what was handed in here is read within seconds, unless its
    signature or key was not good; then there is no answer, for nobody knows whose it is."""
    has_row, kind, code, at = await _seen(services, token, request_id)
    if has_row:
        return shapes.RequestStanding.of(await services.reader.status(request_id))
    return shapes.RequestAnswer(
        request=request_id,
        type=kind,
        state=RequestState.COMPLETED if code is None else RequestState.REJECTED,
        code=code,
        at=at,
    )


# Proofs

_proofs = APIRouter(tags=["proofs"])
_ZIP: Final = "application/zip"
_JSON: Final = "application/json"


def _bytes_of(media_type: str, what: str) -> dict[int | str, dict[str, Any]]:
    etag = {"ETag": {"schema": {"type": "string"}, "description": "SHA-256 of the bytes."}}
    schema = {"type": "string", "format": "binary"} if media_type == _ZIP else {"type": "object"}
    return {
        200: {"description": what, "content": {media_type: {"schema": schema}}, "headers": etag},
        304: {"description": "As If-None-Match has it.", "headers": etag},
    }


@_proofs.get(
    "/requests/{request_id}/certificates/{provision}",
    response_class=Response,
    summary="A certificate, as a bundle that is checked offline",
    responses=_bytes_of(_ZIP, "The bundle.") | answers(401, 403, 404, 410, 422, 503),
)
async def read_certificate(
    request_id: RequestId,
    provision: Provision,
    services: Given,
    token: Annotated[Token, Depends(may(Scope.PROOFS_READ))],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The newest of a provision. Its bytes change with the checkpoint that it is proved under, while others have yet to
    vouch for one; it says the same."""
    await _seen(services, token, request_id)
    files = await _proof(services.reader.certificate(request_id, provision))
    data = await asyncio.to_thread(verify.zip_bundle, files)
    return _with_etag(data, _ZIP, if_none_match, f"{request_id}-{provision}.zip")


@_proofs.get(
    "/requests/{request_id}/receipts/{tree}/{leaf}",
    response_class=Response,
    summary="The receipt of one artifact of a request",
    responses=_bytes_of(_JSON, "The receipt.") | answers(401, 403, 404, 410, 422, 503),
)
async def read_receipt(
    request_id: RequestId,
    tree: Annotated[int, Path(ge=0, le=65_535)],
    leaf: Annotated[int, Path(ge=0, le=2**48)],
    services: Given,
    token: Annotated[Token, Depends(may(Scope.PROOFS_READ))],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """By its place: tree and leaf, as the request's certificate has them."""
    await _seen(services, token, request_id)
    data = await _proof(services.reader.receipt(request_id, (tree, leaf)))
    return _with_etag(data, _JSON, if_none_match, f"{request_id}-{tree}-{leaf}.json")


@_proofs.post(
    "/requests/{request_id}/receipts",
    response_class=Response,
    summary="The receipt of one image of a request, for its person",
    responses=_bytes_of(_JSON, "The receipt.") | answers(400, 401, 403, 404, 410, 413, 415, 422, 503),
)
async def find_receipt(
    request_id: RequestId,
    wanted: shapes.ReceiptOf,
    services: Given,
    token: Annotated[Token, Depends(may(Scope.PROOFS_READ))],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """By a locator or the photo's SHA-256, in the body: neither belongs in a path. Changes nothing."""
    await _seen(services, token, request_id)
    data = await _proof(services.reader.receipt(request_id, openings.Wanted(wanted.image)))
    return _with_etag(data, _JSON, if_none_match, f"{request_id}.json")


# Models

_models = APIRouter(tags=["models"])


@_models.get(
    "/models", response_model=shapes.ModelPage, summary="Every model", responses=answers(401, 403, 422, 503)
)  # fmt: skip
async def list_models(
    services: Given,
    _token: Annotated[Token, Depends(may(Scope.MODELS_READ))],
    cursor: Cursor = None,
    limit: Limit = PAGE,
) -> shapes.ModelPage:
    """In the order in which they were registered."""
    async with services.ledger.transaction() as tx:
        if cursor is not None and not await tx.fetch("readside_model", name=cursor):
            raise _bad_cursor()
        rows = await tx.fetch("api_models", after=cursor, limit=limit + 1)
    names = (
        "model",
        "status",
        "metric_void",
        "purpose",
        "replaced_by",
        "clean_at",
        "registered_at",
        "due",
        "open_taints",
    )
    lines = [shapes.ModelLine.model_validate(dict(zip(names, row, strict=True))) for row in rows[:limit]]
    return shapes.ModelPage(items=lines, next=lines[-1].model if len(rows) > limit else None)


@_models.get(
    "/models/{name}",
    response_model=shapes.ModelStanding,
    summary="How a model stands now",
    responses=answers(401, 403, 404, 422, 503),
)
async def read_model(
    name: Annotated[ModelName, Path(description="NAME@VERSION")],
    services: Given,
    _token: Annotated[Token, Depends(may(Scope.MODELS_READ))],
) -> shapes.ModelStanding:
    """Relative to `log_size`: what the evidence log held when this was answered."""
    try:
        return shapes.ModelStanding.model_validate(await services.reader.standing(name))
    except Rejected:
        raise Problem.not_found() from None


# Health

_health = APIRouter(tags=["health"])


@_health.get("/livez", response_model=shapes.Health, summary="Whether the process answers")
async def livez() -> shapes.Health:
    """Nothing else is looked at."""
    return shapes.Health(status="ok", version=__version__)


@_health.get(
    "/readyz", response_model=shapes.Health, summary="Whether questions can be answered", responses=answers(503)
)
@_health.get("/health", response_model=shapes.Health, summary="As /readyz", responses=answers(503))
async def readyz(services: Given) -> shapes.Health:
    """Whether the database answers. Kafka is asked when a request is handed in."""
    async with services.ledger.transaction() as tx:
        await tx.fetch("ready")
    return shapes.Health(status="ok", version=__version__)
