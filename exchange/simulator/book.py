"""An order book that evolves around the last price, the same whoever looks at it and whenever.

The book changes in steps of 100 ms and is a pure function of symbol, last price and step, so that any instant can
be asked for without those before it. Prices are divided into cells, each with one level at a price of its own. How
much waits there depends on the cell and on how often it was renewed, each cell at its own moment of a long period;
so from one step to the next only a few levels change. Close to the price, where a real book is dense and busy, any
tick may be a level and periods are short. What lies at or below the last price is a bid, the rest are asks: as the
price moves, bids turn into asks and back. One step in five changes nothing.

The number of the last update grows by several from step to step, as on Binance.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exchange.binance.wire import OrderBook
from market.book_message import Level
from market.candle import Float64s
from market.timeframe import Int64s

#: The book changes this often, in exchange time.
STEP_MS = 100
#: One step of so many changes nothing.
_QUIET = 5
#: Cells on each side of the price. One in eight is empty, so that there are always 5,000 levels.
_REACH = 6500
#: The width of a cell as a share of the first price, and the dense part's half width in cells and in ticks.
_CELL = 2e-5
_DENSE_CELLS = 2
_DENSE_TICKS = (4, 32)
#: A cell, and a tick of the dense part, is renewed once in 2**so many steps.
_PERIOD_BITS, _DENSE_PERIOD_BITS = 11, 4
#: Quote value of a usual level.
_USUAL_VALUE = 20_000.0
#: Sizes of levels as multiples of the usual one: an exponential distribution.
_SIZES = -np.log((np.arange(1024) + 0.5) / 1024)
#: A cached block of cells reaches so much further, to stay valid while the price moves.
_MARGIN = 1500
_KEPT_STATES = 8
#: Renewals of the dense part that are looked at one by one for levels that came and went.
_DENSE_LOOKS = 16

UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class BookState:
    """The whole book at one step. Quantities are in lots: above zero for bids, below for asks, zero for none."""

    step: int
    #: Number of the last update in it.
    last_id: int
    #: The first cell and the quantity of each.
    first_cell: int
    cells: Int64s
    #: The first tick of the dense part and the quantity of each; it hides the cells it covers.
    first_tick: int
    dense: Int64s

    @property
    def time_ms(self) -> int:
        """When it came about."""
        return self.step * STEP_MS


@dataclass(frozen=True, kw_only=True)
class BookChanges:
    """What changed from one state to a later one; a quantity of zero removes the level."""

    #: Numbers of the first and last update in it.
    first_id: int
    last_id: int
    event_time: int
    bids: list[Level]
    asks: list[Level]


class Book:
    """The order book of one market.

    :param name: tells books apart that have equal prices.
    :param last_ticks: the last price in ticks at an exchange time; None before the first trade.
    :param path: every price from one exchange time to another, both inclusive.
    :param usual_ticks: some price of this market, always the same one.
    """

    def __init__(
        self,
        name: str,
        price_decimals: int,
        lot_decimals: int,
        last_ticks: Callable[[int], int | None],
        path: Callable[[int, int], list[int]],
        usual_ticks: Callable[[], int],
    ) -> None:
        self._tick, self._lot = 10**price_decimals, 10**lot_decimals
        self._last_ticks = last_ticks
        self._path = path
        self._usual_ticks = usual_ticks
        self._salt = zlib.crc32(name.encode())
        self._block: _Block | None = None
        self._states: OrderedDict[int, BookState] = OrderedDict()

    def state(self, now_ms: int) -> BookState:
        """The book as it stands at `now_ms`."""
        step = now_ms // STEP_MS
        if self._is_quiet(step):
            step -= 1
        found = self._states.get(step)
        if found is None:
            found = self._states[step] = self._made(step)
            if len(self._states) > _KEPT_STATES:
                self._states.popitem(last=False)
        return found

    def snapshot(self, now_ms: int, levels: int) -> OrderBook:
        """The best `levels` bids and asks at `now_ms`, with the last price between them.

        Empty before the first trade. 5,000 levels are there unless prices reach down to zero.
        """
        state = self.state(now_ms)
        dense, cells = np.flatnonzero(state.dense), np.flatnonzero(state.cells)
        bids_dense, bids_cells = dense[state.dense[dense] > 0][::-1], cells[state.cells[cells] > 0][::-1]
        asks_dense, asks_cells = dense[state.dense[dense] < 0], cells[state.cells[cells] < 0]
        return OrderBook(
            last_update_id=state.last_id,
            bids=tuple(self._levels(state, bids_dense, bids_cells, levels)),
            asks=tuple(self._levels(state, asks_dense, asks_cells, levels)),
        )

    def changes(self, old: BookState, new: BookState) -> BookChanges:
        """What to do to `old`, or to the best levels of it, to have `new`, or the best levels of it.

        Also what to do to any state in between: levels that came and went are named too.
        """
        named, low, high = self._between(old, new)
        cells = _changed(old.first_cell, old.cells, new.first_cell, new.cells)
        dense = _changed(old.first_tick, old.dense, new.first_tick, new.dense)
        ticks = np.unique(np.concatenate((self._ticks(cells), dense, named)))
        was, now = self._lots_of(old, ticks), self._lots_of(new, ticks)
        also = np.isin(ticks, named)
        bids = np.flatnonzero((np.maximum(was, 0) != np.maximum(now, 0)) | (also & (ticks <= high)))[::-1]
        asks = np.flatnonzero((np.minimum(was, 0) != np.minimum(now, 0)) | (also & (ticks > low)))
        return BookChanges(
            first_id=old.last_id + 1,
            last_id=new.last_id,
            event_time=new.time_ms,
            bids=self._floats(ticks[bids], np.maximum(now[bids], 0)),
            asks=self._floats(ticks[asks], np.maximum(-now[asks], 0)),
        )

    def _between(self, old: BookState, new: BookState) -> tuple[Int64s, int, int]:
        """Ticks at which a level may have come and gone between two states, and the lowest and highest price.

        A cell is renewed at most once in its period, so it is only where the price went that this can be.
        """
        following = old.step + (2 if self._is_quiet(old.step + 1) else 1)
        path = self._path(old.time_ms, new.time_ms) if new.step > following else []
        if not path or self._block is None:
            return np.zeros(0, np.int64), 0, 0
        prices, reach = np.unique(path), self._block.dense
        ticks = np.unique(prices[:, np.newaxis] + np.arange(1 - reach, reach + 1))
        ticks = ticks[ticks > 0]
        keys = _mixed(ticks, self._salt + 3)
        first, last = _dense_versions(keys, old.step), _dense_versions(keys, new.step)
        if (most := int((last - first).max(initial=0))) < _DENSE_LOOKS:
            versions = np.minimum(first + np.arange(most + 1)[:, np.newaxis], last)
            ticks = ticks[(_mixed(versions ^ keys.astype(np.int64), 4) & np.uint64(1)).any(axis=0)]
        low, high = int(prices[0]), int(prices[-1])
        if new.step - old.step < 2**_PERIOD_BITS:
            cells = np.arange((low - reach) // self._block.width, (high + reach) // self._block.width + 1)
        else:
            cells = np.concatenate([one.first_cell + np.arange(len(one.cells)) for one in (old, new)])
        cell_ticks = self._ticks(cells)
        return np.concatenate((ticks, cell_ticks[cell_ticks > 0])), low, high

    def _lots_of(self, state: BookState, ticks: Int64s) -> Int64s:
        """The quantity at each tick, above zero for bids and below for asks."""
        found = np.zeros(len(ticks), np.int64)
        if self._block is None or not len(state.cells):
            return found
        cells = ticks // self._block.width
        of_cell = (self._ticks(cells) == ticks) & (cells >= state.first_cell)
        of_cell &= cells < state.first_cell + len(state.cells)
        found[of_cell] = state.cells[cells[of_cell] - state.first_cell]
        dense = (ticks >= state.first_tick) & (ticks < state.first_tick + len(state.dense))
        found[dense] = state.dense[ticks[dense] - state.first_tick]
        return found

    def _levels(self, state: BookState, dense: Int64s, cells: Int64s, levels: int) -> list[Level]:
        """The first `levels` of one side, given as places in the state's arrays, best first."""
        cells = cells[: max(0, levels - len(dense))]
        ticks = np.concatenate((state.first_tick + dense, self._ticks(state.first_cell + cells)))[:levels]
        lots = np.abs(np.concatenate((state.dense[dense], state.cells[cells])))[:levels]
        return self._floats(ticks, lots)

    def _floats(self, ticks: Int64s, lots: Int64s) -> list[Level]:
        return list(zip((ticks / self._tick).tolist(), (lots / self._lot).tolist(), strict=True))

    def _is_quiet(self, step: int) -> bool:
        return (step + self._salt) % _QUIET == 0

    def _made(self, step: int) -> BookState:
        last_id = 16 * step + _mixed_number(step) % 16
        price = self._last_ticks(step * STEP_MS)
        if price is None:
            none = np.zeros(0, np.int64)
            return BookState(step, last_id, 0, none, 0, none)
        block = self._block_at(price)
        first_cell = price // block.width - _REACH
        start = first_cell - block.first_cell
        ticks = block.ticks[start : start + 2 * _REACH]
        cells = block.lots_at(step)[start : start + 2 * _REACH].copy()
        low, split, high = np.searchsorted(ticks, (price - block.dense, price, price + block.dense), "right")
        cells[low:high] = 0
        cells[split:] *= -1
        cells[: np.searchsorted(ticks, 0, "right")] = 0
        return BookState(step, last_id, first_cell, cells, price - block.dense + 1, self._dense(step, price))

    def _dense(self, step: int, price: int) -> Int64s:
        """Quantities of the ticks around the price, in which a level may be at any of them."""
        assert self._block is not None
        reach = self._block.dense
        ticks = np.arange(price - reach + 1, price + reach + 1)
        keys = _mixed(ticks, self._salt + 3)
        drawn = _mixed(_dense_versions(keys, step) ^ keys.astype(np.int64), 4)
        lots = self._lots(drawn, ticks, np.uint64(1))
        lots[ticks <= 0] = 0
        lots[reach:] *= -1
        return lots

    def _lots(self, drawn: UInt64s, ticks: Int64s, empty: np.uint64) -> Int64s:
        """Quantities from random numbers; zero for one in ``empty + 1`` of them."""
        usual = _USUAL_VALUE * self._tick * self._lot
        sizes: Float64s = _SIZES[(drawn >> np.uint64(8)) & np.uint64(1023)]
        lots: Int64s = np.maximum(usual * sizes / np.maximum(ticks, 1), 1).astype(np.int64)
        lots[(drawn & empty) == 0] = 0
        return lots

    def _ticks(self, cells: Int64s) -> Int64s:
        return _ticks_of(cells, self._block.width, self._salt) if self._block else cells

    def _block_at(self, price: int) -> _Block:
        """The cached cells, made anew where they do not reach far enough around `price`."""
        if self._block is None:
            width = max(1, round(self._usual_ticks() * _CELL))
        else:
            width = self._block.width
            start = price // width - _REACH - self._block.first_cell
            if 0 <= start <= 2 * _MARGIN:
                return self._block
        first = price // width - _REACH - _MARGIN
        self._block = _Block(first, 2 * (_REACH + _MARGIN), width, self._salt, self._lots)
        return self._block


class _Block:
    """A stretch of cells: the tick of each, and its quantity as of the step asked for last."""

    def __init__(
        self,
        first_cell: int,
        count: int,
        width: int,
        salt: int,
        lots: Callable[[UInt64s, Int64s, np.uint64], Int64s],
    ) -> None:
        self.first_cell = first_cell
        self.width = width
        self.dense = min(max(_DENSE_CELLS * width, _DENSE_TICKS[0]), _DENSE_TICKS[1])
        cells = np.arange(first_cell, first_cell + count)
        self.ticks = _ticks_of(cells, width, salt)
        self._keys = _mixed(cells, salt + 1).astype(np.int64)
        self._phases = self._keys & (2**_PERIOD_BITS - 1)
        self._versions = np.full(count, -1)
        self._quantities = np.zeros(count, np.int64)
        self._lots = lots

    def lots_at(self, step: int) -> Int64s:
        """The quantity of each cell, as if all were bids and nothing hidden. Valid until the next call."""
        versions = (step + self._phases) >> _PERIOD_BITS
        renewed = np.flatnonzero(versions != self._versions)
        drawn = _mixed(versions[renewed] ^ self._keys[renewed], 2)
        self._quantities[renewed] = self._lots(drawn, self.ticks[renewed], np.uint64(7))
        self._versions = versions
        return self._quantities


def _ticks_of(cells: Int64s, width: int, salt: int) -> Int64s:
    """The tick of each cell's level: somewhere in the cell."""
    ticks: Int64s = cells * width + (_mixed(cells, salt) % np.uint64(width)).astype(np.int64)
    return ticks


def _dense_versions(keys: UInt64s, step: int) -> Int64s:
    """How often each tick of the dense part was renewed."""
    phases: Int64s = (keys & np.uint64(2**_DENSE_PERIOD_BITS - 1)).astype(np.int64)
    return (step + phases) >> _DENSE_PERIOD_BITS


def _changed(old_first: int, old: Int64s, new_first: int, new: Int64s) -> Int64s:
    """The places whose values differ between two stretches; outside of a stretch all are zero."""
    low, high = max(old_first, new_first), min(old_first + len(old), new_first + len(new))
    if low >= high:
        return np.concatenate((old_first + np.flatnonzero(old), new_first + np.flatnonzero(new)))
    both = low + np.flatnonzero(old[low - old_first : high - old_first] != new[low - new_first : high - new_first])
    ends = [
        first + skip + np.flatnonzero(part)
        for first, values in ((old_first, old), (new_first, new))
        for skip, part in ((0, values[: low - first]), (high - first, values[high - first :]))
    ]
    return np.concatenate((both, *ends))


def _mixed(values: Int64s, salt: int) -> UInt64s:
    """A random number for each value, always the same (the finalizer of splitmix64)."""
    mixed: UInt64s = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _mixed_number(value: int) -> int:
    """The same of a number, roughly: four bits that look random."""
    return (value * 0x9E3779B97F4A7C15 >> 40) & 0xFFFF
