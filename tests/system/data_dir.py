"""What lies in a data directory, read with nothing of the node's own."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

SPILL = {"key_values.sqlite": "key_values.spill", "node.sqlite": "cas_artifacts.spill"}
"""The file next to each database that takes the rows it would not."""


def query(database: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows, through a connection of another SQLite library. `with` alone would not close it."""
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        return connection.execute(sql, values).fetchall()


def stored_values(data_dir: Path) -> dict[str, str]:
    """The committed key values: id and only value."""
    rows = query(data_dir / "key_values.sqlite", "SELECT key, json_payload FROM key_value_entries")
    return {key.split(":", 3)[3]: json.loads(payload)["entries"][0]["value"] for key, payload in rows}


def stored_artifacts(data_dir: Path) -> dict[str, tuple[int, str]]:
    """The committed artifact rows: key, size and digest."""
    rows = query(data_dir / "node.sqlite", "SELECT key, size_bytes, content_sha256 FROM cache_artifacts")
    return {key: (size, digest) for key, size, digest in rows}


def snapshot(directory: Path) -> dict[str, str]:
    """Every file under a directory that holds anything, with its digest.

    Not SQLite's `-shm`: whoever reads a database makes one, and nothing is kept in it.
    """
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files_under(directory)
        if path.stat().st_size and path.suffix != ".sqlite-shm"
    }


def files_under(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())
