"""What the streams have brought and the writer has not yet made safe. Bounded by pausing the streams.

Nothing is dropped here: above the high-water mark the streams are told to pause, below the low one to go on. What
was read already still comes in after that, so the high-water mark may be passed by as much as the sockets had read.
Only messages that could not be used are kept up to a number, and counted beyond it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ingest.journal_record import Batch
from market.trade import Trade
from store.batch import CandleBatch
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch

#: About what a trade takes in memory: the tuple, two floats, four numbers.
TRADE_BYTES = 256
#: Objects around the rows of a batch of candles; its columns are small.
_BATCH_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class WaitingRules:
    """How much may wait, and how long."""

    #: Seconds that a trade may wait for others, and trades that are enough for a transaction.
    trades_every: float = 0.1
    trades_at_once: int = 5_000
    #: The streams pause at so many rows or bytes, and go on below these.
    high_rows: int = 200_000
    low_rows: int = 50_000
    high_bytes: int = 128 << 20
    low_bytes: int = 32 << 20
    #: Messages that could not be used; more are counted only.
    most_refused: int = 1_000


class Held(NamedTuple):
    """A batch on its way."""

    batch: Batch
    #: Epoch milliseconds of our clock; None of trades, which know it each, and of what comes from the journal.
    received_at: int | None = None

    @property
    def rows(self) -> int:
        """What it counts for."""
        return rows_of(self.batch)


def rows_of(batch: Batch) -> int:
    """Rows of a batch; one at least, whatever is in it."""
    if isinstance(batch, TradeBatch):
        return len(batch.trades)
    return max(batch.table.num_rows, 1) if isinstance(batch, CandleBatch) else 1


def bytes_of(batch: Batch) -> int:
    """About what a batch takes in memory."""
    if isinstance(batch, TradeBatch):
        return len(batch.trades) * TRADE_BYTES
    return batch.table.nbytes + _BATCH_BYTES if isinstance(batch, CandleBatch) else 2 * len(batch.raw) + 1024


@dataclass
class Taken:
    """Everything that waited at one moment."""

    candles: list[Held] = field(default_factory=list)
    trades: deque[TradeBatch] = field(default_factory=deque)
    refused: list[Held] = field(default_factory=list)
    #: To be told when all of it is durable.
    marks: list[asyncio.Future[None]] = field(default_factory=list)

    def next_trades(self, most: int) -> list[Held]:
        """The oldest of the trades that are left, at most so many; taken out."""
        found: list[Held] = []
        while self.trades and most > 0:
            batch = self.trades.popleft()
            if len(batch.trades) > most:
                first, rest = batch.trades[:most], batch.trades[most:]
                self.trades.appendleft(_part(batch, rest))
                batch = _part(batch, first)
            most -= len(batch.trades)
            found.append(Held(batch))
        return found


def _part(batch: TradeBatch, trades: object) -> TradeBatch:
    assert isinstance(trades, list)
    return TradeBatch(exchange=batch.exchange, symbol=batch.symbol, trades=trades, dense=batch.dense)


class _Line(NamedTuple):
    """The trades of one instrument, and who puts them in."""

    exchange: str
    symbol: str
    dense: bool
    trades: list[Trade]
    put: Callable[[Trade], None]


class Waiting:
    """The queue in front of the writer. For the thread of the event loop only.

    :param wake: called when there is something to take.
    :param on_crowded: called with True when the streams must pause, with False when they may go on.
    """

    def __init__(
        self, rules: WaitingRules, wake: Callable[[], None], on_crowded: Callable[[bool], None] | None
    ) -> None:
        self._rules = rules
        self._wake = wake
        self._on_crowded = on_crowded
        self._lines: dict[tuple[str, str], _Line] = {}
        self._candles: list[Held] = []
        self._refused: list[Held] = []
        self._marks: list[asyncio.Future[None]] = []
        #: Trades ever put in, taken out, and settled.
        self._put = self._taken = self._settled = 0
        #: Rows and bytes of everything else, from when it is put in until it is settled.
        self._other_rows = self._other_bytes = 0
        #: At so many trades ever put in something is to be done.
        self._look_at = 0
        self._due = False
        self._timer: asyncio.TimerHandle | None = None
        self._oldest_taken: int | None = None
        #: The streams were told to pause.
        self.crowded = False

    @property
    def rows(self) -> int:
        """Rows that are not settled."""
        return self._put - self._settled + self._other_rows

    @property
    def bytes(self) -> int:
        """About what they take in memory."""
        return (self._put - self._settled) * TRADE_BYTES + self._other_bytes

    @property
    def has_candles(self) -> bool:
        """Candles wait to be taken."""
        return bool(self._candles)

    @property
    def oldest(self) -> int | None:
        """When the oldest row that is not settled was received, epoch milliseconds."""
        first = [line.trades[0].received_at for line in self._lines.values() if line.trades]
        first += [
            one.received_at for one in (*self._candles[:1], *self._refused[:1]) if one.received_at is not None
        ]
        if self._oldest_taken is not None:
            first.append(self._oldest_taken)
        return min(first, default=None)

    def sink(self, exchange: str, symbol: str, dense: bool) -> Callable[[Trade], None]:
        """What takes the trades of one instrument."""
        line = self._lines.get((exchange, symbol))
        if line is None:
            trades: list[Trade] = []
            line = _Line(exchange, symbol, dense, trades, self._putter(trades))
            self._lines[exchange, symbol] = line
        return line.put

    def _putter(self, trades: list[Trade]) -> Callable[[Trade], None]:
        append = trades.append

        # Thousands a second come through here: a list and a count, and a look at the rest only when it is time.
        def put(trade: Trade) -> None:
            append(trade)
            self._put = count = self._put + 1
            if count >= self._look_at:
                self._look()

        return put

    def candles(self, batch: CandleBatch, received_at: int) -> None:
        """Take candles; they are written at once."""
        self._candles.append(Held(batch, received_at))
        self._add(batch)
        self._wake()

    def refused(self, message: QuarantinedMessage) -> bool:
        """Take a message that could not be used; False where so many wait that this one is not kept."""
        if len(self._refused) >= self._rules.most_refused:
            return False
        self._refused.append(Held(message, message.received_at))
        self._add(message)
        self._set_timer()
        return True

    def mark(self) -> asyncio.Future[None]:
        """Done when everything that is here now is durable; that is begun at once."""
        future = asyncio.get_running_loop().create_future()
        self._marks.append(future)
        self.hurry()
        return future

    def hurry(self) -> None:
        """What waits for others shall wait no longer."""
        self._due = True
        self._wake()

    def take_candles(self) -> list[Held]:
        """All candles that wait."""
        candles, self._candles = self._candles, []
        return candles

    def take(self) -> Taken:
        """The candles that wait, and when it is time for them, everything else."""
        oldest = self.oldest
        taken = Taken(candles=self.take_candles())
        if self._due:
            self._due = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for line in self._lines.values():
                if line.trades:
                    trades = line.trades.copy()
                    line.trades.clear()
                    self._taken += len(trades)
                    taken.trades.append(
                        TradeBatch(exchange=line.exchange, symbol=line.symbol, trades=trades, dense=line.dense)
                    )
            taken.refused, self._refused = self._refused, []
            taken.marks, self._marks = self._marks, []
        self._oldest_taken = oldest
        self._plan()
        return taken

    def settled(self, batch: Batch) -> None:
        """This is durable."""
        if isinstance(batch, TradeBatch):
            self._settled += len(batch.trades)
        else:
            self._other_rows -= rows_of(batch)
            self._other_bytes -= bytes_of(batch)
        if self.crowded and self.rows <= self._rules.low_rows and self.bytes <= self._rules.low_bytes:
            self._crowd(False)
            self._plan()

    def all_settled(self) -> None:
        """Nothing of what was taken is left."""
        self._oldest_taken = None

    def _add(self, batch: Batch) -> None:
        self._other_rows += rows_of(batch)
        self._other_bytes += bytes_of(batch)
        self._check_room()

    def _look(self) -> None:
        """It is time to do something about the trades: to take them soon, or now, or to pause the streams."""
        if self._put - self._taken >= self._rules.trades_at_once:
            if not self._due:
                self.hurry()
        else:
            self._set_timer()
        self._check_room()
        self._plan()

    def _set_timer(self) -> None:
        if self._timer is None and not self._due:
            self._timer = asyncio.get_running_loop().call_later(self._rules.trades_every, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.hurry()

    def _plan(self) -> None:
        """Say at which trade to look again."""
        at = sys.maxsize
        if not self._due:
            at = self._put + 1 if self._timer is None else self._taken + self._rules.trades_at_once
        if not self.crowded:
            rows = self._rules.high_rows - self._other_rows
            room = (self._rules.high_bytes - self._other_bytes) // TRADE_BYTES
            at = min(at, self._settled + min(rows, room))
        self._look_at = at

    def _check_room(self) -> None:
        full = self.rows >= self._rules.high_rows or self.bytes >= self._rules.high_bytes
        if full and not self.crowded:
            self._crowd(True)

    def _crowd(self, crowded: bool) -> None:
        self.crowded = crowded
        if self._on_crowded is not None:
            self._on_crowded(crowded)
