"""The threads that do what blocks on the disk."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

from undercroft.errors import ClosedError

T = TypeVar("T")
P = ParamSpec("P")

# More would not make one disk faster.
DISK_THREADS = 4


class _Job(NamedTuple):
    done: "asyncio.Future[Any]"
    call: Callable[[], Any]


class DiskThreads:
    """Runs functions that block.

    An executor of Python's would do as well, for more processor time: here nobody counts idle threads, and
    a call has one future, not two.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in a thread and answers its result, or raises what it raised.

        Who is cancelled waits for it all the same: cleaning up under the thread's hands would close
        descriptors it still writes to. Raises `ClosedError` after `close`.
        """
        if self._closed:
            raise ClosedError("the disk's threads have ended: nothing can be read or written")
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._start(loop)
        job = _Job(loop.create_future(), partial(function, *args, **kwargs))
        self._jobs.put(job)
        try:
            return await asyncio.shield(job.done)
        except asyncio.CancelledError:
            if not job.done.done():
                await asyncio.wait([job.done])
            raise

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        names = (f"disk_{number}" for number in range(DISK_THREADS))
        # Daemons: what was not closed must not keep a process that ends.
        self._threads = [
            threading.Thread(target=self._work, args=(loop,), name=name, daemon=True) for name in names
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = job.call()
            except StopIteration as end:  # no future takes it: in a coroutine it would mean a return
                error = RuntimeError(f"{job.call} raised {end!r}")
            except BaseException as raised:  # noqa: BLE001  # whoever waits is told
                error = raised
            loop.call_soon_threadsafe(_settle, job.done, result, error)
            del job, result, error  # not until the next one comes

    def close(self) -> None:
        """Ends the threads after what they are doing. Idempotent."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _settle(done: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
