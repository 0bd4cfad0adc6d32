"""``simulate``: the simulated exchange alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from chandlery.options import instant, load, run, symbols_of
from exchange.simulator.server import SimulatorConfig, serve_simulator
from market.errors import BadInput


def simulate(
    data: Annotated[Path | None, typer.Option("--data", help="Folder of recorded Parquet candles.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="A made-up market from this number.")] = None,
    symbols: Annotated[str | None, typer.Option("--symbols", help="Comma-separated; all by default.")] = None,
    now: Annotated[str | None, typer.Option("--now", help="Exchange time at the start.")] = None,
    speed: Annotated[
        str, typer.Option("--speed", help="How many times faster than real its clock runs; max with --replay.")
    ] = "1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 9900,
    faults: Annotated[Path | None, typer.Option("--faults", help="JSON list of faults to inject.")] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="Play this recorded session instead.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --replay: a new connection goes on where the last one ended.")
    ] = False,
) -> None:
    """Run an exchange that speaks Binance's spot protocol on 127.0.0.1, until Ctrl-C.

    Prints `ready http://127.0.0.1:PORT` when it answers. Its data come from recorded candles (--data) or from a
    made-up market (--seed, 1 by default). With --replay it plays a recorded session of any exchange instead.
    """
    load(None)
    config = SimulatorConfig(
        data=data,
        seed=seed if seed is not None or data is not None or replay is not None else 1,
        symbols=None if symbols is None else tuple(symbols_of(symbols)),
        now_ms=instant(now, "--now"),
        speed=speed_of(speed, is_replay=replay is not None),
        port=port,
        faults=faults,
        replay=replay,
        resume=resume,
    )
    try:
        run(serve_simulator(config, lambda url: typer.echo(f"ready {url}")))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def speed_of(text: str, *, is_replay: bool) -> float:
    """The number of ``--speed``; infinite for ``max``, which only a replay can be.

    :raises BadInput: naming ``--speed``.
    """
    if text == "max" and is_replay:
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise BadInput("--speed", text, "a number above zero (1 is real time), or max with --replay")
    return speed
