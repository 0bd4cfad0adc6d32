"""What may happen to a home whose readers cache: operations, schedules of them, and a failing one made short.

A schedule is made from choices, which a seeded generator makes for the long runs and Hypothesis for the short ones.
Operations are absolute (this series, these instants), so that one can be dropped and the others mean the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from market.candle import CandleState
from market.clock import iso, to_ms
from market.coverage import CoverageState
from market.instrument import Series
from market.timeframe import TIMEFRAMES, Timeframe
from tests.support.made_candles import DAY, HOUR, MINUTE

#: Our clock when a schedule begins.
BEGIN = to_ms("2024-01-01")
#: Exchange time of all batches: whatever is written has closed.
CLOSED = to_ms("2030-01-01")
#: Days around which everything happens: both sides of days, months and a year, and one day far off.
DAYS = tuple(
    to_ms(day)
    for day in (
        "2023-03-01", "2023-02-28", "2023-02-01", "2023-01-31",
        "2023-01-01", "2022-12-31", "2023-01-15", "2022-11-07",
    )
)  # fmt: skip
TAIL = to_ms("2023-03-01") + 23 * HOUR + 50 * MINUTE
SYMBOLS = ("AAA/USDT", "BBB/USDT", "CCC/USDT")
LATECOMERS = ("DDD/USDT", "EEE/USDT:USDT")
#: What is written beside minutes.
LARGER = ("1h", "1d", "5m", "1M")
DERIVED = ("5m", "1h", "1d", "3d", "1w", "1M", "15m", "4h")
WORKERS = 3


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing that happens, in one process or to the home."""

    #: Milliseconds that our clock moves before it.
    pause: int = 0

    def __str__(self) -> str:
        said = [
            f"{one.name}={_shown(one.name, getattr(self, one.name))}"
            for one in fields(self)
            if getattr(self, one.name) != one.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, kw_only=True)
class InProcess(Operation):
    """What one of the processes does."""

    worker: int


@dataclass(frozen=True)
class Gone:
    """Nothing there in [start, end), epoch milliseconds."""

    start: int
    end: int
    state: CoverageState
    #: Epoch milliseconds of our clock, or None.
    expires_at: int | None
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Write(InProcess):
    """A batch: `count` candles, every `step`-th from `first`, in one version; and what is not there."""

    series: Series
    first: int = 0
    count: int = 0
    step: int = 1
    version: int = 0
    state: CandleState = CandleState.CLOSED
    gone: tuple[Gone, ...] = ()
    source: str = "rest"

    @property
    def open_times(self) -> list[int]:
        return [self.series.timeframe.next(self.first, one * self.step) for one in range(self.count)]


@dataclass(frozen=True, kw_only=True)
class WriteAll(InProcess):
    """Batches in one transaction."""

    batches: tuple[Write, ...]


@dataclass(frozen=True, kw_only=True)
class Read(InProcess):
    """Candles of one or many series."""

    series: tuple[Series, ...]
    start: int | None = None
    end: int | None = None
    limit: int | None = None
    as_of: int | None = None
    forming: bool = False
    #: In the form that is sent, which is kept; of one series.
    encoded: bool = False


@dataclass(frozen=True, kw_only=True)
class Ask(InProcess):
    """``coverage`` or ``gaps`` of a series; ``series`` or ``instruments`` of all."""

    what: str
    series: Series
    start: int = 0
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class Listed(InProcess):
    """An exchange says since when it has an instrument."""

    symbol: str
    at: int


@dataclass(frozen=True, kw_only=True)
class Form(InProcess):
    """A forming candle reaches router memory."""

    series: Series
    open_time: int
    version: int


@dataclass(frozen=True, kw_only=True)
class Safety(InProcess):
    """Somebody changes the safety state."""

    state: str


@dataclass(frozen=True, kw_only=True)
class Forget(InProcess):
    """The process drops what it has in memory, so that it looks on the disk."""

    series: Series | None = None


@dataclass(frozen=True, kw_only=True)
class Reopen(InProcess):
    """The process closes everything and opens it again."""


@dataclass(frozen=True, kw_only=True)
class Restart(InProcess):
    """The process ends in order, and another takes its place."""


@dataclass(frozen=True, kw_only=True)
class Kill(InProcess):
    """SIGKILL, `after` microseconds into `during`."""

    during: InProcess | None = None
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Damage(Operation):
    """Something happens to a file of the disk tier."""

    which: int
    how: str


@dataclass(frozen=True, kw_only=True)
class Broker(Operation):
    """Redis is ``killed``, ``started`` empty, ``frozen``, ``thawed`` or ``flushed``."""

    what: str


@dataclass(frozen=True, kw_only=True)
class Backup(Operation):
    """The database as it is now is put aside."""


@dataclass(frozen=True, kw_only=True)
class Restore(Operation):
    """The database goes back to the last backup, while nobody has it open, or (`live`) under everybody's feet."""

    live: bool


class Choices(Protocol):
    """Where the choices come from."""

    def number(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        ...

    def one_of(self, options: Sequence[Any]) -> Any:
        """One of these; the simplest stands first."""
        ...


class Seeded:
    """Choices of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def one_of(self, options: Sequence[Any]) -> Any:
        return options[self._random.randrange(len(options))]


DAMAGES = ("deleted", "emptied", "halved", "flipped", "swapped", "garbage", "foreign", "folder")
BROKER = ("killed", "started", "frozen", "thawed", "flushed")


@dataclass
class Planner:
    """Makes operations one by one; remembers what the last ones touched, because that is where caches are wrong.

    :param kinds: names of the rarer operations that the place under test knows: ``safety``, ``redis``, ``disk``,
        ``restore``, ``restore live``, ``processes``.
    """

    choose: Choices
    kinds: frozenset[str] = frozenset()
    now: int = BEGIN
    symbols: list[str] = field(default_factory=lambda: list(SYMBOLS))
    #: Where each symbol's minutes end.
    tails: dict[str, int] = field(default_factory=dict)
    #: What was written last: series and instant.
    touched: list[tuple[Series, int]] = field(default_factory=list)
    #: Past times of our clock.
    moments: list[int] = field(default_factory=list)
    safety: str = "normal"
    #: Reads that may be made again, by another process or after a change.
    asked: list[Read] = field(default_factory=list)

    def chance(self, percent: int) -> bool:
        return bool(self.choose.number(0, 99) >= 100 - percent)

    def plan(self, count: int) -> list[Operation]:
        return [self.next() for _ in range(count)]

    def next(self) -> Operation:
        pause = self.choose.one_of((0, 0, 1, 1, 7, 1000, 60_000)) if not self.chance(2) else HOUR
        self.now += pause
        self.moments = [*self.moments[-19:], self.now]
        what = self.choose.number(0, 999)
        worker = self.choose.number(0, WORKERS - 1)
        if self.safety in ("fail", "lockdown") and self.chance(10):
            # Not for long: what is written is what there is to find.
            self.safety = self.choose.one_of(("normal", "normal", "lockdown"))
            return Safety(worker=worker, pause=pause, state=self.safety)
        if "redis" in self.kinds and self.chance(3):
            return Broker(pause=pause, what=self.choose.one_of(BROKER))
        if what < 170 and self.asked:
            again: Read = self.choose.one_of(self.asked)
            return replace(again, worker=worker, pause=pause)
        if what < 560:
            self.asked = [*self.asked[-4:], self._read(worker, pause)]
            return self.asked[-1]
        if what < 600:
            return Forget(worker=worker, pause=pause, series=None if self.chance(60) else self._spot()[0])
        if what < 650:
            return self._ask(worker, pause)
        if what < 900:
            return self._write(worker, pause)
        if what < 915:
            return WriteAll(worker=worker, pause=pause, batches=tuple(self._write(worker, 0) for _ in range(3)))
        if what < 935:
            series, at = self._spot()
            at = self.tails.get(series.symbol, TAIL) if self.chance(70) else at
            minutes = series.at(TIMEFRAMES["1m"])
            return Form(worker=worker, pause=pause, series=minutes, open_time=at, version=self._version())
        if what < 945:
            return Listed(worker=worker, pause=pause, symbol=self._symbol(), at=self._day() - DAY * self._small())
        return self._rare(what - 945, worker, pause) or self._read(worker, pause)

    def write(self, worker: int) -> Write:
        """A batch of any kind."""
        return self._write(worker, 0)

    def read(self, worker: int) -> Read:
        """Candles of any kind."""
        return self._read(worker, 0)

    def _rare(self, what: int, worker: int, pause: int) -> Operation | None:
        """One of 55 in a thousand; None where the place does not know it."""
        if what < 6:
            return Reopen(worker=worker, pause=pause)
        if what < 26 and "disk" in self.kinds:
            return Damage(pause=pause, which=self.choose.number(0, 1000), how=self.choose.one_of(DAMAGES))
        if what < 34 and "safety" in self.kinds:
            self.safety = self.choose.one_of(("fail", "lockdown", "warning", "normal"))
            return Safety(worker=worker, pause=pause, state=self.safety)
        if what < 41 and "processes" in self.kinds:
            return Restart(worker=worker, pause=pause)
        if what < 46 and "processes" in self.kinds:
            during = self.choose.one_of((None, self._write(worker, 0), self._read(worker, 0)))
            return Kill(worker=worker, pause=pause, during=during, after=self.choose.one_of((0, 200, 1000, 3000)))
        if what < 49 and "restore" in self.kinds:
            return Backup(pause=pause)
        if what < 52 and "restore" in self.kinds:
            return Restore(pause=pause, live=False)
        if what < 55 and "restore live" in self.kinds:
            return Restore(pause=pause, live=True)
        return None

    # Where.

    def _small(self) -> int:
        return int(self.choose.number(0, 4))

    def _version(self) -> int:
        return int(self.choose.number(0, 3))

    def _symbol(self) -> str:
        if self.chance(2):
            return str(self.choose.one_of(LATECOMERS))
        return str(self.choose.one_of(SYMBOLS))

    def _day(self) -> int:
        return int(self.choose.one_of(DAYS))

    def _stored(self) -> Series:
        timeframe = "1m" if not self.chance(20) else self.choose.one_of(LARGER)
        return Series("binance", self._symbol(), TIMEFRAMES[timeframe])

    def _spot(self) -> tuple[Series, int]:
        """A series that may be stored, and an instant where something happens."""
        if self.touched and self.chance(60):
            found: tuple[Series, int] = self.choose.one_of(self.touched)
            return found
        series = self._stored()
        if self.chance(30):
            return series, self.tails.get(series.symbol, TAIL)
        minute = self.choose.one_of((0, 1, 59, 60, 719, 1435, 1439)) + self._small()
        return series, self._day() + minute * MINUTE

    # What.

    def _write(self, worker: int, pause: int) -> Write:
        kind = self.choose.number(0, 99)
        series, at = self._spot()
        version, gone = self._version(), self._gone(series, at) if self.chance(12) else ()
        state = CandleState.VERIFIED if self.chance(15) else CandleState.CLOSED
        if kind < 35:
            # At the end, as a stream brings them.
            series = series.at(TIMEFRAMES["1m"])
            count = self.choose.number(1, 5)
            skip = self.choose.one_of((0, 0, 0, 0, 1, 3, 1440)) if self.chance(30) else 0
            at = self.tails.get(series.symbol, TAIL) + skip * MINUTE
            self.tails[series.symbol] = at + count * MINUTE
            step = 1
        elif kind < 45:
            # An old range, also across midnight.
            count, step = self.choose.one_of((10, 30, 30, 90)), 1
            if self.chance(15):
                count, step = 20, self.choose.one_of((2, 7))
            if self.chance(6):
                count, step = self.choose.one_of((300, 1500)), 1
        elif kind < 52:
            # Sparse, over days and months.
            count, step = self.choose.number(2, 5), self.choose.one_of((180, 720, 1440, 4321))
        elif kind < 60:
            # Nothing but what is not there.
            count, step, gone = 0, 1, self._gone(series, at)
        else:
            # Again, or another version: of the very rows of before, as often as not.
            count, step = self.choose.one_of((1, 1, 2, 5, 20)), 1
        if series.timeframe.name != "1m":
            count, step = min(count, 40), min(step, 3)
        first = series.timeframe.floor(at)
        self.touched = [*self.touched[-5:], (series, first)]
        return Write(
            worker=worker,
            pause=pause,
            series=series,
            first=first,
            count=count,
            step=step,
            version=version,
            state=state,
            gone=gone,
            source=self.choose.one_of(("rest", "stream", "import a.csv")),
        )

    def _gone(self, series: Series, at: int) -> tuple[Gone, ...]:
        timeframe: Timeframe = series.timeframe
        start = timeframe.next(timeframe.floor(at), self.choose.number(-3, 6))
        end = timeframe.next(start, self.choose.one_of((1, 2, 5, 60, 1500 if timeframe.name == "1m" else 3)))
        expires = self.choose.one_of((None, self.now + 1, self.now + 1500, self.now + 90_000, self.now - 1))
        state = self.choose.one_of(
            (CoverageState.EMPTY, CoverageState.EMPTY, CoverageState.EXCHANGE_OUTAGE, CoverageState.OWN_OUTAGE)
        )
        return (Gone(start, end, state, expires, self.choose.one_of(("two reads agree", "status page"))),)

    def _timeframe(self, series: Series) -> Series:
        """The series, or what is derived from its minutes."""
        if self.chance(50):
            return series.at(TIMEFRAMES["1m"]) if self.chance(70) else series
        return series.at(TIMEFRAMES[self.choose.one_of(DERIVED)])

    def _read(self, worker: int, pause: int) -> Read:
        series, at = self._spot()
        many = tuple(self._timeframe(series) for _ in range(1 if not self.chance(6) else 3))
        if self.chance(2):
            many = (*many, self._stored().at(TIMEFRAMES["3m"]))
        start, end, limit = self._range(many[0].timeframe, series, at)
        as_of = None
        if self.chance(6):
            as_of = self.choose.one_of((self.now, self.now - 1, *self.moments, self.now + HOUR))
        return Read(
            worker=worker,
            pause=pause,
            series=many,
            start=start,
            end=end,
            limit=limit,
            as_of=as_of,
            forming=self.chance(15),
            encoded=len(many) == 1 and self.chance(40),
        )

    def _range(self, timeframe: Timeframe, series: Series, at: int) -> tuple[int | None, int | None, int | None]:
        kind = self.choose.number(0, 99)
        limit = self.choose.one_of((1, 2, 3, 5, 17, 60, 200, 1000, 5000))
        if kind < 35:
            return None, None, limit
        if self.chance(20):
            # An edge that is no edge of a candle.
            at += self.choose.one_of((-1, 1, 30_000))
        at += self.choose.number(-2, 2) * timeframe.milliseconds
        if kind < 42:
            return None, at, limit if self.chance(80) else None
        if kind < 50:
            return at, None, limit if self.chance(80) else None
        if kind < 52:
            return None, None, None
        length = self.choose.one_of(
            (1, MINUTE, 5 * MINUTE, HOUR, 6 * HOUR, DAY, DAY, 2 * DAY, 3 * DAY, 31 * DAY, 62 * DAY, 400 * DAY)
        )
        start = at if self.chance(60) else at // DAY * DAY - self.choose.number(0, 1) * DAY
        if kind < 56:
            # Beyond both ends.
            return start - 400 * DAY, start + 800 * DAY, limit if self.chance(50) else None
        return start, start + length, limit if self.chance(25) else None

    def _ask(self, worker: int, pause: int) -> Ask:
        series, at = self._spot()
        what = self.choose.one_of(("coverage", "gaps", "coverage", "gaps", "series", "instruments"))
        start = at - self.choose.number(0, 3) * HOUR
        end = start + self.choose.one_of((1, HOUR, DAY, 40 * DAY)) if self.chance(70) else 0
        return Ask(
            worker=worker,
            pause=pause,
            what=what,
            series=self._timeframe(series),
            start=start if end else 0,
            end=end,
        )


def shrunk(
    schedule: Sequence[Operation], fails: Callable[[Sequence[Operation]], bool], seconds: float
) -> list[Operation]:
    """A shorter schedule that still fails: halves are left out, then quarters, and so on down to single ones.

    :param seconds: how long to try.
    """
    best = list(schedule)
    until = time.monotonic() + seconds
    size = max(1, len(best) // 2)
    while time.monotonic() < until:
        place, before = 0, len(best)
        while place < len(best) and time.monotonic() < until:
            without = best[:place] + best[place + size :]
            if without and fails(without):
                best = without
            else:
                place += size
        if size == 1 and len(best) == before:
            break
        size = max(1, size // 2)
    return best


def listed(schedule: Sequence[Operation]) -> str:
    """A schedule to read, one operation a line."""
    return "\n".join(f"  {number:4} {one}" for number, one in enumerate(schedule))


def _shown(name: str, value: object) -> str:
    if isinstance(value, Series):
        return f"{value.symbol.partition('/')[0]} {value.timeframe}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown("", one) for one in value) + "]"
    if name in ("first", "start", "end", "as_of", "open_time", "at") and isinstance(value, int):
        return iso(value)
    if isinstance(value, Gone):
        expiry = "never" if value.expires_at is None else iso(value.expires_at)
        return f"{value.state.value} {iso(value.start)}..{iso(value.end)} expires {expiry}"
    return str(value)
