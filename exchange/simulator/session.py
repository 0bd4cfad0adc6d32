"""A recorded session: what an exchange's sockets sent, message for message, with the requests made in between.

A file of JSON lines, gzipped if its name ends so, in the order of arrival::

    {"recv_ns": 1723161253937085768, "src": "ws", "msg": {"stream": "btcusdt@trade", "data": {...}}}
    {"recv_ns": 1723161254206652067, "src": "rest", "url": "/api/v3/depth?symbol=BTCUSDT&limit=1000", "msg": {...}}

``src`` is ``ws`` (received), ``ws_sent`` (what the recorder sent, its subscriptions), ``ws_open`` (a connection
was made) or ``rest`` (a request at ``url`` was answered). ``msg`` comes last in its line and is kept byte for byte.
Lines without such an envelope are received messages themselves.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from market.errors import BadInput

_PLAIN = b',"src":"ws","msg":{'
_FORM = "a recorded session: JSON lines with recv_ns, src and msg"


class Source(StrEnum):
    """What a line of a session is."""

    MESSAGE = "ws"
    SENT = "ws_sent"
    OPEN = "ws_open"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a session."""

    source: Source
    #: When it was received, nanoseconds since the epoch by the recorder's clock.
    time_ns: int
    #: The message as it came.
    text: str
    #: Of requests and connections.
    url: str = ""

    @property
    def symbol(self) -> str:
        """The ``symbol`` that a request was about; empty without one."""
        return "".join(parse_qs(urlsplit(self.url).query).get("symbol", [])[:1])


@dataclass(frozen=True)
class Session:
    """All lines of a recorded session."""

    name: str
    lines: list[Line] = field(repr=False)
    _events: dict[str, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict, repr=False)

    @staticmethod
    def read(path: Path) -> Session:
        """A session from its file.

        :raises BadInput: naming ``--replay``, the file and the line that is wrong.
        """
        try:
            raw = path.read_bytes()
            data = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError, zlib.error) as exc:
            raise BadInput("--replay", str(path), f"a readable file ({exc})") from exc
        lines = list(_lines(path, data))
        if not any(line.source is Source.MESSAGE for line in lines):
            raise BadInput("--replay", str(path), f"{_FORM}; it has no message")
        return Session(path.name, lines)

    @cached_property
    def has_sent(self) -> bool:
        """Whether the recorder's own messages are in it."""
        return any(line.source is Source.SENT for line in self.lines)

    @cached_property
    def is_futures(self) -> bool:
        """Whether it was recorded from Binance's USD-M futures."""
        return any(line.source is Source.REST and "/fapi/" in line.url for line in self.lines)

    @cached_property
    def answers(self) -> dict[str, list[int]]:
        """Places of the recorded order books in it, by symbol."""
        found: dict[str, list[int]] = {}
        for at, line in enumerate(self.lines):
            if line.source is Source.REST and "/depth" in line.url:
                found.setdefault(line.symbol, []).append(at)
        return found

    def events(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Binance's messages of a type (``trade``, ``depthUpdate``, ...): place and content."""
        if kind not in self._events:
            mark = f'"e":"{kind}"'
            self._events[kind] = [
                (at, _event(line.text))
                for at, line in enumerate(self.lines)
                if line.source is Source.MESSAGE and mark in line.text
            ]
        return self._events[kind]

    def sample(self, lines: int) -> Iterator[dict[str, Any]]:
        """Binance's messages with a type among the first so many lines."""
        for line in self.lines[:lines]:
            if line.source is Source.MESSAGE and '"e":"' in line.text:
                yield _event(line.text)


def _event(text: str) -> dict[str, Any]:
    """The content of a message, combined or not."""
    document: dict[str, Any] = orjson.loads(text)
    content: dict[str, Any] = document.get("data", document)
    return content


def stream_of(text: str) -> str:
    """The name of the stream a message belongs to, as fault rules name it; empty for control messages.

    Binance: ``btcusdt@trade``. OKX: ``trades:BTC-USDT``. Bybit: its topic, ``publicTrade.BTCUSDT``. Coinbase:
    ``match:SKL-USD``.
    """
    if text.startswith('{"stream":"'):
        return text[11 : text.index('"', 11)]
    document = orjson.loads(text) if text.startswith("{") else None
    if not isinstance(document, dict):
        return ""
    if "topic" in document:
        return str(document["topic"])
    if "data" in document and isinstance(document.get("arg"), dict):
        return f"{document['arg'].get('channel')}:{document['arg'].get('instId')}"
    if "product_id" in document:
        return f"{document.get('type')}:{document['product_id']}"
    if "s" in document:
        kind = {"depthUpdate": "depth", "24hrTicker": "ticker"}.get(
            document.get("e", "bookTicker"), document.get("e")
        )
        return f"{document['s'].lower()}@{kind or 'bookTicker'}"
    return ""


def _lines(path: Path, data: bytes) -> Iterator[Line]:
    for number, raw in enumerate(data.splitlines(), 1):
        try:
            if raw:
                yield _line(raw)
        except (ValueError, KeyError, TypeError) as exc:
            raise BadInput("--replay", str(path), f"{_FORM}; line {number} is none ({exc!r})") from exc


def _line(raw: bytes) -> Line:
    if not raw.startswith(b'{"recv_ns":'):
        document = orjson.loads(raw)
        return Line(Source.MESSAGE, int(document.get("ts") or document.get("E") or 0) * 1_000_000, raw.decode())
    comma = raw.index(b",")
    if raw.startswith(_PLAIN, comma):
        # Most lines are so, and there are many.
        return Line(Source.MESSAGE, int(raw[11:comma]), raw[comma + len(_PLAIN) - 1 : -1].decode())
    envelope = raw.index(b'"msg":')
    head = orjson.loads(raw[:envelope].rstrip(b", ") + b"}")
    text = raw[envelope + len(b'"msg":') :].strip()[:-1].strip().decode()
    if text.startswith('"'):
        text = orjson.loads(text)
    return Line(Source(head["src"]), int(head["recv_ns"]), text, head.get("url", ""))
