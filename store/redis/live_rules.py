"""How live data is written to Redis, and how that fares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from store.redis.command import Argument, Command, Reply


class RedisCommands(Protocol):
    """The part of :class:`store.redis.connection.RedisConnection` that live data takes, without its driver: that is
    an extra of the package."""

    async def execute(self, name: str, key: str, *arguments: Argument) -> Reply:
        """One command."""
        ...

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """Many commands in one round trip to each server."""
        ...


@dataclass(frozen=True, kw_only=True)
class LiveWriterRules:
    """How often and how much is written. Milliseconds; lifetimes are those of router memory in one process."""

    #: Between two flushes; an order book that may not be served any more does not wait.
    flush_ms: int = 50
    #: After Redis has failed twice in a row, until it is tried again.
    away_ms: int = 1_000
    #: Another writer that was not heard of for so long is gone.
    lease_ms: int = 2_000
    #: Everything is written again, or looked after, so often: a server may have forgotten it.
    refresh_ms: int = 10_000
    ticker_ms: int = 5 * 60_000
    forming_ms: int = 5 * 60_000
    trades_ms: int = 10 * 60_000
    book_ms: int = 30_000
    #: Why a book is not served is kept so long.
    why_ms: int = 60_000
    #: Trades kept of one market, and levels of one side of a book.
    most_trades: int = 10_000
    most_levels: int = 2_000
    #: Commands, and levels and trades in them, sent in one round trip: the server must answer in time.
    commands_together: int = 200
    weight_together: int = 2_500


@dataclass(kw_only=True)
class LiveWriterStatus:
    """What a writer has done since it was opened."""

    flushes: int = 0
    #: Round trips (to each server of a cluster at the same time), and commands in them.
    pipelines: int = 0
    commands: int = 0
    #: Order books written whole, by their changes, and taken away.
    books_replaced: int = 0
    books_changed: int = 0
    books_removed: int = 0
    #: Trades written.
    trades: int = 0
    #: What Redis had was not what we go on from: all of it was sent.
    refused: int = 0
    #: Another writer had the symbol.
    kept_by_another: int = 0
    #: Times that Redis did not answer, and trades and changes that were let go because of it.
    failures: int = 0
    dropped: int = 0
    #: Whether Redis is left alone for a moment; and what it said last, in words.
    away: bool = False
    error: str | None = None
    #: Of the last flush that wrote something, and of the longest; milliseconds.
    flush_ms: float = 0.0
    longest_flush_ms: float = 0.0


class Step(NamedTuple):
    """A command to be sent with others, and who wants to know what came of it."""

    command: Command
    #: Levels or trades in it.
    weight: int
    answered: Callable[[Reply], None]
    #: Nobody knows whether it was done.
    lost: Callable[[], None]
