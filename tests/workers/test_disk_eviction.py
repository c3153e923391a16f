"""Eviction of artifacts: who goes, when it begins and ends, and that whoever waits for room is answered."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.artifact_rig import QUIET, ArtifactRig
from tests.support.disk_faults import by_threads
from tests.support.folders import artifact_files
from tests.support.locks import lock_of_another_connection
from tests.support.page_limit import no_more_pages
from undercroft.clock import now_us
from undercroft.database import transaction
from undercroft.errors import CapacityError
from undercroft.storage.capacity import Volume
from undercroft.storage.upload import Stored
from undercroft.telemetry import events
from undercroft.workers import disk_eviction
from undercroft.workers.disk_eviction import DiskEviction
from undercroft.workers.eviction_candidates import ALL, SPARING_UPLOADS

OpenRig = Callable[..., Awaitable[ArtifactRig]]

SIZE = 100
AGES_MS = 3_600_000


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    rigs: list[ArtifactRig] = []

    async def open_one(**options: Any) -> ArtifactRig:
        rig = ArtifactRig(tmp_path, **{"limit_bytes": 10 * SIZE} | options)
        rigs.append(rig)
        return await rig.open()

    yield open_one
    for rig in rigs:
        await rig.close()


@pytest.fixture
async def rig(open_rig: OpenRig) -> ArtifactRig:
    """Room for ten artifacts."""
    return await open_rig()


def eviction_of(rig: ArtifactRig, **settings: Any) -> DiskEviction:
    usual = {"high_percent": 90.0, "target_percent": 50.0, "interval_ms": AGES_MS, "patience_ms": 20}
    eviction = DiskEviction(rig.artifacts, rig.database, rig.capacity, rig.telemetry, **usual | settings)
    rig.artifacts.intake.make_room = eviction.make_room
    return eviction


@asynccontextmanager
async def working(eviction: DiskEviction) -> AsyncIterator[None]:
    """The worker runs; it has had its first look."""
    task = asyncio.create_task(eviction.run())
    try:
        await asyncio.sleep(0)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def asking(rig: ArtifactRig, size: int) -> "asyncio.Task[bool]":
    async def ask() -> bool:
        return await rig.artifacts.intake.make_room(size)

    return asyncio.create_task(ask())


def key(number: int) -> str:
    return f"acc/proj/xcode/ab/cd/{number}"


async def fill(rig: ArtifactRig, count: int, size: int = SIZE) -> None:
    """Stores artifacts 0, 1, ... in this order."""
    for number in range(count):
        assert await rig.store(bytes(size), key=key(number)) is Stored.CREATED


def left(rig: ArtifactRig) -> list[int]:
    """The artifacts whose files are there; they are those that are counted."""
    files = sorted(artifact_files(rig.folder), key=lambda path: int(path.rsplit("/", 1)[1]))
    assert rig.capacity.used == sum((rig.disk.artifacts / path).stat().st_size for path in files)
    return [int(path.rsplit("/", 1)[1]) for path in files]


async def rows_left(rig: ArtifactRig) -> list[int]:
    await rig.artifacts.flush()
    return sorted(int(path.rsplit("/", 1)[1]) for path in rig.rows())


def on_a_volume(rig: ArtifactRig, total: int, others: int = 0) -> None:
    """A volume with the artifacts on it, and `others` bytes."""

    def ask() -> Volume:
        files = sum((rig.disk.artifacts / path).stat().st_size for path in artifact_files(rig.folder))
        return Volume(total, total - others - files)

    rig.capacity._volume = ask


async def test_a_stop_never_comes_between_a_file_and_its_row(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_threads(monkeypatch)
    await fill(rig, 10)
    really_delete, begun, go_on = rig.disk.delete_file, threading.Semaphore(0), threading.Event()

    def delete(key: str, inode: int) -> int | None:
        begun.release()
        go_on.wait(20)
        return really_delete(key, inode)

    monkeypatch.setattr(rig.disk, "delete_file", delete)
    evicting = asyncio.create_task(eviction_of(rig).run_once())
    await asyncio.to_thread(begun.acquire)
    evicting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await evicting
    assert 0 < len(left(rig)) < 10
    assert await rows_left(rig) == left(rig)


# --- the watermarks -------------------------------------------------------------------------------


async def test_it_begins_above_the_high_mark_and_ends_at_the_target(rig: ArtifactRig) -> None:
    eviction = eviction_of(rig)
    await fill(rig, 9)
    await eviction.run_once()
    assert left(rig) == list(range(9))
    await rig.store(b"x", key=key(9))
    await eviction.run_once()
    assert left(rig) == [5, 6, 7, 8, 9] == await rows_left(rig)
    # Between the two marks nothing happens.
    for number in range(10, 14):
        await rig.store(bytes(SIZE), key=key(number))
    await eviction.run_once()
    assert left(rig) == list(range(5, 14))


async def test_it_goes_on_to_the_target_after_an_attempt_that_failed(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(rig, 10)
    really_choose = DiskEviction._choose
    eviction = eviction_of(rig)

    async def choose_once(self: DiskEviction, *arguments: Any) -> Any:
        chosen = (await really_choose(self, *arguments))[:2]
        if chosen:  # what has a time to come is looked for first
            monkeypatch.setattr(DiskEviction, "_choose", fail)
        return chosen

    async def fail(self: DiskEviction, *_: Any) -> Any:
        raise apsw.BusyError("database is locked")

    monkeypatch.setattr(DiskEviction, "_choose", choose_once)
    await eviction.run_once()
    assert left(rig) == list(range(2, 10))
    monkeypatch.setattr(DiskEviction, "_choose", really_choose)
    await eviction.run_once()
    assert left(rig) == [5, 6, 7, 8, 9]


async def test_what_a_clock_that_was_ahead_has_written_goes_first(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    tomorrow = now_us() + 86_400_000_000
    sql = "UPDATE cache_artifacts SET last_accessed_at = ? WHERE key IN (?, ?)"
    await rig.database.write(lambda connection: connection.execute(sql, (tomorrow, key(7), key(4))))
    await eviction_of(rig).run_once()
    # And then the oldest, as ever.
    assert left(rig) == [3, 5, 6, 8, 9]


async def test_what_uploads_have_reserved_is_not_free(rig: ArtifactRig) -> None:
    await fill(rig, 7)
    with rig.capacity.reserve(3 * SIZE):
        await eviction_of(rig).run_once()
        assert left(rig) == [5, 6]


async def test_the_mark_is_one_of_the_volume_too(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the file system has given back must not be counted twice from one to the next.
    monkeypatch.setattr(disk_eviction, "CHUNK", 1)
    rig = await open_rig(limit_bytes=10**9)
    eviction = eviction_of(rig)
    await fill(rig, 8)
    on_a_volume(rig, 20 * SIZE, others=10 * SIZE)
    await eviction.run_once()
    assert left(rig) == list(range(8))
    on_a_volume(rig, 20 * SIZE, others=11 * SIZE)
    await eviction.run_once()
    # 50 % of the volume is 10 artifacts, of which others take 11.
    assert left(rig) == []


async def test_it_looks_at_start_and_at_every_tick(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    async with working(eviction_of(rig, interval_ms=1)):
        await rig.telemetry.wait_for(events.DISK_EVICTED, 5)
        for number in range(10, 15):
            await rig.store(bytes(SIZE), key=key(number))
        await rig.telemetry.wait_for(events.DISK_EVICTED, 10)
    assert left(rig) == list(range(10, 15))


async def test_what_is_still_read_is_not_deleted_for_again_in_the_same_pass(open_rig: OpenRig) -> None:
    """The file system does not give back what somebody has open."""
    rig = await open_rig(limit_bytes=10**9)
    await fill(rig, 10)
    rig.volume = Volume(10 * SIZE, 0)
    eviction = eviction_of(rig)
    await eviction.run_once()
    assert left(rig) == [5, 6, 7, 8, 9]
    # The next pass believes what it sees.
    await eviction.run_once()
    assert left(rig) == []


# --- who goes -------------------------------------------------------------------------------------


async def test_a_read_counts_before_it_is_committed(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    for number in (0, 2):
        assert await rig.content(key(number)) is not None
    await eviction_of(rig).run_once()
    assert left(rig) == [0, 2, 7, 8, 9]


async def test_what_is_used_after_it_was_chosen_stays(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(rig, 9)
    really_choose = DiskEviction._choose

    async def choose_then_read(self: DiskEviction, *arguments: Any) -> Any:
        rows = await really_choose(self, *arguments)
        monkeypatch.setattr(DiskEviction, "_choose", really_choose)
        await rig.content(key(1))
        await rig.store(bytes(SIZE), key=key(3), replace=True)
        await rig.artifacts.flush()
        return rows

    monkeypatch.setattr(DiskEviction, "_choose", choose_then_read)
    await eviction_of(rig, high_percent=80.0).run_once()
    assert left(rig) == [1, 3, 6, 7, 8]


async def test_what_is_always_in_use_goes_when_nothing_else_is_left(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(rig, 10)
    really_choose = DiskEviction._choose

    async def choose_then_read_all(self: DiskEviction, *arguments: Any) -> Any:
        rows = await really_choose(self, *arguments)
        for number in left(rig):
            await rig.content(key(number))
        await rig.artifacts.flush()
        return rows

    monkeypatch.setattr(DiskEviction, "_choose", choose_then_read_all)
    await eviction_of(rig).run_once()
    assert left(rig) == [5, 6, 7, 8, 9]


async def test_it_stops_in_the_middle_of_a_slice_and_takes_none_in_vain(rig: ArtifactRig) -> None:
    for number, size in enumerate((10, 300, 10, 200, 10, 400)):
        await rig.store(bytes(size), key=key(number))
    await eviction_of(rig).run_once()
    assert left(rig) == [4, 5]


async def test_more_than_one_slice(rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_eviction, "SLICE_ROWS", 2)
    monkeypatch.setattr(disk_eviction, "CHUNK", 3)
    await fill(rig, 10)
    await eviction_of(rig, target_percent=15.0).run_once()
    assert left(rig) == [9]


async def end_uploads(rig: ArtifactRig, numbers: list[int]) -> None:
    """Their artifacts are in the object store."""
    for transfer in await rig.transfers.pending("upload", 100):
        if int(transfer.key.rsplit("/", 1)[1]) in numbers:
            await rig.transfers.delete([transfer.id])
    await rig.transfers.flush()


@pytest.mark.parametrize("state", ["waiting", "in work", "parked", "uncommitted"])
async def test_what_is_not_in_the_object_store_yet_goes_last(open_rig: OpenRig, state: str) -> None:
    rig = await open_rig(uploads=True, ack="buffered" if state == "uncommitted" else "committed")
    eviction = eviction_of(rig)
    await fill(rig, 10)
    if state != "uncommitted":
        await end_uploads(rig, [3, 4, 5, 6, 7, 8])
    if state in ("in work", "parked"):
        for transfer in await rig.transfers.claim(100):
            if state == "parked":
                await rig.transfers.failed(transfer, "no", delay_us=0, park=True)
    if state == "uncommitted":
        await eviction.run_once()
        assert left(rig) == [5, 6, 7, 8, 9]
        return
    with capture_logs() as logs:
        await eviction.run_once()
    assert left(rig) == [0, 1, 2, 8, 9]
    assert logs[0]["uploads_pending"] == 0
    # Nothing else is left but 8: then they go, too.
    with rig.capacity.reserve(5 * SIZE), capture_logs() as logs:
        await eviction_of(rig, target_percent=70.0).run_once()
    assert left(rig) == [2, 9]
    assert (logs[0]["artifacts"], logs[0]["uploads_pending"]) == (3, 2)


async def test_behind_many_that_are_not_in_the_object_store_yet(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_eviction, "LOOK_ROWS", 2)
    monkeypatch.setattr(disk_eviction, "MOST_SPARED_SLICES", 1)
    rig = await open_rig(uploads=True)
    await fill(rig, 10)
    await end_uploads(rig, [7, 8])
    await eviction_of(rig, target_percent=80.0).run_once()
    assert left(rig) == [0, 1, 2, 3, 4, 5, 6, 9]


async def test_within_a_pass_it_is_not_looked_for_again_and_again(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the object store down, every row would be looked at in each sweep."""
    monkeypatch.setattr(disk_eviction, "SELDOM", 1_000_000)
    rig = await open_rig(uploads=True)
    await fill(rig, 10)
    looks: list[str] = []
    sweeps = 0
    really_choose, really_sweep = DiskEviction._choose, DiskEviction._sweep

    async def choose(self: DiskEviction, one: Any, query: str, after: Any) -> Any:
        looks.append(query)
        return await really_choose(self, one, query, after)

    async def sweep(self: DiskEviction, one: Any) -> bool:
        nonlocal sweeps
        sweeps += 1
        return await really_sweep(self, one)

    monkeypatch.setattr(DiskEviction, "_choose", choose)
    monkeypatch.setattr(DiskEviction, "_sweep", sweep)
    eviction = eviction_of(rig, patience_ms=200)
    with rig.capacity.reserve(0):
        async with working(eviction):
            await eviction.make_room(11 * SIZE)
    assert sweeps > 3
    # One for what has a time to come, one that found rows, but none to take, and one that found the end.
    assert looks.count(SPARING_UPLOADS) == 3


@pytest.mark.parametrize("query", [SPARING_UPLOADS, ALL])
async def test_one_look_takes_no_longer_when_there_are_more_rows(open_rig: OpenRig, query: str) -> None:
    rig = await open_rig()
    steps: list[int] = []
    for _ in range(2):
        await rig.database.write(many_with_uploads)
        steps.append(await rig.database.read(lambda connection: steps_of(connection, query)))
    assert steps[0] > 100
    assert steps[1] < 1.2 * steps[0]


def many_with_uploads(connection: apsw.Connection) -> None:
    with transaction(connection):
        connection.execute(MANY_ARTIFACTS)
        connection.execute("DELETE FROM s3_transfers")
        connection.execute(MANY_UPLOADS)


def steps_of(connection: apsw.Connection, query: str) -> int:
    """Instructions of SQLite's machine for one slice, in tens."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    connection.set_progress_handler(step, 10)
    values = {"used_at": -1, "id": -1, "rows": 50, "look": 200}
    assert connection.execute(query, values).fetchall()
    connection.set_progress_handler(None)
    return steps


MANY_ARTIFACTS = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
INSERT INTO cache_artifacts (key, size_bytes, last_accessed_at, inserted_at, updated_at)
SELECT hex(randomblob(32)), 1, i, i, i FROM n
"""

MANY_UPLOADS = """
INSERT INTO s3_transfers (id, type, account_handle, project_handle, artifact_type, key, inserted_at)
SELECT id, 'upload', 'acc', 'proj', 'xcode', key, 1 FROM cache_artifacts
"""


async def test_a_row_without_a_file_goes_and_counts_for_nothing(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    for number in (0, 1):
        rig.path(key(number)).unlink()
    with capture_logs() as logs:
        await eviction_of(rig).run_once()
    assert left(rig) == [5, 6, 7, 8, 9] == await rows_left(rig)
    assert logs[0]["bytes_freed"] == 3 * SIZE
    assert [one.measurements["bytes"] for one in rig.telemetry.of(events.DISK_EVICTED)] == [SIZE] * 3


async def test_it_tells_what_it_did(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    with capture_logs() as logs:
        await eviction_of(rig).run_once()
    (line,) = logs
    assert line.pop("duration_ms") >= 0
    assert line == {
        "event": "disk_evicted",
        "log_level": "info",
        "reason": "watermark",
        "artifacts": 5,
        "uploads_pending": 0,
        "bytes_freed": 5 * SIZE,
        "used": 5 * SIZE,
        "limit": 10 * SIZE,
    }
    told = rig.telemetry.of(events.DISK_EVICTED)
    assert len(told) == 5
    assert all(0 < one.measurements["age_seconds"] < 20 for one in told)
    ages = [one.measurements["age_seconds"] for one in told]
    assert ages == sorted(ages, reverse=True)


# --- room for uploads -----------------------------------------------------------------------------


async def test_an_upload_without_room_wakes_it(rig: ArtifactRig) -> None:
    await fill(rig, 9)
    async with working(eviction_of(rig, high_percent=100.0)):
        with capture_logs() as logs:
            assert await rig.store(bytes(4 * SIZE), key=key(9), declared=4 * SIZE) is Stored.CREATED
            # As much as it takes, and one of unknown length piece by piece.
            assert left(rig) == [3, 4, 5, 6, 7, 8, 9]
            assert await rig.store(*[bytes(SIZE)] * 5, key=key(10)) is Stored.CREATED
    assert left(rig) == [8, 9, 10]
    assert next(line["reason"] for line in logs if line["event"] == "disk_evicted") == "reservation"


async def test_an_upload_wakes_it_and_it_goes_on_to_the_target(rig: ArtifactRig) -> None:
    eviction = eviction_of(rig, high_percent=85.0)
    async with working(eviction):
        await fill(rig, 10)
        await rig.store(bytes(SIZE), key=key(10), declared=SIZE)
        await rig.telemetry.wait_for(events.DISK_EVICTED, 5)
    assert left(rig) == list(range(5, 11))


async def test_an_upload_is_answered_before_the_target_is_reached(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_eviction, "CHUNK", 1)
    eviction = eviction_of(rig, target_percent=10.0)
    async with working(eviction):
        await fill(rig, 10)
        assert await rig.artifacts.intake.make_room(2 * SIZE)
        assert rig.telemetry.count(events.DISK_EVICTED) < 9
        await rig.telemetry.wait_for(events.DISK_EVICTED, 9)


async def test_a_hundred_uploads_into_room_for_ten(rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    really_take = type(rig.capacity).take

    def take(self: Any, size: int, held: int = 0) -> None:
        nonlocal most
        really_take(self, size, held)
        most = max(most, self.used + self.reserved)

    monkeypatch.setattr(type(rig.capacity), "take", take)
    async with working(eviction_of(rig, high_percent=100.0, patience_ms=20_000)):
        stores = (
            rig.store(bytes(SIZE), key=key(number), declared=SIZE if number % 2 else None)
            for number in range(100)
        )
        assert await asyncio.gather(*stores) == [Stored.CREATED] * 100
    assert most <= 10 * SIZE
    assert len(left(rig)) <= 10
    assert rig.capacity.reserved == 0
    assert await rows_left(rig) == left(rig)
    assert rig.telemetry.count(events.DISK_EVICTED) == 100 - len(left(rig))


class Standing:
    """An upload that has sent `size` bytes and stands."""

    def __init__(self, rig: ArtifactRig, size: int, declared: int | None = None) -> None:
        self._go_on = asyncio.Event()
        self._sent = asyncio.Event()
        self._size = size
        self.task = asyncio.create_task(
            rig.artifacts.store(key(999), self._body(), declared_size=declared, replace=False)
        )

    async def _body(self) -> AsyncIterator[bytes]:
        yield bytes(self._size)
        self._sent.set()
        await self._go_on.wait()

    async def begun(self) -> "Standing":
        await self._sent.wait()
        return self

    async def finish(self) -> Stored:
        self._go_on.set()
        return await self.task


async def test_nothing_to_evict_is_no_room_now(rig: ArtifactRig) -> None:
    async with working(eviction_of(rig)):
        standing = await Standing(rig, 10 * SIZE).begun()
        async with asyncio.timeout(10):
            with pytest.raises(CapacityError):
                await rig.store(bytes(SIZE), declared=SIZE)
            assert not await rig.artifacts.intake.make_room(1)
        assert await standing.finish() is Stored.CREATED
        # And now it can go.
        assert await rig.store(bytes(SIZE), declared=SIZE) is Stored.CREATED


async def test_an_upload_waits_for_one_that_ends_soon(rig: ArtifactRig) -> None:
    async with working(eviction_of(rig, patience_ms=20_000)):
        standing = await Standing(rig, 10 * SIZE).begun()
        waiting = asyncio.create_task(rig.store(bytes(SIZE), declared=SIZE))
        await asyncio.sleep(0)
        await standing.finish()
        assert await waiting is Stored.CREATED


async def test_patience_begins_anew_with_all_that_goes(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One minute for each sweep: what the third one sees is there in time if the first one counts."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    sweeps = 0
    really_sweep = DiskEviction._sweep

    async def sweep(self: DiskEviction, *arguments: Any) -> bool:
        nonlocal sweeps
        sweeps += 1
        if sweeps == 3:
            await standing.finish()
        changed = await really_sweep(self, *arguments)
        clock.now += 60
        return changed

    on_a_volume(rig, 10**9)
    await fill(rig, 5)
    standing = await Standing(rig, 5 * SIZE).begun()
    eviction = eviction_of(rig, high_percent=100.0, patience_ms=100_000)
    async with working(eviction):
        await asyncio.sleep(0)
        monkeypatch.setattr(disk_eviction, "time", clock)
        monkeypatch.setattr(DiskEviction, "_sweep", sweep)
        assert await rig.artifacts.intake.make_room(10 * SIZE)
    assert left(rig) == []


async def test_uploads_that_hold_all_the_room_between_them_do_not_all_fail(rig: ArtifactRig) -> None:
    """Each has half of what it needs and waits for the rest."""
    all_have_half = asyncio.Barrier(10)

    async def halves() -> AsyncIterator[bytes]:
        yield bytes(SIZE)
        await all_have_half.wait()
        yield bytes(SIZE)

    async with working(eviction_of(rig)), asyncio.timeout(20):
        stores = (
            rig.artifacts.store(key(number), halves(), declared_size=None, replace=False)
            for number in range(10)
        )
        results = await asyncio.gather(*stores, return_exceptions=True)
    assert 5 <= results.count(Stored.CREATED) < 10
    assert all(result is Stored.CREATED or isinstance(result, CapacityError) for result in results)
    assert rig.capacity.reserved == 0


async def test_the_small_do_not_overtake_the_large(rig: ArtifactRig) -> None:
    await fill(rig, 10)
    order: list[int] = []

    async def reserve(size: int) -> None:
        assert await rig.artifacts.intake.make_room(size)
        rig.capacity.reserve(size)
        order.append(size)

    async with working(eviction_of(rig, high_percent=100.0)):
        await asyncio.gather(*(reserve(size) for size in (7 * SIZE, 1, 2, 3)))
    assert order == [7 * SIZE, 1, 2, 3]


async def test_whoever_fits_is_not_refused_for_one_who_does_not(rig: ArtifactRig) -> None:
    async with working(eviction_of(rig)):
        standing = await Standing(rig, 9 * SIZE).begun()
        answers = await asyncio.gather(*map(rig.artifacts.intake.make_room, (5 * SIZE, 50, 40)))
        assert answers == [False, True, True]
        await standing.finish()


async def test_room_waits_for_readers_to_close_rather_than_for_more_to_go(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    looked_again = asyncio.Event()
    may_hope = DiskEviction._may_hope

    def counted(worker: DiskEviction, one: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            looked_again.set()
        return may_hope(worker, one)

    monkeypatch.setattr(DiskEviction, "_may_hope", counted)
    rig = await open_rig(limit_bytes=10**9)
    await fill(rig, 10)
    rig.volume = Volume(10 * SIZE, 0)
    async with working(eviction_of(rig, high_percent=100.0, patience_ms=20_000)):
        waiting = asking(rig, 3 * SIZE)
        await rig.telemetry.wait_for(events.DISK_EVICTED, 3)
        looks = 0
        looked_again.clear()
        async with asyncio.timeout(20):
            await looked_again.wait()
        assert not waiting.done()
        rig.volume = Volume(10 * SIZE, 3 * SIZE)
        assert await waiting
        assert left(rig) == list(range(3, 10))


async def test_readers_that_do_not_close_are_not_waited_for_for_ever(open_rig: OpenRig) -> None:
    rig = await open_rig(limit_bytes=10**9)
    await fill(rig, 10)
    rig.volume = Volume(10 * SIZE, 0)
    async with working(eviction_of(rig, high_percent=100.0)), asyncio.timeout(20):
        waiting = asking(rig, 3 * SIZE)
        await rig.telemetry.wait_for(events.DISK_EVICTED, 6)
        rig.volume = Volume(10 * SIZE, 3 * SIZE)
        assert await waiting


async def test_a_cancelled_upload_leaves_nothing_behind(rig: ArtifactRig) -> None:
    eviction = eviction_of(rig, patience_ms=20_000)
    async with working(eviction):
        standing = await Standing(rig, 10 * SIZE).begun()
        waiting = asyncio.create_task(rig.store(bytes(SIZE), declared=SIZE))
        while not eviction._line:  # noqa: ASYNC110  # the line has no event for it
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert eviction._line.wanted == 0
        assert rig.capacity.reserved == 10 * SIZE
        await standing.finish()
        assert await rig.store(bytes(SIZE), declared=SIZE) is Stored.CREATED
    assert rig.capacity.reserved == 0


async def test_one_cancelled_between_the_promise_and_its_turn(rig: ArtifactRig) -> None:
    """The room goes to the next in the line."""
    await fill(rig, 10)
    eviction = eviction_of(rig, high_percent=100.0)
    async with working(eviction), asyncio.timeout(20):
        first = asking(rig, 10 * SIZE)
        second = asking(rig, 10 * SIZE)
        really_serve = eviction._line.serve

        def serve_then_cancel(room: int, **options: Any) -> int:
            served = really_serve(room, **options)
            if served:
                first.cancel()
            return served

        eviction._line.serve = serve_then_cancel  # type: ignore[method-assign]
        assert await second
        assert first.cancelled()


async def test_without_the_worker_there_is_no_room_and_nobody_waits(rig: ArtifactRig) -> None:
    eviction = eviction_of(rig, patience_ms=20_000)
    assert not await rig.artifacts.intake.make_room(1)
    async with working(eviction):
        await Standing(rig, 10 * SIZE).begun()
        waiting = [asking(rig, SIZE) for _ in range(3)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == [False] * 3
    assert not await rig.artifacts.intake.make_room(1)


async def test_a_crash_of_the_worker_answers_all(rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(self: DiskEviction, *_: Any) -> Any:
        raise RuntimeError("a fault")

    await fill(rig, 10)
    eviction = eviction_of(rig, high_percent=100.0)
    worker = asyncio.create_task(eviction.run())
    await asyncio.sleep(0)
    monkeypatch.setattr(DiskEviction, "_choose", crash)
    assert not await rig.artifacts.intake.make_room(SIZE)
    with pytest.raises(RuntimeError, match="a fault"):
        await worker
    assert not await rig.artifacts.intake.make_room(SIZE)


async def test_it_ends_when_the_node_closes_its_parts(open_rig: OpenRig) -> None:
    rig = await open_rig()
    await fill(rig, 10)
    await rig.buffer.close()
    async with asyncio.timeout(10):
        await eviction_of(rig).run()


# --- what fails -----------------------------------------------------------------------------------


async def test_a_database_that_takes_no_commit(open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one on a full disk: if it had to commit before something goes, nothing ever would."""
    monkeypatch.setattr(disk_eviction, "FLUSH_S", 0.01)
    rig = await open_rig()
    await fill(rig, 10)
    with lock_of_another_connection(rig.database.path):
        async with working(eviction_of(rig)), asyncio.timeout(20):
            assert await rig.artifacts.intake.make_room(SIZE)
            assert left(rig) == [5, 6, 7, 8, 9]
            # What went is chosen again, for its row is still there, and is not counted again.
            assert await rig.artifacts.intake.make_room(8 * SIZE)
            assert left(rig) == [8, 9]
            assert not await rig.artifacts.intake.make_room(11 * SIZE)
            assert rig.telemetry.count(events.DISK_EVICTED) == 10
    assert await rows_left(rig) == []


async def test_a_database_that_cannot_be_read(rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_eviction, "RETRY_S", 0.01)
    await fill(rig, 10)
    eviction = eviction_of(rig, high_percent=100.0)
    really_read = rig.database.read

    async def read(function: Any) -> Any:
        raise apsw.BusyError("database is locked")

    async with working(eviction), asyncio.timeout(20):
        monkeypatch.setattr(rig.database, "read", read)
        with capture_logs() as logs:
            for _ in range(3):
                assert not await rig.artifacts.intake.make_room(SIZE)
            monkeypatch.setattr(rig.database, "read", really_read)
            while not await rig.artifacts.intake.make_room(SIZE):
                pass
            assert await rig.artifacts.intake.make_room(2 * SIZE)
    assert eviction.failures >= 3
    names = [line["event"] for line in logs]
    assert names.count("disk_eviction_failed") == names.count("disk_eviction_recovered") == 1


async def test_after_a_failure_there_is_a_pause_however_many_ask(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_eviction, "RETRY_S", AGES_MS)
    await fill(rig, 10)
    passes = 0
    failed = asyncio.Event()

    async def fail(self: DiskEviction, *_: Any) -> Any:
        nonlocal passes
        passes += 1
        failed.set()
        raise apsw.BusyError("database is locked")

    monkeypatch.setattr(DiskEviction, "_choose", fail)
    async with working(eviction_of(rig)):
        await failed.wait()
        waiting = [asking(rig, SIZE) for _ in range(20)]
        for _ in range(100):
            await asyncio.sleep(0)
    assert passes == 1
    # And that it ended they hear as well.
    assert await asyncio.gather(*waiting) == [False] * 20


def cannot_delete(rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    really_delete = rig.disk.delete_file

    def delete(key: str, inode: int) -> int | None:
        if int(key.rsplit("/", 1)[1]) in numbers:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really_delete(key, inode)

    monkeypatch.setattr(rig.disk, "delete_file", delete)


async def test_one_file_that_cannot_be_deleted_stops_nobody(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(rig, 10)
    cannot_delete(rig, monkeypatch, 0, 2)
    eviction = eviction_of(rig)
    with capture_logs() as logs:
        await eviction.run_once()
    assert left(rig) == [0, 2, 7, 8, 9] == await rows_left(rig)
    assert eviction.failures == 2
    assert [line["key"] for line in logs if line["event"] == "artifact_not_evicted"] == [key(0), key(2)]


async def test_a_disk_that_deletes_nothing_is_not_asked_for_every_artifact(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await open_rig(limit_bytes=100 * SIZE, settings=QUIET)
    await fill(rig, 100)
    cannot_delete(rig, monkeypatch, *range(100))
    eviction = eviction_of(rig)
    await eviction.run_once()
    assert disk_eviction.MOST_FAILURES <= eviction.failures <= disk_eviction.MOST_FAILURES + 1
    assert len(left(rig)) == 100


async def test_too_many_files_are_evicted_until_the_target(rig: ArtifactRig) -> None:
    await fill(rig, 40, size=1)
    eviction = eviction_of(rig)

    def ask() -> Volume:
        return Volume(10**12, 10**12, 50, 50 - 6 - len(artifact_files(rig.folder)))

    rig.capacity._volume = ask
    await eviction.run_once()
    # 46 of 50 were above the mark; from below half of them on nothing goes but for the rest of a chunk.
    assert len(left(rig)) in range(25 - 6 - disk_eviction.CHUNK + 1, 25 - 6 + 1)
    assert left(rig)[-1] == 39
    before = left(rig)
    await eviction.run_once()
    assert left(rig) == before


async def test_rows_that_found_the_disk_full_come_before_artifacts(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_eviction, "ROOM_FOR_ROWS", 3 * SIZE)
    await fill(rig, 10)
    on_a_volume(rig, 10 * SIZE)
    rig.capacity._limit_bytes = None
    eviction = eviction_of(rig, high_percent=100.0, target_percent=100.0)
    rig.database.on_full = eviction.make_room_for_rows
    await eviction.run_once()
    assert left(rig) == list(range(10))
    async with no_more_pages(rig.database):
        with pytest.raises(apsw.FullError):
            await rig.database.write(lambda c: c.execute("CREATE TABLE more AS SELECT 1").fetchall())
    await asyncio.wait_for(eviction._next(), 5)
    await eviction.run_once()
    assert left(rig) == [3, 4, 5, 6, 7, 8, 9]
    await eviction.run_once()
    assert left(rig) == [3, 4, 5, 6, 7, 8, 9]
