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
"""An artifact was asked for. Measurement bytes sent; metadata tool, result (hit, miss, error)."""

UPLOAD = "undercroft.artifact.upload"
"""An upload ended. Measurement bytes; metadata tool, reason of an error, result (created, replaced,
exists, cancelled, error)."""

KEY_VALUE_GET = "undercroft.key_value.get"
"""A key value was asked for. Measurement count; metadata result (hit, miss)."""

KEY_VALUE_PUT = "undercroft.key_value.put"
"""A key value was written, or not. Measurement count; metadata result (success, error)."""

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
