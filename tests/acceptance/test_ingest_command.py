"""``chandlery ingest`` and ``status`` as a user types them: their options, bad input, and how they end."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chandlery.status_file import STATUS_NAME, read_note
from exchange.binance.streams import BinanceStreams
from exchange.live import NATIVE
from exchange.stream import StreamRules
from market.channel import Channel
from market.clock import SystemClock
from tests.acceptance.conftest import Command, Outcome, started
from tests.support.server_process import until

SIMULATED = ("ingest", "--exchange", "simulated", "--symbols", "BTC/USDT")
#: What the documentation promises to Prometheus.
METRICS = (
    "chandlery_ingest_queue_rows",
    "chandlery_ingest_queue_bytes",
    "chandlery_ingest_journal_records",
    "chandlery_ingest_journal_bytes",
    "chandlery_ingest_lag_seconds_bucket",
    "chandlery_ingest_rows_total",
    "chandlery_ingest_refused_messages_total",
    "chandlery_ingest_refused_messages_dropped_total",
)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A simulated exchange whose minutes last two seconds. It says some nonsense."""
    faults = tmp_path_factory.mktemp("market") / "faults.json"
    faults.write_text('[{"stream": "*@trade", "every": 1, "do": "garbage", "kind": "absurd_price"}]')
    arguments = ("simulate", "--seed", 7, "--symbols", "BTC/USDT", "--now", "2024-06-01T00:00:30Z")
    options = ("--speed", 30, "--faults", faults, "--port", 0)
    with started(*arguments, *options, ready="ready", deadline=600) as (_, line):
        yield line.split()[1]


@pytest.fixture
def nobody() -> str:
    """The address of an exchange that does not answer."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def one_line(outcome: Outcome, code: int, *parts: str) -> None:
    """The command ended with `code` and one line that holds all of `parts`."""
    assert outcome.code == code, outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


def said(home: Path) -> Any:
    """What the feed of a home says of itself; None where it does not run."""
    note = read_note(home / STATUS_NAME, SystemClock().now_ms())
    return note.body if note is not None and note.running else None


def newest(body: Any) -> int:
    """The open time of the newest stored candle; 0 before the first."""
    return (body and body["series"] and body["series"][0]["last_closed"]) or 0


def test_the_help_names_every_option(chandlery: Command) -> None:
    said = re.sub(r"\s+", " ", chandlery("ingest", "--help").out)
    for option in (
        "--exchange",
        "--symbols",
        "--timeframe",
        "--channels",
        "--record-trades",
        "--no-record-trades",
        "--streams",
        "--rest-only",
        "--bus",
        "--metrics-port",
        "--exchange-url",
        "--home",
    ):
        assert option in said


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (("--channels", "candles,bars"), ["channels", "bars", "trades, candles, tickers, order_books"]),
        (("--channels", ","), ["channels", "''", "candles"]),
        (("--channels", ""), ["channels", "''", "candles"]),
        (("--bus", "http://127.0.0.1/"), ["bus_url", "http://127.0.0.1/", "redis://", "amqp://"]),
        (("--bus", "redis://"), ["bus_url", "redis://host:6379/0"]),
        (("--bus", "amqp://me:hush@host:no/"), ["bus_url", "amqp://user:password@host:5672"]),
        (("--metrics-port", "70000"), ["metrics_port", "70000", "65535"]),
        (("--metrics-port", "-1"), ["metrics_port", "-1", "greater than or equal to 0"]),
        (("--metrics-port", "many"), ["--metrics-port", "a valid integer"]),
        (("--timeframe", "7m"), ["timeframe", "7m", "15m"]),
        (("--symbols", ","), ["--symbols"]),
        (("--symbols", "BTCUSDT"), ["symbol", "BTCUSDT", "BTC/USDT"]),
        (("--exchange-url", "nonsense"), ["exchange-url", "nonsense"]),
        (("--exchange", "binanse"), ["exchange", "binanse", "binance"]),
        (("--record-trade",), ["--record-trade"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_words(
    chandlery: Command, nobody: str, tmp_path: Path, arguments: tuple[str, ...], parts: list[str]
) -> None:
    done = chandlery(*SIMULATED, "--exchange-url", nobody, "--home", tmp_path / "home", *arguments)
    one_line(done, 2, *parts)
    assert "hush" not in done.err
    assert not list(tmp_path.glob("home/journal/*.journal"))


@pytest.mark.parametrize(
    "key, environment, toml, accepted",
    [
        ("channels", "candles,bars", '["bars"]', "one of trades, candles, tickers, order_books"),
        ("record_trades", "perhaps", '"perhaps"', "valid boolean"),
        ("streams", "perhaps", "7", "valid boolean"),
        ("silence", "0", "-1.5", "greater than 0"),
        ("silence", "3601", "99999", "less than or equal to 3600"),
        ("silence", "soon", '"soon"', "valid number"),
        ("bus_url", "kafka://me:hush@there", '"kafka://me:hush@there"', "redis://host:6379/0"),
        ("journal_bytes", "1000", "1000", "greater than or equal to 1048576"),
        ("journal_bytes", "4 GB", '"4 GB"', "valid integer"),
        ("metrics_port", "65536", "-1", "equal to"),
    ],
)
def test_wrong_settings(
    chandlery: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    key: str,
    environment: str,
    toml: str,
    accepted: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"CHANDLERY_{key.upper()}", environment)
    from_environment = chandlery(*SIMULATED)
    monkeypatch.delenv(f"CHANDLERY_{key.upper()}")
    (tmp_path / "chandlery.toml").write_text(f"{key} = {toml}\n")
    for done in (from_environment, chandlery(*SIMULATED)):
        one_line(done, 2, key, f"CHANDLERY_{key.upper()}", accepted)
        assert "hush" not in done.err
    assert not (tmp_path / "data").exists()


def test_a_home_without_a_status(chandlery: Command, tmp_path: Path) -> None:
    done = chandlery("status", "--home", tmp_path)
    one_line(done, 2, "home", str(tmp_path), "chandlery ingest")
    (tmp_path / "ingest_status.json").write_text("{}")
    one_line(chandlery("status", "--home", tmp_path), 1, "ingest_status.json", "remove it")


def test_a_symbol_that_is_not_traded(chandlery: Command, market: str, tmp_path: Path) -> None:
    done = chandlery(
        "ingest", "--exchange", "simulated", "--symbols", "BTC/USTD", "--exchange-url", market, "--home", tmp_path
    )
    one_line(done, 2, "symbol", "BTC/USTD", "BTC/USDT")


def test_a_channel_that_the_exchange_does_not_stream(
    chandlery: Command, monkeypatch: pytest.MonkeyPatch, market: str, tmp_path: Path
) -> None:
    class WithoutTickers(BinanceStreams):
        @property
        def rules(self) -> StreamRules:
            return replace(super().rules, channels=frozenset(Channel) - {Channel.TICKERS})

    monkeypatch.setitem(NATIVE, "binance", WithoutTickers)
    done = chandlery(
        *SIMULATED, "--exchange-url", market, "--home", tmp_path, "--channels", "candles,tickers,trades"
    )
    one_line(done, 2, "channels", "'tickers'", "candles, order_books, trades")


def test_a_port_in_use(chandlery: Command, nobody: str, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = chandlery(*SIMULATED, "--exchange-url", nobody, "--home", tmp_path, "--metrics-port", port)
    one_line(done, 1, f"127.0.0.1:{port}", "another port")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_stopped_and_leaves_everything_durable(
    chandlery: Command, market: str, tmp_path: Path, stop: signal.Signals
) -> None:
    """Once over streams with everything on, once over REST alone with the request budget somewhere else."""
    rest_only, home, limits = stop is signal.SIGTERM, tmp_path / "home", tmp_path / "limits"
    told = ("--rest-only",) if rest_only else ("--channels", ",".join(Channel), "--record-trades")
    environment = {"CHANDLERY_LIMITS_PATH": str(limits)} if rest_only else {}
    options = (*SIMULATED, "--exchange-url", market, "--home", home)
    with started(*options, *told, "--metrics-port", 0, ready="metrics on", env=environment) as (process, line):
        until(lambda: newest(said(home)) > 0, "a first candle")
        one_line(chandlery(*options), 1, "in use", f"process {process.pid}")
        served = httpx.get(line.split()[-1]).text
        assert [name for name in METRICS if f"\n{name}" not in served] == []
        first = newest(said(home))
        until(lambda: newest(said(home)) > first, "a second candle")
        if not rest_only:
            until(lambda: said(home)["paths"] == {"stream": len(Channel)}, "all of it over streams")
        done = chandlery("status", "--json", "--home", home)
        assert done.code == 0, done.out
        assert {one["topic"].split()[0] for one in done.json["routes"]} == (set() if rest_only else set(Channel))
        process.send_signal(stop)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait() == 0, rest
        assert "Traceback" not in rest
    gone = chandlery("status", "--home", home)
    assert gone.code == 1
    assert "not running" in gone.err
    assert [path.name for path in (home / "journal").iterdir()] == ["lock"]
    assert [path.suffix for path in (limits if rest_only else home / "limits").iterdir()] == [".limit"]
    assert (home / "limits").exists() is not rest_only
    checked = chandlery("check", "--home", home)
    assert checked.code == 0
    assert ("could not be used" in checked.err) is not rest_only
    with closing(sqlite3.connect(home / "market_data.sqlite3")) as connection:
        runs = connection.execute("SELECT first_id, last_id, state FROM trade_runs").fetchall()
        stored = connection.execute("SELECT count(*) FROM trade_history").fetchone()[0]
    if rest_only:
        assert (runs, stored) == ([], 0)
    else:
        (first_id, last_id, state) = runs[0]
        assert (len(runs), state) == (1, "present")
        assert stored == last_id - first_id + 1
