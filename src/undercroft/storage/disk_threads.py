"""The threads that do what blocks on the disk."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

from undercroft.errors import ClosedError

T = TypeVar("T")
P = ParamSpec("P")

# More would not make one disk faster.
DISK_THREADS = 4


class _Job(NamedTuple):
    done: "asyncio.Future[Any]"
    call: Callable[[], Any]


Inbox: TypeAlias = SimpleQueue["_Job | None"]
"""Of one thread. One for all would wake a second thread for each job, only to find nothing."""


class DiskThreads:
    """Runs functions that block.

    An executor of Python's would do as well, for more processor time: a call has one future here, not two,
    and wakes one thread. Which threads are idle only the event loop knows and changes.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._inboxes: list[Inbox] = []
        self._idle: list[Inbox] = []
        self._backlog: deque[_Job] = deque()
        """While no thread is idle. Filled by the loop, emptied by whoever has done a job."""
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
        if self._idle:
            self._idle.pop().put(job)
        else:
            self._backlog.append(job)
        try:
            return await asyncio.shield(job.done)
        except asyncio.CancelledError:
            if not job.done.done():
                await asyncio.wait([job.done])
            raise

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in range(DISK_THREADS):
            inbox: Inbox = SimpleQueue()
            # Daemons: what was not closed must not keep a process that ends.
            thread = threading.Thread(
                target=self._work, args=(loop, inbox), name=f"disk_{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
            self._inboxes.append(inbox)
        self._idle = [*self._inboxes]

    def _work(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        ended = False
        while not ended:
            job = inbox.get()
            ended = job is None
            job = job or self._next()
            while job is not None:
                done, result, error = job.done, *_outcome(job.call)
                job = self._next()
                loop.call_soon_threadsafe(self._settle, done, result, error, inbox if job is None else None)
                del done, result, error  # not until the next one comes

    def _next(self) -> _Job | None:
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def _settle(
        self, done: "asyncio.Future[Any]", result: object, error: BaseException | None, idle: Inbox | None
    ) -> None:
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
        if idle is not None:
            # One may have come since the thread looked.
            if (job := self._next()) is None:
                self._idle.append(idle)
            else:
                idle.put(job)

    def close(self) -> None:
        """Ends the threads after what they are doing. Idempotent."""
        self._closed = True
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except StopIteration as end:  # no future takes it: in a coroutine it would mean a return
        return None, RuntimeError(f"{call} raised {end!r}")
    except BaseException as raised:  # noqa: BLE001  # whoever waits is told
        return None, raised
