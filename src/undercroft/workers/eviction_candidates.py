"""Which artifacts may go: the longest unused first, a slice at a time."""

from typing import NamedTuple

# Artifacts chosen with one query. What was used before the query counts.
SLICE_ROWS = 256

# Rows looked at with one query for those without a pending upload: some 10 ms of the one reader. With
# the object store down that may be all rows, and whoever else reads must get a turn.
LOOK_ROWS = 1_024


class Candidate(NamedTuple):
    """A row that may go. `used_at` in microseconds since the epoch."""

    id: int
    key: str
    size: int
    used_at: int
    uploading: bool


# No use is later: a time in microseconds that SQLite can hold.
EVER = 2**63 - 1

# Below every row.
FIRST = Candidate(-1, "", 0, -1, uploading=False)


def last_until(used_at: int) -> Candidate:
    """Above every row that was used until then, below those that were used later."""
    return Candidate(EVER, "", 0, used_at, uploading=False)


UPLOADING = "EXISTS (SELECT 1 FROM s3_transfers AS t WHERE t.key = a.key AND t.type = 'upload')"

# Both in the order of the index, id being part of it.
ALL_ROWS = """
SELECT id, key, size_bytes, last_accessed_at, {uploading}
FROM cache_artifacts AS a
WHERE (last_accessed_at, id) > (:used_at, :id)
ORDER BY last_accessed_at, id LIMIT :rows
"""

# And the last row that was looked at in any case, for the next slice to begin behind it.
WITHOUT_UPLOAD = """
WITH looked AS MATERIALIZED (
    SELECT id, key, size_bytes, last_accessed_at FROM cache_artifacts
    WHERE (last_accessed_at, id) > (:used_at, :id)
    ORDER BY last_accessed_at, id LIMIT :look
)
SELECT * FROM (SELECT *, {uploading} AS uploading FROM looked AS a)
WHERE NOT uploading OR id = (SELECT id FROM looked ORDER BY last_accessed_at DESC, id DESC LIMIT 1)
ORDER BY last_accessed_at, id LIMIT :rows
"""

ALL, SPARING_UPLOADS = ALL_ROWS.format(uploading=UPLOADING), WITHOUT_UPLOAD.format(uploading=UPLOADING)
