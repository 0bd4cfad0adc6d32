"""``/v1/candles`` and ``/v1/candles/batch``."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
import orjson
import pyarrow as pa
from fastapi import APIRouter, Depends, Request, Response

from market.candle import no_candles
from market.errors import NotFound
from serve import examples
from serve.answers import holds
from serve.candle_query import CandleQuery, batch_query, candle_query
from serve.columns import CLOSED
from serve.cursor import Place, write_cursor
from serve.formats import ENCODERS, Format
from serve.parameters import StrictRoute
from serve.records import compact, pairs, series_names
from store.answer import CandleAnswer
from store.cache.memory import MEMORY_TIER
from store.market_data import MarketData
from store.tiers.encoded import Encoded

router = APIRouter(prefix="/v1", tags=["candles"], route_class=StrictRoute)
#: Above this many rows the encoding leaves the event loop, so that short answers need not wait for it.
_ROWS_IN_LOOP = 5_000
#: What headers and the question take in memory beside the body, about.
_HEADERS_BYTES = 2_000


@dataclass(frozen=True)
class _Sent:
    """An answer as it is sent, but for tier and age, which are not the same every time."""

    body: bytes
    headers: Mapping[str, str]
    media_type: str
    #: Of the answer that was made.
    tier: str
    age_ms: int

    def response(self, request: Request, age_ms: int | None) -> Response:
        """The bytes, or 304 for a caller who has them.

        :param age_ms: of an answer that is given once more, from process memory; None for one just made.
        """
        headers = dict(self.headers)
        headers["X-Chandlery-Tier"] = self.tier if age_ms is None else MEMORY_TIER
        headers["X-Chandlery-Age-Ms"] = str(self.age_ms if age_ms is None else age_ms)
        if holds(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


@router.get(
    "/candles",
    summary="Candles of one series",
    response_class=Response,
    responses={200: examples.CANDLES},
)
async def read_candles(request: Request, query: Annotated[CandleQuery, Depends(candle_query)]) -> Response:
    """Candles with `start` <= open time < `end`, oldest first, in one of four formats.

    With `start`, the first `limit` rows and a cursor for the rest; without it, the newest `limit` before `end`.
    Timeframes above one minute are derived from stored 1m candles (`meta.derived_from`); `missing` counts the
    minutes of a row that are absent and not known to be empty. The body depends on the data alone: tier and age
    are headers.
    """
    market_data: MarketData = request.app.state.market_data
    # The link to the next page repeats the question as it was asked.
    question = ("candles", request.url.path, request.url.query, query)
    sent, again = await market_data.encoded(
        question, query.series, lambda: _one_answer(market_data, request, query)
    )
    return sent.response(request, again)


async def _one_answer(market_data: MarketData, request: Request, query: CandleQuery) -> Encoded[_Sent]:
    answer = await market_data.candles(
        query.series[0],
        start_ms=query.start_ms,
        end_ms=query.end_ms,
        limit=query.limit,
        as_of_ms=query.as_of_ms,
        include_forming=query.include_forming,
    )
    meta = _meta(answer, query)
    headers = {
        "ETag": _etag(query, [answer], [meta]),
        "Cache-Control": "no-cache",
        "X-Fingerprint": answer.fingerprint,
    }
    if meta["next_cursor"] is not None:
        headers["X-Next-Cursor"] = meta["next_cursor"]
        headers["Link"] = f'<{_next_page(request, meta["next_cursor"])}>; rel="next"'
    body = await _encoded(query, answer.table.select(query.columns), meta)
    sent = _Sent(body, headers, query.format.media_type, answer.tier, answer.age_ms)
    return Encoded(sent, len(body) + _HEADERS_BYTES, None if query.as_of_ms is not None else [answer])


@router.get(
    "/candles/batch",
    summary="Candles of many symbols",
    response_class=Response,
    responses={200: examples.BATCH},
)
async def read_batch(request: Request, query: Annotated[CandleQuery, Depends(batch_query)]) -> Response:
    """The same range of up to 100 symbols of one exchange in one call, as JSON.

    `answers` holds one answer per symbol in the order asked, each as `/v1/candles` gives it; its `next_cursor` is
    for `/v1/candles`. An unknown symbol fails the whole call.
    """
    market_data: MarketData = request.app.state.market_data
    question = ("batch", query)
    sent, age_ms = await market_data.encoded(question, query.series, lambda: _many_answers(market_data, query))
    return sent.response(request, age_ms)


async def _many_answers(market_data: MarketData, query: CandleQuery) -> Encoded[_Sent]:
    try:
        answers = await market_data.batch(
            query.series,
            start_ms=query.start_ms,
            end_ms=query.end_ms,
            limit=query.limit,
            as_of_ms=query.as_of_ms,
            include_forming=query.include_forming,
        )
    except NotFound as error:
        if error.field != "symbol":
            raise
        # The caller knows it by the name of this route's parameter.
        raise NotFound("symbols", error.value, hint=error.accepted) from error
    metas = [_meta(answer, query) for answer in answers]
    headers = {"ETag": _etag(query, answers, metas), "Cache-Control": "no-cache"}
    parts = [
        await _encoded(query, answer.table.select(query.columns), meta)
        for answer, meta in zip(answers, metas, strict=True)
    ]
    body = b'{"answers":[' + b",".join(parts) + b"]}"
    tiers = ",".join(sorted({answer.tier for answer in answers}))
    sent = _Sent(body, headers, Format.JSON.media_type, tiers, max(answer.age_ms for answer in answers))
    return Encoded(sent, len(body) + _HEADERS_BYTES, None if query.as_of_ms is not None else answers)


async def _encoded(query: CandleQuery, table: pa.Table, meta: Mapping[str, Any]) -> bytes:
    encode = ENCODERS[query.format]
    if table.num_rows <= _ROWS_IN_LOOP:
        return encode(table, meta)
    return await asyncio.to_thread(encode, table, meta)


def _meta(answer: CandleAnswer, query: CandleQuery) -> dict[str, Any]:
    cursor = None
    if answer.next_start is not None:
        place = Place(start_ms=answer.next_start, end_ms=query.end_ms)
        cursor = write_cursor(place, answer.series, query.as_of_ms, query.include_forming)
    return {
        **series_names(answer.series),
        "start": answer.interval.start,
        "end": answer.interval.end,
        "rows": answer.table.num_rows,
        "complete": answer.complete,
        "gaps": pairs(answer.gaps),
        "coverage": compact(answer.coverage),
        "fingerprint": answer.fingerprint,
        "next_cursor": cursor,
        "derived_from": answer.derived_from,
        "as_of": query.as_of_ms,
    }


def _etag(query: CandleQuery, answers: list[CandleAnswer], metas: list[dict[str, Any]]) -> str:
    """A strong tag: equal tags mean equal bytes.

    The fingerprint inside `meta` stands for the closed rows. Their ``missing`` counts, which the ledger of a moment
    later need not agree with, and a forming row have to be looked at themselves.
    """
    seed = hashlib.blake2b(orjson.dumps([query.format, query.format.version, query.columns, metas]), digest_size=12)
    for answer in answers:
        missing = answer.table.column("missing").to_numpy()
        lacking = np.flatnonzero(missing)
        seed.update(lacking.tobytes() + missing[lacking].tobytes() + b"|")
        seed.update(repr(_forming(answer).to_pylist()).encode())
    return f'"{seed.hexdigest()}"'


def _forming(answer: CandleAnswer) -> pa.Table:
    """The rows that are not closed: none or the last one."""
    table = answer.table
    if CLOSED not in table.column_names or not table.num_rows or table.column(CLOSED)[-1].as_py():
        return no_candles()
    return table.slice(table.num_rows - 1)


def _next_page(request: Request, cursor: str) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("start", "cursor")]
    return f"{request.url.path}?{urlencode([*kept, ('cursor', cursor)])}"
