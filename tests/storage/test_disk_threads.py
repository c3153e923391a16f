"""What blocks runs in threads; whoever waits hears how it ended."""

import asyncio
import threading
import time
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


async def test_what_waits_is_done_in_its_order(threads: DiskThreads) -> None:
    go_on = threading.Event()
    done: list[int] = []
    blocked = [asyncio.create_task(threads.run(go_on.wait, 20)) for _ in range(DISK_THREADS - 1)]
    await asyncio.sleep(0)
    await asyncio.gather(*(threads.run(done.append, number) for number in range(100)))
    assert done == [*range(100)]
    go_on.set()
    await asyncio.gather(*blocked)


async def test_a_close_ends_after_what_waits(threads: DiskThreads) -> None:
    begun = [asyncio.create_task(threads.run(pow, number, 2)) for number in range(100)]
    await asyncio.sleep(0)
    threads.close()
    assert disk_threads() == []
    assert await asyncio.gather(*begun) == [number * number for number in range(100)]


async def all_idle_unknown_to_the_loop(threads: DiskThreads) -> None:
    """Every thread has done a job, and the loop has not had the turn in which it hears of that."""
    done: list[int] = []
    jobs = [asyncio.create_task(threads.run(done.append, number)) for number in range(DISK_THREADS)]
    await asyncio.sleep(0)
    while len(done) < len(jobs):
        time.sleep(0.001)  # noqa: ASYNC251  # the loop must not have its turn
    time.sleep(0.05)  # noqa: ASYNC251  # what a thread does behind its job nobody can see


async def test_a_job_that_comes_before_it_is_known_who_is_idle(threads: DiskThreads) -> None:
    await all_idle_unknown_to_the_loop(threads)
    async with asyncio.timeout(20):
        assert await threads.run(abs, -1) == 1


async def test_a_job_that_comes_so_right_before_the_end(threads: DiskThreads) -> None:
    done: list[int] = []
    await all_idle_unknown_to_the_loop(threads)
    job = threads.run(done.append, 1)
    job.send(None)
    threads.close()
    assert done == [1]
    job.close()


async def test_no_job_is_left_lying_however_they_come(threads: DiskThreads) -> None:
    """Jobs that come while threads become idle: each turn of the loop another number of them."""

    async def some(count: int) -> None:
        for _ in range(200):
            await asyncio.gather(*(threads.run(int) for _ in range(count)))

    async with asyncio.timeout(60):
        await asyncio.gather(*(some(count) for count in range(1, 2 * DISK_THREADS)))
