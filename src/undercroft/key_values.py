"""The service of key values: `(project, cas_id) -> list of values`."""

from typing import Literal

from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueAccess, KeyValueEvent, KeyValueState, KeyValueWrite
from undercroft.clock import now_us
from undercroft.database import Database

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
        ticket = await self._buffer.enqueue(KeyValueWrite(key, json_payload))
        if self._waits:
            await self._buffer.committed(ticket)

    def get(self, key: str) -> str | None:
        """The newest payload, committed or not, or None; counts as an access. Blocks for one point query."""
        payload = self._pending(key) or self._stored(key)
        if payload is not None:
            self._buffer.enqueue_nowait(KeyValueAccess(key, now_us()))
        return payload

    def _pending(self, key: str) -> str | None:
        write: KeyValueWrite | None = self._buffer.pending(key)
        return None if write is None else write.json_payload

    def _stored(self, key: str) -> str | None:
        row = self._database.find("SELECT json_payload FROM key_value_entries WHERE key = ?", key)
        return None if row is None else str(row[0])

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()
