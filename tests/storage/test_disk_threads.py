"""What blocks runs in threads; whoever waits hears how it ended."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from undercroft.errors import ClosedError
from undercroft.storage.disk_threads import DISK_THREADS, DiskThreads


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    opened = DiskThreads()
    yield opened
    opened.close()


def disk_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("disk")]


async def test_results_come_to_who_asked(threads: DiskThreads) -> None:
    found = await asyncio.gather(*(threads.run(pow, number, 2) for number in range(1_000)))
    assert found == [number * number for number in range(1_000)]
    assert len(disk_threads()) == DISK_THREADS


async def test_keywords_are_passed_on(threads: DiskThreads) -> None:
    assert await threads.run(int, "ff", base=16) == 255


@pytest.mark.parametrize("error", [OSError("bad disk"), KeyboardInterrupt()])
async def test_errors_come_to_who_asked(threads: DiskThreads, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await threads.run(fail)
    assert await threads.run(abs, -1) == 1  # the thread goes on


async def test_an_iterator_that_ends_is_an_error(threads: DiskThreads) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))


async def test_as_many_at_once_as_there_are_threads(threads: DiskThreads) -> None:
    together = threading.Barrier(DISK_THREADS)
    await asyncio.gather(*(threads.run(together.wait, 20) for _ in range(DISK_THREADS)))


async def test_who_is_cancelled_waits_for_the_thread(threads: DiskThreads) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(20)

    working = asyncio.create_task(threads.run(work))
    assert await threads.run(begun.wait, 20)
    working.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not working.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_after_close_nothing_runs(threads: DiskThreads) -> None:
    await threads.run(abs, -1)
    threads.close()
    threads.close()
    assert disk_threads() == []
    with pytest.raises(ClosedError):
        await threads.run(abs, -1)
