"""The options that commands share, and how a command runs its coroutine."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import structlog
import typer
import uvloop

from chandlery import settings
from market.clock import iso, to_ms
from market.errors import BadInput
from market.instrument import check_symbol
from market.interval import Interval, parse_interval

_T = TypeVar("_T")

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder with all files (CHANDLERY_HOME; ./data).", show_default=False),
]
Exchange = Annotated[str, typer.Option("--exchange", help="ccxt exchange id, such as binance.")]
Symbol = Annotated[str, typer.Option("--symbol", help="ccxt unified symbol, such as BTC/USDT.")]
Symbols = Annotated[str, typer.Option("--symbols", help="Comma-separated: BTC/USDT,ETH/USDT.")]
Timeframe = Annotated[str, typer.Option("--timeframe", help="1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 3d 1w 1M.")]
Since = Annotated[
    str | None, typer.Option("--since", help="First open time: 2023-01-01 (UTC) or 2023-01-01T00:00:00Z.")
]
Until = Annotated[str | None, typer.Option("--until", help="End, exclusive; the same forms.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="The candles as they were known at that instant.")]
ExchangeUrl = Annotated[
    str | None,
    typer.Option("--exchange-url", help="Another address for the exchange, such as http://127.0.0.1:9900."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def load(home: Path | None, **given: Any) -> settings.Settings:
    """The settings of this run, and logging as they say."""
    loaded = settings.load(home=home, **given)
    level = getattr(logging, loaded.log_level.upper())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Whatever stderr is when a line is written, not when this was set.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    return loaded


def symbols_of(text: str) -> list[str]:
    """The symbols of a comma-separated list, each checked.

    :raises BadInput: naming ``--symbols``.
    """
    found = [check_symbol(part.strip(), "--symbols") for part in text.split(",") if part.strip()]
    if not found:
        raise BadInput("--symbols", text, "at least one symbol, such as BTC/USDT")
    return list(dict.fromkeys(found))


def interval_of(since: str | None, until: str | None, now_ms: int) -> Interval:
    """``[since, until)``; `until` is now where it is not given.

    :raises BadInput: naming ``--since`` or ``--until``: naive, reversed, or a start in the future.
    """
    if since is None:
        raise BadInput("--since", "", "the first open time, such as 2023-01-01")
    if until is None and to_ms(since, "--since") >= now_ms:
        raise BadInput("--since", since, "an instant in the past")
    return parse_interval(since, now_ms if until is None else until, "--since", "--until")


def check_past(ms: int | None, field: str, now_ms: int) -> None:
    """Refuse an instant that has not come yet.

    :param now_ms: or the end of what is known, where that lies ahead of our clock (a simulated exchange).
    :raises BadInput: naming `field`.
    """
    if ms is not None and ms > now_ms:
        raise BadInput(field, iso(ms), f"an instant that is not in the future; it is {iso(now_ms)} now")


def instant(text: str | None, field: str) -> int | None:
    """Epoch milliseconds of an optional instant."""
    return None if text is None else to_ms(text, field)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end. SIGTERM ends it as Ctrl-C does: what is under way is committed or dropped."""

    async def guarded() -> _T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
