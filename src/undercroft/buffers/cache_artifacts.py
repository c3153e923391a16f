"""The buffer of what is known about artifacts."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import apsw
import msgspec

from undercroft.buffers.bufferable import Batch, QueueStats, as_json, in_batches, utf8_size
from undercroft.clock import now_us
from undercroft.database import transaction

ACCESSES = "cas_accesses"
DELETES = "cas_deletes"

# What Python and the dictionaries hold for one entry beside its key: 310 by tracemalloc, and some for
# a dictionary that just grew.
ENTRY_OVERHEAD_BYTES = 350


class ArtifactAccess(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The artifact under `key` was stored, or served, at `accessed_at` (microseconds since the epoch).

    `stored` tells the two apart: a store must reach the table, an access may be shed. Without a
    digest (64 lowercase hex digits of SHA-256) the table keeps the one it has. Only a store says who
    wrote the artifact, with which tool and client, and when its bytes were there (`stored_at`); if it
    does not, that is the time of its commit.

    With `instead_of` it is what a file says of itself that somebody found: it takes the place of the row
    that was `stored_at` that time, 0 for none, and of no other, which somebody has written meanwhile.
    """

    key: str
    size_bytes: int
    accessed_at: int
    content_sha256: str | None = None
    stored: bool = False
    written_by: str | None = None
    tool: str | None = None
    user_agent: str | None = None
    stored_at: int | None = None
    instead_of: int | None = None


class ArtifactDelete(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The artifact under `key` is gone, or only the one that was `stored_at` that time if there is one."""

    key: str
    stored_at: int | None = None


ArtifactEvent: TypeAlias = ArtifactAccess | ArtifactDelete


@dataclass(slots=True)
class CacheArtifactsState:
    """A key is in one of the two, or in both: then what was stored goes again, with what it replaces."""

    accesses: dict[str, ArtifactAccess] = field(default_factory=dict)
    deletes: dict[str, ArtifactDelete] = field(default_factory=dict)
    bytes: int = 0
    largest: int = 0
    """Bytes of the largest event there was."""


class CacheArtifactsBuffer:
    """Table `cache_artifacts`: an access cancels a pending delete of its key, a delete a pending access."""

    buffer_name = "cas_artifacts"
    entry_types: ClassVar[dict[str, type[msgspec.Struct]]] = {
        ACCESSES: ArtifactAccess,
        DELETES: ArtifactDelete,
    }

    def init_state(self) -> CacheArtifactsState:
        """An empty state."""
        return CacheArtifactsState()

    def handle_event(self, state: CacheArtifactsState, event: ArtifactEvent) -> None:
        """The last event of a key wins; an access keeps what a pending store said."""
        if isinstance(event, ArtifactDelete):
            self._delete(state, event)
            return
        size, older = _size(event), state.accesses.get(event.key)
        if older is None:
            state.bytes += size
            state.largest = max(state.largest, size)
        if state.deletes.pop(event.key, None) is not None:
            state.bytes -= size
            older = None
        state.accesses[event.key] = _merged(older, event)

    def _delete(self, state: CacheArtifactsState, event: ArtifactDelete) -> None:
        size, access = _size(event), state.accesses.get(event.key)
        if access is not None and access.stored and event.stored_at is not None:
            if access.stored_at != event.stored_at:
                return  # what it is about goes when that is written
            # That is written first: it takes the place of an older row, which would stay otherwise.
        elif access is not None:
            del state.accesses[event.key]
            state.bytes -= size
        if event.key not in state.deletes:
            state.bytes += size
            state.largest = max(state.largest, size)
        state.deletes[event.key] = event

    def flush_batches(
        self, state: CacheArtifactsState, max_batch_size: int
    ) -> tuple[list[Batch], CacheArtifactsState]:
        """Accesses first, then deletes."""
        largest = state.largest
        batches = in_batches(ACCESSES, state.accesses.values(), max_batch_size, _size, largest=largest)
        batches += in_batches(DELETES, state.deletes.values(), max_batch_size, _size, largest=largest)
        return batches, CacheArtifactsState()

    def queue_stats(self, state: CacheArtifactsState) -> QueueStats:
        """One row per key, but for one that is stored and deleted."""
        return QueueStats(len(state.accesses) + len(state.deletes), state.bytes)

    def queue_empty(self, state: CacheArtifactsState) -> bool:
        """Whether no key has an event."""
        return not state.accesses and not state.deletes

    def pending(self, state: CacheArtifactsState, key: Any) -> ArtifactEvent | None:
        """The pending store or delete. An access that stored nothing says nothing new of the row."""
        delete = state.deletes.get(key)
        if delete is not None:
            return delete
        access = state.accesses.get(key)
        return access if access is not None and access.stored else None

    def row_key(self, event: ArtifactEvent) -> Hashable:
        """The key."""
        return event.key

    def entry_key(self, entry: ArtifactEvent) -> Hashable:
        """The key."""
        return entry.key

    def sheddable(self, event: ArtifactEvent) -> bool:
        """Accesses that stored nothing are."""
        return isinstance(event, ArtifactAccess) and not event.stored

    def write_batch(self, connection: apsw.Connection, operation: str, entries: Sequence[Any]) -> None:
        """Upserts stores with the time of the flush, moves times of use, or deletes by the list of keys."""
        if operation == DELETES:
            connection.execute(DELETE, {"entries": as_json(entries)})
            return
        now = now_us()
        stores = [entry for entry in entries if entry.stored and entry.instead_of is None]
        found = [entry for entry in entries if entry.stored and entry.instead_of is not None]
        uses = [entry for entry in entries if not entry.stored]
        kinds = ((UPSERT, stores), (PUT_IN_PLACE, found), (USE, uses))
        work = [(sql, as_json(some)) for sql, some in kinds if some] or [(UPSERT, "[]")]
        # A lone statement is a transaction by itself. Of several none may be committed without the others.
        alone = len(work) == 1 or connection.in_transaction
        with nullcontext() if alone else transaction(connection):
            for sql, some in work:
                connection.execute(sql, {"entries": some, "now": now})


def _size(event: ArtifactEvent) -> int:
    return utf8_size(event.key) + ENTRY_OVERHEAD_BYTES


def _merged(older: ArtifactAccess | None, newer: ArtifactAccess) -> ArtifactAccess:
    """A store speaks for itself, but for a digest it does not know: that one is kept, as in the table.

    An access on top of a pending store only moves its time.
    """
    if older is None:
        return newer
    if older.stored and not newer.stored:
        return msgspec.structs.replace(older, accessed_at=max(older.accessed_at, newer.accessed_at))
    if older.stored and newer.instead_of is not None:
        # The row it was to replace is not written yet: what that was to replace, it replaces.
        newer = msgspec.structs.replace(newer, instead_of=older.instead_of)
        if older.content_sha256 == newer.content_sha256:
            written_by, tool, agent = older.written_by, older.tool, older.user_agent
            newer = msgspec.structs.replace(newer, written_by=written_by, tool=tool, user_agent=agent)
    if older.content_sha256 is not None and newer.content_sha256 is None:
        return msgspec.structs.replace(newer, content_sha256=older.content_sha256)
    return newer


# A WHERE keeps SQLite from reading ON CONFLICT as a join constraint (https://sqlite.org/lang_upsert.html).
# stored_at moves with stores only: what asks for it wants to know how old the bytes are.
_STORE = """
INSERT INTO cache_artifacts
    (key, size_bytes, content_sha256, last_accessed_at, inserted_at, updated_at, stored_at,
     written_by, tool, user_agent)
SELECT value ->> 0, value ->> 1, value ->> 3, value ->> 2, :now, :now, coalesce(value ->> 8, :now),
    value ->> 5, value ->> 6, value ->> 7
FROM json_each(:entries) WHERE {which}
ON CONFLICT (key) DO UPDATE SET
    size_bytes = excluded.size_bytes,
    content_sha256 = coalesce(excluded.content_sha256, content_sha256),
    last_accessed_at = excluded.last_accessed_at,
    updated_at = excluded.updated_at,
    stored_at = excluded.stored_at,
    {origin}
"""

_ORIGIN = ("written_by", "tool", "user_agent")

UPSERT = _STORE.format(which="true", origin=", ".join(f"{name} = excluded.{name}" for name in _ORIGIN))

# In a statement of its own: to look into the table it writes to costs SQLite a copy of all entries.
PUT_IN_PLACE = _STORE.format(
    which="""value ->> 9 = coalesce(
    (SELECT coalesce(a.stored_at, a.inserted_at) FROM cache_artifacts AS a WHERE a.key = value ->> 0), 0)""",
    # A file does not say who wrote it. What was known of the same bytes is true of them still.
    origin=", ".join(
        f"{name} = CASE WHEN cache_artifacts.content_sha256 = excluded.content_sha256 THEN {name} END"
        for name in _ORIGIN
    ),
)

# What is only used makes no row and changes no size: another process may have deleted or replaced it. Half
# the work of an upsert, too.
USE = """
UPDATE cache_artifacts SET last_accessed_at = used.at, updated_at = :now
FROM (SELECT value ->> 0 AS key, value ->> 2 AS at FROM json_each(:entries)) AS used
WHERE cache_artifacts.key = used.key
"""

# CROSS JOIN: the keys come first, each is looked up.
DELETE = """
DELETE FROM cache_artifacts WHERE id IN (
    SELECT a.id FROM json_each(:entries) AS gone CROSS JOIN cache_artifacts AS a ON a.key = gone.value ->> 0
    WHERE gone.value ->> 1 IS NULL OR gone.value ->> 1 = coalesce(a.stored_at, a.inserted_at)
)
"""
