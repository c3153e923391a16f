"""Locks and full disks: what is retried, how often, and that nothing is dropped."""

import asyncio
from typing import cast

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.locks import lock_of_another_connection, lock_of_another_process
from tests.support.page_limit import no_more_pages
from undercroft.buffers import committer
from undercroft.buffers.committer import Committer
from undercroft.buffers.transaction import is_locked
from undercroft.errors import CommitTimeoutError
from undercroft.telemetry import events

from .conftest import OpenRig

LOCKED = (apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED, apsw.SQLITE_BUSY_SNAPSHOT, apsw.SQLITE_LOCKED_SHAREDCACHE)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records what would be waited between retries, and does not wait."""
    seconds: list[float] = []

    async def record(_: Committer, pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setattr(Committer, "_pause", record)
    return seconds


@pytest.mark.parametrize("code", LOCKED)
async def test_busy_and_locked_are_retried_by_code(open_rig: OpenRig, code: int) -> None:
    rig = await open_rig()
    rig.table.fail(code, code)
    await rig.commit("a")
    assert rig.rows() == {"a": 1}
    assert rig.telemetry.sum_of(events.RETRY, "count") == 2
    assert [r.metadata for r in rig.telemetry.of(events.RETRY)] == [
        {"buffer": rig.buffer.name, "operation": rig.driver.write_operation, "attempt": attempt}
        for attempt in ("1", "2")
    ]
    assert rig.telemetry.count(events.FLUSH) == 1


def test_a_lock_is_known_by_its_code_and_not_by_its_text() -> None:
    assert not is_locked(apsw.Error("BusyError: database is locked"))
    assert not is_locked(cast("apsw.Error", apsw.exception_for(apsw.SQLITE_FULL)))
    assert is_locked(cast("apsw.Error", apsw.exception_for(apsw.SQLITE_BUSY)))


async def test_delays_double_up_to_the_cap_with_jitter(open_rig: OpenRig, pauses: list[float]) -> None:
    rig = await open_rig(retry_base_delay_ms=100, retry_max_delay_ms=500, retry_max_attempts=5)
    rig.table.fail_always(apsw.SQLITE_BUSY)
    rig.enqueue("a")
    await rig.flush_in_vain(attempts=6)
    assert len(rig.table.batches) == 6  # the first attempt and five retries, then the rows wait
    full = [0.1, 0.2, 0.4, 0.5, 0.5]
    assert len(pauses) == len(full)
    assert all(0.5 * most <= pause <= most for pause, most in zip(pauses, full, strict=True))
    assert len({pause / most for pause, most in zip(pauses, full, strict=True)}) > 1


async def test_a_lock_longer_than_the_retries_drops_nothing(open_rig: OpenRig, pauses: list[float]) -> None:
    rig = await open_rig(flush_interval_ms=10)
    rig.table.fail_always(apsw.SQLITE_BUSY)
    tickets = [rig.enqueue(f"k{n}", n) for n in range(1, 6)]
    await rig.telemetry.wait_for(events.RETRY, 3 * 3)  # three attempts of the timer
    assert rig.buffer.queue_stats().rows == 5
    assert rig.buffer.stalled is not None
    rig.table.heal()
    await rig.buffer.committed(tickets[0])
    assert rig.rows() == {f"k{n}": n for n in range(1, 6)}
    assert rig.buffer.stalled is None


async def test_a_lock_of_a_moment_is_counted_and_not_told(open_rig: OpenRig, pauses: list[float]) -> None:
    rig = await open_rig()
    rig.table.fail(apsw.SQLITE_BUSY)
    with capture_logs() as log:
        await rig.commit("a")
    assert rig.telemetry.count(events.STALLED) == 1
    assert [line["event"] for line in log] == []


async def test_a_lock_that_lasts_is_told_once(
    open_rig: OpenRig, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "SHORT_LOCK_S", 0.0)
    rig = await open_rig()
    rig.table.fail(*[apsw.SQLITE_BUSY] * 3)
    with capture_logs() as log:
        await rig.commit("a")
    assert [(line["event"], line["buffer"]) for line in log] == [
        ("flush_stalled", rig.buffer.name),
        ("flush_recovered", rig.buffer.name),
    ]
    assert log[0]["error"].startswith("BusyError")


async def test_each_operation_counts_its_retries(open_rig: OpenRig) -> None:
    rig = await open_rig()
    if not rig.driver.has_accesses:
        return
    rig.enqueue("a")
    rig.table.fail(apsw.SQLITE_BUSY)
    await rig.buffer.flush()
    assert {r.metadata["operation"] for r in rig.telemetry.of(events.RETRY)} == {rig.driver.write_operation}


async def test_the_lock_of_another_process(open_rig: OpenRig) -> None:
    rig = await open_rig(retry_max_attempts=1, flush_interval_ms=5)
    await rig.commit("before")
    with lock_of_another_process(rig.path):
        ticket = rig.enqueue("a")
        await rig.telemetry.wait_for(events.RETRY, 2)
        assert rig.pending("a") == 1
        assert rig.rows() == {"before": 1}  # readers are not disturbed
    await rig.buffer.committed(ticket)
    assert rig.rows() == {"before": 1, "a": 1}


async def test_the_real_code_of_a_lock(open_rig: OpenRig) -> None:
    rig = await open_rig(flush_interval_ms=5)
    with lock_of_another_connection(rig.path, "EXCLUSIVE"):
        waiter = asyncio.create_task(rig.commit("a"))
        await rig.telemetry.wait_for(events.STALLED, 5)
        assert {r.metadata["error"] for r in rig.telemetry.of(events.STALLED)} == {"BusyError"}
        assert not waiter.done()
    await waiter


async def test_a_full_disk_keeps_the_rows(open_rig: OpenRig) -> None:
    rig = await open_rig(commit_timeout_ms=50)
    await rig.commit("before")
    keys = {f"{n}-" + "x" * 3_000: n for n in range(1, 40)}
    async with no_more_pages(rig.database):
        tickets = [rig.enqueue(key, n) for key, n in keys.items()]
        with pytest.raises(CommitTimeoutError):
            await rig.buffer.committed(tickets[0])
        assert rig.buffer.stalled is not None
        assert rig.buffer.stalled.startswith("FullError")
        assert rig.telemetry.count(events.RETRY) == 0
        assert rig.buffer.queue_stats().rows == 39
        assert rig.rows() == {"before": 1}  # whole transactions only
    await rig.buffer.flush()
    assert rig.rows() == {"before": 1, **keys}
    assert rig.telemetry.count(events.REFUSED) == 0


@pytest.mark.parametrize("code", [apsw.SQLITE_IOERR, apsw.SQLITE_NOMEM, apsw.SQLITE_READONLY])
async def test_other_troubles_of_the_ground_keep_the_rows(open_rig: OpenRig, code: int) -> None:
    rig = await open_rig()
    rig.table.fail(code)
    rig.enqueue("a")
    await rig.flush_in_vain()
    assert rig.telemetry.count(events.REFUSED) == 0
    await rig.buffer.flush()
    assert rig.rows() == {"a": 1}


async def test_what_was_committed_before_the_failure_is_not_written_again(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=1)
    await rig.commit("first")
    rig.table.batches.clear()
    # Eight batches make the first transaction; the ninth batch is the first of the second.
    rig.table.fail(*[None] * 8, apsw.SQLITE_FULL)
    tickets = [rig.enqueue(f"k{n:02}") for n in range(10)]
    await rig.telemetry.wait_for(events.STALLED)
    assert rig.buffer.queue_stats().rows == 2
    assert len(rig.rows()) == 9
    rig.table.heal()
    await rig.buffer.flush()
    await rig.buffer.committed(tickets[9])
    assert len(rig.rows()) == 11
    assert len(rig.table.batches) == 9 + 2
