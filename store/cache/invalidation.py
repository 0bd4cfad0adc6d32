"""What one process tells the others when values are no longer true."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from market.errors import BadInput
from store.cache.key import CacheKey, check_pattern, pattern_regex

#: Of the message's format; messages of another one are not understood and not used.
VERSION = 1
#: One message names at most so many keys; more are told as several.
MOST_KEYS = 1_000

#: Kinds of values that come from candles: what a changed range of a series makes untrue.
FROM_CANDLES = frozenset({"candles", "candle_version", "series", "statistics", "query"})


@dataclass(frozen=True, kw_only=True)
class SeriesRange:
    """Candles of one series that were written: what was read from ``[start, end)`` before is no longer true."""

    exchange: str
    #: ccxt unified.
    symbol: str
    #: Its name: ``1m``. Larger timeframes are derived from smaller ones, so they may have changed too.
    timeframe: str
    #: Epoch milliseconds.
    start: int
    end: int
    #: The series' revision after the write.
    revision: int

    def concerns(self, key: CacheKey) -> bool:
        """Whether the value of a key may come from these candles: same market, whatever the timeframe."""
        mine = (self.exchange, self.symbol)
        return key.kind in FROM_CANDLES and key.parts[:2] == mine[: len(key.parts)]

    @property
    def patterns(self) -> list[str]:
        """Patterns that together name what :meth:`concerns`."""
        found = []
        for kind in sorted(FROM_CANDLES):
            market = CacheKey(kind, (self.exchange, self.symbol)).text
            found += [kind, CacheKey(kind, (self.exchange,)).text, market, f"{market}:*"]
        return found


@dataclass(frozen=True, kw_only=True)
class Invalidation:
    """Values that are no longer true: by key, by pattern, of a range of a series, or all."""

    #: The process that tells it, so that it can leave its own messages alone.
    sender: str
    keys: tuple[CacheKey, ...] = ()
    #: See :func:`store.cache.key.check_pattern`.
    pattern: str | None = None
    series: SeriesRange | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if len(self.keys) > MOST_KEYS:
            raise BadInput("keys", len(self.keys), f"at most {MOST_KEYS} keys in one message")
        if self.pattern is not None:
            check_pattern(self.pattern)

    def matcher(self) -> Callable[[CacheKey], bool]:
        """Tells of a key whether its value is no longer true."""
        if self.everything:
            return lambda key: True
        keys, series = frozenset(self.keys), self.series
        matches = None if self.pattern is None else pattern_regex(self.pattern).match

        def concerned(key: CacheKey) -> bool:
            if key in keys or (series is not None and series.concerns(key)):
                return True
            return matches is not None and matches(key.text) is not None

        return concerned

    def packed(self) -> bytes:
        """As a message: MessagePack of ``[version, sender, everything, keys, pattern, series]``.

        ::

            [1, "7f3a…", false, ["position:binance:BTC/USDT"], null, null]
            [1, "7f3a…", false, [], null, ["binance", "BTC/USDT", "1m", 1700000000000, 1700000060000, 17]]
        """
        one = self.series
        series = one and (one.exchange, one.symbol, one.timeframe, one.start, one.end, one.revision)
        return msgspec.msgpack.encode(
            (VERSION, self.sender, self.everything, [key.text for key in self.keys], self.pattern, series)
        )

    @classmethod
    def unpack(cls, message: bytes) -> Invalidation | None:
        """The message of :meth:`packed`; None if it is of another version or not one of ours."""
        try:
            version, sender, everything, texts, pattern, series = msgspec.msgpack.decode(message, type=_MESSAGE)
            if version != VERSION:
                return None
            return cls(
                sender=sender,
                everything=everything,
                keys=tuple(CacheKey.parse(text) for text in texts),
                pattern=pattern,
                series=series and _series(series),
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, BadInput):
            return None


_SERIES = tuple[str, str, str, int, int, int]
_MESSAGE = tuple[int, str, bool, list[str], str | None, _SERIES | None]


def _series(parts: _SERIES) -> SeriesRange:
    exchange, symbol, timeframe, start, end, revision = parts
    return SeriesRange(
        exchange=exchange, symbol=symbol, timeframe=timeframe, start=start, end=end, revision=revision
    )


def of_keys(sender: str, keys: Iterable[CacheKey]) -> list[Invalidation]:
    """Messages that name these keys, as many as it takes."""
    named = tuple(dict.fromkeys(keys))
    return [
        Invalidation(sender=sender, keys=named[first : first + MOST_KEYS])
        for first in range(0, len(named), MOST_KEYS)
    ]
