"""What exchanges should not send: counted, kept with a reason, and never taken for the truth. The streams go on."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest

from chandlery import live_feed
from chandlery.settings import Settings
from chandlery.status_file import STATUS_NAME
from chandlery.wiring import Store, opened_store
from exchange.history import open_history
from exchange.simulator.faults import GarbageKind
from ingest.feed_status import FeedStatus
from ingest.instrument_capture import capture_daily
from ingest.route import Path as DataPath
from market.candle import COLUMNS
from market.channel import Channel
from market.instrument import Series
from market.timeframe import DAY_MS, MINUTE_MS, ONE_MINUTE
from store.bus.memory import MemoryBus
from store.bus.opening import opened_bus
from store.message_quarantine import KEPT_MESSAGES, QuarantinedMessage
from tests.acceptance.conftest import Command
from tests.conftest import ManualClock
from tests.support.made_candles import batch, made
from tests.support.notes import eventually
from tests.support.watched_feed import BTC, ETH, EXCHANGE, Heard, check_shown, exchange, kept, running, truth

KINDS: tuple[GarbageKind, ...] = get_args(GarbageKind)
#: Streams of one symbol, and what they bring.
STREAMS = {
    "btcusdt@trade": Channel.TRADES,
    "btcusdt@kline": Channel.CANDLES,
    "btcusdt@depth": Channel.ORDER_BOOKS,
    "btcusdt@bookTicker": Channel.TICKERS,
    "btcusdt@ticker": Channel.TICKERS,
}
#: Spoilt messages one after the other, and those in between that are left alone.
SPOILT, LEFT_ALONE = 2, 2
#: Messages of a stream that are left alone first: the book begins, trades get a beginning.
FIRST = 10
#: All closes of more than a minute of the exchange in a row, one every second, are replaced.
REPLACED = 30
#: A reason names the field, what it was, and what it should have been; or that there is no telling.
_FIELD = re.compile(r"(message|[\w.\[\]]+): ('.*'|[^ ]+) is not accepted; expected .+|[\w.\[\]]+: is missing")
_NO_JSON = re.compile(r"JSON is malformed: .+|Input data was truncated")


def garbage() -> list[dict[str, Any]]:
    """Every kind on every stream, beside the message and in its place; in another order on each stream."""
    rules: list[dict[str, Any]] = []
    for number, stream in enumerate(STREAMS):
        cases = [(kind, instead) for instead in (False, True) for kind in KINDS[number:] + KINDS[:number]]
        for at, (kind, instead) in enumerate(cases):
            begin = FIRST + at * (SPOILT + LEFT_ALONE)
            rule = {"stream": stream, "do": "garbage", "kind": kind, "instead": instead, "seed": 3}
            rules.append(rule | {"from": begin, "count": SPOILT})
    replaced = {"stream": "ethusdt@kline", "do": "garbage", "kind": "truncated", "instead": True}
    return [*rules, replaced | {"from": FIRST, "count": REPLACED}]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """A bus of which the test hears everything."""
    found = Heard()

    @asynccontextmanager
    async def ours(url: object) -> AsyncIterator[MemoryBus]:
        async with opened_bus(None):
            yield found.bus

    monkeypatch.setattr(live_feed, "opened_bus", ours)
    return found


def check_quarantine(found: list[QuarantinedMessage], status: FeedStatus, hits: Mapping[str, int]) -> None:
    """What was spoilt so that it cannot be used was kept with its reason; nothing else was."""
    rules = garbage()
    refused = status.writer.refused_messages
    assert refused == sum(one.times for one in found)
    assert refused <= sum(hits[str(at)] for at, rule in enumerate(rules) if rule["kind"] != "unknown_fields")
    for one in found:
        assert (_FIELD.fullmatch(one.reason) and one.channel) or _NO_JSON.fullmatch(one.reason), one.reason
        assert "newField" not in one.raw
        # A field that nobody asked for may be missing or absurd; where it was refused, it must have been so.
        assert one.raw.startswith('{"stream":"')
    channels = Counter((one.channel, _kind(one.reason)) for one in found)
    for channel in Channel:
        for kind in ("missing", "price", "time"):
            assert channels[channel, kind], (channel, kind, channels)
    for stream in STREAMS:
        broken = [one for one in found if _NO_JSON.fullmatch(one.reason) and stream in one.raw]
        # Both kinds, beside the message and in its place.
        assert sum(one.times for one in broken) >= 4 * SPOILT, stream


def _kind(reason: str) -> str:
    """What is wrong, by the reason."""
    if reason.endswith("is missing"):
        return "missing"
    if "'-1.00000000'" in reason or "1e30" in reason or "1e+30" in reason:
        return "price"
    return "time" if "a time of at most" in reason else "other"


async def test_garbage_on_every_stream_harms_nothing(tmp_path: Path, heard: Heard) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with exchange(tmp_path, garbage()) as (url, begin):
        async with running(url, begin, home, heard) as feed:

            async def all_hit() -> bool:
                hits = await feed.json("/simulator/faults")
                return all(hits[str(at)] == rule["count"] for at, rule in enumerate(garbage()))

            await eventually(all_hit, "every rule has hit")
            await kept(feed, (BTC, ETH), await feed.now())
            await feed.opened.writer.durable()
            status = feed.status()
            refused = status.writer.refused_messages
            says = _says(home / STATUS_NAME, lambda body: body["writer"]["refused_messages"] == refused)
            await eventually(says, "the status file says it too")
            found = await feed.store.refused_messages(EXCHANGE, KEPT_MESSAGES)
            hits = await feed.json("/simulator/faults")
        check_quarantine(found, status, hits)
        check_shown(feed, await feed.now())
    # The streams went on: one connection from beginning to end, on which everything came back by itself.
    assert [one.reconnects for one in status.connections] == [0]
    assert {one.path for one in status.routes} == {DataPath.STREAM}
    assert {symbol: one.state for symbol, one in status.books} == {BTC: "live", ETH: "live"}
    assert sum(one.resyncs for _, one in status.books) > 0
    assert sum(one.refilled for one in status.routes if one.topic.channel is Channel.TRADES) > 0
    assert all(not one.different for one in status.built.values())
    ledger = await _sources(home, Series(EXCHANGE, ETH, ONE_MINUTE))
    assert len(ledger) > 1, "closed candles that came as garbage were asked for over REST"


def _says(file: Path, condition: Callable[[dict[str, Any]], bool]) -> Callable[[], Awaitable[bool]]:
    """Whether the status file says it."""

    async def says() -> bool:
        return condition(orjson.loads(await asyncio.to_thread(file.read_bytes)))

    return says


async def _capture(url: str, store: Store) -> None:
    """What is done once a day, done once, now."""
    history = open_history(EXCHANGE, url)
    nights = 0

    async def sleep(seconds: float) -> None:
        nonlocal nights
        nights += 1
        if nights == 2:
            raise asyncio.CancelledError

    try:
        with pytest.raises(asyncio.CancelledError):
            await capture_daily(history, store, ManualClock(), lambda listed: None, sleep)
    finally:
        await history.close()


async def _sources(home: Path, series: Series) -> set[str]:
    """Where the candles of a series came from."""
    async with opened_store(Settings(home=home), read_only=True) as store:
        return {one.source for one in await store.coverage(series)}


#: When the exchange no longer trades ETH, milliseconds of its time after the beginning; and the message of a stream
#: at which it cuts the connection, later.
DELISTED_AFTER = 5 * MINUTE_MS
CUT_AT = 130


async def test_a_symbol_delisted_on_the_way_is_told_and_the_others_go_on(
    tmp_path: Path, heard: Heard, chandlery: Command
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    cut = [{"stream": "btcusdt@bookTicker", "do": "disconnect", "from": CUT_AT}]
    with exchange(tmp_path, cut, delisted={ETH: DELISTED_AFTER}) as (url, begin):
        async with running(url, begin, home, heard) as feed:

            async def on_paths() -> bool:
                paths = {(one.topic.symbol, one.path) for one in feed.status().routes}
                again = [one.reconnects > 0 and one.open for one in feed.status().connections]
                return paths == {(BTC, DataPath.STREAM), (ETH, DataPath.REFUSED)} and again == [True]

            await eventually(on_paths, "BTC streams after the cut, and ETH is refused")
            status = feed.status()
            await eventually(_says(home / STATUS_NAME, lambda body: body["at"] > status.at), "it is in the file")
            told = chandlery("status", "--home", home)
            await kept(feed, (BTC,), await feed.now())
            await _capture(url, feed.store)
            markets = {one.symbol: one.active for one in await feed.store.instruments(EXCHANGE)}
            candles = await feed.store.read(Series(EXCHANGE, ETH, ONE_MINUTE), begin, begin + DAY_MS)
    reasons = [one.reason or "" for one in status.routes if one.topic.symbol == ETH]
    assert all("'ETH/USDT' is not accepted; expected a symbol that binance trades" in one for one in reasons)
    assert told.code == 1
    for topic in ("trades", "tickers", "order_books", "candles"):
        assert f"{topic} ETH/USDT" in told.err
    assert "Invalid symbol" in told.err
    assert not any(line.startswith(("trades BTC", "candles BTC")) for line in told.err.splitlines())
    assert markets == {BTC: True, ETH: False}
    assert candles.num_rows
    expected = truth(ETH).minutes(begin + DAY_MS, begin, begin + DELISTED_AFTER)
    assert candles.select(COLUMNS).to_pylist() == expected.slice(0, candles.num_rows).select(COLUMNS).to_pylist()


#: 2024-06-22T00:00:00Z.
NOTED = 1_719_014_400_000
NO_PRICE = QuarantinedMessage(
    exchange=EXCHANGE, channel=Channel.TRADES, symbol=BTC, reason="data.p: is missing", raw="{}", received_at=NOTED
)
CUT_SHORT = QuarantinedMessage(exchange=EXCHANGE, reason="Input data was truncated", raw="{", received_at=NOTED + 1)
ELSEWHERE = replace(NO_PRICE, exchange="okx", symbol=ETH)


@pytest.mark.parametrize(
    "noted, arguments, counts, lines",
    [
        ([], [], {}, []),
        (
            [NO_PRICE, NO_PRICE, CUT_SHORT, ELSEWHERE],
            [],
            {EXCHANGE: (2, 3), "okx": (1, 1)},
            [
                "binance: messages that could not be used: 3; the newest:",
                "  2024-06-22T00:00:00.001Z, 1 times, unknown topic: Input data was truncated",
                "  2024-06-22T00:00:00Z, 2 times, trades BTC/USDT: data.p: is missing",
                "okx: messages that could not be used: 1; the newest:",
                "  2024-06-22T00:00:00Z, 1 times, trades ETH/USDT: data.p: is missing",
            ],
        ),
        ([NO_PRICE, ELSEWHERE], ["--exchange", "okx"], {"okx": (1, 1)}, ["okx: messages"]),
        ([NO_PRICE, CUT_SHORT], ["--symbol", ETH], {EXCHANGE: (1, 1)}, ["unknown topic"]),
        (
            [replace(NO_PRICE, raw=str(number), received_at=NOTED + number) for number in range(5)],
            [],
            {EXCHANGE: (5, 5)},
            ["00:00:00.004Z", "00:00:00.003Z", "00:00:00.002Z"],
        ),
    ],
)
def test_check_remarks_on_messages_that_could_not_be_used(
    noted: list[QuarantinedMessage],
    arguments: list[str],
    counts: dict[str, tuple[int, int]],
    lines: list[str],
    tmp_path: Path,
    chandlery: Command,
) -> None:
    asyncio.run(_note(tmp_path, noted))
    report = chandlery("check", "--home", tmp_path, "--json", *arguments)
    assert report.code == 0, report.err
    shown = report.json["refused_messages"]
    assert {name: (one["kept"], one["received"]) for name, one in shown.items()} == counts
    assert all(len(one["newest"]) <= 3 and "raw" in one["newest"][0] for one in shown.values())
    outcome = chandlery("check", "--home", tmp_path, *arguments)
    assert outcome.code == 0
    said = iter(outcome.err.splitlines())
    assert all(any(line in one for one in said) for line in lines), outcome.err
    assert lines or "could not be used" not in outcome.err


async def _note(home: Path, noted: list[QuarantinedMessage]) -> None:
    """A home with a candle of each exchange and symbol, and these messages."""
    async with opened_store(Settings(home=home)) as store:
        for name in (EXCHANGE, "okx"):
            series = [Series(name, symbol, ONE_MINUTE) for symbol in (BTC, ETH)]
            await store.write_all([batch(made([0]), series=one) for one in series])
        for one in noted:
            await store.refuse_messages([one])
