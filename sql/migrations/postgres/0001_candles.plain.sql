-- Monthly partitions, and the larger candles as views.

-- Each table becomes the default partition of a partitioned one: a row for a month that has no partition is not lost.
ALTER TABLE candles RENAME TO candles_default;
ALTER INDEX candles_pkey RENAME TO candles_default_pkey;
CREATE TABLE candles (LIKE candles_default INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
                      PRIMARY KEY (instrument_id, timeframe, open_time)) PARTITION BY RANGE (open_time);
ALTER TABLE candles ATTACH PARTITION candles_default DEFAULT;

ALTER TABLE trade_history RENAME TO trade_history_default;
ALTER INDEX trade_history_pkey RENAME TO trade_history_default_pkey;
CREATE TABLE trade_history (LIKE trade_history_default INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
                            PRIMARY KEY (instrument_id, event_time, trade_id)) PARTITION BY RANGE (event_time);
ALTER TABLE trade_history ATTACH PARTITION trade_history_default DEFAULT;

ALTER TABLE system_metrics RENAME TO system_metrics_default;
ALTER INDEX system_metrics_by_name RENAME TO system_metrics_default_by_name;
CREATE TABLE system_metrics (LIKE system_metrics_default INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
    PARTITION BY RANGE ("time");
ALTER TABLE system_metrics ATTACH PARTITION system_metrics_default DEFAULT;
CREATE INDEX system_metrics_by_name ON system_metrics (metric_name, "time" DESC);

-- Makes the partitions of the months that `instants` lie in, where they are not there yet, and moves into them what
-- the default partition holds of these months. Returns how many it made. Safe to call from several sessions at once.
CREATE FUNCTION make_monthly_partitions(parent text, time_column text, instants timestamptz[]) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
    month     timestamp;
    first_one timestamptz;
    following timestamptz;
    partition text;
    made      integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('chandlery partitions'), hashtext(parent));
    FOR month IN SELECT DISTINCT date_trunc('month', t AT TIME ZONE 'UTC') FROM unnest(instants) t ORDER BY 1 LOOP
        partition := format('%s_%s', parent, to_char(month, 'YYYY_MM'));
        CONTINUE WHEN to_regclass(partition) IS NOT NULL;
        first_one := month AT TIME ZONE 'UTC';
        following := (month + INTERVAL '1 month') AT TIME ZONE 'UTC';
        -- Before the rows are looked at: one that arrives meanwhile would be in the way of the partition.
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent || '_default');
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)',
                       partition, parent);
        EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= $1 AND %I < $2 RETURNING *) '
                       'INSERT INTO %I SELECT * FROM moved',
                       parent || '_default', time_column, time_column, partition) USING first_one, following;
        -- Attached and not made as a partition: readers of other months are not held up.
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       parent, partition, first_one, following);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$body$;

-- Moves what the default partition holds into partitions of its months, of the oldest month first. Returns how many
-- partitions it made, none or one: each month is a transaction of its own for who calls it until it returns none.
CREATE FUNCTION empty_default_partition(parent text, time_column text) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
    oldest timestamptz;
BEGIN
    -- Before the rows are looked at: two who both look, and then both want the partition for themselves, never get it.
    PERFORM pg_advisory_xact_lock(hashtext('chandlery partitions'), hashtext(parent));
    EXECUTE format('SELECT min(%I) FROM %I WHERE isfinite(%I)', time_column, parent || '_default', time_column)
        INTO oldest;
    RETURN CASE WHEN oldest IS NULL THEN 0 ELSE make_monthly_partitions(parent, time_column, ARRAY[oldest]) END;
END
$body$;

-- Drops the partitions of the months that end at `before` or earlier, and such rows of the default partition. Rows of
-- the month that `before` lies in stay. Returns how many partitions it dropped.
CREATE FUNCTION drop_monthly_partitions(parent text, time_column text, before timestamptz) RETURNS integer
LANGUAGE plpgsql AS $body$
DECLARE
    first_kept text := format('%s_%s', parent, to_char(before AT TIME ZONE 'UTC', 'YYYY_MM'));
    partition  text;
    dropped    integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('chandlery partitions'), hashtext(parent));
    FOR partition IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = to_regclass(parent) AND c.relname ~ '_[0-9]{4}_[0-9]{2}$'
          AND c.relname COLLATE "C" < first_kept COLLATE "C"
        ORDER BY c.relname COLLATE "C"
    LOOP
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, partition);
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    EXECUTE format('DELETE FROM %I WHERE %I < $1', parent || '_default', time_column)
        USING date_trunc('month', before AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    RETURN dropped;
END
$body$;

-- Larger candles from stored minutes, by the exchange's own rule: a minute without trades gives nothing to open,
-- high, low or close unless the whole window is such minutes. Quantities are added as decimals (numeric), because
-- a float sum is not the number the exchange publishes; by way of text, because a float turned into numeric at once
-- is cut to 15 digits. What one minute does not know, its window does not know.

CREATE VIEW candles_5m AS
SELECT instrument_id,
       date_bin(INTERVAL '5 minutes', open_time, 'epoch') AS open_time,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE coalesce(trades > 0, volume > 0)))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE coalesce(trades > 0, volume > 0)), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE coalesce(trades > 0, volume > 0)), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE coalesce(trades > 0, volume > 0)))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume::text::numeric) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume::text::numeric) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume::text::numeric) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume::text::numeric) END
           AS taker_buy_quote_volume,
       (array_agg(early_close_time ORDER BY open_time DESC))[1] AS early_close_time,
       bool_or(coalesce(trades > 0, volume > 0)) AS traded,
       count(*) AS minutes
FROM candles
WHERE timeframe = 60
GROUP BY instrument_id, date_bin(INTERVAL '5 minutes', open_time, 'epoch');

CREATE VIEW candles_15m AS
SELECT instrument_id,
       date_bin(INTERVAL '15 minutes', open_time, 'epoch') AS open_time,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE traded))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE traded))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       (array_agg(early_close_time ORDER BY open_time DESC))[1] AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_5m
GROUP BY instrument_id, date_bin(INTERVAL '15 minutes', open_time, 'epoch');

CREATE VIEW candles_1h AS
SELECT instrument_id,
       date_bin(INTERVAL '1 hour', open_time, 'epoch') AS open_time,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE traded))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE traded))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       (array_agg(early_close_time ORDER BY open_time DESC))[1] AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_15m
GROUP BY instrument_id, date_bin(INTERVAL '1 hour', open_time, 'epoch');

CREATE VIEW candles_4h AS
SELECT instrument_id,
       date_bin(INTERVAL '4 hours', open_time, 'epoch') AS open_time,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE traded))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE traded))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       (array_agg(early_close_time ORDER BY open_time DESC))[1] AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_1h
GROUP BY instrument_id, date_bin(INTERVAL '4 hours', open_time, 'epoch');

CREATE VIEW candles_1d AS
SELECT instrument_id,
       date_bin(INTERVAL '1 day', open_time, 'epoch') AS open_time,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE traded))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE traded))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       (array_agg(early_close_time ORDER BY open_time DESC))[1] AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_4h
GROUP BY instrument_id, date_bin(INTERVAL '1 day', open_time, 'epoch');

-- What traded in a day, hour by hour: for screeners and reports.
CREATE VIEW daily_statistics AS
SELECT instrument_id,
       date_bin(INTERVAL '1 day', open_time, 'epoch') AS day,
       coalesce((array_agg(open ORDER BY open_time) FILTER (WHERE traded))[1],
                (array_agg(open ORDER BY open_time))[1]) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce((array_agg(close ORDER BY open_time DESC) FILTER (WHERE traded))[1],
                (array_agg(close ORDER BY open_time DESC))[1]) AS close,
       sum(volume) AS volume,
       sum(quote_volume) AS quote_volume,
       sum(quote_volume) / nullif(sum(volume), 0) AS average_price,
       sum(trades)::bigint AS trades,
       sum(taker_buy_volume) AS taker_buy_volume,
       max(volume) AS busiest_hour_volume,
       -- One row with an absurd price must not stop everybody's statistics with an overflow.
       max(high / low - 1) FILTER (WHERE low > 1e-100 AND high < 1e100) AS widest_hour_range,
       count(*) FILTER (WHERE traded) AS traded_hours,
       sum(minutes)::bigint AS minutes
FROM candles_1h
GROUP BY instrument_id, date_bin(INTERVAL '1 day', open_time, 'epoch');
