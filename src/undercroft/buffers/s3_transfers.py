"""The buffer of transfers to and from the object store."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import apsw
import msgspec

from undercroft.buffers.bufferable import Batch, QueueStats, as_json, in_batches

INSERTS = "s3_inserts"
DELETES = "s3_deletes"

TransferType: TypeAlias = Literal["upload", "download", "delete"]

# What Python and the dictionaries hold for one entry with its strings: an insert with a key of 64
# characters takes 470 by tracemalloc; keys may be several times as long.
INSERT_BYTES = 900
DELETE_BYTES = 250


class TransferInsert(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The artifact under `key` is to be moved, or its object removed. `id` is a UUIDv7.

    `inserted_at` is in microseconds since the epoch.
    """

    id: str
    type: TransferType
    account_handle: str
    project_handle: str
    artifact_type: str
    key: str
    inserted_at: int


class TransferDelete(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The transfer is done, or no longer wanted.

    Without an id: the delete of `key` was overtaken by an upload, unless it is in work.
    """

    id: str
    key: str | None = None


TransferEvent: TypeAlias = TransferInsert | TransferDelete


@dataclass(slots=True)
class S3TransfersState:
    """Inserts by type and key; which of them an id names; deletes by id, or by key where there is none."""

    inserts: dict[tuple[str, str], TransferInsert] = field(default_factory=dict)
    insert_of_id: dict[str, tuple[str, str]] = field(default_factory=dict)
    deletes: dict[str, TransferDelete] = field(default_factory=dict)


class S3TransfersBuffer:
    """Table `s3_transfers`: the first insert of a (type, key) stays, a delete is idempotent.

    A delete cancels the pending insert of the same id, so what is left to insert was queued after
    it. That is why deletes are written first: the other way round the old row would make the new
    one a duplicate, then go itself, and the artifact would never be moved. Likewise a delete of an
    object that was queued after the upload that overtook an older one stays.
    """

    buffer_name = "s3_transfers"
    entry_types: ClassVar[dict[str, type[msgspec.Struct]]] = {
        DELETES: TransferDelete,
        INSERTS: TransferInsert,
    }

    def init_state(self) -> S3TransfersState:
        """An empty state."""
        return S3TransfersState()

    def handle_event(self, state: S3TransfersState, event: TransferEvent) -> None:
        """Inserts are de-duplicated by type and key, deletes by id or key."""
        if isinstance(event, TransferDelete):
            overtaken = state.inserts.get(("delete", event.key)) if event.key is not None else None
            cancelled = state.insert_of_id.pop(overtaken.id if overtaken else event.id, None)
            if cancelled is not None:
                del state.inserts[cancelled]
            state.deletes[event.key or event.id] = event
        elif (event.type, event.key) not in state.inserts:
            state.inserts[event.type, event.key] = event
            state.insert_of_id[event.id] = (event.type, event.key)

    def flush_batches(
        self, state: S3TransfersState, max_batch_size: int
    ) -> tuple[list[Batch], S3TransfersState]:
        """Deletes first, then inserts; the class says why."""
        deletes, inserts = state.deletes.values(), state.inserts.values()
        batches = in_batches(DELETES, deletes, max_batch_size, _size, largest=DELETE_BYTES)
        batches += in_batches(INSERTS, inserts, max_batch_size, _size, largest=INSERT_BYTES)
        return batches, S3TransfersState()

    def queue_stats(self, state: S3TransfersState) -> QueueStats:
        """One row per insert and per delete."""
        inserts, deletes = len(state.inserts), len(state.deletes)
        return QueueStats(inserts + deletes, inserts * INSERT_BYTES + deletes * DELETE_BYTES)

    def queue_empty(self, state: S3TransfersState) -> bool:
        """Whether nothing is to be inserted or deleted."""
        return not state.inserts and not state.deletes

    def pending(self, state: S3TransfersState, key: Any) -> TransferEvent | None:
        """For an id its pending delete, for a (type, key) its pending insert."""
        return state.deletes.get(key) or state.inserts.get(key)

    def row_key(self, event: TransferEvent) -> Hashable:
        """The (type, key) of an insert, the id or key of a delete."""
        return event.key or event.id if isinstance(event, TransferDelete) else (event.type, event.key)

    def entry_key(self, entry: TransferEvent) -> Hashable:
        """The same."""
        return self.row_key(entry)

    def sheddable(self, event: TransferEvent) -> bool:  # noqa: ARG002  # the contract has it
        """Nothing is."""
        return False

    def write_batch(self, connection: apsw.Connection, operation: str, entries: Sequence[Any]) -> None:
        """Inserts what is not queued yet, or deletes by the list of ids."""
        sql = INSERT if operation == INSERTS else DELETE
        connection.execute(sql, {"entries": as_json(entries)})


def _size(event: TransferEvent) -> int:
    return DELETE_BYTES if isinstance(event, TransferDelete) else INSERT_BYTES


# A row in work is claimed and no longer in the unique index: what is queued meanwhile is a row of
# its own. A parked one that is queued again gets another chance, or new bytes would wait for the person
# whom the old ones wait for. The last conflict, on id, is a replayed insert.
INSERT = """
INSERT INTO s3_transfers (id, type, account_handle, project_handle, artifact_type, key, inserted_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
FROM json_each(:entries) WHERE true
ON CONFLICT (type, key) WHERE claimed_at IS NULL DO UPDATE
    SET parked_at = NULL, attempts = 0, next_attempt_at = 0 WHERE parked_at IS NOT NULL
ON CONFLICT DO NOTHING
"""

# What is in work stays: as long as its row is claimed nobody else works on the key.
DELETE = """
DELETE FROM s3_transfers WHERE id IN (SELECT value ->> 0 FROM json_each(:entries))
OR type = 'delete' AND claimed_at IS NULL
    AND key IN (SELECT value ->> 1 FROM json_each(:entries) WHERE value ->> 1 IS NOT NULL)
"""
