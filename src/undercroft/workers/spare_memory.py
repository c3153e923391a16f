"""Gives memory back after a burst: page cache, free lists and heap that a quiet hour has no use for."""

import asyncio
import ctypes
import gc
from collections.abc import Sequence

from undercroft.database import Database
from undercroft.errors import ClosedError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata

# A whole minute must have been calm: where load comes and goes this is done every other minute at most.
LOOK_S = 60.0

# Rows committed from one look to the next. What fewer leave behind is not worth a pause, and a node that is
# kept this busy would fill its page cache again at once.
BURST_ROWS = 10_000


class SpareMemory:
    """Waits for bursts of writes to end, in every process: docs/decisions/0023-memory-after-bursts.md."""

    def __init__(self, databases: Sequence[Database], telemetry: Events) -> None:
        self._databases = tuple(databases)
        self._rows = 0
        self._after_burst = False
        telemetry.attach(events.FLUSH, self._count)

    def _count(self, measurements: Measurements, _metadata: Metadata) -> None:
        self._rows += int(measurements["batch_size"])

    async def run(self) -> None:
        """Looks every minute until it is cancelled, or the databases are closed."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except ClosedError:
                return

    async def look(self) -> None:
        """Gives memory back when the time since the last look was calm, and some before it was not.

        Raises `ClosedError`.
        """
        rows, self._rows = self._rows, 0
        if rows >= BURST_ROWS:
            self._after_burst = True
        elif self._after_burst:
            self._after_burst = False
            await self.give_back()

    async def give_back(self) -> None:
        """Frees what nobody needs. Raises `ClosedError`.

        The order matters: pages and free lists become holes in the heap, which is cut and punched last.
        """
        for database in self._databases:
            await database.release_pages()
        # Not for garbage, of which there is next to none: only a full collection empties Python's free lists,
        # and a few tuples of them here and there keep most of the memory that freed rows had.
        gc.collect()
        await asyncio.to_thread(_trim_heap)


def _trim_heap() -> None:
    # Of glibc (man 3 malloc_trim); others give memory back on their own, or cannot.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
