"""Timeframes and their buckets, in UTC.

A bucket is the half-open interval ``[open_time, next open_time)``. Weeks start on Monday, months on the 1st,
three-day candles count from an origin day that the exchange chooses (Binance: the instrument's listing day).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from market.errors import BadInput

MINUTE_MS = 60_000
DAY_MS = 86_400_000
#: 1970-01-05, the first Monday of the epoch.
_MONDAY_MS = 4 * DAY_MS
#: Where three-day buckets count from when an instrument does not say: 1970-01-02, which is congruent with
#: the listing days of BTC/USDT and ETH/USDT on Binance (epoch day mod 3 = 1).
DEFAULT_ORIGIN_MS = DAY_MS

Int64s = npt.NDArray[np.int64]
_MONTH = np.timedelta64(1, "M")


@dataclass(frozen=True, order=True)
class Timeframe:
    """One of the fifteen candle lengths. Get one with :meth:`parse`; instances are shared and comparable."""

    #: ccxt's name: ``1m`` ... ``1M`` (minute is ``m``, month is ``M``).
    name: str = field(compare=False)
    #: Length in seconds, the key in databases; nominal (30 days) for ``1M``.
    seconds: int

    @staticmethod
    def parse(name: str, field: str = "timeframe") -> Timeframe:
        """The timeframe called `name`.

        :raises BadInput: naming `field` and listing the known names.
        """
        try:
            return TIMEFRAMES[name]
        except (KeyError, TypeError):
            raise BadInput(field, name, "one of " + " ".join(TIMEFRAMES)) from None

    @staticmethod
    def of_seconds(seconds: int) -> Timeframe:
        """The timeframe with that database key."""
        return _BY_SECONDS[seconds]

    @property
    def milliseconds(self) -> int:
        """Length in milliseconds; nominal for ``1M``."""
        return self.seconds * 1000

    def __str__(self) -> str:
        return self.name

    def _origin(self, origin_ms: int) -> int:
        if self.name == "1w":
            return _MONDAY_MS
        return origin_ms if self.name == "3d" else 0

    def floor(self, ms: int, origin_ms: int = DEFAULT_ORIGIN_MS) -> int:
        """The open time of the bucket that `ms` lies in."""
        if self.name == "1M":
            moment = datetime.fromtimestamp(ms // 1000, UTC)
            return int(datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()) * 1000
        shift = self._origin(origin_ms) % self.milliseconds
        return (ms - shift) // self.milliseconds * self.milliseconds + shift

    def next(self, open_ms: int, count: int = 1) -> int:
        """The open time `count` buckets after the one that opens at `open_ms`; may be negative."""
        if self.name != "1M":
            return open_ms + count * self.milliseconds
        moment = datetime.fromtimestamp(open_ms // 1000, UTC)
        month = moment.year * 12 + moment.month - 1 + count
        return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1000

    def ceil(self, ms: int, origin_ms: int = DEFAULT_ORIGIN_MS) -> int:
        """The first open time at or after `ms`."""
        floor = self.floor(ms, origin_ms)
        return floor if floor == ms else self.next(floor)

    def floor_all(self, open_times: Int64s, origin_ms: int = DEFAULT_ORIGIN_MS) -> Int64s:
        """:meth:`floor` over an array of epoch milliseconds."""
        if self.name == "1M":
            months = open_times.astype("datetime64[ms]").astype("datetime64[M]")
            return months.astype("datetime64[ms]").astype(np.int64)
        shift = self._origin(origin_ms) % self.milliseconds
        return (open_times - shift) // self.milliseconds * self.milliseconds + shift

    def next_all(self, open_times: Int64s) -> Int64s:
        """The end of each bucket, for an array of open times."""
        if self.name == "1M":
            months = open_times.astype("datetime64[ms]").astype("datetime64[M]") + _MONTH
            return months.astype("datetime64[ms]").astype(np.int64)
        return open_times + self.milliseconds

    def open_times(self, start_ms: int, end_ms: int, origin_ms: int = DEFAULT_ORIGIN_MS) -> Int64s:
        """Every open time in ``[start_ms, end_ms)``."""
        first = self.ceil(start_ms, origin_ms)
        if first >= end_ms:
            return np.empty(0, np.int64)
        if self.name == "1M":
            months = np.arange(
                np.datetime64(first, "ms").astype("datetime64[M]"),
                np.datetime64(end_ms - 1, "ms").astype("datetime64[M]") + _MONTH,
            )
            return months.astype("datetime64[ms]").astype(np.int64)
        return np.arange(first, end_ms, self.milliseconds, dtype=np.int64)

    def count(self, start_ms: int, end_ms: int, origin_ms: int = DEFAULT_ORIGIN_MS) -> int:
        """How many buckets open in ``[start_ms, end_ms)``."""
        if self.name == "1M":
            return len(self.open_times(start_ms, end_ms, origin_ms))
        first = self.ceil(start_ms, origin_ms)
        return max(0, -((first - end_ms) // self.milliseconds))

    def derives_from(self, base: Timeframe) -> bool:
        """True if every bucket of this timeframe is a whole number of `base` buckets."""
        return self.seconds > base.seconds and base.seconds <= 86_400 and self.seconds % base.seconds == 0


TIMEFRAMES: dict[str, Timeframe] = {
    name: Timeframe(name, seconds)
    for name, seconds in {
        "1m": 60, "3m": 180, "5m": 300, "15m": 900, "30m": 1800,
        "1h": 3600, "2h": 7200, "4h": 14_400, "6h": 21_600, "8h": 28_800, "12h": 43_200,
        "1d": 86_400, "3d": 259_200, "1w": 604_800, "1M": 2_592_000,
    }.items()
}  # fmt: skip
_BY_SECONDS = {timeframe.seconds: timeframe for timeframe in TIMEFRAMES.values()}

ONE_MINUTE = TIMEFRAMES["1m"]
