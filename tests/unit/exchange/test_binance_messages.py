"""Binance stream messages: recorded sessions are read whole, bad ones refused with a reason, nothing else lost."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.binance.dispatch import Stream, SubscribeAnswer, dispatch
from exchange.binance.streams import BinanceStreams
from exchange.live import open_streams
from exchange.plausible import AGREEING, EventTimes, PriceBand
from exchange.stream import BookChain, BookStart, RefusedMessage
from market.book_message import BookChange
from market.candle_update import CandleUpdate
from market.channel import Channel, Topic
from market.errors import BadInput, NotFound
from market.ticker import Ticker
from market.timeframe import DAY_MS, ONE_MINUTE, Timeframe
from market.trade import Trade

SPOT = "binance_spot_BTCUSDT_2024-08-08_2024-08-09"
FUTURES = "binance_usdm_BTCUSDT_2024-08-08"
TEN_SYMBOLS = "binance_spot_10symbols_2021-04-05"
CANDLES = "binance_spot_4symbols_kline_2021-08-14"

CHANNELS = {
    "trade": Channel.TRADES,
    "aggTrade": Channel.TRADES,
    "kline": Channel.CANDLES,
    "bookTicker": Channel.TICKERS,
    "ticker": Channel.TICKERS,
    "depth": Channel.ORDER_BOOKS,
}
#: 2024-08-08T23:54:15Z
NOW = 1723161255000

TRADE = {"e": "trade", "E": NOW, "s": "BTCUSDT", "t": 7, "p": "61837.63", "q": "0.02", "T": NOW, "m": True}
AGG_TRADE = {**TRADE, "e": "aggTrade", "a": 5, "f": 7, "l": 9}
KLINE = {
    "t": NOW - 15_000, "T": NOW + 44_999, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 2, "o": "1.5", "c": "1.7",
    "h": "1.8", "l": "1.4", "v": "10", "n": 2, "x": False, "q": "16", "V": "4", "Q": "7", "B": "0",
}  # fmt: skip
KLINE_EVENT = {"e": "kline", "E": NOW, "s": "BTCUSDT", "k": KLINE}
BOOK_TICKER = {"u": 1, "s": "BTCUSDT", "b": "61837.63", "B": "3.7", "a": "61837.64", "A": "1.5"}
DAY = {
    "e": "24hrTicker", "E": NOW, "s": "BTCUSDT", "c": "2.5", "b": "2.4", "B": "1", "a": "2.6", "A": "1",
    "o": "1", "h": "3", "l": "0.9", "v": "1000", "q": "1800", "n": 12,
}  # fmt: skip
DEPTH = {"e": "depthUpdate", "E": NOW, "s": "BTCUSDT", "U": 3, "u": 5, "b": [["1.0", "0.0"]], "a": [["2.0", "4"]]}
MESSAGES: dict[str, dict[str, Any]] = {
    "btcusdt@trade": TRADE,
    "btcusdt@aggTrade": AGG_TRADE,
    "btcusdt@kline_1m": KLINE_EVENT,
    "btcusdt@bookTicker": BOOK_TICKER,
    "btcusdt@ticker": DAY,
    "btcusdt@depth@100ms": DEPTH,
}


class Ears:
    """Hears the messages of some streams and keeps what they say."""

    def __init__(
        self, *names: str, futures: bool = False, now_ms: Callable[[], int] = lambda: NOW, leap_ms: int = 60_000
    ) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.refused: list[RefusedMessage] = []
        self.answers: list[SubscribeAnswer] = []
        times = EventTimes(leap_ms)
        streams = {name: self._stream(name, times, futures) for name in names or MESSAGES}
        self.hear = dispatch("binance", streams, self.refused.append, self.answers.append, now_ms)

    def _stream(self, name: str, times: EventTimes, futures: bool) -> Stream:
        symbol, stream = name.split("@")[:2]
        kind, _, interval = stream.partition("_")
        topic = Topic(CHANNELS[kind], symbol.upper(), Timeframe.parse(interval) if interval else None)
        return Stream(
            name, symbol.upper(), topic, lambda one: self.heard.append((name, one)), times, futures=futures
        )

    def take(self, stream: str, data: Any) -> None:
        self.hear(json.dumps({"stream": stream, "data": data}).encode())

    def messages(self) -> list[Any]:
        return [one for _, one in self.heard]


def recorded_messages(path: Path) -> Iterator[tuple[int, bytes, str, dict[str, Any]]]:
    """Of each message: when it was received, its bytes, its stream, its data."""
    with gzip.open(path, "rb") as lines:
        for line in lines:
            entry = orjson.loads(line)
            if entry["src"] == "ws":
                # The message byte for byte.
                raw = line.rstrip()[line.index(b'"msg":') + 6 : -1]
                yield entry["recv_ns"] // 1_000_000, raw, entry["msg"]["stream"], entry["msg"]["data"]


def expected(stream: str, data: dict[str, Any], received_at: int) -> Any:
    """What a recorded message says, read the slow way."""
    kind = stream.split("@")[1].partition("_")[0]
    if kind == "trade":
        return Trade(data["t"], float(data["p"]), float(data["q"]), data["T"], not data["m"], received_at)
    if kind == "aggTrade":
        count = data["l"] - data["f"] + 1
        return Trade(data["a"], float(data["p"]), float(data["q"]), data["T"], not data["m"], received_at, count)
    if kind == "bookTicker":
        return Ticker(received_at, data.get("E"), *(float(data[key]) for key in "bBaA"))
    if kind == "depth":
        sides = [[(float(price), float(quantity)) for price, quantity in data[key]] for key in "ba"]
        return BookChange(data["U"], data["u"], data.get("pu"), sides[0], sides[1], data["E"], received_at)
    k = data["k"]
    prices = [float(k[key]) for key in "ohlcvq"]
    taker = float(k["V"]), float(k["Q"])
    return CandleUpdate(k["t"], *prices, k["n"], *taker, None, k["x"], data["E"], received_at)


@pytest.mark.recorded
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (SPOT, {"bookTicker": 73174, "trade": 19904, "depth": 6495}),
        (FUTURES, {"bookTicker": 66089, "trade": 21313, "depth": 6551}),
        (TEN_SYMBOLS, {"bookTicker": 5408, "depth": 4709, "aggTrade": 1240}),
        (CANDLES, {"depth": 546, "bookTicker": 412, "aggTrade": 28, "kline": 17}),
    ],
)
def test_a_recorded_session_is_read_whole(recorded: Path, name: str, counts: dict[str, int]) -> None:
    messages = list(recorded_messages(recorded / "ws" / f"{name}.jsonl.gz"))
    received = iter([one[0] for one in messages])
    names = sorted({stream for _, _, stream, _ in messages})
    ears = Ears(*names, futures=name == FUTURES, now_ms=lambda: next(received))
    for _, raw, _, _ in messages:
        ears.hear(raw)
    assert ears.refused == []
    assert Counter(stream.split("@")[1].partition("_")[0] for stream, _ in ears.heard) == counts
    for (received_at, _, stream, data), (heard_on, message) in zip(messages, ears.heard, strict=True):
        assert stream == heard_on
        wanted = expected(stream, data, received_at)
        assert (type(message), message) == (type(wanted), wanted)

    by_stream: dict[str, list[Any]] = defaultdict(list)
    for stream, message in ears.heard:
        by_stream[stream].append(message)
    for stream, each in by_stream.items():
        if CHANNELS[stream.split("@")[1].partition("_")[0]] is Channel.TRADES:
            assert [one.id for one in each] == list(range(each[0].id, each[0].id + len(each)))
        elif "@depth" in stream:
            follows = [later.previous_id == one.last_id for one, later in pairwise(each)]
            counts_on = [later.first_id == one.last_id + 1 for one, later in pairwise(each)]
            assert all(follows if name == FUTURES else counts_on)
    if name == CANDLES:
        closed = [one for _, one in ears.heard if isinstance(one, CandleUpdate) and one.closed]
        assert {one.open_time for one in closed} == {1628952360000}
        assert len(closed) == sum(data["k"]["x"] for _, _, stream, data in messages if "kline" in stream) > 0
        assert all(one.open_time < one.event_time >= one.open_time + 60_000 for one in closed)


@pytest.mark.parametrize("stream", MESSAGES)
def test_unknown_fields_are_fine_and_the_envelope_may_be_absent(stream: str) -> None:
    ears = Ears()
    ears.take(stream, MESSAGES[stream])
    ears.take(stream, {**MESSAGES[stream], "zz": {"new": [1]}, "Y": None})
    ears.hear(json.dumps(MESSAGES[stream]).encode())
    assert ears.refused == []
    assert [name for name, _ in ears.heard] == [stream] * 3
    assert len({repr(one) for one in ears.messages()}) == 1


def test_another_pace_of_a_stream_is_the_same_stream() -> None:
    ears = Ears("btcusdt@depth@100ms", futures=True)
    ears.take("btcusdt@depth@0ms", {**DEPTH, "pu": 2})
    ears.take("btcusdt@depth5@0ms", {**DEPTH, "pu": 2})
    ears.take("@", {})
    assert [one.previous_id for one in ears.messages()] == [2]
    assert [one.reason.partition(" is")[0] for one in ears.refused] == [
        "stream: 'btcusdt@depth5@0ms'",
        "stream: '@'",
    ]


def test_a_candle_that_ended_early_says_so() -> None:
    ears = Ears("btcusdt@kline_1m")
    ears.take("btcusdt@kline_1m", {**KLINE_EVENT, "k": {**KLINE, "T": NOW - 15_000 + 41_646, "x": True}})
    (candle,) = ears.messages()
    assert candle.early_close_time == NOW - 15_000 + 41_646
    assert candle.closed


def test_no_offer_is_none_and_not_a_price_of_zero() -> None:
    ears = Ears()
    ears.take("btcusdt@bookTicker", {**BOOK_TICKER, "a": "0.00000000", "A": "0.00000000"})
    ears.take("btcusdt@ticker", {**DAY, "c": "0.0", "o": "0.0", "h": "0.0", "l": "0.0", "v": "0", "q": "0", "n": 0})
    best, day = ears.messages()
    assert (best.bid, best.ask, best.ask_quantity) == (61837.63, None, None)
    assert (day.last, day.open, day.high, day.low, day.volume, day.trades) == (None, None, None, None, 0.0, 0)
    # The last day's message does not bring back older best prices.
    assert day.bid is day.ask is None


BAD = [
    ("btcusdt@trade", {"p": "-1.0"}, "data.p", "-1.0", "> 0"),
    ("btcusdt@trade", {"p": "0.0"}, "data.p", "0.0", "> 0"),
    ("btcusdt@trade", {"p": "1e300"}, "data.p", "1e300", "< 1000000000000"),
    ("btcusdt@trade", {"p": "NaN"}, "data.p", "NaN", "> 0"),
    ("btcusdt@trade", {"p": "Infinity"}, "data.p", "Infinity", "float"),
    ("btcusdt@trade", {"p": None}, "data.p", "None", "float"),
    ("btcusdt@trade", {"q": "-0.1"}, "data.q", "-0.1", "> 0"),
    ("btcusdt@trade", {"t": -1}, "data.t", "-1", ">= 0"),
    ("btcusdt@trade", {"T": NOW // 1000}, "data.T", str(NOW // 1000), ">= 946684800000"),
    ("btcusdt@trade", {"T": NOW * 1000}, "data.T", str(NOW * 1000), "4102444799999"),
    ("btcusdt@trade", {"T": NOW + 61_000}, "T", str(NOW + 61_000), str(NOW + 60_000)),
    ("btcusdt@trade", {"s": "ETHUSDT"}, "s", "ETHUSDT", "BTCUSDT"),
    ("btcusdt@trade", {"m": "perhaps"}, "data.m", "perhaps", "bool"),
    ("btcusdt@aggTrade", {"l": 6}, "l", "6", "7"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "i": "5m"}}, "k.i", "5m", "1m"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "h": "1.6"}}, "k.h", "1.6", "1.7"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "l": "1.6"}}, "k.h", "1.6", "1.5"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "t": NOW}}, "k.t", str(NOW), "1m candle"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "T": NOW + 45_000}}, "k.T", str(NOW + 45_000), "within"),
    ("btcusdt@kline_1m", {"k": {**KLINE, "v": "-3"}}, "data.k.v", "-3", ">= 0"),
    ("btcusdt@bookTicker", {"b": "x"}, "data.b", "x", "float"),
    ("btcusdt@ticker", {"n": -4}, "data.n", "-4", ">= 0"),
    ("btcusdt@depth@100ms", {"u": 2}, "u", "2", "3"),
    ("btcusdt@depth@100ms", {"b": [["1.0", "1"], ["-2.0", "1"]]}, "data.b[1][0]", "-2.0", "> 0"),
    ("btcusdt@depth@100ms", {"a": [["1.0"]]}, "data.a[0]", "['1.0']", "length 2"),
]


@pytest.mark.parametrize(("stream", "change", "field", "value", "accepted"), BAD)
def test_a_bad_message_is_refused_with_its_reason_and_the_stream_goes_on(
    stream: str, change: dict[str, Any], field: str, value: str, accepted: str
) -> None:
    ears = Ears()
    bad = {**MESSAGES[stream], **change}
    ears.take(stream, MESSAGES[stream])
    ears.take(stream, bad)
    ears.take(stream, MESSAGES[stream])
    assert len(ears.heard) == 2
    (refused,) = ears.refused
    assert refused.reason.startswith(f"{field}: ")
    assert value in refused.reason
    assert accepted in refused.reason
    assert json.loads(refused.raw) == {"stream": stream, "data": bad}
    assert (refused.exchange, refused.received_at) == ("binance", NOW)
    assert refused.topic is not None
    assert refused.topic.symbol == "BTCUSDT"


WANTED = {
    "btcusdt@trade": "stpqTm",
    "btcusdt@aggTrade": "sapqflTm",
    "btcusdt@kline_1m": "sEk",
    "btcusdt@bookTicker": "sbBaA",
    "btcusdt@ticker": "sEcohlvqn",
    "btcusdt@depth@100ms": "sEUuba",
}


@pytest.mark.parametrize(("stream", "field"), [(name, field) for name, all_ in WANTED.items() for field in all_])
def test_a_missing_field_is_named(stream: str, field: str) -> None:
    ears = Ears()
    ears.take(stream, {key: value for key, value in MESSAGES[stream].items() if key != field})
    (refused,) = ears.refused
    assert refused.reason == f"data.{field}: is missing"
    assert ears.heard == []


def test_a_change_of_a_futures_book_must_name_the_one_before() -> None:
    ears = Ears("btcusdt@depth@100ms", futures=True)
    ears.take("btcusdt@depth@100ms", {**DEPTH, "pu": 2})
    ears.take("btcusdt@depth@100ms", DEPTH)
    assert [one.previous_id for one in ears.messages()] == [2]
    assert ears.refused[0].reason.startswith("pu: None")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "truncated"),
        (b"garbage", "malformed"),
        (b'{"stream":"btcusdt@trade","data":', "truncated"),
        (b"\xff\xfe\x00", "malformed"),
        (b"[]", "object"),
        (b"{}", "a stream that was subscribed to"),
        (b'{"stream": 5, "data": {}}', "stream: 5"),
        (b'{"stream":"ethusdt@trade","data":{}}', "stream: 'ethusdt@trade'"),
        (b'{"stream":"btcusdt@trade"}', "truncated"),
        (b'{"e":"trade","s":"ETHUSDT"}', "trade ETHUSDT"),
        (b"[" * 200_000, "object"),
        (b'{"stream":"btcusdt@trade","data":' + b"9" * 20_000 + b"}", "out of range"),
    ],
)
def test_what_is_no_message_is_refused(raw: bytes, said: str) -> None:
    ears = Ears()
    ears.hear(raw)
    ears.take("btcusdt@trade", TRADE)
    (refused,) = ears.refused
    assert said in refused.reason
    assert len(refused.raw) <= 4096
    assert refused.raw == raw[:4096].decode("utf-8", "replace")
    assert len(ears.heard) == 1


def test_answers_are_told_from_messages() -> None:
    ears = Ears()
    ears.hear(b'{"result":null,"id":1}')
    ears.hear(b'{"error":{"code":2,"msg":"Invalid request: unknown stream"},"id":2}')
    ears.hear(b'{"code":2,"msg":"Invalid request","id":null}')
    ears.hear(b'{"e":"serverShutdown","E":1723161255000}')
    assert ears.answers == [
        SubscribeAnswer(1),
        SubscribeAnswer(2, "Invalid request: unknown stream", 2),
        SubscribeAnswer(None, "Invalid request", 2),
    ]
    assert ears.refused == ears.heard == []


def test_a_listener_that_raises_is_no_refused_message() -> None:
    def broken(_: object) -> None:
        raise ValueError("a bug")

    refused: list[RefusedMessage] = []
    topic = Topic(Channel.TRADES, "BTC/USDT")
    stream = Stream("btcusdt@trade", "BTCUSDT", topic, broken, EventTimes(), futures=False)
    hear = dispatch("binance", {"btcusdt@trade": stream}, refused.append, print, lambda: NOW)
    with pytest.raises(ValueError, match="a bug"):
        hear(json.dumps({"stream": "btcusdt@trade", "data": TRADE}).encode())
    assert refused == []


@given(st.binary(max_size=300))
def test_no_bytes_raise(raw: bytes) -> None:
    ears = Ears()
    ears.hear(raw)
    assert len(ears.refused) + len(ears.answers) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda one: st.lists(one, max_size=3),
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_no_value_of_any_field_raises_or_gets_through_unchecked(stream: str, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(MESSAGES[stream])))
    ears = Ears()
    ears.take(stream, {**MESSAGES[stream], field: data.draw(JSON)})
    assert len(ears.refused) + len(ears.heard) == 1
    for message in ears.messages():
        for value in message:
            assert not isinstance(value, float) or 0 <= value <= 1e18


def test_an_absurd_price_is_refused_once_and_believed_when_the_next_agrees() -> None:
    ears = Ears()
    for number, price in enumerate(["100", "101", "100000", "102", "5", "5.1", "5.2", "60", "700", "5.3"]):
        ears.take("btcusdt@trade", {**TRADE, "t": number, "p": price})
    # 60 is doubted, 700 too (it is not like 60), then 5.3 is like the last believed one.
    assert [one.price for one in ears.messages()] == [100, 101, 102, 5.1, 5.2, 5.3]
    assert ears.refused[0].reason.startswith("p: 100000.0 is not accepted; expected a price from 10 to 1000")


def test_each_stream_has_prices_of_its_own() -> None:
    ears = Ears("btcusdt@trade", "ethusdt@trade")
    ears.take("btcusdt@trade", TRADE)
    ears.take("ethusdt@trade", {**TRADE, "s": "ETHUSDT", "p": "0.001"})
    assert len(ears.heard) == 2


def test_a_book_ticker_is_doubted_where_both_sides_jump() -> None:
    ears = Ears()
    for bid, ask in [
        ("100", "101"),
        ("0.01", "101"),
        ("100", "5000"),
        ("100", "101"),
        ("1", "1.01"),
        ("99", "100"),
    ]:
        ears.take("btcusdt@bookTicker", {**BOOK_TICKER, "b": bid, "a": ask})
    assert [one.bid for one in ears.messages()] == [100, 0.01, 100, 100, 99]


@given(st.floats(1e-9, 1e11), st.lists(st.floats(0.21, 4.9), max_size=20))
def test_prices_that_move_in_steps_below_five_times_are_all_believed(start: float, steps: list[float]) -> None:
    band, price = PriceBand(), start
    for step in [1.0, *steps]:
        price *= step
        band.check("p", price)


def believed(times: EventTimes, event_time: int, received_at: int) -> bool:
    try:
        times.check("E", event_time, received_at)
    except BadInput:
        return False
    return True


def test_a_sudden_future_is_refused_once() -> None:
    times = EventTimes()
    # Our clock is 1.27 s behind.
    assert believed(times, NOW + 1270, NOW)
    assert not believed(times, NOW + DAY_MS, NOW)
    assert believed(times, NOW + 1280, NOW + 10)
    # A learnt offset counts.
    assert believed(times, NOW + 61_000, NOW + 20)
    assert believed(times, NOW + 120_000, NOW + 30)
    assert not believed(times, NOW + 190_000, NOW + 40)


def test_a_clock_of_ours_that_is_slow_costs_a_few_messages() -> None:
    times = EventTimes()
    said = [believed(times, NOW + 300_000 + second * 1000, NOW + second * 1000) for second in range(50)]
    assert said == [False] * AGREEING + [True] * (50 - AGREEING)


def test_two_garbled_messages_in_a_row_are_both_refused() -> None:
    times = EventTimes(own_time=True)
    assert believed(times, NOW, NOW)
    said = [believed(times, NOW + 365 * DAY_MS + step, NOW + step) for step in range(AGREEING)]
    assert said == [False] * AGREEING
    # A plausible one in between, and all is forgotten.
    assert believed(times, NOW + 20, NOW + 20)
    assert not believed(times, NOW + 365 * DAY_MS, NOW + 30)


def test_the_past_and_a_replay_at_any_speed_are_fine() -> None:
    times = EventTimes()
    assert believed(times, NOW - 3000 * DAY_MS, NOW)
    # A minute of market in a second, past our own time and on.
    assert all(believed(times, NOW - DAY_MS + step * 3000, NOW + step * 50) for step in range(60_000))


def test_an_exchange_that_lives_in_the_past_has_a_future_too() -> None:
    times = EventTimes(own_time=True)
    # Nobody compares by himself before something was learnt.
    assert times.highest == float("-inf")
    then = NOW - 900 * DAY_MS
    assert believed(times, then, NOW)
    assert all(believed(times, then + step * 60_000, NOW + step * 50) for step in range(100))
    assert not believed(times, then + 365 * DAY_MS, NOW + 6000)
    assert believed(times, then + 7_000_000, NOW + 6010)
    # What came first may have been the garbled one.
    times = EventTimes(own_time=True)
    assert believed(times, then + 365 * DAY_MS, NOW)
    assert believed(times, then, NOW + 10)
    assert not believed(times, then + 365 * DAY_MS, NOW + 20)
    # One that runs faster than time is believed all the way.
    assert all(believed(times, then + step * 3_600_000, NOW + step * 50) for step in range(60_000))


def test_topics_become_streams() -> None:
    spot = BinanceStreams("binance", {"BTC/USDT": "BTCUSDT"})
    assert spot.stream_names(Topic(Channel.TRADES, "BTC/USDT")) == ("btcusdt@trade",)
    assert spot.stream_names(Topic(Channel.CANDLES, "BTC/USDT", ONE_MINUTE)) == ("btcusdt@kline_1m",)
    assert spot.stream_names(Topic(Channel.TICKERS, "BTC/USDT")) == ("btcusdt@bookTicker", "btcusdt@ticker")
    assert spot.stream_names(Topic(Channel.ORDER_BOOKS, "BTC/USDT")) == ("btcusdt@depth@100ms",)
    futures = BinanceStreams("binanceusdm", {"BTC/USDT:USDT": "BTCUSDT"})
    assert futures.stream_names(Topic(Channel.TRADES, "BTC/USDT:USDT")) == ("btcusdt@aggTrade",)
    with pytest.raises(NotFound, match="BTC/USDT"):
        spot.stream_names(Topic(Channel.TRADES, "BTC/USD"))
    with pytest.raises(BadInput, match="timeframe"):
        spot.stream_names(Topic(Channel.CANDLES, "BTC/USDT"))


def test_a_client_is_opened_by_the_id_of_its_exchange() -> None:
    for exchange in ("binance", "binanceus", "binanceusdm"):
        client = open_streams(exchange, None, {})
        assert client.exchange == exchange
        assert client.rules.book_start is BookStart.REST
        assert client.rules.dense_trade_ids
        assert client.rules.longest_life is not None
        assert client.rules.longest_life < 86_400
    assert open_streams("binance", None, {}).rules.book_chain is BookChain.FIRST_ID
    assert open_streams("binanceusdm", None, {}).rules.book_chain is BookChain.PREVIOUS_ID
    with pytest.raises(NotFound, match="binance"):
        open_streams("binanse", None, {})
    with pytest.raises(BadInput, match="exchange-url"):
        open_streams("binance", "ftp://x", {})
