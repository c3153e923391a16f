"""Workers: named, watched, and ended together."""

import asyncio

import pytest

from undercroft.supervisor import Crash, Supervisor


async def forever() -> None:
    await asyncio.Event().wait()


async def test_request_ends_the_waiting_without_a_crash() -> None:
    supervisor = Supervisor()
    supervisor.start("worker", forever())
    waiting = asyncio.create_task(supervisor.finished())
    await asyncio.sleep(0)
    assert not waiting.done()
    supervisor.request_stop()
    assert await waiting is None
    await supervisor.stop(0)


async def test_worker_that_raises_is_a_crash_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    supervisor, error = Supervisor(), ZeroDivisionError("x")

    async def crash() -> None:
        raise error

    supervisor.start("good", forever())
    supervisor.start("bad", crash())
    assert await supervisor.finished() == Crash("bad", error)
    assert "worker_crashed" in capsys.readouterr().out
    await supervisor.stop(0)


async def test_worker_that_just_returns_is_a_crash() -> None:
    supervisor = Supervisor()
    supervisor.start("short", asyncio.sleep(0))
    assert await supervisor.finished() == Crash("short", None)
    await supervisor.stop(0)


async def test_the_first_crash_counts() -> None:
    supervisor = Supervisor()
    supervisor.start("first", asyncio.sleep(0))
    supervisor.start("second", asyncio.sleep(0))
    crash = await supervisor.finished()
    supervisor.request_stop()
    assert crash is not None
    assert crash.worker == "first"
    assert await supervisor.finished() == crash
    await supervisor.stop(0)


async def test_expected_end_is_no_crash() -> None:
    supervisor = Supervisor()
    gate = asyncio.Event()
    supervisor.start("worker", gate.wait())
    supervisor.expect_end()
    gate.set()
    await supervisor.stop()
    supervisor.request_stop()
    assert await supervisor.finished() is None


async def test_stop_lets_workers_end_and_cancels_those_that_do_not() -> None:
    supervisor = Supervisor()
    ended: list[str] = []

    async def stubborn() -> None:
        try:
            await forever()
        finally:
            ended.append("cancelled")

    async def good() -> None:
        await asyncio.sleep(0)
        ended.append("by itself")

    supervisor.start("stubborn", stubborn())
    supervisor.expect_end()
    supervisor.start("good", good())
    await supervisor.stop(0.005)
    assert ended == ["by itself", "cancelled"]
    await supervisor.stop()


async def test_error_during_stop_stays_inside() -> None:
    supervisor = Supervisor()

    async def fail_when_cancelled() -> None:
        try:
            await forever()
        finally:
            raise ZeroDivisionError

    supervisor.start("worker", fail_when_cancelled())
    await asyncio.sleep(0)
    await supervisor.stop(0)


async def test_cancelled_waiter_does_not_cancel_the_others() -> None:
    supervisor = Supervisor()
    one, other = (asyncio.create_task(supervisor.finished()) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    supervisor.request_stop()
    assert await other is None
