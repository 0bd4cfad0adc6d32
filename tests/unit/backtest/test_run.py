"""Whole runs over small archives: hand-worked numbers, order of events, holes, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backtest.run import run_backtest
from backtest.source import MissingCandles
from market.coverage import CoverageState
from market.errors import BadInput, Mismatch, NotFound, StoreUnusable, StrategyFailed
from market.instrument import Series
from market.interval import Interval
from market.timeframe import TIMEFRAMES
from store.archive.manifest import read_manifest, series_folder
from tests.unit.backtest.scripted import LEAKY, KeepsTheFrame, Momentum, Scripted
from tests.unit.backtest.written_archive import START, coverage_of, covered, table_of, walk, write_archive
from trading.order import buy, sell
from trading.strategies.sma_cross import SmaCross

MINUTE, HOUR = TIMEFRAMES["1m"], TIMEFRAMES["1h"]
M = MINUTE.milliseconds
BTC, ETH = Series("binance", "BTC/USDT", MINUTE), Series("binance", "ETH/USDT", MINUTE)


def minutes(opens, closes):
    return table_of(START + np.arange(len(opens)) * M, opens, closes)


def run(root: Path, strategy, symbols=("BTC/USDT",), timeframe=MINUTE, **options):
    return run_backtest(root, strategy, "binance", symbols, timeframe, **options)


def test_a_market_order_fills_at_the_next_open_with_fee_and_slippage(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, minutes([100, 102, 104, 106], [101, 103, 105, 107]))
    script = {
        (START + M, "1m", "BTC/USDT"): [buy("BTC/USDT", quantity=2)],
        (START + 3 * M, "1m", "BTC/USDT"): sell("BTC/USDT", fraction=1.0),
    }
    result = run(tmp_path, Scripted(script=script), fee=1.0, slippage=100, cash=1_000)
    bought, sold = result.fills
    # Bought at 102 + 1 %, sold at 106 - 1 %, each with 1 % fee.
    assert (bought.decided_at, bought.filled_at) == (START + M, START + M)
    assert bought.price == pytest.approx(103.02)
    assert bought.fee == pytest.approx(2.0604)
    assert (sold.filled_at, sold.price, sold.fee) == (
        START + 3 * M,
        pytest.approx(104.94),
        pytest.approx(2.0988),
    )
    after_buy = 1_000 - 206.04 - 2.0604
    final = after_buy + 209.88 - 2.0988
    expected = [1_000, after_buy + 2 * 103, after_buy + 2 * 105, final]
    assert [time for time, _ in result.equity] == [START + n * M for n in (1, 2, 3, 4)]
    assert [value for _, value in result.equity] == pytest.approx(expected)
    assert result.final_equity == pytest.approx(final)
    (trip,) = result.round_trips
    assert trip.profit == pytest.approx(final - 1_000)
    assert trip.return_percent == pytest.approx(100 * (final - 1_000) / 208.1004)
    assert result.fees == pytest.approx(4.1592)
    assert result.win_rate_percent == 0.0
    assert result.exposure_percent == 50.0
    # The high is the third value, not the cash to begin with.
    assert result.max_drawdown_percent == pytest.approx(100 * (1 - final / expected[2]))


def test_an_order_at_the_last_candle_is_not_filled(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, minutes([100, 100], [100, 100]))
    result = run(tmp_path, Scripted(script={(START + 2 * M, "1m", "BTC/USDT"): buy("BTC/USDT", fraction=1.0)}))
    assert result.fills == []
    assert result.final_equity == 10_000


def test_an_impossible_order_is_listed_as_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, minutes([100, 100], [100, 100]))
    result = run(tmp_path, Scripted(script={(START + M, "1m", "BTC/USDT"): sell("BTC/USDT", quantity=1)}))
    (refused,) = result.refused
    assert refused.refused_at == START + M
    assert "more than the 0 held" in refused.reason


def test_candles_of_one_instant_come_longer_first_then_by_symbol_after_the_fills(tmp_path: Path) -> None:
    for series in (BTC, ETH):
        write_archive(tmp_path, series, minutes([100] * 120, [100] * 120))
    hour_end = START + 60 * M
    script = {
        (hour_end, "1h", "ETH/USDT"): buy("BTC/USDT", quantity=1),
        (hour_end, "1m", "ETH/USDT"): buy("ETH/USDT", quantity=2),
    }
    strategy = Scripted(script=script, extra=(HOUR,))
    seen = []
    original = Scripted.on_data

    class Watched(Scripted):
        def on_data(self, candle, portfolio):
            decision = original(self, candle, portfolio)
            seen.append((*self.seen[-1][:3], portfolio.positions["BTC/USDT"].quantity))
            return decision

    result = run(tmp_path, Watched(**strategy.parameters), symbols=("ETH/USDT", "BTC/USDT"))
    at = [one[1:3] for one in seen if one[0] == hour_end]
    assert at == [("1h", "BTC/USDT"), ("1h", "ETH/USDT"), ("1m", "BTC/USDT"), ("1m", "ETH/USDT")]
    # Both orders fill at the next minute's open, and the first call after it knows.
    assert {one.filled_at for one in result.fills} == {hour_end}
    assert [one[3] for one in seen if one[0] == hour_end + M] == [1, 1]
    assert result.candles == 2 * (120 + 2)


def test_no_order_fills_at_an_open_that_was_past_when_it_was_decided(tmp_path: Path) -> None:
    """A minute's order for a symbol seen hourly waits for an hour that opens later."""
    write_archive(tmp_path, BTC, minutes([100] * 180, [100] * 180))
    write_archive(tmp_path, ETH.at(HOUR), walk(HOUR, 3))

    class Mixed(Scripted):
        def required_subscriptions(self, symbols, timeframe):
            from trading.strategy import Subscription

            return [Subscription("BTC/USDT", MINUTE), Subscription("ETH/USDT", HOUR)]

    script = {(START + 30 * M, "1m", "BTC/USDT"): buy("ETH/USDT", quantity=1)}
    (only,) = run(tmp_path, Mixed(script=script)).fills
    assert only.filled_at == START + 60 * M


def test_the_hash_and_fingerprint_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path) -> None:
    manifest = write_archive(tmp_path, BTC, walk(MINUTE, 6_000), period="1d")
    write_archive(tmp_path, ETH, walk(MINUTE, 6_000, seed=8), period="1d")
    runs = [run(tmp_path, SmaCross(), read_rows=rows) for rows in (300, 1_441, 500_000)]
    assert len({one.result_hash for one in runs}) == 1
    assert {one.fingerprint for one in runs} == {manifest.fingerprint}
    assert len(runs[0].fills) > 100
    both = [
        run(tmp_path, Momentum(), ("BTC/USDT", "ETH/USDT"), TIMEFRAMES["15m"], read_rows=rows)
        for rows in (400, 9_999)
    ]
    assert both[0].result_hash == both[1].result_hash
    assert both[0].series[0].derived_from == BTC


def test_settings_change_the_hash(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 2_000))
    hashes = {run(tmp_path, SmaCross(), fee=fee).result_hash for fee in (0.0, 0.1)}
    assert len(hashes) == 2


def test_warm_up_is_read_before_the_range_where_the_archive_has_it(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 300))
    later = Interval(START + 100 * M, START + 200 * M)
    strategy = Scripted(warm_up=20)
    assert run(tmp_path, strategy, interval=later).candles == 100
    collected = []

    class Collecting(Scripted):
        def on_data(self, candle, portfolio):
            collected.append(candle.open_time)

    run(tmp_path, Collecting(warm_up=20), interval=later)
    assert (collected[0], len(collected)) == (later.start, 100)
    collected.clear()
    run(tmp_path, Collecting(warm_up=20), interval=Interval(START + 5 * M, later.end))
    assert collected[0] == START + 20 * M


def holed(tmp_path: Path):
    """100 minutes, then 10 unknown ones, then 100 more."""
    table = walk(MINUTE, 210)
    import pyarrow as pa

    table = pa.concat_tables([table.slice(0, 100), table.slice(110)])
    write_archive(tmp_path, BTC, table)
    return Interval(START + 100 * M, START + 110 * M)


def test_missing_candles_are_refused_with_the_list(tmp_path: Path) -> None:
    hole = holed(tmp_path)
    with pytest.raises(
        MissingCandles, match=r"2023-01-01T01:40:00Z, 2023-01-01T01:50:00Z.*chandlery backfill"
    ) as info:
        run(tmp_path, SmaCross())
    assert list(info.value.missing) == [hole]


def test_masked_holes_are_not_shown_not_bridged_and_hold_the_position(tmp_path: Path) -> None:
    hole = holed(tmp_path)
    shown = []

    class Collecting(Scripted):
        def populate_indicators(self, frame):
            import polars as pl

            return frame.with_columns(before=pl.col("close").shift(1))

        def on_data(self, candle, portfolio):
            shown.append((candle.open_time, candle.before))
            return buy("BTC/USDT", fraction=1.0) if candle.available_at == hole.start else None

    result = run(tmp_path, Collecting(warm_up=3), missing="mask")
    opens = [time for time, _ in shown]
    assert not [time for time in opens if hole.start <= time < hole.end]
    # After the hole the strategy waits for its warm-up again, and no indicator is a NaN of the first row.
    assert opens[opens.index(hole.start - M) + 1] == hole.end + 3 * M
    assert all(before == before for _, before in shown)
    (only,) = result.fills
    assert only.filled_at == hole.end
    assert result.exposure_percent == 50.0
    assert list(result.series[0].missing) == [hole]
    assert dict(result.summary())["masked"].startswith("BTC/USDT 1m [2023-01-01T01:40:00Z")


def test_larger_candles_over_a_masked_hole_are_left_out_whole(tmp_path: Path) -> None:
    holed(tmp_path)
    result = run(tmp_path, Scripted(), timeframe=TIMEFRAMES["15m"], missing="mask")
    (missing,) = result.series[0].missing
    assert missing == Interval(START + 90 * M, START + 120 * M)
    assert result.candles == 14 - 2


def test_verified_empty_minutes_are_no_hole_and_an_outage_is(tmp_path: Path) -> None:
    import pyarrow as pa

    table = walk(MINUTE, 210)
    table = pa.concat_tables([table.slice(0, 100), table.slice(110)])
    known = coverage_of(table, MINUTE)
    empty = covered(START + 100 * M, START + 110 * M, CoverageState.EMPTY)
    write_archive(tmp_path, BTC, table, [*known, empty])
    result = run(tmp_path, SmaCross())
    assert result.candles == 200
    assert [str(one) for one in result.series[0].empty] == ["[2023-01-01T01:40:00Z, 2023-01-01T01:50:00Z)"]
    assert not result.series[0].missing
    for state in (CoverageState.OWN_OUTAGE, CoverageState.EXCHANGE_OUTAGE):
        outage = covered(empty.interval.start, empty.interval.end, state)
        write_archive(tmp_path, BTC, table, [*known, outage])
        with pytest.raises(MissingCandles):
            run(tmp_path, SmaCross())


def test_a_range_outside_the_archive_says_what_it_holds(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 100))
    for missing in ("refuse", "mask"):
        with pytest.raises(
            BadInput, match=r"holds binance BTC/USDT 1m from 2023-01-01T00:00:00Z to 2023-01-01T01:40:00Z"
        ):
            run(tmp_path, SmaCross(), interval=Interval(START - 100 * M, START - 50 * M), missing=missing)


def test_a_series_that_is_not_archived(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 100))
    with pytest.raises(NotFound, match=r"ETH/USDT.*holds binance BTC/USDT 1m.*chandlery archive"):
        run(tmp_path, SmaCross(), ("ETH/USDT",))
    with pytest.raises(NotFound, match="holds nothing"):
        run(tmp_path / "elsewhere", SmaCross())


@pytest.mark.parametrize(
    "options",
    [{"fee": -1}, {"fee": float("nan")}, {"slippage": 10_000}, {"cash": 0}, {"missing": "fill"}, {"symbols": ()},
     {"symbols": ("BTC/USDT", "BTC/USDT")}, {"symbols": ("BTCUSDT",)},
     {"interval": Interval(START + 1, START + 59_000)}],
)  # fmt: skip
def test_bad_options_are_named(tmp_path: Path, options) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 100))
    name = next(iter(options))
    with pytest.raises(BadInput, match="range" if name == "interval" else name):
        run(tmp_path, SmaCross(), **options)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 3_000), period="1d")
    manifest = read_manifest(tmp_path, BTC)
    assert manifest is not None
    path = series_folder(tmp_path, BTC) / manifest.files[1].name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreUnusable, match=rf"{path.name} is damaged"):
        run(tmp_path, SmaCross())
    path.unlink()
    with pytest.raises(StoreUnusable, match=rf"{path.name} .* is not there"):
        run(tmp_path, SmaCross())


def test_rows_other_than_the_manifest_promises_are_found(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    manifest = write_archive(tmp_path, BTC, walk(MINUTE, 100))
    path = series_folder(tmp_path, BTC) / manifest.files[0].name
    pq.write_table(walk(MINUTE, 100, seed=99), path)
    with pytest.raises(StoreUnusable, match="not those of the manifest"):
        run(tmp_path, SmaCross())


def test_a_ledger_that_promises_more_than_the_files_hold_is_found(tmp_path: Path) -> None:
    table = walk(MINUTE, 100)
    write_archive(tmp_path, BTC, table, [covered(START, START + 120 * M, CoverageState.PRESENT)])
    with pytest.raises(Mismatch, match="2023-01-01T01:40:00Z"):
        run(tmp_path, SmaCross())


def test_paths_with_pattern_characters_are_plain_paths(tmp_path: Path) -> None:
    root = tmp_path / "a[b]*?c"
    write_archive(root, BTC, walk(MINUTE, 50))
    assert run(root, Scripted()).candles == 50


class Raises(Scripted):
    def on_data(self, candle, portfolio):
        if candle.open_time == START + 10 * M:
            return 1 / 0
        return buy("BTC/USDT", quantity=0.001)


class ReturnsNonsense(Scripted):
    def on_data(self, candle, portfolio):
        return "buy!"


class OrdersElsewhere(Scripted):
    def on_data(self, candle, portfolio):
        return buy("ETH/USDT", quantity=1)


class OrdersBadly(Scripted):
    def on_data(self, candle, portfolio):
        return buy("BTC/USDT", quantity=-1)


class Misspells(Scripted):
    def on_data(self, candle, portfolio):
        return candle.fsat


class ShortFrame(Scripted):
    def populate_indicators(self, frame):
        return frame.tail(3)


class NoFrame(Scripted):
    def populate_indicators(self, frame):
        return None


class BadColumn(Scripted):
    def populate_indicators(self, frame):
        import polars as pl

        return frame.with_columns(pl.lit(1.0).alias("fast average"))


class Waits(Scripted):
    async def on_data(self, candle, portfolio):
        import asyncio

        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Raises, r"test_run.py line \d+: ZeroDivisionError: division by zero"),
        (ReturnsNonsense, r"test_run.py line \d+: on_data returned 'buy!'; expected None, an Order"),
        (OrdersElsewhere, r"on_data ordered ETH/USDT, and the strategy subscribed to BTC/USDT"),
        (OrdersBadly, r"test_run.py line \d+: BadInput: order quantity: -1"),
        (Misspells, r"test_run.py line \d+: AttributeError: .*fsat"),
        (ShortFrame, r"populate_indicators returned 3 rows for 100"),
        (NoFrame, r"populate_indicators returned NoneType; expected a polars DataFrame"),
        (BadColumn, r"populate_indicators added a column that no candle can have: .*fast average"),
        (Waits, r"on_data waited for something"),
    ],
)
def test_a_strategy_that_fails_gives_a_partial_result_with_its_line(tmp_path: Path, kind, message: str) -> None:
    import re

    write_archive(tmp_path, BTC, walk(MINUTE, 100))
    result = run(tmp_path, kind())
    assert result.failure is not None
    assert re.search(message, result.failure), result.failure
    assert not result.ok
    assert result.to_json()["complete"] is False
    assert result.summary()[0][0] == "PARTIAL RESULT"
    assert len(result.fills) == (10 if kind is Raises else 0)


def test_subscriptions_must_be_subscriptions(tmp_path: Path) -> None:
    class Wrong(Scripted):
        def required_subscriptions(self, symbols, timeframe):
            return list(symbols)

    with pytest.raises(StrategyFailed, match="required_subscriptions returned"):
        run(tmp_path, Wrong())


def test_an_async_on_data_that_does_not_wait_gives_the_same(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 2_000))

    class Awaited(Momentum):
        async def on_data(self, candle, portfolio):
            return Momentum.on_data(self, candle, portfolio)

    plain, awaited = run(tmp_path, Momentum()), run(tmp_path, Awaited())
    assert plain.fills
    assert awaited.result_hash == plain.result_hash


def test_the_strategy_passed_in_keeps_no_state_of_a_run(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 100))
    strategy = Scripted()
    run(tmp_path, strategy)
    assert strategy.seen == []


def test_json_is_plain(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 3_000))
    result = run(tmp_path, SmaCross(), tripwire=True)
    data = json.loads(json.dumps(result.to_json()))
    for name in ("candles_per_second", "fingerprint", "result_hash", "trades"):
        assert name in data
    assert len(data["trades"]) == data["round_trips"] > 10
    assert data["settings"]["parameters"] == {"fast": 10, "slow": 30, "stake": 1.0}
    assert data["tripwire"]["leaks"] == []
    assert {name for name, _ in result.summary()} >= {"return", "sharpe", "result hash", "tripwire"}


@pytest.mark.parametrize("kind", LEAKY)
def test_the_tripwire_finds_a_planted_leak(tmp_path: Path, kind) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 3_000))
    result = run(tmp_path, kind(), tripwire=True)
    assert len(result.tripwire_cuts) == 5
    found = {one.cut_ms for one in result.leaks}
    # An indicator that leaks differs at every cut; a decision that leaks only where it would have been another.
    assert found == set(result.tripwire_cuts) if kind is not KeepsTheFrame else found
    assert not result.ok


@pytest.mark.parametrize("strategy", [SmaCross(), Momentum()])
@pytest.mark.parametrize("timeframe", ["1m", "5m"])
def test_the_tripwire_passes_clean_strategies(tmp_path: Path, strategy, timeframe: str) -> None:
    write_archive(tmp_path, BTC, walk(MINUTE, 6_000))
    write_archive(tmp_path, ETH, walk(MINUTE, 6_000, seed=3))
    result = run(tmp_path, strategy, ("BTC/USDT", "ETH/USDT"), TIMEFRAMES[timeframe], tripwire=True)
    assert result.fills
    assert result.ok, result.leaks


def test_an_end_that_is_left_out_is_the_archives(tmp_path: Path) -> None:
    write_archive(tmp_path, BTC, minutes([100, 102, 104, 106], [101, 103, 105, 107]))
    end = START + 4 * M
    assert run(tmp_path, Scripted(), start_ms=START + M).interval == Interval(START + M, end)
    assert run(tmp_path, Scripted(), end_ms=end - M).interval == Interval(START, end - M)
    with pytest.raises(BadInput, match=r"range: .* The archive holds binance BTC/USDT 1m from"):
        run(tmp_path, Scripted(), start_ms=end)
