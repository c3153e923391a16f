"""A ready-made table for programs that are not the node: the newest entry of each key wins."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import apsw
import msgspec

from undercroft.buffers.bufferable import Batch, QueueStats, as_json, in_batches, utf8_size

EntryT = TypeVar("EntryT", bound=msgspec.Struct)

# What Python and the dictionaries hold for one entry beside its texts; see `key_values.py`.
ENTRY_OVERHEAD_BYTES = 250


@dataclass(slots=True)
class Upserts(Generic[EntryT]):
    """At most one entry per key, the bytes of all, and those of the largest there was."""

    entries: dict[Hashable, EntryT] = field(default_factory=dict)
    bytes: int = 0
    largest: int = 0


class UpsertTable(Generic[EntryT]):
    """Rows that are written whole, the newest of each key being the one that counts.

    `statement` is one SQL statement that writes a batch and may write it twice without harm. It finds
    the batch as `:entries`, a JSON array with an array for each entry, its fields in their order:
    `INSERT INTO t SELECT value ->> 0, value ->> 1 FROM json_each(:entries) WHERE true ON CONFLICT ...`.
    The operation under which batches are counted is "upserts".
    """

    def __init__(
        self,
        buffer_name: str,
        entry_type: type[EntryT],
        statement: str,
        *,
        key: Callable[[EntryT], Hashable],
        may_be_dropped: bool = False,
    ) -> None:
        """`entry_type` is a `msgspec.Struct` with `frozen=True, array_like=True`; `key` says which row it is.

        `may_be_dropped`: entries are dropped, counted, when the buffer is nearly full, instead of refused.
        """
        self.buffer_name = buffer_name
        self.entry_types: dict[str, type[msgspec.Struct]] = {"upserts": entry_type}
        self._statement = statement
        self._key = key
        self._may_be_dropped = may_be_dropped
        self._texts = [
            name for name, kind in entry_type.__annotations__.items() if kind in (str, "str", "str | None")
        ]

    def init_state(self) -> Upserts[EntryT]:
        """Nothing."""
        return Upserts()

    def handle_event(self, state: Upserts[EntryT], event: EntryT) -> None:
        """Takes the place of an older entry of the same key."""
        key = self._key(event)
        older = state.entries.get(key)
        state.entries[key] = event
        size = self._size(event)
        state.bytes += size - (0 if older is None else self._size(older))
        state.largest = max(state.largest, size)

    def flush_batches(
        self, state: Upserts[EntryT], max_batch_size: int
    ) -> tuple[list[Batch], Upserts[EntryT]]:
        """All of them, in the order in which their keys came."""
        entries = state.entries.values()
        batches = in_batches("upserts", entries, max_batch_size, self._size, largest=state.largest)
        return batches, Upserts()

    def queue_stats(self, state: Upserts[EntryT]) -> QueueStats:
        """A row per key."""
        return QueueStats(len(state.entries), state.bytes)

    def queue_empty(self, state: Upserts[EntryT]) -> bool:
        """Whether there is none."""
        return not state.entries

    def pending(self, state: Upserts[EntryT], key: Any) -> EntryT | None:
        """The entry of the key."""
        return state.entries.get(key)

    def row_key(self, event: EntryT) -> Hashable:
        """The key."""
        return self._key(event)

    def entry_key(self, entry: EntryT) -> Hashable:
        """The key."""
        return self._key(entry)

    def sheddable(self, _event: EntryT) -> bool:
        """As it was said for the whole table."""
        return self._may_be_dropped

    def write_batch(self, connection: apsw.Connection, _operation: str, entries: Sequence[Any]) -> None:
        """Runs the statement once. Raises what SQLite raises."""
        connection.execute(self._statement, {"entries": as_json(entries)})

    def _size(self, entry: EntryT) -> int:
        return ENTRY_OVERHEAD_BYTES + sum(utf8_size(getattr(entry, name) or "") for name in self._texts)
