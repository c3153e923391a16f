"""Who stores what is there already heals it: a damaged file never stays because it has the right size."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifact_rig import KEY, ArtifactRig
from tests.support.disk_faults import fault
from tests.support.folders import files_under, temporary_files
from tests.support.leaks import open_files
from undercroft import artifacts
from undercroft.storage.upload import Stored

DATA = b"12345"
DAMAGED = b"1234\x34"

OpenRig = Callable[..., Awaitable[ArtifactRig]]


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens the service with the artifact in it, of which nothing is known but its row."""
    rigs: list[ArtifactRig] = []

    async def open_one(**options: Any) -> ArtifactRig:
        for _ in range(2):
            rig = ArtifactRig(tmp_path, **options)
            rigs.append(await rig.open())
            if len(rigs) == 1:
                await rig.store(DATA)
                await rig.close()
        return rigs[-1]

    yield open_one
    for rig in rigs:
        await rig.close()
    assert open_files(tmp_path) == []


@pytest.fixture
async def rig(open_rig: OpenRig) -> ArtifactRig:
    return await open_rig()


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "VERIFY_MAX_BYTES", len(DATA) - 1)


def damage(rig: ArtifactRig) -> None:
    rig.path().write_bytes(DAMAGED)
    os.utime(rig.path(), ns=(1, 1))  # surely another time than before


def quarantined(rig: ArtifactRig) -> list[bytes]:
    return [path.read_bytes() for path in (rig.folder / "quarantine").iterdir()]


async def test_a_damaged_file_nobody_has_read_is_replaced(rig: ArtifactRig) -> None:
    damage(rig)
    assert await rig.store(DATA) is Stored.REPLACED
    assert await rig.content() == DATA
    assert quarantined(rig) == [DAMAGED]
    assert rig.accounts == (5, 0)
    assert temporary_files(rig.folder) == []


async def test_damage_after_a_read_is_found_as_well(rig: ArtifactRig) -> None:
    assert await rig.content() == DATA
    damage(rig)
    assert await rig.store(DATA) is Stored.REPLACED
    assert await rig.content() == DATA


async def test_another_body_replaces_a_damaged_file(rig: ArtifactRig) -> None:
    damage(rig)
    assert await rig.store(b"another") is Stored.REPLACED
    assert await rig.content() == b"another"
    assert rig.accounts == (7, 0)


async def test_a_file_that_cannot_be_read_is_replaced(rig: ArtifactRig) -> None:
    with fault("pread", errno.EIO):
        assert await rig.store(DATA) is Stored.REPLACED
    assert await rig.content() == DATA
    assert rig.accounts == (5, 0)


async def test_a_whole_file_stays_and_is_read_once(rig: ArtifactRig) -> None:
    inode = rig.path().stat().st_ino
    assert await rig.store(b"other") is Stored.EXISTS
    with fault("pread", errno.EIO) as reading:
        assert await rig.store(b"other") is Stored.EXISTS
    assert reading.calls == 0
    assert rig.path().stat().st_ino == inode
    assert await rig.content() == DATA


async def test_a_file_that_was_served_is_not_read_again(rig: ArtifactRig) -> None:
    assert await rig.content() == DATA
    with fault("pread", errno.EIO) as reading:
        assert await rig.store(DATA) is Stored.EXISTS
    assert reading.calls == 0


async def test_a_reader_who_finds_the_damage_late_does_not_hurt_what_healed(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(rig)
    healed = asyncio.Event()
    really = rig.artifacts.quarantine

    async def late(*arguments: Any) -> None:
        await healed.wait()
        await really(*arguments)

    monkeypatch.setattr(rig.artifacts, "quarantine", late)
    reading = asyncio.create_task(rig.content())
    assert await rig.store(DATA) is Stored.REPLACED
    healed.set()
    assert await reading in (None, DATA)  # it may have come first or last
    assert await rig.content() == DATA
    assert rig.accounts == (5, 0)


async def test_what_healed_is_uploaded_again_and_what_was_whole_is_not(open_rig: OpenRig) -> None:
    rig = await open_rig(uploads=True)
    await rig.artifacts.flush()
    assert await rig.store(DATA) is Stored.EXISTS
    assert rig.transfer_buffer.queue_stats().rows == 0
    damage(rig)
    rig.table.shut_gate()  # so that what is queued waits to be looked at
    healing = asyncio.create_task(rig.store(DATA))
    await asyncio.to_thread(rig.table.wait_until_arrived)
    assert rig.transfer_buffer.queue_stats().rows == 1
    rig.table.open_gate()
    assert await healing is Stored.REPLACED


# --- too large to be read while somebody waits --------------------------------------------------------


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("served_before", [False, True])
async def test_a_large_file_gives_way_to_the_same_bytes_unread(rig: ArtifactRig, served_before: bool) -> None:
    damage(rig)
    if served_before:
        assert await rig.content() == DAMAGED  # by its size alone
    with fault("pread", errno.EIO) as reading:
        assert await rig.store(DATA) is Stored.EXISTS
        inode = rig.path().stat().st_ino
        assert await rig.store(DATA) is Stored.EXISTS
    assert reading.calls == 0
    assert rig.path().stat().st_ino == inode  # the second time it was known to be right
    assert await rig.content() == DATA
    assert rig.accounts == (5, 0)
    assert temporary_files(rig.folder) == []
    assert files_under(rig.folder / "quarantine") == []


@pytest.mark.usefixtures("_all_are_large")
async def test_a_large_file_stays_when_another_body_comes(rig: ArtifactRig) -> None:
    inode = rig.path().stat().st_ino
    assert await rig.store(b"other") is Stored.EXISTS
    assert rig.path().stat().st_ino == inode


@pytest.mark.usefixtures("_all_are_large")
async def test_who_wants_to_be_sure_is_not_told_by_the_size_that_did_for_another(rig: ArtifactRig) -> None:
    damage(rig)
    assert await rig.content() == DAMAGED
    assert await rig.artifacts.read(KEY, surely=True) is None
    assert quarantined(rig) == [DAMAGED]
