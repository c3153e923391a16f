"""One bad row does not take its batch along, and what is not about rows sets none aside."""

import asyncio
from pathlib import Path
from typing import Any, cast

import apsw
import msgspec
import pytest

from undercroft.buffers import Batch
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueWrite
from undercroft.buffers.transaction import write_batches
from undercroft.database.connection import open_connection
from undercroft.errors import CommitTimeoutError, RowRefusedError
from undercroft.telemetry import events

from .conftest import OpenRig
from .rig import Rig


def _set_aside(rig: Rig) -> list[Any]:
    """The lines of the file of refused rows."""
    return [msgspec.json.decode(line) for line in rig.buffer.refused_path.read_bytes().splitlines()]


async def _refused(rig: Rig, event: Any) -> None:
    with pytest.raises(RowRefusedError):
        await rig.buffer.committed(rig.buffer.enqueue_nowait(event))


async def test_one_bad_row_is_set_aside_and_the_rest_commits(open_rig: OpenRig) -> None:
    rig = await open_rig()
    good = [rig.enqueue(f"k{n}", n) for n in range(1, 51)]
    bad = rig.buffer.enqueue_nowait(rig.driver.bad_write("bad"))
    good += [rig.enqueue(f"k{n}", n) for n in range(51, 101)]
    results = await asyncio.gather(
        *(rig.buffer.committed(ticket) for ticket in [*good, bad]), return_exceptions=True
    )
    assert results[:100] == [None] * 100
    assert isinstance(results[100], RowRefusedError)
    assert "ConstraintError" in str(results[100])
    assert rig.rows() == {f"k{n}": n for n in range(1, 101)}
    [(operation, row, error)] = _set_aside(rig)
    assert operation == rig.driver.write_operation
    assert row == msgspec.to_builtins(rig.driver.bad_write("bad"))
    assert error.startswith("ConstraintError: ")
    [refused] = rig.telemetry.of(events.REFUSED)
    assert refused.measurements == {"count": 1}
    assert refused.metadata == {"buffer": rig.buffer.name, "operation": operation}
    assert rig.telemetry.sum_of(events.FLUSH, "batch_size") == 100
    assert rig.buffer.queue_stats() == (0, 0)


async def test_many_bad_rows(open_rig: OpenRig) -> None:
    rig = await open_rig()
    for n in range(30):
        rig.enqueue(f"good{n}")
        rig.buffer.enqueue_nowait(rig.driver.bad_write(f"bad{n}"))
    await rig.buffer.flush()  # a flush is about everything, and raises for no single row
    assert set(rig.rows()) == {f"good{n}" for n in range(30)}
    assert len(_set_aside(rig)) == rig.telemetry.count(events.REFUSED) == 30


async def test_halving_takes_few_statements(open_rig: OpenRig) -> None:
    rig = await open_rig()
    for n in range(1_000):
        rig.enqueue(f"k{n}")
    rig.table.refused_keys.add(rig.table.as_table.entry_key(rig.driver.write("k700")))
    await rig.buffer.flush()
    assert len(rig.rows()) == 999
    # Alone, then in a transaction: the whole, and two halves of each of ten sizes; the empty one apart.
    assert len(rig.table.batches) <= 1 + 1 + 2 * 10


@pytest.mark.parametrize("position", [0, 511, 700, 1_023])
async def test_the_statements_that_one_bad_row_costs(open_rig: OpenRig, position: int) -> None:
    rig = await open_rig(max_batch_size=2_000)
    statements: list[str] = []

    def remember(_: apsw.Cursor, sql: str, __: object) -> bool:
        if sql.lstrip().startswith("INSERT"):
            statements.append(sql)
        return True

    await rig.database.write(lambda connection: connection.set_exec_trace(remember))
    for n in range(1_024):
        rig.buffer.enqueue_nowait(rig.driver.bad_write("bad") if n == position else rig.driver.write(f"k{n}"))
    await rig.buffer.flush()
    assert len(rig.rows()) == 1_023
    # The first; then in a transaction the whole again, the empty one, two halves of each of ten sizes.
    assert len(statements) == 1 + 2 + 2 * 10


async def test_a_batch_of_nothing_but_bad_rows_is_no_flush(open_rig: OpenRig) -> None:
    rig = await open_rig()
    for n in range(3):
        rig.buffer.enqueue_nowait(rig.driver.bad_write(f"bad{n}"))
    await rig.buffer.flush()
    assert rig.telemetry.count(events.REFUSED) == 3
    assert rig.telemetry.count(events.FLUSH) == 0


async def test_who_asks_after_the_flush_hears_of_the_refusal_too(open_rig: OpenRig) -> None:
    rig = await open_rig()
    ticket = rig.buffer.enqueue_nowait(rig.driver.bad_write("bad"))
    await rig.buffer.flush()
    for _ in range(2):
        with pytest.raises(RowRefusedError):
            await rig.buffer.committed(ticket)


async def test_a_refusal_concerns_neither_earlier_nor_later_rows_of_the_key(open_rig: OpenRig) -> None:
    rig = await open_rig()
    earlier = rig.enqueue("a", 1)
    await rig.buffer.flush()
    refused = rig.enqueue("a", 2)
    rig.table.refused_keys.add(refused.key)
    await rig.buffer.flush()
    rig.table.heal()
    later = rig.enqueue("a", 3)
    with pytest.raises(RowRefusedError):
        await rig.buffer.committed(refused)
    await rig.buffer.committed(earlier)
    await rig.buffer.committed(later)


async def test_a_row_that_waited_through_a_failure_and_is_refused_then(open_rig: OpenRig) -> None:
    rig = await open_rig(commit_timeout_ms=20)
    rig.table.fail(apsw.SQLITE_FULL)
    ticket = rig.buffer.enqueue_nowait(rig.driver.bad_write("bad"))
    with pytest.raises(CommitTimeoutError):
        await rig.buffer.committed(ticket)
    await rig.buffer.flush()
    with pytest.raises(RowRefusedError):
        await rig.buffer.committed(ticket)


async def test_a_missing_table_sets_no_row_aside(open_rig: OpenRig) -> None:
    rig = await open_rig(commit_timeout_ms=30)
    name = rig.driver.table_name
    await rig.database.write(lambda connection: connection.execute(f"ALTER TABLE {name} RENAME TO hidden"))
    tickets = [rig.enqueue(f"k{n}", n) for n in range(1, 9)]
    with pytest.raises(CommitTimeoutError):
        await rig.buffer.committed(tickets[0])
    assert rig.buffer.queue_stats().rows == 8
    assert rig.telemetry.count(events.REFUSED) == 0
    assert not rig.buffer.refused_path.exists()
    await rig.database.write(lambda connection: connection.execute(f"ALTER TABLE hidden RENAME TO {name}"))
    await rig.buffer.flush()
    assert rig.rows() == {f"k{n}": n for n in range(1, 9)}


async def test_an_error_that_even_the_empty_batch_meets_is_not_about_rows(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.fail_always(apsw.SQLITE_CONSTRAINT, even_empty=True)
    rig.enqueue("a")
    await rig.flush_in_vain()
    assert rig.telemetry.count(events.REFUSED) == 0
    rig.table.heal()
    await rig.buffer.flush()
    assert rig.rows() == {"a": 1}


async def test_text_that_has_no_utf_8(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.enqueue("good")
    await _refused(rig, rig.driver.write("lone surrogate \ud800"))
    assert rig.rows() == {"good": 1}
    assert b"\\ud800" in rig.buffer.refused_path.read_bytes()


async def test_refused_rows_that_no_file_takes(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.buffer.refused_path.mkdir()  # cannot be appended to, even by root
    rig.enqueue("good")
    await _refused(rig, rig.driver.bad_write("bad"))
    await rig.commit("next")  # it goes on
    assert set(rig.rows()) == {"good", "next"}


def test_a_failed_transaction_leaves_none_open(tmp_path: Path) -> None:
    connection = open_connection(tmp_path / "empty.sqlite")
    try:
        batches = [Batch("key_values", [KeyValueWrite("a", "1")])]
        with pytest.raises(apsw.SQLError):  # no such table
            write_batches(connection, KeyValueBuffer(), batches)
        assert not connection.in_transaction
    finally:
        connection.close()


def test_a_type_error_of_a_row_is_about_the_row(tmp_path: Path) -> None:
    connection = open_connection(tmp_path / "some.sqlite")
    try:
        connection.execute("CREATE TABLE key_value_entries (key UNIQUE, json_payload, last_accessed_at,"
                           " inserted_at, updated_at)")  # fmt: skip
        rows = [KeyValueWrite("a", "1"), KeyValueWrite("b", cast("str", object())), KeyValueWrite("c", "3")]
        written = write_batches(connection, KeyValueBuffer(), [Batch("key_values", rows)])
        assert [(row.entry.key, row.error.split(":")[0]) for row in written.refused] == [("b", "TypeError")]
        assert written.rows_by_operation == {"key_values": 2}
        assert connection.execute("SELECT key FROM key_value_entries").fetchall() == [("a",), ("c",)]
    finally:
        connection.close()
