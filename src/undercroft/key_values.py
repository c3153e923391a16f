"""The service of key values: `(project, cas_id) -> list of values`."""

from typing import Literal

from undercroft.buffers import SQLiteBuffer, Ticket
from undercroft.buffers.key_values import KeyValueAccess, KeyValueEvent, KeyValueState, KeyValueWrite
from undercroft.clock import now_us
from undercroft.database import Database

# An access is recorded when the last one is longer ago. What asks for it counts in days, and a row
# written for every read made reads half as fast: docs/decisions/0006-access-resolution.md.
ACCESS_RESOLUTION_US = 60_000_000

KeyValues = SQLiteBuffer[KeyValueState, KeyValueEvent]


class KeyValueStore:
    """Reads and writes JSON payloads by row key (`storage.layout.key_value_key`)."""

    def __init__(self, database: Database, buffer: KeyValues, ack: Literal["committed", "buffered"]) -> None:
        self._database = database
        self._buffer = buffer
        self._waits = ack == "committed"

    async def put(self, key: str, json_payload: str) -> None:
        """Replaces the payload under `key`; durable on return when acknowledged means committed.

        Raises `BufferFullError`, `CommitTimeoutError`, `RowRefusedError`, `ClosedError`.
        """
        await self.settled(await self._buffer.enqueue(KeyValueWrite(key, json_payload)))

    def begin_put(self, key: str, json_payload: str) -> Ticket | None:
        """Accepts a payload for `settled` to wait for; None if there is no room. Raises `ClosedError`."""
        if self._buffer.is_full:
            return None
        return self._buffer.enqueue_nowait(KeyValueWrite(key, json_payload))

    async def settled(self, ticket: Ticket) -> None:
        """Returns when what was accepted is durable, where acknowledged means committed.

        Raises `CommitTimeoutError`, `RowRefusedError`, `ClosedError`.
        """
        if self._waits:
            await self._buffer.committed(ticket)

    def get(self, key: str) -> str | None:
        """The newest payload, committed or not, or None; counts as an access. Blocks for one point query."""
        write: KeyValueWrite | None = self._buffer.pending(key)
        return self._stored(key) if write is None else write.json_payload

    def _stored(self, key: str) -> str | None:
        row = self._database.find(SELECT, key)
        if row is None:
            return None
        payload, accessed_at = row
        now = now_us()
        if accessed_at is None or not 0 <= now - accessed_at < ACCESS_RESOLUTION_US:
            self._buffer.enqueue_nowait(KeyValueAccess(key, now))
        return str(payload)

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()


SELECT = "SELECT json_payload, last_accessed_at FROM key_value_entries WHERE key = ?"
