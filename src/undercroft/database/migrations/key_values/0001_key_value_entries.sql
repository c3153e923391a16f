-- Times are microseconds since 1970-01-01 UTC.
CREATE TABLE key_value_entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    json_payload TEXT NOT NULL,
    last_accessed_at INTEGER,
    inserted_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE INDEX key_value_entries_last_accessed_at ON key_value_entries (last_accessed_at);
