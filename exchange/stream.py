"""What live streams of any exchange have in common: topics in, messages of `market` out.

A stream client turns the frames of one WebSocket connection into messages of ``market`` and hands each to the
listener of its topic, at once and in the order of arrival. It keeps nothing, repairs nothing and does not connect
again: what was missed while a connection was away, and when to open the next one, is decided by who uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

# Named again, for those who describe an exchange by its rules.
from market.book_message import BookChain as BookChain
from market.book_message import BookStart as BookStart
from market.book_message import LevelText
from market.channel import Channel, Topic

#: Called with a message of the topic's channel. Returns at once and never raises.
Listener = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class RefusedMessage:
    """A message that could not be used, kept as it came."""

    exchange: str
    #: None where the message does not tell.
    topic: Topic | None
    #: In words: which field, its value, what would be accepted.
    reason: str
    #: The message as received; long ones are cut.
    raw: str
    #: Epoch milliseconds of our clock.
    received_at: int


@dataclass(frozen=True, kw_only=True)
class StreamRules:
    """How the streams of one exchange behave."""

    channels: frozenset[Channel]
    #: Topics on one connection at most.
    topics_per_connection: int = 200
    #: Seconds after which a connection is replaced, before the exchange cuts it; None where it does not.
    longest_life: float | None = None
    #: New connections from one address: at most `connects` in `connect_seconds`.
    connects: int = 30
    connect_seconds: float = 60.0
    #: Ids of trades count up by one within a symbol, so that a hole can be seen.
    dense_trade_ids: bool = False
    #: A candle is also sent for a minute without trades.
    sends_flat_candles: bool = False
    #: The candle channel says that a candle has closed.
    says_closed: bool = False
    book_start: BookStart = BookStart.STREAM
    book_chain: BookChain = BookChain.CONNECTION
    #: From the text of the best bids and asks to the checksum in the messages; None where there is none to check.
    book_checksum: Callable[[Sequence[LevelText], Sequence[LevelText]], int] | None = None


class Connection(Protocol):
    """One open connection."""

    @property
    def frames(self) -> int:
        """Messages received so far, of whatever kind."""
        ...

    async def ended(self) -> None:
        """Return never; raise ExchangeUnavailable, saying why, once the connection has ended."""
        ...

    def pause(self) -> None:
        """Stop reading: what comes waits in the network until :meth:`resume`. Calling it again changes nothing."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...


class StreamClient(Protocol):
    """The live streams of one exchange. Holds no connection itself."""

    @property
    def exchange(self) -> str:
        """ccxt's id."""
        ...

    @property
    def rules(self) -> StreamRules: ...

    def connect(
        self, listeners: Mapping[Topic, Listener], refused: Callable[[RefusedMessage], None]
    ) -> AbstractAsyncContextManager[Connection]:
        """Open one connection and subscribe to the topics of `listeners`; entered once all are subscribed.

        Leaving the context closes the connection.

        :param refused: told of each message that cannot be used; the stream goes on.
        :raises ExchangeUnavailable: on entering, where the connection or a subscription does not come about.
        :raises RateLimited: on entering, where the exchange wants us to wait before the next connection.
        :raises NotFound: on entering, for a symbol that was not named when the client was made.
        :raises ExchangeRefused: on entering, where the exchange refuses a subscription for good.
        """
        ...
