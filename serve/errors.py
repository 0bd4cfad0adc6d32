"""The one table from an error to an HTTP status, and the problem+json body every error is told in (RFC 9457)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from market.errors import (
    BadInput,
    ChandleryError,
    ExchangeRefused,
    ExchangeUnavailable,
    Mismatch,
    NotFound,
    RateLimited,
    SchemaTooNew,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnusable,
)
from serve.words import close_match

MEDIA_TYPE = "application/problem+json"
_LOG = logging.getLogger("chandlery.serve")
#: Seconds a caller is asked to wait when the error itself does not say.
_RETRY_AFTER = 1


@dataclass(frozen=True)
class Problem:
    """How one kind of error looks to an HTTP client."""

    #: Last part of the problem's ``type``, stable between releases.
    name: str
    status: HTTPStatus
    title: str


#: The most exact class comes first: the first that an error is an instance of decides.
PROBLEMS: dict[type[Exception], Problem] = {
    NotFound: Problem("not-found", HTTPStatus.NOT_FOUND, "Not here"),
    BadInput: Problem("bad-input", HTTPStatus.BAD_REQUEST, "Not accepted"),
    StoreBusy: Problem("store-busy", HTTPStatus.SERVICE_UNAVAILABLE, "The store is busy"),
    StoreUnavailable: Problem("store-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "The database does not answer"),
    StoreReadOnly: Problem("store-read-only", HTTPStatus.SERVICE_UNAVAILABLE, "Writing is forbidden for now"),
    RateLimited: Problem("rate-limited", HTTPStatus.SERVICE_UNAVAILABLE, "The exchange limits our requests"),
    ExchangeUnavailable: Problem("exchange-unavailable", HTTPStatus.BAD_GATEWAY, "The exchange did not answer"),
    ExchangeRefused: Problem("exchange-refused", HTTPStatus.BAD_GATEWAY, "The exchange refused"),
    SchemaTooNew: Problem("schema-too-new", HTTPStatus.INTERNAL_SERVER_ERROR, "The database is newer than we"),
    StoreUnusable: Problem("store-unusable", HTTPStatus.INTERNAL_SERVER_ERROR, "The store cannot be used"),
    Mismatch: Problem("mismatch", HTTPStatus.INTERNAL_SERVER_ERROR, "Two sources do not agree"),
}
UNKNOWN_ROUTE = Problem("unknown-route", HTTPStatus.NOT_FOUND, "No such route")
WRONG_METHOD = Problem("wrong-method", HTTPStatus.METHOD_NOT_ALLOWED, "This route does not take that method")
INTERNAL = Problem("internal", HTTPStatus.INTERNAL_SERVER_ERROR, "A fault of this service")


def all_problems() -> list[Problem]:
    """Every problem this service can answer with, for the documentation."""
    return [*PROBLEMS.values(), UNKNOWN_ROUTE, WRONG_METHOD, INTERNAL]


def problem_type(problem: Problem) -> str:
    """The ``type`` of a problem: a relative address that leads to its line in the documentation."""
    return f"/docs#problem-{problem.name}"


def problem_response(
    problem: Problem, detail: str, *, headers: dict[str, str] | None = None, **members: Any
) -> Response:
    """A problem+json answer; `members` are ``field``, ``value`` and ``accepted`` where an input is at fault."""
    body = {
        "type": problem_type(problem),
        "title": problem.title,
        "status": problem.status.value,
        "detail": detail,
        **members,
    }
    return Response(
        orjson.dumps(body, default=str),
        problem.status,
        {"Cache-Control": "no-store", **(headers or {})},
        MEDIA_TYPE,
    )


def response_for(error: ChandleryError) -> Response:
    """The answer to one of our own errors."""
    problem = next((PROBLEMS[kind] for kind in PROBLEMS if isinstance(error, kind)), INTERNAL)
    members: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, BadInput):
        members = {"field": error.field, "value": error.value, "accepted": error.accepted}
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        wait = error.retry_after if isinstance(error, RateLimited) else _RETRY_AFTER
        headers["Retry-After"] = str(max(1, round(wait)))
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _LOG.error("%s: %s", type(error).__name__, error)
    return problem_response(problem, str(error), headers=headers, **members)


async def _own(request: Request, error: Exception) -> Response:
    if not isinstance(error, ChandleryError):
        raise error
    return response_for(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own finding (a required parameter is missing) in our form."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    field = str(first["loc"][-1])
    missing = first["type"] == "missing"
    accepted = "a value; this parameter is required" if missing else str(first["msg"])
    return response_for(BadInput(field, None if missing else first.get("input"), accepted))


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = headers.get("Allow", "GET")
        return problem_response(
            WRONG_METHOD,
            f"{request.method} is not accepted at {path}; expected {allowed}",
            headers=headers,
            field="method",
            value=request.method,
            accepted=allowed,
        )
    routes = sorted({str(getattr(route, "path", "")) for route in request.app.state.documented})
    detail = f"there is nothing at {path}{close_match(path, routes)}"
    return problem_response(
        UNKNOWN_ROUTE, detail, headers=headers, field="path", value=path, accepted=", ".join(routes)
    )


async def _fault(request: Request, error: Exception) -> Response:
    """Anything unforeseen: the server raises it again for its log, the client learns no internals."""
    return problem_response(INTERNAL, "the request could not be answered; the service's log says why")


def add_error_handlers(app: FastAPI) -> None:
    """Tell every error of `app` as problem+json."""
    app.add_exception_handler(ChandleryError, _own)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)
