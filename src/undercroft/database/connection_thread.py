"""A thread with a connection of its own: what it is given runs there, in order."""

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import apsw

from undercroft.errors import ClosedError

T = TypeVar("T")


def processors() -> int:
    """How many of them the threads of this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


class ConnectionThread:
    """A thread that owns one connection and runs functions on it in the order of their submission."""

    def __init__(self, name: str, open_in_thread: Callable[[], apsw.Connection], niceness: int) -> None:
        """`niceness` is added to that of the process."""
        self._open = open_in_thread
        self._niceness = niceness
        self._jobs: queue.SimpleQueue[Callable[[apsw.Connection], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._accepts = False

    def open(self) -> None:
        """Starts the thread and waits for its connection. Raises what SQLite raised."""
        self._thread.start()
        error = self._opened.get()
        if error is not None:
            self._thread.join()
            raise error
        self._accepts = True

    def _work(self) -> None:
        with suppress(OSError):  # where a sandbox forbids it they are as nice as the loop
            os.nice(self._niceness)  # on Linux that of a thread (man 2 nice)
        try:
            connection = self._open()
        except BaseException as error:  # noqa: BLE001  # handed to `open`, which waits for an answer
            self._opened.put(error)
            return
        self._opened.put(None)
        while (job := self._jobs.get()) is not None:
            job(connection)
            del job  # what it wrote is not kept while nothing is to be done
        connection.close()

    def post(self, job: Callable[[apsw.Connection], None]) -> None:
        """Submits a job nobody waits for. It must not raise."""
        if self._accepts:
            self._jobs.put(job)

    async def run(self, function: Callable[[apsw.Connection], T]) -> T:
        """Runs `function` in the thread and answers its result, or raises what it raised.

        If the caller is cancelled the function still runs.
        """
        if not self._accepts:
            raise ClosedError(f"{self._thread.name} is closed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def job(connection: apsw.Connection) -> None:
            outcome: Callable[[], None]
            try:
                result = function(connection)
            except StopIteration as error:
                # No future takes this one: the caller would wait for ever.
                outcome = _setter(answer.set_exception, RuntimeError(f"the function raised {error!r}"))
            except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
                outcome = _setter(answer.set_exception, error)
            else:
                outcome = _setter(answer.set_result, result)
            # A loop that is already gone has nobody left to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_tell, answer, outcome)

        self._jobs.put(job)
        return await answer

    async def close(self) -> None:
        """Finishes what was submitted, closes the connection, ends the thread. Idempotent."""
        self._stop_accepting()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def abandon(self) -> None:
        """The same for a thread that has nothing to do yet. Blocks for no more than a moment."""
        self._stop_accepting()
        if self._thread.is_alive():
            self._thread.join()

    def _stop_accepting(self) -> None:
        if self._accepts:
            self._accepts = False
            self._jobs.put(None)


def _setter(method: Callable[[Any], None], value: Any) -> Callable[[], None]:
    return lambda: method(value)


def _tell(answer: "asyncio.Future[Any]", outcome: Callable[[], None]) -> None:
    if not answer.done():
        outcome()
