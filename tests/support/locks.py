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

# Whoever starts one of these by hand waits for a lock longer than SQLite's shell does by default.
VACUUM = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(20_000)
connection.execute("VACUUM")
connection.close()
"""

VACUUM_INTO = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.set_busy_timeout(20_000)
connection.execute("VACUUM INTO ?", (sys.argv[2],))
connection.close()
"""

# All pages in one step: a backup in several starts again whenever somebody commits between them.
BACKUP = """
import sys, apsw
source, copy = apsw.Connection(sys.argv[1]), apsw.Connection(sys.argv[2])
source.set_busy_timeout(20_000)
with copy.backup("main", source, "main") as backup:
    backup.step(-1)
    assert backup.done
copy.close()
source.close()
"""


def run_in_another_process(program: str, *paths: Path) -> None:
    """Runs one of the programs above to its end. Raises `CalledProcessError`."""
    subprocess.run([sys.executable, "-c", program, *map(str, paths)], check=True, timeout=60)


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
