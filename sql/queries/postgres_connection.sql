-- name: server_facts
-- Whom a new connection speaks with; through a pooler the process is not the one the connection was told of.
SELECT pg_backend_pid() AS process, pg_is_in_recovery() AS standby,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('server_version_num')::int AS version;

-- name: cluster
-- A number that a primary and its replicas share, and no other server has.
SELECT system_identifier FROM pg_control_system();

-- name: written_position
-- How far the primary's log is written and safe, as a number of bytes; null on a standby.
SELECT CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint END;

-- name: replayed_position
-- How far this replica has followed the primary's log, as a number of bytes; null where it follows none.
SELECT CASE WHEN pg_is_in_recovery() THEN (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint END;

-- name: check_writable
-- Fails where the safety state forbids writing; else, it will not until this transaction has ended.
SELECT check_writable();
