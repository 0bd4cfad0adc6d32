-- What an operator may switch while everything runs: one row, and what each transaction of data asks before it writes.

CREATE TABLE control (
    control_id integer PRIMARY KEY CHECK (control_id = 1),
    safety     text NOT NULL CHECK (safety IN ('normal', 'warning', 'fail', 'lockdown')),
    operating  text NOT NULL CHECK (operating IN ('aggressive', 'balanced', 'defensive')),
    reason     text NOT NULL,                       -- in the words of whoever changed it last
    changed_at timestamptz                          -- null while nobody has
);
INSERT INTO control (control_id, safety, operating, reason) VALUES (1, 'normal', 'balanced', '');

-- Fails where the safety state forbids writing; else, it will not until this transaction has ended: whoever forbids it
-- commits that first, and then waits for the lock. Looked at before the lock, too, so that nobody stands in line for it
-- behind him.
CREATE FUNCTION check_writable() RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    switched control%ROWTYPE;
BEGIN
    SELECT * INTO switched FROM control;
    IF switched.safety NOT IN ('fail', 'lockdown') THEN
        PERFORM pg_advisory_xact_lock_shared(hashtext('chandlery write'));
        SELECT * INTO switched FROM control;
    END IF;
    IF switched.safety IN ('fail', 'lockdown') THEN
        RAISE EXCEPTION USING ERRCODE = 'RO001', MESSAGE = switched.safety, DETAIL = switched.reason;
    END IF;
END
$body$;
