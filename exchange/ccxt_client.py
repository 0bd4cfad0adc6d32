"""Candles, instruments, time and the market now of any exchange that ccxt knows.

ccxt's parsed candles hold open, high, low, close and volume; the other columns are null. Its answers differ
from exchange to exchange, so less is concluded from them than from Binance's raw ones (``exchange.binance``):

* Some exchanges answer with the first candles at or after the start, some with a window of fixed length, some
  (Kraken) with their newest candles whatever the start. Only rows of the window ``[start, start + limit
  buckets)`` are trusted to follow each other.
* A window with rows is conclusive up to its last row: ccxt's idea of an exchange's page size may be too large.
* A window without rows is conclusive, up to the first later row or its own end, unless the answer consists of
  the exchange's newest candles; then nothing is concluded, and where none of them is wanted the request is
  refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import ccxt.async_support as ccxt
import numpy as np
import pyarrow as pa

from exchange.budget import BudgetStatus
from exchange.ccxt_messages import parsed_book, parsed_ticker, parsed_trades
from exchange.errors import translated
from exchange.page import CandlePage
from exchange.request_limits import RequestLimits
from exchange.symbol import unknown_symbol
from exchange.trade_page import TradePage
from market.book_message import BookSnapshot
from market.candle import by_open_time, candles, no_candles, open_times_ms
from market.clock import Clock, SystemClock, iso
from market.errors import BadInput, ExchangeRefused, ExchangeUnavailable, RateLimited
from market.instrument import Instrument
from market.ticker import Ticker
from market.timeframe import DAY_MS, TIMEFRAMES, Timeframe
from market.trade import Trade

#: One HTTP exchange, milliseconds (ccxt's unit).
REQUEST_TIMEOUT_MS = 10_000
#: One call with its wait for a turn (in ccxt's own queue, or 120 s at most for the shared budget), seconds; only a
#: call that hangs takes so long.
CALL_TIMEOUT = 150.0
#: Candles to ask for where ccxt does not know an exchange's page size.
_PAGE_UNKNOWN = 200
_LARGEST_PAGE = 1000
#: No exchange's page of trades is shorter.
_FEWEST_ON_A_PAGE = 20
#: Markets that were asked for so long ago are asked for again, where somebody wants them all.
_MARKETS_KEPT_MS = 600_000
#: How far behind its own time an exchange's newest candle may be, in buckets.
_NEWEST_BUCKETS = 3


class CcxtHistory:
    """What one exchange has traded. Close it when done.

    Every method raises ExchangeUnavailable, RateLimited or ExchangeRefused where the exchange does not answer
    as asked, and NotFound for a symbol it does not trade.

    :param exchange: a client of ccxt's.
    :param limits: the shared budgets that the client's requests go through; None where ccxt's throttle has to do.
    """

    def __init__(self, exchange: Any, limits: RequestLimits | None = None, clock: Clock | None = None) -> None:
        self._ccxt = exchange
        self._limits = limits
        self._clock = clock or SystemClock()
        #: Symbols whose order book is served with as many levels as the exchange likes only.
        self._own_levels: set[str] = set()
        #: When the markets were last asked for, epoch milliseconds of our clock.
        self._loaded_ms = 0
        #: ccxt's id.
        self.exchange: str = exchange.id

    async def candles(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> CandlePage:
        """Candles that open in ``[start_ms, end_ms)``, from the first one on, as many as one page holds."""
        market = await self._market(symbol)
        limit = self._page_size(market)
        limit = max(1, min(limit, timeframe.count(start_ms, end_ms) + 1))
        table = await self._fetch(symbol, timeframe, start_ms, limit)
        times = open_times_ms(table)
        window_end = min(end_ms, timeframe.next(timeframe.ceil(start_ms), limit))
        inside = (times >= start_ms) & (times < window_end)
        if inside.any():
            return CandlePage(table=table.filter(pa.array(inside)), reaches=timeframe.next(int(times[inside][-1])))
        later = times[times >= window_end]
        if not len(later):
            return CandlePage(table=no_candles(), reaches=window_end)
        now = await self.server_time()
        if timeframe.next(int(later[-1]), _NEWEST_BUCKETS) > now:
            wanted = (times >= start_ms) & (times < end_ms)
            if not wanted.any():
                raise ExchangeRefused(
                    f"{self.exchange} serves only its newest {len(times)} candles of {symbol} {timeframe}, from "
                    f"{iso(int(times[0]))} on; nothing older can be had from it"
                )
            return CandlePage(table=table.filter(pa.array(wanted)), reaches=start_ms)
        return CandlePage(table=no_candles(), reaches=min(end_ms, int(later[0])))

    async def first_open(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        """Open time of the first candle that opens in ``[start_ms, end_ms)``; None where there is none.

        Searched by days first: the first page of days that is not empty is found by bisection, which takes
        the logarithm of the pages. Where the first day is known and its candles are not found, the start of
        that day is returned, which is never too late.
        """
        days = TIMEFRAMES["1d"]
        if "1d" not in (self._ccxt.timeframes or {}) or timeframe.seconds >= days.seconds:
            days = timeframe
        day = await self._first_in_pages(symbol, days, days.floor(start_ms), end_ms)
        if day is None or days is timeframe:
            return day
        cursor = timeframe.ceil(max(start_ms, day))
        # The day may be the one that `start_ms` cuts, with nothing after the cut: look one day further.
        stop = min(end_ms, day + 2 * DAY_MS)
        while cursor < stop:
            page = await self.candles(symbol, timeframe, cursor, stop)
            if page.table.num_rows:
                return int(open_times_ms(page.table)[0])
            if page.reaches <= cursor:
                break
            cursor = page.reaches
        lower = timeframe.ceil(max(start_ms, day))
        return lower if lower < end_ms else None

    async def _first_in_pages(self, symbol: str, timeframe: Timeframe, start_ms: int, end_ms: int) -> int | None:
        """First open time in the range, assuming that once there are candles there are candles later too."""
        market = await self._market(symbol)
        size = self._page_size(market)
        starts = [timeframe.ceil(start_ms)]
        while starts[-1] < end_ms:
            starts.append(timeframe.next(starts[-1], size))
        # Invariant: pages before `low` are empty; the first open time found so far lies in page `high` or later.
        low, high, found = 0, len(starts) - 1, None
        at = low
        while low < high:
            times = open_times_ms(await self._fetch(symbol, timeframe, starts[at], size))
            times = times[(times >= starts[at]) & (times < end_ms)]
            if len(times):
                found = int(times[0]) if found is None else min(found, int(times[0]))
                high = at
            else:
                low = at + 1
            at = (low + high) // 2
        return found

    async def instruments(self) -> list[Instrument]:
        """Every market of the exchange as it is now, or was a few minutes ago at most."""
        if not self._ccxt.markets or not 0 <= self._clock.now_ms() - self._loaded_ms < _MARKETS_KEPT_MS:
            await self._load_markets()
        return [self._instrument(market) for market in self._ccxt.markets.values()]

    async def server_time(self) -> int:
        """The exchange's time, epoch milliseconds; the machine's where the exchange does not tell."""
        if not self._ccxt.has.get("fetchTime"):
            return self._clock.now_ms()
        async with self._calling():
            now = await self._ccxt.fetch_time()
        if not isinstance(now, int):
            raise ExchangeUnavailable(f"{self.exchange} gave no usable answer when asked for its time")
        return now

    async def trades_after(self, symbol: str, last: Trade | None, *, limit: int = 1000) -> TradePage:
        """The trades that follow `last`, as many as one page holds, `limit` at most; without `last` the newest.

        ccxt serves trades by their time. Asked is from a millisecond before `last`, so that `last` itself is in the
        answer where the exchange still serves it.
        """
        market = await self._market(symbol)
        page = self._feature(market, "fetchTrades")
        page = page and min(page, limit)
        trades = await self._trades(symbol, None if last is None else last.event_time - 1, page)
        if last is None:
            return TradePage(trades=trades[-limit:], complete=True, missing=False)
        newer = [one for one in trades if _follows(one, last)]
        served = any(one.id == last.id or one.event_time < last.event_time for one in trades)
        if not newer and len(trades) >= (page or _FEWEST_ON_A_PAGE):
            # So many trades in one instant that they fill a page: the rest of that instant cannot be asked for.
            newer = trades = await self._trades(symbol, last.event_time + 1, page)
            served = False
        return TradePage(
            trades=newer[:limit],
            complete=len(newer) <= limit and (not newer or (page is not None and len(trades) < page)),
            missing=bool(newer) and not served,
        )

    async def _trades(self, symbol: str, since_ms: int | None, limit: int | None) -> list[Trade]:
        rows = await self._now(symbol, lambda: self._ccxt.fetch_trades(symbol, since_ms, limit))
        return parsed_trades(rows, self.exchange, self._clock.now_ms())

    async def order_book(self, symbol: str, levels: int = 1000) -> BookSnapshot:
        """The book now, with at most so many levels on each side."""
        await self._market(symbol)
        book: Any = None
        if symbol not in self._own_levels:
            try:
                book = await self._now(symbol, lambda: self._ccxt.fetch_order_book(symbol, levels))
            except ExchangeRefused:
                # Many exchanges serve certain numbers of levels only, each its own.
                self._own_levels.add(symbol)
        if book is None:
            book = await self._now(symbol, lambda: self._ccxt.fetch_order_book(symbol))
        return parsed_book(book, levels, self.exchange, self._clock.now_ms())

    async def ticker(self, symbol: str) -> Ticker:
        """Best prices and the last 24 hours."""
        await self._market(symbol)
        ticker = await self._now(symbol, lambda: self._ccxt.fetch_ticker(symbol))
        return parsed_ticker(ticker, self.exchange, self._clock.now_ms())

    def budgets(self) -> list[BudgetStatus]:
        """How much of what the exchange allows is used, by all processes; empty without a shared budget."""
        return [] if self._limits is None else self._limits.status()

    def check_timeframe(self, timeframe: Timeframe) -> None:
        """Nothing, or BadInput that lists the timeframes of this exchange."""
        if not self._ccxt.has.get("fetchOHLCV"):
            raise BadInput("exchange", self.exchange, "an exchange that serves candles over REST")
        offered = [name for name in TIMEFRAMES if name in (self._ccxt.timeframes or {})]
        if timeframe.name not in offered:
            raise BadInput("timeframe", timeframe.name, f"one that {self.exchange} serves: " + " ".join(offered))

    async def close(self) -> None:
        """Close the connections."""
        await self._ccxt.close()

    @asynccontextmanager
    async def _calling(self, symbol: str | None = None) -> AsyncIterator[None]:
        try:
            with translated(self._ccxt, symbol):
                async with asyncio.timeout(CALL_TIMEOUT):
                    yield
        except RateLimited as refusal:
            # The shared budget refuses too; what ccxt raised came from the exchange.
            if self._limits is not None and isinstance(refusal.__cause__, ccxt.BaseError):
                self._limits.obey(refusal)
            raise

    async def _now(self, symbol: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What ccxt makes of an answer about a market as it is now."""
        async with self._calling(symbol):
            try:
                return await ask()
            except (TypeError, AttributeError, LookupError, ValueError, ArithmeticError) as error:
                # ccxt's parsers fail like this on answers that are not of the documented form.
                raise ExchangeUnavailable(
                    f"{self.exchange} sent something about {symbol} that cannot be read: {error!r}"
                ) from error

    async def _load_markets(self) -> None:
        async with self._calling():
            # ccxt keeps what it has loaded, and an empty list too, which is what it makes of a web page.
            await self._ccxt.load_markets(reload=True)
        if not self._ccxt.markets:
            raise ExchangeUnavailable(f"{self.exchange} gave no usable answer when asked for its markets")
        self._loaded_ms = self._clock.now_ms()

    async def _market(self, symbol: str) -> Any:
        if not self._ccxt.markets:
            await self._load_markets()
        markets = self._ccxt.markets
        if symbol not in markets:
            raise unknown_symbol(self.exchange, symbol, markets)
        return markets[symbol]

    def _page_size(self, market: Any) -> int:
        """Candles of one page."""
        return min(self._feature(market, "fetchOHLCV") or _PAGE_UNKNOWN, _LARGEST_PAGE)

    def _feature(self, market: Any, method: str) -> int | None:
        """Rows of one page of a method of ccxt's; None where ccxt does not know."""
        known = self._ccxt.feature_value_by_type(market["type"], market.get("subType"), method, "limit", None)
        return int(known) if known else None

    async def _fetch(self, symbol: str, timeframe: Timeframe, start_ms: int, limit: int) -> pa.Table:
        """What ``fetch_ohlcv`` answers, sorted, as candles."""
        self.check_timeframe(timeframe)
        async with self._calling(symbol):
            try:
                rows = await self._ccxt.fetch_ohlcv(symbol, timeframe.name, start_ms, limit)
            except (TypeError, AttributeError, LookupError, ValueError) as error:
                # ccxt's parsers fail like this on a page of HTML; on JSON it would be a bug, and is not hidden.
                if self._ccxt.last_json_response is not None:
                    raise
                raise ExchangeUnavailable(f"{self.exchange} sent something that is not JSON") from error
        if self._ccxt.last_json_response is None or not isinstance(rows, list):
            raise ExchangeUnavailable(f"{self.exchange} sent something that is not JSON")
        return parsed_candles(rows, self.exchange)

    def _instrument(self, market: Any) -> Instrument:
        precision, limits = market.get("precision") or {}, market.get("limits") or {}
        return Instrument(
            exchange=self.exchange,
            symbol=market["symbol"],
            exchange_symbol=str(market["id"]),
            base=str(market["base"]),
            quote=str(market["quote"]),
            kind=market.get("type") or "spot",
            tick_size=self._step(precision.get("price")),
            lot_size=self._step(precision.get("amount")),
            min_notional=decimal((limits.get("cost") or {}).get("min")),
            active=market.get("active") is not False,
            listed_ms=market.get("created"),
        )

    def _step(self, value: Any) -> Decimal | None:
        """A precision as a step; ccxt gives steps or digits, by exchange."""
        if value is None or self._ccxt.precisionMode == ccxt.SIGNIFICANT_DIGITS:
            return None
        if self._ccxt.precisionMode == ccxt.DECIMAL_PLACES:
            return Decimal(1).scaleb(-int(value))
        return decimal(value)


def _follows(one: Trade, last: Trade) -> bool:
    """Whether a trade is newer than `last`, or may be: of one instant, and its id does not say."""
    if one.event_time != last.event_time:
        return one.event_time > last.event_time
    if isinstance(one.id, int) and isinstance(last.id, int):
        return one.id > last.id
    return one.id != last.id


def decimal(value: Any) -> Decimal | None:
    """A number of ccxt's as the decimal that its text shows."""
    return None if value is None else Decimal(str(value))


def parsed_candles(rows: Sequence[Any], exchange: str) -> pa.Table:
    """ccxt's rows ``[ms, open, high, low, close, volume]`` as candles, sorted; missing numbers are NaN.

    :raises ExchangeUnavailable: where a row is not of that form.
    """
    if not rows:
        return no_candles()
    try:
        times = np.array([row[0] for row in rows], np.int64)
        numbers = np.array([[np.nan if one is None else one for one in row[1:6]] for row in rows], np.float64)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise ExchangeUnavailable(f"{exchange} sent candles that cannot be read: {error}") from error
    if numbers.shape != (len(rows), 5):
        raise ExchangeUnavailable(f"{exchange} sent candles that do not have six fields")
    names = ("open", "high", "low", "close", "volume")
    columns = {name: numbers[:, at] for at, name in enumerate(names)}
    return by_open_time(candles({"open_time": times, **columns}))
