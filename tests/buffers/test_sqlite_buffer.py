"""Accepting, flushing, reading one's own writes and waiting for commits, for every table."""

import asyncio
import time
from types import SimpleNamespace

import apsw
import pytest

from tests.support.faulty_table import FaultyTable
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.database import Database
from undercroft.errors import ClosedError, CommitTimeoutError, RowRefusedError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

from .conftest import OpenRig
from .drivers import Driver

# --- what starts a flush ---


async def test_enqueue_does_not_touch_sqlite(open_rig: OpenRig) -> None:
    rig = await open_rig()
    await rig.database.close()  # whatever touched it now would raise
    rig.enqueue("a", 1)
    await rig.buffer.enqueue(rig.driver.write("b", 2))
    assert rig.buffer.queue_stats().rows == 2
    assert rig.pending("b") == 2
    assert rig.table.batches == []


async def test_the_timer_flushes(open_rig: OpenRig) -> None:
    rig = await open_rig(flush_interval_ms=30)
    started = time.monotonic()
    rig.enqueue("a")
    await asyncio.sleep(0)
    assert rig.table.batches == []
    await rig.telemetry.wait_for(events.FLUSH)
    assert time.monotonic() - started >= 0.029
    assert rig.rows() == {"a": 1}


async def test_the_timer_runs_from_the_oldest_event(open_rig: OpenRig) -> None:
    rig = await open_rig(flush_interval_ms=40)
    started = time.monotonic()
    n = 0
    while not rig.telemetry.count(events.FLUSH):
        n += 1
        rig.enqueue("a", n)  # a timer that each event starts anew would never fire
        await asyncio.sleep(0.005)
        assert time.monotonic() - started < 2
    assert rig.rows().keys() == {"a"}


async def test_a_full_batch_flushes(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=3)
    rig.enqueue("a")
    rig.enqueue("b")
    for _ in range(5):
        await asyncio.sleep(0)
    assert rig.table.batches == []
    rig.enqueue("c")
    await rig.telemetry.wait_for(events.FLUSH)
    assert rig.rows() == {"a": 1, "b": 1, "c": 1}


async def test_flush_commits_everything_accepted(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=2)
    for n in range(1, 8):
        rig.enqueue(f"k{n}", n)
    await rig.buffer.flush()
    assert rig.rows() == {f"k{n}": n for n in range(1, 8)}
    assert rig.buffer.queue_stats() == (0, 0)


async def test_flush_of_nothing_returns_and_commits_nothing(open_rig: OpenRig) -> None:
    rig = await open_rig()
    await rig.buffer.flush()
    assert rig.telemetry.count(events.FLUSH) == 0


async def test_flush_waits_for_what_is_in_flight(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    rig.enqueue("a")
    first = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    second = asyncio.create_task(rig.buffer.flush())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not second.done()
    rig.table.open_gate()
    await asyncio.gather(first, second)
    assert rig.rows() == {"a": 1}


# --- commits ---


async def test_committed_means_visible_to_another_connection(open_rig: OpenRig) -> None:
    rig = await open_rig()
    ticket = rig.enqueue("a", 7)
    assert rig.rows() == {}
    await rig.buffer.committed(ticket)
    assert rig.rows() == {"a": 7}
    await rig.buffer.committed(ticket)  # asking again is answered at once
    assert rig.telemetry.count(events.COMMIT_WAIT) == 2


async def test_group_commit(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    first = asyncio.create_task(rig.commit("first"))
    await rig.arrived()
    others = [asyncio.create_task(rig.commit(f"k{n}")) for n in range(200)]
    await asyncio.sleep(0)
    rig.table.open_gate()
    await asyncio.gather(first, *others)
    assert [f.measurements["batch_size"] for f in rig.telemetry.of(events.FLUSH)] == [1, 200]
    assert len(rig.rows()) == 201


async def test_a_cancelled_waiter_does_not_disturb_the_others(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    ticket = rig.enqueue("a")
    waiters = [asyncio.create_task(rig.buffer.committed(ticket)) for _ in range(3)]
    await rig.arrived()
    waiters[1].cancel()
    await asyncio.sleep(0)
    assert waiters[1].cancelled()
    rig.table.open_gate()
    await asyncio.gather(waiters[0], waiters[2])
    assert rig.rows() == {"a": 1}


async def test_committed_gives_up_and_the_row_stays(open_rig: OpenRig) -> None:
    rig = await open_rig(commit_timeout_ms=20)
    rig.table.shut_gate()
    with pytest.raises(CommitTimeoutError, match="20 ms"):
        await rig.commit("a")
    assert rig.pending("a") == 1
    rig.table.open_gate()
    await rig.buffer.flush()
    assert rig.rows() == {"a": 1}


async def test_flush_gives_up_after_its_own_time(open_rig: OpenRig) -> None:
    rig = await open_rig(flush_timeout_ms=20)
    rig.table.shut_gate()
    rig.enqueue("a")
    with pytest.raises(CommitTimeoutError, match="20 ms"):
        await rig.buffer.flush()


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(500, ["INSERT INTO"]), (250, ["BEGIN IMMEDIATE", "INSERT INTO", "INSERT INTO", "COMMIT"])],
)
async def test_one_statement_per_batch(open_rig: OpenRig, batch_size: int, expected: list[str]) -> None:
    rig = await open_rig(max_batch_size=batch_size)
    statements: list[str] = []

    def remember(_: apsw.Cursor, sql: str, __: object) -> bool:
        statements.append(" ".join(sql.split()[:2]))
        return True

    await rig.database.write(lambda connection: connection.set_exec_trace(remember))
    for n in range(1, 501):
        rig.enqueue(f"k{n}", n)
    await rig.buffer.flush()
    assert statements == expected


async def test_a_backlog_shares_transactions(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=2)
    rig.table.shut_gate()
    first = asyncio.create_task(rig.commit("first"))
    await rig.arrived()
    for n in range(20):
        rig.enqueue(f"k{n}")
    rig.table.open_gate()
    await first
    await rig.buffer.flush()
    assert rig.table.batches == [(rig.driver.write_operation, 1)] + [(rig.driver.write_operation, 2)] * 10
    # Eight batches to a transaction.
    assert [f.measurements["batch_size"] for f in rig.telemetry.of(events.FLUSH)] == [1, 16, 4]


async def test_a_flush_is_told_with_its_numbers(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.enqueue("a")
    await rig.buffer.flush()
    [flush] = rig.telemetry.of(events.FLUSH)
    assert flush.metadata == {"buffer": rig.buffer.name, "operation": rig.driver.write_operation}
    assert flush.measurements["batch_size"] == 1
    assert 0 < flush.measurements["duration_ms"] < 20_000


async def test_the_same_event_twice_is_one_row(open_rig: OpenRig) -> None:
    rig = await open_rig()
    for _ in range(2):
        await rig.commit("a", 3)
    assert rig.rows() == {"a": 3}


# --- reading one's own writes ---


async def test_pending_while_waiting_and_in_flight(open_rig: OpenRig) -> None:
    rig = await open_rig()
    assert rig.pending("a") is None
    rig.enqueue("a", 1)
    assert rig.pending("a") == 1
    rig.table.shut_gate()
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    assert rig.rows() == {}
    assert rig.pending("a") == 1
    rig.enqueue("a", 2)
    assert rig.pending("a") == 2
    rig.table.open_gate()
    await flush
    await rig.buffer.flush()
    assert rig.pending("a") is None


async def test_pending_after_a_failed_flush(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.fail(apsw.SQLITE_FULL)
    rig.enqueue("a", 1)
    await rig.flush_in_vain()
    assert rig.pending("a") == 1
    assert rig.rows() == {}


async def test_what_failed_is_written_before_newer_events(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    rig.table.fail(apsw.SQLITE_FULL)
    rig.enqueue("a", 1)
    rig.enqueue("b", 1)
    older = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.enqueue("a", 2)
    rig.enqueue("c", 1)
    rig.table.open_gate()
    await rig.telemetry.wait_for(events.STALLED)
    assert (rig.pending("a"), rig.pending("b"), rig.pending("c")) == (2, 1, 1)
    await rig.buffer.flush()
    assert rig.rows() == {"a": rig.driver.version_after(1, 2), "b": 1, "c": 1}
    await older


async def test_the_ticket_of_what_is_pending(open_rig: OpenRig) -> None:
    rig = await open_rig()
    key = rig.driver.row_key("a")
    assert rig.buffer.ticket_of(key) is None
    own = rig.enqueue("a", 1)
    assert rig.buffer.ticket_of(key) == own
    rig.table.shut_gate()
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    newer = rig.enqueue("b", 1)
    assert rig.buffer.ticket_of(key) == own  # in flight: the flush of what is newer is not waited for
    assert rig.buffer.ticket_of(newer.key) == newer != own
    rig.table.open_gate()
    await flush
    assert rig.buffer.ticket_of(key) is None
    await rig.buffer.committed(newer)


async def test_who_asks_for_the_ticket_of_a_row_hears_of_its_refusal(open_rig: OpenRig) -> None:
    rig = await open_rig()
    own = rig.buffer.enqueue_nowait(rig.driver.bad_write("bad"))
    rig.table.shut_gate()
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.enqueue("newer")
    found = rig.buffer.ticket_of(own.key)
    rig.table.open_gate()
    await flush
    assert found is not None
    with pytest.raises(RowRefusedError):
        await rig.buffer.committed(found)


# --- what can be seen from outside ---


async def test_age_depth_and_what_is_in_flight(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    # Only this module's clock: the event loop has the real one.
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("undercroft.buffers.generations.time", clock)
    rig = await open_rig()
    assert (rig.buffer.oldest_age, rig.buffer.rows_in_flight, rig.buffer.stalled) == (0.0, 0, None)
    rig.enqueue("a")
    now += 5
    rig.enqueue("b")
    assert rig.buffer.oldest_age == 5.0
    assert rig.buffer.queue_stats().rows == 2
    assert rig.buffer.queue_stats().bytes > 100
    rig.table.shut_gate()
    flush = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.enqueue("c")
    now += 1
    assert (rig.buffer.oldest_age, rig.buffer.rows_in_flight) == (6.0, 2)
    assert rig.buffer.queue_stats().rows == 3
    rig.table.open_gate()
    await flush
    assert (rig.buffer.oldest_age, rig.buffer.rows_in_flight) == (1.0, 0)


async def test_a_failed_flush_keeps_the_age_and_says_why(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    # Only this module's clock: the event loop has the real one.
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr("undercroft.buffers.generations.time", clock)
    rig = await open_rig()
    rig.table.fail(apsw.SQLITE_FULL)
    rig.enqueue("a")
    now += 3
    await rig.flush_in_vain()
    assert rig.buffer.stalled is not None
    assert rig.buffer.stalled.startswith("FullError")
    assert (rig.buffer.oldest_age, rig.buffer.rows_in_flight) == (3.0, 0)
    assert rig.telemetry.count(events.FLUSH) == 0  # a failed flush does not look like a good one
    await rig.buffer.flush()
    assert rig.buffer.oldest_age == 0.0
    assert not rig.buffer.stalled


async def test_a_buffer_that_is_not_open_accepts_nothing(driver: Driver, database: Database) -> None:
    buffer = SQLiteBuffer(FaultyTable(driver.make_table()).as_table, database, Events(), BufferSettings())
    with pytest.raises(ClosedError):
        buffer.enqueue_nowait(driver.write("a"))
    with pytest.raises(ClosedError):
        await buffer.enqueue(driver.write("a"))


async def test_reset_forgets_what_is_pending(open_rig: OpenRig) -> None:
    rig = await open_rig(flush_interval_ms=10)
    rig.enqueue("a")
    rig.buffer.reset()
    assert rig.buffer.queue_stats() == (0, 0)
    await rig.commit("b")
    assert rig.rows() == {"b": 1}


# --- more than one generation ---


@pytest.mark.parametrize("waits_in", ["flush", "committed"])
async def test_who_waits_behind_a_full_generation_does_not_wait_for_the_timer(
    open_rig: OpenRig, waits_in: str
) -> None:
    rig = await open_rig(max_batch_size=10)
    rig.table.shut_gate()
    first = asyncio.create_task(rig.commit("first"))
    await rig.arrived()
    for n in range(80):  # a full generation: eight batches
        rig.enqueue(f"k{n}")
    last = rig.enqueue("last")
    waiter = asyncio.create_task(rig.buffer.flush() if waits_in == "flush" else rig.buffer.committed(last))
    await asyncio.sleep(0)
    rig.table.open_gate()
    async with asyncio.timeout(5):  # the timer is an hour away
        await asyncio.gather(first, waiter)
    assert len(rig.rows()) == 82
