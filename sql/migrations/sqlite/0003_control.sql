-- What an operator may switch while everything runs: one row.

CREATE TABLE control (
    control_id INTEGER PRIMARY KEY CHECK (control_id = 1),
    safety     TEXT NOT NULL CHECK (safety IN ('normal', 'warning', 'fail', 'lockdown')),
    operating  TEXT NOT NULL CHECK (operating IN ('aggressive', 'balanced', 'defensive')),
    reason     TEXT NOT NULL,               -- in the words of whoever changed it last
    changed_at INTEGER                      -- null while nobody has
) STRICT;
INSERT INTO control (control_id, safety, operating, reason) VALUES (1, 'normal', 'balanced', '');
