"""Eviction of key values by age and by size, next to flushes, locks and readers."""

import asyncio
import errno
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.locks import lock_of_another_connection
from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.buffers.key_values import KeyValueAccess, KeyValueBuffer, KeyValueWrite
from undercroft.clock import now_us
from undercroft.database import Database, transaction
from undercroft.database.connection import open_connection
from undercroft.database.schema import KEY_VALUES
from undercroft.database.upkeep import DiskSize, Pages, pages
from undercroft.key_values import KeyValueStore
from undercroft.telemetry import events
from undercroft.workers import key_value_eviction
from undercroft.workers.key_value_eviction import SLICE_ROWS, KeyValueEviction, Pace, Slice

PATIENCE_SECONDS = 20
DAY_US = 86_400_000_000
LOAD_ROWS = 60_000

SQL = """INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at)
VALUES (?, ?, ?, 1, ?)"""

Row = tuple[str, str, int | None, int]


class Rig:
    """A database with its buffer, which flushes when told or when somebody waits."""

    def __init__(self, folder: Path) -> None:
        self.telemetry = RecordedEvents()
        self.database = Database(folder / "key_values.sqlite", KEY_VALUES)
        self.buffer = SQLiteBuffer(
            KeyValueBuffer(),
            self.database,
            self.telemetry,
            BufferSettings(flush_interval_ms=3_600_000, flush_timeout_ms=300, retry_base_delay_ms=1),
        )
        self.store = KeyValueStore(self.database, self.buffer, "committed")

    async def open(self) -> "Rig":
        self.database.open()
        await self.database.write(lambda connection: connection.set_busy_timeout(0))
        await self.buffer.open()
        self.running = asyncio.create_task(self.buffer.run())
        return self

    async def close(self) -> None:
        await self.buffer.close()
        await self.running
        await self.database.close()

    def eviction(
        self, *, max_age_days: float | None = None, max_database_bytes: int | None = None
    ) -> KeyValueEviction:
        return KeyValueEviction(
            self.database,
            self.buffer,
            self.telemetry,
            max_age_days=max_age_days,
            max_database_bytes=max_database_bytes,
            interval_ms=1,
        )

    async def insert(self, rows: Sequence[Row]) -> None:
        def insert(connection: apsw.Connection) -> None:
            with transaction(connection):
                connection.executemany(SQL, rows)

        await self.database.write(insert)

    async def insert_many(self, count: int, *, payload_bytes: int = 250) -> None:
        """The oldest first."""
        now = now_us()
        payload = json.dumps({"entries": [{"value": "x" * payload_bytes}]})
        await self.insert([(hash_key(n), payload, now - DAY_US + n, now) for n in range(count)])
        await self.database.truncate_wal()

    async def keys(self) -> set[str]:
        sql = "SELECT key FROM key_value_entries"
        return {str(key) for (key,) in await self.database.read(lambda c: c.execute(sql).fetchall())}

    def evicted(self, reason: str) -> list[float]:
        """Rows of each slice."""
        found = self.telemetry.of(events.KEY_VALUES_EVICTED)
        return [one.measurements["count"] for one in found if one.metadata["reason"] == reason]


def hash_key(n: int) -> str:
    return f"keyvalue:acme:app:{sha256(str(n).encode()).hexdigest()}"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(tmp_path).open()
    yield rig
    await rig.close()


# --- by age ---------------------------------------------------------------------------------------


async def test_what_was_not_asked_for_in_so_long_goes(rig: Rig) -> None:
    now = now_us()
    old, recent = now - 31 * DAY_US, now - 29 * DAY_US
    await rig.insert(
        [
            ("old", "1", old, now),
            ("recent", "1", recent, old),
            ("never, written long ago", "1", None, old),
            ("never, written since", "1", None, recent),
        ]
    )
    await rig.eviction(max_age_days=30).run_once()
    assert await rig.keys() == {"recent", "never, written since"}
    assert sum(rig.evicted("age")) == 2
    ages = [one.measurements["age_seconds"] for one in rig.telemetry.of(events.KEY_VALUES_EVICTED)]
    assert all(31 * 86_400 <= age < 31 * 86_400 + 60 for age in ages)


async def test_many_old_ones_go_in_slices_the_oldest_first(rig: Rig) -> None:
    now = now_us()
    count = SLICE_ROWS * 5
    await rig.insert([(f"u{n}", "1", None, now - 40 * DAY_US) for n in range(count)])
    await rig.insert([(f"a{n}", "1", now - 40 * DAY_US - n * 1_000_000, now) for n in range(count)])
    await rig.insert([(f"n{n}", "1", None, now) for n in range(count)])
    await rig.eviction(max_age_days=30).run_once()
    assert await rig.keys() == {f"n{n}" for n in range(count)}
    assert sum(rig.evicted("age")) == count * 2
    assert len(rig.evicted("age")) > 2
    ages = [one.measurements["age_seconds"] for one in rig.telemetry.of(events.KEY_VALUES_EVICTED)]
    accessed = [age for age in ages if age > 40 * 86_400 + 60]
    assert accessed == sorted(accessed, reverse=True)


async def test_without_rules_nothing_goes(rig: Rig) -> None:
    await rig.insert([("old", "1", 1, 1)])
    await rig.eviction().run_once()
    assert await rig.keys() == {"old"}


async def test_an_access_that_is_still_in_the_buffer_counts(rig: Rig) -> None:
    await rig.insert([("used", "1", 1, 1), ("unused", "1", 1, 1)])
    rig.buffer.enqueue_nowait(KeyValueAccess("used", now_us()))
    await rig.eviction(max_age_days=1).run_once()
    assert await rig.keys() == {"used"}


async def test_one_asked_for_after_it_was_found_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without an access are found by the reader, some time before they are deleted."""
    await rig.insert([("used", "1", None, 1), ("unused", "1", None, 1)])
    really = key_value_eviction.evict_slice

    def use_first(connection: apsw.Connection, choice: str, values: dict[str, object]) -> Slice:
        sql = "UPDATE key_value_entries SET last_accessed_at = ? WHERE key = 'used'"
        connection.execute(sql, (now_us(),))
        return really(connection, choice, values)

    monkeypatch.setattr(key_value_eviction, "evict_slice", use_first)
    await rig.eviction(max_age_days=1).run_once()
    assert await rig.keys() == {"used"}


# --- next to flushes ------------------------------------------------------------------------------


class Gate:
    """Holds the first slice up inside the writer thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.opened = threading.Event(), threading.Event()
        self.order: list[str] = []
        """What ran in the writer thread."""
        self._really = key_value_eviction.evict_slice
        monkeypatch.setattr(key_value_eviction, "evict_slice", self._evict)

    def _evict(self, connection: apsw.Connection, choice: str, values: dict[str, object]) -> Slice:
        self.order.append("slice")
        self.arrived.set()
        assert self.opened.wait(PATIENCE_SECONDS)
        return self._really(connection, choice, values)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.arrived.wait, PATIENCE_SECONDS)


async def test_a_flush_is_committed_between_two_slices(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.insert([(f"a{n}", "1", 1, 1) for n in range(SLICE_ROWS * 3)])
    gate = Gate(monkeypatch)
    really = KeyValueBuffer.write_batch

    def write_batch(table: KeyValueBuffer, *arguments: Any) -> None:
        gate.order.append("flush")
        really(table, *arguments)

    monkeypatch.setattr(KeyValueBuffer, "write_batch", write_batch)
    evicting = asyncio.create_task(rig.eviction(max_age_days=1).run_once())
    await gate.wait()
    putting = asyncio.create_task(rig.store.put("new", "[]"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not rig.buffer.rows_in_flight:  # noqa: ASYNC110  # the buffer has no event for it
            await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(evicting, putting)
    assert gate.order[:3] == ["slice", "flush", "slice"]
    assert await rig.keys() == {"new"}


async def test_a_row_with_a_pending_write_comes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.insert([("k", "old", 1, 1)])
    gate = Gate(monkeypatch)
    evicting = asyncio.create_task(rig.eviction(max_age_days=1).run_once())
    await gate.wait()
    # After the flush with which the run began: the eviction does not see it.
    ticket = rig.buffer.enqueue_nowait(KeyValueWrite("k", "new"))
    gate.opened.set()
    await evicting
    assert sum(rig.evicted("age")) == 1
    assert await rig.keys() == set()
    assert rig.store.get("k") == "new"  # readable all the time
    await rig.buffer.committed(ticket)
    found = rig.database.find("SELECT json_payload FROM key_value_entries WHERE key = 'k'")
    assert found == ("new",)


# --- by size --------------------------------------------------------------------------------------


async def test_over_the_bound_the_longest_unused_go_until_well_below(rig: Rig) -> None:
    await rig.insert_many(20_000)
    await rig.insert([("never", "1", None, now_us())])
    before = rig.database.size_on_disk().total
    bound = before // 2
    with capture_logs() as logs:
        await rig.eviction(max_database_bytes=bound).run_once()
    size = rig.database.size_on_disk()
    assert size.wal == 0
    assert size.total <= bound * key_value_eviction.LOW_MARK
    assert size.total > bound * 0.3  # with room for the WAL, but not nearly everything
    (summary,) = [entry for entry in logs if entry["event"] == "key_values_evicted"]
    assert summary["rows"] == sum(rig.evicted("size"))
    assert summary["bytes_given_back"] == before - size.total
    left = await rig.keys()
    assert left == {hash_key(n) for n in range(20_000 - len(left), 20_000)}
    assert (await rig.database.read(pages)).free == 0
    # And below it nothing more goes.
    rig.telemetry.forget()
    await rig.eviction(max_database_bytes=bound).run_once()
    assert rig.evicted("size") == []


@pytest.mark.parametrize(
    ("count", "payload_bytes", "bound"), [(600, 30_000, 5_000_000), (30, 8_000_000, 100_000_000)]
)
async def test_large_ones_go_no_further_than_small_ones(
    rig: Rig, count: int, payload_bytes: int, bound: int
) -> None:
    """All of them would fit into one slice by their number."""
    await rig.insert_many(count, payload_bytes=payload_bytes)
    hot = {hash_key(0), hash_key(7)}
    for key in hot:
        rig.buffer.enqueue_nowait(KeyValueAccess(key, now_us()))
    eviction = rig.eviction(max_database_bytes=bound)
    await eviction.run_once()
    left = await rig.keys()
    assert left == hot | {hash_key(n) for n in range(count - len(left) + len(hot), count)}
    goal = eviction._goal(bound)
    used = (await rig.database.read(pages)).used_bytes
    assert goal - 2 * payload_bytes - key_value_eviction.LEAST_SLICE_BYTES < used <= goal


async def test_a_slice_has_no_more_bytes_than_the_writer_bears(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_value_eviction, "MOST_SLICE_BYTES", 100_000)
    now = now_us()
    payload = "x" * 30_000
    await rig.insert([(f"u{n}", payload, None, now - 40 * DAY_US) for n in range(20)])
    await rig.insert([(f"a{n}", payload, now - 40 * DAY_US, now) for n in range(20)])
    await rig.eviction(max_age_days=30).run_once()
    assert await rig.keys() == set()
    assert rig.evicted("age") == [4] * 10


async def test_free_pages_and_the_wal_cost_no_key_value(rig: Rig) -> None:
    await rig.insert_many(10_000)
    used = rig.database.size_on_disk().total
    await rig.insert([(f"gone{n}", "x" * 1_000, 1, 1) for n in range(10_000)])
    sql = "DELETE FROM key_value_entries WHERE key LIKE 'gone%'"
    await rig.database.write(lambda connection: connection.execute(sql).fetchall())
    assert rig.database.size_on_disk().total > used * 3
    await rig.eviction(max_database_bytes=int(used * 1.2)).run_once()
    assert rig.database.size_on_disk().total <= used * 1.2
    assert len(await rig.keys()) == 10_000


async def test_a_reader_that_stays_costs_no_more_than_the_bound_asks(rig: Rig) -> None:
    await rig.insert_many(20_000)
    total = rig.database.size_on_disk().total
    reader = open_connection(rig.database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM key_value_entries").fetchall()
    eviction = rig.eviction(max_database_bytes=total // 2)
    with capture_logs() as logs:
        for _ in range(3):
            await eviction.run_once()
    kept = await rig.keys()
    assert len(kept) > 3_000
    warnings = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warnings == ["key_values_over_bound"]
    reader.close()
    await eviction.run_once()
    assert rig.database.size_on_disk().total <= total // 2
    assert await rig.keys() == kept


async def test_a_bound_that_nothing_can_keep_ends_when_nothing_is_left(rig: Rig) -> None:
    await rig.insert_many(500)
    with capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await rig.eviction(max_database_bytes=1).run_once()
    assert await rig.keys() == set()
    assert "key_values_over_bound" in [entry["event"] for entry in logs]


async def test_behind_is_who_evicts_less_than_twice_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_value_eviction, "PACE_SECONDS", 0)
    some = Pages(4_096, 100, 0)
    pace = Pace()
    assert pace.is_behind(Slice(100, 1, 1_000, some)) is False
    assert pace.is_behind(Slice(100, 1, 1_051, some)) is True
    assert pace.is_behind(Slice(100, 1, 1_100, some)) is False


# --- errors ---------------------------------------------------------------------------------------


async def test_a_lock_is_logged_once_and_tried_again(rig: Rig) -> None:
    await rig.insert([("old", "1", 1, 1)])
    eviction = rig.eviction(max_age_days=1)
    with capture_logs() as logs:
        with lock_of_another_connection(rig.database.path):
            await eviction.run_once()
            await eviction.run_once()
        assert await rig.keys() == {"old"}
        await eviction.run_once()
    found = [entry["event"] for entry in logs if entry["event"].startswith("key_value_eviction")]
    assert found == ["key_value_eviction_failed", "key_value_eviction_recovered"]
    assert await rig.keys() == set()


async def test_a_disk_that_does_not_tell_sizes_is_logged_once_and_asked_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.insert([("old", "1", 1, 1)])
    eviction = rig.eviction(max_age_days=1)
    really_size, answers = Database.size_on_disk, 0

    def size(database: Database) -> DiskSize:
        nonlocal answers
        answers -= 1
        if answers < 0:
            raise OSError(errno.EIO, "bad disk")
        return really_size(database)

    monkeypatch.setattr(Database, "size_on_disk", size)
    with capture_logs() as logs:
        await eviction.run_once()
        await eviction.run_once()
        answers = 1
        await eviction.run_once()
    assert [entry["event"] for entry in logs] == [
        "key_value_eviction_failed",
        "key_value_eviction_recovered",
        "key_values_evicted",
    ]
    assert logs[-1]["bytes_given_back"] is None
    assert await rig.keys() == set()


async def test_pending_rows_that_cannot_be_flushed_are_no_crash(rig: Rig) -> None:
    await rig.insert([("old", "1", 1, 1)])
    rig.buffer.enqueue_nowait(KeyValueWrite("new", "[]"))
    with lock_of_another_connection(rig.database.path):
        await rig.eviction(max_age_days=1).run_once()
    await rig.buffer.flush()
    assert await rig.keys() == {"old", "new"}


async def test_run_evicts_again_and_again_until_the_node_closes(rig: Rig) -> None:
    running = asyncio.create_task(rig.eviction(max_age_days=1).run())
    for n in range(3):
        await rig.insert([(f"old{n}", "1", 1, 1)])
        await rig.telemetry.wait_for(events.KEY_VALUES_EVICTED, n + 1)
    await rig.buffer.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await running


# --- under load -----------------------------------------------------------------------------------


class Producers:
    """Clients that put a new key value every ten milliseconds and wait for its commit.

    Slow enough for what they put to fit in the room that the bound leaves.
    """

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._stopping = False
        self.latencies: list[float] = []
        self.put: set[str] = set()
        self._tasks = [asyncio.create_task(self._produce(n)) for n in range(4)]

    async def _produce(self, client: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            key = hash_key(-(client * 1_000_000 + number))
            started = time.perf_counter()
            await self._store.put(key, "x" * 250)
            self.latencies.append(time.perf_counter() - started)
            self.put.add(key)
            await asyncio.sleep(0.01)

    async def have_put(self, more: int) -> None:
        goal = len(self.put) + more
        async with asyncio.timeout(PATIENCE_SECONDS * 5):
            while len(self.put) < goal:  # noqa: ASYNC110  # the clients go on by themselves
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def p99_ms(self) -> float:
        """Of the puts since the last time this was asked."""
        ordered = sorted(self.latencies)
        self.latencies.clear()
        return ordered[int(len(ordered) * 0.99)] * 1_000


@pytest.mark.timeout(900)
async def test_under_load_the_bound_is_kept_and_every_put_is_there(rig: Rig) -> None:
    await rig.insert_many(LOAD_ROWS)
    before = rig.database.size_on_disk().total
    bound = before // 3
    clients = Producers(rig.store)
    await clients.have_put(2_000)
    quiet = clients.p99_ms()
    started = time.monotonic()
    await rig.eviction(max_database_bytes=bound).run_once()
    took = time.monotonic() - started
    under = clients.p99_ms()
    size = rig.database.size_on_disk().total
    await clients.stop()
    assert size <= bound
    assert clients.put <= await rig.keys()
    sys.stdout.write(
        f"\n{LOAD_ROWS} rows: {before} bytes, bound {bound}, then {size}, in {took:.1f} s; "
        f"put p99 {quiet:.2f} ms quiet, {under:.2f} ms during eviction, ratio {under / quiet:.2f}\n"
    )
