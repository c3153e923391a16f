"""Whose turn it is: of several processes on one data directory, one does the background work."""

import asyncio
import fcntl
import os
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

# How soon another process takes over when the one that had the turn has died.
ASK_EVERY_S = 2.0


class Turn:
    """A lock on a file, held until `give_up` or the death of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._asking = asyncio.Lock()
        self._told = False
        self._failing: str | None = None

    async def wait(self) -> None:
        """Returns when it is this process's turn. One of those who wait asks for all of them."""
        async with self._asking:
            while True:
                if self._is_ours():
                    return
                await asyncio.sleep(ASK_EVERY_S)

    def _is_ours(self) -> bool:
        """Asks. What the system refuses now it may grant later: no reason to end a process that serves."""
        try:
            ours = self._taken()
        except OSError as error:
            reason = str(error)
            if reason != self._failing:
                log.warning("background_lock_failed", lock=str(self._path), error=reason)
            self._failing = reason
            return False
        self._failing = None
        if not ours and not self._told:
            log.info("background_work_elsewhere", lock=str(self._path))
            self._told = True
        return ours

    def _taken(self) -> bool:
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    @property
    def is_held(self) -> bool:
        """Whether this process has the turn."""
        return self._descriptor is not None

    def give_up(self) -> None:
        """Lets another process have the turn. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
