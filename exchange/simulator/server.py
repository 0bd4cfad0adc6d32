"""Running the simulated exchange: its configuration, and the process around the endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from exchange.simulator.about import about_routes
from exchange.simulator.clock import ExchangeClock
from exchange.simulator.exchange import Exchange, ListedMarket
from exchange.simulator.faults import Faults, read_faults
from exchange.simulator.limits import WEIGHT_LIMIT, Allowance, WeightLimit
from exchange.simulator.market import Market
from exchange.simulator.recorded import RecordedTape, recorded_range, wanted_symbols
from exchange.simulator.replay_rest import ReplayRest
from exchange.simulator.replay_streams import Replay
from exchange.simulator.rest import broken, not_found, rest_routes
from exchange.simulator.rest_faults import FaultInjector
from exchange.simulator.session import Session
from exchange.simulator.streams import stream_routes
from exchange.simulator.synthetic import DEFAULT_SYMBOLS, LISTED_MS, SyntheticTape
from market.clock import LATEST_MS, SystemClock, iso
from market.errors import BadInput, ChandleryError, Terminal

_GRACE_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """What the simulated exchange is to be. Either `data` or `seed`; with neither, the seed is 1."""

    #: Folder of recorded candles (see :mod:`exchange.simulator.recorded`).
    data: Path | None = None
    #: Seed of made-up markets (see :mod:`exchange.simulator.synthetic`).
    seed: int | None = None
    #: ccxt unified; None for all that are recorded, or three made-up ones.
    symbols: tuple[str, ...] | None = None
    #: Made-up markets that are no longer traded from some time on, epoch milliseconds; by unified symbol.
    delisted: Mapping[str, int] = field(default_factory=dict)
    #: Exchange time at the start, epoch milliseconds; None for the end of the recorded data, or the machine's time.
    now_ms: int | None = None
    #: Exchange seconds per real second.
    speed: float = 1.0
    host: str = "127.0.0.1"
    #: 0 takes any free port.
    port: int = 9900
    #: File of a recorded session to play instead (see :mod:`exchange.simulator.session`); `speed` may be infinite.
    replay: Path | None = None
    #: A new connection goes on where the one before it ended.
    resume: bool = False
    #: File of fault rules (see :mod:`exchange.simulator.faults`).
    faults: Path | None = None
    #: Request weight that one address may use in each window of so many seconds; Binance's are 6,000 in 60.
    weight_limit: int = WEIGHT_LIMIT
    weight_seconds: int = 60

    @property
    def allowance(self) -> Allowance:
        """What one address may ask.

        :raises BadInput: naming the option that is wrong.
        """
        for name, number in (("weight_limit", self.weight_limit), ("weight_seconds", self.weight_seconds)):
            if number < 1:
                raise BadInput(name, number, "a whole number of 1 at least")
        return Allowance(weight=self.weight_limit, window_ms=self.weight_seconds * 1000)


def open_exchange(config: SimulatorConfig) -> Exchange:
    """The exchange of a configuration; recorded candles are read when a market is first asked for.

    :raises BadInput: naming the option that is wrong.
    """
    if config.data is not None and config.seed is not None:
        raise BadInput("--seed", config.seed, "either --data or --seed")
    if config.symbols is not None and not config.symbols:
        raise BadInput("--symbols", config.symbols, "one symbol at least, such as BTC/USDT")
    return _recorded(config, config.data) if config.data is not None else _synthetic(config)


def _recorded(config: SimulatorConfig, folder: Path) -> Exchange:
    files = wanted_symbols(folder, config.symbols)
    ranges = {name: recorded_range(paths) for name, paths in files.items()}
    start, end = min(first for first, _ in ranges.values()), max(last for _, last in ranges.values())
    now_ms = end if config.now_ms is None else config.now_ms
    if not start <= now_ms <= end:
        raise BadInput("--now", iso(now_ms), f"an instant within the recorded data: {iso(start)} to {iso(end)}")
    listed = {
        name: ListedMarket(open=partial(_recorded_market, name, paths), listed_ms=ranges[name][0])
        for name, paths in files.items()
    }
    return Exchange(ExchangeClock(now_ms, config.speed), listed, config.allowance)


def _recorded_market(exchange_symbol: str, files: list[Path]) -> Market:
    return Market(RecordedTape(exchange_symbol, files))


def _synthetic(config: SimulatorConfig) -> Exchange:
    seed = 1 if config.seed is None else config.seed
    markets = [Market(SyntheticTape(seed, symbol)) for symbol in config.symbols or DEFAULT_SYMBOLS]
    if config.now_ms is not None and not LISTED_MS <= config.now_ms < LATEST_MS:
        raise BadInput("--now", iso(config.now_ms), f"an instant from {iso(LISTED_MS)} on, when trading began")
    listed = {
        market.listing.exchange_symbol: ListedMarket(
            open=partial(_same, market),
            listed_ms=LISTED_MS,
            delisted_ms=config.delisted.get(market.listing.symbol),
        )
        for market in markets
    }
    return Exchange(ExchangeClock(config.now_ms, config.speed), listed, config.allowance)


def _same(market: Market) -> Market:
    return market


async def serve_simulator(
    config: SimulatorConfig, on_ready: Callable[[str], None], *, stop_on_signals: bool = True
) -> None:
    """Serve until cancelled, or told to stop by SIGINT or SIGTERM.

    :param on_ready: called with ``http://127.0.0.1:PORT`` once it answers.
    :param stop_on_signals: false where the caller handles signals itself.
    :raises BadInput: naming the option that is wrong.
    :raises Terminal: if the port cannot be had.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM) if stop_on_signals else ()
    async with running_simulator(config) as url:
        for one in signals:
            loop.add_signal_handler(one, stop.set)
        try:
            on_ready(url)
            await stop.wait()
        finally:
            for one in signals:
                loop.remove_signal_handler(one)


@contextlib.asynccontextmanager
async def running_simulator(config: SimulatorConfig) -> AsyncIterator[str]:
    """The simulated exchange, serving while the block runs; gives its URL. Raises like :func:`serve_simulator`."""
    faults = Faults(read_faults(config.faults) if config.faults is not None else [])
    app: Any = Starlette(
        routes=_routes(config, faults), exception_handlers={404: not_found, ChandleryError: broken}
    )
    listener = _listener(config.host, config.port)
    server: _Server
    if faults.rules:
        app = FaultInjector(app, faults, lambda scope: server.cut(scope))
    server = _Server(_uvicorn_config(app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _first(server.ready.wait(), serving)
        host, port = listener.getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        server.cut_all()
        await serving


def _routes(config: SimulatorConfig, faults: Faults) -> list[BaseRoute]:
    if config.replay is not None:
        return _replay_routes(config, config.replay, faults)
    exchange = open_exchange(config)

    limit = WeightLimit(SystemClock(), exchange.allowance.weight, exchange.allowance.window_ms)

    def clock() -> dict[str, Any]:
        return {"now_ms": exchange.now_ms(), "speed": config.speed}

    return [
        *rest_routes(exchange, limit),
        *stream_routes(exchange, faults),
        *about_routes(faults, clock),
    ]


def _replay_routes(config: SimulatorConfig, path: Path, faults: Faults) -> list[BaseRoute]:
    if not config.speed > 0:
        raise BadInput("--speed", config.speed, "a number above zero, or max")
    if config.data is not None or config.seed is not None:
        raise BadInput("--replay", str(path), "one of --replay, --data and --seed")
    replay = Replay(Session.read(path), config.speed, faults, resume=config.resume)
    limit = WeightLimit(SystemClock(), config.allowance.weight, config.allowance.window_ms)
    return [
        *ReplayRest(replay, limit, config.allowance).routes(),
        *about_routes(faults, replay.clock),
        *replay.routes(),
    ]


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio",
        # Binance does not compress its streams either.
        ws_per_message_deflate=False,
        ws_ping_interval=180.0,
        ws_ping_timeout=600.0,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


async def _first(ready: Any, serving: asyncio.Task[None]) -> None:
    """Wait until the server answers; if it ends before, raise its error."""
    waiting = asyncio.ensure_future(ready)
    done, _ = await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
    if serving in done:
        waiting.cancel()
        await serving


def _listener(host: str, port: int) -> socket.socket:
    # asyncio turns off Nagle's delay (40 ms on a small answer) only for sockets that name their protocol.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as exc:
        listener.close()
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise Terminal(
            f"cannot listen on {host}:{port}: {reason}. Choose another --port, or stop what uses this one"
        ) from exc
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """A server that says when it is ready, leaves signals to its caller and can cut connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    def cut(self, scope: MutableMapping[str, Any]) -> None:
        """Close the connection that a request came on, after what was written to it."""
        for connection in self.server_state.connections:
            if getattr(connection, "client", None) == scope["client"]:
                connection.transport.close()

    def cut_all(self) -> None:
        """Close every connection, so that no request that hangs and no stream holds up the end."""
        for connection in list(self.server_state.connections):
            connection.transport.close()
