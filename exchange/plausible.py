"""Prices and times that can be decoded and still cannot be true.

Both judge by what came before on the same connection, and both yield: what is refused once is believed when the
next message agrees with it. So one garbled message does no harm, and a market that really jumped, or a clock of
ours that is really wrong, costs one message, which the refill over REST brings back.
"""

from __future__ import annotations

from market.errors import BadInput

#: A price may be so many times the last one, or so many times smaller.
MOST_TIMES = 10.0
#: An event may be so much further ahead of our clock than the one before, milliseconds.
LEAP_MS = 60_000
#: The same where the exchange may live in a time of its own: a simulated one, or a recorded session.
OWN_TIME_LEAP_MS = 86_400_000


class PriceBand:
    """Judges the prices of one stream: each must lie within ten times either way of the one before."""

    __slots__ = ("_doubted", "_high", "_low")

    def __init__(self) -> None:
        # The first price has nothing to be judged by.
        self._low = 0.0
        self._high = float("inf")
        self._doubted: float | None = None

    def check(self, field: str, price: float) -> None:
        """Remember `price`.

        :param price: quote per base, above zero.
        :raises BadInput: naming `field`, if it is not to be believed yet.
        """
        if not self._low < price < self._high:
            self._doubt(field, price)
        self._low = price / MOST_TIMES
        self._high = price * MOST_TIMES
        self._doubted = None

    def _doubt(self, field: str, price: float) -> None:
        doubted, self._doubted = self._doubted, price
        if doubted is None or not doubted / MOST_TIMES < price < doubted * MOST_TIMES:
            raise BadInput(
                field,
                price,
                f"a price from {self._low:g} to {self._high:g}, {MOST_TIMES:g} times either way of the last one,"
                " until the next message agrees",
            )


class EventTimes:
    """Judges the event times of one connection: none may suddenly be further ahead of our clock than the last.

    How far the exchange is ahead of us is learnt from each message, so neither a clock of ours that is some minutes
    slow nor an exchange that runs faster than time (a replay) is mistaken for the future. Times in the past are
    always fine: they are what a replay has, and a late message harms nobody.
    """

    __slots__ = ("_doubted", "_leap", "_limit")

    def __init__(self, leap_ms: int = LEAP_MS) -> None:
        self._leap = leap_ms
        #: Milliseconds that an event may be ahead of our clock.
        self._limit = leap_ms
        self._doubted: int | None = None

    def check(self, field: str, event_time: int, received_at: int) -> None:
        """Remember how far `event_time` is ahead of `received_at`, both in epoch milliseconds.

        :raises BadInput: naming `field`, if it is not to be believed yet.
        """
        ahead = event_time - received_at
        if ahead > self._limit:
            self._doubt(field, event_time, received_at)
        self._limit = self._leap + ahead if ahead > 0 else self._leap
        self._doubted = None

    def _doubt(self, field: str, event_time: int, received_at: int) -> None:
        ahead = event_time - received_at
        doubted, self._doubted = self._doubted, ahead
        if doubted is None or abs(ahead - doubted) > self._leap:
            raise BadInput(
                field,
                event_time,
                f"a time of at most {received_at + self._limit} by our clock, until the next agrees",
            )
