"""What one stream has sent so far, and what it has to send next.

A subscription is a cursor over exchange time. Whatever happened between the cursor and now becomes messages, so
nothing is lost however fast the clock runs or however late it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from exchange.binance.wire import (
    KlineEvent,
    encode_agg_trade_event,
    encode_kline_event,
    encode_trade_event,
)
from exchange.simulator.exchange import Exchange
from exchange.simulator.market import Market
from market.candle import open_times_ms
from market.timeframe import TIMEFRAMES, Timeframe

#: A forming candle is sent at most this often, in exchange time.
_UPDATE_MS = 2000
_NAME = re.compile(r"([a-z0-9]+)@(trade|aggTrade|kline_([0-9]+[a-zA-Z]))\Z")


class Subscription(Protocol):
    """One stream of one connection."""

    def messages(self, now_ms: int) -> Iterator[dict[str, Any]]:
        """What happened after the last call, up to `now_ms` inclusive, in order."""
        ...


def subscription(exchange: Exchange, name: str) -> Subscription | None:
    """The stream called `name` (``btcusdt@kline_1m``, ``btcusdt@trade``, ``btcusdt@aggTrade``) from now on.

    None if there is no such stream.
    """
    found = _NAME.match(name)
    market = exchange.market(found[1].upper()) if found else None
    if found is None or market is None:
        return None
    if found[3] is None:
        return TradeSubscription(market, exchange.now_ms(), aggregated=found[2] == "aggTrade")
    timeframe = TIMEFRAMES.get(found[3])
    return KlineSubscription(market, timeframe, exchange.now_ms()) if timeframe else None


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
