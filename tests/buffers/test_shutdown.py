"""Close, crash, spill and replay: nothing accepted is lost."""

import asyncio
import errno
import os
import time
from pathlib import Path

import apsw
import pytest

from tests.support.locks import lock_of_another_connection, lock_of_another_process
from undercroft.errors import ClosedError, DatabaseLockedError, UndercroftError
from undercroft.telemetry import events

from .conftest import OpenRig
from .rig import Rig

UNREADABLE = (
    b"",
    b"\n",
    b"{",
    b"\xff\xfe\n",
    b'"undercroft-spill-9"\n',
    b'"undercroft-spill-1"\n[1]\n',
    b'"undercroft-spill-1"\n["nothing",[["a","b"]]]\n',
    b'"undercroft-spill-1"\n["nothing",[]]\n',
    b'"undercroft-spill-1"\n["nothing",' + b"[" * 100_000 + b"\n",
    b'"undercroft-spill-2"\n',
    b"7\n",
)
SHORT = {"shutdown_ms": 30, "retry_base_delay_ms": 1}


async def _spilled(open_rig: OpenRig, *keys: str) -> Rig:
    """A rig whose rows went to the spill file because of a lock that is gone by now."""
    rig = await open_rig(**SHORT)
    with lock_of_another_connection(rig.path):
        for key in keys:
            rig.enqueue(key)
        await rig.close()
    assert rig.buffer.spill_path.exists()
    assert rig.rows() == {}
    return rig


# --- drain ---


async def test_close_commits_everything(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=7)
    for n in range(100):
        rig.enqueue(f"k{n}", n + 1)
    await rig.close()
    assert rig.rows() == {f"k{n}": n + 1 for n in range(100)}
    assert not rig.buffer.spill_path.exists()
    assert rig.buffer.queue_stats() == (0, 0)
    assert rig.running.done()


async def test_close_waits_for_what_is_in_flight(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    waiters = [asyncio.create_task(rig.commit("a"))]
    await rig.arrived()
    waiters.append(asyncio.create_task(rig.commit("b")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(rig.close())
    await asyncio.sleep(0)
    rig.table.open_gate()
    await asyncio.gather(closing, *waiters)
    assert rig.rows() == {"a": 1, "b": 1}


async def test_close_keeps_trying_while_it_may(open_rig: OpenRig) -> None:
    rig = await open_rig(retry_max_attempts=1)
    with lock_of_another_connection(rig.path) as lock:
        rig.enqueue("a")
        closing = asyncio.create_task(rig.close())
        await rig.telemetry.wait_for(events.STALLED, 6)
        lock.release()
        await closing
    assert rig.rows() == {"a": 1}
    assert not rig.buffer.spill_path.exists()


async def test_close_is_idempotent(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.enqueue("a")
    await rig.close()
    await rig.close()
    assert rig.rows() == {"a": 1}


async def test_closing_twice_at_once_spills_once(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    with lock_of_another_connection(rig.path):
        rig.enqueue("a")
        await asyncio.gather(rig.buffer.close(), rig.buffer.close(), rig.buffer.close())
    assert rig.telemetry.count(events.SPILLED) == 1


async def test_use_after_close(open_rig: OpenRig) -> None:
    rig = await open_rig()
    ticket = rig.enqueue("a")
    await rig.close()
    with pytest.raises(ClosedError):
        rig.enqueue("b")
    with pytest.raises(ClosedError):
        await rig.buffer.enqueue(rig.driver.write("b"))
    with pytest.raises(ClosedError):
        await rig.buffer.flush()
    await rig.buffer.committed(ticket)  # it was


# --- the task that flushes ends badly ---


async def test_a_crash_of_run_loses_nothing(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.fail(RuntimeError("unforeseen"))
    ticket = rig.enqueue("a")
    waiter = asyncio.create_task(rig.buffer.committed(ticket))
    with pytest.raises(RuntimeError, match="unforeseen"):
        await rig.running
    rig.enqueue("b")
    await rig.buffer.close()
    await waiter
    assert rig.rows() == {"a": 1, "b": 1}


async def test_an_error_that_stays_is_raised_and_the_rows_are_spilled(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.fail_always(RuntimeError("unforeseen"))
    waiter = asyncio.create_task(rig.commit("a"))
    with pytest.raises(RuntimeError, match="unforeseen"):
        await rig.running
    with pytest.raises(RuntimeError, match="unforeseen"):
        await rig.buffer.close()
    with pytest.raises(ClosedError):
        await waiter
    await rig.database.close()
    await rig.buffer.close()
    again = await open_rig()
    assert again.rows() == {"a": 1}


async def test_cancelling_run_while_it_writes_loses_nothing(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    rig.enqueue("a", 1)
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rig.running
    assert rig.pending("a") == 1
    rig.table.open_gate()
    await rig.buffer.close()
    await flush
    assert rig.rows() == {"a": 1}


async def test_cancelling_close_spills(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    rig.enqueue("a")
    closing = asyncio.create_task(rig.buffer.close())
    await rig.arrived()
    rig.table.fail(apsw.SQLITE_FULL)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert rig.buffer.spill_path.exists()
    await rig.crash()
    again = await open_rig()
    assert again.rows() == {"a": 1}


# --- spill ---


async def test_a_lock_past_shutdown_spills_and_the_next_start_replays(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    with lock_of_another_process(rig.path):
        waiters = [asyncio.create_task(rig.commit(f"k{n}", n)) for n in range(1, 6)]
        await rig.telemetry.wait_for(events.RETRY)
        late = rig.enqueue("late", 6)
        await rig.close()
        for waiter in waiters:
            with pytest.raises(ClosedError):
                await waiter
        with pytest.raises(ClosedError):
            await rig.buffer.committed(late)
    assert rig.rows() == {}
    assert rig.telemetry.sum_of(events.SPILLED, "count") == 6
    again = await open_rig()
    assert again.rows() == {**{f"k{n}": n for n in range(1, 6)}, "late": 6}
    assert again.telemetry.sum_of(events.REPLAYED, "count") == 6
    assert not again.buffer.spill_path.exists()
    assert list(rig.path.parent.glob("*.tmp")) == []


async def test_close_does_not_outstay_its_time(open_rig: OpenRig) -> None:
    rig = await open_rig(shutdown_ms=30, retry_base_delay_ms=3_600_000, retry_max_delay_ms=3_600_000)
    with lock_of_another_connection(rig.path):
        rig.enqueue("a")
        flush = asyncio.create_task(rig.buffer.flush())
        await rig.telemetry.wait_for(events.RETRY)  # `run` now waits an hour
        started = time.monotonic()
        await rig.close()  # awaits `run` as well
        assert time.monotonic() - started < 5
        with pytest.raises(ClosedError):
            await flush
    assert rig.buffer.spill_path.exists()


async def test_what_was_in_flight_is_spilled_before_what_came_later(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    rig.table.shut_gate()
    rig.enqueue("a", 1)
    rig.enqueue("b", 1)
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.enqueue("a", 2)
    rig.table.fail(apsw.SQLITE_FULL)
    await rig.buffer.close()
    with pytest.raises(ClosedError):
        await flush
    await rig.crash()
    again = await open_rig()
    assert again.rows() == {"a": rig.driver.version_after(1, 2), "b": 1}


async def test_a_spilled_row_that_was_committed_after_all_does_no_harm(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    rig.table.shut_gate()
    rig.enqueue("a", 5)
    await rig.buffer.close()  # the writer still stands at the gate
    rig.table.open_gate()
    await rig.running
    await rig.database.close()
    assert rig.rows() == {"a": 5}
    assert rig.buffer.spill_path.exists()
    again = await open_rig()
    assert again.rows() == {"a": 5}


async def test_rows_without_utf_8_spill_like_others(open_rig: OpenRig) -> None:
    rig = await _spilled(open_rig, "good", "lone surrogate \ud800")
    again = await open_rig()
    assert again.rows() == {"good": 1}
    assert again.telemetry.count(events.REFUSED) == 1
    assert not rig.buffer.spill_path.exists()


async def test_replay_under_a_lock_refuses_to_start_and_keeps_the_file(open_rig: OpenRig) -> None:
    rig = await _spilled(open_rig, "a")
    with lock_of_another_connection(rig.path), pytest.raises(DatabaseLockedError, match="spill"):
        await open_rig()
    assert rig.buffer.spill_path.exists()
    again = await open_rig()
    assert again.rows() == {"a": 1}


async def test_closing_after_a_refused_start_keeps_the_file(open_rig: OpenRig) -> None:
    rig = await _spilled(open_rig, "a")
    before = rig.buffer.spill_path.read_bytes()
    second = Rig(rig.driver, rig.path.parent, **SHORT)
    await second.open_database()
    with lock_of_another_connection(rig.path), pytest.raises(DatabaseLockedError):
        await second.buffer.open()
    with pytest.raises(ClosedError):
        second.enqueue("b")
    await second.buffer.close()
    await second.database.close()
    assert rig.buffer.spill_path.read_bytes() == before


@pytest.mark.parametrize("content", UNREADABLE)
async def test_an_unreadable_spill_file_refuses_to_start(open_rig: OpenRig, content: bytes) -> None:
    rig = await open_rig()
    await rig.close()
    rig.buffer.spill_path.write_bytes(content)
    with pytest.raises(UndercroftError, match="cannot be read"):
        await open_rig()
    assert rig.buffer.spill_path.read_bytes() == content


async def test_a_spill_that_cannot_be_written_is_an_error(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    rig.buffer.spill_path.mkdir()
    with lock_of_another_connection(rig.path):
        waiter = asyncio.create_task(rig.commit("a"))
        await rig.telemetry.wait_for(events.RETRY)
        with pytest.raises(OSError, match="directory"):
            await rig.buffer.close()
        with pytest.raises(ClosedError):
            await waiter
    assert list(rig.path.parent.glob("*.tmp")) == []
    rig.buffer.spill_path.rmdir()


async def test_the_spill_file_goes_when_its_rows_are_durable(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _spilled(open_rig, "a")
    steps: list[str] = []
    really_sync, really_unlink = os.fsync, Path.unlink

    def sync(descriptor: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        really_sync(descriptor)

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        steps.append(f"unlink {path.name}")
        really_unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "unlink", unlink)
    again = await open_rig()
    assert steps == [
        f"sync {again.path.name}-wal",
        f"unlink {again.buffer.spill_path.name}",
        f"sync {again.path.parent.name}",
    ]
    assert again.rows() == {"a": 1}


async def test_the_spill_file_stays_when_its_rows_are_not_durable(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await _spilled(open_rig, "a")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "no power")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no power"):
            await open_rig()
    assert rig.buffer.spill_path.exists()
    again = await open_rig()
    assert again.rows() == {"a": 1}


async def test_a_long_spill_file_takes_several_transactions(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT, max_batch_size=1)
    with lock_of_another_connection(rig.path):
        for n in range(20):
            rig.enqueue(f"k{n}")
        await rig.close()
    again = await open_rig()
    assert [flush.measurements["batch_size"] for flush in again.telemetry.of(events.FLUSH)] == [8, 8, 4]
    assert len(again.rows()) == 20


async def test_a_bad_row_in_the_spill_file_does_not_stop_the_start(open_rig: OpenRig) -> None:
    rig = await open_rig(**SHORT)
    with lock_of_another_connection(rig.path):
        rig.enqueue("good")
        rig.buffer.enqueue_nowait(rig.driver.bad_write("bad"))
        await rig.close()
    again = await open_rig(**SHORT)
    assert again.rows() == {"good": 1}
    assert again.telemetry.count(events.REFUSED) == 1
    assert b"bad" in again.buffer.refused_path.read_bytes()
    assert not again.buffer.spill_path.exists()
