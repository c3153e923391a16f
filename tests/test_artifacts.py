"""Artifacts: what is stored is served, what is not whole is not, and the accounts are right on every path."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.artifact_rig import KEY, ArtifactRig, whole
from tests.support.disk_faults import ERRORS, by_threads, fault
from tests.support.folders import artifact_files, files_under, temporary_files
from tests.support.leaks import open_files
from undercroft import artifacts
from undercroft.buffers import BufferSettings
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.errors import (
    BufferFullError,
    CapacityError,
    CommitTimeoutError,
    DigestMismatchError,
    TooLargeError,
)
from undercroft.storage.upload import Stored
from undercroft.telemetry import events

OpenRig = Callable[..., Awaitable[ArtifactRig]]

BIG = 700_000  # more than a spool


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens the service; may be called again for the next life of the same folder."""
    rigs: list[ArtifactRig] = []

    async def open_one(**options: Any) -> ArtifactRig:
        rig = ArtifactRig(tmp_path, **options)
        rigs.append(rig)
        return await rig.open()

    yield open_one
    for rig in rigs:
        await rig.close()
    assert open_files(tmp_path) == []


@pytest.fixture
async def rig(open_rig: OpenRig) -> ArtifactRig:
    return await open_rig()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Gate:
    """Holds up a blocking function in its thread until it is opened."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, after: bool = False
    ) -> None:
        self._really = getattr(owner, name)
        self._after = after
        self._arrived = threading.Event()
        self._open = threading.Event()
        by_threads(monkeypatch)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args: Any) -> Any:
        result = self._really(*args) if self._after else None
        self._arrived.set()
        assert self._open.wait(20)
        return result if self._after else self._really(*args)

    async def arrived(self) -> None:
        assert await asyncio.to_thread(self._arrived.wait, 20)

    def open(self) -> None:
        self._open.set()


# --- storing and reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("size", [0, 1, BIG])
async def test_stored_bytes_are_served(rig: ArtifactRig, size: int, replace: bool) -> None:
    data = os.urandom(size)
    assert await rig.store(data, replace=replace, declared=size) is Stored.CREATED
    found = await rig.artifacts.read(KEY)
    assert found is not None
    assert (found.size, found.content_sha256) == (size, sha256(data))
    assert whole(found) == data
    assert rig.rows() == {KEY: (size, sha256(data))}
    assert rig.accounts == (size, 0)
    assert temporary_files(rig.folder) == []


async def test_miss(rig: ArtifactRig) -> None:
    assert await rig.artifacts.read(KEY) is None
    assert rig.artifacts.find(KEY) is None
    assert rig.telemetry.count(events.FLUSH) == 0
    assert rig.buffer.queue_stats().rows == 0


async def test_what_is_there_and_whole_stays(rig: ArtifactRig) -> None:
    await rig.store(b"first")
    assert await rig.store(b"other") is Stored.EXISTS
    assert await rig.content() == b"first"
    assert rig.accounts == (5, 0)
    assert temporary_files(rig.folder) == []


async def test_replacing(rig: ArtifactRig) -> None:
    await rig.store(b"first", replace=True)
    assert await rig.content() == b"first"
    assert await rig.store(b"second!", replace=True) is Stored.REPLACED
    assert await rig.content() == b"second!"
    assert rig.artifacts._replacing == {}
    assert rig.rows() == {KEY: (7, sha256(b"second!"))}
    assert rig.accounts == (7, 0)


async def test_many_keys_at_once(rig: ArtifactRig) -> None:
    keys = [f"acc/proj/xcode/ab/cd/abcd{number}" for number in range(50)]
    stored = await asyncio.gather(*(rig.store(key.encode(), key=key) for key in keys))
    assert set(stored) == {Stored.CREATED}
    assert [await rig.content(key) for key in keys] == [key.encode() for key in keys]
    assert rig.accounts == (sum(map(len, keys)), 0)
    # Those who waited together shared transactions.
    assert rig.telemetry.count(events.FLUSH) < len(keys)


async def test_concurrent_stores_of_one_key_have_one_winner(rig: ArtifactRig) -> None:
    stored = await asyncio.gather(*(rig.store(b"%d" % number * 1_000) for number in range(9)))
    assert sorted(one.value for one in stored) == ["created", *["exists"] * 8]
    winner = stored.index(Stored.CREATED)
    assert await rig.content() == b"%d" % winner * 1_000
    assert rig.accounts == (1_000, 0)
    assert temporary_files(rig.folder) == []


async def test_concurrent_replacements_leave_one_whole(rig: ArtifactRig) -> None:
    bodies = [b"%d" % number * (number + 1) for number in range(9)]
    stored = await asyncio.gather(*(rig.store(data, replace=True) for data in bodies))
    assert stored.count(Stored.CREATED) == 1
    assert stored.count(Stored.REPLACED) == 8
    content = await rig.content()
    assert content in bodies
    assert rig.accounts == (len(content or b""), 0)
    assert rig.rows()[KEY] == (len(content or b""), sha256(content or b""))


# --- readers during a replacement --------------------------------------------------------------------


async def test_reader_never_sees_file_and_row_contradict(rig: ArtifactRig) -> None:
    bodies = [bytes([number]) * (1_000 + number) for number in range(30)]
    await rig.store(bodies[0], replace=True)

    async def write() -> None:
        for data in bodies[1:]:
            await rig.store(data, replace=True)

    writing = asyncio.create_task(write())
    reads = 0
    while not writing.done():
        assert await rig.content() in bodies
        reads += 1
        await asyncio.sleep(0)
    await writing
    assert reads > 10
    assert await rig.content() == bodies[-1]
    assert files_under(rig.folder / "quarantine") == []


async def test_new_file_is_served_before_its_row_is_known(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"old", replace=True)
    gate = Gate(monkeypatch, rig.disk, "publish_over", after=True)
    replacing = asyncio.create_task(rig.store(b"new one", replace=True))
    await gate.arrived()
    assert await rig.content() == b"new one"
    gate.open()
    assert await replacing is Stored.REPLACED
    assert await rig.content() == b"new one"
    assert files_under(rig.folder / "quarantine") == []


async def test_file_that_comes_back_is_served_before_its_row_is_known(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"old")
    rig.path().unlink()  # a row without a file
    gate = Gate(monkeypatch, rig.disk, "publish_new", after=True)
    storing = asyncio.create_task(rig.store(b"new one"))
    await gate.arrived()
    assert await rig.content() == b"new one"
    gate.open()
    await storing
    assert await rig.content() == b"new one"
    assert files_under(rig.folder / "quarantine") == []


async def test_slow_reader_of_a_replaced_file_does_not_touch_the_new_row(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await open_rig()
    await first.store(b"old", replace=True)
    await first.close()
    rig = await open_rig()  # nothing is verified yet
    gate = Gate(monkeypatch, artifacts, "sha256_of")
    reading = asyncio.create_task(rig.content())
    await gate.arrived()
    await rig.store(b"new one", replace=True)  # replaced and committed meanwhile
    gate.open()
    assert await reading == b"old"
    await rig.artifacts.flush()
    assert rig.rows()[KEY] == (7, sha256(b"new one"))
    assert await rig.content() == b"new one"


async def test_slow_reader_of_a_deleted_file_does_not_bring_its_row_back(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await open_rig()
    await first.store(b"old")
    await first.close()
    rig = await open_rig()
    gate = Gate(monkeypatch, artifacts, "sha256_of")
    reading = asyncio.create_task(rig.content())
    await gate.arrived()
    await rig.artifacts.delete(KEY)
    await rig.artifacts.flush()
    gate.open()
    assert await reading == b"old"
    await rig.artifacts.flush()
    assert rig.rows() == {}


async def test_damage_found_too_late_does_not_hurt_the_replacement(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await open_rig()
    await first.store(b"old")
    await first.close()
    rig = await open_rig()
    rig.path().write_bytes(b"OLD")
    gate = Gate(monkeypatch, artifacts, "sha256_of", after=True)
    reading = asyncio.create_task(rig.content())
    await gate.arrived()
    await rig.store(b"healed", replace=True)
    gate.open()
    assert await reading is None
    assert await rig.content() == b"healed"
    assert rig.accounts == (6, 0)


# --- orphans and damage ------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [False, True])
async def test_file_without_a_row_is_not_served_and_healed_by_a_put(rig: ArtifactRig, replace: bool) -> None:
    rig.path().parent.mkdir(parents=True)
    rig.path().write_bytes(b"who knows")
    assert await rig.content() is None
    assert await rig.store(b"known", replace=replace) is Stored.CREATED
    assert await rig.content() == b"known"
    assert rig.accounts == (5, 0)


@pytest.mark.parametrize("replace", [False, True])
async def test_row_without_a_file_is_a_miss_and_healed_by_a_put(rig: ArtifactRig, replace: bool) -> None:
    await rig.store(b"12345")
    rig.path().unlink()
    assert await rig.content() is None
    assert await rig.store(b"123", replace=replace) is Stored.REPLACED
    assert await rig.content() == b"123"
    assert rig.accounts == (3, 0)


@pytest.mark.parametrize(
    "damage", [b"1234", b"123456", b"1234\x34", b""], ids=["cut", "grown", "bit", "empty"]
)
async def test_damaged_file_is_a_miss_and_goes_into_quarantine(rig: ArtifactRig, damage: bytes) -> None:
    await rig.store(b"12345")
    rig.path().write_bytes(damage)
    os.utime(rig.path(), ns=(1, 1))  # surely another time than that of the store
    assert await rig.content() is None
    (kept,) = (rig.folder / "quarantine").iterdir()
    assert kept.read_bytes() == damage
    assert artifact_files(rig.folder) == []
    assert rig.artifacts.find(KEY) is None
    await rig.artifacts.flush()
    assert rig.rows() == {}
    assert rig.accounts == (0, 0)
    # A miss heals it.
    assert await rig.store(b"12345") is Stored.CREATED
    assert await rig.content() == b"12345"


async def test_damage_of_a_verified_file_is_noticed(rig: ArtifactRig) -> None:
    await rig.store(b"12345")
    assert await rig.content() == b"12345"
    rig.path().write_bytes(b"54321")
    os.utime(rig.path(), ns=(1, 1))
    assert await rig.content() is None


async def test_many_readers_of_a_damaged_file_account_for_it_once(rig: ArtifactRig) -> None:
    await rig.store(b"12345")
    rig.path().write_bytes(b"1234")
    assert await asyncio.gather(*(rig.content() for _ in range(10))) == [None] * 10
    assert rig.accounts == (0, 0)
    assert len(files_under(rig.folder / "quarantine")) == 1


async def test_put_heals_a_damaged_file_nobody_has_read(rig: ArtifactRig) -> None:
    await rig.store(b"12345")
    rig.path().write_bytes(b"1234")
    assert await rig.store(b"12345") is Stored.REPLACED
    assert await rig.content() == b"12345"
    assert rig.accounts == (5, 0)


async def test_digest_of_a_verified_file_is_computed_once(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    assert await rig.content() == b"12345"
    with fault("pread", errno.EIO) as reading:
        found = await rig.artifacts.read(KEY)
    assert reading.calls == 0
    assert found is not None
    os.close(found.descriptor)


@pytest.mark.parametrize("replace", [False, True])
async def test_what_was_just_stored_is_not_hashed_again(rig: ArtifactRig, replace: bool) -> None:
    await rig.store(b"old", replace=True)
    await rig.artifacts.evict(KEY)
    await rig.store(b"12345", replace=replace)
    with fault("pread", errno.EIO) as reading:
        found = await rig.artifacts.read(KEY, surely=True)
    assert reading.calls == 0
    assert found is not None
    found.close()


async def test_read_error_of_the_disk_is_raised_and_closes_the_file(open_rig: OpenRig) -> None:
    first = await open_rig()
    await first.store(b"12345")
    await first.close()
    rig = await open_rig()
    with fault("pread", errno.EIO), pytest.raises(OSError, match="Input/output"):
        await rig.artifacts.read(KEY)
    assert open_files(rig.folder / "artifacts") == []
    assert await rig.content() == b"12345"


# --- access, deletion --------------------------------------------------------------------------------


async def test_find_sees_what_is_pending_and_what_is_committed(open_rig: OpenRig) -> None:
    rig = await open_rig(ack="buffered")
    await rig.store(b"12345")
    pending = rig.artifacts.find(KEY)
    assert rig.rows() == {}
    await rig.artifacts.flush()
    committed = rig.artifacts.find(KEY)
    for row in (pending, committed):
        assert row is not None
        assert (row.size_bytes, row.content_sha256) == (5, sha256(b"12345"))


async def test_delete(rig: ArtifactRig) -> None:
    await rig.store(b"12345")
    await rig.store(b"123", key="a/p/k/other")
    assert await rig.artifacts.evict(KEY) == 5
    assert await rig.artifacts.evict("a/p/k/absent") == 0
    assert await rig.content() is None
    assert rig.artifacts.find(KEY) is None
    assert rig.accounts == (3, 0)
    assert artifact_files(rig.folder) == ["a/p/k/other"]
    await rig.artifacts.flush()
    assert list(rig.rows()) == ["a/p/k/other"]


async def test_delete_of_a_file_without_a_row_frees_it(rig: ArtifactRig) -> None:
    rig.path().parent.mkdir(parents=True)
    rig.path().write_bytes(b"who knows")
    assert await rig.artifacts.evict(KEY) == 9
    assert rig.accounts == (0, 0)


async def test_stored_again_after_delete(rig: ArtifactRig) -> None:
    await rig.store(b"12345")
    await rig.artifacts.delete(KEY)
    assert await rig.store(b"123") is Stored.CREATED
    assert await rig.content() == b"123"
    assert rig.rows()[KEY][0] == 3


# --- acknowledgement ---------------------------------------------------------------------------------


async def test_committed_means_another_process_sees_the_row(rig: ArtifactRig) -> None:
    rig.table.shut_gate()
    storing = asyncio.create_task(rig.store(b"12345"))
    await asyncio.to_thread(rig.table.wait_until_arrived)
    assert not storing.done()
    assert await rig.content() == b"12345"  # read your own writes
    rig.table.open_gate()
    await storing
    assert list(rig.rows()) == [KEY]


async def test_buffered_does_not_wait(open_rig: OpenRig) -> None:
    rig = await open_rig(ack="buffered")
    await rig.store(b"12345")
    assert rig.rows() == {}
    assert await rig.content() == b"12345"
    assert rig.accounts == (5, 0)


async def test_late_commit_is_told_and_the_artifact_is_there(open_rig: OpenRig) -> None:
    settings = BufferSettings(flush_interval_ms=3_600_000, commit_timeout_ms=5)
    rig = await open_rig(settings=settings)
    rig.table.shut_gate()
    with pytest.raises(CommitTimeoutError):
        await rig.store(b"12345")
    assert await rig.content() == b"12345"
    assert rig.accounts == (5, 0)
    assert temporary_files(rig.folder) == []


# --- failures ----------------------------------------------------------------------------------------


async def broken_body() -> AsyncIterator[bytes]:
    yield b"x" * BIG
    raise ConnectionResetError


async def assert_nothing_stored(rig: ArtifactRig) -> None:
    assert await rig.content() is None
    assert rig.artifacts.find(KEY) is None
    assert artifact_files(rig.folder) == []
    assert temporary_files(rig.folder) == []
    assert rig.accounts == (0, 0)
    assert open_files(rig.folder / "temporary") == [str(next((rig.folder / "temporary").iterdir()))]


async def test_body_that_breaks_off(rig: ArtifactRig) -> None:
    with pytest.raises(ConnectionResetError):
        await rig.artifacts.store(KEY, broken_body(), declared_size=None, replace=True)
    await assert_nothing_stored(rig)


@pytest.mark.parametrize("size", [5, BIG])
async def test_wrong_digest(rig: ArtifactRig, size: int) -> None:
    with pytest.raises(DigestMismatchError):
        await rig.store(b"x" * size, sha256="0" * 64)
    await assert_nothing_stored(rig)


@pytest.mark.parametrize("declared", [None, 101])
async def test_too_large_ever(open_rig: OpenRig, declared: int | None) -> None:
    rig = await open_rig(limit_bytes=100)
    with pytest.raises(TooLargeError):
        await rig.store(*[b"x"] * 101, declared=declared)
    await assert_nothing_stored(rig)


@pytest.mark.parametrize("declared", [None, 60])
async def test_full_now(open_rig: OpenRig, declared: int | None) -> None:
    rig = await open_rig(limit_bytes=100)
    await rig.store(b"x" * 50, key="a/p/k/other")
    with pytest.raises(CapacityError):
        await rig.store(*[b"x"] * 60, declared=declared)
    assert rig.accounts == (50, 0)
    assert artifact_files(rig.folder) == ["a/p/k/other"]
    # Room comes back.
    await rig.artifacts.delete("a/p/k/other")
    await rig.store(b"x" * 60, declared=declared)
    assert rig.accounts == (60, 0)


async def test_volume_filled_by_others(rig: ArtifactRig) -> None:
    rig.volume = rig.volume._replace(free=10)
    with pytest.raises(CapacityError):
        await rig.store(b"x" * 11)
    await assert_nothing_stored(rig)


async def test_declared_size_is_reserved_before_a_byte_arrives(rig: ArtifactRig) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        arrived.set()
        await go_on.wait()
        yield b"12345"

    storing = asyncio.create_task(rig.artifacts.store(KEY, slow(), declared_size=5, replace=False))
    await arrived.wait()
    assert rig.accounts == (0, 5)
    go_on.set()
    await storing
    assert rig.accounts == (5, 0)


STORE_FAULTS = [
    ("open", 0, False),
    ("write", 0, False),
    ("setxattr", 0, False),
    ("setxattr", 0, True),
    ("fsync", 0, False),
    ("fsync", 1, False),
    ("link", 0, False),
    ("mkdir", 0, False),
    ("replace", 0, True),
    ("mkdir", 0, True),
    ("fsync", 1, True),
]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("size", [5, BIG])
@pytest.mark.parametrize("broken", STORE_FAULTS, ids=str)
async def test_fault_of_the_disk(
    open_rig: OpenRig, broken: tuple[str, int, bool], size: int, number: int
) -> None:
    operation, after, replace = broken
    rig = await open_rig(fsync=True)
    expected = OSError if number == errno.EIO else CapacityError
    with fault(operation, number, after=after) as injected, pytest.raises(expected):
        await rig.store(b"x" * size, replace=replace, declared=size)
    assert injected.struck
    await assert_nothing_stored(rig)
    assert await rig.store(b"12345", replace=replace) is Stored.CREATED
    assert await rig.content() == b"12345"


@pytest.mark.parametrize("operation", ["open", "write", "setxattr", "fsync", "replace"])
async def test_fault_while_replacing_keeps_the_old(open_rig: OpenRig, operation: str) -> None:
    rig = await open_rig(fsync=True)
    await rig.store(b"old", replace=True)
    with fault(operation, errno.ENOSPC), pytest.raises(CapacityError):
        await rig.store(b"new one", replace=True)
    assert await rig.content() == b"old"
    assert rig.accounts == (3, 0)
    # What the failed one wanted to announce is forgotten: its inode may become another file's.
    assert rig.artifacts._replacing == {}


async def test_buffer_full_takes_the_file_away_again(open_rig: OpenRig) -> None:
    settings = BufferSettings(flush_interval_ms=3_600_000, max_pending_rows=1, enqueue_timeout_ms=0)
    rig = await open_rig(ack="buffered", settings=settings)
    rig.table.shut_gate()
    await rig.store(b"first", key="a/p/k/first")
    with pytest.raises(BufferFullError):
        await rig.store(b"12345")
    assert artifact_files(rig.folder) == ["a/p/k/first"]
    assert temporary_files(rig.folder) == []
    assert rig.accounts == (5, 0)
    rig.table.open_gate()
    await rig.artifacts.flush()
    assert await rig.store(b"12345") is Stored.CREATED


async def test_refused_row_is_an_error_though_the_file_is_whole(rig: ArtifactRig) -> None:
    rig.table.refused_keys.add(KEY)
    with pytest.raises(Exception, match="refuses the row"):
        await rig.store(b"12345")
    assert await rig.content() == b"12345"  # by its own word
    assert rig.rows() == {}


@pytest.mark.parametrize("moment", ["write_out", "_finish"])
async def test_cancelled_upload_waits_for_its_thread_and_leaves_nothing(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    if moment == "write_out":
        gate = Gate(monkeypatch, rig.disk, "temporary")
    else:
        gate = Gate(monkeypatch, rig.disk, "publish_new", after=True)
    storing = asyncio.create_task(rig.store(b"x" * BIG))
    await gate.arrived()
    storing.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Whoever closed the file now would pull it from under the thread's hands.
    assert not storing.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await storing
    monkeypatch.undo()
    await assert_nothing_stored(rig)
    assert await rig.store(b"12345") is Stored.CREATED


async def test_cancelled_replacement_stays_because_the_old_bytes_are_gone(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"old")
    gate = Gate(monkeypatch, rig.disk, "publish_over", after=True)
    storing = asyncio.create_task(rig.store(b"new one", replace=True))
    await gate.arrived()
    storing.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert await rig.content() == b"new one"
    assert rig.accounts == (7, 0)
    await rig.artifacts.flush()
    assert rig.rows() == {KEY: (7, sha256(b"new one"))}


async def test_a_cancelled_delete_leaves_no_row_without_a_file(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    gate = Gate(monkeypatch, rig.disk, "delete", after=True)
    deleting = asyncio.create_task(rig.artifacts.delete(KEY))
    await gate.arrived()
    deleting.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    await rig.artifacts.flush()
    await assert_nothing_stored(rig)


# --- life --------------------------------------------------------------------------------------------


async def test_totals_are_known_at_the_next_start(open_rig: OpenRig) -> None:
    first = await open_rig()
    await first.store(b"12345")
    await first.store(b"123", key="a/p/k/two")
    await first.store(b"1234567", key="a/p/k/two", replace=True)
    await first.store(b"1", key="a/p/k/three")
    await first.artifacts.delete("a/p/k/three")
    used = first.capacity.used
    await first.close()
    second = await open_rig()
    assert (used, second.capacity.used) == (12, 12)
    assert await second.content() == b"12345"


async def test_close_is_idempotent(rig: ArtifactRig) -> None:
    rig.artifacts.close()
    rig.artifacts.close()


async def test_access_moves_the_time_of_the_row_and_nothing_else(
    rig: ArtifactRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    stored = rig.artifacts.find(KEY)
    assert stored is not None
    monkeypatch.setattr("undercroft.artifact_rows.now_us", lambda: 7)
    await rig.content()
    await rig.artifacts.flush()
    row = rig.artifacts.find(KEY)
    assert row == ArtifactAccess(KEY, 5, 7, sha256(b"12345"), stored_at=stored.stored_at)


async def test_locked_database_delays_but_loses_nothing(rig: ArtifactRig) -> None:
    rig.table.fail(apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED)
    assert await rig.store(b"12345") is Stored.CREATED
    assert rig.telemetry.count(events.RETRY) == 2
    assert list(rig.rows()) == [KEY]
