-- Parameters are numbered in the order in which each sentence names them. Instants are timestamptz.
-- The queries that read candles leave by COPY. What is unknown is NaN, -1 or -infinity there, so that all rows have one
-- length; four numbers travel as one line segment (two points), because each field costs the server as much to send
-- as its content: a quarter of the time less than eleven columns (`python -m bench.postgres`).

-- name: find_series
-- The keys, revision and origin of the series (exchange, symbol, timeframe); null keys where it is not stored.
SELECT i.instrument_id, s.revision, s.last_write, i.listed_at
FROM instruments i
LEFT JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = $3
WHERE i.exchange = $1 AND i.symbol = $2;

-- name: find_all_series
-- What find_series tells, of each of (exchanges, symbols, timeframes), side by side.
SELECT named.exchange, named.symbol, named.timeframe, i.instrument_id, s.revision, s.last_write, i.listed_at
FROM unnest($1::text[], $2::text[], $3::integer[]) AS named (exchange, symbol, timeframe)
LEFT JOIN instruments i ON i.exchange = named.exchange AND i.symbol = named.symbol
LEFT JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = named.timeframe;

-- name: lock_series
-- Hold each series of (instruments, timeframes) until the transaction ends: one writer a series. In one order, so that
-- two who write the same do not wait for each other in a circle.
SELECT s.revision
FROM unnest($1::integer[], $2::integer[]) AS held (instrument_id, timeframe)
JOIN series s USING (instrument_id, timeframe)
ORDER BY s.instrument_id, s.timeframe
FOR UPDATE OF s;

-- name: name_instrument
-- Remember an instrument by its name alone (exchange, symbol, exchange_symbol, base, quote, kind); what is known stays.
INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, active)
VALUES ($1, $2, $3, $4, $5, $6, true)
ON CONFLICT (exchange, symbol) DO NOTHING;

-- name: save_instrument
-- Keep what the exchange says of an instrument (in the order of the columns).
INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional,
                         active, listed_at, seen_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (exchange, symbol) DO UPDATE SET
    exchange_symbol = excluded.exchange_symbol, base = excluded.base, quote = excluded.quote, kind = excluded.kind,
    tick_size = excluded.tick_size, lot_size = excluded.lot_size, min_notional = excluded.min_notional,
    active = excluded.active, listed_at = coalesce(excluded.listed_at, instruments.listed_at),
    seen_at = excluded.seen_at;

-- name: list_instruments
-- Instruments by exchange and symbol; of (exchange), or of all exchanges where it is null.
SELECT exchange, symbol, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments
WHERE $1::text IS NULL OR exchange = $1
ORDER BY exchange COLLATE "C", symbol COLLATE "C";

-- name: add_series
-- Make a series (instrument, timeframe) known.
INSERT INTO series (instrument_id, timeframe) VALUES ($1, $2)
ON CONFLICT DO NOTHING;

-- name: touch_series
-- One more revision of the series (instrument, timeframe), at this instant.
UPDATE series SET revision = revision + 1, last_write = $3 WHERE instrument_id = $1 AND timeframe = $2;

-- name: list_series
-- Every series with its counts and bounds; what is known of its coverage at (now). The sums are small, because
-- chunks are counted and not rows, and the ledger knows the first and the last candle: a look into `candles` would
-- have to open every partition.
SELECT i.exchange, i.symbol, s.timeframe, s.revision, s.last_write, s.instrument_id,
       (SELECT coalesce(sum(c.row_count), 0)::bigint FROM candle_chunks c
        WHERE c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe) AS row_count,
       known.first_open,
       CASE s.timeframe WHEN 2592000 THEN (known.last_end AT TIME ZONE 'UTC' - INTERVAL '1 month') AT TIME ZONE 'UTC'
                        ELSE known.last_end - s.timeframe * INTERVAL '1 second' END AS last_open,
       (SELECT count(*) FROM candle_corrections c
        WHERE c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe) AS corrections,
       (SELECT count(*) FROM quarantine q
        WHERE q.instrument_id = s.instrument_id AND q.timeframe = s.timeframe) AS quarantined,
       ARRAY(SELECT DISTINCT l.source COLLATE "C" FROM coverage l
             WHERE l.instrument_id = s.instrument_id AND l.timeframe = s.timeframe ORDER BY 1) AS sources,
       known.first_instant, known.last_instant, known.known_ms, known.empty_ms, known.archived_from,
       known.archived_to
FROM series s
JOIN instruments i USING (instrument_id)
CROSS JOIN LATERAL (
    SELECT min(l.interval_start) AS first_instant, max(l.interval_end) AS last_instant,
           min(l.interval_start) FILTER (WHERE l.state = 'present') AS first_open,
           max(l.interval_end) FILTER (WHERE l.state = 'present') AS last_end,
           coalesce(sum(extract(epoch FROM l.interval_end - l.interval_start) * 1000)
                    FILTER (WHERE l.expires_at IS NULL OR l.expires_at > $1), 0)::bigint AS known_ms,
           coalesce(sum(extract(epoch FROM l.interval_end - l.interval_start) * 1000)
                    FILTER (WHERE l.state = 'verified_empty'), 0)::bigint AS empty_ms,
           min(l.interval_start) FILTER (WHERE l.state = 'archived') AS archived_from,
           max(l.interval_end) FILTER (WHERE l.state = 'archived') AS archived_to
    FROM coverage l WHERE l.instrument_id = s.instrument_id AND l.timeframe = s.timeframe) known
ORDER BY i.exchange COLLATE "C", i.symbol COLLATE "C", s.timeframe;

-- name: count_all
-- Series and candles in the whole store.
SELECT (SELECT count(*) FROM series), (SELECT coalesce(sum(row_count), 0)::bigint FROM candle_chunks);

-- name: first_open
-- Open time of the first candle of the series (instrument, timeframe), here or in the archive.
SELECT interval_start FROM coverage
WHERE instrument_id = $1 AND timeframe = $2 AND state IN ('present', 'archived')
ORDER BY interval_start
LIMIT 1;

-- name: newest_bound
-- Before (end), the candles of (instrument, timeframe) from here on are (count) at least; null where there are fewer.
-- A chunk's start. The newest chunk counts for nothing: it may reach beyond the end.
SELECT chunk_start FROM (
    SELECT chunk_start, sum(row_count) OVER counted - first_value(row_count) OVER counted AS row_count
    FROM candle_chunks
    WHERE instrument_id = $1 AND timeframe = $2 AND chunk_start < $3
    WINDOW counted AS (ORDER BY chunk_start DESC ROWS UNBOUNDED PRECEDING)) counts
WHERE row_count >= $4
ORDER BY chunk_start DESC
LIMIT 1;

-- name: oldest_bound
-- From (start) on, the candles of (instrument, timeframe) up to here are (count) at least; null where there are fewer.
-- A chunk's start.
SELECT chunk_start FROM (
    SELECT chunk_start, sum(row_count) OVER counted - row_count AS row_count
    FROM candle_chunks
    WHERE instrument_id = $1 AND timeframe = $2 AND chunk_start >= $3
    WINDOW counted AS (ORDER BY chunk_start ROWS UNBOUNDED PRECEDING)) counts
WHERE row_count >= $4
ORDER BY chunk_start
LIMIT 1;

-- name: read_candles
-- Candles of (instrument, timeframe, start, end), oldest first, at most (limit) where that is not null.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume, coalesce(quote_volume, 'NaN')),
            point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles
WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
ORDER BY open_time
LIMIT $5;

-- name: read_newest_candles
-- The last (limit) candles of (instrument, timeframe, start, end), newest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume, coalesce(quote_volume, 'NaN')),
            point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
FROM candles
WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
ORDER BY open_time DESC
LIMIT $5;

-- name: read_candles_as_of
-- Candles of (instrument, timeframe, start, end), oldest first, at most (limit), as known (as of): no more
-- of either half can be among them.
SELECT * FROM (
    (SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
            lseg(point(volume, coalesce(quote_volume, 'NaN')),
                 point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
            coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
     FROM candles
     WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
       AND learned_at <= $6
     ORDER BY open_time
     LIMIT $5)
    UNION ALL
    (SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
            lseg(point(volume, coalesce(quote_volume, 'NaN')),
                 point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
            coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
     FROM candle_corrections
     WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
       AND learned_at <= $6 AND replaced_at > $6
     ORDER BY open_time
     LIMIT $5)) versions
ORDER BY open_time
LIMIT $5;

-- name: read_newest_candles_as_of
-- The last (limit) candles of (instrument, timeframe, start, end), newest first, as known (as of): no more
-- of either half can be among them.
SELECT * FROM (
    (SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
            lseg(point(volume, coalesce(quote_volume, 'NaN')),
                 point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
            coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
     FROM candles
     WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
       AND learned_at <= $6
     ORDER BY open_time DESC
     LIMIT $5)
    UNION ALL
    (SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
            lseg(point(volume, coalesce(quote_volume, 'NaN')),
                 point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
            coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time
     FROM candle_corrections
     WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
       AND learned_at <= $6 AND replaced_at > $6
     ORDER BY open_time DESC
     LIMIT $5)) versions
ORDER BY open_time DESC
LIMIT $5;

-- name: read_candles_with_states
-- Candles of (instrument, timeframe, start, end) and their states, oldest first.
SELECT open_time, lseg(point(open, high), point(low, close)) AS prices,
       lseg(point(volume, coalesce(quote_volume, 'NaN')),
            point(coalesce(taker_buy_volume, 'NaN'), coalesce(taker_buy_quote_volume, 'NaN'))) AS quantities,
       coalesce(trades, -1) AS trades, coalesce(early_close_time, '-infinity') AS early_close_time,
       state
FROM candles
WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4
ORDER BY open_time;

-- name: make_staging
-- Where corrected candles wait for the merge, until the transaction ends.
CREATE TEMPORARY TABLE candle_staging (LIKE candles) ON COMMIT DROP;

-- name: drop_staging
-- Staged rows are in their place; the next batch of the same transaction stages its own.
DROP TABLE candle_staging;

-- name: keep_corrections
-- The versions of (instrument, timeframe, start, end) about to be replaced by staged ones, (replaced at), by (source).
INSERT INTO candle_corrections (instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume,
                                trades, taker_buy_volume, taker_buy_quote_volume, early_close_time, state,
                                learned_at, replaced_at, source)
SELECT c.instrument_id, c.timeframe, c.open_time, c.open, c.high, c.low, c.close, c.volume, c.quote_volume, c.trades,
       c.taker_buy_volume, c.taker_buy_quote_volume, c.early_close_time, c.state, c.learned_at, $5, $6
FROM candles c
JOIN candle_staging s ON s.open_time = c.open_time
WHERE c.instrument_id = $1 AND c.timeframe = $2 AND c.open_time >= $3 AND c.open_time < $4;

-- name: replace_candles
-- Staged versions in the place of the stored ones of (instrument, timeframe, start, end); only after keep_corrections.
UPDATE candles c SET
    open = s.open, high = s.high, low = s.low, close = s.close, volume = s.volume, quote_volume = s.quote_volume,
    trades = s.trades, taker_buy_volume = s.taker_buy_volume, taker_buy_quote_volume = s.taker_buy_quote_volume,
    early_close_time = s.early_close_time, state = s.state, learned_at = s.learned_at
FROM candle_staging s
WHERE s.open_time = c.open_time
  AND c.instrument_id = $1 AND c.timeframe = $2 AND c.open_time >= $3 AND c.open_time < $4;

-- name: raise_state
-- The same values of (instrument, timeframe, start, end) were seen again: (state), nothing a reader sees changes.
UPDATE candles SET state = $5
WHERE instrument_id = $1 AND timeframe = $2 AND open_time >= $3 AND open_time < $4 AND state < $5;

-- name: read_chunks
-- Digests of the chunks of (instrument, timeframe) that start in (start, end).
SELECT chunk_start, row_count, unverified, digest, revision, archived_rows, archived_digest FROM candle_chunks
WHERE instrument_id = $1 AND timeframe = $2 AND chunk_start >= $3 AND chunk_start < $4
ORDER BY chunk_start;

-- name: save_chunk
-- What a chunk holds now (in the order of the columns).
INSERT INTO candle_chunks (instrument_id, timeframe, chunk_start, row_count, unverified, digest, revision)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (instrument_id, timeframe, chunk_start) DO UPDATE SET
    row_count = excluded.row_count, unverified = excluded.unverified, digest = excluded.digest,
    revision = excluded.revision;

-- name: read_coverage
-- Ledger entries of (instrument, timeframe) that overlap or touch (start, end), oldest first.
SELECT interval_start, interval_end, state, source, learned_at, expires_at, evidence FROM coverage
WHERE instrument_id = $1 AND timeframe = $2
  AND interval_start >= coalesce((SELECT max(interval_start) FROM coverage
                                  WHERE instrument_id = $1 AND timeframe = $2 AND interval_start < $3), $3)
  AND interval_start <= $4 AND interval_end >= $3
ORDER BY interval_start;

-- name: coverage_bounds
-- The first and the last instant the ledger of (instrument, timeframe) says anything of.
SELECT (SELECT interval_start FROM coverage WHERE instrument_id = $1 AND timeframe = $2
        ORDER BY interval_start LIMIT 1),
       (SELECT interval_end FROM coverage WHERE instrument_id = $1 AND timeframe = $2
        ORDER BY interval_start DESC LIMIT 1);

-- name: delete_coverage
-- One ledger entry (instrument, timeframe, start), about to be replaced.
DELETE FROM coverage WHERE instrument_id = $1 AND timeframe = $2 AND interval_start = $3;

-- name: insert_coverage
-- One ledger entry (in the order of the columns).
INSERT INTO coverage (instrument_id, timeframe, interval_start, interval_end, state, source, learned_at, expires_at,
                      evidence)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: insert_quarantine
-- A refused row (in the order of the columns); the same one again is not kept twice.
INSERT INTO quarantine (instrument_id, timeframe, open_time, reason, raw, source, learned_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING;

-- name: read_quarantine
-- The newest refused rows of (instrument, timeframe), at most (limit). With equals signs the server may think it faster
-- to go through the refused rows of all series, from the newest one back, which for a sound series is all of them.
SELECT open_time, reason, raw FROM quarantine
WHERE instrument_id BETWEEN $1 AND $1 AND timeframe BETWEEN $2 AND $2
ORDER BY instrument_id DESC, timeframe DESC, quarantine_id DESC
LIMIT $3;

-- name: database_size
-- Bytes of the whole database.
SELECT pg_database_size(current_database());

-- name: make_partitions
-- Make the monthly partitions of (table, time column) that (instants) need; plain PostgreSQL only.
SELECT make_monthly_partitions($1, $2, $3::timestamptz[]);

-- name: count_default_rows
-- Candles that wait in the default partition for one of their own; plain PostgreSQL only.
SELECT count(*) FROM candles_default;

-- name: hold_instruments
-- One at a time says what the instruments of (exchange) are like, until its transaction ends.
SELECT pg_advisory_xact_lock(hashtext('chandlery instruments'), hashtext($1));

-- name: hide_instruments
-- Instruments of (exchange) that its complete list (symbols) does not name are not traded any more.
UPDATE instruments SET active = false WHERE exchange = $1 AND active AND symbol <> ALL ($2::text[]);

-- name: correct_instrument_history
-- What was said of (exchange) at (now), or is dated later because the clock was, is put right in its place.
UPDATE instrument_history h SET
    exchange_symbol = i.exchange_symbol, base = i.base, quote = i.quote, kind = i.kind, tick_size = i.tick_size,
    lot_size = i.lot_size, min_notional = i.min_notional, active = i.active, listed_at = i.listed_at
FROM instruments i
WHERE i.instrument_id = h.instrument_id AND i.exchange = $1 AND i.seen_at IS NOT NULL
  AND h.valid_to IS NULL AND h.valid_from >= $2;

-- name: close_instrument_history
-- What is otherwise of (exchange) than it was said until (now).
UPDATE instrument_history h SET valid_to = $2
FROM instruments i
WHERE i.instrument_id = h.instrument_id AND i.exchange = $1 AND i.seen_at IS NOT NULL
  AND h.valid_to IS NULL AND h.valid_from < $2
  AND (h.exchange_symbol, h.base, h.quote, h.kind, h.tick_size, h.lot_size, h.min_notional, h.active, h.listed_at)
      IS DISTINCT FROM
      (i.exchange_symbol, i.base, i.quote, i.kind, i.tick_size, i.lot_size, i.min_notional, i.active, i.listed_at);

-- name: open_instrument_history
-- What instruments of (exchange) are like from (now) on, where nothing says so yet.
INSERT INTO instrument_history (instrument_id, valid_from, exchange_symbol, base, quote, kind, tick_size, lot_size,
                                min_notional, active, listed_at)
SELECT instrument_id, $2, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments i
WHERE i.exchange = $1 AND i.seen_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM instrument_history h WHERE h.instrument_id = i.instrument_id AND h.valid_to IS NULL);

-- name: list_instruments_as_of
-- Instruments by exchange and symbol as they were known to be; of (exchange), or of all where it is null; (as of).
SELECT i.exchange, i.symbol, h.exchange_symbol, h.base, h.quote, h.kind, h.tick_size, h.lot_size, h.min_notional,
       h.active, h.listed_at
FROM instrument_history h
JOIN instruments i USING (instrument_id)
WHERE ($1::text IS NULL OR i.exchange = $1) AND h.valid_from <= $2 AND (h.valid_to IS NULL OR h.valid_to > $2)
ORDER BY i.exchange COLLATE "C", i.symbol COLLATE "C";

-- name: series_versions
-- What an operator has switched; beside it, of each of (exchanges, symbols, timeframes) that is stored, its place among
-- them, revision and listing, and where three-day candles count from the first one, its open time. One row with nulls
-- where none is.
SELECT c.safety, c.operating, c.reason, c.changed_at, found.*
FROM control c
LEFT JOIN (
    SELECT named.place, s.revision, s.last_write, i.instrument_id, i.listed_at,
           CASE WHEN i.listed_at IS NULL AND s.timeframe = 259200
                THEN (SELECT l.interval_start FROM coverage l
                      WHERE l.instrument_id = s.instrument_id AND l.timeframe = s.timeframe
                        AND l.state IN ('present', 'archived')
                      ORDER BY l.interval_start LIMIT 1) END AS first_open
    FROM unnest($1::text[], $2::text[], $3::integer[]) WITH ORDINALITY AS named (exchange, symbol, timeframe, place)
    JOIN instruments i ON i.exchange = named.exchange AND i.symbol = named.symbol
    JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = named.timeframe) found ON true;

-- name: read_delta
-- Of the series (exchange, symbol, timeframe): its keys, revision and listing, and its first open time where three-day
-- candles count from that; its whole ledger as in read_coverage; and as in read_chunks the digests that changed after
-- (revision). A series has some thousand of these at most, so they are all looked at: an index by revision would be
-- written with every candle.
SELECT i.instrument_id, s.revision, s.last_write, i.listed_at,
       CASE WHEN i.listed_at IS NULL AND s.timeframe = 259200
            THEN (SELECT l.interval_start FROM coverage l
                  WHERE l.instrument_id = s.instrument_id AND l.timeframe = s.timeframe
                    AND l.state IN ('present', 'archived')
                  ORDER BY l.interval_start LIMIT 1) END AS first_open,
       ARRAY(SELECT ROW(l.interval_start, l.interval_end, l.state, l.source, l.learned_at, l.expires_at, l.evidence)
             FROM coverage l
             WHERE l.instrument_id = s.instrument_id AND l.timeframe = s.timeframe
             ORDER BY l.interval_start) AS coverage,
       ARRAY(SELECT ROW(c.chunk_start, c.row_count, c.unverified, c.digest, c.revision, c.archived_rows,
                        c.archived_digest)
             FROM candle_chunks c
             WHERE c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe AND c.revision > $4
             ORDER BY c.chunk_start) AS chunks
FROM instruments i
JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = $3
WHERE i.exchange = $1 AND i.symbol = $2;

-- name: read_control
-- What an operator has switched.
SELECT safety, operating, reason, changed_at FROM control;

-- name: set_control
-- Switch what is not null of (safety, operating), for (reason), at (instant). The reason of a safety state stays until
-- that is set again, or another reason is given.
UPDATE control SET safety = coalesce($1, safety), operating = coalesce($2, operating),
                   reason = CASE WHEN $1 IS NULL AND $3 = '' THEN reason ELSE $3 END, changed_at = $4
RETURNING safety, operating, reason, changed_at;

-- name: have_patience_for_writers
-- A transaction of data may take long; whoever forbids more of them waits for the last.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '60s';

-- name: wait_for_writers
-- Until every transaction has ended that asked before now whether it may write.
SELECT pg_advisory_xact_lock(hashtext('chandlery write'));
