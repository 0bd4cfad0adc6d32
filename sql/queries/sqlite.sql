-- name: find_series
-- The keys, revision and origin of one series; null keys where it is not stored.
SELECT i.instrument_id, s.revision, s.last_write, i.listed_at
FROM instruments i
LEFT JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = :timeframe
WHERE i.exchange = :exchange AND i.symbol = :symbol;

-- name: name_instrument
-- Remember an instrument by its name alone; what is known already stays.
INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, active)
VALUES (:exchange, :symbol, :exchange_symbol, :base, :quote, :kind, 1)
ON CONFLICT (exchange, symbol) DO NOTHING;

-- name: save_instrument
-- Keep what the exchange says of an instrument.
INSERT INTO instruments (exchange, symbol, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional,
                         active, listed_at, seen_at)
VALUES (:exchange, :symbol, :exchange_symbol, :base, :quote, :kind, :tick_size, :lot_size, :min_notional,
        :active, :listed_at, :seen_at)
ON CONFLICT (exchange, symbol) DO UPDATE SET
    exchange_symbol = excluded.exchange_symbol, base = excluded.base, quote = excluded.quote, kind = excluded.kind,
    tick_size = excluded.tick_size, lot_size = excluded.lot_size, min_notional = excluded.min_notional,
    active = excluded.active, listed_at = coalesce(excluded.listed_at, listed_at), seen_at = excluded.seen_at;

-- name: list_instruments
-- Instruments by exchange and symbol; all exchanges where :exchange is null.
SELECT exchange, symbol, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments
WHERE :exchange IS NULL OR exchange = :exchange
ORDER BY exchange, symbol;

-- name: add_series
-- Make a series known.
INSERT INTO series (instrument_id, timeframe) VALUES (:instrument_id, :timeframe)
ON CONFLICT DO NOTHING;

-- name: touch_series
-- One more revision, at this instant.
UPDATE series SET revision = revision + 1, last_write = :now
WHERE instrument_id = :instrument_id AND timeframe = :timeframe;

-- name: list_series
-- Every series with its row counts; the sums are small because chunks are counted, not rows.
SELECT i.exchange, i.symbol, s.timeframe, s.revision, s.last_write, s.instrument_id,
       coalesce(c.row_count, 0)
FROM series s
JOIN instruments i USING (instrument_id)
LEFT JOIN (SELECT instrument_id, timeframe, sum(row_count) AS row_count
           FROM candle_chunks GROUP BY instrument_id, timeframe) c
       ON c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe
ORDER BY i.exchange, i.symbol, s.timeframe;

-- name: count_all
-- Series and candles in the whole store.
SELECT (SELECT count(*) FROM series), (SELECT coalesce(sum(row_count), 0) FROM candle_chunks);

-- name: series_bounds
-- First and last open time of a series: two look-ups in the primary key.
SELECT (SELECT open_time FROM candles WHERE instrument_id = :instrument_id AND timeframe = :timeframe
        ORDER BY open_time LIMIT 1),
       (SELECT open_time FROM candles WHERE instrument_id = :instrument_id AND timeframe = :timeframe
        ORDER BY open_time DESC LIMIT 1);

-- name: series_counts
-- Corrections and quarantined rows of a series.
SELECT (SELECT count(*) FROM candle_corrections WHERE instrument_id = :instrument_id AND timeframe = :timeframe),
       (SELECT count(*) FROM quarantine WHERE instrument_id = :instrument_id AND timeframe = :timeframe);

-- name: read_candles
-- Candles of [:start, :end), oldest first, at most :limit (-1 for all).
SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume,
       early_close_time
FROM candles
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
ORDER BY open_time
LIMIT :limit;

-- name: read_newest_candles
-- The last :limit candles of [:start, :end), newest first.
SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume,
       early_close_time
FROM candles
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
ORDER BY open_time DESC
LIMIT :limit;

-- name: read_candles_as_of
-- Candles of [:start, :end) as they were known at :as_of, oldest first.
SELECT * FROM (
    SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
           taker_buy_quote_volume, early_close_time
    FROM candles
    WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
      AND learned_at <= :as_of
    UNION ALL
    SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
           taker_buy_quote_volume, early_close_time
    FROM candle_corrections
    WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
      AND learned_at <= :as_of AND replaced_at > :as_of)
ORDER BY open_time
LIMIT :limit;

-- name: read_newest_candles_as_of
-- The last :limit candles of [:start, :end) as they were known at :as_of, newest first.
SELECT * FROM (
    SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
           taker_buy_quote_volume, early_close_time
    FROM candles
    WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
      AND learned_at <= :as_of
    UNION ALL
    SELECT open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
           taker_buy_quote_volume, early_close_time
    FROM candle_corrections
    WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
      AND learned_at <= :as_of AND replaced_at > :as_of)
ORDER BY open_time DESC
LIMIT :limit;

-- name: read_states
-- Open time and state of the candles of [:start, :end), oldest first.
SELECT open_time, state FROM candles
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
ORDER BY open_time;

-- name: insert_candle
-- A candle that was not there.
INSERT INTO candles (instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume, trades,
                     taker_buy_volume, taker_buy_quote_volume, early_close_time, state, learned_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_sixteen_candles
-- Sixteen candles that were not there: a third faster than one by one.
INSERT INTO candles (instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume, trades,
                     taker_buy_volume, taker_buy_quote_volume, early_close_time, state, learned_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?),
       (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: keep_correction
-- The version about to be replaced, with the time it stopped being what we knew.
INSERT INTO candle_corrections (instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume,
                                trades, taker_buy_volume, taker_buy_quote_volume, early_close_time, state,
                                learned_at, replaced_at, source)
SELECT instrument_id, timeframe, open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume,
       taker_buy_quote_volume, early_close_time, state, learned_at, :now, :source
FROM candles
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time = :open_time;

-- name: delete_candle
-- Make room for the newer version; only after keep_correction.
DELETE FROM candles WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time = :open_time;

-- name: raise_state
-- The same values were seen again, later: the candle is more final, nothing a reader sees changes.
UPDATE candles SET state = :state
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND open_time >= :start AND open_time < :end
  AND state < :state;

-- name: read_chunks
-- Digests of the chunks that start in [:start, :end).
SELECT chunk_start, row_count, unverified, digest, revision FROM candle_chunks
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND chunk_start >= :start AND chunk_start < :end
ORDER BY chunk_start;

-- name: save_chunk
-- What a chunk holds now.
INSERT INTO candle_chunks (instrument_id, timeframe, chunk_start, row_count, unverified, digest, revision)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET row_count = excluded.row_count, unverified = excluded.unverified,
                          digest = excluded.digest, revision = excluded.revision;

-- name: read_coverage
-- Ledger entries that overlap or touch [:start, :end], oldest first.
SELECT interval_start, interval_end, state, source, learned_at, expires_at, evidence FROM coverage
WHERE instrument_id = :instrument_id AND timeframe = :timeframe
  AND interval_start >= coalesce((SELECT max(interval_start) FROM coverage
                                  WHERE instrument_id = :instrument_id AND timeframe = :timeframe
                                    AND interval_start < :start), :start)
  AND interval_start <= :end AND interval_end >= :start
ORDER BY interval_start;

-- name: coverage_bounds
-- The first and the last instant the ledger says anything of.
SELECT (SELECT interval_start FROM coverage WHERE instrument_id = :instrument_id AND timeframe = :timeframe
        ORDER BY interval_start LIMIT 1),
       (SELECT interval_end FROM coverage WHERE instrument_id = :instrument_id AND timeframe = :timeframe
        ORDER BY interval_start DESC LIMIT 1);

-- name: coverage_sums
-- Of the whole ledger of a series: first and last instant, milliseconds known at :now, milliseconds verified empty.
SELECT min(interval_start), max(interval_end),
       coalesce(sum(CASE WHEN expires_at IS NULL OR expires_at > :now THEN interval_end - interval_start END), 0),
       coalesce(sum(CASE WHEN state = 'verified_empty' THEN interval_end - interval_start END), 0)
FROM coverage WHERE instrument_id = :instrument_id AND timeframe = :timeframe;

-- name: coverage_sources
-- Who contributed to the ledger of a series.
SELECT DISTINCT source FROM coverage WHERE instrument_id = :instrument_id AND timeframe = :timeframe
ORDER BY source;

-- name: delete_coverage
-- One ledger entry, about to be replaced.
DELETE FROM coverage
WHERE instrument_id = ? AND timeframe = ? AND interval_start = ?;

-- name: insert_coverage
-- One ledger entry.
INSERT INTO coverage (instrument_id, timeframe, interval_start, interval_end, state, source, learned_at, expires_at,
                      evidence)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_quarantine
-- A refused row; the same one again is not kept twice.
INSERT INTO quarantine (instrument_id, timeframe, open_time, reason, raw, source, learned_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: read_quarantine
-- The newest refused rows of a series.
SELECT open_time, reason, raw FROM quarantine
WHERE instrument_id = :instrument_id AND timeframe = :timeframe
ORDER BY rowid DESC
LIMIT :limit;

-- name: database_size
-- Bytes in use, bytes free inside the file.
SELECT (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size),
       (SELECT freelist_count FROM pragma_freelist_count) * (SELECT page_size FROM pragma_page_size);

-- name: hide_instruments
-- Instruments of an exchange that its complete list (:symbols, JSON) does not name are not traded any more.
UPDATE instruments SET active = 0
WHERE exchange = :exchange AND active AND symbol NOT IN (SELECT value FROM json_each(:symbols));

-- name: correct_instrument_history
-- What was said at :now, or is dated later because the clock was, and is otherwise already: put right in its place.
UPDATE instrument_history SET
    exchange_symbol = i.exchange_symbol, base = i.base, quote = i.quote, kind = i.kind, tick_size = i.tick_size,
    lot_size = i.lot_size, min_notional = i.min_notional, active = i.active, listed_at = i.listed_at
FROM instruments i
WHERE i.instrument_id = instrument_history.instrument_id AND i.exchange = :exchange AND i.seen_at IS NOT NULL
  AND valid_to IS NULL AND valid_from >= :now;

-- name: close_instrument_history
-- What is otherwise than it was said until :now.
UPDATE instrument_history AS h SET valid_to = :now
FROM instruments i
WHERE i.instrument_id = h.instrument_id AND i.exchange = :exchange AND i.seen_at IS NOT NULL
  AND h.valid_to IS NULL AND h.valid_from < :now
  AND (h.exchange_symbol, h.base, h.quote, h.kind, CAST(h.tick_size AS REAL), CAST(h.lot_size AS REAL),
       CAST(h.min_notional AS REAL), h.active, h.listed_at)
      IS NOT (i.exchange_symbol, i.base, i.quote, i.kind, CAST(i.tick_size AS REAL), CAST(i.lot_size AS REAL),
              CAST(i.min_notional AS REAL), i.active, i.listed_at);

-- name: open_instrument_history
-- What instruments of an exchange are like from :now on, where nothing says so yet.
INSERT INTO instrument_history (instrument_id, valid_from, exchange_symbol, base, quote, kind, tick_size, lot_size,
                                min_notional, active, listed_at)
SELECT instrument_id, :now, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments i
WHERE i.exchange = :exchange AND i.seen_at IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM instrument_history h WHERE h.instrument_id = i.instrument_id AND h.valid_to IS NULL);

-- name: list_instruments_as_of
-- Instruments as they were known to be at :as_of, by exchange and symbol; all exchanges where :exchange is null.
SELECT i.exchange, i.symbol, h.exchange_symbol, h.base, h.quote, h.kind, h.tick_size, h.lot_size, h.min_notional,
       h.active, h.listed_at
FROM instrument_history h
JOIN instruments i USING (instrument_id)
WHERE (:exchange IS NULL OR i.exchange = :exchange)
  AND h.valid_from <= :as_of AND (h.valid_to IS NULL OR h.valid_to > :as_of)
ORDER BY i.exchange, i.symbol;

-- name: find_instrument
-- The key of an instrument.
SELECT instrument_id FROM instruments WHERE exchange = :exchange AND symbol = :symbol;

-- name: insert_trade
-- A trade that was not there.
INSERT INTO trade_history (instrument_id, event_time, trade_id, price, quantity, taker_side, received_at, trades)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: insert_trade_id
-- The id of a trade that is in no run.
INSERT INTO trade_ids (instrument_id, trade_id, event_time) VALUES (?, ?, ?);

-- name: has_trade_ids
-- Whether an instrument has trades that are in no run.
SELECT EXISTS (SELECT 1 FROM trade_ids WHERE instrument_id = :instrument_id);

-- name: known_trade_ids
-- Of :ids (JSON), those that are stored. Joined so that each id is looked up, and not each stored one.
SELECT t.trade_id FROM json_each(:ids) j
CROSS JOIN trade_ids t ON t.instrument_id = :instrument_id AND t.trade_id = j.value;

-- name: read_trades
-- Trades of [:start, :end) in the order of the exchange, at most :limit (-1 for all).
SELECT trade_id, price, quantity, event_time, taker_side = 'buy', received_at, trades FROM trade_history
WHERE instrument_id = :instrument_id AND event_time >= :start AND event_time < :end
ORDER BY event_time, trade_id
LIMIT :limit;

-- name: read_trade
-- One trade.
SELECT trade_id, price, quantity, event_time, taker_side = 'buy', received_at, trades FROM trade_history
WHERE instrument_id = :instrument_id AND event_time = :event_time AND trade_id = :trade_id;

-- name: read_newest_trade
-- The latest trade.
SELECT trade_id, price, quantity, event_time, taker_side = 'buy', received_at, trades FROM trade_history
WHERE instrument_id = :instrument_id
ORDER BY event_time DESC, trade_id DESC
LIMIT 1;

-- name: read_trade_runs
-- Runs of trade ids that overlap or touch [:first, :last], by id.
SELECT first_id, last_id, first_time, last_time, state, evidence FROM trade_runs
WHERE instrument_id = :instrument_id
  AND first_id >= coalesce((SELECT max(first_id) FROM trade_runs
                            WHERE instrument_id = :instrument_id AND first_id < :first), :first)
  AND first_id <= :last AND last_id >= :first
ORDER BY first_id;

-- name: newest_trade_run
-- The last run of ids whose trades are stored.
SELECT last_id, last_time FROM trade_runs
WHERE instrument_id = :instrument_id AND state = 'present'
ORDER BY first_id DESC
LIMIT 1;

-- name: delete_trade_run
-- One run of trade ids, about to be replaced.
DELETE FROM trade_runs WHERE instrument_id = ? AND first_id = ?;

-- name: insert_trade_run
-- One run of trade ids.
INSERT INTO trade_runs (instrument_id, first_id, last_id, first_time, last_time, state, evidence)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: list_instrument_ids
-- The keys of all instruments.
SELECT instrument_id FROM instruments ORDER BY instrument_id;

-- name: some_trades_end
-- The event time of the :count-th trade before :before, from the oldest; none where there are fewer.
SELECT event_time FROM trade_history
WHERE instrument_id = :instrument_id AND event_time < :before
ORDER BY event_time
LIMIT 1 OFFSET :count - 1;

-- name: delete_trades
-- Trades of an instrument before an instant.
DELETE FROM trade_history WHERE instrument_id = :instrument_id AND event_time < :before;

-- name: some_trade_ids_end
-- The event time of the :count-th id before :before, from the oldest; none where there are fewer.
SELECT event_time FROM trade_ids WHERE event_time < :before ORDER BY event_time LIMIT 1 OFFSET :count - 1;

-- name: delete_trade_ids
-- Ids of trades before an instant.
DELETE FROM trade_ids WHERE event_time < :before;

-- name: keep_message
-- A message that could not be used; the same one again, for the same reason, is counted.
INSERT INTO message_quarantine (exchange, channel, symbol, reason, raw, digest, received_at, times)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (exchange, digest) DO UPDATE SET
    times = times + excluded.times, received_at = max(received_at, excluded.received_at);

-- name: delete_old_messages
-- All but the newest :count messages of an exchange.
DELETE FROM message_quarantine
WHERE exchange = :exchange
  AND (received_at, message_id) <= (SELECT received_at, message_id FROM message_quarantine
                                    WHERE exchange = :exchange
                                    ORDER BY received_at DESC, message_id DESC
                                    LIMIT 1 OFFSET :count);

-- name: read_messages
-- The newest messages of an exchange that could not be used, newest first.
SELECT exchange, channel, symbol, reason, raw, received_at, times FROM message_quarantine
WHERE exchange = :exchange
ORDER BY received_at DESC, message_id DESC
LIMIT :limit;

-- name: add_settle_check
-- So many candles were read again at this age.
INSERT INTO settle_checks (exchange, timeframe, age_ms, checked, drifted, last_drift_open_time, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (exchange, timeframe, age_ms) DO UPDATE SET
    checked = checked + excluded.checked, drifted = drifted + excluded.drifted, updated_at = excluded.updated_at,
    last_drift_open_time = nullif(max(coalesce(last_drift_open_time, -1),
                                      coalesce(excluded.last_drift_open_time, -1)), -1);

-- name: list_settle_checks
-- What came of reading candles again, by exchange, timeframe and age; all exchanges where :exchange is null.
SELECT exchange, timeframe, age_ms, checked, drifted, last_drift_open_time, updated_at FROM settle_checks
WHERE :exchange IS NULL OR exchange = :exchange
ORDER BY exchange, timeframe, age_ms;

-- name: series_versions
-- Place in :series (JSON: [[exchange, symbol, timeframe], ...]), revision and listing of those that are stored; where
-- three-day candles count from the first one, its open time.
SELECT asked.key, s.revision, s.last_write, i.instrument_id, i.listed_at,
       CASE WHEN i.listed_at IS NULL AND s.timeframe = 259200
            THEN (SELECT c.open_time FROM candles c
                  WHERE c.instrument_id = s.instrument_id AND c.timeframe = s.timeframe
                  ORDER BY c.open_time LIMIT 1) END
FROM json_each(:series) asked
CROSS JOIN instruments i ON i.exchange = json_extract(asked.value, '$[0]') AND i.symbol = json_extract(asked.value, '$[1]')
CROSS JOIN series s ON s.instrument_id = i.instrument_id AND s.timeframe = json_extract(asked.value, '$[2]');

-- name: read_changed_chunks
-- Digests of the chunks that changed after the revision :since, oldest first. A series has some thousand chunks at
-- most, so they are all looked at: an index by revision would be written with every candle.
SELECT chunk_start, row_count, unverified, digest, revision FROM candle_chunks
WHERE instrument_id = :instrument_id AND timeframe = :timeframe AND revision > :since
ORDER BY chunk_start;

-- name: read_control
-- What an operator has switched.
SELECT safety, operating, reason, changed_at FROM control;

-- name: set_control
-- Switch what is not null. The reason of a safety state stays until that is set again, or another reason is given.
UPDATE control SET safety = coalesce(:safety, safety), operating = coalesce(:operating, operating),
                   reason = CASE WHEN :safety IS NULL AND :reason = '' THEN reason ELSE :reason END,
                   changed_at = :now;
