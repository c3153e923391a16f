"""Events in generations: bounded, oldest first, and what comes back comes before what is newer."""

import asyncio

import apsw
import pytest

from undercroft.buffers.bufferable import Batch
from undercroft.buffers.generations import BYTES_EACH, Generations, let_go
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueEvent, KeyValueState, KeyValueWrite
from undercroft.telemetry import events

from .conftest import OpenRig

ROWS_EACH = 2


@pytest.fixture
def generations() -> Generations[KeyValueState, KeyValueEvent]:
    return Generations(KeyValueBuffer(), ROWS_EACH)


def write(key: str, version: int = 1) -> KeyValueWrite:
    return KeyValueWrite(key, str(version))


def test_a_full_generation_is_closed_and_the_next_one_gathers(
    generations: Generations[KeyValueState, KeyValueEvent],
) -> None:
    assert [generations.add(write(key)) for key in "abcde"] == [1, 1, 2, 2, 3]
    assert [len(one.state.writes) for one in generations.all()] == [2, 2, 1]
    assert generations.full_waits
    assert (generations.rows_gathered, generations.newest) == (1, 3)
    assert generations.stats().rows == 5


def test_the_oldest_is_taken_first(generations: Generations[KeyValueState, KeyValueEvent]) -> None:
    for key in "abcde":
        generations.add(write(key))
    taken = []
    for _ in range(3):
        one = generations.take()
        taken.append((one.number, list(one.state.writes)))
        assert generations.rows_in_flight == len(one.state.writes)
        generations.settle(committed=True)
    assert taken == [(1, ["a", "b"]), (2, ["c", "d"]), (3, ["e"])]
    assert generations.stats() == (0, 0)


def test_what_is_not_committed_is_taken_again_as_it_was(
    generations: Generations[KeyValueState, KeyValueEvent],
) -> None:
    for event in (write("a", 1), write("b", 1), write("a", 2), write("c", 1), write("d", 1)):
        generations.add(event)
    before = generations.stats()
    for _ in range(3):  # however often it fails it does not grow
        one = generations.take()
        assert one.number == 1
        assert one.state.writes == {"a": write("a", 1), "b": write("b", 1)}
        generations.settle(committed=False)
        assert generations.stats() == before
        assert generations.pending("a") == write("a", 2)
    sizes = []
    while generations.stats().rows:
        sizes.append(len(generations.take().state.writes))
        generations.settle(committed=True)
    assert sizes == [2, 2, 1]
    assert generations.stats() == (0, 0)


def test_a_generation_is_bounded_in_bytes() -> None:
    generations = Generations(KeyValueBuffer(), rows_each=1_000_000)
    payload = "x" * (BYTES_EACH // 4)
    for n in range(6):
        generations.add(KeyValueWrite(f"k{n}", payload))
    assert [len(one.state.writes) for one in generations.all()] == [4, 2]
    assert generations.stats().bytes > 6 * len(payload)


def test_pending_says_the_newest_word_of_all(generations: Generations[KeyValueState, KeyValueEvent]) -> None:
    generations.add(write("a", 1))
    generations.add(write("b", 1))
    generations.take()
    for version in (2, 3):
        assert generations.pending("a") == write("a", version - 1)
        generations.add(write("a", version))
        generations.add(write(f"filler{version}"))
    assert generations.pending("a") == write("a", 3)
    assert generations.pending("b") == write("b", 1)
    assert generations.pending("nobody") is None


async def test_a_backlog_of_generations_keeps_its_order_through_a_failure(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=1)  # eight rows to a generation
    rig.table.shut_gate()
    rig.table.fail(apsw.SQLITE_FULL)
    rig.enqueue("a", 1)
    older = asyncio.create_task(rig.buffer.flush())
    await rig.arrived()
    rig.enqueue("a", 2)
    for n in range(7):
        rig.enqueue(f"x{n}")
    for n in range(8):
        rig.enqueue(f"y{n}")
    rig.table.open_gate()
    await rig.flush_in_vain()
    assert rig.pending("a") == 2
    await rig.buffer.flush()
    await older
    assert rig.rows() == {"a": rig.driver.version_after(1, 2), **{f"{name}{n}": 1 for name, n in _fillers()}}


def _fillers() -> list[tuple[str, int]]:
    return [("x", n) for n in range(7)] + [("y", n) for n in range(8)]


async def test_no_row_is_acknowledged_before_its_own_generation(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=1)
    rig.table.shut_gate()
    first = asyncio.create_task(rig.commit("first"))
    await rig.arrived()
    tickets = {f"k{n:02}": rig.enqueue(f"k{n:02}") for n in range(24)}  # three full generations

    async def acknowledged(key: str) -> bool:
        await rig.buffer.committed(tickets[key])
        return key in rig.rows()

    waiters = [asyncio.create_task(acknowledged(key)) for key in tickets]
    await asyncio.sleep(0)
    rig.table.open_gate()
    assert all(await asyncio.gather(*waiters))
    await first


async def test_a_long_lock_does_not_make_larger_transactions(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=1, retry_max_attempts=0)
    for attempt in range(5):
        rig.table.fail(apsw.SQLITE_BUSY)
        for n in range(8):  # a full generation
            rig.enqueue(f"k{attempt}-{n}")
        await rig.flush_in_vain()
        assert rig.buffer.queue_stats().rows == 8 * (attempt + 1)
    await rig.buffer.flush()
    assert [flush.measurements["batch_size"] for flush in rig.telemetry.of(events.FLUSH)] == [8] * 5
    assert rig.buffer.queue_stats() == (0, 0)


async def test_many_bytes_start_a_flush(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.buffers.generations.BYTES_EACH", 2_000)
    rig = await open_rig()
    for n in range(10):  # far from max_batch_size
        rig.enqueue(f"k{n}")
    await rig.telemetry.wait_for(events.FLUSH)  # the timer is an hour away
    assert rig.rows()


async def test_the_timer_of_what_gathers_is_not_spent_on_an_older_generation(open_rig: OpenRig) -> None:
    rig = await open_rig(max_batch_size=2, flush_interval_ms=30)
    rig.table.shut_gate()
    rig.table.fail(apsw.SQLITE_FULL)
    for n in range(16):  # a full generation
        rig.enqueue(f"old{n}")
    await rig.arrived()
    rig.enqueue("new")
    rig.table.open_gate()
    await rig.telemetry.wait_for(events.FLUSH, 2)  # nobody waits, nothing else comes
    assert len(rig.rows()) == 17


async def test_a_table_that_makes_no_batches_loses_no_rows(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await open_rig()

    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(rig.table, "flush_batches", fail, raising=False)
        ticket = rig.enqueue("a")
        waiter = asyncio.create_task(rig.buffer.committed(ticket))
        with pytest.raises(RuntimeError, match="unforeseen"):
            await rig.running
    assert (rig.pending("a"), rig.buffer.rows_in_flight) == (1, 0)
    rig.enqueue("b")
    await rig.buffer.close()
    await waiter
    assert rig.rows() == {"a": 1, "b": 1}


async def test_batches_are_let_go_one_in_each_turn() -> None:
    batches = [Batch("writes", [write("a")]) for _ in range(4)]
    let_go(batches)
    left = []
    for _ in range(5):
        left.append(len(batches))
        await asyncio.sleep(0)
    assert left == [3, 2, 1, 0, 0]
