"""Bad input over HTTP: one clear problem that names the field, never a fault of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from market.errors import (
    BadInput,
    ExchangeRefused,
    ExchangeUnavailable,
    Mismatch,
    NotFound,
    RateLimited,
    SchemaTooNew,
    StoreBusy,
    StoreUnusable,
)
from tests.support.http_service import END, QUERY, START, Service, service

BATCH = {"exchange": "binance", "symbols": "BTC/USDT", "timeframe": "1m"}
NOW = END + 86_400_000
HOSTILE = [
    "",
    " ",
    "\x00",
    "'; DROP TABLE candles; --",
    "../../etc/passwd",
    "%00%ff",
    "🕯" * 50,
    "９９",
    "1e400",
    "NaN",
    "-1",
    "9" * 5_000,
    "x" * 7_000,
    "<script>alert(1)</script>",
    "\ud800".encode("utf-8", "surrogatepass"),
]


@pytest.fixture
async def served(tmp_path: Path, clock) -> AsyncIterator[Service]:
    clock.time_ms = NOW
    async with service(tmp_path, clock) as one:
        yield one


def check_problem(answer: httpx.Response, field: str | None, status: int = 400) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert answer.status_code == status == body["status"], body
    assert {"type", "title", "detail"} <= set(body)
    assert "Traceback" not in answer.text
    if field is not None:
        assert body["field"] == field, body
        assert body["accepted"]
        assert str(body["accepted"]) in body["detail"]
    return body


@pytest.mark.parametrize(
    "changes, field, said",
    [
        ({"exchange": None}, "exchange", "required"),
        ({"symbol": None}, "symbol", "required"),
        ({"timeframe": None}, "timeframe", "required"),
        ({"timeframe": "2m"}, "timeframe", "1m 3m 5m"),
        ({"timeframe": "1H"}, "timeframe", "1h"),
        ({"symbol": "BTCUSDT"}, "symbol", "BTC/USDT"),
        ({"exchange": "BINANCE"}, "exchange", "binance"),
        ({"limit": "0"}, "limit", "from 1 to 50000"),
        ({"limit": "50001"}, "limit", "from 1 to 50000"),
        ({"limit": "1000001", "format": "arrow"}, "limit", "from 1 to 1000000"),
        ({"limit": "-5"}, "limit", "from 1 to"),
        ({"limit": "ten"}, "limit", "whole number"),
        ({"limit": "1.5"}, "limit", "whole number"),
        ({"start": "2023-11-01T00:00:00"}, "start", "no zone"),
        ({"end": "2023-11-01 00:00"}, "end", "no zone"),
        ({"start": "yesterday"}, "start", "epoch milliseconds"),
        ({"start": "1698796800"}, "start", "milliseconds"),
        ({"start": str(END), "end": str(START)}, "end", "after start"),
        ({"start": str(START), "end": str(START)}, "end", "after start"),
        ({"start": str(NOW + 60_000)}, "start", "future"),
        ({"start": "2031-01-01", "end": "2032-01-01"}, "start", "future"),
        ({"as_of": str(NOW + 60_000)}, "as_of", "future"),
        ({"include_forming": "yes please"}, "include_forming", "true or false"),
        ({"columns": "close,median"}, "columns", "open_time, open, high"),
        ({"columns": "colse"}, "columns", "did you mean close?"),
        ({"columns": "closed"}, "columns", "open_time"),
        ({"columns": ""}, "columns", "open_time"),
        ({"format": "xml"}, "format", "json, csv, arrow, parquet"),
        ({"cursor": "garbage"}, "cursor", "next_cursor"),
        ({"cursor": "WzEsMiwzLDRd"}, "cursor", "next_cursor"),
        ({"cursor": "W10"}, "cursor", "next_cursor"),
        ({"tf": "1m"}, "tf", "did you mean timeframe?"),
        ({"since": "2023-01-01"}, "since", "did you mean start?"),
        ({"colums": "close"}, "colums", "did you mean columns?"),
        ({"limit": ["1", "2"]}, "limit", "once"),
        ({"symbol": ["BTC/USDT", "ETH/USDT"]}, "symbol", "once"),
    ],
)
async def test_candles_refuse_by_name(served: Service, changes: dict[str, object], field: str, said: str) -> None:
    body = check_problem(await served.candles(**changes), field)
    assert said in str(body["accepted"])


@pytest.mark.parametrize(
    "changes, field, known",
    [
        ({"exchange": "kraken"}, "exchange", "binance"),
        ({"symbol": "DOGE/USDT"}, "symbol", "BTC/USDT, ETH/USDT"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/candles", "/v1/coverage", "/v1/gaps"])
async def test_what_is_not_stored_is_not_found(
    served: Service, path: str, changes: dict[str, object], field: str, known: str
) -> None:
    body = check_problem(await served.get(path, **{**QUERY, **changes}), field, 404)
    assert known in str(body["accepted"])


@pytest.mark.parametrize(
    "path, changes, field",
    [
        ("/v1/series", {"exchange": "kraken"}, "exchange"),
        ("/v1/series", {"symbol": "DOGE/USDT"}, "symbol"),
        ("/v1/series", {"timeframe": "1d"}, "timeframe"),
        ("/v1/instruments", {"exchange": "kraken"}, "exchange"),
        ("/v1/instruments", {"symbol": "DOGE/USDT"}, "symbol"),
    ],
)
async def test_a_filter_that_matches_nothing_is_not_found(
    served: Service, path: str, changes: dict[str, object], field: str
) -> None:
    check_problem(await served.get(path, **changes), field, 404)


@pytest.mark.parametrize(
    "changes, field, said",
    [
        ({"symbols": None}, "symbols", "required"),
        ({"symbols": ""}, "symbols", "BTC/USDT"),
        ({"symbols": "BTC/USDT,"}, "symbols", "BTC/USDT"),
        ({"symbols": "BTC/USDT,BTC/USDT"}, "symbols", "once"),
        ({"symbols": ",".join(f"A{at}/USDT" for at in range(101))}, "symbols", "at most 100"),
        ({"limit": "5001"}, "limit", "from 1 to 5000"),
        ({"format": "csv"}, "format", "parameters"),
        ({"symbol": "BTC/USDT"}, "symbol", "did you mean symbols?"),
    ],
)
async def test_a_batch_refuses_by_name(served: Service, changes: dict[str, object], field: str, said: str) -> None:
    body = check_problem(await served.get("/v1/candles/batch", **{**BATCH, **changes}), field)
    assert said in str(body["accepted"])


@pytest.mark.parametrize("path", ["/v1/coverage", "/v1/gaps"])
@pytest.mark.parametrize(
    "changes, field",
    [
        ({"start": "2023-11-01T00:00:00"}, "start"),
        ({"start": str(END), "end": str(START)}, "end"),
        ({"start": str(END)}, "start"),
        ({"end": str(START)}, "end"),
        ({"start": str(NOW + 1), "end": str(NOW + 2)}, "start"),
        ({"limit": "5"}, "limit"),
        ({"timeframe": "7m"}, "timeframe"),
    ],
)
async def test_ranges_refuse_by_name(served: Service, path: str, changes: dict[str, object], field: str) -> None:
    check_problem(await served.get(path, **{**QUERY, **changes}), field)


async def test_hostile_values_are_refused_and_never_a_fault(served: Service) -> None:
    document = (await served.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        names = [one["name"] for one in operations["get"].get("parameters", [])]
        good = BATCH if "symbols" in names else QUERY if "start" in names else {}
        for name in [*names, "unheard_of"]:
            for value in HOSTILE:
                answer = await served.get(path, **{**good, name: value})
                assert answer.status_code in (400, 404), (path, name, value, answer.text)
                assert check_problem(answer, None, answer.status_code)["field"] == name


async def test_a_value_too_long_to_be_meant_is_refused(served: Service) -> None:
    answer = await served.candles(symbol="A" * 9_000)
    body = check_problem(answer, "symbol")
    assert len(str(body["detail"])) < 400


@pytest.mark.parametrize("path", ["/v1", "/v1/candle", "/v2/candles", "/v1/candles/", "/favicon.ico"])
async def test_an_unknown_route_lists_the_known_ones(served: Service, path: str) -> None:
    answer = await served.get(path)
    body = check_problem(answer, None, 404)
    assert body["field"] == "path"
    assert "/v1/candles" in str(body["accepted"])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_another_method_is_refused(served: Service, method: str) -> None:
    answer = await served.http.request(method, "/v1/candles", params=QUERY)
    check_problem(answer, "method", 405)
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "error, status, name",
    [
        (BadInput("a", "b", "c"), 400, "bad-input"),
        (NotFound("a", "b"), 404, "not-found"),
        (StoreBusy("locked"), 503, "store-busy"),
        (RateLimited("slow", 7.2), 503, "rate-limited"),
        (ExchangeUnavailable("gone"), 502, "exchange-unavailable"),
        (ExchangeRefused("no"), 502, "exchange-refused"),
        (SchemaTooNew("9"), 500, "schema-too-new"),
        (StoreUnusable("full"), 500, "store-unusable"),
        (Mismatch("differs"), 500, "mismatch"),
        (RuntimeError("secret words"), 500, "internal"),
    ],
)
async def test_every_error_has_its_status(
    served: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, name: str
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(served.app.state.market_data, "candles", fail)
    answer = await served.candles()
    body = check_problem(answer, None, status)
    assert body["type"] == f"/docs#problem-{name}"
    assert "secret" not in answer.text
    if status == 503:
        assert int(answer.headers["retry-after"]) == (7 if name == "rate-limited" else 1)
