"""Background work, named and watched in one place."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Crash(NamedTuple):
    """A worker that ended before it was told to."""

    worker: str
    error: BaseException | None


class Supervisor:
    """Runs workers. One that ends on its own is a crash: the node cannot do without any of them."""

    def __init__(self) -> None:
        self._workers: dict[asyncio.Task[Any], str] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._end: asyncio.Future[Crash | None] | None = None

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Runs `work` as the worker `name` until `stop`."""
        task = asyncio.create_task(work, name=name)
        self._workers[task] = name
        task.add_done_callback(self._ended)

    def start_background(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """The same for work that nobody waits for: it ends first, by `stop_background`."""
        self.start(name, work)
        self._background.add(next(reversed(self._workers)))

    async def stop_background(self) -> None:
        """Cancels background work and waits for its end: it may still use every other part. Idempotent."""
        self.expect_end()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._background.clear()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if self._stopping or task.cancelled():
            return
        crash = Crash(self._workers[task], task.exception())
        self._finish(crash)
        log.error("worker_crashed", worker=crash.worker, exc_info=crash.error)

    def request_stop(self) -> None:
        """Lets `finished` return."""
        self._finish(None)

    async def finished(self) -> Crash | None:
        """Returns when a stop was asked for, or with the first crash."""
        return await asyncio.shield(self._ending())

    def _finish(self, crash: Crash | None) -> None:
        if not self._ending().done():
            self._ending().set_result(crash)

    def _ending(self) -> "asyncio.Future[Crash | None]":
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    def expect_end(self) -> None:
        """From now on a worker that ends has been told to."""
        self._stopping = True

    async def stop(self, grace_s: float = 1.0) -> None:
        """Waits for workers that were told to end, cancels those that did not. Idempotent."""
        self.expect_end()
        tasks = set(self._workers)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._workers.clear()


class Jobs:
    """Short work in the background whose end is no crash: each is awaited by whoever wants its outcome."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs `work`; it is kept alive until it ends. What it raises is its caller's, or nobody's."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever awaits the job gets the error, too; this is for the jobs that nobody awaits.
            log.info("job_failed", job=task.get_name(), error=repr(error))

    def __len__(self) -> int:
        return len(self._tasks)

    async def idle(self) -> None:
        """Returns when no job runs."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def stop(self) -> None:
        """Cancels what runs and waits for its end. Idempotent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def to_its_end(work: Awaitable[T]) -> T:
    """What `work` answers or raises. Who is cancelled waits for its end all the same, once."""
    begun = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(begun)
    except asyncio.CancelledError:
        if not begun.done():
            await asyncio.wait([begun])
            if not begun.cancelled():
                begun.exception()  # who would have heard of it has gone
        raise
