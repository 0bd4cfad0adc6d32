"""Instants: UTC integer milliseconds inside, explicit zones at the edges, and the clock as an argument."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime
from typing import Protocol

from market.errors import BadInput

#: Bounds of what is accepted as an instant: 2000-01-01 to 2100-01-01. Anything outside is a unit mix-up
#: (seconds or microseconds where milliseconds are meant), and a loud error beats a wrong century.
EARLIEST_MS = 946_684_800_000
LATEST_MS = 4_102_444_800_000

_ACCEPTED = "an instant with a zone (2023-01-01T00:00:00Z), a UTC date (2023-01-01), or epoch milliseconds"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_EPOCH = re.compile(r"-?\d{1,18}\Z")


class Clock(Protocol):
    """Where "now" comes from. Implemented by the machine's clock, by an exchange's, and by tests."""

    def now_ms(self) -> int:
        """Epoch milliseconds, UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


def to_ms(value: datetime | date | str | int, field: str = "time") -> int:
    """An instant from the outside as UTC epoch milliseconds.

    Accepts aware datetimes, ISO 8601 text with a zone, a bare date (midnight UTC) and epoch milliseconds.
    Naive date-times are refused: nobody can know which zone was meant.

    :raises BadInput: naming `field`.
    """
    if isinstance(value, bool):
        raise BadInput(field, value, _ACCEPTED)
    if isinstance(value, int):
        return _in_range(value, field, value)
    if isinstance(value, datetime):
        return _in_range(_aware_ms(value, field), field, value)
    if isinstance(value, date):
        return _in_range(_aware_ms(datetime(value.year, value.month, value.day, tzinfo=UTC), field), field, value)
    text = value.strip()
    if _EPOCH.match(text):
        return _in_range(int(text), field, value)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(field, value, _ACCEPTED) from None
    if _DATE.match(text):
        parsed = parsed.replace(tzinfo=UTC)
    return _in_range(_aware_ms(parsed, field), field, value)


def _aware_ms(value: datetime, field: str) -> int:
    if value.utcoffset() is None:
        raise BadInput(field, value.isoformat(), _ACCEPTED + "; this one has no zone")
    # Whole-number arithmetic: datetime.timestamp() is a float and rounds microseconds.
    delta = value - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def _in_range(ms: int, field: str, value: object) -> int:
    if not EARLIEST_MS <= ms < LATEST_MS:
        raise BadInput(field, str(value), "an instant from 2000 to 2099 (epoch values are milliseconds)")
    return ms


def iso(ms: int) -> str:
    """`ms` as ISO 8601 text in UTC, with milliseconds only where there are any: ``2023-03-24T12:40:00Z``."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    fraction = f".{ms % 1000:03d}" if ms % 1000 else ""
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
