"""The service of key values."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import apsw
import pytest

from tests.support.faulty_table import FaultyTable
from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueEvent, KeyValueState
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES
from undercroft.errors import BufferFullError, ClosedError, CommitTimeoutError
from undercroft.key_values import ACCESS_RESOLUTION_US, KeyValueStore


class Rig:
    def __init__(self, folder: Path, ack: Literal["committed", "buffered"], **settings: int) -> None:
        self.database = Database(folder / "key_values.sqlite", KEY_VALUES)
        self.table = FaultyTable(KeyValueBuffer())
        self.buffer: SQLiteBuffer[KeyValueState, KeyValueEvent] = SQLiteBuffer(
            self.table.as_table,
            self.database,
            RecordedEvents(),
            BufferSettings(**{"flush_interval_ms": 3_600_000, **settings}),
        )
        self.store = KeyValueStore(self.database, self.buffer, ack)

    async def open(self) -> "Rig":
        self.database.open()
        await self.buffer.open()
        self.runner = asyncio.create_task(self.buffer.run())
        return self

    async def close(self) -> None:
        self.table.open_gate()
        await self.buffer.close()
        self.runner.cancel()
        with suppress(asyncio.CancelledError):
            await self.runner
        await self.database.close()

    def rows(self) -> list[tuple[str, str, int | None]]:
        connection = apsw.Connection(str(self.database.path))
        try:
            sql = "SELECT key, json_payload, last_accessed_at FROM key_value_entries"
            return [(key, payload, at) for key, payload, at in connection.execute(sql)]
        finally:
            connection.close()


OpenRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    rigs: list[Rig] = []

    async def open_one(ack: Literal["committed", "buffered"] = "committed", **settings: int) -> Rig:
        rigs.append(Rig(tmp_path, ack, **settings))
        return await rigs[-1].open()

    yield open_one
    for rig in rigs:
        await rig.close()


async def test_committed_put_is_in_the_file(open_rig: OpenRig) -> None:
    rig = await open_rig()
    await rig.store.put("k", "1")
    assert [row[:2] for row in rig.rows()] == [("k", "1")]


async def test_buffered_put_is_readable_before_it_is_in_the_file(open_rig: OpenRig) -> None:
    rig = await open_rig("buffered")
    await rig.store.put("k", "1")
    assert rig.rows() == []
    assert rig.store.get("k") == "1"
    await rig.store.flush()
    assert [row[:2] for row in rig.rows()] == [("k", "1")]


async def test_get_of_what_is_in_flight(open_rig: OpenRig) -> None:
    rig = await open_rig()
    rig.table.shut_gate()
    putting = asyncio.create_task(rig.store.put("k", "1"))
    await asyncio.to_thread(rig.table.wait_until_arrived)
    assert rig.store.get("k") == "1"
    assert not putting.done()
    rig.table.open_gate()
    await putting


async def test_get_counts_as_an_access_and_a_miss_does_not(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await open_rig()
    await rig.store.put("k", "1")
    later = now_us() + 2 * ACCESS_RESOLUTION_US
    monkeypatch.setattr("undercroft.key_values.now_us", lambda: later)
    monkeypatch.setattr("undercroft.buffers.key_values.now_us", lambda: later)
    assert rig.store.get("absent") is None
    assert rig.buffer.queue_stats().rows == 0
    assert rig.store.get("k") == "1"
    await rig.store.flush()
    assert rig.rows() == [("k", "1", later)]


@pytest.mark.parametrize(
    ("seconds", "recorded"), [(0, False), (59, False), (60, True), (3_600, True), (-1, True)]
)
async def test_an_access_is_recorded_when_the_last_one_is_long_ago_or_in_the_future(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch, seconds: int, recorded: bool
) -> None:
    rig = await open_rig()
    await rig.store.put("k", "1")
    ((_, _, written_at),) = rig.rows()
    assert written_at is not None
    monkeypatch.setattr("undercroft.key_values.now_us", lambda: written_at + seconds * 1_000_000)
    assert rig.store.get("k") == "1"
    assert rig.buffer.queue_stats().rows == int(recorded)


async def test_entries_outlive_the_node(open_rig: OpenRig) -> None:
    first = await open_rig("buffered")
    await first.store.put("k", "1")
    await first.close()
    second = await open_rig()
    assert second.store.get("k") == "1"


async def test_errors_of_the_buffer_reach_the_caller(open_rig: OpenRig) -> None:
    rig = await open_rig(max_pending_rows=1, enqueue_timeout_ms=0, commit_timeout_ms=5)
    rig.table.shut_gate()
    with pytest.raises(CommitTimeoutError):
        await rig.store.put("k", "1")
    with pytest.raises(BufferFullError):
        await rig.store.put("other", "1")


async def test_closed(open_rig: OpenRig) -> None:
    rig = await open_rig()
    await rig.close()
    with pytest.raises(ClosedError):
        await rig.store.put("k", "1")
