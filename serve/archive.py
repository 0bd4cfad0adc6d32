"""``/v1/archive``: which series the Parquet archive holds."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from serve import examples
from serve.answers import json_response
from serve.parameters import StrictRoute
from serve.records import manifest_record
from store.archive.archive import Archive

router = APIRouter(prefix="/v1", tags=["archive"], route_class=StrictRoute)


@router.get("/archive", summary="Archived series", response_class=Response, responses={200: examples.ARCHIVE})
async def read_archive(request: Request) -> Response:
    """One line per archived series: rows, first and last open time, files, size and dataset fingerprint.

    Empty where nothing is archived or the service runs without an archive.
    """
    archive: Archive | None = request.app.state.archive
    # Reading manifests is file work; it must not hold up other requests.
    manifests = [] if archive is None else await asyncio.to_thread(archive.manifests)
    return json_response(request, {"data": [manifest_record(one) for one in manifests]})
