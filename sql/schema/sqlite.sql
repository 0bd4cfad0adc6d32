-- A database of SQLite: candles, what is known of their completeness, and their history.
-- The sum of all migrations, for reading: nothing runs this file but the test that compares the two.
-- All times are UTC epoch milliseconds. All ranges are half-open. `timeframe` is a length in seconds
-- (2592000 for 1M).

PRAGMA application_id = 0x43484E44;     -- "CHND"
PRAGMA user_version = 3;                -- the newest migration it has

CREATE TABLE instruments (
    instrument_id   INTEGER PRIMARY KEY,
    exchange        TEXT NOT NULL,
    symbol          TEXT NOT NULL,          -- ccxt unified: BTC/USDT
    exchange_symbol TEXT NOT NULL,          -- the exchange's own: BTCUSDT
    base            TEXT NOT NULL,
    quote           TEXT NOT NULL,
    kind            TEXT NOT NULL,          -- spot swap future option
    tick_size       TEXT,                   -- exact decimals
    lot_size        TEXT,
    min_notional    TEXT,
    active          INTEGER NOT NULL,
    listed_at       INTEGER,
    seen_at         INTEGER,                -- when the exchange last described it; null: only named so far
    UNIQUE (exchange, symbol)
) STRICT;

CREATE TABLE series (
    instrument_id INTEGER NOT NULL REFERENCES instruments,
    timeframe     INTEGER NOT NULL,
    revision      INTEGER NOT NULL DEFAULT 0,   -- one more with each change a reader could see
    last_write    INTEGER NOT NULL DEFAULT 0,   -- when that was; strictly increasing
    PRIMARY KEY (instrument_id, timeframe)
) STRICT, WITHOUT ROWID;

CREATE TABLE candles (
    instrument_id          INTEGER NOT NULL,
    timeframe              INTEGER NOT NULL,
    open_time              INTEGER NOT NULL,
    open                   REAL NOT NULL,
    high                   REAL NOT NULL,
    low                    REAL NOT NULL,
    close                  REAL NOT NULL,
    volume                 REAL NOT NULL,
    quote_volume           REAL,
    trades                 INTEGER,
    taker_buy_volume       REAL,
    taker_buy_quote_volume REAL,
    early_close_time       INTEGER,
    state                  INTEGER NOT NULL,   -- 1 closed, 2 verified
    learned_at             INTEGER NOT NULL,   -- since when this version is known
    PRIMARY KEY (instrument_id, timeframe, open_time)
) STRICT, WITHOUT ROWID;

-- The versions that were replaced: known from learned_at until replaced_at.
CREATE TABLE candle_corrections (
    instrument_id          INTEGER NOT NULL,
    timeframe              INTEGER NOT NULL,
    open_time              INTEGER NOT NULL,
    open                   REAL NOT NULL,
    high                   REAL NOT NULL,
    low                    REAL NOT NULL,
    close                  REAL NOT NULL,
    volume                 REAL NOT NULL,
    quote_volume           REAL,
    trades                 INTEGER,
    taker_buy_volume       REAL,
    taker_buy_quote_volume REAL,
    early_close_time       INTEGER,
    state                  INTEGER NOT NULL,
    learned_at             INTEGER NOT NULL,
    replaced_at            INTEGER NOT NULL,
    source                 TEXT NOT NULL,      -- who brought the newer version
    PRIMARY KEY (instrument_id, timeframe, open_time, learned_at)
) STRICT, WITHOUT ROWID;

-- A digest for each day (timeframes under an hour), month (under a day) or year, kept current by every write:
-- equal digests mean equal rows, so rows that come again need not be compared one by one.
CREATE TABLE candle_chunks (
    instrument_id INTEGER NOT NULL,
    timeframe     INTEGER NOT NULL,
    chunk_start   INTEGER NOT NULL,
    row_count     INTEGER NOT NULL,
    unverified    INTEGER NOT NULL,            -- rows in state closed
    digest        TEXT NOT NULL,
    revision      INTEGER NOT NULL,            -- the series' revision at the last change
    PRIMARY KEY (instrument_id, timeframe, chunk_start)
) STRICT, WITHOUT ROWID;

-- The coverage ledger: disjoint intervals; what is in none of them is unknown.
CREATE TABLE coverage (
    instrument_id  INTEGER NOT NULL,
    timeframe      INTEGER NOT NULL,
    interval_start INTEGER NOT NULL,
    interval_end   INTEGER NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('present', 'verified_empty', 'exchange_outage', 'own_outage')),
    source         TEXT NOT NULL,
    learned_at     INTEGER NOT NULL,
    expires_at     INTEGER,
    evidence       TEXT,
    PRIMARY KEY (instrument_id, timeframe, interval_start),
    CHECK (interval_start < interval_end)
) STRICT, WITHOUT ROWID;

-- Rows that were refused, and why.
CREATE TABLE quarantine (
    instrument_id INTEGER NOT NULL,
    timeframe     INTEGER NOT NULL,
    open_time     INTEGER,
    reason        TEXT NOT NULL,
    raw           TEXT NOT NULL,
    source        TEXT NOT NULL,
    learned_at    INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX quarantine_once
    ON quarantine (instrument_id, timeframe, coalesce(open_time, -1), reason, raw);

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

-- What an operator may switch while everything runs: one row.
CREATE TABLE control (
    control_id INTEGER PRIMARY KEY CHECK (control_id = 1),
    safety     TEXT NOT NULL CHECK (safety IN ('normal', 'warning', 'fail', 'lockdown')),
    operating  TEXT NOT NULL CHECK (operating IN ('aggressive', 'balanced', 'defensive')),
    reason     TEXT NOT NULL,               -- in the words of whoever changed it last
    changed_at INTEGER                      -- null while nobody has
) STRICT;
INSERT INTO control (control_id, safety, operating, reason) VALUES (1, 'normal', 'balanced', '');
