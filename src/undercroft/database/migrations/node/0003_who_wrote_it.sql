-- Who wrote an artifact, with which tool and client; NULL where nobody said, and in older rows.
ALTER TABLE cache_artifacts ADD COLUMN written_by TEXT;

ALTER TABLE cache_artifacts ADD COLUMN tool TEXT;

ALTER TABLE cache_artifacts ADD COLUMN user_agent TEXT;

-- Of a secret only its SHA-256 is kept. projects is a JSON array of patterns {account}/{project}. With a
-- scope what the token writes is seen by its own scope only.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),
    projects TEXT NOT NULL,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    scope TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE UNIQUE INDEX tokens_name ON tokens (name) WHERE revoked_at IS NULL;
