"""Faults of the simulated exchange's streams, without a socket: which message is hit, and what is sent instead."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from exchange.simulator.faults import REST_FAULTS, STREAM_FAULTS, FaultRule, Faults, parse_faults
from exchange.simulator.garbage import FUTURE_MS, KINDS, spoilt
from exchange.simulator.stream_faults import Closed, ConnectionFaults, Cut
from market.errors import BadInput

TRADE = "btcusdt@trade"


class Watch:
    """Real seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def faults_of(*rules: dict[str, Any], watch: Watch | None = None) -> Faults:
    return Faults(parse_faults(list(rules)), watch or Watch())


def message(number: int, stream: str = TRADE) -> bytes:
    return json.dumps({"e": "trade", "E": 5000 + number, "s": stream[:7].upper(), "t": number, "p": "7.5"}).encode()


def sent(faults: ConnectionFaults, numbers: range, stream: str = TRADE) -> list[int]:
    """The ids of what is sent while these go through."""
    return [json.loads(one)["t"] for number in numbers for one in faults.passed(stream, message(number, stream))]


@pytest.mark.parametrize(
    "pattern, hits",
    [
        ("btcusdt@trade", [True, False, False]),
        ("btcusdt@", [True, True, False]),
        ("*@trade", [True, False, True]),
        ("*usdt@*", [True, True, True]),
        ("*@depth*", [False, True, False]),
        ("dogeusdt", [False, False, False]),
    ],
)
def test_streams_are_named_by_their_beginning_or_a_pattern(pattern: str, hits: list[bool]) -> None:
    rule = FaultRule(stream=pattern, do="lose")
    assert [rule.is_about_stream(name) for name in (TRADE, "btcusdt@depth@100ms", "ethusdt@trade")] == hits
    assert not rule.is_about_path("/api/v3/depth")


@pytest.mark.parametrize(
    "rule, field",
    [
        ({"stream": "*", "do": "status"}, "0"),
        ({"path": "/", "do": "lose"}, "0"),
        ({"do": "silence"}, "0"),
        ({"path": "/", "stream": "*", "do": "outage"}, "0"),
        ({"stream": "", "do": "lose"}, "0.stream"),
        ({"stream": "*", "do": "close", "code": 1000}, "0.code"),
        ({"stream": "*", "do": "lose", "every": 0}, "0.every"),
        ({"stream": "*", "do": "garbage", "kind": "nice"}, "0.kind"),
    ],
)
def test_wrong_stream_rules_are_named(rule: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=f"rule {field}"):
        parse_faults([rule])


def test_messages_are_lost_by_count_and_others_not() -> None:
    faults = faults_of({"stream": "*@trade", "from": 3, "count": 2, "do": "lose"})
    connection = ConnectionFaults(faults)
    assert sent(connection, range(2)) == [0, 1]
    assert sent(connection, range(3), "btcusdt@aggTrade") == [0, 1, 2]
    assert sent(connection, range(2, 7)) == [4, 5, 6]
    assert faults.counts() == {"0": 2}
    # Another connection's messages go on counting.
    assert sent(ConnectionFaults(faults), range(3)) == [0, 1, 2]


def test_a_chance_comes_from_the_seed() -> None:
    def kept(seed: int) -> list[int]:
        rule = {"stream": TRADE, "probability": 0.3, "seed": seed, "do": "lose"}
        return sent(ConnectionFaults(faults_of(rule)), range(200))

    assert kept(1) == kept(1) != kept(2)
    assert 110 < len(kept(1)) < 170


def test_every_so_many_seconds_one_is_hit() -> None:
    watch = Watch()
    faults = faults_of({"stream": "*", "every": 10, "seed": 3, "do": "lose"}, watch=watch)
    connection = ConnectionFaults(faults)
    lost = []
    for number in range(1000):
        watch.seconds += 1
        if not connection.passed(TRADE, message(number)):
            lost.append(number)
    waits = [later - earlier for earlier, later in zip([0, *lost], lost, strict=False)]
    assert 85 < len(lost) < 115
    assert 5 <= min(waits) < max(waits) <= 16
    assert faults.counts() == {"0": len(lost)}


@pytest.mark.parametrize(
    "rule, expected",
    [
        ({"do": "duplicate"}, [0, 1, 2, 2, 3, 4, 5, 6, 7]),
        ({"do": "duplicate", "n": 3}, [0, 1, 2, 3, 4, 5, 2, 6, 7]),
        ({"do": "reorder"}, [0, 1, 3, 2, 4, 5, 6, 7]),
        ({"do": "reorder", "n": 3}, [0, 1, 3, 4, 5, 2, 6, 7]),
        ({"do": "lose"}, [0, 1, 3, 4, 5, 6, 7]),
    ],
)
def test_messages_come_twice_or_late_or_not(rule: dict[str, Any], expected: list[int]) -> None:
    connection = ConnectionFaults(faults_of({"stream": "*", "from": 3, **rule}))
    assert sent(connection, range(8)) == expected


def test_messages_are_reordered_within_their_stream() -> None:
    connection = ConnectionFaults(faults_of({"stream": TRADE, "do": "reorder"}))
    assert sent(connection, range(1)) == []
    assert sent(connection, range(50, 53), "ethusdt@trade") == [50, 51, 52]
    assert sent(connection, range(1, 3)) == [1, 0, 2]


@pytest.mark.parametrize("scope, other", [("connection", []), ("stream", [7])])
def test_what_happens_in_a_silence_is_never_sent(scope: str, other: list[int]) -> None:
    watch = Watch()
    faults = faults_of({"stream": "*@trade", "from": 2, "do": "silence", "seconds": 5, "scope": scope}, watch=watch)
    connection = ConnectionFaults(faults)
    assert sent(connection, range(4)) == [0]
    assert sent(connection, range(7, 8), "btcusdt@kline_1m") == other
    assert connection.reply(b"{}") == ([] if scope == "connection" else [b"{}"])
    assert sent(ConnectionFaults(faults), range(1)) == [0]
    watch.seconds += 4.9
    assert sent(connection, range(4, 6)) == []
    watch.seconds += 0.2
    assert sent(connection, range(6, 8)) == [6, 7]
    assert connection.reply(b"{}") == [b"{}"]
    assert faults.counts() == {"0": 1}


def test_a_connection_is_cut_or_closed_at_a_message() -> None:
    connection = ConnectionFaults(faults_of({"stream": "*", "from": 2, "do": "disconnect", "n": 4}))
    assert sent(connection, range(1)) == [0]
    with pytest.raises(Cut) as cut:
        connection.passed(TRADE, message(1))
    assert cut.value.lost == 4
    with pytest.raises(Closed) as closed:
        ConnectionFaults(faults_of({"stream": "*", "do": "close", "code": 1012})).passed(TRADE, message(1))
    assert closed.value.code == 1012


def test_an_outage_is_everywhere_for_its_time() -> None:
    watch = Watch()
    faults = faults_of({"stream": "*", "from": 2, "do": "outage", "seconds": 3}, watch=watch)
    cut = []
    faults.on_outage = lambda: cut.append(watch.seconds)
    one, other = ConnectionFaults(faults), ConnectionFaults(faults)
    assert sent(one, range(1)) == [0]
    for connection in (one, other):
        with pytest.raises(Cut):
            connection.passed(TRADE, message(1))
    watch.seconds += 3
    assert sent(other, range(1)) == [0]
    assert cut == [1000.0]


def test_a_clock_gone_wrong_shows_in_event_times() -> None:
    watch = Watch()
    rule = {"stream": "*", "from": 2, "do": "skew", "milliseconds": -700, "seconds": 3}
    faults = faults_of(rule, watch=watch)
    connection = ConnectionFaults(faults)

    def time(data: bytes) -> int:
        (passed,) = connection.passed(TRADE, data)
        document = json.loads(passed)
        return int(document.get("data", document)["E"])

    combined = json.dumps({"stream": TRADE, "data": json.loads(message(1))}).encode()
    assert time(message(1)) == 5001
    assert time(message(2)) == 4302
    assert (time(message(3)), time(combined), faults.skew_ms) == (4303, 4301, -700)
    assert connection.passed("x", b"pong") == [b"pong"]
    watch.seconds += 3
    assert (time(message(4)), faults.skew_ms) == (5004, 0)


def test_the_first_rule_decides_and_all_count() -> None:
    faults = faults_of({"stream": "*", "do": "duplicate"}, {"stream": "*", "count": 2, "do": "lose"})
    assert sent(ConnectionFaults(faults), range(4)) == [0, 0, 2, 3]
    assert faults.counts() == {"0": 1, "1": 2}


SAMPLES: dict[str, dict[str, Any]] = {
    "trade": {"e": "trade", "E": 1, "s": "BTCUSDT", "t": 12, "p": "7.5", "q": "1.0", "T": 1, "m": True, "M": True},
    "kline": {"e": "kline", "E": 1, "s": "BTCUSDT", "k": {"t": 0, "T": 9, "o": "1", "c": "2", "h": "3", "l": "1"}},
    "depth": {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": 1, "u": 2, "b": [["1.0", "2.0"]], "a": []},
    "bookTicker": {"u": 400, "s": "BTCUSDT", "b": "25.3", "B": "31.2", "a": "25.4", "A": "40.6"},
}


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_what_its_name_says(kind: Any, name: str, combined: bool) -> None:
    document = {"stream": "btcusdt@x", "data": SAMPLES[name]} if combined else SAMPLES[name]
    data = json.dumps(document).encode()
    bad = spoilt(data, kind, random.Random(4))
    assert bad != data
    if kind in ("invalid_json", "truncated") or (kind, name) == ("future_time", "bookTicker"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(bad)
        return
    read = json.loads(bad)
    inner, original = (read["data"] if combined else read), SAMPLES[name]
    if kind == "unknown_fields":
        assert inner.items() > original.items()
    elif kind == "missing_field":
        target, whole = (inner["k"], original["k"]) if name == "kline" else (inner, original)
        assert len(target) == len(whole) - 1
    elif kind == "absurd_price":
        assert ("-1.00000000" in bad.decode()) != ("1e30" in bad.decode())
    else:
        assert inner["E"] == original["E"] + FUTURE_MS
        if name == "kline":
            assert inner["k"]["T"] == 9 + FUTURE_MS


def test_garbage_comes_before_the_message_or_instead() -> None:
    rules: list[dict[str, Any]] = [
        {"stream": "*", "do": "garbage", "kind": "invalid_json"},
        {"stream": "*", "from": 2, "do": "garbage", "kind": "absurd_price", "instead": True},
        {"stream": "*", "from": 3, "count": 40, "do": "garbage", "seed": 2},
    ]
    connection = ConnectionFaults(faults_of(*rules))
    first, second = (connection.passed(TRADE, message(number)) for number in (1, 2))
    assert (len(first), first[1]) == (2, message(1))
    assert [json.loads(one)["p"] in ("-1.00000000", "1e30") for one in second] == [True]
    drawn = [connection.passed(TRADE, message(number))[0] for number in range(3, 43)]
    assert len({len(one) for one in drawn}) >= 5


def test_every_fault_is_of_requests_or_of_streams() -> None:
    assert sorted(REST_FAULTS & STREAM_FAULTS) == ["outage", "skew"]
    assert len(REST_FAULTS | STREAM_FAULTS) == 16


def test_a_rule_that_is_due_when_another_one_hits_waits_for_the_next_message() -> None:
    watch = Watch()
    faults = faults_of(
        {"stream": "*", "every": 10, "do": "lose"}, {"stream": "*", "every": 10, "do": "duplicate"}, watch=watch
    )
    watch.seconds += 20
    assert sent(ConnectionFaults(faults), range(4)) == [1, 1, 2, 3]
    assert faults.counts() == {"0": 1, "1": 1}
