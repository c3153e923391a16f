"""So much per second and no more: for work nobody waits for, next to work somebody does."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.open_file import READ_BYTES, CheckedFile

# Shorter pauses are put off until they add up: to sleep for each of thousands of files costs more than to
# look at it. What is idle saves up as much.
SLACK_S = 0.02

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Pace:
    """Lets `per_second` pass in any second, evenly, give or take what passes in `SLACK_S`."""

    def __init__(
        self, per_second: float, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep
    ) -> None:
        """`clock` in seconds from any start; `sleep` like that of asyncio."""
        self.per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._credit = 0.0
        self._at = clock()

    async def take(self, amount: float) -> None:
        """Takes so much; returns when the next may be taken. Others always get their turn meanwhile."""
        now = self._clock()
        earned = (now - self._at) * self.per_second
        self._at = now
        self._credit = min(self._credit + earned, self.per_second * SLACK_S) - amount
        wait = -self._credit / self.per_second
        await self._sleep(wait if wait > SLACK_S else 0)


class PacedDigest:
    """Computes digests of files in pieces, one disk thread at a time, at the pace of its bytes."""

    def __init__(self, threads: DiskThreads, pace: Pace) -> None:
        self._threads = threads
        self._pace = pace
        # No piece takes longer than a second, so that a stop need not wait and a progress line is told.
        self._piece = max(1, min(READ_BYTES, int(pace.per_second)))
        self.hashed = 0
        """Bytes since the beginning."""

    async def of(self, file: CheckedFile) -> str:
        """SHA-256 of an open file, 64 lowercase hex digits. Raises OSError."""
        digest = hashlib.sha256()
        offset = 0
        while offset < file.identity.size:
            length = min(self._piece, file.identity.size - offset)
            await self._pace.take(length)
            read = await self._threads.run(file.hash_piece, digest, offset, length)
            if not read:
                break  # it was cut meanwhile; its digest will tell
            offset += read
            self.hashed += read
        return digest.hexdigest()
