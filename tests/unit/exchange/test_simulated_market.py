"""Markets of the simulated exchange: trades agree with candles, no future shows, seeds decide everything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from exchange.binance.wire import Trade
from exchange.simulator.clock import ExchangeClock
from exchange.simulator.market import Market, Tape
from exchange.simulator.prints import Minute, prints_of
from exchange.simulator.recorded import (
    RecordedTape,
    _exact_floats,
    recorded_range,
    recorded_symbols,
    split_symbol,
    wanted_symbols,
)
from exchange.simulator.synthetic import LISTED_MS, SyntheticTape
from market.candle import check, open_times_ms, traded
from market.clock import to_ms
from market.errors import BadInput, NotFound
from market.rollup import roll_up
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE, Timeframe

SEED = 11
OUTAGE = to_ms("2023-03-24T12:40:00Z")


@pytest.fixture(scope="module")
def solana() -> SyntheticTape:
    return SyntheticTape(SEED, "SOL/USDT")


@pytest.fixture(scope="module")
def market(solana: SyntheticTape) -> Market:
    return Market(solana)


@pytest.fixture(scope="module")
def bitcoin(recorded: Path) -> RecordedTape:
    (path,) = (recorded / "candles").glob("binance_spot_BTCUSDT_1m_2023*")
    return RecordedTape("BTCUSDT", [path])


def ms(table: pa.Table, row: int = 0) -> int:
    return int(open_times_ms(table)[row])


def rebuilt(market: Market, trades: list[Trade]) -> dict[str, float | int]:
    """The candle that `trades` make, counted in whole ticks and lots."""
    tick, lot = 10**market.listing.price_decimals, 10**market.listing.lot_decimals
    lots = [round(one.quantity * lot) for one in trades]
    paid = [round(one.price * tick) * size for one, size in zip(trades, lots, strict=True)]
    buys = [not one.buyer_is_maker for one in trades]
    return {
        "open": trades[0].price,
        "high": max(one.price for one in trades),
        "low": min(one.price for one in trades),
        "close": trades[-1].price,
        "volume": sum(lots) / lot,
        "quote_volume": sum(paid) / (tick * lot),
        "trades": trades[-1].last_trade_id - trades[0].first_trade_id + 1,
        "taker_buy_volume": sum(size for size, buy in zip(lots, buys, strict=True) if buy) / lot,
        "taker_buy_quote_volume": sum(size for size, buy in zip(paid, buys, strict=True) if buy) / (tick * lot),
    }


def assert_rebuilds(market: Market, tape: Tape, open_ms: int) -> None:
    row = tape.candles(open_ms, open_ms + 1).to_pylist()[0]
    trades = market.agg_trades_of(open_ms)
    if not row["trades"]:
        assert trades == []
        return
    made = rebuilt(market, trades)
    assert {name: row[name] for name in made} == made
    assert all(open_ms <= one.time < open_ms + MINUTE_MS for one in trades)
    assert [one.time for one in trades] == sorted(one.time for one in trades)
    single = [one for aggregated in trades for one in market.single(aggregated)]
    assert [one.id for one in single] == list(range(trades[0].first_trade_id, trades[-1].last_trade_id + 1))
    assert rebuilt(market, single) == made


@given(minute=st.integers(0, 5 * 365 * 1440))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trades_of_a_made_up_minute_rebuild_its_candle(market: Market, solana: SyntheticTape, minute: int) -> None:
    open_ms = solana.next_open(LISTED_MS + minute * MINUTE_MS)
    assert open_ms is not None
    assert_rebuilds(market, solana, open_ms)


@pytest.mark.recorded
def test_trades_of_recorded_minutes_rebuild_their_candles(bitcoin: RecordedTape) -> None:
    market = Market(bitcoin)
    for day in range(0, 365, 5):
        open_ms = bitcoin.next_open(bitcoin.start_ms + day * DAY_MS + day * 7 * MINUTE_MS)
        assert open_ms is not None
        assert_rebuilds(market, bitcoin, open_ms)


@pytest.mark.recorded
def test_trades_of_candles_without_all_columns_rebuild_them(recorded: Path) -> None:
    (path,) = (recorded / "candles").glob("binance_spot_XRPUSDT_1m_ohlcv*")
    tape = RecordedTape("XRPUSDT", [path])
    market = Market(tape)
    for row in range(0, 5000, 100):
        assert_rebuilds(market, tape, ms(tape.candles(tape.start_ms, tape.end_ms), row))


@given(
    low=st.integers(1, 1000),
    reach=st.lists(st.integers(0, 50), min_size=3, max_size=3),
    lots=st.lists(st.integers(1, 10_000), min_size=1, max_size=40),
    sides=st.integers(0, 2**40),
    data=st.data(),
)
def test_prints_keep_prices_base_volumes_and_counts(
    low: int, reach: list[int], lots: list[int], sides: int, data: st.DataObject
) -> None:
    """Built from arbitrary trades, so that the candle is one that trades can make."""
    prices = [low + data.draw(st.sampled_from([0, *reach])) for _ in lots]
    buys = [bool(sides >> at & 1) for at in range(len(lots))]
    minute = Minute(
        open=prices[0],
        high=max(prices),
        low=min(prices),
        close=prices[-1],
        volume=sum(lots),
        buy_volume=sum(size for size, buy in zip(lots, buys, strict=True) if buy),
        quote_volume=sum(size * price for size, price in zip(lots, prices, strict=True)),
        buy_quote_volume=sum(s * p for s, p, buy in zip(lots, prices, buys, strict=True) if buy),
        trades=len(lots),
        prints=min(len(lots), 12),
        span_ms=MINUTE_MS,
        seed=sides,
    )
    prints = prints_of(minute)
    assert len(prints) == minute.prints
    assert sum(one.trades for one in prints) == minute.trades
    assert all(1 <= one.trades <= one.lots for one in prints)
    assert (prints[0].price, prints[-1].price) == (minute.open, minute.close)
    assert (max(one.price for one in prints), min(one.price for one in prints)) == (minute.high, minute.low)
    assert sum(one.lots for one in prints) == minute.volume
    assert sum(one.lots for one in prints if one.bought) == minute.buy_volume


@given(
    now=st.integers(LISTED_MS + DAY_MS, LISTED_MS + 150 * DAY_MS),
    timeframe=st.sampled_from(["1m", "3m", "1h", "1d", "1w"]),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_after_now_is_seen(market: Market, solana: SyntheticTape, now: int, timeframe: str) -> None:
    frame = Timeframe.parse(timeframe)
    newest = market.klines(frame, now, None, None, 3)
    asked = market.klines(frame, now, now - 2 * frame.milliseconds, now + 10 * frame.milliseconds, 1000)
    assert newest.num_rows
    for table in (newest, asked):
        assert (open_times_ms(table) <= now).all()
    # What is shown of the current bucket is what traded in it, and no more.
    bucket = frame.floor(now)
    shown = [row for row in newest.to_pylist() if row["open_time"].timestamp() * 1000 == bucket]
    for row in shown:
        start = max(bucket, ONE_MINUTE.floor(now))
        trades = list(market.agg_trades(start, now + 1))
        assert all(one.time <= now for one in trades)
        closed = solana.candles(bucket, start)
        count = closed.column("trades").to_numpy().sum() + sum(
            one.last_trade_id - one.first_trade_id + 1 for one in trades
        )
        assert row["trades"] == count
    for trade in islice(market.newest_agg_trades(now + 1), 5):
        assert trade.time <= now


def test_a_forming_candle_grows_into_the_closed_one(market: Market, solana: SyntheticTape) -> None:
    open_ms = LISTED_MS + 77 * DAY_MS
    trades = market.agg_trades_of(open_ms)
    whole = solana.candles(open_ms, open_ms + 1)
    before = market.klines(ONE_MINUTE, trades[0].time - 1, None, None, 1).to_pylist()[0]
    assert before["volume"] == 0
    assert before["open"] == solana.candles(open_ms - MINUTE_MS, open_ms).to_pylist()[0]["close"]
    assert market.klines(ONE_MINUTE, trades[-1].time, None, None, 1) == whole
    half = market.klines(ONE_MINUTE, trades[3].time, None, None, 1).to_pylist()[0]
    assert 0 < half["volume"] < whole.to_pylist()[0]["volume"]


@given(
    timeframe=st.sampled_from(["1m", "15m", "4h", "1d"]),
    start=st.integers(LISTED_MS, LISTED_MS + 60 * DAY_MS),
    buckets=st.integers(1, 12),
    limit=st.integers(1, 5),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_paging_walks_a_range_without_repeat_or_hole(
    market: Market, solana: SyntheticTape, timeframe: str, start: int, buckets: int, limit: int
) -> None:
    frame = Timeframe.parse(timeframe)
    now = LISTED_MS + 2000 * DAY_MS
    end = frame.next(frame.floor(start), buckets)
    first = frame.ceil(start)
    expected = roll_up(solana.candles(first, frame.ceil(end)), frame).table if frame != ONE_MINUTE else None
    if expected is None:
        expected = solana.candles(first, end)
    forward, cursor = [], start
    while page := market.klines(frame, now, cursor, end, limit).to_pylist():
        assert len(page) <= limit
        forward += page
        cursor = int(page[-1]["open_time"].timestamp() * 1000) + 1
    assert forward == expected.to_pylist()
    if expected.num_rows > limit:
        newest = market.klines(frame, now, None, end, limit)
        assert newest.to_pylist() == expected.to_pylist()[-limit:]


@given(
    first=st.integers(LISTED_MS, LISTED_MS + 400 * DAY_MS), minutes=st.integers(1, 90), limit=st.integers(1, 200)
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trades_page_by_id_without_repeat_or_hole(market: Market, first: int, minutes: int, limit: int) -> None:
    now = first + minutes * MINUTE_MS
    by_time = list(market.agg_trades(first, now + 1))
    assume(by_time)
    by_id: list[Trade] = []
    while page := list(islice(market.agg_trades_from(by_id[-1].id + 1 if by_id else by_time[0].id, now), limit)):
        by_id += page
    assert by_id == by_time
    assert [one.id for one in by_id] == list(range(by_id[0].id, by_id[0].id + len(by_id)))
    backwards = list(islice(market.newest_agg_trades(now + 1), len(by_time)))
    assert backwards[::-1] == by_time
    single = list(islice(market.trades_from(by_time[0].first_trade_id, now), 50))
    assert [one.id for one in single] == list(
        range(by_time[0].first_trade_id, by_time[0].first_trade_id + len(single))
    )


@given(seed=st.integers(0, 2**70), symbol=st.sampled_from(["BTC/USDT", "FOO/BTC"]), day=st.integers(0, 3000))
@settings(deadline=None, max_examples=20)
def test_a_made_up_market_is_the_same_wherever_one_looks_first(seed: int, symbol: str, day: int) -> None:
    start = LISTED_MS + day * DAY_MS
    whole = SyntheticTape(seed, symbol).candles(start - 2 * DAY_MS, start + 3 * DAY_MS)
    alone = SyntheticTape(seed, symbol)
    part = alone.candles(start + 3600_000, start + DAY_MS + 1)
    assert part == whole.filter(
        (open_times_ms(whole) >= start + 3600_000) & (open_times_ms(whole) <= start + DAY_MS)
    )
    good, refusals = check(whole, ONE_MINUTE, start + 5 * DAY_MS)
    assert good.all(), refusals


def test_ids_are_dense_from_the_listing_on(solana: SyntheticTape) -> None:
    assert solana.first_ids(LISTED_MS).print == solana.first_ids(LISTED_MS).trade == 0
    for open_ms in (LISTED_MS + 5 * DAY_MS, LISTED_MS + 5 * DAY_MS - MINUTE_MS, LISTED_MS + 123_456 * MINUTE_MS):
        ids = solana.first_ids(open_ms)
        assert solana.minute_of_print(ids.print - 1) < open_ms
        assert solana.minute_of_trade(ids.trade - 1) < open_ms
    assert solana.next_open(0) == LISTED_MS
    assert solana.previous_open(LISTED_MS) is None


def test_made_up_markets_have_quiet_minutes_and_whole_outages() -> None:
    """An outage shows as recorded ones do: flat minutes, an early end, absent minutes, in all symbols at once."""
    span = (LISTED_MS, LISTED_MS + 200 * DAY_MS)
    tables = [SyntheticTape(SEED, symbol).candles(*span) for symbol in ("BTC/USDT", "SOL/USDT")]
    absent = []
    for table in tables:
        times = open_times_ms(table)
        assert 0 < (~traded(table)).sum() < len(times) * 0.05
        holes = np.flatnonzero(np.diff(times) > MINUTE_MS)
        absent.append([(int(times[at]), int(times[at + 1])) for at in holes])
        early = np.flatnonzero(~table.column("early_close_time").is_null().to_numpy())
        assert early.tolist() == holes.tolist()
        assert not traded(table)[holes].any()
    assert len(absent[0]) > 3
    assert absent[0] == absent[1]


def test_a_hundred_thousand_minutes_are_made_quickly() -> None:
    began = time.perf_counter()
    table = SyntheticTape(SEED, "ETH/USDT").candles(LISTED_MS, LISTED_MS + 70 * DAY_MS)
    assert table.num_rows > 100_000
    assert time.perf_counter() - began < 2


def test_seeds_and_symbols_differ() -> None:
    closes = [
        SyntheticTape(seed, symbol).candles(LISTED_MS, LISTED_MS + 1).column("close")[0].as_py()
        for seed in (1, 2)
        for symbol in ("BTC/USDT", "ETH/USDT", "AAA/USDT", "AAB/USDT")
    ]
    assert max(Counter(closes).values()) == 1


@pytest.mark.recorded
def test_recorded_candles_are_served_as_they_are(
    bitcoin: RecordedTape, recorded_candles: Callable[[str, str], pa.Table]
) -> None:
    assert (
        bitcoin.candles(0, bitcoin.end_ms)
        == recorded_candles("binance_spot_BTCUSDT_1m_2023", "1m").combine_chunks()
    )
    market = Market(bitcoin)
    around = market.klines(ONE_MINUTE, bitcoin.end_ms, OUTAGE - 2 * MINUTE_MS, OUTAGE + DAY_MS, 4)
    assert open_times_ms(around).tolist() == [
        *(OUTAGE - 2 * MINUTE_MS, OUTAGE - MINUTE_MS, OUTAGE + 80 * MINUTE_MS, OUTAGE + 81 * MINUTE_MS)
    ]
    assert market.klines(ONE_MINUTE, OUTAGE + 30 * MINUTE_MS, None, None, 1)["trades"].to_pylist() == [0]


@pytest.mark.recorded
@pytest.mark.parametrize("timeframe", ["15m", "1h"])
def test_larger_candles_equal_the_recorded_ones(
    bitcoin: RecordedTape, recorded_candles: Callable[[str, str], pa.Table], timeframe: str
) -> None:
    frame = Timeframe.parse(timeframe)
    expected = recorded_candles(f"binance_spot_BTCUSDT_{timeframe}_2023", timeframe)
    served = Market(bitcoin).klines(frame, bitcoin.end_ms, bitcoin.start_ms, bitcoin.end_ms, 10**6)
    assert served.combine_chunks() == expected.combine_chunks()


def recorded_file(folder: Path, name: str, columns: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(columns), folder / name)


FLAT = {"open": [1.5] * 2, "high": [1.5] * 2, "low": [1.5] * 2, "close": [1.5] * 2}


def test_files_of_one_symbol_are_joined_and_the_complete_one_wins(tmp_path: Path) -> None:
    recorded_file(
        tmp_path,
        "binance_spot_AAABTC_1m_ohlcv_a.parquet",
        {"open_time_ms": [LISTED_MS, LISTED_MS + MINUTE_MS], **FLAT, "volume_base": [100.0, 100.0]},
    )
    recorded_file(
        tmp_path,
        "binance_spot_AAABTC_1m_b.parquet",
        {
            "open_time_ms": [LISTED_MS + MINUTE_MS, LISTED_MS + 2 * MINUTE_MS],
            **FLAT,
            "volume_base": [7.0, 0.0],
            "volume_quote": [10.5, 0.0],
            "trades": [2, 0],
            "taker_buy_base": [3.0, 0.0],
            "taker_buy_quote": [4.5, 0.0],
            "close_time_ms": [LISTED_MS + 2 * MINUTE_MS - 1, LISTED_MS + 2 * MINUTE_MS + 5],
        },
    )
    (tmp_path / "binance_spot_AAABTC_15m_c.parquet").write_bytes(b"")
    files = recorded_symbols(tmp_path)
    assert list(files) == ["AAABTC"]
    assert recorded_range(files["AAABTC"]) == (LISTED_MS, LISTED_MS + 3 * MINUTE_MS)
    tape = RecordedTape("AAABTC", files["AAABTC"])
    assert (tape.listing.symbol, tape.listing.price_decimals, tape.listing.lot_decimals) == ("AAA/BTC", 1, 0)
    rows = tape.candles(tape.start_ms, tape.end_ms)
    assert rows["volume"].to_pylist() == [100.0, 7.0, 0.0]
    assert rows["trades"].to_pylist() == [20, 2, 0]
    assert rows["quote_volume"].to_pylist() == [150.0, 10.5, 0.0]
    early = rows["early_close_time"].cast(pa.int64()).to_pylist()
    assert early == [None, None, LISTED_MS + 2 * MINUTE_MS + 5]


def test_decimals_are_read_exactly() -> None:
    texts = ["0.07", "29187.29", "964875790.9849850", "1234567890.1234567"]
    column = pa.chunked_array([pa.array(texts).cast(pa.decimal128(18, 7))])
    assert _exact_floats(column).tolist() == [float(text) for text in texts]


def test_folders_and_symbols_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        recorded_symbols(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="it has none"):
        recorded_symbols(tmp_path)
    broken = tmp_path / "binance_spot_BTCUSDT_1m_x.parquet"
    broken.write_bytes(b"PAR1 but not really")
    with pytest.raises(NotFound, match="'DOGE/USDT' is not accepted; expected one of: BTC/USDT"):
        wanted_symbols(tmp_path, ("DOGE/USDT",))
    with pytest.raises(BadInput, match="readable Parquet"):
        recorded_range([broken])
    with pytest.raises(BadInput, match="readable Parquet"):
        RecordedTape("BTCUSDT", [broken])
    recorded_file(tmp_path, "binance_spot_BTCUSDT_1m_x.parquet", {"open_time_ms": [1], "open": [1.0]})
    with pytest.raises(BadInput, match="volume_base"):
        RecordedTape("BTCUSDT", [broken])


def test_symbols_split_at_the_quote_asset() -> None:
    assert [split_symbol(one) for one in ("BTCUSDT", "ETHBTC", "BTCFDUSD", "USDCUSDT", "BTCEUR")] == [
        *(("BTC", "USDT"), ("ETH", "BTC"), ("BTC", "FDUSD"), ("USDC", "USDT"), ("BTC", "EUR"))
    ]
    with pytest.raises(BadInput):
        split_symbol("BTCXYZ")


def test_the_clock_runs_at_its_speed() -> None:
    real = [100.0]
    clock = ExchangeClock(1000, 600.0, lambda: real[0])
    assert clock.now_ms() == 1000
    real[0] = 100.5
    assert clock.now_ms() == 301_000
    for speed in (0, -1, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="--speed"):
            ExchangeClock(0, speed)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "BTC/USDT:USDT", ""])
def test_made_up_markets_need_spot_symbols(symbol: str) -> None:
    with pytest.raises(BadInput, match="--symbols"):
        SyntheticTape(1, symbol)
