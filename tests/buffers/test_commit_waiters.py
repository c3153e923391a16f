"""Waiting by generation."""

import asyncio

import pytest

from undercroft.buffers import commit_waiters
from undercroft.buffers.commit_waiters import CommitWaiters
from undercroft.errors import ClosedError, CommitTimeoutError, RowRefusedError

PATIENT = 20_000


def wait(waiters: CommitWaiters, generation: int, key: str = "k") -> "asyncio.Task[None]":
    return asyncio.create_task(waiters.wait(generation, key, PATIENT))


async def test_resolving_releases_this_generation_and_earlier_ones() -> None:
    waiters = CommitWaiters("b")
    tasks = [wait(waiters, generation) for generation in (1, 2, 2, 3)]
    await asyncio.sleep(0)
    waiters.resolve(2)
    await asyncio.gather(*tasks[:3])
    assert not tasks[3].done()
    waiters.resolve(3)
    await tasks[3]


async def test_a_committed_generation_is_not_waited_for() -> None:
    waiters = CommitWaiters("b")
    waiters.resolve(5)
    waiters.resolve(4)  # never goes back
    await waiters.wait(5, "k", 0)
    with pytest.raises(CommitTimeoutError, match="buffer b did not commit within 0 ms"):
        await waiters.wait(6, "k", 0)


async def test_a_refusal_is_told_when_its_generation_is_resolved() -> None:
    waiters = CommitWaiters("b")
    refused, other = wait(waiters, 1, "bad"), wait(waiters, 1, "good")
    await asyncio.sleep(0)
    waiters.refuse(1, "bad", "too long")
    await asyncio.sleep(0)
    assert not refused.done()
    waiters.resolve(1)
    await other
    with pytest.raises(RowRefusedError, match="'bad' of b: too long"):
        await refused


async def test_a_refusal_concerns_its_own_generation() -> None:
    waiters = CommitWaiters("b")
    waiters.refuse(2, "k", "bad")
    waiters.resolve(3)
    with pytest.raises(RowRefusedError):
        await waiters.wait(2, "k", 0)
    for generation in (1, 3):
        await waiters.wait(generation, "k", 0)


async def test_only_so_many_refusals_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_waiters, "REFUSALS_KEPT", 2)
    waiters = CommitWaiters("b")
    for key in ("a", "b", "c"):
        waiters.refuse(1, key, "bad")
    waiters.resolve(1)
    await waiters.wait(1, "a", 0)
    for key in ("b", "c"):
        with pytest.raises(RowRefusedError):
            await waiters.wait(1, key, 0)


async def test_cancelling_one_leaves_the_others() -> None:
    waiters = CommitWaiters("b")
    first, second = wait(waiters, 1), wait(waiters, 1)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    waiters.resolve(1)
    await second
    assert first.cancelled()


async def test_whoever_gives_up_is_forgotten_at_once() -> None:
    waiters = CommitWaiters("b")
    cancelled, stays = wait(waiters, 1), wait(waiters, 2)
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(CommitTimeoutError):
            await waiters.wait(1, "k", 0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert list(waiters._waiting) == [2]
    anyone = [waiters.anyone]
    waiters.resolve(2)
    await stays
    assert [*anyone, waiters.anyone] == [True, False]


async def test_after_close() -> None:
    waiters = CommitWaiters("b")
    waiters.resolve(1)
    task = wait(waiters, 2)
    await asyncio.sleep(0)
    waiters.close()
    with pytest.raises(ClosedError, match="buffer b closed"):
        await task
    with pytest.raises(ClosedError):
        await waiters.wait(3, "k", PATIENT)
    await waiters.wait(1, "k", PATIENT)


async def test_each_gives_up_at_its_own_time_though_one_timer_serves_all() -> None:
    waiters, loop, heard = CommitWaiters("b"), asyncio.get_running_loop(), list[int]()

    async def give_up(generation: int, timeout_ms: int) -> None:
        started = loop.time()
        with pytest.raises(CommitTimeoutError, match=f"within {timeout_ms} ms"):
            await waiters.wait(generation, "k", timeout_ms)
        assert loop.time() - started >= timeout_ms / 1_000
        heard.append(timeout_ms)

    patient = wait(waiters, 1)
    # The second comes with a deadline before that of the first, the third with one between the two.
    await asyncio.gather(give_up(2, 90), give_up(1, 5), give_up(2, 45))
    assert heard == [5, 45, 90]
    assert not patient.done()
    waiters.resolve(2)
    await patient


async def test_who_comes_after_a_sweep_gives_up_as_well() -> None:
    waiters = CommitWaiters("b")
    for _ in range(3):
        with pytest.raises(CommitTimeoutError):
            await waiters.wait(1, "k", 1)
    assert not waiters.anyone


async def test_no_timer_outlives_close() -> None:
    waiters = CommitWaiters("b")
    task = wait(waiters, 1)
    await asyncio.sleep(0)
    timer = waiters._timer
    waiters.close()
    assert timer is not None
    assert timer.cancelled()
    with pytest.raises(ClosedError):
        await task
