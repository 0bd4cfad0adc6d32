"""Candle files: each known layout is recognised and read exactly, each bad input is one clear line."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.candle import CANDLE_SCHEMA, Refusal, candles, check, open_times_ms
from market.errors import BadInput, StoreUnusable
from market.fingerprint import Digest, digest
from market.timeframe import TIMEFRAMES, Timeframe
from store.candle_files.reading import read_candle_file, recognise
from store.candle_files.writing import SUFFIXES, write_candle_file

MINUTE, HOUR = TIMEFRAMES["1m"], TIMEFRAMES["1h"]
START = 1_672_531_200_000  # 2023-01-01
BINANCE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore"
)


def read(path: Path, timeframe: Timeframe = MINUTE) -> tuple[pa.Table, list[Refusal]]:
    batches = list(read_candle_file(path, timeframe))
    return pa.concat_tables([one.table for one in batches]), [r for one in batches for r in one.refusals]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def some_candles(rows: int = 5, start: int = START) -> pa.Table:
    return candles(
        {
            "open_time": np.arange(rows) * 60_000 + start,
            "open": [0.1 + i for i in range(rows)],
            "high": [0.30000000000000004 + i for i in range(rows)],
            "low": [1e-8] * rows,
            "close": [0.2 + i for i in range(rows)],
            "volume": [5.5e10 / 3 + i for i in range(rows)],
            "quote_volume": [None if i % 2 else 16541.123456789 for i in range(rows)],
            "trades": [None if i % 2 else i for i in range(rows)],
            "early_close_time": [None] * (rows - 1) + [start + (rows - 1) * 60_000 + 12_345],
        }
    )


def binance_row(minute: int, *, unit: int = 1) -> str:
    opened = START + minute * 60_000
    return (
        f"{opened * unit},16541.77000000,16544.76000000,16538.45000000,16543.67000000,83.08143000,"
        f"{(opened + 60_000) * unit - 1},1374268.84884360,2687,40.18369000,664706.00687870,0"
    )


def test_binance_archive_without_and_with_header(tmp_path: Path) -> None:
    rows = "\n".join(binance_row(i) for i in range(3)) + "\n"
    bare = written(tmp_path / "a.csv", rows)
    headed = written(tmp_path / "b.csv", f"{BINANCE_HEADER}\n{rows}")
    table, refusals = read(bare)
    assert recognise(bare).name == recognise(headed).name == "binance archive"
    assert not refusals
    assert table.equals(read(headed)[0])
    assert (
        table.slice(0, 1).to_pylist()
        == candles(
            {
                "open_time": [START],
                "open": [16541.77],
                "high": [16544.76],
                "low": [16538.45],
                "close": [16543.67],
                "volume": [83.08143],
                "quote_volume": [1374268.8488436],
                "trades": [2687],
                "taker_buy_volume": [40.18369],
                "taker_buy_quote_volume": [664706.0068787],
            }
        ).to_pylist()
    )


def test_binance_archive_of_2025_counts_microseconds(tmp_path: Path) -> None:
    milliseconds = written(tmp_path / "a.csv", "\n".join(binance_row(i) for i in range(3)))
    microseconds = written(tmp_path / "b.csv", "\n".join(binance_row(i, unit=1000) for i in range(3)))
    assert read(microseconds)[0].equals(read(milliseconds)[0])


def test_an_early_close_time_is_kept(tmp_path: Path) -> None:
    cut = binance_row(1).replace(str(START + 119_999), str(START + 91_646))
    table, refusals = read(written(tmp_path / "a.csv", f"{binance_row(0)}\n{cut}\n{binance_row(2)}\n"))
    assert not refusals
    assert table.column("early_close_time").cast(pa.int64()).to_pylist() == [None, START + 91_646, None]


def test_a_close_time_outside_its_bucket_is_refused(tmp_path: Path) -> None:
    late = binance_row(1).replace(str(START + 119_999), str(START + 119_999 + 60_000))
    table, refusals = read(written(tmp_path / "a.csv", f"{binance_row(0)}\n{late}\n{binance_row(2)}\n"))
    assert table.num_rows == 2
    assert "close_time" in refusals[0].reason
    assert refusals[0].reason.startswith("line 2:")


def test_zipped_csv(tmp_path: Path) -> None:
    rows = "\n".join(binance_row(i) for i in range(3))
    with zipfile.ZipFile(tmp_path / "BTCUSDT-1m-2023-01.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BTCUSDT-1m-2023-01.csv", rows)
    path = tmp_path / "BTCUSDT-1m-2023-01.zip"
    assert "zipped CSV" in recognise(path).description
    assert read(path)[0].equals(read(written(tmp_path / "a.csv", rows))[0])


@pytest.mark.parametrize("width", [None, 2])
def test_ccxt_and_freqtrade_json(tmp_path: Path, width: int | None) -> None:
    rows = [[START + i * 60_000, 0.1, 0.3, 1e-8, 0.2, 55000000000.5] for i in range(4)]
    path = written(tmp_path / "BTC_USDT-1m.json", json.dumps(rows, indent=width))
    table, refusals = read(path)
    assert recognise(path).name == "ohlcv"
    assert not refusals
    assert open_times_ms(table).tolist() == [row[0] for row in rows]
    assert table.column("low").to_pylist() == [1e-8] * 4
    assert table.column("quote_volume").null_count == 4


def test_long_json_is_read_in_chunks(tmp_path: Path) -> None:
    rows = [[START + i * 60_000, 1.5, 2.25, 1.125, 1.75, i / 7] for i in range(60_000)]
    path = written(tmp_path / "a.json", json.dumps(rows))
    batches = list(read_candle_file(path, MINUTE))
    assert len(batches) == 2
    table = pa.concat_tables([one.table for one in batches])
    assert table.column("volume").to_pylist() == [row[5] for row in rows]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "timestamp,open,high,low,close,volume\n",
        "Date,Open,High,Low,Close,Volume\n",
        '"time","open","high","low","close","volume"\n',
    ],
)
def test_ohlcv_csv(tmp_path: Path, header: str) -> None:
    rows = "".join(f"{START + i * 60_000},1,2,0.5,1.5,10\n" for i in range(3))
    path = written(tmp_path / "a.csv", header + rows)
    table, refusals = read(path)
    assert recognise(path).name == "ohlcv"
    assert not refusals
    assert table.num_rows == 3


@pytest.mark.parametrize(
    "date",
    ["2023-01-01 09:{:02d}:00+09:00", "2023-01-01T00:{:02d}:00Z", "2023-01-01T00:{:02d}:00.000000+00:00"],
)
def test_dates_with_a_zone(tmp_path: Path, date: str) -> None:
    rows = "".join(f"{date.format(i)},1,2,0.5,1.5,10\n" for i in range(3))
    table, _ = read(written(tmp_path / "a.csv", "date,open,high,low,close,volume\n" + rows))
    assert open_times_ms(table).tolist() == [START, START + 60_000, START + 120_000]


def test_freqtrade_feather(tmp_path: Path) -> None:
    times = pa.array([(START + i * 60_000) * 1_000_000 for i in range(4)], pa.timestamp("ns", "UTC"))
    columns = {"date": times, **{name: [1.5] * 4 for name in ("open", "high", "low", "close", "volume")}}
    pyarrow.feather.write_feather(pa.table(columns), tmp_path / "BTC_USDT-1m.feather", compression="lz4")
    path = tmp_path / "BTC_USDT-1m.feather"
    table, refusals = read(path)
    assert recognise(path).name == "ohlcv"
    assert not refusals
    assert open_times_ms(table).tolist() == [START + i * 60_000 for i in range(4)]


def test_float32_and_decimals_keep_their_text(tmp_path: Path) -> None:
    columns = {
        "open_time_ms": [START],
        "open": pa.array([0.1], pa.float32()),
        **{name: pa.array([0.1], pa.float32()) for name in ("high", "low", "close")},
        "volume_base": pa.array(["12345678.1234567"]).cast(pa.decimal128(38, 7)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table, _ = read(tmp_path / "a.parquet")
    assert table.column("open").to_pylist() == [0.1]
    assert table.column("volume").to_pylist() == [12345678.1234567]


def test_coarse_file_gives_the_rows_of_the_timeframe(tmp_path: Path) -> None:
    columns = {
        "interval": ["1h", "1h", "1d", "1h"],
        "open_time_ms": [START, START + 3_600_000, START, START + 7_200_000],
        **{name: [1.5] * 4 for name in ("open", "high", "low", "close", "volume_base")},
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", HOUR)[0].num_rows == 3
    assert read(tmp_path / "a.parquet", TIMEFRAMES["1d"])[0].num_rows == 1
    with pytest.raises(BadInput, match=r"^timeframe: '4h' .* 1d 1h") as refused:
        read(tmp_path / "a.parquet", TIMEFRAMES["4h"])
    assert refused.value.field == "timeframe"


def test_nan_in_an_optional_column_is_null(tmp_path: Path) -> None:
    table = some_candles(3)
    column = pa.array([math.nan, 1.0, math.nan])
    at = table.column_names.index("quote_volume")
    pq.write_table(table.set_column(at, "quote_volume", column), tmp_path / "a.parquet")
    found, refusals = read(tmp_path / "a.parquet")
    assert not refusals
    assert found.column("quote_volume").to_pylist() == [None, 1.0, None]


# --- bad rows: refused with their place, the others go on ---


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (1, "abc", "open is 'abc': not a finite number"),
        (1, "", "open is empty: not a finite number"),
        (2, "NaN", "high is 'NaN': not a finite number"),
        (3, "-inf", "low is '-inf': not a finite number"),
        (4, "1e400", "close is '1e400': not a finite number"),
        (5, "1_000", "volume is '1_000': not a finite number"),
        (5, "0x10", "volume is '0x10': not a finite number"),
        (7, "n/a", "quote_volume is 'n/a': not a finite number"),
        (8, "12.5", "count is '12.5': not a whole number"),
        (0, "yesterday", "open_time is 'yesterday': not an instant"),
        (0, "1672531260", "open_time is '1672531260': not an instant"),
        (0, "", "open_time is empty: not an instant"),
        (0, "2023-01-01 00:01:00", "open_time is '2023-01-01 00:01:00': not an instant"),
    ],
)
def test_a_bad_cell_refuses_its_row_only(tmp_path: Path, column: int, value: str, said: str) -> None:
    cells = binance_row(1).split(",")
    cells[column] = value
    rows = [BINANCE_HEADER, binance_row(0), "", ",".join(cells), binance_row(2), binance_row(3)]
    table, refusals = read(written(tmp_path / "a.csv", "\n".join(rows)))
    assert open_times_ms(table).tolist() == [START, START + 120_000, START + 180_000]
    (refusal,) = refusals
    assert refusal.row == 1
    assert refusal.reason.startswith(f"line 4: {said}")
    assert refusal.raw == ",".join(cells)
    assert refusal.open_time == (None if column == 0 else START + 60_000)


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    rows = [binance_row(0), "1,2,3", binance_row(1) + ",9", binance_row(2)]
    table, refusals = read(written(tmp_path / "a.csv", "\n".join(rows)))
    assert table.num_rows == 2
    assert [(one.row, one.reason) for one in refusals] == [
        (1, "line 2 has 3 columns, the others have 12"),
        (2, "line 3 has 13 columns, the others have 12"),
    ]


def test_bad_json_rows_are_refused(tmp_path: Path) -> None:
    good = [[START + i * 60_000, 1, 2, 0.5, 1.5, 10] for i in range(4)]
    rows = [good[0], None, good[1], [START, 1, None, 1, 1, 1], good[2], [1, 2], good[3]]
    table, refusals = read(written(tmp_path / "a.json", json.dumps(rows)))
    assert table.num_rows == 4
    assert [one.row for one in refusals] == [1, 3, 5]
    assert refusals[1].reason == "row 3: high is empty: not a finite number"


def test_shuffled_rows_are_sorted_and_misaligned_ones_left_to_the_rules(tmp_path: Path) -> None:
    rows = [binance_row(i) for i in (3, 0, 4, 1, 2, 6)]
    odd = binance_row(5).replace(str(START + 300_000), str(START + 300_500))
    table, refusals = read(written(tmp_path / "a.csv", "\n".join([*rows, odd])))
    assert not refusals
    assert open_times_ms(table).tolist() == sorted(open_times_ms(table).tolist())
    (batch,) = read_candle_file(tmp_path / "a.csv", MINUTE)
    assert batch.rows.tolist() == [1, 3, 4, 0, 2, 6, 5]
    good, broken = check(table, MINUTE, START + 10**9)
    assert good.sum() == 6
    assert "not the start of a 1m bucket" in broken[0].reason


# --- bad files: one line, before anything is stored ---


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    write_candle_file(whole, [some_candles(500)])
    feather = tmp_path / "whole.arrow"
    write_candle_file(feather, [some_candles(500)])
    bad: dict[str, tuple[bytes, str]] = {
        "empty.csv": (b"", "empty"),
        "blank.csv": (b"\n\n  \n", "only empty lines"),
        "header.csv": (BINANCE_HEADER.encode() + b"\n", "no rows"),
        "list.json": (b"[]", "empty"),
        "object.json": (b'{"data": []}', "JSON list"),
        "half.json": (b"[[1672531200000, 1, 2, 0.5,", "ends in the middle"),
        "odd.json": (b"[[1672531200000, 1, 2, 0.5 1, 2]]", "not valid JSON"),
        "half.parquet": (whole.read_bytes()[: whole.stat().st_size // 2], "damaged or cut off"),
        "half.arrow": (feather.read_bytes()[: feather.stat().st_size // 2], "damaged or cut off"),
        "half.zip": (b"PK\x03\x04" + b"x" * 50, "damaged or cut off"),
        "picture.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "first bytes"),
        "latin.csv": ("datum;eröffnung\n".encode("latin-1") * 500, "damaged"),
        "short.csv": (b"1672531200000,1,2\n", "no header and 3 columns"),
    }
    for name, (content, said) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=said) as refused:
            read_candle_file(tmp_path / name, MINUTE)
        assert refused.value.field == "file", name
        assert "\n" not in str(refused.value), name
    for path, said in [(tmp_path, "folder"), (tmp_path / "none.csv", "no such file")]:
        with pytest.raises(BadInput, match=said):
            recognise(path)


def test_missing_columns_are_named_with_those_found_and_all_layouts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "timestamp,open,high,low,close,vol\n1,2,3,4,5,6\n")
    with pytest.raises(BadInput) as refused:
        read_candle_file(path, MINUTE)
    text = str(refused.value)
    assert "its columns are timestamp, open, high, low, close, vol" in text
    assert "for ohlcv it lacks volume" in text
    for name in ("Binance", "freqtrade", "Chandlery", "open_time_ms"):
        assert name in text


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "date,timestamp,open,high,low,close,volume\n1,1,2,3,4,5,6\n")
    with pytest.raises(BadInput, match="one column for each meaning; it has date, timestamp"):
        recognise(path)


def test_times_without_a_zone_refuse_the_file(tmp_path: Path) -> None:
    rows = "".join(f"2023-01-01 00:0{i}:00,1,2,0.5,1.5,10\n" for i in range(3))
    path = written(tmp_path / "a.csv", "date,open,high,low,close,volume\n" + rows)
    with pytest.raises(BadInput, match=r"line 2: date is '2023-01-01 00:00:00': .* with a zone"):
        read_candle_file(path, MINUTE)
    naive = pa.array([START + i * 60_000 for i in range(3)], pa.timestamp("ms"))
    columns = {"date": naive, **{name: [1.5] * 3 for name in ("open", "high", "low", "close", "volume")}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="timestamps with a zone in column date"):
        read_candle_file(tmp_path / "a.parquet", MINUTE)


@pytest.mark.parametrize(("asked", "said"), [("1h", "1m apart"), ("5m", "1m apart")])
def test_finer_rows_than_asked_are_refused(tmp_path: Path, asked: str, said: str) -> None:
    path = written(tmp_path / "a.csv", "\n".join(binance_row(i) for i in range(10)).replace("999,", "000,"))
    with pytest.raises(BadInput, match=said) as refused:
        read_candle_file(path, TIMEFRAMES[asked])
    assert refused.value.field == "timeframe"


def test_coarser_rows_than_asked_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{START + i * 3_600_000},1,2,0.5,1.5,10\n" for i in range(5))
    with pytest.raises(BadInput, match="1h apart"):
        read_candle_file(written(tmp_path / "a.csv", rows), MINUTE)


def test_sparse_rows_are_not_taken_for_another_timeframe(tmp_path: Path) -> None:
    rows = "".join(f"{START + i * 60_000},1,2,0.5,1.5,10\n" for i in (0, 3, 4, 9, 14, 20, 31))
    assert read(written(tmp_path / "a.csv", rows))[0].num_rows == 7


# --- writing ---


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_export_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    first, second = some_candles(5), some_candles(5, START + 300_000)
    path = tmp_path / f"out{suffix}"
    assert write_candle_file(path, iter([first, second])) == 10
    table, refusals = read(path)
    assert recognise(path).name == "chandlery"
    assert not refusals
    assert table.equals(pa.concat_tables([first, second]))
    assert digest(table) == digest(first) + digest(second)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@given(st.lists(st.floats(min_value=0, allow_infinity=False, allow_nan=False), min_size=1, max_size=20))
def test_csv_brings_back_every_float(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    table = candles(
        {
            "open_time": np.arange(len(values)) * 60_000 + START,
            **{name: values for name in ("open", "high", "low", "close", "volume")},
        }
    )
    write_candle_file(path, [table])
    assert read(path)[0].equals(table)


def test_rows_that_say_they_are_no_whole_candles_are_refused(tmp_path: Path) -> None:
    table = some_candles(4)
    answer = table.append_column("missing", pa.array([0, 1, 0, 0], pa.int32()))
    answer = answer.append_column("closed", pa.array([True, True, True, False]))
    for name in ("a.csv", "a.parquet", "a.arrow"):
        write_candle_file(tmp_path / name, [answer])
        (batch,) = read_candle_file(tmp_path / name, MINUTE)
        assert batch.rows.tolist() == [0, 2]
        assert [one.row for one in batch.refusals] == [1, 3]
        assert "missing is" in batch.refusals[0].reason
        assert "closed is" in batch.refusals[1].reason


def test_nothing_to_export_gives_a_readable_file(tmp_path: Path) -> None:
    assert write_candle_file(tmp_path / "a.parquet", []) == 0
    assert pq.read_table(tmp_path / "a.parquet").schema.names == CANDLE_SCHEMA.names


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing():
        yield some_candles(3)
        raise StoreUnusable("gone")

    with pytest.raises(StoreUnusable):
        write_candle_file(tmp_path / "a.csv", failing())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_candle_file(path, [some_candles(3)])
    before = path.read_bytes()
    with pytest.raises(BadInput, match="not there yet"):
        write_candle_file(path, [some_candles(4)])
    assert path.read_bytes() == before
    assert write_candle_file(path, [some_candles(4)], overwrite=True) == 4
    assert read(path)[0].num_rows == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.xlsx", "ends in .csv"), ("a", "ends in .csv"), ("no/such/a.csv", "a folder that exists")],
)
def test_places_where_no_export_goes(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        write_candle_file(tmp_path / name, [some_candles(1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.recorded
def test_recorded_files_are_read_exactly(recorded: Path, recorded_candles) -> None:
    for name, timeframe in [("binance_spot_ARBUSDT_1m", "1m"), ("binance_spot_BTCUSDT_coarse", "4h")]:
        (path,) = (recorded / "candles").glob(f"{name}*.parquet")
        total, refused = Digest(), 0
        for batch in read_candle_file(path, TIMEFRAMES[timeframe]):
            total += digest(batch.table)
            refused += len(batch.refusals)
        assert refused == 0
        assert total == digest(recorded_candles(name, timeframe))


def test_what_a_killed_export_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    replaced = tmp_path / "a.csv.unfinished"
    replaced.write_text("half a row")
    write_candle_file(path, [some_candles(3)])
    assert read(path)[0].equals(some_candles(3))
    assert not replaced.exists()


def test_a_failing_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_candle_file(path, [some_candles(3)])
    before = path.read_bytes()

    def full() -> Iterator[pa.Table]:
        yield some_candles(3)
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreUnusable, match="No space left on device"):
        write_candle_file(path, full(), overwrite=True)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("suffix", [*sorted(SUFFIXES), ".json"])
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 10**6)
)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, changes: list[tuple[int, int]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([[START + i * 60_000, 1.5, 2.5, 0.5, 1.25, 10] for i in range(20)]))
    else:
        write_candle_file(path, [some_candles(20)])
    content = bytearray(path.read_bytes())
    for at, byte in changes:
        content[at % len(content)] = byte
    path.write_bytes(content[: cut % len(content)] if cut % 3 == 0 else content)
    # Any other exception fails the test.
    with contextlib.suppress(BadInput):
        for batch in read_candle_file(path, MINUTE):
            assert batch.table.schema == CANDLE_SCHEMA
            assert len(batch.rows) == batch.table.num_rows


def test_an_instant_beyond_the_calendar_is_a_bad_row(tmp_path: Path) -> None:
    times = pa.array([START, START + 60_000, 2**62], pa.timestamp("ms", "UTC"))
    columns = {"date": times, **{name: [1.5] * 3 for name in ("open", "high", "low", "close", "volume")}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    table, refusals = read(tmp_path / "a.parquet")
    assert table.num_rows == 2
    assert refusals[0].reason.startswith(f"row 2: date is {2**62}: not an instant")
