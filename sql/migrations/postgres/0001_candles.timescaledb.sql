-- Hypertables, compression, continuous aggregates and their policies.

SELECT create_hypertable('candles', by_range('open_time', INTERVAL '1 day'), create_default_indexes => false);
ALTER TABLE candles SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'instrument_id, timeframe',
    timescaledb.compress_orderby = 'open_time'
);
SELECT add_compression_policy('candles', compress_after => INTERVAL '7 days');

SELECT create_hypertable('trade_history', by_range('event_time', INTERVAL '1 hour'), create_default_indexes => false);
ALTER TABLE trade_history SET (
    timescaledb.compress,
    timescaledb.compress_segmentby = 'instrument_id',
    timescaledb.compress_orderby = 'event_time, trade_id'
);
SELECT add_compression_policy('trade_history', compress_after => INTERVAL '1 day');
SELECT add_retention_policy('trade_history', drop_after => INTERVAL '90 days');

SELECT create_hypertable('system_metrics', by_range('time', INTERVAL '1 hour'), create_default_indexes => false);

-- Intervals whose minutes changed after the aggregates were last refreshed. Written with the candles, in one
-- transaction; a reader takes these minutes from `candles`, so no aggregate is ever served stale.
CREATE TABLE aggregates_due (
    due_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instrument_id  integer NOT NULL,
    interval_start timestamptz NOT NULL,
    interval_end   timestamptz NOT NULL,
    CHECK (interval_start < interval_end)
);
CREATE INDEX aggregates_due_by_instrument ON aggregates_due (instrument_id, interval_end);

-- Larger candles from stored minutes, by the exchange's own rule: a minute without trades gives nothing to open,
-- high, low or close unless the whole window is such minutes. Quantities are added as decimals (numeric), because
-- a float sum is not the number the exchange publishes; by way of text, because a float turned into numeric at once
-- is cut to 15 digits. What one minute does not know, its window does not know.
-- Materialized only: an aggregate on an aggregate that also looks at its base cannot leave out any chunk of that base,
-- so that a day of hours would read all minutes there are, and so would every refresh.
CREATE MATERIALIZED VIEW candles_5m WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '5 minutes', open_time) AS open_time,
       coalesce(first(open, open_time) FILTER (WHERE coalesce(trades > 0, volume > 0)), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE coalesce(trades > 0, volume > 0)), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE coalesce(trades > 0, volume > 0)), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE coalesce(trades > 0, volume > 0)), last(close, open_time)) AS close,
       sum(volume::text::numeric) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume::text::numeric) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume::text::numeric) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume::text::numeric) END
           AS taker_buy_quote_volume,
       last(early_close_time, open_time) AS early_close_time,
       bool_or(coalesce(trades > 0, volume > 0)) AS traded,
       count(*) AS minutes
FROM candles
WHERE timeframe = 60
GROUP BY instrument_id, time_bucket(INTERVAL '5 minutes', open_time)
WITH NO DATA;

CREATE MATERIALIZED VIEW candles_15m WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '15 minutes', open_time) AS open_time,
       coalesce(first(open, open_time) FILTER (WHERE traded), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE traded), last(close, open_time)) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       last(early_close_time, open_time) AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_5m
GROUP BY instrument_id, time_bucket(INTERVAL '15 minutes', open_time)
WITH NO DATA;

CREATE MATERIALIZED VIEW candles_1h WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '1 hour', open_time) AS open_time,
       coalesce(first(open, open_time) FILTER (WHERE traded), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE traded), last(close, open_time)) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       last(early_close_time, open_time) AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_15m
GROUP BY instrument_id, time_bucket(INTERVAL '1 hour', open_time)
WITH NO DATA;

CREATE MATERIALIZED VIEW candles_4h WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '4 hours', open_time) AS open_time,
       coalesce(first(open, open_time) FILTER (WHERE traded), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE traded), last(close, open_time)) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       last(early_close_time, open_time) AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_1h
GROUP BY instrument_id, time_bucket(INTERVAL '4 hours', open_time)
WITH NO DATA;

CREATE MATERIALIZED VIEW candles_1d WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '1 day', open_time) AS open_time,
       coalesce(first(open, open_time) FILTER (WHERE traded), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE traded), last(close, open_time)) AS close,
       sum(volume) AS volume,
       CASE WHEN count(quote_volume) = count(*) THEN sum(quote_volume) END AS quote_volume,
       CASE WHEN count(trades) = count(*) THEN sum(trades)::bigint END AS trades,
       CASE WHEN count(taker_buy_volume) = count(*) THEN sum(taker_buy_volume) END AS taker_buy_volume,
       CASE WHEN count(taker_buy_quote_volume) = count(*) THEN sum(taker_buy_quote_volume) END
           AS taker_buy_quote_volume,
       last(early_close_time, open_time) AS early_close_time,
       bool_or(traded) AS traded,
       sum(minutes)::bigint AS minutes
FROM candles_4h
GROUP BY instrument_id, time_bucket(INTERVAL '1 day', open_time)
WITH NO DATA;

-- What traded in a day, hour by hour: for screeners and reports.
CREATE MATERIALIZED VIEW daily_statistics WITH (timescaledb.continuous, timescaledb.materialized_only = true) AS
SELECT instrument_id,
       time_bucket(INTERVAL '1 day', open_time) AS day,
       coalesce(first(open, open_time) FILTER (WHERE traded), first(open, open_time)) AS open,
       coalesce(max(high) FILTER (WHERE traded), max(high)) AS high,
       coalesce(min(low) FILTER (WHERE traded), min(low)) AS low,
       coalesce(last(close, open_time) FILTER (WHERE traded), last(close, open_time)) AS close,
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
GROUP BY instrument_id, time_bucket(INTERVAL '1 day', open_time)
WITH NO DATA;

-- A safety net and what keeps the newest buckets current for those who read the aggregates by SQL: what a backfill
-- touches further back is refreshed right after it.
SELECT add_continuous_aggregate_policy('candles_5m', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '5 minutes', schedule_interval => INTERVAL '5 minutes');
SELECT add_continuous_aggregate_policy('candles_15m', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '15 minutes', schedule_interval => INTERVAL '15 minutes');
SELECT add_continuous_aggregate_policy('candles_1h', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '1 hour', schedule_interval => INTERVAL '1 hour');
SELECT add_continuous_aggregate_policy('candles_4h', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '4 hours', schedule_interval => INTERVAL '1 hour');
SELECT add_continuous_aggregate_policy('candles_1d', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '1 day', schedule_interval => INTERVAL '1 hour');
SELECT add_continuous_aggregate_policy('daily_statistics', start_offset => INTERVAL '7 days',
    end_offset => INTERVAL '1 day', schedule_interval => INTERVAL '1 hour');
