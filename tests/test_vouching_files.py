"""Files that their rows do not know: they are what they say of themselves, unless they are to go."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.artifact_rig import KEY, ArtifactRig
from tests.support.disk_faults import by_threads, fault
from tests.support.folders import artifact_files, files_under
from tests.support.leaks import open_files
from undercroft import artifacts
from undercroft.clock import now_us
from undercroft.storage.label import ATTRIBUTE, Label, label_of, packed, unpacked
from undercroft.storage.upload import Stored

OpenRig = Callable[..., Awaitable[ArtifactRig]]

DAY_US = 86_400_000_000


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens the service; each call is another process on the same folder."""
    rigs: list[ArtifactRig] = []

    async def open_one(**options: Any) -> ArtifactRig:
        rig = ArtifactRig(tmp_path, **options)
        rigs.append(rig)
        return await rig.open()

    yield open_one
    for rig in rigs:
        await rig.close()
    assert open_files(tmp_path) == []


def execute(rig: ArtifactRig, sql: str, *values: object) -> None:
    connection = apsw.Connection(str(rig.database.path))
    try:
        connection.set_busy_timeout(10_000)
        connection.execute(sql, values)
    finally:
        connection.close()


def forget_row(rig: ArtifactRig) -> None:
    """As if the process had been killed before the commit."""
    execute(rig, "DELETE FROM cache_artifacts")


def make_row_old(rig: ArtifactRig, *, size: int = 3, stored_at: int = 7) -> None:
    """As if the row were that of the artifact that the file has replaced."""
    sql = "UPDATE cache_artifacts SET size_bytes = ?, content_sha256 = ?, stored_at = ?, last_accessed_at = 7"
    execute(rig, sql, size, "0" * 64, stored_at)


def label(rig: ArtifactRig) -> Label:
    said = unpacked(os.getxattr(rig.path(), ATTRIBUTE))
    assert said is not None
    return said


def relabel(rig: ArtifactRig, **changes: Any) -> None:
    os.setxattr(rig.path(), ATTRIBUTE, packed(label(rig)._replace(**changes)))


def in_quarantine(rig: ArtifactRig) -> int:
    return len(files_under(rig.folder / "quarantine"))


@pytest.fixture
async def after_a_kill(open_rig: OpenRig) -> ArtifactRig:
    """The next process, after one that stored something and of which nothing is known but what is on disk."""
    first = await open_rig()
    await first.store(b"12345", replace=True)
    await first.close()
    return await open_rig()


# --- what a kill between name and row leaves -----------------------------------------------------------


async def test_a_file_without_a_row_is_served_and_gets_one(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    forget_row(rig)
    rig.artifacts.open()
    assert await rig.content() == b"12345"
    await rig.artifacts.flush()
    said = label(rig)
    assert rig.rows() == {KEY: (5, said.content_sha256)}
    row = rig.artifacts.find(KEY)
    assert row is not None
    assert row.stored_at == said.stored_at
    assert rig.accounts == (5, 0)
    # It is not looked at again.
    with fault("getxattr", errno.EIO) as looking:
        assert await rig.content() == b"12345"
    assert looking.calls == 0


@pytest.mark.parametrize("size", [3, 5])
async def test_a_file_that_has_replaced_another_is_served_and_its_row_mended(
    after_a_kill: ArtifactRig, size: int
) -> None:
    rig = after_a_kill
    make_row_old(rig, size=size)
    rig.artifacts.open()
    assert rig.artifacts.is_here(KEY)
    assert await rig.content() == b"12345"
    await rig.artifacts.flush()
    assert rig.rows() == {KEY: (5, label(rig).content_sha256)}
    assert rig.accounts == (5, 0)
    assert in_quarantine(rig) == 0


async def test_what_is_found_is_queued_for_upload(open_rig: OpenRig) -> None:
    first = await open_rig()
    await first.store(b"12345")
    await first.close()
    rig = await open_rig(uploads=True)
    forget_row(rig)
    await rig.content()
    assert rig.transfers.ticket_of_upload(KEY) is not None


async def test_whoever_stores_it_again_hears_that_it_is_there(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    forget_row(rig)
    rig.artifacts.open()
    assert await rig.store(b"other") is Stored.EXISTS
    assert rig.rows() == {KEY: (5, label(rig).content_sha256)}  # committed by then
    assert await rig.content() == b"12345"
    assert rig.accounts == (5, 0)


# --- what no label helps -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"1234\x34", b"1234", b""])
@pytest.mark.parametrize("row", ["none", "old"])
async def test_bytes_that_contradict_their_label_are_damaged(
    after_a_kill: ArtifactRig, damage: bytes, row: str
) -> None:
    rig = after_a_kill
    (forget_row if row == "none" else make_row_old)(rig)
    rig.artifacts.open()
    rig.path().write_bytes(damage)
    assert await rig.content() is None
    assert in_quarantine(rig) == 1
    assert artifact_files(rig.folder) == []
    assert rig.artifacts.find(KEY) is None
    assert rig.accounts == (0, 0)


async def test_a_damaged_label_does_not_cost_what_the_row_proves(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    os.setxattr(rig.path(), ATTRIBUTE, packed(label(rig))[:-1] + b"?")
    assert await rig.content() == b"12345"
    assert in_quarantine(rig) == 0


async def test_a_damaged_label_without_a_row_is_damage(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    forget_row(rig)
    os.setxattr(rig.path(), ATTRIBUTE, packed(label(rig))[:-1] + b"?")
    assert await rig.content() is None
    assert in_quarantine(rig) == 1


async def test_without_a_label_only_the_row_counts(after_a_kill: ArtifactRig) -> None:
    """Files of earlier versions."""
    rig = after_a_kill
    os.removexattr(rig.path(), ATTRIBUTE)
    assert await rig.content() == b"12345"
    forget_row(rig)
    rig.artifacts.open()
    again = ArtifactRig(rig.folder)
    await again.open()
    try:
        assert await again.content() is None
        assert in_quarantine(again) == 0
        assert await again.store(b"known") is Stored.CREATED
    finally:
        await again.close()


async def test_where_files_say_nothing_a_replacement_is_seen_before_its_row(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault("setxattr", errno.ENOTSUP):
        rig = await open_rig()
        await rig.store(b"old", replace=True)
        really_over = rig.disk.publish_over
        seen: list[bytes | None] = []
        loop = asyncio.get_running_loop()

        def publish_over(*arguments: Any) -> None:
            really_over(*arguments)
            seen.append(asyncio.run_coroutine_threadsafe(rig.content(), loop).result(20))

        by_threads(monkeypatch)
        monkeypatch.setattr(rig.disk, "publish_over", publish_over)
        await rig.store(b"new one", replace=True)
    assert seen == [b"new one"]
    assert label_of_file(rig) is None


def label_of_file(rig: ArtifactRig) -> Label | None:
    descriptor = os.open(rig.path(), os.O_RDONLY)
    try:
        return label_of(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("row", ["none", "old"])
async def test_a_large_file_of_this_boot_is_served_unread(
    after_a_kill: ArtifactRig, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    rig = after_a_kill
    monkeypatch.setattr(artifacts, "VERIFY_MAX_BYTES", 4)
    (forget_row if row == "none" else make_row_old)(rig)
    with fault("pread", errno.EIO) as reading:
        found = await rig.artifacts.read(KEY)
    assert reading.calls == 0
    assert found is not None
    found.close()


@pytest.mark.parametrize("row", ["none", "old"])
async def test_a_large_file_of_an_earlier_boot_is_neither_served_nor_touched(
    after_a_kill: ArtifactRig, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """To prove it takes too long for who waits; reconcile does, and who wants to be sure."""
    rig = after_a_kill
    monkeypatch.setattr(artifacts, "VERIFY_MAX_BYTES", 4)
    (forget_row if row == "none" else make_row_old)(rig)
    relabel(rig, boot=b"earlier.")
    assert await rig.artifacts.read(KEY) is None
    assert artifact_files(rig.folder) == [KEY]
    assert in_quarantine(rig) == 0
    proven = await rig.artifacts.read(KEY, surely=True)
    assert proven is not None
    proven.close()


# --- what is to go -------------------------------------------------------------------------------------


async def test_what_a_request_to_clean_passed_by_is_not_served(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    forget_row(rig)
    rig.artifacts.open()
    cutoff = label(rig).stored_at
    rig.artifacts.was_cleaned = lambda _key, stored_at: stored_at <= cutoff
    assert await rig.content() is None
    assert not rig.artifacts.is_here(KEY)
    assert rig.artifacts.find(KEY) is None
    # Whoever stores it is not told that it is there.
    assert await rig.store(b"again") is Stored.CREATED
    assert await rig.content() == b"again"
    assert rig.accounts == (5, 0)


async def test_a_deleted_file_does_not_come_back_with_a_slow_reader(
    after_a_kill: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = after_a_kill
    forget_row(rig)
    rig.artifacts.open()
    really_run = rig.artifacts.threads.run

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        result = await really_run(function, *arguments)
        if "sha256_of" in repr(function):
            monkeypatch.undo()
            await rig.artifacts.delete(KEY)
        return result

    by_threads(monkeypatch)
    monkeypatch.setattr(rig.artifacts.threads, "run", run)
    assert await rig.content() == b"12345"  # it was there when it was opened
    assert rig.artifacts.find(KEY) is None
    assert rig.accounts == (0, 0)


# --- other processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [False, True])
async def test_what_another_process_has_not_committed_is_served(open_rig: OpenRig, replace: bool) -> None:
    here, there = await open_rig(), await open_rig()
    if replace:
        await there.store(b"old", replace=True)
        assert await here.content() == b"old"
    there.table.shut_gate()
    storing = asyncio.create_task(there.store(b"12345", replace=replace))
    await asyncio.to_thread(there.table.wait_until_arrived)
    assert await here.content() == b"12345"
    there.table.open_gate()
    await storing
    await here.artifacts.flush()
    assert here.rows() == {KEY: (5, label(here).content_sha256)}
    assert await here.content() == await there.content() == b"12345"
    assert in_quarantine(here) == 0


async def test_what_is_found_never_takes_the_place_of_what_was_stored_since(open_rig: OpenRig) -> None:
    here, there = await open_rig(), await open_rig()
    await there.store(b"first", replace=True)
    forget_row(there)
    assert await here.content() == b"first"  # its row is on its way
    await there.store(b"the second", replace=True)
    await here.artifacts.flush()
    assert here.rows() == {KEY: (10, label(here).content_sha256)}


async def test_an_access_does_not_touch_what_was_stored_since(open_rig: OpenRig) -> None:
    here, there = await open_rig(), await open_rig()
    await there.store(b"first", replace=True)
    assert await here.content() == b"first"
    await here.artifacts.flush()
    assert await here.content() == b"first"  # the access is on its way
    await there.store(b"the second", replace=True)
    await here.artifacts.flush()
    assert here.rows() == {KEY: (10, label(here).content_sha256)}


async def test_there_is_one_winner_among_processes(open_rig: OpenRig) -> None:
    here, there = await open_rig(), await open_rig()
    there.table.shut_gate()
    storing = asyncio.create_task(there.store(b"first"))
    await asyncio.to_thread(there.table.wait_until_arrived)
    assert await asyncio.wait_for(here.store(b"other"), 20) is Stored.EXISTS
    there.table.open_gate()
    assert await storing is Stored.CREATED
    assert await here.content() == await there.content() == b"first"


async def test_eviction_spares_what_another_process_has_just_stored(open_rig: OpenRig) -> None:
    here, there = await open_rig(), await open_rig()
    await there.store(b"old", replace=True)
    row = here.artifacts.find(KEY)
    assert row is not None
    there.table.shut_gate()
    storing = asyncio.create_task(there.store(b"12345", replace=True))
    await asyncio.to_thread(there.table.wait_until_arrived)
    assert await here.artifacts.evict(KEY, unless_used_after=row.accessed_at) is None
    there.table.open_gate()
    await storing
    assert await there.content() == b"12345"
    await here.artifacts.flush()
    # It does go when its turn comes.
    assert await here.artifacts.evict(KEY, unless_used_after=now_us() + DAY_US) == 5
    assert artifact_files(here.folder) == []


async def test_the_row_of_what_went_takes_no_newer_one_along(open_rig: OpenRig) -> None:
    here, there = await open_rig(), await open_rig()
    await there.store(b"old", replace=True)
    assert await here.artifacts.evict(KEY) == 3  # the row goes with the next flush
    await there.store(b"12345", replace=True)
    await here.artifacts.flush()
    assert here.rows() == {KEY: (5, label(here).content_sha256)}


async def test_a_newer_file_is_newer_than_its_row(after_a_kill: ArtifactRig) -> None:
    rig = after_a_kill
    stored_at = label(rig).stored_at
    make_row_old(rig)
    assert rig.artifacts.is_newer(KEY, stored_at - 1)
    assert not rig.artifacts.is_newer(KEY, stored_at)
    forget_row(rig)
    assert rig.artifacts.is_newer(KEY, stored_at - 1)
    rig.path().unlink()
    assert not rig.artifacts.is_newer(KEY, 0)
