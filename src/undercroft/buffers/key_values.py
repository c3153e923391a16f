"""The buffer of key value entries."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import apsw
import msgspec

from undercroft.buffers.bufferable import Batch, QueueStats, as_json, in_batches, utf8_size
from undercroft.clock import now_us

WRITES = "key_values"
ACCESSES = "key_value_accesses"

# What Python and the dictionaries hold for one entry beside its strings: 150 by tracemalloc, and as much
# again as a dictionary may take just after it grew.
ENTRY_OVERHEAD_BYTES = 250


class KeyValueWrite(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of `key` is now `json_payload`."""

    key: str
    json_payload: str


class KeyValueAccess(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`key` was read at `accessed_at`, in microseconds since the epoch."""

    key: str
    accessed_at: int


KeyValueEvent: TypeAlias = KeyValueWrite | KeyValueAccess


@dataclass(slots=True)
class KeyValueState:
    """At most one event per key; apart, because to part 8,000 of them takes the loop 0.5 ms."""

    writes: dict[str, KeyValueWrite] = field(default_factory=dict)
    accesses: dict[str, KeyValueAccess] = field(default_factory=dict)
    bytes: int = 0
    largest: int = 0
    """Bytes of the largest event there was."""


class KeyValueBuffer:
    """Table `key_value_entries`: the newest write wins; an access counts only where nothing is pending."""

    buffer_name = "key_values"
    entry_types: ClassVar[dict[str, type[msgspec.Struct]]] = {WRITES: KeyValueWrite, ACCESSES: KeyValueAccess}

    def init_state(self) -> KeyValueState:
        """An empty state."""
        return KeyValueState()

    def handle_event(self, state: KeyValueState, event: KeyValueEvent) -> None:
        """A write replaces what is pending for its key; an access never does."""
        previous = state.writes.get(event.key) or state.accesses.get(event.key)
        if isinstance(event, KeyValueWrite):
            if previous is not None:
                state.bytes -= _size(previous)
                state.accesses.pop(event.key, None)
            state.writes[event.key] = event
        elif previous is None:
            state.accesses[event.key] = event
        else:
            return
        size = _size(event)
        state.bytes += size
        state.largest = max(state.largest, size)

    def flush_batches(self, state: KeyValueState, max_batch_size: int) -> tuple[list[Batch], KeyValueState]:
        """Writes first, then accesses."""
        largest = state.largest
        batches = in_batches(WRITES, state.writes.values(), max_batch_size, _size, largest=largest)
        batches += in_batches(ACCESSES, state.accesses.values(), max_batch_size, _size, largest=largest)
        return batches, KeyValueState()

    def queue_stats(self, state: KeyValueState) -> QueueStats:
        """One row per key."""
        return QueueStats(len(state.writes) + len(state.accesses), state.bytes)

    def queue_empty(self, state: KeyValueState) -> bool:
        """Whether no key has an event."""
        return not state.writes and not state.accesses

    def pending(self, state: KeyValueState, key: Any) -> KeyValueWrite | None:
        """The pending write, if any. An access says nothing about the value."""
        return state.writes.get(key)

    def row_key(self, event: KeyValueEvent) -> Hashable:
        """The key."""
        return event.key

    def entry_key(self, entry: KeyValueEvent) -> Hashable:
        """The key."""
        return entry.key

    def sheddable(self, event: KeyValueEvent) -> bool:
        """Accesses are."""
        return isinstance(event, KeyValueAccess)

    def write_batch(self, connection: apsw.Connection, operation: str, entries: Sequence[Any]) -> None:
        """Upserts writes with the time of the flush, or moves `last_accessed_at` forward."""
        sql = UPSERT if operation == WRITES else TOUCH
        connection.execute(sql, {"entries": as_json(entries), "now": now_us()})


def _size(event: KeyValueEvent) -> int:
    payload = utf8_size(event.json_payload) if isinstance(event, KeyValueWrite) else 0
    return utf8_size(event.key) + payload + ENTRY_OVERHEAD_BYTES


# "WHERE true" keeps SQLite from reading ON CONFLICT as a join constraint (https://sqlite.org/lang_upsert.html).
UPSERT = """
INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at)
SELECT value ->> 0, value ->> 1, :now, :now, :now FROM json_each(:entries) WHERE true
ON CONFLICT (key) DO UPDATE SET
    json_payload = excluded.json_payload,
    last_accessed_at = excluded.last_accessed_at,
    updated_at = excluded.updated_at
"""

TOUCH = """
UPDATE key_value_entries SET last_accessed_at = max(coalesce(last_accessed_at, 0), accessed.at)
FROM (SELECT value ->> 0 AS key, value ->> 1 AS at FROM json_each(:entries)) AS accessed
WHERE key_value_entries.key = accessed.key
"""
