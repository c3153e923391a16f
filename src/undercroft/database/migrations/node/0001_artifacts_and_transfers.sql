-- Times are microseconds since 1970-01-01 UTC.
CREATE TABLE cache_artifacts (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    content_sha256 TEXT CHECK (length(content_sha256) = 64),
    last_accessed_at INTEGER NOT NULL,
    inserted_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX cache_artifacts_last_accessed_at ON cache_artifacts (last_accessed_at);

-- id is a UUIDv7, so that the order of ids is the order of arrival.
CREATE TABLE s3_transfers (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL CHECK (type IN ('upload', 'download')),
    account_handle TEXT NOT NULL,
    project_handle TEXT NOT NULL,
    artifact_type TEXT NOT NULL,
    key TEXT NOT NULL,
    inserted_at INTEGER NOT NULL,
    claimed_at INTEGER
) STRICT;

-- Unique among rows nobody works on: what is queued again while its row is in work is a new row, not lost.
CREATE UNIQUE INDEX s3_transfers_unclaimed ON s3_transfers (type, key) WHERE claimed_at IS NULL;
