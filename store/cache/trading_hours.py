"""When a market is open, so that values may be served for longer while it is closed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from market.errors import BadInput

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
#: Epoch time began on a Thursday: minutes from Monday 00:00 to it.
_EPOCH_MINUTE = 3 * _DAY_MINUTES
_ACCEPTED = "windows in UTC such as mon-fri 08:00-17:00, several separated by commas"
_WINDOW = re.compile(r"([a-z]+)(?:-([a-z]+))? +(\d{1,2}:\d{2})-(\d{1,2}:\d{2})\Z")
_LARGEST_FACTOR = 1_000.0


class TradingHours:
    """Windows of the week, in UTC; outside of them times to live are multiplied.

    A window over midnight belongs to the day it begins on: ``fri 22:00-02:00`` ends on Saturday morning. One
    whose ends are alike (``mon 00:00-00:00``) is 24 hours long, as is one to ``24:00``.

    :param text: ``mon-fri 08:00-17:00, sat 10:00-12:00``; days may go over the end of the week (``sat-mon``).
    :param classes: the names of the classes of values that live longer outside of them.
    :param factor: by how much, 1 to 1000.
    :param field: how the one who gave `text` knows it.
    :raises BadInput: naming `field`, ``<field>.factor`` or ``<field>.classes``.
    """

    def __init__(
        self,
        text: str,
        classes: Iterable[str] = ("price",),
        factor: float = 10.0,
        field: str = "cache.trading_hours",
    ) -> None:
        if isinstance(factor, bool) or not math.isfinite(factor) or not 1 <= factor <= _LARGEST_FACTOR:
            raise BadInput(f"{field}.factor", factor, f"a number from 1 to {_LARGEST_FACTOR:g}")
        self._factor = float(factor)
        #: The names of the classes of values that live longer.
        self.classes = frozenset(classes)
        if not self.classes:
            raise BadInput(f"{field}.classes", [], "at least one class of values")
        self._open = _minutes(text, field)

    def open(self, now_ms: int) -> bool:
        """Whether this instant, epoch milliseconds, is in a window. A window's end is not."""
        return self._open[(now_ms // 60_000 + _EPOCH_MINUTE) % _WEEK_MINUTES] == 1

    def factor(self, name: str, now_ms: int) -> float:
        """What the time to live of a class is multiplied with at this instant."""
        return self._factor if name in self.classes and not self.open(now_ms) else 1.0


def _minutes(text: str, field: str) -> bytes:
    """A one for each minute of the week, from Monday on, that is in a window."""
    week = bytearray(_WEEK_MINUTES)
    for written in text.split(","):
        window = _WINDOW.match(written.strip().lower())
        if window is None:
            raise BadInput(field, written.strip(), _ACCEPTED)
        first = _day(window[1], field)
        last = first if window[2] is None else _day(window[2], field)
        start, end = _minute(window[3], field), _minute(window[4], field)
        length = (end - start) % _DAY_MINUTES or _DAY_MINUTES
        for day in range((last - first) % 7 + 1):
            begins = (first + day) % 7 * _DAY_MINUTES + start
            for minute in range(begins, begins + length):
                week[minute % _WEEK_MINUTES] = 1
    return bytes(week)


def _day(name: str, field: str) -> int:
    if name not in _DAYS:
        raise BadInput(field, name, "a day, one of: " + ", ".join(_DAYS))
    return _DAYS.index(name)


def _minute(text: str, field: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    minute = hours * 60 + minutes
    if minutes > 59 or minute > _DAY_MINUTES:
        raise BadInput(field, text, "a time from 00:00 to 24:00")
    return minute
