"""One market of the simulated exchange, as it can be seen at a given exchange time.

A :class:`Tape` knows every one-minute candle of a symbol, also those to come. :class:`Market` is the only reader of
tapes, and shows nothing after `now_ms`: a minute that has not ended is shown as the candle of its trades so far.
All ranges are half-open and in epoch milliseconds.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from exchange.binance.wire import Trade
from exchange.simulator.book import Book
from exchange.simulator.prints import Minute, Print, prints_of
from market.candle import candles, no_candles, open_times_ms
from market.rollup import roll_up
from market.timeframe import DEFAULT_ORIGIN_MS, MINUTE_MS, ONE_MINUTE, Timeframe

#: Minutes whose trades are kept after they were made up once.
_KEPT_MINUTES = 2048


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the exchange says of one symbol."""

    base: str
    quote: str
    #: Decimals of a price (tick) and of a quantity (lot).
    price_decimals: int
    lot_decimals: int

    @property
    def exchange_symbol(self) -> str:
        """``BTCUSDT``."""
        return self.base + self.quote

    @property
    def symbol(self) -> str:
        """``BTC/USDT``."""
        return f"{self.base}/{self.quote}"


@dataclass(frozen=True)
class FirstIds:
    """The ids that the first trade at or after a minute's open has, or would have."""

    print: int
    trade: int


class Tape(Protocol):
    """Every one-minute candle of a symbol, and the ids of the trades in each."""

    @property
    def listing(self) -> Listing: ...

    def candles(self, start_ms: int, end_ms: int) -> pa.Table:
        """Candles that open in ``[start_ms, end_ms)``, with no column null but ``early_close_time``."""
        ...

    def next_open(self, ms: int) -> int | None:
        """Open time of the first candle at or after `ms`."""
        ...

    def previous_open(self, ms: int) -> int | None:
        """Open time of the last candle before `ms`."""
        ...

    def first_ids(self, open_ms: int) -> FirstIds:
        """Ids as they stand at the open of a minute."""
        ...

    def minute_of_print(self, print_id: int) -> int | None:
        """Open time of the minute that holds an aggregated trade; None past the last."""
        ...

    def minute_of_trade(self, trade_id: int) -> int | None:
        """Open time of the minute that holds a single trade; None past the last."""
        ...


class Market:
    """A tape, seen at an exchange time that the caller passes in."""

    def __init__(self, tape: Tape, origin_ms: int = DEFAULT_ORIGIN_MS) -> None:
        self.listing = tape.listing
        self._tape = tape
        self._origin_ms = origin_ms
        self._salt = zlib.crc32(tape.listing.exchange_symbol.encode())
        self._kept: OrderedDict[int, list[Print]] = OrderedDict()
        #: The last minute asked for by `last_ticks`, and the price before it.
        self._before: tuple[int, int | None] | None = None
        self.book = Book(
            tape.listing.exchange_symbol,
            tape.listing.price_decimals,
            tape.listing.lot_decimals,
            self.last_ticks,
            self._path,
            self._first_ticks,
        )

    def bucket(self, timeframe: Timeframe, ms: int) -> int:
        """The open time of the candle that `ms` lies in."""
        return timeframe.floor(ms, self._origin_ms)

    def klines(
        self, timeframe: Timeframe, now_ms: int, start_ms: int | None, end_ms: int | None, limit: int
    ) -> pa.Table:
        """Candles that open in ``[start_ms, end_ms)``, the forming one included.

        With a start the first `limit` of them; without one the last `limit`.
        """
        last = timeframe.next(timeframe.floor(now_ms, self._origin_ms))
        stop = last if end_ms is None else min(last, timeframe.ceil(end_ms, self._origin_ms))
        if start_ms is None:
            return self._newest(timeframe, now_ms, stop, limit)
        cursor = timeframe.ceil(start_ms, self._origin_ms)
        parts: list[pa.Table] = []
        have = 0
        while cursor < stop and have < limit:
            first = self._tape.next_open(cursor)
            if first is None or first > now_ms:
                break
            cursor = max(cursor, timeframe.floor(first, self._origin_ms))
            until = min(timeframe.next(cursor, limit - have), stop)
            parts.append(self._between(timeframe, now_ms, cursor, until))
            have += parts[-1].num_rows
            cursor = max(until, cursor + 1)
        return pa.concat_tables(parts).slice(0, limit) if parts else no_candles()

    def _newest(self, timeframe: Timeframe, now_ms: int, stop: int, limit: int) -> pa.Table:
        parts: list[pa.Table] = []
        have = 0
        while have < limit:
            before = self._tape.previous_open(min(stop, now_ms + 1))
            if before is None:
                break
            stop = min(stop, timeframe.next(timeframe.floor(before, self._origin_ms)))
            since = timeframe.next(stop, have - limit)
            parts.append(self._between(timeframe, now_ms, since, stop))
            have += parts[-1].num_rows
            stop = since
        parts.reverse()
        return pa.concat_tables(parts).slice(max(0, have - limit)) if parts else no_candles()

    def _between(self, timeframe: Timeframe, now_ms: int, start_ms: int, end_ms: int) -> pa.Table:
        """Candles of whole buckets in ``[start_ms, end_ms)``."""
        minutes = self.minutes(now_ms, start_ms, end_ms)
        if timeframe == ONE_MINUTE:
            return minutes
        return roll_up(minutes, timeframe, self._origin_ms).table

    def minutes(self, now_ms: int, start_ms: int, end_ms: int) -> pa.Table:
        """One-minute candles that open in ``[start_ms, end_ms)``, the forming one included."""
        current = ONE_MINUTE.floor(now_ms)
        closed = self._tape.candles(start_ms, min(end_ms, current))
        if start_ms <= current < end_ms:
            return pa.concat_tables([closed, self._forming(current, now_ms)])
        return closed

    def _forming(self, open_ms: int, now_ms: int) -> pa.Table:
        """The candle of the trades from `open_ms` up to `now_ms`; flat at the last price before the first."""
        whole = self._tape.candles(open_ms, open_ms + 1)
        if not whole.num_rows:
            return no_candles()
        seen = [one for one in self._prints(open_ms) if open_ms + one.offset_ms <= now_ms]
        if not seen:
            price = self._close_before(open_ms)
            if price is None:
                return no_candles()
            flat: dict[str, object] = {name: [price] for name in ("open", "high", "low", "close")}
            for name in ("volume", "quote_volume", "taker_buy_volume", "taker_buy_quote_volume"):
                flat[name] = [0.0]
            return candles({"open_time": [open_ms], "trades": [0], **flat})
        tick, lot = 10**self.listing.price_decimals, 10**self.listing.lot_decimals
        prices = [one.price for one in seen]
        bought = [one for one in seen if one.bought]
        return candles(
            {
                "open_time": [open_ms],
                "open": [prices[0] / tick],
                "high": [max(prices) / tick],
                "low": [min(prices) / tick],
                "close": [prices[-1] / tick],
                "volume": [sum(one.lots for one in seen) / lot],
                "quote_volume": [sum(one.lots * one.price for one in seen) / (tick * lot)],
                "trades": [sum(one.trades for one in seen)],
                "taker_buy_volume": [sum(one.lots for one in bought) / lot],
                "taker_buy_quote_volume": [sum(one.lots * one.price for one in bought) / (tick * lot)],
            }
        )

    def _close_before(self, ms: int) -> float | None:
        before = self._tape.previous_open(ms)
        if before is None:
            return None
        close: float = self._tape.candles(before, before + 1).column("close")[0].as_py()
        return close

    def last_price(self, now_ms: int) -> float | None:
        """The price of the last trade up to `now_ms`; None before the listing."""
        table = self.klines(ONE_MINUTE, now_ms, None, None, 1)
        return table.column("close")[0].as_py() if table.num_rows else None

    def last_ticks(self, now_ms: int) -> int | None:
        """The same in ticks."""
        open_ms = ONE_MINUTE.floor(now_ms)
        prints = self._prints(open_ms)
        seen = bisect_right(prints, now_ms - open_ms, key=_offset)
        if seen:
            return prints[seen - 1].price
        if self._before is None or self._before[0] != open_ms:
            close = self._close_before(open_ms)
            self._before = (open_ms, None if close is None else self._in_ticks(close))
        return self._before[1]

    def _in_ticks(self, price: float) -> int:
        scale: int = 10**self.listing.price_decimals
        return round(price * scale)

    def _path(self, start_ms: int, end_ms: int) -> list[int]:
        """The last price at `start_ms` and those of the trades after it, up to `end_ms` inclusive, in ticks."""
        before = self.last_ticks(start_ms)
        path = [] if before is None else [before]
        for open_ms in self._open_minutes(start_ms, end_ms + 1):
            prints = self._prints(open_ms)
            path += [one.price for one in prints if start_ms < open_ms + one.offset_ms <= end_ms]
        return path

    def _first_ticks(self) -> int:
        """The first price ever, in ticks."""
        first = self._tape.next_open(0)
        assert first is not None
        price: float = self._tape.candles(first, first + 1).column("open")[0].as_py()
        return self._in_ticks(price)

    def first_trade_id(self, ms: int) -> int:
        """The id of the first single trade at or after `ms`, rounded down to its minute."""
        return self._tape.first_ids(ONE_MINUTE.floor(ms)).trade

    def agg_trades(self, start_ms: int, end_ms: int) -> Iterator[Trade]:
        """Aggregated trades with ``start_ms <= time < end_ms``, oldest first.

        The caller keeps `end_ms` off the future.
        """
        for open_ms in self._open_minutes(start_ms, end_ms):
            for trade in self.agg_trades_of(open_ms):
                if start_ms <= trade.time < end_ms:
                    yield trade

    def newest_agg_trades(self, end_ms: int) -> Iterator[Trade]:
        """Aggregated trades before `end_ms`, newest first."""
        cursor: int | None = end_ms
        while cursor is not None and (cursor := self._tape.previous_open(cursor)) is not None:
            for trade in reversed(self.agg_trades_of(cursor)):
                if trade.time < end_ms:
                    yield trade

    def agg_trades_from(self, print_id: int, now_ms: int) -> Iterator[Trade]:
        """Aggregated trades from an id on, up to `now_ms` inclusive, oldest first."""
        start = self._tape.minute_of_print(max(0, print_id))
        if start is None or start > now_ms:
            return
        for trade in self.agg_trades(start, now_ms + 1):
            if trade.id >= print_id:
                yield trade

    def trades_from(self, trade_id: int, now_ms: int) -> Iterator[Trade]:
        """Single trades from an id on, up to `now_ms` inclusive, oldest first."""
        start = self._tape.minute_of_trade(max(0, trade_id))
        if start is None or start > now_ms:
            return
        for trade in self.trades(start, now_ms + 1):
            if trade.id >= trade_id:
                yield trade

    def trades(self, start_ms: int, end_ms: int) -> Iterator[Trade]:
        """Single trades with ``start_ms <= time < end_ms``, oldest first."""
        for aggregated in self.agg_trades(start_ms, end_ms):
            yield from self.single(aggregated)

    def single(self, aggregated: Trade) -> list[Trade]:
        """The single trades that an aggregated one stands for, which share its price and time."""
        scale = 10**self.listing.lot_decimals
        count = aggregated.last_trade_id - aggregated.first_trade_id + 1
        each, over = divmod(round(aggregated.quantity * scale), count)
        return [
            Trade(
                exchange_symbol=aggregated.exchange_symbol,
                id=id_,
                price=aggregated.price,
                quantity=(each + (at < over)) / scale,
                time=aggregated.time,
                buyer_is_maker=aggregated.buyer_is_maker,
                first_trade_id=id_,
                last_trade_id=id_,
            )
            for at, id_ in enumerate(range(aggregated.first_trade_id, aggregated.last_trade_id + 1))
        ]

    def agg_trades_of(self, open_ms: int) -> list[Trade]:
        """All aggregated trades of one minute, also those to come."""
        prints = self._prints(open_ms)
        if not prints:
            return []
        ids = self._tape.first_ids(open_ms)
        tick, lot = 10**self.listing.price_decimals, 10**self.listing.lot_decimals
        trades = []
        first = ids.trade
        for at, one in enumerate(prints):
            trades.append(
                Trade(
                    exchange_symbol=self.listing.exchange_symbol,
                    id=ids.print + at,
                    price=one.price / tick,
                    quantity=one.lots / lot,
                    time=open_ms + one.offset_ms,
                    buyer_is_maker=not one.bought,
                    first_trade_id=first,
                    last_trade_id=first + one.trades - 1,
                )
            )
            first += one.trades
        return trades

    def _open_minutes(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Open times of the minutes with a candle that overlap ``[start_ms, end_ms)``, an hour read at a time."""
        cursor = ONE_MINUTE.floor(start_ms)
        while cursor < end_ms:
            first = self._tape.next_open(cursor)
            if first is None:
                return
            cursor = max(cursor, first)
            until = min(cursor + 60 * MINUTE_MS, end_ms)
            yield from open_times_ms(self._tape.candles(cursor, until)).tolist()
            cursor = until

    def _prints(self, open_ms: int) -> list[Print]:
        kept = self._kept.get(open_ms)
        if kept is not None:
            return kept
        row = self._tape.candles(open_ms, open_ms + 1)
        prints: list[Print] = []
        if row.num_rows and row.column("trades")[0].as_py():
            ids, following = self._tape.first_ids(open_ms), self._tape.first_ids(open_ms + MINUTE_MS)
            prints = prints_of(self._minute(row, open_ms, following.print - ids.print))
        self._kept[open_ms] = prints
        if len(self._kept) > _KEPT_MINUTES:
            self._kept.popitem(last=False)
        return prints

    def _minute(self, row: pa.Table, open_ms: int, prints: int) -> Minute:
        def units(name: str, scale: int) -> int:
            value: float = row.column(name)[0].as_py()
            return round(value * scale)

        tick, lot = 10**self.listing.price_decimals, 10**self.listing.lot_decimals
        early = row.column("early_close_time").cast(pa.int64())[0].as_py()
        return Minute(
            open=units("open", tick),
            high=units("high", tick),
            low=units("low", tick),
            close=units("close", tick),
            volume=units("volume", lot),
            buy_volume=units("taker_buy_volume", lot),
            quote_volume=units("quote_volume", tick * lot),
            buy_quote_volume=units("taker_buy_quote_volume", tick * lot),
            trades=units("trades", 1),
            prints=prints,
            span_ms=MINUTE_MS if early is None else max(1, early - open_ms + 1),
            seed=(open_ms // MINUTE_MS << 32) | self._salt,
        )


def _offset(one: Print) -> int:
    return one.offset_ms
