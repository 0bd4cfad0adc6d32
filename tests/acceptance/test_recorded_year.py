"""A year of recorded candles through every door: exchange, store, larger candles, correction, archive, backtest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import chandlery as client
from market.candle import COLUMNS
from tests.acceptance.conftest import Command

pytestmark = pytest.mark.recorded

YEAR = ("--since", "2023-01-01", "--until", "2024-01-01")
FILES = {"BTC/USDT": "binance_spot_BTCUSDT", "ETH/USDT": "binance_spot_ETHUSDT"}
Recorded = Callable[[str, str], pa.Table]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("year")


def backfill(chandlery: Command, url: str, home: Path) -> list[dict[str, Any]]:
    done = chandlery(
        "backfill", "--exchange", "binance", "--exchange-url", url, "--symbols", ",".join(FILES),
        "--timeframe", "1m", *YEAR, "--home", home, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    series: list[dict[str, Any]] = done.json["series"]
    return series


def kept(home: Path, symbol: str, timeframe: str, **asked: Any) -> pl.DataFrame:
    with client.connect(str(home)) as store:
        return store.candles(symbol, timeframe, exchange="binance", **asked)


def test_the_year_is_fetched_whole(
    chandlery: Command, recorded_exchange_url: str, home: Path, recorded_candles: Recorded
) -> None:
    for one in backfill(chandlery, recorded_exchange_url, home):
        assert (one["stored"], one["written"], one["missing"]) == (525_520, 525_520, 0)
        assert one["verified_empty"] == 80
        assert one["refused"] == 0
    for symbol, name in FILES.items():
        file = pl.from_arrow(recorded_candles(f"{name}_1m_2023", "1m"))
        assert isinstance(file, pl.DataFrame)
        assert kept(home, symbol, "1m").select(COLUMNS).equals(file)


def test_the_outage_is_verified_empty_and_no_gap(chandlery: Command, home: Path) -> None:
    named = ("--exchange", "binance", "--symbol", "BTC/USDT", "--home", home, "--json")
    known = chandlery("coverage", *named).json["coverage"]
    assert [(one["start"], one["end"], one["state"]) for one in known] == [
        ("2023-01-01T00:00:00Z", "2023-03-24T12:40:00Z", "present"),
        ("2023-03-24T12:40:00Z", "2023-03-24T14:00:00Z", "verified_empty"),
        ("2023-03-24T14:00:00Z", "2024-01-01T00:00:00Z", "present"),
    ]
    gaps = chandlery("gaps", *named)
    assert (gaps.code, gaps.json["gaps"]) == (0, [])


def test_a_second_run_asks_little_and_writes_nothing(
    chandlery: Command, recorded_exchange_url: str, home: Path
) -> None:
    before = chandlery("series", "--home", home, "--json").json
    for one in backfill(chandlery, recorded_exchange_url, home):
        assert one["written"] == 0
        assert one["requests"] <= 5
    assert chandlery("series", "--home", home, "--json").json == before


@pytest.mark.parametrize("symbol", FILES)
@pytest.mark.parametrize("timeframe", ["15m", "1h"])
def test_larger_candles_equal_the_exchanges_own(
    home: Path, recorded_candles: Recorded, symbol: str, timeframe: str
) -> None:
    file = pl.from_arrow(recorded_candles(f"{FILES[symbol]}_{timeframe}_2023", timeframe))
    assert isinstance(file, pl.DataFrame)
    ours = kept(home, symbol, timeframe)
    assert ours.select(COLUMNS).equals(file)
    assert ours["missing"].sum() == 0


def test_windows_that_lack_minutes_say_so(
    chandlery: Command, tmp_path: Path, recorded: Path, recorded_candles: Recorded
) -> None:
    (file,) = (recorded / "candles").glob("binance_spot_ARBUSDT_1m_*")
    done = chandlery(
        "import",
        file,
        "--exchange",
        "binance",
        "--symbol",
        "ARB/USDT",
        "--timeframe",
        "1m",
        "--home",
        tmp_path,
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["series"][0]["inserted"] == 231_090
    for timeframe, windows in (("15m", 10_848), ("1h", 3_123)):
        theirs = pl.from_arrow(recorded_candles(f"binance_spot_ARBUSDT_{timeframe}", timeframe))
        assert isinstance(theirs, pl.DataFrame)
        ours = kept(tmp_path, "ARB/USDT", timeframe)
        both = ours.join(theirs.select("open_time"), on="open_time")
        assert len(both) == windows
        assert both.select(COLUMNS).equals(theirs)
        lacking = ours.filter(pl.col("missing") > 0)
        # 2023-03-24 12:40 to 13:59 and 2023-07-27 03:50 to 23:59 are absent from the file.
        assert lacking["open_time"].dt.strftime("%m-%d %H:%M").to_list() == (
            ["03-24 12:30", "07-27 03:45"] if timeframe == "15m" else ["03-24 12:00", "07-27 03:00"]
        )


def test_a_correction_keeps_the_old_values_readable(chandlery: Command, home: Path, tmp_path: Path) -> None:
    before = kept(home, "BTC/USDT", "1m", start="2023-05-01", end="2023-05-02")
    info = chandlery("series", "--home", home, "--json").json["series"][0]
    out = tmp_path / "day.csv"
    named = ("--exchange", "binance", "--symbol", "BTC/USDT")
    done = chandlery(
        "export", *named, "--since", "2023-05-01", "--until", "2023-05-02", "--out", out, "--home", home
    )
    assert done.code == 0, done.err
    lines = out.read_text().splitlines()
    places = (5, 80, 700, 701, 1440)
    for place in places:
        cells = lines[place].split(",")
        cells[5] = str(float(cells[5]) + 1)
        lines[place] = ",".join(cells)
    out.write_text("\n".join(lines) + "\n")

    then = info["last_write"]
    done = chandlery("import", out, *named, "--timeframe", "1m", "--home", home, "--json")
    assert done.code == 0, done.err
    counts = done.json["series"][0]
    assert (counts["corrected"], counts["unchanged"], counts["inserted"]) == (5, 1435, 0)
    now = kept(home, "BTC/USDT", "1m", start="2023-05-01", end="2023-05-02")
    assert kept(home, "BTC/USDT", "1m", start="2023-05-01", end="2023-05-02", as_of=then).equals(before)
    changed = (now["volume"] != before["volume"]).arg_true().to_list()
    assert changed == [place - 1 for place in places]
    assert now.drop("volume").equals(before.drop("volume"))

    again = chandlery("import", out, *named, "--timeframe", "1m", "--home", home, "--json")
    assert again.json["series"][0]["unchanged"] == 1440
    after = chandlery("series", "--home", home, "--json").json["series"][0]
    assert after["revision"] == info["revision"] + 1
    assert after["corrections"] == 5


def test_the_archive_makes_an_equal_home(chandlery: Command, home: Path, tmp_path: Path) -> None:
    built = chandlery("archive", "--home", home, "--json")
    assert built.code == 0, built.err
    assert [one["files"] for one in built.json["series"]] == [12, 12]
    assert chandlery("archive", "--verify", "--home", home).code == 0
    assert [one["written"] for one in chandlery("archive", "--home", home, "--json").json["series"]] == [0, 0]

    restored = chandlery("import", home / "archive", "--home", tmp_path, "--json")
    assert restored.code == 0, restored.err
    again = chandlery("archive", "--home", tmp_path, "--json")
    assert [one["fingerprint"] for one in again.json["series"]] == [
        one["fingerprint"] for one in built.json["series"]
    ]
    named = ("--exchange", "binance", "--symbol", "ETH/USDT", "--json")
    states = []
    for place in (home, tmp_path):
        known = chandlery("coverage", *named, "--home", place).json["coverage"]
        states.append([(one["start"], one["end"], one["state"]) for one in known])
    assert states[0] == states[1]
    assert chandlery("check", "--home", tmp_path).code == 0


def test_a_backtest_over_the_outage_repeats_itself(chandlery: Command, home: Path) -> None:
    def run() -> dict[str, Any]:
        done = chandlery(
            "backtest", "sma_cross", "--exchange", "binance", "--symbols", "BTC/USDT", "--timeframe", "1h",
            *YEAR, "--param", "fast=12", "--param", "slow=48", "--home", home, "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        result: dict[str, Any] = done.json
        return result

    first, second = run(), run()
    assert first["trades"]
    assert first["candles_per_second"] > 0
    assert (first["fingerprint"], first["result_hash"]) == (second["fingerprint"], second["result_hash"])


def test_everything_is_sound_in_the_end(chandlery: Command, home: Path) -> None:
    done = chandlery("check", "--home", home, "--json")
    assert (done.code, done.json["findings"], done.json["rows"]) == (0, [], 2 * 525_520)
