"""SQLite: one writer thread per file, readers of their own, numbered migrations."""

from undercroft.database.connection import Database, transaction

__all__ = ["Database", "transaction"]
