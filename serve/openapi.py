"""The OpenAPI document: what FastAPI derives from the routes, with our one form of errors in place of its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.errors import MEDIA_TYPE
from serve.examples import PROBLEM

DESCRIPTION = (
    "Candles of crypto exchanges, kept for good and provably complete. Times are UTC; ranges are `[start, end)`; "
    "instants in answers are epoch milliseconds. Every error is `application/problem+json` and names the field, "
    "the value and what would be accepted."
)
TAGS = [
    {"name": "candles", "description": "The data itself."},
    {"name": "series", "description": "What is stored."},
    {"name": "coverage", "description": "What is known, and what is missing."},
    {"name": "instruments", "description": "What can be traded where."},
    {"name": "archive", "description": "What the Parquet archive holds."},
    {"name": "service", "description": "Is it alive, can it answer."},
]
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable name of the problem; leads to its documentation."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence for a person."},
        "field": {"type": "string", "description": "The parameter at fault, where one is."},
        "value": {"description": "What was sent."},
        "accepted": {"type": "string", "description": "What would be accepted."},
    },
}
_COMMON = {
    "400": "A parameter is missing, unknown, repeated or not accepted",
    "404": "The exchange, symbol or timeframe is not stored",
    "503": "The store is busy; try again after `Retry-After` seconds",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, made once and kept."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.state.documented,
            tags=TAGS,
        )
        made.setdefault("components", {})["schemas"] = {"Problem": _PROBLEM_SCHEMA}
        for operations in made["paths"].values():
            for operation in operations.values():
                _with_problems(operation)
        app.openapi_schema = made
    return app.openapi_schema


def _with_problems(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own form of refusal; ours is 400
    wanted = _COMMON if "parameters" in operation else {"400": _COMMON["400"], "503": _COMMON["503"]}
    for status, description in wanted.items():
        responses.setdefault(
            status,
            {
                "description": description,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": PROBLEM}},
            },
        )
