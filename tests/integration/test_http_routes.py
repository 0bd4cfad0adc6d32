"""The routes beside the candles, the pages, and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from market.errors import StoreUnusable
from tests.support.http_service import BTC, EMPTY, END, ETH, GAP, QUERY, ROWS, START, Service, minute, service

DOCS = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"


@pytest.fixture
async def served(tmp_path: Path, clock) -> AsyncIterator[Service]:
    clock.time_ms = END + 86_400_000
    async with service(tmp_path, clock) as one:
        yield one


async def test_series_lists_what_is_stored(served: Service) -> None:
    answer = await served.get("/v1/series")
    btc, eth = answer.json()["data"]
    assert (btc["symbol"], btc["rows"], btc["missing"], btc["verified_empty"]) == ("BTC/USDT", ROWS - 90, 10, 80)
    assert (btc["first_open"], btc["last_open"]) == (START, END - 60_000)
    assert btc["sources"] == ["test"]
    assert (eth["symbol"], eth["rows"], eth["missing"]) == ("ETH/USDT", ROWS, 0)
    only = await served.get("/v1/series", exchange="binance", symbol="ETH/USDT", timeframe="1m")
    assert only.json()["data"] == [eth]
    again = await served.http.get("/v1/series", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


async def test_instruments_keep_exact_decimals(served: Service) -> None:
    answer = await served.get("/v1/instruments", exchange="binance", symbol="BTC/USDT")
    (btc,) = answer.json()["data"]
    assert (btc["tick_size"], btc["lot_size"], btc["min_notional"]) == ("0.01", "0.00001000", None)
    assert (btc["exchange_symbol"], btc["active"], btc["kind"]) == ("BTCUSDT", True, "spot")
    assert len((await served.get("/v1/instruments")).json()["data"]) == 2


async def test_coverage_tells_present_from_empty(served: Service) -> None:
    body = (await served.get("/v1/coverage", **QUERY)).json()
    assert (body["start"], body["end"]) == (START, END)
    assert [(one["start"], one["end"], one["state"]) for one in body["data"]] == [
        (START, minute(EMPTY[0]), "present"),
        (minute(EMPTY[0]), minute(EMPTY[1]), "verified_empty"),
        (minute(EMPTY[1]), minute(GAP[0]), "present"),
        (minute(GAP[1]), END, "present"),
    ]
    assert body["data"][1]["evidence"] == "two reads agree"
    part = (await served.get("/v1/coverage", **QUERY, start=minute(120), end=minute(130))).json()
    assert [(one["start"], one["end"]) for one in part["data"]] == [(minute(120), minute(130))]


async def test_gaps_are_what_a_backfill_would_fetch(served: Service) -> None:
    body = (await served.get("/v1/gaps", **QUERY)).json()
    assert body["data"] == [[minute(GAP[0]), minute(GAP[1])]]
    assert (body["complete"], body["missing"]) == (False, 10)
    for bounds in ({"start": minute(600)}, {"end": minute(400)}, {"start": minute(200), "end": minute(300)}):
        part = (await served.get("/v1/gaps", **QUERY, **bounds)).json()
        assert (part["complete"], part["missing"], part["data"]) == (True, 0, [])
    whole = (await served.get("/v1/gaps", **{**QUERY, "symbol": "ETH/USDT"})).json()
    assert whole["complete"] is True


async def test_the_archive_is_listed(served: Service) -> None:
    assert (await served.get("/v1/archive")).json() == {"data": []}
    for series in (BTC, ETH):
        await served.archive.build(served.store, series)
    btc, eth = (await served.get("/v1/archive")).json()["data"]
    assert (btc["symbol"], btc["rows"], btc["files"]) == ("BTC/USDT", ROWS - 90, 1)
    assert (eth["first_open"], eth["last_open"]) == (START, END - 60_000)
    assert eth["fingerprint"] == served.archive.manifest(ETH).fingerprint


async def test_health_and_readiness(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    health = await served.get("/v1/health")
    assert health.json()["store"]["rows"] == 2 * ROWS - 90
    assert (await served.get("/v1/ready")).json()["ready"] is True

    async def fail() -> None:
        raise StoreUnusable("the disk is full")

    monkeypatch.setattr(served.app.state.market_data, "health", fail)
    health = await served.get("/v1/health")
    assert (health.status_code, health.json()["store"]) == (200, {"ok": False, "detail": "the disk is full"})
    ready = await served.get("/v1/ready")
    assert (ready.status_code, ready.json()["ready"], ready.headers["retry-after"]) == (503, False, "1")


async def test_the_openapi_document_is_complete(served: Service) -> None:
    document = (await served.get("/openapi.json")).json()
    routes = {route.path for route in served.app.state.documented}
    assert set(document["paths"]) == routes
    assert len(routes) >= 9
    for path, operations in document["paths"].items():
        operation = operations["get"]
        assert operation["summary"], path
        assert operation["description"], path
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
            if status == "200":
                for media in response["content"].values():
                    assert media["example"], path
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (path, parameter["name"])
            assert parameter["schema"]["examples"], (path, parameter["name"])


async def test_the_examples_of_the_document_are_accepted(served: Service) -> None:
    document = (await served.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        parameters = operations["get"].get("parameters", [])
        required = {one["name"]: one["schema"]["examples"][0] for one in parameters if one["required"]}
        assert (await served.get(path, **required)).status_code == 200, path
        for one in parameters:
            if one["required"] or one["name"] == "cursor":
                continue
            example = one["schema"]["examples"][0]
            answer = await served.get(path, **required, **{one["name"]: example})
            assert answer.status_code in (200, 400, 404), (path, one["name"])
            # A refusal may only come from what this small store holds, never from the form of the example.
            said = "" if answer.status_code == 200 else answer.json()["accepted"]
            assert not said or said.startswith(("an instant before", "an instant after")), (path, said)


async def test_the_pages_need_nothing_from_elsewhere(served: Service) -> None:
    welcome, docs = await served.get("/"), await served.get("/docs")
    for page in (welcome, docs):
        assert page.headers["content-type"].startswith("text/html")
        assert "<script" not in page.text
        assert re.findall(r"(?:src|href)=\"https?://", page.text) == []
    for link in re.findall(r"href=\"([^\"]+)\"", welcome.text):
        assert (await served.get(link)).status_code == 200, link
    document = (await served.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        assert f"<code>{path}</code>" in docs.text
        for parameter in operations["get"].get("parameters", []):
            assert f"<code>{parameter['name']}</code>" in docs.text
    assert 'id="problem-bad-input"' in docs.text


async def test_the_guide_names_every_route_parameter_and_problem(served: Service) -> None:
    guide = DOCS.read_text()
    document = (await served.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        assert f"`{path}`" in guide, path
        for parameter in operations["get"].get("parameters", []):
            assert f"`{parameter['name']}`" in guide, (path, parameter["name"])
        for header in operations["get"]["responses"]["200"].get("headers", {}):
            assert f"`{header}`" in guide, header
    page = (await served.get("/docs")).text
    for name in re.findall(r"id=\"problem-([a-z-]+)\"", page):
        assert f"`{name}`" in guide, name
