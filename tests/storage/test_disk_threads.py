"""What blocks runs in threads; whoever waits hears how it ended."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest

from undercroft.errors import ClosedError
from undercroft.storage import disk_threads as module
from undercroft.storage.disk_speed import DiskSpeed
from undercroft.storage.disk_threads import DISK_THREADS, SMALL_BYTES, DiskThreads


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


# --- what is small -------------------------------------------------------------------------------------


def current_thread() -> str:
    return threading.current_thread().name


@pytest.mark.parametrize(("size", "on_loop"), [(0, True), (SMALL_BYTES, True), (SMALL_BYTES + 1, False)])
async def test_what_is_small_the_loop_does(threads: DiskThreads, size: int, on_loop: bool) -> None:
    found = await asyncio.gather(*(threads.run_for(size, current_thread) for _ in range(100)))
    assert {name == current_thread() for name in found} == {on_loop}


async def test_whoever_syncs_waits_in_threads() -> None:
    threads = DiskThreads(small_on_loop=False)
    assert (await threads.run_for(1, current_thread)).startswith("disk")
    threads.close()


async def test_results_and_errors_of_small_things_come_to_who_asked(threads: DiskThreads) -> None:
    assert await threads.run_for(1, int, "ff", base=16) == 255
    with pytest.raises(FileNotFoundError):
        await threads.run_for(1, os.stat, "/nowhere")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run_for(1, next, iter(()))
    assert await threads.run_for(1, abs, -1) == 1
    assert disk_threads() == []  # none was needed


async def test_others_get_their_turn_between_small_things(
    threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_S", 1e-9)
    done: list[int] = []
    jobs = [asyncio.create_task(threads.run_for(1, done.append, number)) for number in range(10)]
    seen = []
    for _ in range(2 * len(jobs)):
        await asyncio.sleep(0)
        seen.append(len(done))
    assert done == [*range(10)]
    # At first the tasks begin. One a turn from then on, and none twice.
    assert seen[seen.index(1) :][:10] == [*range(1, 11)]
    await asyncio.gather(*jobs)


async def test_many_small_things_share_a_turn(threads: DiskThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 20.0)
    done: list[int] = []
    jobs = [asyncio.create_task(threads.run_for(1, done.append, number)) for number in range(10)]
    seen = set()
    for _ in range(3):
        await asyncio.sleep(0)
        seen.add(len(done))
    assert seen == {0, 10}
    await asyncio.gather(*jobs)


async def test_threads_take_over_from_a_loop_that_the_disk_holds_up(threads: DiskThreads) -> None:
    held_up = asyncio.create_task(threads.run_for(1, time.sleep, 0.02))
    behind = [asyncio.create_task(threads.run_for(1, current_thread)) for _ in range(20)]
    found = await asyncio.gather(*behind)
    await held_up
    assert all(name.startswith("disk") for name in found)
    assert (await threads.run_for(1, current_thread)).startswith("disk")  # for a while
    threads._speed = DiskSpeed()
    assert await threads.run_for(1, current_thread) == current_thread()


async def test_who_is_cancelled_waits_for_what_is_small(threads: DiskThreads) -> None:
    done: list[int] = []
    job = asyncio.create_task(threads.run_for(1, done.append, 1))
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert done == [1]


async def test_a_close_ends_after_what_is_small(threads: DiskThreads) -> None:
    done: list[int] = []
    jobs = [asyncio.create_task(threads.run_for(1, done.append, number)) for number in range(10)]
    await asyncio.sleep(0)
    threads.close()
    assert done == [*range(10)]
    await asyncio.gather(*jobs)
    with pytest.raises(ClosedError):
        await threads.run_for(1, done.append, 1)


async def test_where_no_thread_can_be_started_whoever_asked_is_told(
    threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as refused:
        refused.setattr(threading.Thread, "start", refuse)
        held_up = asyncio.create_task(threads.run_for(1, time.sleep, 0.02))
        behind = [asyncio.create_task(threads.run_for(1, abs, -1)) for _ in range(3)]
        outcomes = await asyncio.gather(*behind, return_exceptions=True)
        await held_up
    assert [str(outcome) for outcome in outcomes] == ["can't start new thread"] * 3
    assert await threads.run_for(1, abs, -1) == 1
    threads._speed = DiskSpeed()
    assert await threads.run_for(1, current_thread) == current_thread()


async def test_those_threads_that_could_be_started_do_the_work(
    threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = threading.Thread.start
    started: list[str] = []

    def start(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread.name)
        really(thread)

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            await threads.run(abs, -1)
    assert {await threads.run(current_thread) for _ in range(10)} <= set(started)
