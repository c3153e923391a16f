"""`undercroft` with a fault in it that SIGUSR1 sets off.

Run as a script: `python crashing_node.py FAULT serve ...`. A fault is `worker NAME` in one word
(`worker:http server`): that worker ends with an error; `table:NAME`: every write of that
buffer's table raises something that no SQLite ever raised, from then on; or `name:over` and `name:new`:
the process is killed as soon as a file has been given its name, in the place of another or not, so before
its row is known to anybody.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import apsw

from undercroft import cli
from undercroft.buffers.bufferable import Bufferable
from undercroft.buffers.cache_artifacts import CacheArtifactsBuffer
from undercroft.buffers.key_values import KeyValueBuffer
from undercroft.buffers.s3_transfers import S3TransfersBuffer
from undercroft.storage.disk import Disk, TemporaryFile
from undercroft.supervisor import Supervisor

FAULT = "injected fault"


def break_worker(victim: str) -> None:
    """The worker of that name ends with an error at SIGUSR1."""
    really_start = Supervisor.start

    def start(supervisor: Supervisor, name: str, work: Coroutine[Any, Any, Any]) -> None:
        really_start(supervisor, name, _crash_at_signal(work) if name == victim else work)

    Supervisor.start = start  # type: ignore[method-assign,assignment]


async def _crash_at_signal(work: Coroutine[Any, Any, Any]) -> None:
    struck = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, struck.set)
    working = asyncio.ensure_future(work)
    striking = asyncio.ensure_future(struck.wait())
    await asyncio.wait({working, striking}, return_when=asyncio.FIRST_COMPLETED)
    striking.cancel()
    if struck.is_set():
        working.cancel()
        raise RuntimeError(FAULT)
    await working


def break_table(victim: str) -> None:
    """Writes of the table of that name raise after SIGUSR1."""
    tables: tuple[type[Bufferable[Any, Any]], ...] = (KeyValueBuffer, CacheArtifactsBuffer, S3TransfersBuffer)
    (table,) = (table for table in tables if table.buffer_name == victim)
    really_write = table.write_batch
    struck = False

    def strike(*_: object) -> None:
        nonlocal struck
        struck = True

    def write_batch(
        self: Bufferable[Any, Any], connection: apsw.Connection, operation: str, entries: Sequence[Any]
    ) -> None:
        if struck:
            raise RuntimeError(FAULT)
        really_write(self, connection, operation, entries)

    signal.signal(signal.SIGUSR1, strike)
    table.write_batch = write_batch  # type: ignore[method-assign]


def die_between_name_and_row(publish: str) -> None:
    """SIGKILL in the thread that has just published a file, at the first one after SIGUSR1."""
    method = f"publish_{publish}"
    really_publish = getattr(Disk, method)
    struck = False

    def strike(*_: object) -> None:
        nonlocal struck
        struck = True
        os.write(2, b'{"event": "struck"}\n')  # like a log record, for who waits for it

    def publish_and_die(self: Disk, temporary: TemporaryFile, key: str) -> Any:
        result = really_publish(self, temporary, key)
        if struck:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    signal.signal(signal.SIGUSR1, strike)
    setattr(Disk, method, publish_and_die)


if __name__ == "__main__":
    kind, _, name = sys.argv.pop(1).partition(":")
    {"worker": break_worker, "table": break_table, "name": die_between_name_and_row}[kind](name)
    cli.main()
