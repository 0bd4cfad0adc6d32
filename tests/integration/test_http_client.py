"""The Python client: a service and a home folder answer alike, in frames and in errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

import polars as pl
import pytest

import chandlery
from chandlery.client import Client
from chandlery.client_http import HttpSource
from market.clock import iso
from market.errors import BadInput, ChandleryError, NotFound, Retryable, Terminal
from market.instrument import Series
from serve.server import serve_app
from tests.support.http_service import BTC, END, ETH, GAP, ROWS, START, Service, batch, made, minute, service

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pair:
    """One home, read in both ways."""

    http: Client
    home: Client
    url: str
    service: Service

    async def both(self, ask: Callable[[Client], pl.DataFrame]) -> pl.DataFrame:
        """The frame of a question, which must be the same over HTTP and from the home."""
        over_http = await asyncio.to_thread(ask, self.http)
        from_home = await asyncio.to_thread(ask, self.home)
        assert over_http.schema == from_home.schema
        assert over_http.equals(from_home, null_equal=True)
        return over_http

    async def both_refuse(self, ask: Callable[[Client], object]) -> ChandleryError:
        """The error of a question, which must be the same over HTTP and from the home."""
        errors = []
        for client in (self.http, self.home):
            with pytest.raises(ChandleryError) as caught:
                await asyncio.to_thread(ask, client)
            errors.append(caught.value)
        assert type(errors[0]) is type(errors[1])
        shown, other = (str(one).partition("; it is ")[0] for one in errors)
        assert shown == other
        return errors[0]


@pytest.fixture
async def pair(tmp_path: Path, clock) -> AsyncIterator[Pair]:
    clock.time_ms = END + 86_400_000
    async with service(tmp_path, clock) as one:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # The lifespan of the application is already running; a second one over the same store is as good.
        server = asyncio.create_task(serve_app(one.app, "127.0.0.1", 0, ready.set_result))
        url = await asyncio.wait_for(ready, 90)
        http, home = chandlery.connect(url), await asyncio.to_thread(chandlery.connect, tmp_path)
        yield Pair(http, home, url, one)
        await asyncio.to_thread(http.close)
        await asyncio.to_thread(home.close)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"exchange": "binance"},
        {"limit": 10},
        {"start": START, "limit": 10},
        {"start": datetime(2023, 11, 1, 3, tzinfo=UTC), "end": datetime(2023, 11, 1, 9, tzinfo=UTC)},
        {"start": date(2023, 11, 1), "end": "2023-11-02"},
        {"end": iso(minute(50))},
        {"start": START, "columns": ["close", "volume"]},
        {"columns": []},
        {"include_forming": True, "limit": 5},
        {"start": minute(120), "end": minute(130)},
        {"start": minute(ROWS + 5)},
    ],
)
@pytest.mark.parametrize("timeframe", ["1m", "1h"])
async def test_candles_are_the_same_frame_both_ways(
    pair: Pair, question: dict[str, object], timeframe: str
) -> None:
    frame = await pair.both(lambda client: client.candles("BTC/USDT", timeframe, **question))  # type: ignore[arg-type]
    assert frame.schema["open_time"] == pl.Datetime("ms", "UTC")
    assert frame["open_time"].is_sorted()
    if "limit" in question:
        assert frame.height == question["limit"]
    if not question and timeframe == "1m":
        stored = await pair.service.store.read(BTC, START, END)
        whole = pl.DataFrame(pl.from_arrow(stored))
        assert frame.drop("missing").equals(whole, null_equal=True)


async def test_long_ranges_come_in_pages_and_as_one_frame(pair: Pair) -> None:
    paged = Client(HttpSource(pair.url, page_rows=700))
    whole = await asyncio.to_thread(pair.home.candles, "ETH/USDT", "1m")
    assert (await asyncio.to_thread(paged.candles, "ETH/USDT", "1m")).equals(whole)
    limited = await asyncio.to_thread(lambda: paged.candles("ETH/USDT", "1m", start=START, limit=1_501))
    assert limited.equals(whole.head(1_501))
    paged.close()


async def test_as_of_both_ways(pair: Pair, clock) -> None:
    before = clock.time_ms
    old = await pair.both(lambda client: client.candles("BTC/USDT", "1m", start=START, limit=5))
    clock.advance(3_600_000)
    await pair.service.store.write(batch(BTC, made(0, 5, seed=99)))
    new = await pair.both(lambda client: client.candles("BTC/USDT", "1m", start=START, limit=5))
    assert not new.equals(old)
    then = await pair.both(lambda client: client.candles("BTC/USDT", "1m", start=START, limit=5, as_of=before))
    assert then.equals(old)


async def test_what_is_known_beside_the_candles_both_ways(pair: Pair) -> None:
    series = await pair.both(lambda client: client.series())
    assert series["symbol"].to_list() == ["BTC/USDT", "ETH/USDT"]
    assert series.schema["first_open"] == pl.Datetime("ms", "UTC")
    coverage = await pair.both(lambda client: client.coverage("BTC/USDT", "1m"))
    assert coverage["state"].to_list() == ["present", "verified_empty", "present", "present"]
    part = await pair.both(lambda client: client.coverage("BTC/USDT", "1m", start=minute(90), end=minute(110)))
    assert part.height == 2
    gaps = await pair.both(lambda client: client.gaps("BTC/USDT", "1m"))
    assert gaps.rows() == [tuple(datetime.fromtimestamp(minute(at) // 1000, UTC) for at in GAP)]
    none = await pair.both(lambda client: client.gaps("ETH/USDT", "1m"))
    assert none.is_empty()
    assert none.schema == gaps.schema
    assert (await pair.both(lambda client: client.instruments())).height == 2
    assert (await pair.both(lambda client: client.instruments("binance")))["tick_size"][0] == "0.01"


@pytest.mark.parametrize(
    "ask, kind, field",
    [
        (lambda c: c.candles("DOGE/USDT", "1m"), NotFound, "symbol"),
        (lambda c: c.candles("DOGE/USDT", "1m", exchange="binance"), NotFound, "symbol"),
        (lambda c: c.candles("BTC/USDT", "1m", exchange="kraken"), NotFound, "exchange"),
        (lambda c: c.candles("BTC/USDT", "2m"), BadInput, "timeframe"),
        (lambda c: c.candles("BTCUSDT", "1m", exchange="binance"), BadInput, "symbol"),
        (lambda c: c.candles("BTC/USDT", "1m", limit=0), BadInput, "limit"),
        (lambda c: c.candles("BTC/USDT", "1m", limit=1_000_001), BadInput, "limit"),
        (lambda c: c.candles("BTC/USDT", "1m", start=datetime(2023, 1, 1)), BadInput, "start"),  # noqa: DTZ001 - naive on purpose
        (lambda c: c.candles("BTC/USDT", "1m", start=END, end=START), BadInput, "end"),
        (lambda c: c.candles("BTC/USDT", "1m", start="2090-01-01"), BadInput, "start"),
        (lambda c: c.candles("BTC/USDT", "1m", as_of="2090-01-01"), BadInput, "as_of"),
        (lambda c: c.candles("BTC/USDT", "1m", columns=["colse"]), BadInput, "columns"),
        (lambda c: c.candles("BTC/USDT", "1m", columns="close"), BadInput, "columns"),
        (lambda c: c.coverage("BTC/USDT", "1m", start=END), BadInput, "start"),
        (lambda c: c.gaps("BTC/USDT", "1m", end=START), BadInput, "end"),
        (lambda c: c.instruments("kraken"), NotFound, "exchange"),
    ],
)
async def test_refusals_are_the_same_both_ways(
    pair: Pair, ask: Callable[[Client], object], kind: type[BadInput], field: str
) -> None:
    error = await pair.both_refuse(ask)
    assert type(error) is kind
    assert isinstance(error, BadInput)
    assert error.field == field


async def test_an_exchange_must_be_named_where_two_have_the_symbol(pair: Pair) -> None:
    await pair.service.store.write(batch(Series("kraken", "ETH/USDT", ETH.timeframe), made(0, 5)))
    error = await pair.both_refuse(lambda client: client.candles("ETH/USDT", "1m"))
    assert "binance, kraken" in str(error)
    assert (await pair.both(lambda client: client.candles("ETH/USDT", "1m", exchange="kraken"))).height == 5


async def test_a_closed_client_says_so(pair: Pair) -> None:
    with chandlery.connect(pair.url) as client:
        assert (await asyncio.to_thread(client.series)).height == 2
    client.close()
    with pytest.raises(Terminal, match="closed"):
        client.series()


async def test_nothing_at_the_address_is_retryable(pair: Pair, unused_tcp_port: int) -> None:
    with chandlery.connect(f"http://127.0.0.1:{unused_tcp_port}") as client, pytest.raises(Retryable):
        await asyncio.to_thread(client.series)
