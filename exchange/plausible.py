"""Prices and times that can be decoded and still cannot be true.

Both judge by what came before on the same connection, and both yield: what is refused is believed when what follows
agrees with it: the next price of the stream, or the next `AGREEING` times. So a garbled message does no harm, and a
market that really jumped, or a clock of ours that is really wrong, costs a few messages, which the refill over REST
brings back.

Nearly every message is like the one before. Whoever reads thousands a second compares with `PriceBand.low` and
`high`, or `EventTimes.lowest` and `highest`, and calls `check` only for a value outside; that changes nothing but
the time it takes.
"""

from __future__ import annotations

from market.errors import BadInput

#: A price may be so many times the price it is judged by, or so many times smaller.
MOST_TIMES = 10.0
#: A price within so many times of the price that is judged by does not replace it.
_NEAR_TIMES = 2.0
#: An event may be so much further ahead of our clock than those before, milliseconds.
LEAP_MS = 60_000
#: The same where the exchange may live in a time of its own: a simulated one, or a recorded session.
OWN_TIME_LEAP_MS = 86_400_000
#: Times in a row that agree with one that was refused, until they are believed. More than one, because all streams
#: of a connection are judged together, and what garbles a message may garble two.
AGREEING = 5


class PriceBand:
    """Judges the prices of one stream: each must lie within ten times either way of a recent one.

    The recent one is the last that was more than twice as high or low as the one judged by until then.
    """

    __slots__ = ("_doubted", "_judge", "high", "low")

    def __init__(self) -> None:
        # The first price has nothing to be judged by.
        self._judge: float | None = None
        self._doubted: float | None = None
        #: Prices strictly between are plausible and teach nothing; quote per base.
        self.low = 0.0
        self.high = 0.0

    def check(self, field: str, price: float) -> None:
        """Judge `price`, and learn from it.

        :param price: quote per base, above zero.
        :raises BadInput: naming `field`, if it is not to be believed yet.
        """
        judge, doubted = self._judge, self._doubted
        if judge is not None and not judge / MOST_TIMES < price < judge * MOST_TIMES:
            self._doubted = price
            if doubted is None or not doubted / MOST_TIMES < price < doubted * MOST_TIMES:
                # A plausible price in between must be seen, to forget the doubt.
                self.low = self.high = 0.0
                band = f"from {judge / MOST_TIMES:g} to {judge * MOST_TIMES:g}"
                about = f"{MOST_TIMES:g} times either way of the prices before, until the next message agrees"
                raise BadInput(field, price, f"a price {band}, {about}")
            judge = None
        self._doubted = None
        if judge is None or not judge / _NEAR_TIMES < price < judge * _NEAR_TIMES:
            judge = price
        self._judge = judge
        self.low, self.high = judge / _NEAR_TIMES, judge * _NEAR_TIMES


class EventTimes:
    """Judges the event times of one connection: none may suddenly be further ahead of our clock than those before.

    How far the exchange is ahead of us is learnt from the messages, so neither a clock of ours that is some minutes
    slow nor an exchange that runs faster than time (a replay) is mistaken for the future. Times in the past are
    always fine: a late message harms nobody.

    :param own_time: the exchange may live in the past, as a simulated one or a replay does. Its future is then what
        is ahead of its own messages.
    """

    __slots__ = ("_agreeing", "_doubted", "_leap", "_learnt", "_least", "highest", "lowest")

    def __init__(self, leap_ms: int | None = None, *, own_time: bool = False) -> None:
        self._leap = leap_ms or (OWN_TIME_LEAP_MS if own_time else LEAP_MS)
        #: How far the exchange is ahead of our clock, milliseconds; not below `_least`.
        self._least: float = float("-inf") if own_time else 0
        self._learnt: float | None = None if own_time else 0
        self._doubted: int | None = None
        self._agreeing = 0
        #: Event time minus our clock, milliseconds: from one to the other inclusive it is plausible and teaches
        #: nothing.
        self.lowest: float = float("-inf")
        self.highest: float = float("-inf") if own_time else 0

    def check(self, field: str, event_time: int, received_at: int) -> None:
        """Judge how far `event_time` is ahead of `received_at`, both in epoch milliseconds, and learn from it.

        :raises BadInput: naming `field`, if it is not to be believed yet.
        """
        ahead, doubted = event_time - received_at, self._doubted
        if self._learnt is None:
            self._learnt = ahead
        if ahead > self._learnt + self._leap:
            self._doubted = ahead
            agrees = doubted is not None and abs(ahead - doubted) <= self._leap
            self._agreeing = self._agreeing + 1 if agrees else 0
            if self._agreeing < AGREEING:
                # A plausible time in between must be seen, to forget the doubt.
                self.highest = float("-inf")
                limit = received_at + int(self._learnt) + self._leap
                few = f"until the next {AGREEING} agree"
                raise BadInput(field, event_time, f"a time of at most {limit}, by our clock, {few}")
        self._doubted = None
        self._agreeing = 0
        if ahead > self._learnt or ahead < self._learnt - self._leap:
            self._learnt = max(self._least, ahead)
        self.highest = self._learnt
        self.lowest = self._learnt - self._leap if self._learnt > self._least else float("-inf")
