"""The bound of a buffer: who waits, who is turned away, what is shed."""

import asyncio

import apsw
import pytest

from undercroft.errors import BufferFullError, ClosedError
from undercroft.telemetry import events

from .conftest import OpenRig
from .rig import Rig


async def _full(rig: Rig) -> None:
    """Fills a buffer of ten rows while its flushes stand at the gate."""
    rig.table.shut_gate()
    for n in range(10):
        rig.enqueue(f"k{n}")
    assert rig.buffer.queue_stats().rows == 10


async def test_enqueue_nowait_raises_when_full(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    await _full(rig)
    with pytest.raises(BufferFullError, match="max_pending_rows 10"):
        rig.enqueue("one more")
    assert rig.telemetry.count(events.REJECTED) == 1
    assert rig.pending("one more") is None


async def test_the_bound_on_bytes(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_bytes=3_000)
    accepted = 0
    while rig.buffer.queue_stats().bytes < 3_000:
        rig.enqueue(f"k{accepted}")
        accepted += 1
    assert accepted < 20
    with pytest.raises(BufferFullError, match="max_pending_bytes 3000"):
        rig.enqueue("one more")


async def test_rows_in_flight_count_towards_the_bound(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    await _full(rig)
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    assert rig.buffer.rows_in_flight == 10
    with pytest.raises(BufferFullError):
        rig.enqueue("one more")
    rig.table.open_gate()
    await flush
    rig.enqueue("one more")


async def test_enqueue_waits_and_succeeds_when_there_is_room(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=20_000)
    await _full(rig)
    late = [asyncio.create_task(rig.buffer.enqueue(rig.driver.write(f"late{n}"))) for n in range(30)]
    await rig.arrived()  # who waits for room starts the flush that makes it
    assert not any(task.done() for task in late)
    rig.table.open_gate()
    await asyncio.gather(*late)
    assert rig.buffer.queue_stats().rows <= 10
    await rig.buffer.flush()
    assert len(rig.rows()) == 40
    assert rig.telemetry.count(events.REJECTED) == 0


async def test_enqueue_gives_up(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=20)
    await _full(rig)
    with pytest.raises(BufferFullError):
        await rig.buffer.enqueue(rig.driver.write("late"))
    assert rig.telemetry.count(events.REJECTED) == 1
    rig.table.open_gate()
    await rig.buffer.flush()
    assert "late" not in rig.rows()


async def test_who_waits_for_room_hears_of_the_close(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=20_000)
    await _full(rig)
    late = asyncio.create_task(rig.buffer.enqueue(rig.driver.write("late")))
    await rig.arrived()
    closing = asyncio.create_task(rig.buffer.close())
    await asyncio.sleep(0)
    rig.table.open_gate()
    with pytest.raises(ClosedError):
        await late
    await closing
    assert len(rig.rows()) == 10


async def test_waiting_for_room_does_not_try_a_full_disk_in_a_loop(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=50, max_batch_size=5)
    rig.table.fail_always(apsw.SQLITE_FULL)
    for n in range(10):
        rig.enqueue(f"k{n}")
    with pytest.raises(BufferFullError):
        await rig.buffer.enqueue(rig.driver.write("late"))
    assert rig.telemetry.count(events.STALLED) == 1  # the next attempt is the timer's


async def test_accesses_are_shed_first(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    if not rig.driver.has_accesses:
        assert not rig.table.as_table.sheddable(rig.driver.write("a"))
        return
    for n in range(7):
        rig.enqueue(f"k{n}")
    rig.buffer.enqueue_nowait(rig.driver.access("seen"))  # below 80 %: accepted
    assert rig.telemetry.count(events.SHED) == 0
    shed = await rig.buffer.enqueue(rig.driver.access("unseen"))
    assert rig.telemetry.count(events.SHED) == 1
    assert rig.buffer.queue_stats().rows == 8
    rig.enqueue("k8")
    rig.enqueue("k9")  # real writes still find room
    rig.buffer.enqueue_nowait(rig.driver.access("unseen"))  # even full it is no error
    assert (rig.telemetry.count(events.SHED), rig.telemetry.count(events.REJECTED)) == (2, 0)
    await rig.buffer.committed(shed)  # nothing to wait for


# --- room that is awaited first, and taken later ---


async def test_waiting_for_room_returns_at_once_when_there_is_some(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    waiting = rig.buffer.wait_for_room()
    with pytest.raises(StopIteration):
        waiting.send(None)  # not even one turn of the loop


async def test_waiting_for_room(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=20_000)
    await _full(rig)
    waiting = asyncio.create_task(rig.buffer.wait_for_room())
    await rig.arrived()
    assert not waiting.done()
    rig.table.open_gate()
    await waiting
    assert rig.buffer.queue_stats().rows < 10


async def test_waiting_for_room_gives_up(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10, enqueue_timeout_ms=20)
    await _full(rig)
    with pytest.raises(BufferFullError):
        await rig.buffer.wait_for_room()


async def test_there_is_no_room_in_a_closed_buffer(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    await rig.close()
    with pytest.raises(ClosedError):
        await rig.buffer.wait_for_room()
    with pytest.raises(ClosedError):
        rig.buffer.enqueue_nowait(rig.driver.write("a"), past_bound=True)


async def test_an_event_whose_room_others_took_is_accepted_past_the_bound(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=10)
    await _full(rig)
    rig.buffer.enqueue_nowait(rig.driver.write("late"), past_bound=True)
    assert rig.buffer.queue_stats().rows == 11
    assert rig.telemetry.count(events.REJECTED) == 0
    rig.table.open_gate()
    await rig.buffer.flush()
    assert "late" in rig.rows()
