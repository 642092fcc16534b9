"""Errors as RFC 9457 problem details. A problem never repeats what was sent: names of our own fields and kinds of mistake
only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from expunge.domain import canonical

MEDIA_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = 5
"""What `Retry-After` says where trying again is the answer, s."""

CODES: Final = {
    400: "bad-request",
    401: "unauthenticated",
    403: "out-of-scope",
    404: "not-found",
    405: "method-not-allowed",
    408: "timeout",
    409: "in-flight",
    410: "key-destroyed",
    413: "oversized",
    415: "unsupported-media-type",
    422: "malformed",
    500: "internal",
    503: "unavailable",
}
"""The code of a status where nothing more is known."""


class Mistake(BaseModel):
    """One thing that is wrong with a parameter. `where`: `path`, `query`, `header` or `body`, then a name of ours."""

    where: list[str]
    kind: str


class ProblemDetails(BaseModel):
    """RFC 9457. `type`: `urn:expunge:problem:` and a code that never changes its meaning."""

    type: str = Field(pattern=r"^urn:expunge:problem:[a-z0-9-]+$")
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    errors: list[Mistake] | None = None


class Problem(HTTPException):
    """An answer that is no success. `code`: a stable reason code; `headers` go out with it. A kind of the framework's own
    error, because whatever else is raised while a body is read becomes a 400 there."""

    def __init__(
        self, status: int, detail: str, *, code: str | None = None, headers: Mapping[str, str] | None = None,
        errors: Sequence[Mistake] = (),
    ) -> None:  # fmt: skip
        super().__init__(status, detail, dict(headers or {}))
        self.code = code or CODES.get(status, "bad-request")
        self.errors = list(errors)

    @classmethod
    def not_found(cls) -> Problem:
        """One answer, byte for byte, for what is not there and for what this token may not see."""
        return cls(404, "expected something that exists and that this token may see")

    @classmethod
    def unauthenticated(cls) -> Problem:
        """One answer for no token, an unknown one, a revoked one, an expired one."""
        return cls(
            401, "expected Authorization: Bearer with a token that is valid", headers={"WWW-Authenticate": "Bearer"}
        )

    @classmethod
    def unavailable(cls, what: str) -> Problem:
        return cls(503, f"{what}; try again", headers={"Retry-After": str(RETRY_SECONDS)})

    def response(self) -> Response:
        """As it goes out."""
        body: dict[str, Any] = {
            "type": f"urn:expunge:problem:{self.code}",
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = [one.model_dump() for one in self.errors]
        return Response(canonical.dumps(body), self.status_code, headers=self.headers, media_type=MEDIA_TYPE)


async def on_problem(_request: Request, error: Exception) -> Response:
    """Handler of `Problem`."""
    assert isinstance(error, Problem)  # noqa: S101 - for the type checker: registered for nothing else
    return error.response()


async def on_http(_request: Request, error: Exception) -> Response:
    """Handler of what the framework says itself: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    said = {
        404: "expected a path of this API: see /openapi.json",
        405: "expected a method that this path has: see Allow",
    }
    detail = said.get(error.status_code, "expected a request that this API understands")
    if error.status_code == HTTPStatus.NOT_FOUND:
        return Problem(404, detail, code="no-such-path").response()
    return Problem(error.status_code, detail, headers=error.headers).response()


async def on_validation(_request: Request, error: Exception) -> Response:
    """Handler of parameters that do not fit: where and what kind, nothing of what came."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    mistakes = [
        Mistake(where=[str(part) for part in one["loc"] if isinstance(part, str)][:2], kind=str(one["type"]))
        for one in error.errors()[:8]
    ]
    return Problem(422, "expected parameters that fit /openapi.json", errors=mistakes).response()


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that an operation may answer with, for OpenAPI."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}, "example": _example(status)}
            },
        }
        for status in statuses
    }


def _example(status: int) -> dict[str, Any]:
    """A problem of this status, with the code that it has where nothing more is known."""
    return {
        "type": f"urn:expunge:problem:{CODES[status]}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": "expected ..., got ...",
    }
