"""The threads that do what blocks on the disk."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

from undercroft.errors import ClosedError
from undercroft.storage.disk_speed import DiskSpeed
from undercroft.supervisor import to_its_end

T = TypeVar("T")
P = ParamSpec("P")

# More would not make one disk faster.
DISK_THREADS = 4

# What is done with so many bytes of a file takes as long as the calls to the file system, or less.
SMALL_BYTES = 64 << 10

# How long the event loop works on the disk before it looks after everybody else.
TURN_S = 0.001


class _Job(NamedTuple):
    done: "asyncio.Future[Any]"
    call: Callable[[], Any]


Inbox: TypeAlias = SimpleQueue["_Job | None"]
"""Of one thread. One for all would wake a second thread for each job, only to find nothing."""


class DiskThreads:
    """Runs functions that block.

    An executor of Python's would do as well, for more processor time: a call has one future here, not two,
    and wakes one thread. Which threads are idle only the event loop knows and changes.

    What is small the event loop does itself, as long as the disk is quick. A thread gives up the global lock
    for each call to the file system, and to get it back from a busy loop costs more than the call. The loop
    was held up longer by that than it is by the calls (docs/decisions/0022-small-files-on-the-loop.md).
    """

    def __init__(self, *, small_on_loop: bool = True) -> None:
        """Without `small_on_loop` everything is done by threads: whoever syncs knows that it takes long."""
        self._threads: list[threading.Thread] = []
        self._inboxes: list[Inbox] = []
        self._idle: list[Inbox] = []
        self._backlog: deque[_Job] = deque()
        """While no thread is idle. Filled by the loop, emptied by whoever has done a job."""
        self._small: deque[_Job] = deque()
        """What the loop does itself at its next turns."""
        self._small_on_loop = small_on_loop
        self._speed = DiskSpeed()
        self._closed = False

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in a thread and answers its result, or raises what it raised.

        Who is cancelled waits for it all the same: cleaning up under the thread's hands would close
        descriptors it still writes to. Raises `ClosedError` after `close`.
        """
        job = self._job(partial(function, *args, **kwargs))
        self._hand_over(job)
        result: T = await to_its_end(job.done)
        return result

    async def run_for(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `run`, for what is done with `size` bytes of a file, 0 where only its name is used.

        That is in a thread as well, unless it is little.
        """
        if size > SMALL_BYTES or not self._small_on_loop or not self._speed.is_quick:
            return await self.run(function, *args, **kwargs)
        job = self._job(partial(function, *args, **kwargs))
        if not self._small:
            asyncio.get_running_loop().call_soon(self._do_small)
        self._small.append(job)
        result: T = await to_its_end(job.done)
        return result

    def _job(self, call: Callable[[], Any]) -> _Job:
        if self._closed:
            raise ClosedError("the disk's threads have ended: nothing can be read or written")
        return _Job(asyncio.get_running_loop().create_future(), call)

    def _hand_over(self, job: _Job) -> None:
        if not self._threads:
            self._start(job.done.get_loop())
        if self._idle:
            self._idle.pop().put(job)
        else:
            self._backlog.append(job)

    def _hand_over_or_fail(self, job: _Job) -> None:
        try:
            self._hand_over(job)
        except RuntimeError as error:  # no more threads can be started
            job.done.set_exception(error)

    def _do_small(self) -> None:
        """Does as much as a turn of the loop may take; all the rest in threads if the disk turns out slow."""
        began = now = time.monotonic()
        while self._small and now - began < TURN_S:
            done, call = self._small.popleft()
            _settle(done, *_outcome(call))
            before, now = now, time.monotonic()
            self._speed.took(now - before)
        if not self._speed.is_quick:
            while self._small:
                self._hand_over_or_fail(self._small.popleft())
        elif self._small:
            asyncio.get_running_loop().call_soon(self._do_small)

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
            self._idle.append(inbox)

    def _work(self, loop: asyncio.AbstractEventLoop, inbox: Inbox) -> None:
        ended = False
        while not ended:
            job = inbox.get()
            ended = job is None
            job = job or self._next()
            while job is not None:
                done, result, error = job.done, *_outcome(job.call)
                job = self._next()
                loop.call_soon_threadsafe(self._ended, done, result, error, inbox if job is None else None)
                del done, result, error  # not until the next one comes

    def _next(self) -> _Job | None:
        try:
            return self._backlog.popleft()
        except IndexError:
            return None

    def _ended(
        self, done: "asyncio.Future[Any]", result: object, error: BaseException | None, idle: Inbox | None
    ) -> None:
        _settle(done, result, error)
        if idle is not None:
            # One may have come since the thread looked.
            if (job := self._next()) is None:
                self._idle.append(idle)
            else:
                idle.put(job)

    def close(self) -> None:
        """Ends the threads after what they are doing. Idempotent."""
        self._closed = True
        while self._small:
            done, call = self._small.popleft()
            _settle(done, *_outcome(call))
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _settle(done: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except StopIteration as end:  # no future takes it: in a coroutine it would mean a return
        return None, RuntimeError(f"{call} raised {end!r}")
    except BaseException as raised:  # noqa: BLE001  # whoever waits is told
        return None, raised
