"""Millions of candles of a year, made by the server itself, with all that stands beside candles."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from store.postgres.aggregates import VIEWS
from store.postgres.mode import Mode
from tests.support.postgres_server import PrivatePostgres

#: Instruments 1 ... with a minute series each: half a million candles for each of them. With twenty there are ten
#: million, and the plans are the same.
INSTRUMENTS = int(os.environ.get("CHANDLERY_TEST_PLAN_INSTRUMENTS", "6"))
#: [START, END): a year of minutes.
START, END = "2023-01-01", "2024-01-01"
#: Chunks older than this are compressed on TimescaleDB.
COMPRESSED_BEFORE = "2023-07-01"
#: The month that the aggregates have.
AGGREGATED = "2023-11-01", "2023-12-01"
#: Nothing that survives a crash is needed, and no log for what is copied elsewhere.
SETTINGS: dict[str, object] = {
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "512MB",
    "maintenance_work_mem": "256MB",
    "autovacuum": "off",
}

_NAMES = f"""
SET timezone = 'UTC';
INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, active)
SELECT 'binance', 'C' || n || '/USDT', 'C' || n || 'USDT', 'C' || n, 'USDT', 'spot', true
FROM generate_series(1, {INSTRUMENTS}) n;
INSERT INTO series (instrument_id, timeframe, revision, last_write)
SELECT n, 60, 1, '2024-01-01' FROM generate_series(1, {INSTRUMENTS}) n;
"""
#: Up to July as a backfill brings them, one instrument after the other; from then on minute by minute.
_CANDLES = """
SET timezone = 'UTC';
INSERT INTO {table} (instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume, trades,
                     taker_buy_volume, taker_buy_quote_volume, state, learned_at)
SELECT n, 60, t, 100 + p, 102 + p, 99 + p, 101 + p, 1.5 + p, 150 + p, 7, 0.5 + p, 50, 1, '2024-01-01'
FROM (SELECT n, t, extract(hour FROM t)::float8 / 10 AS p
      FROM generate_series('{start}'::timestamptz, '{start}'::timestamptz + INTERVAL '1 month - 1 minute',
                           '1 minute') t, generate_series(1, {instruments}) n ORDER BY {order}) minutes;
"""
#: Every series has a hole each day, so a year of digests and of ledger entries; corrections and refusals are spread
#: over all series but the last, and the first has most of them.
_BESIDE = f"""
SET timezone = 'UTC';
INSERT INTO candle_chunks (instrument_id, timeframe, chunk_start, row_count, unverified, digest, revision)
SELECT n, 60, t, 1440, 1440, md5(n::text || t), 1
FROM generate_series(1, {INSTRUMENTS}) n,
     generate_series('{START}'::timestamptz, '{END}'::timestamptz - INTERVAL '1 day', '1 day') t;
INSERT INTO coverage (instrument_id, timeframe, interval_start, interval_end, state, source, learned_at)
SELECT n, 60, t, t + INTERVAL '23 hours', 'present', 'rest', '2024-01-01'
FROM generate_series(1, {INSTRUMENTS}) n,
     generate_series('{START}'::timestamptz, '{END}'::timestamptz - INTERVAL '1 day', '1 day') t;
INSERT INTO candle_corrections (instrument_id, timeframe, open_time, open, high, low, close, volume, state,
                                learned_at, replaced_at, source)
SELECT n, 60, t, 1, 1, 1, 1, 1, 1, '2023-12-31', '2024-01-01', 'rest'
FROM generate_series(1, {INSTRUMENTS - 1}) n,
     generate_series('{START}'::timestamptz, '{END}'::timestamptz, '2 hours') t;
INSERT INTO quarantine (instrument_id, timeframe, open_time, reason, raw, source, learned_at)
SELECT CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % {INSTRUMENTS - 1} END, 60,
       '{START}'::timestamptz + n * INTERVAL '1 minute', 'negative volume', 'row ' || n, 'rest', '2024-01-01'
FROM generate_series(1, 100000) n;
"""
#: Two months of trades of the first instruments, one every ten seconds; those of the second have ids
#: that count nothing. Every instrument has runs with holes.
TRADES = "2023-05-01", "2023-06-30"
TRADED = 2
_TRADES = f"""
SET timezone = 'UTC';
INSERT INTO trade_history (instrument_id, event_time, trade_id, trade_number, price, quantity, taker_side,
                           received_at)
SELECT n, t, CASE n WHEN 2 THEN md5(t::text) ELSE number::text END, CASE n WHEN 2 THEN NULL ELSE number END, 100, 1,
       'buy', t
FROM (SELECT t, row_number() OVER (ORDER BY t) AS number
      FROM generate_series('{TRADES[0]}'::timestamptz, '{TRADES[1]}', '10 seconds') t) times,
     generate_series(1, {TRADED}) n;
INSERT INTO trade_ids (instrument_id, trade_id, event_time)
SELECT 2, trade_id, event_time FROM trade_history WHERE instrument_id = 2;
INSERT INTO trade_runs (instrument_id, first_id, last_id, first_time, last_time, state)
SELECT n, 100 * i, 100 * i + 90, '2023-05-01'::timestamptz + i * INTERVAL '1000 seconds',
       '2023-05-01'::timestamptz + i * INTERVAL '1000 seconds' + INTERVAL '900 seconds', 'present'
FROM generate_series(0, 5000) i, generate_series(1, {INSTRUMENTS}) n;
INSERT INTO message_quarantine (exchange, reason, raw, digest, received_at, times)
SELECT 'exchange' || n % 10, 'no price', 'message ' || n, md5(n::text),
       '2023-05-01'::timestamptz + n * INTERVAL '1 second', 1
FROM generate_series(1, 100000) n;
"""
_DUE = f"""
INSERT INTO aggregates_due (instrument_id, interval_start, interval_end)
SELECT 1 + n % {INSTRUMENTS}, t, t + INTERVAL '10 minutes'
FROM generate_series(1, {250 * INSTRUMENTS}) n,
     LATERAL (SELECT '{START}'::timestamptz + n * INTERVAL '100 minutes' AS t) x;
"""


def fill(server: PrivatePostgres, database: str, mode: Mode) -> int:
    """Fill a new schema of `mode`, two months at a time; how many candles there are."""
    server.sql(database, _NAMES)
    if mode is Mode.PLAIN:
        days = f"generate_series('{START}'::timestamptz, '{END}', '15 days')"
        server.sql(database, f"SELECT make_monthly_partitions('candles', 'open_time', ARRAY(SELECT {days}))")
        server.sql(database, f"SELECT make_monthly_partitions('trade_history', 'event_time', ARRAY(SELECT {days}))")

    def month(number: int) -> None:
        server.sql(
            database,
            _CANDLES.format(
                table=f"candles_2023_{number:02}" if mode is Mode.PLAIN else "candles",
                start=f"2023-{number:02}-01",
                instruments=INSTRUMENTS,
                order="n, t" if number < 7 else "t, n",
            ),
        )

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(month, range(1, 13)))
    server.sql(database, _BESIDE)
    server.sql(database, _TRADES)
    if mode is Mode.TIMESCALEDB:
        server.sql(database, _DUE)
        old = f"show_chunks('candles', older_than => '{COMPRESSED_BEFORE}'::timestamptz)"
        server.sql(database, f"SELECT count(compress_chunk(c)) FROM {old} c")
        for view in VIEWS:
            server.sql(
                database, f"CALL refresh_continuous_aggregate('{view}', '{AGGREGATED[0]}', '{AGGREGATED[1]}')"
            )
    server.sql(database, "VACUUM ANALYZE")
    return int(server.sql(database, "SELECT count(*) FROM candles"))
