"""What is live now, for readers: tickers, order books, recent trades, each with the tier that gave it and its age.

Nothing is loaded for them: what ingest does not hold is not there. Trades alone are joined with those that were
recorded, where recording is on.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from market.book_message import BookSnapshot
from market.channel import Channel
from market.clock import Clock, iso
from market.errors import BadInput, NotFound, StoreUnavailable
from market.instrument import check_exchange, check_symbol
from market.ticker import Ticker
from market.timeframe import DAY_MS
from market.trade import Trade
from store.cache.shared_values import ROUTER_TIER, SharedAway
from store.candle_store import DATABASE_TIER
from store.live_source import LiveSource, LiveValue
from store.trade_store import TRADE_HISTORY_DAYS, TradeStore

#: Levels of one side that may be asked for.
MOST_LEVELS = 1_000
#: Trades that one answer may have, and that are asked of router memory.
MOST_TRADES = 5_000
_MOST_LIVE = 10_000
#: Router memory holds the trades received in so many milliseconds.
_LIVE_MS = 10 * 60_000
#: The newest recorded trades are looked for in so long a time first, then in times four times as long: a market may
#: have thousands a second, or one a day.
_FIRST_LOOK_MS = 10_000

#: Event time and number: the order of the exchange.
_Place: TypeAlias = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TickerAnswer:
    """One market now."""

    exchange: str
    symbol: str
    ticker: Ticker
    #: ``router`` or ``memory``.
    tier: str
    #: Since it was received, milliseconds.
    age_ms: int


@dataclass(frozen=True, kw_only=True)
class OrderBookAnswer:
    """The best levels of an order book."""

    exchange: str
    symbol: str
    #: Best first, at most as many levels as were asked for.
    book: BookSnapshot
    tier: str
    #: Since the last message in it was received, milliseconds.
    age_ms: int


@dataclass(frozen=True, kw_only=True)
class TradesAnswer:
    """Trades of one market in the order of the exchange, each once."""

    exchange: str
    symbol: str
    trades: tuple[Trade, ...]
    #: True if the range has more than the limit let through.
    more: bool
    #: ``database`` as soon as the database was asked.
    tier: str
    #: Since router memory was asked, milliseconds.
    age_ms: int


class MarketNow:
    """Reads what is live.

    :param recorded: the store of trades, where recording is on; None where it is not.
    """

    def __init__(self, live: LiveSource, recorded: TradeStore | None, clock: Clock) -> None:
        self._live = live
        self._recorded = recorded
        self._clock = clock

    async def ticker(self, exchange: str, symbol: str) -> TickerAnswer:
        """The newest ticker.

        :raises NotFound: naming ``symbol``: there is none of the last five minutes.
        :raises StoreUnavailable: router memory does not answer.
        """
        _check(exchange, symbol)
        async with _answering():
            found = await self._live.ticker(exchange, symbol)
        if found is None:
            raise _not_kept(exchange, symbol, Channel.TICKERS, "ticker")
        return _ticker(exchange, symbol, found)

    async def tickers(self, exchange: str) -> dict[str, TickerAnswer]:
        """The newest ticker of every symbol of an exchange, by symbol.

        :raises NotFound: naming ``exchange``: there is none.
        :raises StoreUnavailable: router memory does not answer.
        """
        check_exchange(exchange)
        async with _answering():
            found = await self._live.tickers(exchange)
        if not found:
            raise NotFound("exchange", exchange, hint=_hint("an exchange with tickers", Channel.TICKERS))
        return {symbol: _ticker(exchange, symbol, one) for symbol, one in sorted(found.items())}

    async def order_book(self, exchange: str, symbol: str, levels: int = 20) -> OrderBookAnswer:
        """The best levels of both sides, of a book that is right.

        :param levels: 1 to 1,000 of each side; there may be fewer.
        :raises BadInput: naming ``levels``.
        :raises NotFound: naming ``symbol``, and saying why there is no book that may be shown.
        :raises StoreUnavailable: router memory does not answer.
        """
        _check(exchange, symbol)
        if isinstance(levels, bool) or not 1 <= levels <= MOST_LEVELS:
            raise BadInput("levels", levels, f"a whole number from 1 to {MOST_LEVELS}")
        async with _answering():
            found = await self._live.order_book(exchange, symbol, levels)
            why = "" if found is not None else await self._live.why_no_book(exchange, symbol)
        if found is None:
            raise _not_kept(exchange, symbol, Channel.ORDER_BOOKS, f"order book that may be shown (now: {why})")
        return OrderBookAnswer(
            exchange=exchange, symbol=symbol, book=found.book, tier=found.tier, age_ms=found.age_ms
        )

    async def trades(
        self,
        exchange: str,
        symbol: str,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = 500,
    ) -> TradesAnswer:
        """Trades with ``start <= event_time < end``: recorded ones and those of the last minutes, each once.

        :param limit: 1 to 5,000. With a start, the first ones; without, the newest.
        :raises BadInput: naming ``limit``, or ``end`` for an empty range.
        :raises NotFound: naming ``symbol``: no trade was recorded, and none came in the last ten minutes.
        :raises StoreUnavailable: router memory, or the database, does not answer.
        """
        _check(exchange, symbol)
        if isinstance(limit, bool) or not 1 <= limit <= MOST_TRADES:
            raise BadInput("limit", limit, f"a whole number from 1 to {MOST_TRADES}")
        if start_ms is not None and end_ms is not None and start_ms >= end_ms:
            raise BadInput("end", iso(end_ms), f"an instant after start ({iso(start_ms)}); ranges are [start, end)")
        live = await self._recent(exchange, symbol, start_ms, end_ms, limit)
        inside = [
            one
            for one in live.value
            if (start_ms is None or one.event_time >= start_ms) and (end_ms is None or one.event_time < end_ms)
        ]
        tier, recorded = live.tier, await self._stored(exchange, symbol, start_ms, end_ms, limit, live.value)
        if recorded is not None:
            tier = DATABASE_TIER
        joined = _joined(recorded or [], inside)
        if not joined and not live.value and not await self._ever(exchange, symbol):
            raise _not_kept(exchange, symbol, Channel.TRADES, "trade, recorded or of the last ten minutes")
        cut = joined[-limit:] if start_ms is None else joined[:limit]
        return TradesAnswer(
            exchange=exchange,
            symbol=symbol,
            trades=tuple(cut),
            more=len(joined) > limit,
            tier=tier,
            age_ms=live.age_ms,
        )

    async def _recent(
        self, exchange: str, symbol: str, start_ms: int | None, end_ms: int | None, limit: int
    ) -> LiveValue[list[Trade]]:
        """The trades in router memory, as far as they may matter."""
        if end_ms is not None and self._recorded is not None and end_ms <= self._clock.now_ms() - _LIVE_MS:
            return LiveValue([], 0, ROUTER_TIER)
        # Without bounds, the newest few are enough; one more shows that there are more.
        wanted = limit + 1 if start_ms is None and end_ms is None else _MOST_LIVE
        async with _answering():
            return await self._live.trades(exchange, symbol, wanted)

    async def _stored(
        self,
        exchange: str,
        symbol: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        live: Sequence[Trade],
    ) -> list[Trade] | None:
        """Recorded trades of the range that may be missing in `live`; None where the database need not be asked.

        One more than `limit`, where there are so many.
        """
        if self._recorded is None:
            return None
        # Router memory has no hole, so what it holds is everything from its first trade on.
        first = live[0].event_time if live else None
        if start_ms is not None:
            if first is not None and first < start_ms:
                return None
            end = end_ms if end_ms is not None else self._clock.now_ms() + DAY_MS
            return await self._recorded.trades(exchange, symbol, start_ms, end, limit=limit + 1)
        before = [one for one in live if end_ms is None or one.event_time < end_ms]
        if len(before) > limit:
            return None
        return await _newest(self._recorded, exchange, symbol, end_ms, limit + 1)

    async def _ever(self, exchange: str, symbol: str) -> bool:
        """Whether a trade was ever recorded."""
        return self._recorded is not None and await self._recorded.newest_trade(exchange, symbol) is not None


async def _newest(store: TradeStore, exchange: str, symbol: str, end_ms: int | None, wanted: int) -> list[Trade]:
    """The newest recorded trades before an instant, looking back farther and farther."""
    newest = await store.newest_trade(exchange, symbol)
    if newest is None:
        return []
    end = newest.event_time + 1 if end_ms is None else min(end_ms, newest.event_time + 1)
    oldest = newest.event_time - TRADE_HISTORY_DAYS * DAY_MS
    found: list[Trade] = []
    look = _FIRST_LOOK_MS
    while len(found) < wanted and end > oldest:
        start = max(end - look, oldest)
        found = await store.trades(exchange, symbol, start, end) + found
        end, look = start, look * 4
    return found[-wanted:]


def _joined(recorded: Sequence[Trade], live: Sequence[Trade]) -> list[Trade]:
    """Each once, in the order of the exchange. What was recorded comes first where nothing else tells."""
    known = {one.id for one in recorded}
    return sorted([*recorded, *(one for one in live if one.id not in known)], key=_place)


def _place(trade: Trade) -> _Place:
    return trade.event_time, trade.id if isinstance(trade.id, int) else 0


def _ticker(exchange: str, symbol: str, found: LiveValue[Ticker]) -> TickerAnswer:
    return TickerAnswer(exchange=exchange, symbol=symbol, ticker=found.value, tier=found.tier, age_ms=found.age_ms)


def _check(exchange: str, symbol: str) -> None:
    check_exchange(exchange)
    check_symbol(symbol)


def _not_kept(exchange: str, symbol: str, channel: Channel, what: str) -> NotFound:
    return NotFound("symbol", symbol, hint=_hint(f"a symbol of {exchange}; this one has no {what}", channel))


def _hint(what: str, channel: Channel) -> str:
    return f"{what}. They come live: have ingest run with {channel} among its channels"


@contextlib.asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    try:
        yield
    except SharedAway as error:
        raise StoreUnavailable(f"router memory does not answer: {error}") from error
