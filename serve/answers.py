"""Small JSON answers: bytes, a tag over them, and 304 where the caller holds them already."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
from fastapi import Request, Response


def holds(request: Request, etag: str) -> bool:
    """True if the caller's ``If-None-Match`` names `etag`."""
    held = request.headers.get("if-none-match")
    if held is None:
        return False
    return held.strip() == "*" or etag in (one.strip().removeprefix("W/") for one in held.split(","))


def json_response(request: Request, content: dict[str, Any]) -> Response:
    """`content` as JSON with an ETag of its bytes."""
    body = orjson.dumps(content)
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if holds(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")
