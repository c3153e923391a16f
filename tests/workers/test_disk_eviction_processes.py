"""Eviction by several processes on one data directory: they choose the same artifacts, the longest unused."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifact_rig import ArtifactRig
from tests.support.locks import lock_of_another_connection
from undercroft.storage.books import SharedBooks
from undercroft.storage.ledger import Entry, Ledger
from undercroft.telemetry import events
from undercroft.workers import disk_eviction
from undercroft.workers.disk_eviction import DiskEviction
from undercroft.workers.eviction_candidates import SPARING_UPLOADS, Candidate

from .test_disk_eviction import AGES_MS, SIZE, asking, eviction_of, fill, key, left, working

Rigs = tuple[ArtifactRig, ArtifactRig]


@pytest.fixture
async def rigs(tmp_path: Path) -> AsyncIterator[Rigs]:
    """Two processes, and room for ten artifacts."""
    ledger = Ledger.create(2)
    one, other = (ArtifactRig(tmp_path, limit_bytes=10 * SIZE) for _ in range(2))
    for worker, rig in enumerate((one, other)):
        books = SharedBooks(ledger, worker, rig.buffer.newest_generation)
        rig.capacity.books, rig.buffer.on_committed = books, books.on_committed
        await rig.open()
    yield one, other
    for rig in (one, other):
        await rig.close()
    assert [ledger.total(entry) for entry in (Entry.RESERVED, Entry.WRITTEN, Entry.FREED)] == [0, 0, 0]


def evicts_first(sibling: ArtifactRig, monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Of what is chosen the sibling evicts so many, in the last moment; by which queries it is chosen."""
    really_choose, queries, gone = DiskEviction._choose, list[str](), list[str]()

    async def choose(self: DiskEviction, one: Any, query: str, after: Candidate) -> Sequence[Candidate]:
        queries.append(query)
        rows = await really_choose(self, one, query, after)
        for row in rows:
            if len(gone) < count:
                assert await sibling.artifacts.evict(row.key) == SIZE
                await sibling.artifacts.flush()
                gone.append(row.key)
        return rows

    monkeypatch.setattr(DiskEviction, "_choose", choose)
    return queries


async def test_what_two_evict_at_once_is_counted_by_whoever_removed_it(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, sibling = rigs
    await fill(mine, 10)
    evicts_first(sibling, monkeypatch, 2)
    await eviction_of(mine).run_once()
    assert mine.capacity.books.present == 5 * SIZE
    await mine.artifacts.flush()
    assert left(mine) == [5, 6, 7, 8, 9]
    assert len(mine.telemetry.of(events.DISK_EVICTED)) == 3


async def test_an_artifact_of_no_bytes_is_counted(rigs: Rigs) -> None:
    mine, _ = rigs
    await mine.store(b"", key=key(0))
    for number in range(1, 11):
        await mine.store(bytes(SIZE), key=key(number))
    await eviction_of(mine).run_once()
    assert len(mine.telemetry.of(events.DISK_EVICTED)) == 6


async def test_slices_that_a_sibling_has_evicted_are_no_reason_to_take_what_is_not_uploaded(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, sibling = rigs
    await fill(mine, 10)
    monkeypatch.setattr(disk_eviction, "SLICE_ROWS", 1)
    queries = evicts_first(sibling, monkeypatch, 4)
    await eviction_of(mine).run_once()
    assert set(queries) == {SPARING_UPLOADS}
    assert len(mine.telemetry.of(events.DISK_EVICTED)) == 1


@asynccontextmanager
async def in_vain(rig: ArtifactRig, commit_timeout_ms: int) -> "AsyncIterator[asyncio.Task[bool]]":
    """An upload for which artifacts are evicted, while nothing can be committed."""
    await fill(rig, 10)
    marks = {"high_percent": 100.0, "target_percent": 99.0, "patience_ms": 0}
    eviction = eviction_of(rig, **marks, commit_timeout_ms=commit_timeout_ms)
    with lock_of_another_connection(rig.database.path):
        async with working(eviction):
            yield asking(rig, 2 * SIZE)


async def test_an_upload_waits_for_the_commit_of_what_was_evicted_for_it(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it would wait for its own commit, which is longer than for what others may release."""
    mine, looks = rigs[0], asyncio.Event()
    really_sweep, count = DiskEviction._sweep, itertools.count()

    async def sweep(self: DiskEviction, one: Any) -> bool:
        if next(count) == 5:
            looks.set()
        return await really_sweep(self, one)

    monkeypatch.setattr(DiskEviction, "_sweep", sweep)
    monkeypatch.setattr(disk_eviction, "FLUSH_S", 0.001)
    async with in_vain(mine, AGES_MS) as upload:
        await looks.wait()
        assert mine.capacity.room_to_come(0) == 2 * SIZE
        assert not upload.done()


async def test_an_upload_is_refused_when_that_commit_takes_too_long(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_eviction, "FLUSH_S", 0.001)
    async with in_vain(rigs[0], 1) as upload:
        assert await upload is False


async def test_uploads_to_two_that_hold_each_other_up_do_not_both_fail(
    rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of the room and waits for the rest. A run in three fails if both give up at once."""
    monkeypatch.setattr(disk_eviction, "POLL_S", 0.1)
    both_have_half = asyncio.Barrier(2)

    async def halves() -> AsyncIterator[bytes]:
        yield bytes(5 * SIZE)
        await both_have_half.wait()
        yield bytes(5 * SIZE)

    async with AsyncExitStack() as stack, asyncio.timeout(20):
        for rig in rigs:
            await stack.enter_async_context(working(eviction_of(rig, patience_ms=1_000)))
        results = await asyncio.gather(
            *(
                rig.artifacts.store(key(n), halves(), declared_size=None, replace=False)
                for n, rig in enumerate(rigs)
            ),
            return_exceptions=True,
        )
    assert sorted(type(result).__name__ for result in results) == ["CapacityError", "Stored"]
