"""Which series are read most, kept over restarts, so that they can be loaded before anyone asks."""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from market.clock import Clock
from market.errors import BadInput, StoreUnusable
from market.instrument import Series
from market.timeframe import DAY_MS
from store.files import replacing

log = structlog.get_logger(__name__)

#: A read counts half after so many milliseconds.
HALF_LIFE_MS = DAY_MS
#: Milliseconds between two writings of the file.
SAVE_MS = 60_000
#: Series that are kept. Rule: those read least are forgotten.
_MOST = 1000
#: Series that are counted between two savings. Rule: when there are more, those read least are forgotten.
_MOST_COUNTED = 10 * _MOST
#: Bytes: a longer file is none of ours.
_LONGEST_FILE = 1 << 20
#: Reads that count for so little are forgotten.
_LEAST = 0.01
_VERSION = 1


class FrequentSeries:
    """Reads by series, each counting half as much a day later. For one thread; several processes share the file.

    Each process adds what it counted to what the file says by then, so that none undoes the other's.

    :param path: a small JSON file. What cannot be read as one is replaced.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        #: Counted since the last saving, as of `_as_of`.
        self._counted: dict[Series, float] = {}
        self._as_of = self._saved_ms = clock.now_ms()
        self._complained = False

    def count(self, series: Series, reads: int = 1) -> None:
        """A series was read. Costs a dict access; nothing is written here."""
        if not self._counted:
            self._as_of = self._clock.now_ms()
        self._counted[series] = self._counted.get(series, 0.0) + reads
        if len(self._counted) > _MOST_COUNTED:
            self._counted = dict(_largest(self._counted, _MOST))

    def top(self, count: int) -> list[Series]:
        """Those read most of late by all processes, the most read first."""
        now_ms, data = self._clock.now_ms(), b""
        with contextlib.suppress(OSError):
            data = _read(self._path)
        largest = _largest(self._together(data, now_ms), count)
        return [series for series, score in largest if score >= _LEAST]

    def save(self, *, at_once: bool = False) -> bool:
        """Add what was counted to the file; whether that was done.

        Does nothing if it was done less than a minute ago, or while another process is at it: the counts are kept.

        :param at_once: also within the minute, as at the end of a process.
        """
        now_ms = self._clock.now_ms()
        if not self._counted or (not at_once and 0 <= now_ms - self._saved_ms < SAVE_MS):
            return False
        self._saved_ms = now_ms
        self._age(now_ms)
        try:
            with self._alone() as alone:
                if not alone:
                    return False
                together = self._together(_read(self._path), now_ms)
                with replacing(self._path) as temporary:
                    temporary.write_bytes(_text(together, now_ms))
        except (OSError, StoreUnusable) as error:
            if not self._complained:
                log.warning("which series are read most is not kept", path=str(self._path), error=str(error))
            self._complained = True
            return False
        self._counted, self._complained = {}, False
        return True

    def _age(self, now_ms: int) -> None:
        """Bring the counts, which could perhaps not be saved for days, to the weight they have now."""
        factor = _left(now_ms - self._as_of)
        self._counted = {series: score * factor for series, score in self._counted.items()}
        self._as_of = now_ms

    def _together(self, data: bytes, now_ms: int) -> dict[Series, float]:
        """What the file says and what was counted since, as of now."""
        scores = _parsed(data, now_ms)
        factor = _left(now_ms - self._as_of)
        for series, score in self._counted.items():
            scores[series] = scores.get(series, 0.0) + score * factor
        return scores

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process is adding to the file. The lock is on its folder: the file is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)


def _left(milliseconds: int) -> float:
    """What is left of a count after so long."""
    return float(0.5 ** (max(milliseconds, 0) / HALF_LIFE_MS))


def _largest(scores: dict[Series, float], count: int) -> list[tuple[Series, float]]:
    """Equal ones by name, so that all processes agree."""
    return heapq.nsmallest(count, scores.items(), key=lambda one: (-one[1], one[0]))


def _text(scores: dict[Series, float], now_ms: int) -> bytes:
    rows = [
        [one.exchange, one.symbol, one.timeframe.name, round(score, 4)]
        for one, score in _largest(scores, _MOST)
        if score >= _LEAST
    ]
    return json.dumps({"version": _VERSION, "as_of": now_ms, "series": rows}).encode()


def _read(path: Path) -> bytes:
    """The file's bytes; none where there is no file, or none that could be ours.

    :raises OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        said = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(said.st_mode) and said.st_size <= _LONGEST_FILE else b""


def _parsed(data: bytes, now_ms: int) -> dict[Series, float]:
    """What :func:`_text` wrote, as of now; nothing of what it did not write."""
    try:
        raw: Any = json.loads(data)
        if raw["version"] != _VERSION:
            return {}
        factor = _left(now_ms - int(raw["as_of"]))
        scores = {Series.parse(*names): float(score) * factor for *names, score in raw["series"]}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, BadInput):
        return {}
    return scores if all(math.isfinite(score) and score >= 0 for score in scores.values()) else {}
