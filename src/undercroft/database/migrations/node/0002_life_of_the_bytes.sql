-- When the bytes were last written; last_accessed_at and updated_at move with every read. NULL in rows
-- older than this column: then inserted_at is the best there is. No UPDATE: there may be millions.
ALTER TABLE cache_artifacts ADD COLUMN stored_at INTEGER;

-- Made anew, because a CHECK cannot be changed. A "delete" removes the object of an artifact that was
-- deleted here. attempts counts failures; a row is not tried before next_attempt_at; a parked one waits
-- for a person.
CREATE TABLE transfers (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL CHECK (type IN ('upload', 'download', 'delete')),
    account_handle TEXT NOT NULL,
    project_handle TEXT NOT NULL,
    artifact_type TEXT NOT NULL,
    key TEXT NOT NULL,
    inserted_at INTEGER NOT NULL,
    claimed_at INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    parked_at INTEGER,
    last_error TEXT
) STRICT;

INSERT INTO transfers (id, type, account_handle, project_handle, artifact_type, key, inserted_at)
SELECT id, type, account_handle, project_handle, artifact_type, key, inserted_at FROM s3_transfers
WHERE claimed_at IS NULL;

DROP TABLE s3_transfers;

ALTER TABLE transfers RENAME TO s3_transfers;

-- Unique among rows nobody works on: what is queued again while its row is in work is a new row, not lost.
CREATE UNIQUE INDEX s3_transfers_unclaimed ON s3_transfers (type, key) WHERE claimed_at IS NULL;

CREATE INDEX s3_transfers_key ON s3_transfers (key);

-- A row is ready, waits for its next attempt, is claimed, or parked. An index for each, so that nobody looks
-- at rows that are not what is asked for; the first is in the order in which rows are claimed.
CREATE INDEX s3_transfers_ready ON s3_transfers (type <> 'download', id)
WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at = 0;

CREATE INDEX s3_transfers_waiting ON s3_transfers (next_attempt_at)
WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at > 0;

CREATE INDEX s3_transfers_claimed ON s3_transfers (key) WHERE claimed_at IS NOT NULL;

CREATE INDEX s3_transfers_parked ON s3_transfers (id) WHERE parked_at IS NOT NULL;

-- How far work in slices has come.
CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    position TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

-- The boot of the machine in which the node last started, and when it first did in that boot: what was
-- written since then has not been through a loss of power.
CREATE TABLE boots (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id TEXT NOT NULL,
    first_started_at INTEGER NOT NULL
) STRICT;

-- Requests to remove all of a project that was written before requested_at, with how far they have come.
-- marker_at is the time by the clock of the object store at which its part began.
CREATE TABLE clean_jobs (
    id INTEGER PRIMARY KEY,
    account_handle TEXT NOT NULL,
    project_handle TEXT NOT NULL,
    requested_at INTEGER NOT NULL,
    stage TEXT NOT NULL CHECK (stage IN ('key_values', 'artifacts', 'transfers', 'objects', 'done')),
    marker_at INTEGER,
    key_values INTEGER NOT NULL DEFAULT 0,
    artifacts INTEGER NOT NULL DEFAULT 0,
    transfers INTEGER NOT NULL DEFAULT 0,
    objects INTEGER NOT NULL DEFAULT 0,
    finished_at INTEGER,
    last_error TEXT
) STRICT;

CREATE INDEX clean_jobs_project ON clean_jobs (account_handle, project_handle, requested_at);
