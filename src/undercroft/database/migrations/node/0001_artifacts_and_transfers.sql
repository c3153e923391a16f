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

-- How many bytes all artifacts take, kept by triggers: summing millions of rows would make every start slow.
CREATE TABLE artifact_totals (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    size_bytes INTEGER NOT NULL
) STRICT;

INSERT INTO artifact_totals (id, size_bytes) VALUES (1, 0);

CREATE TRIGGER cache_artifacts_inserted AFTER INSERT ON cache_artifacts
BEGIN
    UPDATE artifact_totals SET size_bytes = size_bytes + new.size_bytes;
END;

CREATE TRIGGER cache_artifacts_deleted AFTER DELETE ON cache_artifacts
BEGIN
    UPDATE artifact_totals SET size_bytes = size_bytes - old.size_bytes;
END;

CREATE TRIGGER cache_artifacts_resized AFTER UPDATE OF size_bytes ON cache_artifacts
WHEN new.size_bytes <> old.size_bytes
BEGIN
    UPDATE artifact_totals SET size_bytes = size_bytes + new.size_bytes - old.size_bytes;
END;
