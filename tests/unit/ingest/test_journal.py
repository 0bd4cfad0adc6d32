"""The journal: what an append returned for is read again in order, whatever happened to the files' ends since."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingest.journal import Journal
from ingest.journal_record import VERSION, Batch, decode, encode
from ingest.journal_segment import HEADER_BYTES, MAGIC, RECORD_BYTES, header
from market.candle import PRICES, CandleState, Refusal, candles
from market.channel import Channel
from market.coverage import CoverageState
from market.errors import BadInput, StoreBusy, StoreUnusable
from market.trade import Trade
from store.message_quarantine import QuarantinedMessage
from store.trade_batch import TradeBatch
from tests.support.made_candles import absence, at, batch, made


def payloads(journal: Journal) -> list[bytes]:
    """All unfinished records."""
    return [entry.payload for entry in journal.read(10**6, 1 << 40)]


def files(folder: Path, suffix: str = ".journal") -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number * (1 + number % 5) for number in range(first, last)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    with Journal.opened(tmp_path / "journal") as journal:
        assert payloads(journal) == []
        journal.append(numbered(0, 3))
        journal.append(numbered(3, 10))
        assert payloads(journal) == numbered(0, 10)
        assert journal.records == 10
    with Journal.opened(tmp_path / "journal") as journal:
        journal.append(numbered(10, 12))
        assert payloads(journal) == numbered(0, 12)
        assert journal.bytes == sum(path.stat().st_size for path in files(tmp_path / "journal"))


def test_a_read_is_bounded_and_brings_one_record_at_least(tmp_path: Path) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"x" * 100, b"y" * 100, b"z"])
        assert [entry.payload[:1] for entry in journal.read(most=2)] == [b"x", b"y"]
        assert [entry.payload[:1] for entry in journal.read(most_bytes=150)] == [b"x"]
        assert [entry.payload[:1] for entry in journal.read(most_bytes=10)] == [b"x"]


def test_what_is_done_is_gone_and_its_files_with_it(tmp_path: Path) -> None:
    with Journal.opened(tmp_path, segment_bytes=100) as journal:
        for number in range(30):
            journal.append(numbered(number, number + 1))
        assert len(files(tmp_path)) > 3
        half = journal.read(most=15)
        journal.done(half[-1].place)
        assert payloads(journal) == numbered(15, 30)
        assert journal.records == 15
        assert journal.bytes == sum(path.stat().st_size for path in files(tmp_path))
    with Journal.opened(tmp_path) as journal:
        # Within a file too, the position is remembered.
        assert payloads(journal) == numbered(15, 30)
        journal.done(journal.read(10**6)[-1].place)
        assert (journal.records, journal.bytes, files(tmp_path)) == (0, 0, [])
        journal.append([b"next"])
        assert payloads(journal) == [b"next"]


def test_a_position_of_another_file_with_the_same_number_does_not_count(tmp_path: Path) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"a", b"b", b"c"])
        journal.done(journal.read(most=2)[-1].place)
    (old,) = files(tmp_path)
    old.unlink()
    with Journal.opened(tmp_path) as journal:
        journal.append([b"A", b"B", b"C"])
        assert files(tmp_path) == [old]
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"A", b"B", b"C"]


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xee\xab\xb5\x9c" * 7, b"\0" * 28], ids=["none", "short", "wrong", "zeros"]
)
def test_a_damaged_position_only_means_reading_again(tmp_path: Path, content: bytes) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"a", b"b"])
        journal.done(journal.read(most=1)[-1].place)
    (tmp_path / "position").write_bytes(content)
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"a", b"b"]


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Journal.opened(tmp_path),
        pytest.raises(StoreBusy, match="in use by chandlery ingest"),
        Journal.opened(tmp_path),
    ):
        pass


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    keep=st.floats(0, 1),
    garbage=st.binary(max_size=40),
    segment=st.sampled_from([60, 200, 10_000]),
)
@settings(max_examples=40)
def test_a_torn_end_is_cut_and_nothing_before_it(
    counts: list[int], keep: float, garbage: bytes, segment: int
) -> None:
    """Cut the last file anywhere and put anything behind: every record that is whole before the cut comes back."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends: list[tuple[Path, int]] = []
        with Journal.opened(folder, segment_bytes=segment) as journal:
            number = 0
            for count in counts:
                for _ in range(count):
                    journal.append(numbered(number, number + 1))
                    last = files(folder)[-1]
                    ends.append((last, last.stat().st_size))
                    number += 1
        last = files(folder)[-1]
        cut = round(last.stat().st_size * keep)
        os.truncate(last, cut)
        with last.open("ab") as file:
            file.write(garbage)
        whole = sum(path != last or end <= cut for path, end in ends)
        with Journal.opened(folder) as journal:
            found = payloads(journal)
            assert found[:whole] == numbered(0, whole)
            # Garbage may happen to be what was cut off.
            assert found == numbered(0, len(found))
            journal.append([b"more"])
            assert payloads(journal) == [*found, b"more"]
        with Journal.opened(folder) as journal:
            assert payloads(journal) == [*found, b"more"]


def test_zeros_behind_the_end_are_no_records(tmp_path: Path) -> None:
    """What a file system leaves after a power cut: the new length, without the content."""
    with Journal.opened(tmp_path) as journal:
        journal.append([b"a"])
    os.truncate(files(tmp_path)[0], 4096)
    with capture_logs() as logs, Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"a"]
        assert journal.records == 1
    assert "journal_torn" in [entry["event"] for entry in logs]


def test_damage_in_the_middle_loses_nothing_quietly(tmp_path: Path) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"first", b"second", b"third"])
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"second")] ^= 1
    path.write_bytes(content)
    with capture_logs() as logs, Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"first"]
        assert journal.refused_bytes > 0
    (said,) = [entry for entry in logs if entry["event"] == "journal_damaged"]
    assert said["log_level"] == "error"
    (kept,) = files(tmp_path, ".tail.refused")
    assert said["kept"] == str(kept)
    assert b"third" in kept.read_bytes()


def test_damage_while_open_is_a_loud_stop(tmp_path: Path) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"first", b"second"])
        (path,) = files(tmp_path)
        path.write_bytes(path.read_bytes().replace(b"first", b"worst"))
        with pytest.raises(StoreUnusable, match=r"journal was damaged at byte \d+ after it was written"):
            journal.read()


@pytest.mark.parametrize(
    "content",
    [
        b"open_time,open,high\n" * 50,
        b"hello",
        header(VERSION + 1, 7) + b"a record of another release",
        b"\0" * 100,
    ],
    ids=["foreign", "short", "newer", "zeros"],
)
def test_a_file_that_is_not_ours_is_set_aside_and_kept(tmp_path: Path, content: bytes) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"a"])
    foreign = tmp_path / f"{0:020}.journal"
    foreign.write_bytes(content)
    with capture_logs() as logs, Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"a"]
    assert [entry["log_level"] for entry in logs if entry["event"] == "journal_file_set_aside"] == ["error"]
    assert not foreign.exists()
    assert foreign.with_name(foreign.name + ".refused").read_bytes() == content


def test_a_strange_name_is_set_aside_too_and_never_overwrites_another(tmp_path: Path) -> None:
    (tmp_path / "copy.journal").write_bytes(b"new")
    (tmp_path / "copy.journal.refused").write_bytes(b"old")
    with Journal.opened(tmp_path):
        pass
    assert (tmp_path / "copy.journal.refused").read_bytes() == b"old"
    assert (tmp_path / "copy.journal.2.refused").read_bytes() == b"new"


@pytest.mark.parametrize("size", [0, 5, len(MAGIC), HEADER_BYTES - 1, HEADER_BYTES])
def test_a_file_torn_at_its_birth_is_removed(tmp_path: Path, size: int) -> None:
    (tmp_path / f"{7:020}.journal").write_bytes(header(VERSION, 1)[:size])
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == []
        assert files(tmp_path) == files(tmp_path, ".refused") == []
        journal.append([b"a"])
        # Numbers go on, so that no file is taken for an older one.
        assert files(tmp_path)[0].name == f"{8:020}.journal"


def test_a_refused_record_can_be_taken_back(tmp_path: Path) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"good"])
        path = journal.set_aside(b"odd", "because")
        assert path.suffix == ".refused"
        journal.done(journal.read()[-1].place)
    path.rename(path.with_suffix(".journal"))
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"odd"]


def test_it_is_bounded(tmp_path: Path) -> None:
    with Journal.opened(tmp_path, most_bytes=1000, segment_bytes=300) as journal:
        journal.append([b"x" * 100])
        with pytest.raises(StoreUnusable, match=r"holds \d+ bytes and may hold 1,000; it needs 908 more"):
            journal.append([b"y" * 900])
        journal.set_aside(b"z" * 700, "because")
        with pytest.raises(StoreUnusable, match="All earlier records are safe; bring the database back"):
            journal.append([b"y" * 150])
        assert payloads(journal) == [b"x" * 100]
    with Journal.opened(tmp_path, most_bytes=1000) as journal, pytest.raises(StoreUnusable):
        journal.append([b"y" * 150])


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int, error: int, half: bool = False) -> None:
    """Let the next `times` calls of os.`name` fail, a write only after half of the bytes."""
    real: Callable[..., Any] = getattr(os, name)
    left = [times]

    def call(*arguments: Any) -> Any:
        if left[0] <= 0:
            return real(*arguments)
        left[0] -= 1
        if half:
            descriptor, data, offset = arguments
            real(descriptor, data[: len(data) // 2], offset)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("call", "error"), [("pwrite", errno.ENOSPC), ("fsync", errno.EIO), ("fsync", errno.EDQUOT)]
)
def test_a_failed_append_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, call: str, error: int
) -> None:
    with Journal.opened(tmp_path) as journal:
        if begun:
            journal.append([b"before"])
        before = {path: path.read_bytes() for path in files(tmp_path)}
        failing(monkeypatch, call, 1, error, half=call == "pwrite")
        with pytest.raises(StoreUnusable) as caught:
            journal.append([b"lost" * 20, b"too"])
        size = 80 + 3 + 2 * RECORD_BYTES
        assert str(caught.value).startswith(
            f"the journal {tmp_path} takes no more: {os.strerror(error)}; it needs {size} bytes"
        )
        assert {path: path.read_bytes() for path in files(tmp_path)} == before
        expected = [b"before"] if begun else []
        assert payloads(journal) == expected
        assert journal.records == len(expected)
        journal.append([b"after"])
        assert payloads(journal) == [*expected, b"after"]
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [*expected, b"after"]


def test_what_cannot_even_be_cut_off_is_not_written_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal.opened(tmp_path) as journal:
        journal.append([b"before"])
        failing(monkeypatch, "pwrite", 1, errno.EIO, half=True)
        failing(monkeypatch, "ftruncate", 1, errno.EIO)
        with pytest.raises(StoreUnusable):
            journal.append([b"lost" * 20])
        journal.append([b"after"])
        assert payloads(journal) == [b"before", b"after"]
    with Journal.opened(tmp_path) as journal:
        assert payloads(journal) == [b"before", b"after"]


BATCHES: list[Batch] = [
    batch(made(range(50)), absences=[absence(60, 70), absence(80, 90, CoverageState.OWN_OUTAGE, expires_at=5)]),
    batch(
        candles({"open_time": [at(0)], "volume": [-0.0]} | {name: [0.1] for name in PRICES}),
        state=CandleState.VERIFIED,
    ),
    batch(),
    TradeBatch(
        exchange="binance",
        symbol="BTC/USDT",
        dense=True,
        trades=[
            Trade(2**63, 0.1, 1e-300, 1, True, 2),
            Trade("a-1", math.inf, 5e-324, 1, False, 2, 7),
            Trade(-1, 27_000.0, 1.0, 1, True, 2),
        ],
    ),
    QuarantinedMessage(exchange="okx", reason="no price", raw='{"é": "\U0001f600"}', received_at=5),
    QuarantinedMessage(
        exchange="okx", channel=Channel.TRADES, symbol="BTC/USDT", reason="x", raw="", received_at=5, times=3
    ),
]


@pytest.mark.parametrize("one", BATCHES, ids=lambda one: type(one).__name__)
def test_a_batch_comes_back_as_it_was(one: Batch) -> None:
    back = decode(encode(one))
    if isinstance(one, TradeBatch):
        assert isinstance(back, TradeBatch)
        assert list(back.trades) == list(one.trades)
        assert [type(trade) for trade in back.trades] == [Trade] * len(one.trades)
        assert (back.exchange, back.symbol, back.dense) == (one.exchange, one.symbol, one.dense)
    else:
        assert back == one


def test_signs_and_refusals_come_back_too() -> None:
    back = decode(encode(BATCHES[1]))
    assert math.copysign(1, back.table.column("volume")[0].as_py()) == -1  # type: ignore[union-attr]
    refused = batch(state=CandleState.CLOSED)
    refused = type(refused)(
        series=refused.series,
        source="test",
        now_ms=1,
        refusals=(Refusal(row=0, open_time=None, reason="odd", raw="raw"),),
    )
    assert decode(encode(refused)) == refused


def test_what_cannot_be_written_down_is_bad_input() -> None:
    huge = TradeBatch(
        exchange="binance", symbol="BTC/USDT", dense=True, trades=[Trade(2**70, 1.0, 1.0, 1, True, 2)]
    )
    with pytest.raises(BadInput, match="whole numbers of 64 bits"):
        encode(huge)


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_bytes_that_are_no_batch_are_bad_input(payload: bytes) -> None:
    with pytest.raises(BadInput, match="journal record"):
        decode(payload)
