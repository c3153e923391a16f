"""The statements of the table of transfers, but for those of its buffer."""

# Conditions are in the words of the indexes, without which SQLite would not use those.

PENDING = """
SELECT id, type, account_handle, project_handle, artifact_type, key, inserted_at
FROM s3_transfers WHERE type = ? AND claimed_at IS NULL ORDER BY id LIMIT ?
"""

IS_QUEUED = "SELECT 1 FROM s3_transfers WHERE key = ? AND type = ? LIMIT 1"

OUTDATES = "SELECT 1 FROM s3_transfers WHERE key = ? AND type <> 'download' LIMIT 1"

NEXT_ATTEMPT = """
SELECT min(next_attempt_at) FROM s3_transfers
WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at > 0
"""

COUNT = "SELECT type, count(*), count(parked_at) FROM s3_transfers GROUP BY type"

# Makes rows ready whose time has come, or will not come. Two statements: a range of the index each.
WAKE_WHICH = """
UPDATE s3_transfers SET next_attempt_at = 0 WHERE id IN (
    SELECT id FROM s3_transfers
    WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at > 0 AND next_attempt_at {} ?
    ORDER BY next_attempt_at LIMIT ?
)
"""
WAKE, WAKE_ASTRAY = WAKE_WHICH.format("<="), WAKE_WHICH.format(">")

# Downloads (0) or all others (1). No more rows are passed over than there are with the keys in work.
READY = """
SELECT id, type, key, attempts FROM s3_transfers AS ready
WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at = 0 AND (type <> 'download') = ?
AND NOT EXISTS (
    SELECT 1 FROM s3_transfers AS other WHERE other.key = ready.key AND other.claimed_at IS NOT NULL
)
ORDER BY id LIMIT ?
"""

CLAIM = "UPDATE s3_transfers SET claimed_at = ? WHERE id = ?"

SELECT_CLAIMED = "SELECT id, type, key, attempts FROM s3_transfers WHERE claimed_at IS NOT NULL"

RELEASE = "UPDATE s3_transfers SET claimed_at = NULL WHERE id = ?"

FAIL = """
UPDATE s3_transfers
SET claimed_at = NULL, attempts = ?, next_attempt_at = ?, parked_at = ?, last_error = ? WHERE id = ?
"""

# The same type, or an upload that was queued after a delete. Ids are in the order of arrival.
DROP_IF_QUEUED_AGAIN = """
DELETE FROM s3_transfers WHERE id = ?1 AND EXISTS (
    SELECT 1 FROM s3_transfers AS newer
    WHERE newer.type IN (?2, iif(?2 = 'delete', 'upload', ?2)) AND newer.key = ?3
    AND newer.claimed_at IS NULL AND newer.id <> ?1 AND (newer.type = ?2 OR newer.id > ?1)
)
"""

HURRY = """
UPDATE s3_transfers SET next_attempt_at = 0 WHERE id IN (
    SELECT id FROM s3_transfers WHERE claimed_at IS NULL AND parked_at IS NULL AND next_attempt_at > 0 LIMIT ?
)
"""

RETRY_PARKED = """
UPDATE s3_transfers SET parked_at = NULL, attempts = 0, next_attempt_at = 0
WHERE id IN (SELECT id FROM s3_transfers WHERE parked_at IS NOT NULL LIMIT ?)
"""

LIST = """
SELECT id, type, key,
    CASE WHEN parked_at IS NOT NULL THEN 'parked' WHEN claimed_at IS NULL THEN 'waiting' ELSE 'in work' END,
    attempts, inserted_at, next_attempt_at, last_error
FROM s3_transfers WHERE parked_at {} NULL AND id > ? ORDER BY id LIMIT ?
"""
LIST_PARKED, LIST_OTHERS = LIST.format("IS NOT"), LIST.format("IS")
