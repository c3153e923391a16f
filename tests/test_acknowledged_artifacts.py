"""Whoever is told that an artifact is there may rely on it, whatever happens to the next write."""

import asyncio
from pathlib import Path

import apsw
import pytest

from tests.support.artifact_rig import KEY, ArtifactRig
from undercroft.buffers import BufferSettings
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.errors import BufferFullError, CommitTimeoutError
from undercroft.storage.upload import Stored


async def test_already_there_waits_for_the_commit_of_whoever_stored_it(tmp_path: Path) -> None:
    rig = await ArtifactRig(tmp_path).open()
    rig.table.shut_gate()
    first = asyncio.create_task(rig.store(b"bytes"))
    await asyncio.to_thread(rig.table.wait_until_arrived)
    second = asyncio.create_task(rig.store(b"bytes"))
    third = asyncio.create_task(rig.artifacts.settled(KEY))
    done, _ = await asyncio.wait([first, second, third], timeout=0.01)
    assert not done
    rig.table.open_gate()
    assert (await first, await second) == (Stored.CREATED, Stored.EXISTS)
    await third
    await rig.close()


async def test_already_there_is_not_acknowledged_when_the_commit_is_late(tmp_path: Path) -> None:
    settings = BufferSettings(commit_timeout_ms=20, flush_interval_ms=3_600_000)
    rig = await ArtifactRig(tmp_path, settings=settings).open()
    rig.table.fail_always(apsw.SQLITE_FULL)
    for _ in range(2):
        with pytest.raises(CommitTimeoutError):
            await rig.store(b"bytes")
    with pytest.raises(CommitTimeoutError):
        await rig.artifacts.settled(KEY)
    await rig.close()


async def test_settled_waits_for_nothing_when_nothing_is_pending(tmp_path: Path) -> None:
    rig = await ArtifactRig(tmp_path).open()
    await rig.store(b"bytes")
    rig.table.shut_gate()
    await rig.artifacts.settled(KEY)
    await rig.close()


async def test_a_replacement_that_finds_no_room_leaves_the_old_artifact(tmp_path: Path) -> None:
    settings = BufferSettings(enqueue_timeout_ms=10, max_pending_rows=2, flush_interval_ms=3_600_000)
    rig = await ArtifactRig(tmp_path, settings=settings).open()
    await rig.store(b"old", replace=True)
    used = rig.capacity.used
    rig.table.fail_always(apsw.SQLITE_FULL)
    for n in range(2):
        rig.buffer.enqueue_nowait(ArtifactAccess(f"a/b/c/dd/ee/{n}", 1, 1, stored=True))
    with pytest.raises(BufferFullError):
        await rig.store(b"newer", replace=True)
    assert await rig.content() == b"old"
    assert (rig.capacity.used, rig.capacity.reserved) == (used, 0)
    await rig.close()
