"""Events in generations: bounded, oldest first, and what comes back goes under what is newer."""

import asyncio

import apsw
import pytest

from undercroft.buffers import Batch
from undercroft.buffers.generations import Generations
from undercroft.buffers.key_values import WRITES, KeyValueBuffer, KeyValueEvent, KeyValueState, KeyValueWrite

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
    assert [len(one.state.events) for one in generations.all()] == [2, 2, 1]
    assert generations.full_waits
    assert (generations.rows_gathered, generations.newest) == (1, 3)
    assert generations.stats().rows == 5


def test_the_oldest_is_taken_first(generations: Generations[KeyValueState, KeyValueEvent]) -> None:
    for key in "abcde":
        generations.add(write(key))
    taken = []
    for _ in range(3):
        one = generations.take()
        taken.append((one.number, list(one.state.events)))
        assert generations.rows_in_flight == len(one.state.events)
        generations.settle([])
    assert taken == [(1, ["a", "b"]), (2, ["c", "d"]), (3, ["e"])]
    assert generations.stats() == (0, 0)


def test_what_is_left_goes_to_the_next_older_generation(
    generations: Generations[KeyValueState, KeyValueEvent],
) -> None:
    for event in (write("a", 1), write("b", 1), write("a", 2), write("c", 1), write("d", 1)):
        generations.add(event)
    first = generations.take()
    generations.settle([Batch(WRITES, list(first.state.events.values()))])
    heir, gathering = generations.all()
    assert heir.number == 2
    assert heir.state.events == {"a": write("a", 2), "b": write("b", 1), "c": write("c", 1)}
    assert list(gathering.state.events.values()) == [write("d", 1)]
    assert generations.stats().rows == 4


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
    assert rig.rows() == {"a": 2, **{f"{name}{n}": 1 for name, n in _fillers()}}


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
