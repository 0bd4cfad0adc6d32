"""A store in memory that takes what the writer writes, and fails when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from market.candle import open_times_ms
from market.errors import BadInput
from market.trade import Trade
from store.batch import CandleBatch, Written
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch, TradesWritten


def trade(number: int, received_at: int = 1_700_000_000_000) -> Trade:
    """A trade whose every value follows from its id."""
    return Trade(
        id=number,
        price=100.0 + number / 8,
        quantity=0.5 + number % 7,
        event_time=1_700_000_000_000 + number,
        taker_buys=number % 2 == 0,
        received_at=received_at,
    )


class ScriptedWrites:
    """`error` makes every write fail, with `late` after it was done. `gate` holds writes up until it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.late = False
        self.gate = asyncio.Event()
        self.gate.set()
        #: Says which batches are refused as bad input.
        self.refuses: Callable[[CandleBatch | TradeBatch], bool] = lambda batch: False
        #: Ids of the trades of each instrument, in the order in which they first came.
        self.trades: dict[str, list[int | str]] = {}
        #: Closing price of each candle by symbol and open time, as last written.
        self.candles: dict[tuple[str, int], float] = {}
        self.messages: list[QuarantinedMessage] = []
        #: What was called, with how many rows.
        self.calls: list[tuple[str, int]] = []
        #: Transactions under way, and the most there ever were.
        self.under_way = self.most_under_way = 0
        self._seen: set[tuple[str, int | str]] = set()

    async def write_all(self, batches: Sequence[CandleBatch]) -> list[Written]:
        await self._begin("candles", batches, sum(batch.table.num_rows for batch in batches))
        for batch in batches:
            closes = batch.table.column("close").to_pylist()
            for time, close in zip(open_times_ms(batch.table).tolist(), closes, strict=True):
                self.candles[batch.series.symbol, time] = close
        self._end()
        return [Written(inserted=batch.table.num_rows) for batch in batches]

    async def write_trades(self, batches: Sequence[TradeBatch]) -> TradesWritten:
        await self._begin("trades", batches, sum(len(batch.trades) for batch in batches))
        inserted = 0
        for batch in batches:
            for one in batch.trades:
                if (batch.symbol, one.id) not in self._seen:
                    self._seen.add((batch.symbol, one.id))
                    self.trades.setdefault(batch.symbol, []).append(one.id)
                    inserted += 1
        self._end()
        return TradesWritten(inserted=inserted)

    async def refuse_messages(self, refused: Sequence[QuarantinedMessage]) -> None:
        await self._begin("messages", [], len(refused))
        self.messages += refused
        self._end()

    async def _begin(self, name: str, batches: Sequence[CandleBatch | TradeBatch], rows: int) -> None:
        self.calls.append((name, rows))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            # As a server that is asked, and not a function that is called: others run meanwhile.
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.error is not None and not self.late:
                raise self.error
            for batch in batches:
                if self.refuses(batch):
                    raise BadInput("batch", batch, "something else")
        finally:
            self.under_way -= 1

    def _end(self) -> None:
        if self.error is not None:
            raise self.error
