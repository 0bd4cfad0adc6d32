"""Names of topics, and patterns that stand for several of them.

A topic is parts with dots between: ``market_data.binance.BTC/USDT``, ``events.trade_executed``. In a pattern the
part ``*`` stands for exactly one part, and ``#`` as the last part for any number of them, also none. These are the
rules of AMQP, so RabbitMQ can route by them too. A symbol with a dot in it is two parts: subscribe with ``#``.
"""

from __future__ import annotations

from collections.abc import Sequence

from market.errors import BadInput

#: AMQP's limit for what a message is routed by, in bytes.
LONGEST = 240
_ONE, _REST = "*", "#"


def market_topic(exchange: str, symbol: str) -> str:
    """Where messages about one instrument are published.

    :param exchange: ccxt's id.
    :param symbol: ccxt unified, as it is.
    """
    return f"market_data.{exchange}.{symbol}"


def checked_topic(topic: str) -> str:
    """`topic`, if messages can be published under it on every bus.

    :raises BadInput: it has no parts, an empty part, a wildcard, a sign that is not printable, or is too long.
    """
    if not _well_formed(topic) or _ONE in topic or _REST in topic:
        raise BadInput("topic", topic, "parts with dots between and no * or #, such as events.trade_executed")
    return topic


class Patterns:
    """Which topics a subscriber wants: those that any of the patterns stands for."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """:raises BadInput: there is none, or one is malformed."""
        if not patterns:
            raise BadInput("patterns", patterns, "at least one topic or pattern, such as market_data.binance.*")
        for pattern in patterns:
            parts = pattern.split(".")
            wild = [part for part in parts if _ONE in part or _REST in part]
            if not _well_formed(pattern) or any(part not in (_ONE, _REST) for part in wild) or _REST in parts[:-1]:
                raise BadInput("patterns", pattern, "a topic in which * is one whole part and # the last one")
        #: As they were given.
        self.patterns = tuple(patterns)
        self._parts = [pattern.split(".") for pattern in patterns]

    def match(self, topic: str) -> bool:
        """Whether one of them stands for `topic`."""
        parts = topic.split(".")
        return any(_stands_for(pattern, parts) for pattern in self._parts)


def _stands_for(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if pattern[-1] == _REST:
        pattern = pattern[:-1]
        parts = parts[: len(pattern)]
    return len(pattern) == len(parts) and all(
        wanted in (_ONE, part) for wanted, part in zip(pattern, parts, strict=True)
    )


def _well_formed(name: str) -> bool:
    return name.isprintable() and len(name.encode()) <= LONGEST and all(name.split("."))
