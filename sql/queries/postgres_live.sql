-- Trades, the ledger of their ids, messages that could not be used, settle checks. Parameters are numbered in the order
-- in which each sentence names them. Many instruments are asked for at once: live data comes in small pieces of all.

-- name: find_instrument
-- The key of (exchange, symbol).
SELECT instrument_id FROM instruments WHERE exchange = $1 AND symbol = $2;

-- name: find_instruments
-- The keys of (exchanges, symbols), side by side; those that are not known are left out.
SELECT i.exchange, i.symbol, i.instrument_id
FROM unnest($1::text[], $2::text[]) AS named (exchange, symbol)
JOIN instruments i ON i.exchange = named.exchange AND i.symbol = named.symbol;

-- name: hold_trades
-- One writer of the trades of an instrument until its transaction ends; (instruments), sorted.
SELECT pg_advisory_xact_lock(hashtext('chandlery trades'), instrument_id)
FROM unnest($1::integer[]) AS held (instrument_id);

-- name: insert_trades
-- Trades that may be there, one in each place of (instruments, event times, ids, numbers, prices, quantities, taker
-- sides, receipt times, single trades).
INSERT INTO trade_history (instrument_id, event_time, trade_id, trade_number, price, quantity, taker_side, received_at,
                           trades)
SELECT * FROM unnest($1::integer[], $2::timestamptz[], $3::text[], $4::bigint[], $5::double precision[],
                     $6::double precision[], $7::text[], $8::timestamptz[], $9::integer[])
ON CONFLICT DO NOTHING;

-- name: have_trade_ids
-- Those of (instruments) with trades that are in no run. Without an order the server may hope to meet one of them soon
-- and read the ids of all others.
SELECT asked.instrument_id FROM unnest($1::integer[]) AS asked (instrument_id)
CROSS JOIN LATERAL (SELECT FROM trade_ids t WHERE t.instrument_id = asked.instrument_id
                    ORDER BY t.trade_id LIMIT 1) AS stored;

-- name: known_trade_ids
-- Of (instruments, ids), those that are stored. Looked up one by one: a plan made for any arguments would read them all.
SELECT asked.instrument_id, asked.trade_id
FROM unnest($1::integer[], $2::text[]) AS asked (instrument_id, trade_id)
CROSS JOIN LATERAL (SELECT FROM trade_ids t
                    WHERE t.instrument_id = asked.instrument_id AND t.trade_id = asked.trade_id
                    OFFSET 0) AS stored;

-- name: read_trades
-- Trades of (instrument, start, end) in the order of the exchange, at most (limit) where that is not null.
SELECT trade_id, trade_number, price, quantity, event_time, taker_side, received_at, trades FROM trade_history
WHERE instrument_id = $1 AND event_time >= $2 AND event_time < $3
ORDER BY event_time, trade_number, trade_id COLLATE "C"
LIMIT $4;

-- name: read_trade
-- One trade (instrument, event time, id).
SELECT trade_id, trade_number, price, quantity, event_time, taker_side, received_at, trades FROM trade_history
WHERE instrument_id = $1 AND event_time = $2 AND trade_id = $3;

-- name: read_newest_trade
-- The latest trade of (instrument, start).
SELECT trade_id, trade_number, price, quantity, event_time, taker_side, received_at, trades FROM trade_history
WHERE instrument_id = $1 AND event_time >= $2
ORDER BY event_time DESC, trade_number DESC NULLS FIRST, trade_id COLLATE "C" DESC
LIMIT 1;

-- name: read_trade_runs
-- Runs of trade ids that overlap or touch each of (instruments, first ids, last ids), by instrument and id.
SELECT r.instrument_id, r.first_id, r.last_id, r.first_time, r.last_time, r.state, r.evidence
FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS asked (instrument_id, first_id, last_id)
CROSS JOIN LATERAL (
    SELECT * FROM trade_runs t
    WHERE t.instrument_id = asked.instrument_id
      AND t.first_id >= coalesce((SELECT max(b.first_id) FROM trade_runs b
                                  WHERE b.instrument_id = asked.instrument_id AND b.first_id < asked.first_id),
                                 asked.first_id)
      AND t.first_id <= asked.last_id AND t.last_id >= asked.first_id
    OFFSET 0) AS r
ORDER BY r.instrument_id, r.first_id;

-- name: newest_trade_run
-- The last run of (instrument) whose trades are stored.
SELECT last_id, last_time FROM trade_runs
WHERE instrument_id = $1 AND state = 'present'
ORDER BY first_id DESC
LIMIT 1;

-- name: delete_trade_run
-- One run (instrument, first id), about to be replaced.
DELETE FROM trade_runs WHERE instrument_id = $1 AND first_id = $2;

-- name: insert_trade_run
-- One run of trade ids (in the order of the columns).
INSERT INTO trade_runs (instrument_id, first_id, last_id, first_time, last_time, state, evidence)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: delete_trade_ids
-- Ids of trades before (instant).
DELETE FROM trade_ids WHERE event_time < $1;

-- name: drop_trade_partitions
-- Drop the partitions of trades whose month ends at (instant) or earlier.
SELECT drop_monthly_partitions('trade_history', 'event_time', $1);

-- name: drop_trade_chunks
-- Drop the chunks of trades that end at (instant) or earlier.
SELECT count(*) FROM drop_chunks('trade_history', older_than => $1::timestamptz);

-- name: hold_messages
-- One at a time keeps messages of (exchange), until its transaction ends.
SELECT pg_advisory_xact_lock(hashtext('chandlery messages'), hashtext($1));

-- name: keep_message
-- A message that could not be used (in the order of the columns); the same one again, for the same reason, is counted.
INSERT INTO message_quarantine (exchange, channel, symbol, reason, raw, digest, received_at, times)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (exchange, digest) DO UPDATE SET
    times = message_quarantine.times + excluded.times,
    received_at = greatest(message_quarantine.received_at, excluded.received_at);

-- name: delete_old_messages
-- All of (exchange) but the newest (count).
DELETE FROM message_quarantine
WHERE exchange = $1
  AND (received_at, message_id) <= (SELECT received_at, message_id FROM message_quarantine
                                    WHERE exchange = $1
                                    ORDER BY received_at DESC, message_id DESC
                                    LIMIT 1 OFFSET $2);

-- name: read_messages
-- The newest messages of (exchange) that could not be used, newest first, at most (limit).
SELECT exchange, channel, symbol, reason, raw, received_at, times FROM message_quarantine
WHERE exchange = $1
ORDER BY received_at DESC, message_id DESC
LIMIT $2;

-- name: add_settle_check
-- So many candles were read again at this age (in the order of the columns).
INSERT INTO settle_checks (exchange, timeframe, age_ms, checked, drifted, last_drift_open_time, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (exchange, timeframe, age_ms) DO UPDATE SET
    checked = settle_checks.checked + excluded.checked, drifted = settle_checks.drifted + excluded.drifted,
    last_drift_open_time = greatest(settle_checks.last_drift_open_time, excluded.last_drift_open_time),
    updated_at = excluded.updated_at;

-- name: list_settle_checks
-- What came of reading candles again, by exchange, timeframe and age; of (exchange), or of all where it is null.
SELECT exchange, timeframe, age_ms, checked, drifted, last_drift_open_time, updated_at FROM settle_checks
WHERE $1::text IS NULL OR exchange = $1
ORDER BY exchange COLLATE "C", timeframe, age_ms;
