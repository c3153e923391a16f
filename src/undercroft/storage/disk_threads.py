"""The threads that do what blocks on the disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

# More would not make one disk faster.
DISK_THREADS = 4


class DiskThreads:
    """Runs functions that block."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(DISK_THREADS, "disk")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in a thread and answers its result, or raises what it raised.

        Who is cancelled waits for it all the same: cleaning up under the thread's hands would close
        descriptors it still writes to.
        """
        call = partial(function, *args, **kwargs)
        job = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise

    def close(self) -> None:
        """Ends the threads after what they are doing. Idempotent."""
        self._threads.shutdown()
