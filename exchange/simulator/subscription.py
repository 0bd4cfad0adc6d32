"""What one stream has sent so far, and what it has to send next.

A subscription is a cursor over exchange time. Whatever happened between the cursor and now becomes messages, so
nothing is lost however fast the clock runs or however late it is asked. Of what replaces what was before it, only
the newest is sent: changes of the order book between two looks come as one message (whose numbers still follow on
from the message before), and so do best prices and statistics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from exchange.binance.events import (
    encode_book_ticker,
    encode_day_ticker,
    encode_depth_event,
    encode_mini_ticker,
    encode_partial_depth,
)
from exchange.binance.wire import (
    KlineEvent,
    encode_agg_trade_event,
    encode_kline_event,
    encode_trade_event,
)
from exchange.simulator.exchange import Exchange
from exchange.simulator.market import Market
from exchange.simulator.ticker import day_statistics
from market.book_message import Level
from market.candle import open_times_ms
from market.timeframe import TIMEFRAMES, Timeframe

#: A forming candle is sent at most this often, in exchange time.
_UPDATE_MS = 2000
#: Statistics, and the order book without ``@100ms``, are sent so often, in exchange time.
_SECOND_MS = 1000
_NAME = re.compile(
    r"(?P<symbol>[a-z0-9]+)@(?:(?P<kind>trade|aggTrade|bookTicker|ticker|miniTicker)|kline_(?P<timeframe>[0-9]+[a-zA-Z])"
    r"|depth(?P<levels>5|10|20)?(?:@(?P<interval>100|1000)ms)?)\Z"
)


class Subscription(Protocol):
    """One stream of one connection."""

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        """What happened after the last call, up to `now_ms` inclusive, in order."""
        ...


def subscription(exchange: Exchange, name: str) -> Subscription | None:
    """The stream called `name` from now on, such as ``btcusdt@kline_1m``; None if there is no such stream.

    ``<symbol>@`` and ``trade aggTrade kline_<interval> depth depth@100ms bookTicker ticker miniTicker`` or ``depth5
    depth10 depth20``, these too with or without ``@100ms``.
    """
    found = _NAME.match(name)
    market = exchange.market(found["symbol"].upper()) if found else None
    if found is None or market is None:
        return None
    now_ms, kind = exchange.now_ms(), found["kind"]
    if kind in ("trade", "aggTrade"):
        return TradeSubscription(market, now_ms, aggregated=kind == "aggTrade")
    if kind == "bookTicker":
        return BestPriceSubscription(market)
    if kind is not None:
        return StatisticsSubscription(market, now_ms, mini=kind == "miniTicker")
    if found["timeframe"] is not None:
        timeframe = TIMEFRAMES.get(found["timeframe"])
        return KlineSubscription(market, timeframe, now_ms) if timeframe else None
    interval_ms = int(found["interval"] or _SECOND_MS)
    if found["levels"] is None:
        return BookSubscription(market, now_ms, interval_ms)
    return BestLevelsSubscription(market, int(found["levels"]), interval_ms)


class TradeSubscription:
    """``<symbol>@trade`` or ``<symbol>@aggTrade``: every trade after `now_ms`."""

    def __init__(self, market: Market, now_ms: int, *, aggregated: bool) -> None:
        self._market = market
        self._aggregated = aggregated
        self._next_ms = now_ms + 1

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        since, self._next_ms = self._next_ms, max(self._next_ms, now_ms + 1)
        for trade in self._market.agg_trades(since, now_ms + 1):
            if self._aggregated:
                yield encode_agg_trade_event(trade, trade.time + 1)
            else:
                for one in self._market.single(trade):
                    yield encode_trade_event(one, one.time + 1)


class KlineSubscription:
    """``<symbol>@kline_<interval>``: each candle that closes after `now_ms`, and the forming one as it changes."""

    def __init__(self, market: Market, timeframe: Timeframe, now_ms: int) -> None:
        self._market = market
        self._timeframe = timeframe
        #: Buckets that open from here on have not been sent as closed.
        self._open_ms = market.bucket(timeframe, now_ms)
        self._updated_ms = now_ms - _UPDATE_MS
        self._last: dict[str, Any] | None = None

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        current = self._market.bucket(self._timeframe, now_ms)
        if current > self._open_ms:
            since, self._open_ms = self._open_ms, current
            count = self._timeframe.count(since, current) + 1
            closed = self._market.klines(self._timeframe, now_ms, since, current, count)
            for row, open_ms in enumerate(open_times_ms(closed).tolist()):
                yield self._event(closed.slice(row, 1), self._timeframe.next(open_ms), closed=True)
        if now_ms - self._updated_ms >= _UPDATE_MS:
            self._updated_ms = now_ms
            forming = self._market.klines(self._timeframe, now_ms, current, None, 1)
            if forming.num_rows:
                event = self._event(forming, now_ms, closed=False)
                if event["k"] != self._last:
                    self._last = event["k"]
                    yield event

    def _event(self, row: Any, event_time: int, *, closed: bool) -> dict[str, Any]:
        open_ms = int(open_times_ms(row)[0])
        count = row.column("trades")[0].as_py()
        first = self._market.first_trade_id(open_ms)
        return encode_kline_event(
            KlineEvent(
                exchange_symbol=self._market.listing.exchange_symbol,
                timeframe=self._timeframe,
                event_time=event_time,
                closed=closed,
                table=row,
                first_trade_id=first if count else -1,
                last_trade_id=first + count - 1 if count else -1,
            )
        )


class BookSubscription:
    """``<symbol>@depth`` or ``@depth@100ms``: what changes in the order book after `now_ms`, if anything does."""

    def __init__(self, market: Market, now_ms: int, interval_ms: int) -> None:
        self._market = market
        self._interval_ms = interval_ms
        self._sent = market.book.state(now_ms)

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        state = self._market.book.state(now_ms - now_ms % self._interval_ms)
        if state.step <= self._sent.step:
            return
        changes = self._market.book.changes(self._sent, state)
        # Where nothing has changed, the numbers of the silent updates go to the next message that there is.
        if changes.bids or changes.asks:
            self._sent = state
            yield encode_depth_event(
                self._market.listing.exchange_symbol,
                changes.event_time,
                first_id=changes.first_id,
                last_id=changes.last_id,
                bids=changes.bids,
                asks=changes.asks,
            )


class BestLevelsSubscription:
    """``<symbol>@depth5`` and the like: the best levels, whenever the book has changed."""

    def __init__(self, market: Market, levels: int, interval_ms: int) -> None:
        self._market = market
        self._levels = levels
        self._interval_ms = interval_ms
        self._sent_id = 0

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        at_ms = now_ms - now_ms % self._interval_ms
        if self._market.book.state(at_ms).last_id > self._sent_id:
            book = self._market.book.snapshot(at_ms, self._levels)
            self._sent_id = book.last_update_id
            yield encode_partial_depth(book.last_update_id, book.bids, book.asks)


class BestPriceSubscription:
    """``<symbol>@bookTicker``: the best bid and ask, whenever a price or a quantity of them has changed."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._step = 0
        self._sent: tuple[Level, Level] | None = None

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        state = self._market.book.state(now_ms)
        if state.step == self._step:
            return
        self._step = state.step
        book = self._market.book.snapshot(now_ms, 1)
        if not book.bids or not book.asks:
            return
        best = (book.bids[0], book.asks[0])
        if best != self._sent:
            self._sent = best
            yield encode_book_ticker(self._market.listing.exchange_symbol, book.last_update_id, *best)


class StatisticsSubscription:
    """``<symbol>@ticker`` or ``@miniTicker``: the statistics of the last 24 hours, each second."""

    def __init__(self, market: Market, now_ms: int, *, mini: bool) -> None:
        self._market = market
        self._encode = encode_mini_ticker if mini else encode_day_ticker
        self._sent_ms = now_ms - now_ms % _SECOND_MS

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        at_ms = now_ms - now_ms % _SECOND_MS
        if at_ms > self._sent_ms:
            self._sent_ms = at_ms
            yield self._encode(day_statistics(self._market, at_ms), at_ms)
