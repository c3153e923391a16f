"""Two services on one data directory, as in two processes: what one deletes is not what the other stores."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifact_rig import KEY, ArtifactRig, body
from tests.support.disk_faults import by_threads
from tests.support.fake_cleaning import FakeCleaning
from tests.support.memory_store import MemoryStore
from tests.support.reconcile_rig import ReconcileRig
from undercroft.clock import now_us
from undercroft.s3.moves import Moves
from undercroft.settings_sections import ObjectStoreSection
from undercroft.storage.upload import Arrival, Stored
from undercroft.workers.clean_stages import NodeStages
from undercroft.workers.eviction_candidates import EVER


@pytest.fixture
async def rigs(tmp_path: Path) -> AsyncIterator[tuple[ArtifactRig, ArtifactRig]]:
    one, other = ArtifactRig(tmp_path, uploads=True), ArtifactRig(tmp_path, uploads=True)
    await one.open()
    await other.open()
    yield one, other
    await one.close()
    await other.close()


def in_between(
    rig: ArtifactRig,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    act: Callable[[], Awaitable[object]],
    *,
    before: bool,
) -> None:
    """Acts once, just before or after a step in a thread of the disk."""
    really, once = rig.artifacts.threads.run, [act]

    async def run(function: Callable[..., Any], *args: Any) -> Any:
        here = getattr(function, "__name__", "") == step
        if here and before and once:
            await once.pop()()
        result = await really(function, *args)
        if here and once:
            await once.pop()()
        return result

    by_threads(monkeypatch)
    monkeypatch.setattr(rig.artifacts.threads, "run", run)


async def is_kept(other: ArtifactRig) -> bool:
    """Whether what the other process has stored is there, whole."""
    await other.artifacts.flush()
    return other.path().exists() and await other.content() == b"new"


async def test_eviction_of_a_row_without_a_file(
    rigs: tuple[ArtifactRig, ArtifactRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = rigs
    await one.store(b"old")
    one.path().unlink()
    in_between(one, monkeypatch, "look", lambda: other.store(b"new"), before=False)
    await one.artifacts.evict(KEY, unless_used_after=EVER)
    await one.artifacts.flush()
    assert await is_kept(other)


async def test_clean_looks_at_the_file_that_it_deletes(
    rigs: tuple[ArtifactRig, ArtifactRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = rigs
    await one.store(b"old")
    cutoff = now_us()
    await asyncio.sleep(0.001)  # the next write has a later time
    stages = NodeStages(one.database, one.database, one.artifacts, one.disk, None)
    in_between(one, monkeypatch, "look", lambda: other.store(b"new", replace=True), before=True)
    await stages._evict_if_old(KEY, cutoff)
    await one.artifacts.flush()
    assert await is_kept(other)


async def test_reconcile_removes_the_file_that_it_has_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ReconcileRig(tmp_path)
    await one.open()
    other = await ArtifactRig(tmp_path).open()
    one.place(KEY, b"stray")
    await one.power_loss()
    os.utime(one.path(), (10**9, 10**9))
    arrival = Arrival(KEY, other.artifacts.new_upload(), False, None)
    taken = []

    async def publish() -> None:
        # Its row is not committed yet, so that nobody else knows of it.
        taken.append(await other.artifacts.take_in(arrival, body(b"new"), 3))

    in_between(one, monkeypatch, "is_still_there", publish, before=False)
    await one.round(grace_ms=0)
    assert await other.artifacts.acknowledged(taken[0]) is Stored.CREATED
    assert await is_kept(other)
    await one.close()
    await other.close()


async def test_a_delete_whose_transfer_came_to_its_turn_before_the_file_was_gone(
    rigs: tuple[ArtifactRig, ArtifactRig],
) -> None:
    one, other = rigs
    store = MemoryStore()
    moves = Moves(
        other.transfers,
        other.artifacts,
        other.disk,
        store,
        settings=ObjectStoreSection(),
        cleaning=FakeCleaning(),
    )

    async def work() -> list[str]:
        results: list[str] = []
        for transfer in await other.transfers.claim(10):
            results.append((await moves.make(transfer)).result)
            await other.transfers.done(transfer)
        await other.transfers.flush()
        return results

    await one.store(b"old")
    assert await work() == ["moved"]
    async with one.artifacts.alone(KEY):
        deleting = asyncio.create_task(one.artifacts.delete(KEY))
        await asyncio.sleep(0)
        await one.transfers.flush()
        assert await work() == ["skipped"]
    await deleting
    assert await work() == ["moved"]
    assert store.objects == {}
