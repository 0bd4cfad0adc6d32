"""The candles of one series, built from its trades and held against the exchange's own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from ingest.candle_builder import CandleBuilder
from ingest.candle_route import CandleSink
from market.candle import CandleState
from market.candle_update import CandleUpdate
from market.instrument import Series
from market.trade import Trade
from store.batch import CandleBatch
from store.live import LiveCandles

log = structlog.get_logger(__name__)

#: Candles that wait for the other side's at most. The oldest give way: nothing but a comparison is lost.
_MOST_WAITING = 32
#: What is compared: open time, prices, volume; then the rest where the exchange tells it.
_NUMBERS = CandleUpdate._fields[:10]


@dataclass(kw_only=True)
class Agreement:
    """How the candles built from trades compare with the exchange's own."""

    #: Complete ones, built so far.
    built: int = 0
    equal: int = 0
    different: int = 0
    #: Ones that lack trades; they are compared with nothing.
    incomplete: int = 0


class BuiltCandles:
    """Builds candles from trades. Where the exchange's stream has no candles, they are stored; else compared.

    :param sink: where complete candles go; None where the exchange has candles of its own.
    :param live: gets the forming candle, where `sink` is given.
    :param origin_ms: where three-day buckets count from.
    """

    def __init__(
        self, series: Series, origin_ms: int, *, sink: CandleSink | None = None, live: LiveCandles | None = None
    ) -> None:
        self._series = series
        self._sink = sink
        self._live = live
        self._builder = CandleBuilder(series.timeframe, self._finished, origin_ms)
        self._ours: OrderedDict[int, CandleUpdate] = OrderedDict()
        self._theirs: OrderedDict[int, CandleUpdate] = OrderedDict()
        self.agreement = Agreement()
        #: Takes the next trade, in order.
        self.add: Callable[[Trade], None] = self._builder.add
        #: Trades are missing before the next one.
        self.broken: Callable[[], None] = self._builder.broken

    def show(self) -> None:
        """Let readers see the forming candle, where the exchange does not tell of it."""
        if self._sink is not None and self._live is not None and (forming := self._builder.forming()) is not None:
            self._live.heard(self._series, forming)

    def theirs(self, update: CandleUpdate) -> None:
        """What the exchange says of a candle."""
        if update.closed:
            self._compare(update.open_time, self._ours, self._theirs, update)

    def _finished(self, candle: CandleUpdate, complete: bool) -> None:
        if not complete:
            self.agreement.incomplete += 1
            return
        self.agreement.built += 1
        if self._sink is None:
            self._compare(candle.open_time, self._theirs, self._ours, candle)
            return
        batch = CandleBatch(
            series=self._series,
            source=f"{self._series.exchange} trades",
            now_ms=max(candle.event_time, self._series.timeframe.next(candle.open_time)),
            table=candle.table(),
            state=CandleState.CLOSED,
        )
        self._sink.candles(batch, candle.received_at)

    def _compare(
        self,
        open_time: int,
        others: OrderedDict[int, CandleUpdate],
        own: OrderedDict[int, CandleUpdate],
        candle: CandleUpdate,
    ) -> None:
        other = others.pop(open_time, None)
        if other is None:
            own[open_time] = candle
            if len(own) > _MOST_WAITING:
                own.popitem(last=False)
            return
        pairs = {name: (getattr(candle, name), getattr(other, name)) for name in _NUMBERS}
        differing = [name for name, values in pairs.items() if None not in values and values[0] != values[1]]
        if differing:
            self.agreement.different += 1
            log.warning(
                "a candle differs from its trades", series=str(self._series), open_time=open_time, fields=differing
            )
        else:
            self.agreement.equal += 1
