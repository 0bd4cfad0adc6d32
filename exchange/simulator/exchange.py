"""The simulated exchange itself: its clock and the markets listed on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from exchange.simulator.limits import Allowance
from exchange.simulator.market import Market
from market.clock import Clock


@dataclass(frozen=True, kw_only=True)
class ListedMarket:
    """A market that is opened (its candles read) when first asked for."""

    open: Callable[[], Market]
    #: From when the exchange shows it.
    listed_ms: int
    #: From when it is no longer traded, nor shown; None for never.
    delisted_ms: int | None = None

    def trades_at(self, now_ms: int) -> bool:
        """Whether it is there at that time."""
        return self.listed_ms <= now_ms and (self.delisted_ms is None or now_ms < self.delisted_ms)


class Exchange:
    """Markets by their exchange symbol, seen at the clock's time. A market not listed then does not exist."""

    def __init__(
        self, clock: Clock, listed: Mapping[str, ListedMarket], allowance: Allowance | None = None
    ) -> None:
        #: What one address may ask.
        self.allowance = allowance or Allowance()
        self._clock = clock
        self._listed = listed
        self._markets: dict[str, Market] = {}

    def now_ms(self) -> int:
        """Exchange time."""
        return self._clock.now_ms()

    def earlier(self, milliseconds: int) -> Exchange:
        """The same exchange, seen so long ago."""
        behind = Exchange(_Behind(self._clock, milliseconds), self._listed, self.allowance)
        behind._markets = self._markets
        return behind

    def market(self, exchange_symbol: str) -> Market | None:
        """The market called ``BTCUSDT``, or None if there is none (yet, or any more)."""
        listed = self._listed.get(exchange_symbol)
        if listed is None or not listed.trades_at(self.now_ms()):
            return None
        if exchange_symbol not in self._markets:
            self._markets[exchange_symbol] = listed.open()
        return self._markets[exchange_symbol]

    def markets(self) -> list[Market]:
        """Every listed market, by symbol."""
        return [market for name in sorted(self._listed) if (market := self.market(name)) is not None]


@dataclass(frozen=True)
class _Behind:
    """A clock that is late."""

    clock: Clock
    milliseconds: int

    def now_ms(self) -> int:
        return self.clock.now_ms() - self.milliseconds
