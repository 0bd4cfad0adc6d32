"""Files of the disk tier: what goes in comes out bit by bit, and nothing that was changed is believed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from market.candle import CANDLE_SCHEMA, INSTANT, candles
from market.clock import to_ms
from market.errors import Mismatch
from market.fingerprint import Digest, digest
from market.instrument import Series
from market.timeframe import TIMEFRAMES
from store.tiers.disk_file import ChunkName, check_seal, encode, mapped, revision_of, series_folders
from store.tiers.periods import period_of
from tests.support.made_candles import BTC, START, made

#: Examples of each property; more find more.
EXAMPLES = settings(max_examples=int(os.environ.get("CHANDLERY_TEST_CHUNKS", "40")))
FLOATS = st.floats(allow_nan=False)
WORDS = st.integers(0, 2**64 - 1)


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    """A file without a disk."""
    descriptor = os.memfd_create("chunk")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


def read(data: bytes, name: ChunkName) -> pa.Table:
    with in_memory(data) as descriptor:
        check_seal(descriptor, len(data))
        return mapped(descriptor, name, thoroughly=True)


def whole(pieces: Sequence[memoryview]) -> bytes:
    return b"".join(pieces)


def bits(table: pa.Table) -> list[list[int | None]]:
    """Every cell as its bits: 0.0 and -0.0 are two."""
    found = []
    for column in table.columns:
        plain = column.cast(pa.int64()) if column.type == INSTANT else column
        filled = plain.fill_null(0).to_numpy().view(np.uint64)
        found.append([int(x) if ok else None for x, ok in zip(filled, column.is_valid().to_pylist(), strict=True)])
    return found


@st.composite
def chunks(draw: st.DrawFn) -> tuple[ChunkName, pa.Table]:
    """A chunk of any timeframe with any numbers in it."""
    timeframe = draw(st.sampled_from(list(TIMEFRAMES.values())))
    period = period_of(draw(st.integers(to_ms("2009-01-01"), to_ms("2031-12-31"))), timeframe)
    instants = st.integers(period.start, period.end - 1)
    times = sorted(draw(st.sets(instants, max_size=25)))
    size = len(times)
    columns: dict[str, object] = {"open_time": pa.array(times, INSTANT)}
    for field in list(CANDLE_SCHEMA)[1:]:
        cell: st.SearchStrategy[object]
        if field.name == "early_close_time":
            cell = st.integers(0, 2**42)
        else:
            cell = FLOATS if field.type == pa.float64() else st.integers(0, 2**63 - 1)
        if field.nullable:
            cell = st.none() | cell
        columns[field.name] = pa.array(draw(st.lists(cell, min_size=size, max_size=size)), field.type)
    kind = draw(st.sampled_from(["stored", "derived"]))
    rows = size if kind == "stored" else draw(st.integers(0, 10**6))
    symbol = draw(st.sampled_from(["BTC/USDT", "ETH/USDT:USDT-231229-30000-C", "币安人生/USDT", "a..b/%2F"]))
    series = Series(draw(st.sampled_from(["binance", "kraken"])), symbol, timeframe)
    revision = draw(st.integers(0, 2**40))
    return ChunkName(series, kind, period.start, revision, Digest(rows, draw(WORDS), draw(WORDS))), candles(columns)


@EXAMPLES
@given(chunks())
def test_what_goes_in_comes_out(chunk: tuple[ChunkName, pa.Table]) -> None:
    name, table = chunk
    found = read(whole(encode(name, table)), name)
    assert found.schema.equals(CANDLE_SCHEMA, check_metadata=True)
    assert bits(found) == bits(table)
    found.validate(full=True)
    assert digest(found) == digest(table)
    for column in found.columns:
        assert column.num_chunks == 1
        # Where there is anything, on a multiple of 64.
        assert [buffer.address % 64 for buffer in column.chunk(0).buffers() if buffer and buffer.size] == [0] * sum(
            1 for buffer in column.chunk(0).buffers() if buffer and buffer.size
        )


def test_a_table_of_several_pieces_and_slices_becomes_one() -> None:
    parts = pa.concat_tables([made(range(50)).slice(3, 20), made(range(23, 90)), made([]), made(range(95, 99))])
    name = ChunkName(BTC, "stored", START, 1, digest(parts))
    found = read(whole(encode(name, parts)), name)
    assert found.equals(parts)
    assert found.column("open").num_chunks == 1


def test_a_month_of_minutes_takes_little_more_than_its_numbers() -> None:
    table = made(range(31 * 1440))
    data = whole(encode(ChunkName(BTC, "stored", START, 1, digest(table)), table))
    assert len(data) < table.num_rows * (88 + 1) + 16_000


def test_any_arrow_tool_can_read_it() -> None:
    table = made(range(100))
    with ipc.open_file(whole(encode(ChunkName(BTC, "stored", START, 17, digest(table)), table))) as reader:
        said = {key.decode(): value.decode() for key, value in reader.schema.metadata.items()}
        assert reader.read_all().replace_schema_metadata(None).equals(table)
    assert (said["exchange"], said["symbol"], said["timeframe"], said["kind"]) == (
        "binance",
        "BTC/USDT",
        "1m",
        "stored",
    )
    assert (said["start"], said["end"]) == (str(to_ms("2023-01-01")), str(to_ms("2023-02-01")))
    assert (said["revision"], said["rows"]) == ("17", "100")


@EXAMPLES
@given(chunks(), st.data())
def test_one_changed_bit_is_seen(chunk: tuple[ChunkName, pa.Table], data: st.DataObject) -> None:
    name, table = chunk
    changed = bytearray(whole(encode(name, table)))
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    with in_memory(changed) as descriptor, pytest.raises(Mismatch):
        check_seal(descriptor, len(changed))


def test_each_changed_bit_of_the_ends_is_seen() -> None:
    """The schema, the seal and the footer, bit by bit: there a change would do more than change a number."""
    table = made(range(3))
    right = whole(encode(ChunkName(BTC, "stored", START, 17, digest(table)), table))
    with in_memory(right) as descriptor:
        check_seal(descriptor, len(right))
        for place in range(len(right)):
            os.pwrite(descriptor, bytes([right[place] ^ (1 << place % 8)]), place)
            with pytest.raises(Mismatch):
                check_seal(descriptor, len(right))
            os.pwrite(descriptor, right[place : place + 1], place)
        check_seal(descriptor, len(right))


@pytest.mark.parametrize("rows", [0, 300])
@EXAMPLES
@given(st.data())
def test_a_torn_file_is_seen(rows: int, data: st.DataObject) -> None:
    """Cut, lengthened, with zeros where a page was not written, or with a page of its neighbour."""
    table, other = made(range(rows)), made(range(rows), 1)
    right = whole(encode(ChunkName(BTC, "stored", START, 1, digest(table)), table))
    neighbour = whole(encode(ChunkName(BTC, "stored", START, 1, digest(other)), other))
    first, last = sorted(data.draw(st.lists(st.integers(0, len(right)), min_size=2, max_size=2)))
    for torn in (
        right[:first],
        right + right[:last],
        right[first:],
        right[:first] + bytes(last - first) + right[last:],
        right[:first] + neighbour[first:last] + right[last:],
    ):
        with in_memory(torn) as descriptor:
            if torn in (right, neighbour):
                check_seal(descriptor, len(torn))
            else:
                with pytest.raises(Mismatch):
                    check_seal(descriptor, len(torn))


@given(st.binary(max_size=300))
def test_a_foreign_file_is_seen(data: bytes) -> None:
    for foreign in (
        data,
        b"ARROW1\0\0" + data + b"ARROW1",
        data + b"chandlery-chunk:0001:%012x:%08x" % (len(data), 0),
    ):
        with in_memory(foreign) as descriptor, pytest.raises(Mismatch):
            check_seal(descriptor, len(foreign))


def test_another_version_is_not_read() -> None:
    table = made(range(10))
    right = whole(encode(ChunkName(BTC, "stored", START, 1, digest(table)), table))
    blank = right.replace(b"chandlery-chunk:0001", b"chandlery-chunk:0002")
    found = blank.find(b"chandlery-chunk:0002")
    seal = blank[found : found + 42]
    # With a checksum that is right for all the rest.
    blank = blank.replace(seal, seal[:-8] + b"0" * 8)
    sealed = blank.replace(seal[:-8] + b"0" * 8, seal[:-8] + b"%08x" % zlib.crc32(blank))
    with in_memory(sealed) as descriptor, pytest.raises(Mismatch, match="no chunk of format 1"):
        check_seal(descriptor, len(sealed))
    again = sealed.replace(b"chandlery-chunk:0002", b"chandlery-chunk:0001")
    with in_memory(again) as descriptor, pytest.raises(Mismatch, match="not those that were written"):
        check_seal(descriptor, len(again))


@pytest.mark.parametrize(
    "change",
    [
        {"series": Series("kraken", "BTC/USDT", BTC.timeframe)},
        {"series": Series("binance", "ETH/USDT", BTC.timeframe)},
        {"series": BTC.at(TIMEFRAMES["3m"])},
        {"kind": "derived"},
        {"start": to_ms("2023-02-01")},
        {"revision": 18},
        {"digest": Digest(100, 1, 2)},
        {"kind": "other"},
        {"start": START + 1},
        {"start": 10**17},
    ],
)
def test_a_file_under_another_name_is_not_read(change: dict[str, object]) -> None:
    table = made(range(100))
    name = ChunkName(BTC, "stored", START, 17, digest(table))
    data = whole(encode(name, table))
    assert read(data, name).equals(table)
    with pytest.raises(Mismatch):
        read(data, name._replace(**change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table",
    [
        made([3, 2, 4]),
        made([3, 3, 4]),
        made([-1, 3, 4]),
        made([3, 4, 31 * 1440]),
        made([3, 4]),
        made([3, 4, 5]).drop_columns(["volume"]),
        made([3, 4, 5]).rename_columns([*CANDLE_SCHEMA.names[:-1], "late_close_time"]),
    ],
)
def test_what_is_not_what_the_name_says_is_not_written(table: pa.Table) -> None:
    name = ChunkName(BTC, "stored", START, 17, Digest(3, 1, 1))
    encode(name, made([3, 4, 5]))
    with pytest.raises(Mismatch):
        encode(name, table)


def test_names_for_people() -> None:
    one = Digest.of_hex(1, "0f3a9c5d11e2b407aaaaaaaaaaaaaaaa")
    names = [
        ChunkName(BTC.at(TIMEFRAMES[timeframe]), "stored", to_ms(start), 17, one).file
        for timeframe, start in (("30m", "2024-03-01"), ("1h", "2024-01-01"), ("1d", "2020-01-01"))
    ]
    assert names == [f"stored-{period}.r17.0f3a9c5d11e2b407.arrow" for period in ("2024-03", "2024", "2020s")]
    assert [revision_of(one, one[:14]) for one in names] == [17, None, None]
    assert revision_of(names[1], "stored-2024") == 17
    assert revision_of("stored-2024.r17.0f3a9c5d11e2b407.arrow.unfinished", "stored-2024") is None
    assert series_folders(BTC) == ("binance", "BTC%2FUSDT", "1m")


@EXAMPLES
@given(st.text(min_size=1), st.text(min_size=1))
def test_a_folder_never_leads_elsewhere(first: str, second: str) -> None:
    try:
        one, other = (series_folders(Series("binance", text, BTC.timeframe)) for text in (first, second))
    except UnicodeEncodeError:
        return
    assert all(part.isascii() and not set(part) & {"/", "\0"} and not part.startswith(".") for part in one)
    assert (one == other) == (first == second)
