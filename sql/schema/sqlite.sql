-- A database of SQLite: candles, what is known of their completeness, and their history.
-- The sum of all migrations, for reading: nothing runs this file but the test that compares the two.
-- All times are UTC epoch milliseconds. All ranges are half-open. `timeframe` is a length in seconds
-- (2592000 for 1M).

PRAGMA application_id = 0x43484E44;     -- "CHND"
PRAGMA user_version = 1;                -- the newest migration it has

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
