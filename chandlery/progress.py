"""The progress of a backfill on stderr: one bar for all series, with rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from chandlery.output import notes
from ingest.report import SeriesReport
from market.instrument import Series


class BackfillBar:
    """Told by the backfill, drawn by rich; silent where stderr is not a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._all = bars.add_task("candles", total=0, rate="")

    def planned(self, series: Series, buckets: int) -> None:
        """More candles to ask for."""
        self._bars.update(self._all, total=(self._task.total or 0) + buckets, description=series.symbol)

    def advanced(self, series: Series, buckets: int, rows: int) -> None:
        """Some of them are committed."""
        del rows
        self._bars.update(self._all, advance=buckets, description=series.symbol)
        speed = self._task.speed
        self._bars.update(self._all, rate=f"{speed:,.0f}/s" if speed else "")

    def finished(self, report: SeriesReport) -> None:
        """One series is done."""
        if report.error is not None:
            self._bars.console.print(f"{report.symbol}: {report.error}", markup=False, highlight=False)

    @property
    def _task(self) -> Task:
        return self._bars.tasks[0]


@contextlib.contextmanager
def backfill_bar() -> Iterator[BackfillBar]:
    """A bar that is drawn while the context lasts."""
    with Progress(
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=notes,
        transient=True,
        disable=not notes.is_terminal,
    ) as bars:
        yield BackfillBar(bars)
