-- What operating a database over years asks and does. The second half is for TimescaleDB only.

-- name: bounded_waits
-- In a transaction that may take long: no limit for a statement, and (milliseconds, as text) for a lock.
SELECT set_config('statement_timeout', '0', true), set_config('timezone', 'UTC', true),
       set_config('lock_timeout', $1, true);

-- name: partitions
-- The monthly partitions of each partitioned table, and how many rows its default one holds.
SELECT p.relname AS parent, count(*) FILTER (WHERE c.relname ~ '_[0-9]{4}_[0-9]{2}$') AS partitions,
       min(right(c.relname, 7)) FILTER (WHERE c.relname ~ '_[0-9]{4}_[0-9]{2}$') AS first_month,
       max(right(c.relname, 7)) FILTER (WHERE c.relname ~ '_[0-9]{4}_[0-9]{2}$') AS last_month
FROM pg_class p
JOIN pg_inherits i ON i.inhparent = p.oid
JOIN pg_class c ON c.oid = i.inhrelid
WHERE p.relkind = 'p' AND p.relnamespace = current_schema()::regnamespace
GROUP BY p.relname
ORDER BY p.relname COLLATE "C";

-- name: waiting_rows
-- Rows that wait in the default partitions for partitions of their own.
SELECT 'candles' AS parent, count(*) FROM candles_default
UNION ALL SELECT 'trade_history', count(*) FROM trade_history_default
UNION ALL SELECT 'system_metrics', count(*) FROM system_metrics_default;

-- name: empty_default
-- Move the oldest month of the default partition of (table, time column) into a partition; how many were made.
SELECT empty_default_partition($1, $2);

-- name: drop_partitions
-- Drop the partitions of (table, time column) whose month ends at (instant) or earlier; how many.
SELECT drop_monthly_partitions($1, $2, $3);

-- name: analyze_small_tables
-- Facts for the planner about the tables that are joined to candles.
ANALYZE instruments, series, coverage, candle_chunks, candle_corrections;

-- name: analyze_candles
-- Facts about a table with partitions, which no automatic ANALYZE looks at as a whole.
ANALYZE candles;

-- name: hold_series
-- Nobody writes a candle until the transaction ends; readers go on.
LOCK TABLE series IN EXCLUSIVE MODE;

-- name: wait_for_refreshes
-- Nobody refreshes an aggregate until the transaction ends.
SELECT pg_advisory_xact_lock(hashtext('chandlery refresh'));

-- name: series_with_candles
-- The series with candles before (instant) that are still in the database.
SELECT i.exchange, i.symbol, s.timeframe FROM series s
JOIN instruments i USING (instrument_id)
WHERE EXISTS (SELECT FROM candle_chunks c
              WHERE c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe AND c.chunk_start < $1
                AND c.row_count > c.archived_rows)
ORDER BY i.exchange COLLATE "C", i.symbol COLLATE "C", s.timeframe;

-- name: count_candles_before
-- Candles in the table before (instant), and as many as their digests speak of.
SELECT (SELECT count(*) FROM candles WHERE open_time < $1),
       (SELECT coalesce(sum(row_count - archived_rows), 0)::bigint FROM candle_chunks WHERE chunk_start < $1);

-- name: mark_archived
-- The rows of the chunks of (instrument, timeframe) that start before (instant) are in the archive alone.
UPDATE candle_chunks SET archived_rows = row_count, archived_digest = digest, unverified = 0
WHERE instrument_id = $1 AND timeframe = $2 AND chunk_start < $3 AND row_count > archived_rows;

-- name: save_drop
-- Candles before (instant) were dropped at (instant): how many (rows), and in which (archive) they are.
INSERT INTO candle_drops (dropped_before, dropped_at, row_count, archive) VALUES ($1, $2, $3, $4)
ON CONFLICT (dropped_before) DO UPDATE SET dropped_at = excluded.dropped_at, archive = excluded.archive,
    row_count = candle_drops.row_count + excluded.row_count;

-- name: drops
-- What was dropped, oldest first.
SELECT dropped_before, dropped_at, row_count, archive FROM candle_drops ORDER BY dropped_before;

-- name: archived_candles
-- How many candles are in the archive alone.
SELECT coalesce(sum(archived_rows), 0)::bigint FROM candle_chunks;

-- name: size
-- Bytes of the whole database.
SELECT pg_database_size(current_database());

-- name: server_now
-- The server's own clock.
SELECT now();

-- name: extension
-- The version of TimescaleDB in this database.
SELECT extversion FROM pg_extension WHERE extname = 'timescaledb';

-- name: hypertables
-- Chunks of every hypertable, those of the aggregates under the names of their views, and the sizes of what is
-- compressed.
WITH tables AS (
    SELECT hypertable_name::text AS name, false AS aggregate, hypertable_schema, hypertable_name, compression_enabled
    FROM timescaledb_information.hypertables
    UNION ALL
    SELECT view_name::text, true, materialization_hypertable_schema, materialization_hypertable_name, false
    FROM timescaledb_information.continuous_aggregates)
SELECT h.name, h.aggregate, count(c.chunk_name) AS chunks, count(*) FILTER (WHERE c.is_compressed) AS compressed,
       min(c.range_start) AS first, max(c.range_end) AS last,
       (SELECT extract(epoch FROM max(d.time_interval))::bigint FROM timescaledb_information.dimensions d
        WHERE (d.hypertable_schema, d.hypertable_name) = (h.hypertable_schema, h.hypertable_name)) AS chunk_seconds,
       max(s.before_compression_total_bytes) AS before_bytes, max(s.after_compression_total_bytes) AS after_bytes
FROM tables h
LEFT JOIN timescaledb_information.chunks c
    ON (c.hypertable_schema, c.hypertable_name) = (h.hypertable_schema, h.hypertable_name)
LEFT JOIN LATERAL hypertable_compression_stats(format('%I.%I', h.hypertable_schema, h.hypertable_name)::regclass) s
    ON h.compression_enabled
GROUP BY h.name, h.aggregate, h.hypertable_schema, h.hypertable_name
ORDER BY h.aggregate, h.name COLLATE "C";

-- name: jobs
-- The policies of this database and how their runs went.
SELECT j.job_id, j.proc_name::text, j.hypertable_name::text AS target,
       extract(epoch FROM j.schedule_interval)::bigint AS every_seconds, j.scheduled, j.config::text AS config,
       s.last_run_started_at AS last_run, s.last_run_status AS last_status, s.next_start,
       coalesce(s.total_runs, 0) AS runs, coalesce(s.total_failures, 0) AS failures
FROM timescaledb_information.jobs j
LEFT JOIN timescaledb_information.job_stats s USING (job_id)
WHERE j.hypertable_name IS NOT NULL
ORDER BY j.job_id;

-- name: due
-- What waits for a refresh, by instrument; `kept` where it lies before the last drop and is never refreshed.
SELECT i.exchange, i.symbol, a.interval_start, a.interval_end,
       a.interval_end <= (SELECT coalesce(max(dropped_before), '-infinity') FROM candle_drops) AS kept
FROM aggregates_due a JOIN instruments i USING (instrument_id)
ORDER BY i.exchange COLLATE "C", i.symbol COLLATE "C", a.interval_start;

-- name: late_corrections
-- Corrections of candles whose chunk had been compressed already.
SELECT count(*) FROM candle_corrections WHERE in_compressed;

-- name: refresh_reach
-- How far back the policies of the aggregates refresh; at -infinity where one has no limit.
SELECT min(CASE WHEN config ->> 'start_offset' IS NULL THEN '-infinity'
                ELSE now() - (config ->> 'start_offset')::interval END)
FROM timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate';

-- name: due_before
-- The part of the aggregates that waits for a refresh between the last drop and (instant).
SELECT i.exchange, i.symbol, greatest(a.interval_start, d.horizon), least(a.interval_end, $1)
FROM aggregates_due a
JOIN instruments i USING (instrument_id)
CROSS JOIN (SELECT coalesce(max(dropped_before), '-infinity') AS horizon FROM candle_drops) d
WHERE a.interval_start < $1 AND a.interval_end > d.horizon
ORDER BY 1, 2, 3;

-- name: drop_chunks
-- Drop every chunk of candles that ends at (instant) or earlier; how many.
SELECT count(*) FROM drop_chunks('candles', older_than => $1::timestamptz);

-- name: delete_candles_before
-- The candles before (instant) in a chunk that reaches beyond it.
DELETE FROM candles WHERE open_time < $1;

-- name: chunk_seconds
-- How long a new chunk of candles is.
SELECT extract(epoch FROM time_interval)::bigint FROM timescaledb_information.dimensions
WHERE hypertable_schema = current_schema() AND hypertable_name = 'candles';

-- name: set_chunk_days
-- New chunks of candles are so long (days).
SELECT set_chunk_time_interval('candles', make_interval(days => $1));

-- name: compress_after_seconds
-- The age at which candles are compressed; null where no policy does so.
SELECT extract(epoch FROM (config ->> 'compress_after')::interval)::bigint FROM timescaledb_information.jobs
WHERE hypertable_schema = current_schema() AND hypertable_name = 'candles' AND proc_name = 'policy_compression';

-- name: remove_compression_policy
-- Candles are compressed by no policy.
SELECT remove_compression_policy('candles', if_exists => true);

-- name: add_compression_policy
-- Candles older than that (days) are compressed.
SELECT add_compression_policy('candles', compress_after => make_interval(days => $1));

-- name: hold_rules
-- One at a time changes the settings of the hypertable, until its transaction ends.
SELECT pg_advisory_xact_lock(hashtext('chandlery rules'));

-- name: chunks_to_compress
-- Chunks of candles that end before (instant) and are not compressed, or not wholly, oldest first.
SELECT format('%I.%I', c.chunk_schema, c.chunk_name) FROM timescaledb_information.chunks c
WHERE c.hypertable_schema = current_schema() AND c.hypertable_name = 'candles' AND c.range_end <= $1
  AND (NOT c.is_compressed
       OR 'PARTIAL' = ANY(_timescaledb_functions.chunk_status_text(
              format('%I.%I', c.chunk_schema, c.chunk_name)::regclass)))
ORDER BY c.range_start;

-- name: compress_chunk
-- Compress (chunk), or what was written into it since.
SELECT compress_chunk($1::text::regclass, if_not_compressed => true);
