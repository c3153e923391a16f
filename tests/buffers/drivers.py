"""What the contract suite must know of a table: how to make its events and how to read it."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import apsw

from undercroft.buffers import Bufferable
from undercroft.buffers.cache_artifacts import ArtifactAccess, ArtifactDelete, CacheArtifactsBuffer
from undercroft.buffers.key_values import KeyValueAccess, KeyValueBuffer, KeyValueWrite
from undercroft.buffers.s3_transfers import S3TransfersBuffer, TransferInsert
from undercroft.database.schema import KEY_VALUES, NODE, Schema


class Driver(ABC):
    """A row is named by a short key and carries a version, a positive number."""

    schema: Schema
    table_name: str
    write_operation: str
    has_accesses = True
    refuses: str | None = None
    """What the table is made to refuse beside its own constraints: a condition on the new row."""

    @abstractmethod
    def make_table(self) -> Bufferable[Any, Any]: ...

    @abstractmethod
    def write(self, key: str, version: int = 1) -> Any:
        """An event that must reach the table."""

    @abstractmethod
    def bad_write(self, key: str) -> Any:
        """The same, but SQLite refuses the row."""

    def prepare(self, connection: apsw.Connection) -> None:
        """Makes a writing connection refuse bad writes."""
        if self.refuses is not None:
            connection.execute(
                f"CREATE TEMP TRIGGER refuse_bad_rows BEFORE INSERT ON {self.table_name} "
                f"WHEN {self.refuses} BEGIN SELECT RAISE(ABORT, 'bad row'); END"
            )

    def access(self, key: str) -> Any:
        """An event that may be shed."""
        raise NotImplementedError

    @abstractmethod
    def row_key(self, key: str) -> Hashable:
        """The key as `pending` wants it."""

    @abstractmethod
    def version_of(self, event: Any) -> int:
        """The version an event, or what `pending` answered, carries."""

    def version_after(self, first: int, second: int) -> int:  # the rule of most tables
        """What two writes of the same key, committed one after the other, leave in the table."""
        return second

    @abstractmethod
    def _select(self) -> str: ...

    def rows(self, path: Path) -> dict[str, int]:
        """All rows of the table, key and version, as another connection sees them."""
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            return {str(key): int(version) for key, version in connection.execute(self._select())}
        finally:
            connection.close()

    def __repr__(self) -> str:
        return self.table_name


class KeyValues(Driver):
    schema = KEY_VALUES
    table_name = "key_value_entries"
    write_operation = "key_values"
    refuses = "new.json_payload = 'bad'"

    def make_table(self) -> Bufferable[Any, Any]:
        return KeyValueBuffer()

    def write(self, key: str, version: int = 1) -> KeyValueWrite:
        return KeyValueWrite(key, str(version))

    def bad_write(self, key: str) -> KeyValueWrite:
        return KeyValueWrite(key, "bad")

    def access(self, key: str) -> KeyValueAccess:
        return KeyValueAccess(key, 1)

    def row_key(self, key: str) -> Hashable:
        return key

    def version_of(self, event: KeyValueWrite) -> int:
        return int(event.json_payload)

    def _select(self) -> str:
        return "SELECT key, CAST(json_payload AS INTEGER) FROM key_value_entries"


class CacheArtifacts(Driver):
    schema = NODE
    table_name = "cache_artifacts"
    write_operation = "cas_accesses"

    def make_table(self) -> Bufferable[Any, Any]:
        return CacheArtifactsBuffer()

    def write(self, key: str, version: int = 1) -> ArtifactAccess:
        return ArtifactAccess(key, version, version, stored=True)

    def bad_write(self, key: str) -> ArtifactAccess:
        return ArtifactAccess(key, -1, 1, stored=True)  # the CHECK of the column

    def access(self, key: str, version: int = 1) -> ArtifactAccess:
        return ArtifactAccess(key, version, version)

    def delete(self, key: str) -> ArtifactDelete:
        return ArtifactDelete(key)

    def row_key(self, key: str) -> Hashable:
        return key

    def version_of(self, event: ArtifactAccess) -> int:
        return event.size_bytes

    def _select(self) -> str:
        return "SELECT key, size_bytes FROM cache_artifacts"


class S3Transfers(Driver):
    schema = NODE
    table_name = "s3_transfers"
    write_operation = "s3_inserts"
    refuses = "new.account_handle = 'bad'"
    has_accesses = False

    def make_table(self) -> Bufferable[Any, Any]:
        return S3TransfersBuffer()

    def write(self, key: str, version: int = 1) -> TransferInsert:
        return TransferInsert(f"{key}-{version}", "upload", "acme", "app", "xcode", key, version)

    def bad_write(self, key: str) -> TransferInsert:
        return TransferInsert(f"{key}-bad", "upload", "bad", "app", "xcode", key, 1)

    def row_key(self, key: str) -> Hashable:
        return ("upload", key)

    def version_of(self, event: TransferInsert) -> int:
        return event.inserted_at

    def version_after(self, first: int, second: int) -> int:  # de-duplicated by (type, key)
        return first

    def _select(self) -> str:
        return "SELECT key, inserted_at FROM s3_transfers"


DRIVERS: tuple[Driver, ...] = (KeyValues(), CacheArtifacts(), S3Transfers())
