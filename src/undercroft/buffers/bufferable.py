"""The contract between the buffer mechanism and a table."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import apsw
import msgspec

StateT = TypeVar("StateT")
EventT = TypeVar("EventT", contravariant=True)
"""Whatever the table merges: one thing that happened to one row."""
EntryT = TypeVar("EntryT", bound=msgspec.Struct)

# A batch is one JSON text, encoded in one go with Python's global lock held: some 2 ms at this size.
BATCH_BYTES = 2 << 20


class QueueStats(NamedTuple):
    """What waits in a state: rows to write and an estimate of their size in bytes."""

    rows: int
    bytes: int


class Batch(NamedTuple):
    """Entries for one statement. `operation` is the label under which it is counted."""

    operation: str
    entries: Sequence[msgspec.Struct]


class Bufferable(Protocol[StateT, EventT]):
    """What a table brings to a `SQLiteBuffer`.

    A state is a plain value of the table's choice that only these methods read or change. All but
    `write_batch` run on the event loop: they must not block, raise, or take longer per event as the
    state grows. Entries are `msgspec.Struct`s with `array_like=True`, so that a batch is encoded as
    a JSON array of arrays, for SQLite and for the spill file alike.
    """

    buffer_name: str
    """The `buffer` label of every series, and the stem of the spill file."""

    @property
    def entry_types(self) -> Mapping[str, type[msgspec.Struct]]:
        """Each operation with the type of its entries, in the order in which they are written."""
        ...

    def init_state(self) -> StateT:
        """A new, empty state."""
        ...

    def handle_event(self, state: StateT, event: EventT) -> None:
        """Merges an event into the state by the table's rule; per key the last event wins."""
        ...

    def flush_batches(self, state: StateT, max_batch_size: int) -> tuple[list[Batch], StateT]:
        """All that is pending as batches of at most `max_batch_size` entries, and the state that follows.

        The old state is left as it was: `pending` still asks it while the batches are written, and
        they are made of it again if SQLite does not take them. What came later is written later, so
        a batch may say what a newer state contradicts.
        """
        ...

    def queue_stats(self, state: StateT) -> QueueStats:
        """What waits, in constant time."""
        ...

    def queue_empty(self, state: StateT) -> bool:
        """Whether nothing waits."""
        ...

    def pending(self, state: StateT, key: Any) -> Any | None:
        """What the state would make of the row with this key, None if it says nothing about it.

        The shape of the answer is the table's own; absence by a pending delete is not None.
        """
        ...

    def row_key(self, event: EventT) -> Hashable:
        """The key under which an entry made of this event may be refused."""
        ...

    def entry_key(self, entry: Any) -> Hashable:
        """The same key, of an entry."""
        ...

    def sheddable(self, event: EventT) -> bool:
        """Whether the event may be dropped under pressure because it only says "this was used"."""
        ...

    def write_batch(self, connection: apsw.Connection, operation: str, entries: Sequence[Any]) -> None:
        """Writes the entries with ONE statement, in the writer's thread, or with few in one transaction.

        The caller may have begun one; a batch that comes alone has none. Idempotent: a spilled batch may be
        written again. It may have no entries, which asks whether there is something wrong with the statement
        itself. Raises what SQLite raises.
        """
        ...


def in_batches(
    operation: str,
    entries: Iterable[EntryT],
    max_rows: int,
    size_of: Callable[[EntryT], int],
    *,
    largest: int,
) -> list[Batch]:
    """Cuts entries into batches of at most `max_rows`, and BATCH_BYTES unless one entry alone is larger.

    No entry has more than `largest` bytes. To measure 8,000 of them takes 5 ms of the event loop, so that is
    only done where that bound does not say already that they fit.
    """
    rows = list(entries)
    all_fit = max_rows * largest <= BATCH_BYTES
    batches: list[Batch] = []
    for start in range(0, len(rows), max_rows):
        part = rows[start : start + max_rows]
        fits = all_fit or sum(map(size_of, part)) <= BATCH_BYTES
        batches += [Batch(operation, part)] if fits else _cut(operation, part, size_of)
    return batches


def _cut(operation: str, entries: list[EntryT], size_of: Callable[[EntryT], int]) -> list[Batch]:
    """Cuts entries wherever the next one would not fit into BATCH_BYTES."""
    batches: list[Batch] = []
    start = total = 0
    for end, size in enumerate(map(size_of, entries)):
        if total + size > BATCH_BYTES and end > start:
            batches.append(Batch(operation, entries[start:end]))
            start, total = end, 0
        total += size
    return [*batches, Batch(operation, entries[start:])]


def utf8_size(text: str) -> int:
    """Bytes of the text as SQLite gets it. To ask whether it is ASCII takes no look at its characters."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def as_json(entries: Sequence[Any]) -> str:
    """Entries as the JSON array of arrays that a statement reads through `json_each`."""
    return msgspec.json.encode(entries).decode()
