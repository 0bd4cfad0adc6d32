"""``/v1/candles``: the numbers in every format, paging, point in time, tags."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import httpx
import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from market.candle import COLUMNS, candles, open_times_ms
from market.clock import iso
from tests.support.http_service import (
    BTC,
    END,
    GAP,
    QUERY,
    ROWS,
    START,
    Service,
    batch,
    made,
    minute,
    service,
    without,
)

STORED = ROWS - 80 - 10


@pytest.fixture
async def served(tmp_path: Path, clock) -> AsyncIterator[Service]:
    clock.time_ms = END + 86_400_000
    async with service(tmp_path, clock) as one:
        yield one


def rows_of(response: httpx.Response) -> list[dict[str, object]]:
    body = response.json()
    return [dict(zip(body["columns"], row, strict=True)) for row in body["data"]]


def plain(table: pa.Table) -> list[dict[str, object]]:
    """Rows of a table with instants as epoch milliseconds."""
    return table.cast(
        pa.schema([(f.name, pa.int64() if pa.types.is_timestamp(f.type) else f.type) for f in table.schema])
    ).to_pylist()


async def test_json_gives_the_stored_rows_and_says_what_is_known(served: Service) -> None:
    answer = await served.candles(start=START, end=END, limit=50_000)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    expected = plain(await served.store.read(BTC, START, END))
    assert [{k: v for k, v in row.items() if k != "missing"} for row in rows_of(answer)] == expected
    assert body["columns"] == [*COLUMNS, "missing"]
    meta = body["meta"]
    assert {key: meta[key] for key in QUERY} == QUERY
    assert (meta["start"], meta["end"], meta["rows"]) == (START, END, STORED)
    assert meta["complete"] is False
    assert meta["gaps"] == [[minute(GAP[0]), minute(GAP[1])]]
    assert meta["coverage"] == [
        [START, minute(100), "present"],
        [minute(100), minute(180), "verified_empty"],
        [minute(180), minute(500), "present"],
        [minute(510), END, "present"],
    ]
    assert meta["next_cursor"] is None
    assert meta["derived_from"] is None
    assert answer.headers["x-chandlery-tier"] == "database"
    assert answer.headers["x-chandlery-age-ms"] == "0"
    assert answer.headers["x-fingerprint"] == meta["fingerprint"]


async def test_every_format_carries_the_same_numbers(served: Service, tmp_path: Path) -> None:
    answers = {
        name: await served.candles(start=START, end=END, limit=50_000, format=name)
        for name in ("json", "csv", "arrow", "parquet")
    }
    assert {name: answer.headers["content-type"] for name, answer in answers.items()} == {
        "json": "application/json",
        "csv": "text/csv; charset=utf-8",
        "arrow": "application/vnd.apache.arrow.stream",
        "parquet": "application/vnd.apache.parquet",
    }
    rows = rows_of(answers["json"])
    arrow = pa.ipc.open_stream(answers["arrow"].content).read_all()
    assert plain(arrow) == rows
    assert arrow.schema.field("open_time").type == pa.timestamp("ms", "UTC")
    parquet = pq.read_table(io.BytesIO(answers["parquet"].content))
    assert plain(parquet) == rows
    for table in (arrow, parquet):
        assert orjson.loads(table.schema.metadata[b"chandlery.meta"]) == answers["json"].json()["meta"]

    types = {"trades": pl.Int64, "early_close_time": pl.Int64, "missing": pl.Int32}
    read = pl.read_csv(answers["csv"].content, schema_overrides=types)
    assert read.to_dicts() == rows
    assert pl.read_ipc_stream(answers["arrow"].content).equals(pl.from_arrow(arrow))
    assert pl.read_parquet(answers["parquet"].content)["volume"].to_list() == [row["volume"] for row in rows]

    file = tmp_path / "answer.parquet"
    file.write_bytes(answers["parquet"].content)
    text = tmp_path / "answer.csv"
    text.write_bytes(answers["csv"].content)
    with duckdb.connect() as database:
        names = "epoch_ms(open_time), open, high, low, close, volume, quote_volume, trades"
        found = database.execute(f"SELECT {names} FROM '{file}' ORDER BY 1").fetchall()
        from_csv = database.execute(
            f"SELECT {names.replace('epoch_ms(open_time)', 'open_time')} FROM '{text}' ORDER BY 1"
        ).fetchall()
    wanted = [tuple(row[name] for name in ("open_time", *COLUMNS[1:8])) for row in rows]
    assert found == wanted
    assert from_csv == wanted


async def test_without_a_start_the_newest_rows_come(served: Service) -> None:
    answer = await served.candles(limit=10)
    assert [row["open_time"] for row in rows_of(answer)] == [minute(at) for at in range(ROWS - 10, ROWS)]
    assert answer.json()["meta"]["next_cursor"] is None
    default = await served.candles()
    assert default.json()["meta"]["rows"] == 1000
    assert default.json()["meta"]["complete"] is True


@pytest.mark.parametrize("start", [iso(START), START, "2023-11-01", "2023-11-01T01:00:00+01:00"])
async def test_instants_may_be_written_in_every_accepted_way(served: Service, start: object) -> None:
    answer = await served.candles(start=start, limit=1)
    assert rows_of(answer)[0]["open_time"] == START


async def test_columns_are_chosen_with_the_open_time_first(served: Service) -> None:
    answer = await served.candles(start=START, limit=3, columns="close,open_time,volume,close")
    assert answer.json()["columns"] == ["open_time", "close", "volume"]
    whole = rows_of(await served.candles(start=START, limit=3))
    assert rows_of(answer) == [{name: row[name] for name in ("open_time", "close", "volume")} for row in whole]


async def walk(served: Service, **query: object) -> AsyncIterator[httpx.Response]:
    answer = await served.candles(**query)
    yield answer
    while "x-next-cursor" in answer.headers:
        kept = {name: value for name, value in query.items() if name != "start"}
        answer = await served.candles(**kept, cursor=answer.headers["x-next-cursor"])
        yield answer


async def test_a_cursor_walks_the_range_while_corrections_are_written(served: Service) -> None:
    times: list[int] = []
    at = 0
    async for answer in walk(served, start=START, end=END, limit=333):
        assert answer.status_code == 200
        times += [int(str(row["open_time"])) for row in rows_of(answer)]
        # Between the pages: rows already read and rows still to come get other values.
        await served.store.write(batch(BTC, made(at, at + 50, seed=100 + at)))
        await served.store.write(batch(BTC, made(ROWS - 60 - at, ROWS - 20 - at, seed=200 + at)))
        at += 40
    stored = open_times_ms(await served.store.read(BTC, START, END)).tolist()
    # What was empty or a gap and was filled behind the reader does not count against the walk.
    assert len(times) == len(set(times))
    assert times == sorted(times)
    expected = open_times_ms(without(made(0, ROWS), (100, 180), GAP)).tolist()
    assert set(expected) <= set(times) <= set(stored)


@pytest.mark.parametrize("form", ["csv", "arrow", "parquet"])
async def test_formats_without_a_place_for_it_carry_the_cursor_in_headers(served: Service, form: str) -> None:
    answer = await served.candles(start=START, end=END, limit=100, format=form, columns="close")
    link = answer.links["next"]["url"]
    onward = await served.http.get(link)
    assert onward.status_code == 200
    assert onward.headers["content-type"] == answer.headers["content-type"]
    by_cursor = await served.candles(
        cursor=answer.headers["x-next-cursor"], limit=100, format=form, columns="close"
    )
    assert by_cursor.content == onward.content
    pages = [page async for page in walk(served, start=START, end=END, limit=1000, format=form)]
    assert len(pages) == 3
    assert "link" not in pages[-1].headers


async def test_a_cursor_belongs_to_its_query(served: Service) -> None:
    cursor = (await served.candles(start=START, end=END, limit=5)).json()["meta"]["next_cursor"]
    fine = await served.candles(cursor=cursor, end=END, limit=7)
    assert fine.json()["meta"]["rows"] == 7
    for changes, field in (
        ({"symbol": "ETH/USDT"}, "cursor"),
        ({"timeframe": "5m"}, "cursor"),
        ({"as_of": iso(END)}, "cursor"),
        ({"include_forming": "true"}, "cursor"),
        ({"start": START}, "cursor"),
        ({"end": END - 60_000}, "end"),
    ):
        answer = await served.candles(**{"cursor": cursor, **changes})
        assert (answer.status_code, answer.json()["field"]) == (400, field), changes


async def test_as_of_gives_the_candles_as_they_were_known(served: Service, clock) -> None:
    before = clock.time_ms
    old = rows_of(await served.candles(start=START, limit=5))
    clock.advance(3_600_000)
    await served.store.write(batch(BTC, made(0, 5, seed=99)))
    new = rows_of(await served.candles(start=START, limit=5))
    assert old != new
    then = await served.candles(start=START, limit=5, as_of=iso(before))
    assert rows_of(then) == old
    assert then.json()["meta"]["as_of"] == before
    assert rows_of(await served.candles(start=START, limit=5, as_of=clock.time_ms)) == new


async def test_larger_timeframes_are_derived_and_say_what_is_missing(served: Service) -> None:
    answer = await served.candles(timeframe="1h", start=START, end=END)
    assert answer.json()["meta"]["derived_from"] == "1m"
    missing = {row["open_time"]: row["missing"] for row in rows_of(answer)}
    assert missing[minute(480)] == 10
    assert missing[minute(60)] == 0
    assert len(missing) == ROWS // 60 - 1  # hour 2 is empty as a whole


async def test_the_forming_candle_comes_when_asked_for(served: Service, clock) -> None:
    clock.time_ms = END + 30_000
    row = candles(
        {"open_time": np.array([END]), "open": [5.5], "high": [7.0], "low": [5.0], "close": [6.0], "volume": [1]}
    )
    served.live.put(BTC, row, clock.time_ms)
    closed = await served.candles(limit=2)
    assert "closed" not in closed.json()["columns"]
    forming = await served.candles(limit=2, include_forming="true")
    assert [row["closed"] for row in rows_of(forming)][-1] is False
    assert rows_of(forming)[-1]["close"] == 6.0
    tag = forming.headers["etag"]
    later = row.set_column(4, "close", pa.array([6.5]))
    served.live.put(BTC, candles({name: later.column(name) for name in later.column_names}), clock.time_ms + 1)
    assert (await served.candles(limit=2, include_forming="true")).headers["etag"] != tag


async def test_an_exchange_ahead_of_our_clock_is_not_the_future(served: Service, clock) -> None:
    clock.time_ms = minute(10)
    row = candles(
        {"open_time": np.array([END]), **{name: [5.5] for name in ("open", "high", "low", "close", "volume")}}
    )
    served.live.put(BTC, row, END + 1)
    forming = rows_of(await served.candles(limit=2, include_forming="true"))
    assert [one["open_time"] for one in forming][-1] == END
    ahead = await served.candles(start=minute(ROWS - 5))
    assert ahead.json()["meta"]["rows"] == 5
    assert (await served.candles(start=END)).status_code == 400


async def test_a_tag_saves_the_body_until_something_changes(served: Service) -> None:
    query = {"start": START, "limit": 100}
    first = await served.candles(**query)
    tag = first.headers["etag"]
    assert (await served.candles(**query)).content == first.content
    for header in (tag, f'"other", {tag}', "*"):
        again = await served.http.get("/v1/candles", params=QUERY | query, headers={"If-None-Match": header})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    others = [
        await served.candles(**{**query, **change})
        for change in ({"limit": 99}, {"columns": "close"}, {"format": "csv"}, {"format": "arrow"})
    ]
    assert len({tag, *(one.headers["etag"] for one in others)}) == 5
    await served.store.write(batch(BTC, made(3, 4, seed=55)))
    changed = await served.http.get("/v1/candles", params=QUERY | query, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_a_batch_holds_what_single_answers_hold(served: Service) -> None:
    shared = {"exchange": "binance", "timeframe": "1m", "start": START, "limit": 50}
    for symbols in ("BTC/USDT,ETH/USDT", ["BTC/USDT", "ETH/USDT"]):
        answer = await served.get("/v1/candles/batch", **shared, symbols=symbols)
        assert answer.status_code == 200
        singles = [
            (await served.get("/v1/candles", **shared, symbol=symbol)).json() for symbol in ("BTC/USDT", "ETH/USDT")
        ]
        assert answer.json()["answers"] == singles
    again = await served.http.get(
        "/v1/candles/batch",
        params={**shared, "symbols": "BTC/USDT,ETH/USDT"},
        headers={"If-None-Match": answer.headers["etag"]},
    )
    assert again.status_code == 304
