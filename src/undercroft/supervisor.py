"""Background work, named and watched in one place."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple

import structlog

log = structlog.get_logger(__name__)


class Crash(NamedTuple):
    """A worker that ended before it was told to."""

    worker: str
    error: BaseException | None


class Supervisor:
    """Runs workers. One that ends on its own is a crash: the node cannot do without any of them."""

    def __init__(self) -> None:
        self._workers: dict[asyncio.Task[Any], str] = {}
        self._stopping = False
        self._end: asyncio.Future[Crash | None] | None = None

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        """Runs `work` as the worker `name` until `stop`."""
        task = asyncio.create_task(work, name=name)
        self._workers[task] = name
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if self._stopping or task.cancelled():
            return
        crash = Crash(self._workers[task], task.exception())
        log.error("worker_crashed", worker=crash.worker, exc_info=crash.error)
        self._finish(crash)

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
