"""Recorded sessions: how their lines are read and their streams named, and what a replay may be asked for."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from chandlery.commands.simulate import speed_of
from exchange.simulator.faults import REST_FAULTS, STREAM_FAULTS
from exchange.simulator.garbage import KINDS
from exchange.simulator.playback import book_at
from exchange.simulator.replay_rest import listings_of
from exchange.simulator.session import Session, Source, stream_of
from market.errors import BadInput

DOCS = Path(__file__).resolve().parents[3] / "docs" / "simulated-exchange.md"


def session_of(folder: Path, *lines: str) -> Session:
    path = folder / "session.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return Session.read(path)


def test_messages_are_kept_byte_for_byte(tmp_path: Path) -> None:
    session = session_of(
        tmp_path,
        '{"recv_ns":5,"conn":"1","src":"ws_open","url":"wss://x/stream?streams=a@trade","msg":null}',
        '{"recv_ns":6,"conn":"1","src":"ws_sent","url":"wss://x","msg":{"op": "subscribe"}}',
        '{"recv_ns":7,"src":"ws","msg":{"b": 1.50,"a":[ ]}}',
        '{"recv_ns": 8, "conn": "1", "src": "ws", "msg": {"b": 2}}',
        '{"recv_ns":9,"src":"ws","msg":"pong"}',
        '{"recv_ns":10,"src":"rest","url":"/api/v3/depth?symbol=BTCUSDT&limit=5","msg":{"bids":[]}}',
        '{"topic":"orderbook.500.XRPUSDT","ts":1733011200691,"data":{}}',
        "",
    )
    assert [(line.source.value, line.time_ns, line.text) for line in session.lines] == [
        ("ws_open", 5, "null"),
        ("ws_sent", 6, '{"op": "subscribe"}'),
        ("ws", 7, '{"b": 1.50,"a":[ ]}'),
        ("ws", 8, '{"b": 2}'),
        ("ws", 9, "pong"),
        ("rest", 10, '{"bids":[]}'),
        ("ws", 1733011200691000000, '{"topic":"orderbook.500.XRPUSDT","ts":1733011200691,"data":{}}'),
    ]
    assert session.has_sent
    assert session.answers == {"BTCUSDT": [5]}
    assert not session.is_futures


@pytest.mark.recorded
def test_every_recorded_session_can_be_read(recorded: Path) -> None:
    files = sorted((recorded / "ws").glob("*.jsonl.gz"))
    small = [path for path in files if path.stat().st_size < 500_000]
    assert len(small) >= 5
    for path in small:
        session = Session.read(path)
        messages = [line for line in session.lines if line.source is Source.MESSAGE]
        assert all(json.loads(line.text) for line in messages[:200])
        assert sum(bool(stream_of(line.text)) for line in messages) > 0.9 * len(messages)


@pytest.mark.parametrize(
    "message, name",
    [
        ({"stream": "btcusdt@depth@100ms", "data": {"e": "depthUpdate"}}, "btcusdt@depth@100ms"),
        ({"e": "trade", "s": "BTCUSDT"}, "btcusdt@trade"),
        ({"e": "depthUpdate", "s": "BTCUSDT"}, "btcusdt@depth"),
        ({"u": 5, "s": "BTCUSDT", "b": "1"}, "btcusdt@bookTicker"),
        ({"arg": {"channel": "trades", "instId": "BTC-USDT"}, "data": []}, "trades:BTC-USDT"),
        ({"event": "subscribe", "arg": {"channel": "trades", "instId": "BTC-USDT"}}, ""),
        ({"topic": "publicTrade.BTCUSDT", "data": []}, "publicTrade.BTCUSDT"),
        ({"type": "match", "product_id": "SKL-USD"}, "match:SKL-USD"),
        ({"result": None, "id": 1}, ""),
        ([], ""),
        ("pong", ""),
    ],
)
def test_streams_are_named_as_fault_rules_name_them(message: object, name: str) -> None:
    text = message if isinstance(message, str) else json.dumps(message, separators=(",", ":"))
    assert stream_of(text) == name


def depth(first: int, last: int, bids: list[list[str]]) -> str:
    change = {"e": "depthUpdate", "s": "BTCUSDT", "U": first, "u": last, "b": bids, "a": [["9.0", "1.0"]]}
    return json.dumps({"recv_ns": last, "src": "ws", "msg": change}, separators=(",", ":"))


def test_a_book_asked_for_later_has_the_changes_since(tmp_path: Path) -> None:
    book = '{"lastUpdateId":12,"bids":[["5.0","1.0"],["4.0","1.0"]],"asks":[["8.0","1.0"]]}'
    session = session_of(
        tmp_path,
        depth(1, 10, [["5.0", "7.0"]]),
        # Sent before the answer was, but newer than it.
        depth(11, 14, [["3.0", "1.0"]]),
        '{"recv_ns":15,"src":"rest","url":"/fapi/v1/depth?symbol=BTCUSDT","msg":' + book + "}",
        depth(15, 16, [["5.0", "0.0"]]),
        depth(17, 18, [["6.0", "0.125"]]),
    )
    assert session.is_futures
    for upto in (0, 2):
        assert book_at(session, "BTCUSDT", upto, 5) == json.loads(book)
    third = book_at(session, "BTCUSDT", 3, 5)
    assert third["lastUpdateId"] == 14
    assert third["bids"] == [["5.0", "1.0"], ["4.0", "1.0"], ["3.0", "1.0"]]
    last = book_at(session, "BTCUSDT", 5, 2)
    assert (last["lastUpdateId"], last["bids"]) == (18, [["6.0", "0.125"], ["4.0", "1.0"]])
    assert last["asks"] == [["8.0", "1.0"], ["9.0", "1.0"]]
    (listing,) = listings_of(session)
    assert (listing.symbol, listing.price_decimals, listing.lot_decimals) == ("BTC/USDT", 0, 3)


def test_only_a_replay_can_be_as_fast_as_it_goes() -> None:
    assert speed_of("max", is_replay=True) == math.inf
    assert speed_of("2.5", is_replay=True) == speed_of("2.5", is_replay=False) == 2.5
    for text in ("max", "0", "-1", "inf", "nan", "fast", ""):
        with pytest.raises(BadInput, match="--speed"):
            speed_of(text, is_replay=False)


def test_every_fault_and_stream_is_documented() -> None:
    text = DOCS.read_text()
    names = {*REST_FAULTS, *STREAM_FAULTS, *KINDS, "miniTicker", "bookTicker", "depth20", "--replay", "--resume"}
    assert [name for name in sorted(names) if name not in text] == []
