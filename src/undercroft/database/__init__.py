"""SQLite: one writer thread per file, readers of their own, numbered migrations."""

from undercroft.database.connection import NOT_WRITABLE, Database, transaction

__all__ = ["NOT_WRITABLE", "Database", "transaction"]
