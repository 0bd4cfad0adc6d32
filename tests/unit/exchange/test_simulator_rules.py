"""Weights, parameters, faults and subscriptions of the simulated exchange, without a socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange.binance.messages import read_agg_trade, read_candle, read_trade
from exchange.simulator.exchange import Exchange, ListedMarket
from exchange.simulator.faults import Faults, parse_faults, read_faults
from exchange.simulator.limits import PATIENCE, WeightLimit, depth_weight, ticker_weight
from exchange.simulator.market import Market
from exchange.simulator.query import Query, Refused
from exchange.simulator.rest_faults import FaultInjector
from exchange.simulator.server import SimulatorConfig, open_exchange
from exchange.simulator.subscription import subscription
from exchange.simulator.synthetic import LISTED_MS, SyntheticTape
from exchange.simulator.ticker import day_statistics
from market.candle import open_times_ms
from market.clock import to_ms
from market.errors import BadInput
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE, Timeframe

NOW = LISTED_MS + 500 * DAY_MS + 12_345_678


class HandClock:
    """Exchange time that only moves when told."""

    def __init__(self, now_ms: int) -> None:
        self.time_ms = now_ms

    def now_ms(self) -> int:
        return self.time_ms


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(SyntheticTape(5, "ETH/USDT"))


def exchange_of(market: Market, clock: HandClock) -> Exchange:
    listed = ListedMarket(open=lambda: market, listed_ms=LISTED_MS)
    return Exchange(clock, {market.listing.exchange_symbol: listed})


def test_weight_is_counted_by_address_and_minute() -> None:
    clock = HandClock(120_000)
    limit = WeightLimit(clock, 10)
    assert [limit.spend("a", 4).used for _ in range(2)] == [4, 8]
    assert limit.spend("b", 4).status == 200
    clock.time_ms += 45_500
    over = limit.spend("a", 4)
    assert (over.status, over.retry_after) == (429, 15)
    clock.time_ms += 14_500
    assert limit.spend("a", 4).used == 4


def test_who_keeps_on_asking_is_banned_and_longer_each_time() -> None:
    clock = HandClock(0)
    limit = WeightLimit(clock, 1)
    lengths = []
    for _ in range(2):
        statuses = [limit.spend("a", 1).status for _ in range(PATIENCE + 2)]
        assert statuses[-1] == 418
        assert 429 in statuses
        verdict = limit.spend("a", 1)
        lengths.append(verdict.retry_after)
        assert verdict.banned_until_ms == clock.time_ms + verdict.retry_after * 1000
        clock.time_ms = verdict.banned_until_ms
    assert lengths == [120, 240]
    assert limit.spend("a", 1).status == 200


def test_weights_as_documented() -> None:
    assert [depth_weight(limit) for limit in (1, 100, 101, 500, 501, 1000, 1001, 5000)] == [
        *(5, 5, 25, 25, 50, 50, 250, 250)
    ]
    assert [ticker_weight(count) for count in (1, 20, 21, 100, 101, None)] == [2, 2, 40, 40, 80, 80]


@pytest.mark.parametrize(
    "sent, read, code",
    [
        ([("symbol", "BTCUSDT"), ("symbol", "BTCUSDT")], Query.symbol, -1101),
        ([("symbol", "BTCUSDT"), ("color", "red")], Query.symbol, -1104),
        ([], Query.symbol, -1102),
        ([("symbol", "")], Query.symbol, -1102),
        ([("symbol", "btcusdt")], Query.symbol, -1100),
        ([("interval", "7m")], Query.interval, -1120),
        ([("limit", "0")], lambda query: query.limit(500, 1000), -1130),
        ([("limit", "-1")], lambda query: query.limit(500, 1000), -1100),
        ([("limit", "")], lambda query: query.limit(500, 1000), -1105),
        ([("limit", "9" * 20)], lambda query: query.limit(500, 1000), -1108),
        ([("symbol", "A"), ("symbols", '["A"]')], Query.symbols, -1128),
        ([("symbols", "A,B")], Query.symbols, -1100),
        ([("symbols", '["A","A"]')], Query.symbols, -1151),
        ([("symbols", "[]")], Query.symbols, -1100),
        ([("symbols", '["a"]')], Query.symbols, -1100),
    ],
)
def test_parameters_are_refused_as_binance_does(
    sent: list[tuple[str, str]], read: Callable[[Query], object], code: int
) -> None:
    with pytest.raises(Refused) as refused:
        read(Query(sent, ("symbol", "symbols", "interval", "limit")))
    assert (refused.value.code, refused.value.status) == (code, 400)


def test_a_limit_above_the_most_counts_as_the_most() -> None:
    assert Query([("limit", "5000")], ("limit",)).limit(500, 1000) == 1000
    assert Query([], ("limit",)).limit(500, 1000) == 500


@pytest.mark.parametrize(
    "rules, field",
    [
        ({}, "the file"),
        ([{}], "0.do"),
        ([{"do": "explode"}], "0.do"),
        ([{"do": "html"}, {"do": "status", "status": 200}], "1.status"),
        ([{"do": "html", "probability": 1.5}], "0.probability"),
        ([{"do": "html", "form": 2}], "0.form"),
        ([{"do": "html", "from": 0}], "0.from"),
    ],
)
def test_wrong_fault_rules_are_named(rules: object, field: str) -> None:
    with pytest.raises(BadInput, match=field):
        parse_faults(rules)


def test_faults_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        read_faults(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(BadInput, match="JSON list of rules"):
        read_faults(tmp_path / "bad.json")


async def statuses(rules: list[dict[str, object]], paths: list[str]) -> list[int]:
    """What an injector around an application that always answers 200 makes of requests."""
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[1,2,3,4]"})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    injector = FaultInjector(app, Faults(parse_faults(rules)), lambda scope: None)
    for path in paths:
        await injector({"type": "http", "path": path}, receive, send)
    return seen


async def test_rules_hit_the_requests_they_count() -> None:
    rule: dict[str, object] = {"path": "/api/v3/klines", "from": 2, "count": 2, "do": "status", "status": 503}
    paths = ["/api/v3/klines", "/api/v3/time", *["/api/v3/klines"] * 3, "/api/v3/time"]
    assert await statuses([rule], paths) == [200, 200, 503, 503, 200, 200]
    both = [rule, {"do": "status", "status": 418, "from": 5}]
    assert await statuses(both, paths) == [200, 200, 503, 503, 418, 200]


async def test_chances_come_from_the_seed() -> None:
    def rule(seed: int) -> list[dict[str, object]]:
        return [{"probability": 0.5, "seed": seed, "do": "status", "status": 500}]

    paths = ["/api/v3/time"] * 64
    first = await statuses(rule(1), paths)
    assert first == await statuses(rule(1), paths)
    assert first != await statuses(rule(2), paths)
    assert 15 < first.count(500) < 49


@given(step=st.integers(9_000, 400_000), timeframe=st.sampled_from(["1m", "3m", "15m"]))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_candle_closes_once_however_seldom_one_looks(market: Market, step: int, timeframe: str) -> None:
    clock = HandClock(NOW)
    stream = subscription(exchange_of(market, clock), f"ethusdt@kline_{timeframe}")
    assert stream is not None
    events = []
    frame = Timeframe.parse(timeframe)
    while clock.time_ms < NOW + 50 * MINUTE_MS:
        clock.time_ms += step
        sent = [json.dumps(message).encode() for message in stream.messages(clock.time_ms)]
        events += [read_candle(one, "ETHUSDT", clock.time_ms, frame) for one in sent]
    first = frame.floor(NOW)
    expected = market.klines(frame, clock.time_ms, first, frame.floor(clock.time_ms), 1000)
    closed = [event for event in events if event.closed]
    assert [event.open_time for event in closed] == open_times_ms(expected).tolist()
    assert [event.table().to_pylist()[0] for event in closed] == expected.to_pylist()
    opens = [event.open_time for event in events]
    assert opens == sorted(opens)


def test_trade_streams_repeat_and_lose_nothing(market: Market) -> None:
    clock = HandClock(NOW)
    exchange = exchange_of(market, clock)
    single, aggregated = (subscription(exchange, f"ethusdt@{kind}") for kind in ("trade", "aggTrade"))
    assert single is not None
    assert aggregated is not None
    trades, aggregates = [], []
    for _ in range(200):
        clock.time_ms += 1700
        for one in single.messages(clock.time_ms):
            trades.append(read_trade(json.dumps(one).encode(), "ETHUSDT", 0))
        for one in aggregated.messages(clock.time_ms):
            aggregates.append(read_agg_trade(json.dumps(one).encode(), "ETHUSDT", 0))
    made = list(market.agg_trades(NOW + 1, clock.time_ms + 1))
    counts = [one.last_trade_id - one.first_trade_id + 1 for one in made]
    assert aggregates == [
        (one.id, one.price, one.quantity, one.time, not one.buyer_is_maker, 0, count)
        for one, count in zip(made, counts, strict=True)
    ]
    assert [one.id for one in trades] == list(range(made[0].first_trade_id, made[-1].last_trade_id + 1))


@pytest.mark.parametrize(
    "name",
    [
        *("ethusdt@kline_7m", "ETHUSDT@trade", "dogeusdt@trade", "ethusdt", "ethusdt@depth7", "ethusdt@depth@50ms"),
        *("ethusdt@trade@100ms", "ethusdt@", "@trade"),
    ],
)
def test_unknown_streams(market: Market, name: str) -> None:
    assert subscription(exchange_of(market, HandClock(NOW)), name) is None


def test_day_statistics_add_up(market: Market) -> None:
    ticker = day_statistics(market, NOW)
    minutes = market.minutes(NOW, ONE_MINUTE.ceil(NOW - DAY_MS), NOW + 1).to_pylist()
    assert ticker["count"] == sum(row["trades"] for row in minutes) == ticker["lastId"] - ticker["firstId"] + 1
    assert float(ticker["volume"]) == pytest.approx(sum(row["volume"] for row in minutes), rel=1e-12)
    assert float(ticker["highPrice"]) == max(row["high"] for row in minutes)
    assert float(ticker["lastPrice"]) == minutes[-1]["close"]
    assert float(ticker["priceChange"]) == pytest.approx(minutes[-1]["close"] - minutes[0]["open"])
    mini = day_statistics(market, NOW, mini=True)
    assert mini.items() < ticker.items()


def test_a_market_is_not_there_before_its_listing(market: Market) -> None:
    exchange = exchange_of(market, HandClock(LISTED_MS - 1))
    assert exchange.market("ETHUSDT") is None
    assert exchange.markets() == []
    assert market.last_price(LISTED_MS - 1) is None
    assert market.book.snapshot(LISTED_MS - 1, 5).bids == ()


@pytest.mark.parametrize(
    "options, field",
    [
        ({"data": Path("x"), "seed": 1}, "--seed"),
        ({"data": Path("x")}, "--data"),
        ({"seed": 1, "symbols": ()}, "--symbols"),
        ({"seed": 1, "symbols": ("nonsense",)}, "--symbols"),
        ({"seed": 1, "now_ms": to_ms("2019-12-31")}, "--now"),
        ({"seed": 1, "speed": 0}, "--speed"),
    ],
)
def test_wrong_configurations_name_the_option(options: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        open_exchange(SimulatorConfig(**options))


@pytest.mark.recorded
def test_recorded_time_must_be_within_the_data(recorded: Path) -> None:
    def config(now: str, *symbols: str) -> SimulatorConfig:
        return SimulatorConfig(data=recorded / "candles", symbols=symbols, now_ms=to_ms(now))

    with pytest.raises(BadInput, match="2023-03-23T15:00:00Z to 2023-09-01T00:00:00Z"):
        open_exchange(config("2023-03-01", "ARB/USDT"))
    with pytest.raises(BadInput, match="--now"):
        open_exchange(config("2023-09-02", "ARB/USDT"))
    # One that is not listed yet does not show.
    exchange = open_exchange(config("2023-03-01", "ARB/USDT", "ETH/USDT"))
    assert [market.listing.symbol for market in exchange.markets()] == ["ETH/USDT"]


def test_a_faults_file_as_documented(tmp_path: Path) -> None:
    rules = [{"path": "/api/v3/klines", "from": 3, "count": 2, "do": "status", "status": 429, "retry_after": 1}]
    (tmp_path / "faults.json").write_text(json.dumps(rules))
    (rule,) = read_faults(tmp_path / "faults.json")
    assert (rule.first, rule.count, rule.status, rule.retry_after) == (3, 2, 429, 1)
