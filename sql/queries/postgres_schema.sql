-- name: make_versions
-- Which migrations a database has, and in which mode it runs.
CREATE TABLE IF NOT EXISTS schema_versions (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    mode       text NOT NULL CHECK (mode IN ('plain', 'timescaledb')),
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: look_around
-- Whether our table of versions is there, and whether tables are there that bear our names. By pg_class and not by
-- to_regclass: that one may answer from before the lock of an upgrade was waited for. Others keep versions under the
-- same name, in other columns.
SELECT coalesce(bool_or(ours), false) AS versions, coalesce(bool_or(NOT ours), false) AS tables
FROM (SELECT relname = 'schema_versions'
             AND (SELECT count(*) FROM pg_attribute
                  WHERE attrelid = c.oid AND NOT attisdropped
                    AND (attname, atttypid) IN (('version', 'integer'::regtype), ('mode', 'text'::regtype))) = 2 AS ours
      FROM pg_class c
      WHERE relname IN ('schema_versions', 'candles', 'series', 'instruments', 'coverage', 'candle_chunks',
                        'candle_corrections', 'quarantine', 'trade_history', 'system_metrics', 'trade_runs', 'trade_ids',
                        'message_quarantine', 'settle_checks', 'instrument_history', 'control')
        AND pg_table_is_visible(oid)) named;

-- name: read_version
-- The newest migration of this database and its mode.
SELECT version, mode FROM schema_versions ORDER BY version DESC LIMIT 1;

-- name: save_version
-- A migration (version, name, mode) has run.
INSERT INTO schema_versions (version, name, mode) VALUES ($1, $2, $3);

-- name: lock_upgrade
-- Held until the transaction ends: one upgrade of a database at a time.
SELECT pg_advisory_xact_lock(hashtext('chandlery upgrade'));

-- name: have_patience
-- An upgrade may take long, and waits for another one.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '600s';

-- name: offers_timescaledb
-- The version of the extension, if the database has it; else, whether the server could give it.
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS installed,
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb') AS available,
       -- Its loader's setting; the list of preloaded libraries is not for everybody to read.
       current_setting('timescaledb.disable_load', true) IS NOT NULL AS loaded,
       current_setting('timescaledb.license', true) AS licence,
       current_setting('server_version') AS server;

-- name: create_timescaledb
-- Needs the right to create in the database; the extension is a trusted one where its owner says so.
CREATE EXTENSION IF NOT EXISTS timescaledb;
