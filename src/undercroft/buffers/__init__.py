"""Write-behind buffers in front of SQLite, one per table. Start with DESIGN.md in this folder."""

from undercroft.buffers.bufferable import Batch, Bufferable, QueueStats
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.sqlite_buffer import SQLiteBuffer, Ticket

__all__ = ["Batch", "BufferSettings", "Bufferable", "QueueStats", "SQLiteBuffer", "Ticket"]
