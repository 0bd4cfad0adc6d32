-- The continuous aggregates. A reader asks `read_aggregates_due` first: what is due is taken from the minutes.

-- name: read_candles_5m
-- Candles of 5m of (instrument, start, end), oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume::double precision, coalesce(quote_volume::double precision, 'NaN')),
            point(coalesce(taker_buy_volume::double precision, 'NaN'),
                  coalesce(taker_buy_quote_volume::double precision, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles_5m
WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3
ORDER BY open_time;

-- name: read_candles_15m
-- Candles of 15m of (instrument, start, end), oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume::double precision, coalesce(quote_volume::double precision, 'NaN')),
            point(coalesce(taker_buy_volume::double precision, 'NaN'),
                  coalesce(taker_buy_quote_volume::double precision, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles_15m
WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3
ORDER BY open_time;

-- name: read_candles_1h
-- Candles of 1h of (instrument, start, end), oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume::double precision, coalesce(quote_volume::double precision, 'NaN')),
            point(coalesce(taker_buy_volume::double precision, 'NaN'),
                  coalesce(taker_buy_quote_volume::double precision, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles_1h
WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3
ORDER BY open_time;

-- name: read_candles_4h
-- Candles of 4h of (instrument, start, end), oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume::double precision, coalesce(quote_volume::double precision, 'NaN')),
            point(coalesce(taker_buy_volume::double precision, 'NaN'),
                  coalesce(taker_buy_quote_volume::double precision, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles_4h
WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3
ORDER BY open_time;

-- name: read_candles_1d
-- Candles of 1d of (instrument, start, end), oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume::double precision, coalesce(quote_volume::double precision, 'NaN')),
            point(coalesce(taker_buy_volume::double precision, 'NaN'),
                  coalesce(taker_buy_quote_volume::double precision, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles_1d
WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3
ORDER BY open_time;

-- name: add_aggregate_due
-- Minutes of (instrument, start, end) have changed since the aggregates were last refreshed.
INSERT INTO aggregates_due (instrument_id, interval_start, interval_end) VALUES ($1, $2, $3);

-- name: read_aggregates_due
-- Where aggregates of (instrument, start, end) may be older than the minutes.
SELECT interval_start, interval_end FROM aggregates_due
WHERE instrument_id = $1 AND interval_end > $2 AND interval_start < $3;

-- name: list_aggregates_due
-- Everything that waits for a refresh, oldest first.
SELECT due_id, interval_start, interval_end FROM aggregates_due ORDER BY due_id;

-- name: delete_aggregates_due
-- What was refreshed after these entries (ids) were read.
DELETE FROM aggregates_due WHERE due_id = ANY($1::bigint[]);

-- name: refresh_aggregate
-- Bring what has changed in (view, start, end) up to its base; outside a transaction.
CALL refresh_continuous_aggregate($1::text::regclass, $2::timestamptz, $3::timestamptz);

-- name: allow_decompression
-- A late correction may touch many compressed rows.
SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
