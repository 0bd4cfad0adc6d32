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

-- name: minutes_in_5m
-- Of how many minutes the candles of 5m of (instrument, start, end) were made.
SELECT coalesce(sum(minutes), 0)::bigint FROM candles_5m WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3;

-- name: minutes_in_15m
-- Of how many minutes the candles of 15m of (instrument, start, end) were made.
SELECT coalesce(sum(minutes), 0)::bigint FROM candles_15m WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3;

-- name: minutes_in_1h
-- Of how many minutes the candles of 1h of (instrument, start, end) were made.
SELECT coalesce(sum(minutes), 0)::bigint FROM candles_1h WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3;

-- name: minutes_in_4h
-- Of how many minutes the candles of 4h of (instrument, start, end) were made.
SELECT coalesce(sum(minutes), 0)::bigint FROM candles_4h WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3;

-- name: minutes_in_1d
-- Of how many minutes the candles of 1d of (instrument, start, end) were made.
SELECT coalesce(sum(minutes), 0)::bigint FROM candles_1d WHERE instrument_id = $1 AND open_time >= $2 AND open_time < $3;

-- name: erased_days
-- Days of archived minutes of which the aggregates do not have all: somebody refreshed them after the drop.
SELECT count(*)
FROM candle_chunks c
LEFT JOIN candles_1d d ON d.instrument_id = c.instrument_id AND d.open_time = c.chunk_start
WHERE c.timeframe = 60 AND c.archived_rows > 0 AND d.minutes IS DISTINCT FROM c.row_count
  -- Where minutes are written that no refresh may reach, readers do not ask the aggregate.
  AND NOT EXISTS (SELECT FROM aggregates_due a
                  WHERE a.instrument_id = c.instrument_id AND a.interval_start < c.chunk_start + INTERVAL '1 day'
                    AND a.interval_end > c.chunk_start);

-- name: add_aggregate_due
-- Minutes of (instrument, start, end) have changed since the aggregates were last refreshed.
INSERT INTO aggregates_due (instrument_id, interval_start, interval_end) VALUES ($1, $2, $3);

-- name: read_aggregates_due
-- Where aggregates of (instrument, start, end) may be older than the minutes.
SELECT interval_start, interval_end FROM aggregates_due
WHERE instrument_id = $1 AND interval_end > $2 AND interval_start < $3;

-- name: list_aggregates_due
-- Everything that waits for a refresh, oldest first, as far as a refresh may go back: before the last drop it would
-- find no minutes and erase what the aggregates have. Readers take those minutes as they are, for good.
SELECT a.due_id, greatest(a.interval_start, d.horizon) AS interval_start, a.interval_end
FROM aggregates_due a
CROSS JOIN (SELECT coalesce(max(dropped_before), '-infinity') AS horizon FROM candle_drops) d
WHERE a.interval_end > d.horizon
ORDER BY a.due_id;

-- name: delete_aggregates_due
-- What was refreshed after these entries (ids) were read; what lies before the last drop was not.
WITH horizon AS (SELECT coalesce(max(dropped_before), '-infinity') AS instant FROM candle_drops),
     cut AS (UPDATE aggregates_due SET interval_end = instant FROM horizon
             WHERE due_id = ANY($1::bigint[]) AND interval_start < instant AND interval_end > instant)
DELETE FROM aggregates_due USING horizon WHERE due_id = ANY($1::bigint[]) AND interval_start >= instant;

-- name: hold_refresh
-- Candles are not dropped while somebody refreshes; many may refresh at once. Outside a transaction.
SELECT pg_advisory_lock_shared(hashtext('chandlery refresh'));

-- name: drop_horizon
-- Before this instant no aggregate may be refreshed.
SELECT coalesce(max(dropped_before), '-infinity') FROM candle_drops;

-- name: mark_in_compressed
-- Count the corrections of (instrument, timeframe, start, end) that were just made, at (replaced at), in chunks that
-- had been compressed before.
UPDATE candle_corrections k SET in_compressed = true
FROM timescaledb_information.chunks c
WHERE c.hypertable_schema = current_schema() AND c.hypertable_name = 'candles' AND c.is_compressed
  AND c.range_start < $4 AND c.range_end > $3
  AND k.instrument_id = $1 AND k.timeframe = $2 AND k.open_time >= $3 AND k.open_time < $4 AND k.replaced_at = $5
  AND k.open_time >= c.range_start AND k.open_time < c.range_end;

-- name: refresh_aggregate
-- Bring what has changed in (view, start, end) up to its base; outside a transaction.
CALL refresh_continuous_aggregate($1::text::regclass, $2::timestamptz, $3::timestamptz);

-- name: left_undone
-- Whether a refresh of (view, start, end) that came to its end has left out something: TimescaleDB 2.28 forgets the last
-- of several buckets at times, and makes up for it the next time (https://github.com/timescale/timescaledb/issues/10219).
SELECT EXISTS (
    SELECT FROM _timescaledb_catalog.continuous_aggs_materialization_invalidation_log l
    JOIN _timescaledb_catalog.continuous_agg a ON a.mat_hypertable_id = l.materialization_id
    WHERE format('%I.%I', a.user_view_schema, a.user_view_name)::regclass = $1::text::regclass
      AND l.greatest_modified_value >= _timescaledb_functions.to_unix_microseconds($2::timestamptz)
      AND l.lowest_modified_value < _timescaledb_functions.to_unix_microseconds($3::timestamptz));

-- name: allow_decompression
-- A late correction may touch many compressed rows. Its plan has to know which: one made for any arguments decompresses
-- every chunk there is, of all series.
SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0;
SET LOCAL plan_cache_mode = force_custom_plan;
