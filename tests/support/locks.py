"""Holders of SQLite locks: what a backup or a `sqlite3` shell does to the node."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import apsw

LockMode = Literal["IMMEDIATE", "EXCLUSIVE"]

HOLDER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(10_000)
connection.execute("BEGIN " + sys.argv[2])
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
connection.close()
"""


@contextmanager
def lock_of_another_process(path: Path, mode: LockMode = "IMMEDIATE") -> Iterator[None]:
    """Another process holds the lock for as long as the block lasts."""
    command = [sys.executable, "-c", HOLDER, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.stdin.close()
            assert holder.wait(10) == 0


class Lock:
    """The lock of another connection of this process; far cheaper, the same to SQLite."""

    def __init__(self, path: Path, mode: LockMode = "IMMEDIATE") -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.set_busy_timeout(10_000)
        self._connection.execute(f"BEGIN {mode}")

    def release(self) -> None:
        """Idempotent."""
        self._connection.close()


@contextmanager
def lock_of_another_connection(path: Path, mode: LockMode = "IMMEDIATE") -> Iterator[Lock]:
    """Holds the lock until the end of the block, or until `release`."""
    lock = Lock(path, mode)
    try:
        yield lock
    finally:
        lock.release()
