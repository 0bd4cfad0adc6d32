"""An order book in Redis: written whole or by its changes, read by its best levels, never seen half done.

The rules are in ``lua/order_book.lua``: for each side a hash of sizes by price and a sorted set of prices, a record
beside them, and one script for each thing that is done. Here are the commands and what their answers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from market.book_message import BookSnapshot, Level
from store.redis.command import Command, Reply
from store.redis.live_keys import live_key
from store.redis.ownership import Call, Outcome, live_script

_REPLACE, _APPLY, _REMOVE, _READ = (
    live_script("order_book", one) for one in ("replace", "apply", "remove", "read")
)
_ENCODER = msgspec.msgpack.Encoder()
_PARTS = ("record", "bid_sizes", "bid_prices", "ask_sizes", "ask_prices")


class LevelChanges(NamedTuple):
    """What changed in a book since it was last written, and where it stands now. A quantity of 0 is no level."""

    last_id: int
    event_time: int | None
    received_at: int
    #: Quantity (base) by price.
    bids: Mapping[float, float]
    asks: Mapping[float, float]


class Written(NamedTuple):
    """What became of a call, and how many levels each side has now."""

    outcome: Outcome
    bids: int = 0
    asks: int = 0


class RedisOrderBook:
    """The commands for one order book; all its keys are in one slot."""

    def __init__(self, exchange: str, symbol: str) -> None:
        self._keys = tuple(live_key(exchange, symbol, "order_book", part) for part in _PARTS)

    def replace(self, call: Call, book: BookSnapshot, lifetime_ms: int) -> Command:
        """Put a whole book down.

        :param lifetime_ms: it is gone unless something is written before; so with the others.
        """
        levels = _ENCODER.encode([_flat(book.bids), _flat(book.asks)])
        return _REPLACE.call(
            self._keys,
            (*call.arguments(lifetime_ms), book.last_id, _time(book.event_time), book.received_at, levels),
        )

    def apply(self, call: Call, after: int, changes: LevelChanges, lifetime_ms: int) -> Command:
        """Change levels of the book that the same owner's call `after` left; refused where another is there."""
        parts = [part for side in (changes.bids, changes.asks) for part in (_flat(side.items()), _gone(side))]
        where = changes.last_id, _time(changes.event_time), changes.received_at
        return _APPLY.call(self._keys, (*call.arguments(lifetime_ms), *where, after, _ENCODER.encode(parts)))

    def remove(self, call: Call, why: str, lifetime_ms: int) -> Command:
        """Serve it no longer, and for a while say why."""
        return _REMOVE.call(self._keys, (*call.arguments(lifetime_ms), why))

    def read(self, levels: int) -> Command:
        """Ask for the best levels of both sides; :func:`read_book` knows the answer."""
        return _READ.call(self._keys, (levels,))


def written(reply: Reply) -> Written:
    """What the answer to a command that writes says."""
    outcome = Outcome.of(reply)
    if outcome is Outcome.DONE and len(reply) == 3:
        return Written(outcome, reply[1], reply[2])
    return Written(outcome)


def read_book(reply: Reply) -> BookSnapshot | str | None:
    """The book; a text that says why there is none; None where nobody has written one that can be read."""
    try:
        if len(reply) == 1:
            return bytes(reply[0]).decode(errors="replace")
        last_id, event_time, received_at, *sides = reply
        bids, asks = (
            tuple(zip(_numbers(prices), _numbers(sizes), strict=True))
            for prices, sizes in zip(sides[::2], sides[1::2], strict=True)
        )
        return BookSnapshot(int(last_id), bids, asks, int(event_time) if event_time else None, int(received_at))
    except (TypeError, ValueError):
        return None


def _time(event_time: int | None) -> int | str:
    return "" if event_time is None else event_time


def _text(number: float) -> str:
    """The shortest decimal text that brings the number back: one number, one text."""
    return repr(float(number)).removesuffix(".0")


def _flat(levels: Iterable[Level]) -> list[str]:
    return [_text(number) for level in levels if level[1] for number in level]


def _gone(side: Mapping[float, float]) -> list[str]:
    return [_text(price) for price, quantity in side.items() if not quantity]


def _numbers(text: bytes) -> Sequence[float]:
    return [float(one) for one in text.split()]
