"""Write-behind buffers in front of SQLite, one per table. Start with DESIGN.md in this folder.

They work in any asyncio program, for its own tables: `open_buffer` with an `UpsertTable`, or with a
`Bufferable` of one's own.
"""

from undercroft.buffers.bufferable import Batch, Bufferable, QueueStats
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.sqlite_buffer import SQLiteBuffer, Ticket
from undercroft.buffers.standalone import OpenBuffer, open_buffer
from undercroft.buffers.upsert_table import UpsertTable
from undercroft.errors import (
    BufferFullError,
    ClosedError,
    CommitTimeoutError,
    DatabaseLockedError,
    DataDirectoryError,
    RowRefusedError,
)

__all__ = [
    "Batch",
    "BufferFullError",
    "BufferSettings",
    "Bufferable",
    "ClosedError",
    "CommitTimeoutError",
    "DataDirectoryError",
    "DatabaseLockedError",
    "OpenBuffer",
    "QueueStats",
    "RowRefusedError",
    "SQLiteBuffer",
    "Ticket",
    "UpsertTable",
    "open_buffer",
]
