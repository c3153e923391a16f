"""Events: what happened, with numbers and labels. Who wants to count them attaches a handler."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

FLUSH = "cache.sqlite_writer.flush"
"""A transaction was committed. Measurements duration_ms, batch_size; metadata buffer, operation."""

RETRY = "cache.sqlite_writer.retry"
"""The database was locked. Measurement count; metadata buffer, operation, attempt."""

REFUSED = "undercroft.buffer.refused"
"""A row was set aside. Measurement count; metadata buffer, operation."""

REJECTED = "undercroft.buffer.rejected"
"""An event found no room. Measurement count; metadata buffer."""

SHED = "undercroft.buffer.shed"
"""An access was dropped under pressure. Measurement count; metadata buffer."""

STALLED = "undercroft.buffer.stalled"
"""A flush failed, its rows are kept. Measurement count; metadata buffer, error."""

SPILLED = "undercroft.buffer.spilled"
"""Rows were written to the spill file at shutdown. Measurement count; metadata buffer."""

REPLAYED = "undercroft.buffer.replayed"
"""Rows of a spill file were committed at start. Measurement count; metadata buffer."""

COMMIT_WAIT = "undercroft.buffer.commit_wait"
"""Somebody waited for a commit. Measurement seconds; metadata buffer."""

DOWNLOAD = "undercroft.artifact.download"
"""An artifact was asked for. Measurement bytes sent; metadata tool, project (`account/project`), result (hit,
s3_hit, miss, s3_miss, error)."""

UPLOAD = "undercroft.artifact.upload"
"""An upload ended. Measurement bytes; metadata tool, project, reason of an error, result (created, replaced,
exists, cancelled, error)."""

KEY_VALUE_GET = "undercroft.key_value.get"
"""A key value was asked for. Measurement count; metadata project, result (hit, miss)."""

KEY_VALUE_PUT = "undercroft.key_value.put"
"""A key value was written, or not. Measurement count; metadata project, result (success, error)."""

TURBOREPO = "undercroft.turborepo.reported"
"""Turborepo told what its local and remote cache did. Measurements count, saved_seconds; metadata project,
source (local, remote), event (hit, miss)."""

OBJECT_STORE_REQUEST = "undercroft.object_store.request"
"""The object store was asked. Measurement duration_ms; metadata operation (head, download, upload,
delete, list), result (found, absent, done, throttled, error)."""

TRANSFER = "undercroft.transfer"
"""A transfer was worked on. Measurement bytes; metadata type, result (moved, skipped, gone, retried,
parked)."""

HYDRATION = "undercroft.hydration"
"""An artifact was fetched from the object store. Measurement bytes; metadata result (stored, absent,
failed, refused)."""

DISK_EVICTED = "undercroft.disk.evicted"
"""An artifact was evicted. Measurements bytes (0 if its file was missing), age_seconds since its last
access."""

KEY_VALUES_EVICTED = "undercroft.key_values.evicted"
"""A slice of key values was evicted. Measurements count, age_seconds of the youngest of them; metadata
reason (age, size)."""

RECONCILED = "undercroft.reconciled"
"""Reconcile looked at something. Measurement count; metadata found (agrees, adopted, removed,
row_without_file, damaged, foreign, failed)."""

RECONCILE_ROUND = "undercroft.reconcile.round"
"""Reconcile has seen everything once. Measurement duration_seconds."""

UPKEEP = "undercroft.database.upkeep"
"""Maintenance did a step. Measurement pages (given back, or copied out of the WAL); metadata database,
step (vacuum, truncate, optimize), result (done, busy)."""

CLEANED = "undercroft.project.cleaned"
"""Something of a project was removed. Measurement count; metadata what (key_values, artifacts,
transfers, objects)."""

AUTH_CACHE = "undercroft.auth.cache"
"""It was looked whether a credential is remembered. Measurement count; metadata result (hit, miss)."""

AUTH_SERVER_REQUEST = "undercroft.auth.server_request"
"""A Tuist server is asked what a caller may do. Measurement count."""

AUTHORIZED = "undercroft.auth.authorized"
"""Somebody with a credential was let in. Measurement count; metadata method (jwt, server, token)."""

AUTH_REFUSED = "undercroft.auth.refused"
"""Somebody was not let in. Measurement count; metadata reason (missing, unauthenticated, forbidden,
read_only, unknown)."""

Measurements: TypeAlias = Mapping[str, float]
Metadata: TypeAlias = Mapping[str, str]
Handler: TypeAlias = Callable[[Measurements, Metadata], None]


class Events:
    """Hands each event to the handlers attached to its name, at once, on the caller's thread."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}

    def attach(self, name: str, handler: Handler) -> None:
        """Calls `handler(measurements, metadata)` for every event of that name from now on."""
        self._handlers.setdefault(name, []).append(handler)

    def emit(self, name: str, measurements: Measurements, metadata: Metadata) -> None:
        """Tells everyone who attached."""
        for handler in self._handlers.get(name, ()):
            handler(measurements, metadata)
