"""Maintenance: it gives back what is free, leaves alone what is not, and gets its turn under load."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.locks import lock_of_another_connection
from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueWrite
from undercroft.database import Database, transaction
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.database.upkeep import Pages, Vacuumed, pages
from undercroft.telemetry import events
from undercroft.workers import maintenance
from undercroft.workers.maintenance import RESERVED_PAGES, Maintenance, WriterShare, vacuum

SQL = "INSERT INTO key_value_entries (key, json_payload, inserted_at, updated_at) VALUES (?, ?, 1, 1)"


def fill(connection: apsw.Connection, rows: int = 10_000) -> None:
    with transaction(connection):
        connection.executemany(SQL, ((f"k{n}", "x" * 1_000) for n in range(rows)))


def empty(connection: apsw.Connection) -> None:
    connection.execute("DELETE FROM key_value_entries").fetchall()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    database.open()
    await database.write(lambda connection: connection.set_busy_timeout(0))
    yield database
    await database.close()


@pytest.fixture
def telemetry() -> RecordedEvents:
    return RecordedEvents()


def steps(telemetry: RecordedEvents, step: str, result: str = "done") -> list[float]:
    """The pages of each such step."""
    found = telemetry.of(events.UPKEEP)
    return [one.measurements["pages"] for one in found if (step, result) == _kind(one.metadata)]


def _kind(metadata: Any) -> tuple[str, str]:
    return metadata["step"], metadata["result"]


@asynccontextmanager
async def saturated(database: Database) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A buffer that always has another flush ready; answers how to wait for so many more of them."""
    recorded = RecordedEvents()
    buffer = SQLiteBuffer(KeyValueBuffer(), database, recorded)
    await buffer.open()
    running = asyncio.create_task(buffer.run())

    async def produce(name: int) -> None:
        for n in itertools.count():
            await buffer.enqueue(KeyValueWrite(f"load{name}-{n % 3_000}", "y" * 500))
            if n % 200 == 0:
                # A loop that never waits hardly lets the writer thread have the GIL.
                await asyncio.sleep(0.001)

    producers = [asyncio.create_task(produce(name)) for name in range(2)]

    async def flushed(more: int) -> None:
        await recorded.wait_for(events.FLUSH, recorded.count(events.FLUSH) + more)

    try:
        yield flushed
    finally:
        for producer in producers:
            producer.cancel()
        ended = await asyncio.gather(*producers, return_exceptions=True)
        await buffer.close()
        await running
        assert [type(reason) for reason in ended] == [asyncio.CancelledError] * 2


async def test_free_pages_are_given_back_but_for_a_reserve(
    database: Database, telemetry: RecordedEvents
) -> None:
    await database.write(fill)
    await database.write(empty)
    before = await database.read(pages)
    await Maintenance([database], telemetry, 1_000).run_once()
    after = await database.read(pages)
    # The statistics take a page.
    assert RESERVED_PAGES - 2 <= after.free <= RESERVED_PAGES
    assert sum(steps(telemetry, "vacuum")) == before.total - after.total
    assert len(steps(telemetry, "vacuum")) > 5
    assert {one.metadata["database"] for one in telemetry.of(events.UPKEEP)} == {"key_values"}


async def test_a_reserve_is_left_alone(database: Database, telemetry: RecordedEvents) -> None:
    await database.write(lambda connection: fill(connection, 2_000))
    await database.write(empty)
    await Maintenance([database], telemetry, 1_000).run_once()
    assert steps(telemetry, "vacuum") == []


async def test_a_large_wal_is_cut_and_a_small_one_is_not(
    database: Database, telemetry: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.write(fill)
    size = database.size_on_disk().wal
    monkeypatch.setattr(maintenance, "TRUNCATE_FROM_BYTES", size * 2)
    worker = Maintenance([database], telemetry, 1_000)
    await worker.run_once()
    assert database.size_on_disk().wal >= size
    monkeypatch.setattr(maintenance, "TRUNCATE_FROM_BYTES", size)
    await worker.run_once()
    assert database.size_on_disk().wal == 0
    assert len(steps(telemetry, "truncate")) == 1


async def test_statistics_are_renewed_at_the_start_and_when_they_are_old(
    database: Database, telemetry: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Maintenance([database], telemetry, 1_000)
    await worker.run_once()
    await worker.run_once()
    assert len(steps(telemetry, "optimize")) == 1
    monkeypatch.setattr(maintenance, "OPTIMIZE_SECONDS", 0)
    await worker.run_once()
    assert len(steps(telemetry, "optimize")) == 2


async def test_a_locked_database_is_logged_once_and_the_other_gets_its_turn(
    database: Database, telemetry: RecordedEvents, tmp_path: Path
) -> None:
    other = Database(tmp_path / "node.sqlite", NODE)
    other.open()
    await database.write(fill)
    await database.write(empty)
    worker = Maintenance([database, other], telemetry, 1_000)
    with capture_logs() as logs:
        with lock_of_another_connection(database.path):
            await worker.run_once()
            await worker.run_once()
        assert [one.metadata["database"] for one in telemetry.of(events.UPKEEP)].count("node") == 1
        assert len(steps(telemetry, "vacuum", "busy")) == 2
        await worker.run_once()
    assert [entry["event"] for entry in logs] == ["maintenance_failed", "maintenance_recovered"]
    assert (await database.read(pages)).free <= RESERVED_PAGES
    await other.close()


async def test_run_goes_on_until_the_databases_are_closed(
    database: Database, telemetry: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "OPTIMIZE_SECONDS", 0)
    running = asyncio.create_task(Maintenance([database], telemetry, 1).run())
    await telemetry.wait_for(events.UPKEEP, 3)
    await database.close()
    async with asyncio.timeout(20):
        await running


async def test_pages_go_down_and_the_wal_is_cut_while_flushes_never_pause(
    database: Database, telemetry: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "TRUNCATE_FROM_BYTES", 1)
    await database.write(fill)
    await database.write(empty)
    worker = Maintenance([database], telemetry, 1_000)
    async with saturated(database) as flushed:
        await flushed(2)
        before = await database.read(pages)
        async with asyncio.timeout(60):
            await worker.run_once()
        after = await database.read(pages)
        await flushed(2)  # the load is still there
    assert sum(steps(telemetry, "vacuum")) > 0
    assert after.free < before.free
    assert after.free <= RESERVED_PAGES * 1.1
    assert len(steps(telemetry, "truncate")) == 1


async def test_vacuum_ends_when_nothing_is_given_back(
    database: Database, telemetry: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As next to inserts that take every free page."""
    free = Pages(4_096, 10_000, 5_000)
    monkeypatch.setattr(maintenance, "pages", lambda _: free)
    monkeypatch.setattr(maintenance, "vacuum_slice", lambda *_: Vacuumed(0, free))
    async with asyncio.timeout(20):
        assert await vacuum(database, telemetry, keep=0) == 0


async def test_a_share_grows_with_the_wait_and_shrinks_with_the_work() -> None:
    share = WriterShare(100, 1_000)
    for _ in range(10):
        share._learn(waited=1.0, worked=0.1)
    assert share.amount == 1_000
    for _ in range(10):
        share._learn(waited=0.0, worked=0.1)
    assert share.amount == 100
    share.press(behind=True)
    share._learn(waited=0.0, worked=0.1)
    assert (share.amount, share.hurries) == (200, True)
    share.press(behind=False)
    share._learn(waited=0.0, worked=0.1)
    assert (share.amount, share.hurries) == (100, False)
