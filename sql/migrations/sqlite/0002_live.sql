-- What live ingest keeps: trades and how complete they are, messages that could not be used, how candles settle, and
-- what instruments were like in the past.

-- Public trades, recorded where that is switched on. In the order of the exchange: by event time, then by id.
CREATE TABLE trade_history (
    instrument_id INTEGER NOT NULL,
    event_time    INTEGER NOT NULL,         -- the exchange's
    trade_id      ANY NOT NULL,             -- the exchange's: a number where it counts, else text
    price         REAL NOT NULL,
    quantity      REAL NOT NULL,            -- in base
    taker_side    TEXT NOT NULL CHECK (taker_side IN ('buy', 'sell')),
    received_at   INTEGER NOT NULL,
    trades        INTEGER NOT NULL DEFAULT 1,   -- single trades in it; more than one in an aggregated trade
    PRIMARY KEY (instrument_id, event_time, trade_id)
) STRICT, WITHOUT ROWID;

-- The ledger of trade ids, where an exchange counts them one by one: disjoint runs of consecutive ids. An id in none
-- of them is unknown. It outlives the trades: what retention dropped is no hole.
CREATE TABLE trade_runs (
    instrument_id INTEGER NOT NULL,
    first_id      INTEGER NOT NULL,         -- both inclusive
    last_id       INTEGER NOT NULL,
    first_time    INTEGER NOT NULL,         -- event times of the trades at its ends; of a lost run, its neighbours'
    last_time     INTEGER NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('present', 'lost')),
    evidence      TEXT,                     -- of a lost run: what the exchange said
    PRIMARY KEY (instrument_id, first_id),
    CHECK (first_id <= last_id)
) STRICT, WITHOUT ROWID;

-- The ids of stored trades that are in no run, because the exchange does not count them: each is stored once,
-- whenever it is said to have been traded.
CREATE TABLE trade_ids (
    instrument_id INTEGER NOT NULL,
    trade_id      TEXT NOT NULL,
    event_time    INTEGER NOT NULL,
    PRIMARY KEY (instrument_id, trade_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX trade_ids_by_time ON trade_ids (event_time);

-- Messages of exchanges that could not be used, and why; the newest ones of each exchange.
CREATE TABLE message_quarantine (
    message_id  INTEGER PRIMARY KEY,
    exchange    TEXT NOT NULL,
    channel     TEXT,                       -- null where the message does not tell
    symbol      TEXT,
    reason      TEXT NOT NULL,
    raw         TEXT NOT NULL,              -- as received; long ones are cut
    digest      TEXT NOT NULL,              -- of reason and raw
    received_at INTEGER NOT NULL,           -- the last time
    times       INTEGER NOT NULL            -- how often it was received
) STRICT;
CREATE UNIQUE INDEX message_quarantine_once ON message_quarantine (exchange, digest);
CREATE INDEX message_quarantine_by_time ON message_quarantine (exchange, received_at, message_id);

-- What came of reading closed candles again, by how long after their end that was.
CREATE TABLE settle_checks (
    exchange             TEXT NOT NULL,
    timeframe            INTEGER NOT NULL,
    age_ms               INTEGER NOT NULL,
    checked              INTEGER NOT NULL,
    drifted              INTEGER NOT NULL,  -- of them, those that had changed
    last_drift_open_time INTEGER,
    updated_at           INTEGER NOT NULL,
    PRIMARY KEY (exchange, timeframe, age_ms)
) STRICT, WITHOUT ROWID;

-- What exchanges said of their instruments, and from when until when: as in `instruments`, where the newest stands.
CREATE TABLE instrument_history (
    instrument_id   INTEGER NOT NULL REFERENCES instruments,
    valid_from      INTEGER NOT NULL,
    valid_to        INTEGER,                -- null for now
    exchange_symbol TEXT NOT NULL,
    base            TEXT NOT NULL,
    quote           TEXT NOT NULL,
    kind            TEXT NOT NULL,
    tick_size       TEXT,
    lot_size        TEXT,
    min_notional    TEXT,
    active          INTEGER NOT NULL,
    listed_at       INTEGER,
    PRIMARY KEY (instrument_id, valid_from),
    CHECK (valid_from < valid_to)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX instrument_history_now ON instrument_history (instrument_id) WHERE valid_to IS NULL;

-- What is known already is known since it was last said.
INSERT INTO instrument_history (instrument_id, valid_from, exchange_symbol, base, quote, kind, tick_size, lot_size,
                                min_notional, active, listed_at)
SELECT instrument_id, seen_at, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments WHERE seen_at IS NOT NULL;
