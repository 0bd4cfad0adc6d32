-- What live ingest keeps: trades and how complete they are, messages that could not be used, how candles settle, and
-- what instruments were like in the past.

-- In the order of the exchange: by event time, then by number, then by id. What is there already is single trades.
ALTER TABLE trade_history
    ADD COLUMN trades integer NOT NULL DEFAULT 1,   -- single trades in it; more than one in an aggregated trade
    ADD COLUMN trade_number bigint;                 -- the id where it is a number; null where it is text

-- The ledger of trade ids, where an exchange counts them one by one: disjoint runs of consecutive ids. An id in none
-- of them is unknown. It outlives the trades: what retention dropped is no hole.
CREATE TABLE trade_runs (
    instrument_id integer NOT NULL,
    first_id      bigint NOT NULL,                  -- both inclusive
    last_id       bigint NOT NULL,
    first_time    timestamptz NOT NULL,             -- event times of the trades at its ends; of a lost run, its
    last_time     timestamptz NOT NULL,             -- neighbours'
    state         text NOT NULL CHECK (state IN ('present', 'lost')),
    evidence      text,                             -- of a lost run: what the exchange said
    PRIMARY KEY (instrument_id, first_id),
    CHECK (first_id <= last_id)
);

-- The ids of stored trades that are in no run, because the exchange does not count them: each is stored once,
-- whenever it is said to have been traded.
CREATE TABLE trade_ids (
    instrument_id integer NOT NULL,
    trade_id      text COLLATE "C" NOT NULL,
    event_time    timestamptz NOT NULL,
    PRIMARY KEY (instrument_id, trade_id)
);
CREATE INDEX trade_ids_by_time ON trade_ids USING brin (event_time);

-- Messages of exchanges that could not be used, and why; the newest ones of each exchange.
CREATE TABLE message_quarantine (
    message_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange    text NOT NULL,
    channel     text,                               -- null where the message does not tell
    symbol      text,
    reason      text NOT NULL,
    raw         text NOT NULL,                      -- as received; long ones are cut
    digest      text NOT NULL,                      -- of reason and raw
    received_at timestamptz NOT NULL,               -- the last time
    times       bigint NOT NULL,                    -- how often it was received
    UNIQUE (exchange, digest)
);
CREATE INDEX message_quarantine_by_time ON message_quarantine (exchange, received_at, message_id);

-- What came of reading closed candles again, by how long after their end that was.
CREATE TABLE settle_checks (
    exchange             text NOT NULL,
    timeframe            integer NOT NULL,
    age_ms               bigint NOT NULL,
    checked              bigint NOT NULL,
    drifted              bigint NOT NULL,           -- of them, those that had changed
    last_drift_open_time timestamptz,
    updated_at           timestamptz NOT NULL,
    PRIMARY KEY (exchange, timeframe, age_ms)
);

-- What exchanges said of their instruments, and from when until when: as in `instruments`, where the newest stands.
CREATE TABLE instrument_history (
    instrument_id   integer NOT NULL REFERENCES instruments,
    valid_from      timestamptz NOT NULL,
    valid_to        timestamptz,                    -- null for now
    exchange_symbol text NOT NULL,
    base            text NOT NULL,
    quote           text NOT NULL,
    kind            text NOT NULL,
    tick_size       numeric,
    lot_size        numeric,
    min_notional    numeric,
    active          boolean NOT NULL,
    listed_at       timestamptz,
    PRIMARY KEY (instrument_id, valid_from),
    CHECK (valid_from < valid_to)
);
CREATE UNIQUE INDEX instrument_history_now ON instrument_history (instrument_id) WHERE valid_to IS NULL;

-- What is known already is known since it was last said.
INSERT INTO instrument_history (instrument_id, valid_from, exchange_symbol, base, quote, kind, tick_size, lot_size,
                                min_notional, active, listed_at)
SELECT instrument_id, seen_at, exchange_symbol, base, quote, kind, tick_size, lot_size, min_notional, active, listed_at
FROM instruments WHERE seen_at IS NOT NULL;
