"""Cleaning a project: what was written before the request goes, what comes after it stays."""

import asyncio
import errno
import io
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support import memory_store
from tests.support.folders import artifact_files
from tests.support.locks import lock_of_another_connection
from undercroft import clock
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.buffers.key_values import KeyValueAccess
from undercroft.clock import now_us
from undercroft.database import insisting
from undercroft.errors import ClosedError, DatabaseLockedError, ObjectStoreError
from undercroft.s3.object_store import ObjectStoreSettings, open_object_store
from undercroft.storage.layout import key_value_key
from undercroft.storage.upload import Stored
from undercroft.telemetry import events
from undercroft.workers import clean_jobs, clean_objects, clean_stages
from undercroft.workers.clean_jobs import CleanJob, CleanJobs
from undercroft.workers.clean_run import CleanRun, in_words

from .clean_rig import PROJECT, SECOND_US, CleanRig, drop, nothing, progress, until

OLD, NEW = "acc/proj/xcode/ol/d_/old", "acc/proj/xcode/ne/w_/new"
OTHERS = [
    "acc/pro/xcode/aa/bb/x",
    "acc/proj2/xcode/aa/bb/x",
    "acc/proj0/xcode/aa/bb/x",
    "ac/proj/xcode/aa/bb/x",
]


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CleanRig]:
    monkeypatch.setattr(memory_store, "PAGE_OBJECTS", 2)
    rig = await CleanRig(tmp_path).open()
    yield rig
    await rig.close()


def value_key(cas_id: str) -> str:
    return key_value_key(*PROJECT, cas_id)


async def clean(rig: CleanRig, **options: Any) -> tuple[int, int, int, int]:
    """Requests, and does all there is to do; what was removed."""
    cleaner = rig.cleaner(**options)
    await cleaner.request(*PROJECT)
    await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert (job.stage, job.last_error) == ("done", None)
    assert job.finished_at is not None
    return progress(job)


# --- key values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [("acc", "proj"), ("acc:x", "proj"), ("acc", "x:proj")])
async def test_key_values_of_the_project_go_and_no_others(rig: CleanRig, project: tuple[str, str]) -> None:
    handles = ["acc", "proj", "acc:x", "x:proj", "acc%3ax", "proj2", "pro", "x", "acc%3Ax".lower(), "proj:"]
    keys = {(a, p): key_value_key(a, p, "k:1") for a in handles for p in handles}
    await rig.put_values(*keys.values())
    cleaner = rig.cleaner()
    await cleaner.request(*project)
    await cleaner.work()
    assert rig.values() == sorted(set(keys.values()) - {keys[project]})
    assert progress(cleaner.newest_job(*project)) == (1, 0, 0, 0)


async def test_key_values_written_after_the_request_survive(rig: CleanRig) -> None:
    await rig.put_values(value_key("old"), value_key("twice"))
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.put_values(value_key("twice"), value_key("new"), value="w")
    await rig.key_values.put(value_key("pending"), "w")
    await cleaner.work()
    assert rig.values() == [value_key("new"), value_key("twice")]
    assert rig.key_values.get(value_key("twice")) == "w"
    await rig.key_values.flush()
    assert rig.values() == [value_key("new"), value_key("pending"), value_key("twice")]


async def test_key_values_of_every_generation_before_the_request_go(rig: CleanRig) -> None:
    rig.key_value_table.shut_gate()
    await rig.key_values.put(value_key("flying"), "v")
    flushing = asyncio.create_task(rig.key_values.flush())
    await asyncio.to_thread(rig.key_value_table.wait_until_arrived)
    await rig.key_values.put(value_key("gathered"), "v")
    cleaner = rig.cleaner()
    request = asyncio.create_task(cleaner.request(*PROJECT))
    await until(lambda: cleaner.is_being_cleaned(OLD))
    rig.key_value_table.open_gate()
    await asyncio.gather(flushing, request)
    await cleaner.work()
    assert rig.values() == []
    assert progress(cleaner.newest_job(*PROJECT)) == (2, 0, 0, 0)


async def test_a_pending_access_does_not_bring_a_key_value_back(rig: CleanRig) -> None:
    await rig.put_values(value_key("k"))
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    rig.key_value_buffer.enqueue_nowait(KeyValueAccess(value_key("k"), now_us()))
    await cleaner.work()
    await rig.key_values.flush()
    assert rig.values() == []


async def test_key_values_go_in_slices(rig: CleanRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_stages, "SLICE_ROWS", 3)
    monkeypatch.setattr(clean_stages, "MOST_SLICE_ROWS", 3)
    await rig.put_values(*(value_key(f"k{n:02}") for n in range(10)))
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    kept = [value_key(f"k{n:02}") for n in (2, 3, 4, 5)]
    await rig.put_values(*kept)
    await cleaner.work()
    assert rig.values() == kept
    assert [told.measurements["count"] for told in rig.telemetry.of(events.CLEANED)] == [2, 3, 1]
    assert progress(cleaner.newest_job(*PROJECT)) == (6, 0, 0, 0)


# --- artifacts ---------------------------------------------------------------------------------------


async def test_artifacts_of_the_project_go_and_no_others(rig: CleanRig) -> None:
    for key in [OLD, NEW, *OTHERS]:
        await rig.store(b"bytes", key=key)
    assert await clean(rig) == (0, 2, 2, 0)
    assert rig.artifact_keys() == sorted(OTHERS)
    assert artifact_files(rig.folder) == sorted(OTHERS)
    assert rig.accounts == (5 * len(OTHERS), 0)
    assert await rig.content(OLD) is None
    assert rig.telemetry.of(events.CLEANED)[0] == ({"count": 2}, {"what": "artifacts"})


async def test_artifacts_stored_after_the_request_survive(rig: CleanRig) -> None:
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.store(b"replaced", key=OLD, replace=True)
    await rig.store(b"new", key=NEW)
    rig.execute("UPDATE cache_artifacts SET inserted_at = 1")
    await cleaner.work()
    assert (await rig.content(OLD), await rig.content(NEW)) == (b"replaced", b"new")
    assert sorted(rig.queued()) == [("upload", NEW), ("upload", OLD)]
    assert progress(cleaner.newest_job(*PROJECT)) == (0, 0, 0, 0)


async def test_an_artifact_that_was_there_and_is_stored_after_the_request_survives(rig: CleanRig) -> None:
    """Without `replace`, too: "exists" would be said of something that is about to go."""
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    assert await rig.store(b"new", key=OLD) is Stored.REPLACED
    assert await rig.store(b"newer", key=OLD) is Stored.EXISTS
    await cleaner.work()
    assert await rig.content(OLD) == b"new"


async def test_artifacts_of_before_stored_at_go_by_inserted_at(rig: CleanRig) -> None:
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.store(b"new", key=NEW)
    rig.execute("UPDATE cache_artifacts SET stored_at = NULL")
    await cleaner.work()
    assert rig.artifact_keys() == [NEW]
    assert progress(cleaner.newest_job(*PROJECT))[1] == 1


@pytest.mark.parametrize("seconds", [1, 3_600, 40_000_000])
async def test_what_has_a_time_to_come_goes_and_what_is_written_later_stays(
    rig: CleanRig, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was ahead, and the process that wrote has ended."""
    monkeypatch.setattr(clock, "_clock", clock.Clock())
    ahead = now_us() + seconds * SECOND_US
    await rig.store(b"old", key=OLD)
    rig.execute("UPDATE cache_artifacts SET stored_at = ?, updated_at = ?", ahead, ahead)
    await rig.put_values(value_key("old"))
    sql = "UPDATE key_value_entries SET updated_at = ?, last_accessed_at = ?"
    await rig.key_value_database.write(lambda c: c.execute(sql, (ahead + 7, ahead + 7)))
    cleaner = rig.cleaner()
    job = await cleaner.request(*PROJECT)
    assert job.requested_at >= ahead + 7
    await rig.store(b"new", key=NEW)
    await rig.put_values(value_key("new"))
    await cleaner.work()
    assert (rig.artifact_keys(), rig.values()) == ([NEW], [value_key("new")])
    # Nothing waits any more for the clock to be ahead.
    assert clock._clock._least == 0


async def test_what_other_projects_have_from_a_time_to_come_moves_no_request(rig: CleanRig) -> None:
    await rig.store(b"old", key=OTHERS[0])
    ahead = now_us() + 3_600 * SECOND_US
    rig.execute("UPDATE cache_artifacts SET stored_at = ?, updated_at = ?", ahead, ahead)
    job = await rig.cleaner().request(*PROJECT)
    assert job.requested_at < ahead


async def test_a_clock_that_is_set_back_leaves_nothing(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_by = 0
    fake = clock.Clock(lambda: time.time_ns() + set_by)
    monkeypatch.setattr(clock, "_clock", fake)
    await rig.store(b"old", key=OLD)
    await rig.put_values(value_key("old"))
    set_by = -10_000_000_000
    assert (await clean(rig))[:2] == (1, 1)
    assert (rig.artifact_keys(), rig.values()) == ([], [])


async def test_an_access_does_not_make_an_artifact_newer(rig: CleanRig) -> None:
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    assert await rig.content(OLD) == b"old"
    await rig.artifacts.flush()
    assert await rig.content(OLD) == b"old"
    await cleaner.work()
    await rig.artifacts.flush()
    assert rig.artifact_keys() == []


@pytest.mark.parametrize("committed", [False, True])
async def test_an_artifact_stored_again_right_before_its_eviction_stays(
    rig: CleanRig, committed: bool
) -> None:
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    async with rig.artifacts.alone(OLD):
        work = asyncio.create_task(cleaner.work())
        await until(lambda: rig.artifacts.alone(OLD)._waiters)
        # What a store does that has the lock: the file, then the row.
        rig.path(OLD).write_bytes(b"new")
        rig.buffer.enqueue_nowait(ArtifactAccess(OLD, 3, now_us(), stored=True))
        if committed:
            await rig.buffer.flush()
    await work
    assert rig.path(OLD).read_bytes() == b"new"
    assert progress(cleaner.newest_job(*PROJECT))[1] == 0


async def test_files_without_a_row_go_if_they_are_old(rig: CleanRig) -> None:
    for key in (OLD, *OTHERS):
        rig.path(key).parent.mkdir(parents=True)
        rig.path(key).write_bytes(b"stray")
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    # The clock of the file system ticks in milliseconds: it must have come past the request.
    while True:
        rig.path(NEW).parent.mkdir(parents=True, exist_ok=True)
        rig.path(NEW).write_bytes(b"stray")
        job = cleaner.newest_job(*PROJECT)
        assert job is not None
        if rig.path(NEW).stat().st_ctime_ns // 1_000 > job.requested_at:
            break
        rig.path(NEW).unlink()
    await cleaner.work()
    assert artifact_files(rig.folder) == sorted([NEW, *OTHERS])
    assert progress(cleaner.newest_job(*PROJECT))[1] == 1
    assert rig.accounts == (0, 0)


async def test_foreign_names_do_no_harm(rig: CleanRig) -> None:
    rig.path(OLD).parent.mkdir(parents=True)
    foreign = [rig.path(OLD).with_name(os.fsdecode(b"\xff")), rig.path("acc/proj/notes")]
    for path in foreign:
        path.touch()
    rig.path(OLD).symlink_to(foreign[1])
    await clean(rig)
    assert [path.exists() for path in [*foreign, rig.path(OLD)]] == [True, True, True]


async def test_rows_without_a_file_go(rig: CleanRig) -> None:
    await rig.store(b"old", key=OLD)
    rig.path(OLD).unlink()
    assert (await clean(rig))[1] == 1
    assert rig.artifact_keys() == []
    assert rig.accounts == (0, 0)


async def test_a_file_that_cannot_be_deleted_keeps_no_other(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (NEW, OLD):
        await rig.store(b"old", key=key)
    really_delete = rig.disk.delete_file

    def delete(key: str, inode: int) -> int | None:
        if key == NEW:
            raise OSError(errno.EIO, "bad disk")
        return really_delete(key, inode)

    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    with monkeypatch.context() as patched:
        patched.setattr(rig.disk, "delete_file", delete)
        await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert (job.stage, job.artifacts) == ("artifacts", 1)
    assert job.last_error == "the disk failed: bad disk"
    assert rig.artifact_keys() == [NEW]
    again = rig.cleaner()
    await again.work()
    assert progress(again.newest_job(*PROJECT))[1] == 2
    assert artifact_files(rig.folder) == []


# --- transfers ---------------------------------------------------------------------------------------


async def test_transfers_of_the_project_go_and_no_others(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_stages, "SLICE_TRANSFERS", 3)
    for key in [OLD, NEW, *OTHERS]:
        await rig.transfers.enqueue_upload(key)
        await rig.transfers.enqueue_download(key)
        await rig.transfers.enqueue_delete(key)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.transfers.enqueue_upload("acc/proj/xcode/la/te/late")
    await rig.transfers.flush()
    await cleaner.work()
    ours = [entry for entry in rig.queued() if entry[1].startswith("acc/proj/")]
    assert sorted(ours) == [
        ("delete", NEW),
        ("delete", OLD),
        ("upload", "acc/proj/xcode/la/te/late"),
    ]
    assert len(rig.queued()) == 3 + 3 * len(OTHERS)
    assert progress(cleaner.newest_job(*PROJECT)) == (0, 0, 4, 0)


async def test_an_upload_queued_again_before_it_was_made_stays(rig: CleanRig) -> None:
    """The first row stands for both."""
    await rig.store(b"old", key=OLD)
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.store(b"new", key=OLD, replace=True)
    await rig.transfers.flush()
    ((inserted_at,),) = rig.execute("SELECT inserted_at FROM s3_transfers")
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert inserted_at <= job.requested_at
    await cleaner.work()
    assert rig.queued() == [("upload", OLD)]


async def test_transfers_in_work_are_waited_for(rig: CleanRig) -> None:
    await rig.store(b"old", key=OLD)
    asked: list[str] = []
    ended = asyncio.Event()

    async def in_work(prefix: str) -> list[asyncio.Task[bool]]:
        asked.append(prefix)
        return [asyncio.create_task(ended.wait())]

    cleaner = rig.cleaner(in_work=in_work)
    await cleaner.request(*PROJECT)
    work = asyncio.create_task(cleaner.work())
    await until(lambda: asked)
    assert asked == ["acc/proj/"]
    # The file is gone before: what begins now cannot upload it.
    assert artifact_files(rig.folder) == []
    assert rig.queued() == [("upload", OLD)]
    ended.set()
    await work
    assert rig.queued() == []


async def test_a_transfer_that_does_not_end_holds_up_no_other_project(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_stages, "IN_WORK_S", 0.001)

    endless: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def in_work(prefix: str) -> list[asyncio.Future[None]]:
        return [endless] if prefix == "acc/proj/" else []

    cleaner = rig.cleaner(in_work=in_work)
    await cleaner.request(*PROJECT)
    await cleaner.request("acc", "proj2")
    await cleaner.work()
    stuck, other = cleaner.newest_job(*PROJECT), cleaner.newest_job("acc", "proj2")
    assert stuck is not None
    assert other is not None
    assert (stuck.stage, other.stage) == ("transfers", "done")
    assert stuck.last_error is not None
    assert "transfers in work" in stuck.last_error
    assert not endless.cancelled()


async def test_transfers_that_began_later_are_not_waited_for(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a project that is built all the time some upload always is in work."""
    monkeypatch.setattr(clean_stages, "IN_WORK_S", 0.001)
    loop = asyncio.get_running_loop()
    began: list[asyncio.Future[None]] = []

    async def in_work(prefix: str) -> list[asyncio.Future[None]]:
        began.append(loop.create_future())
        return [began[-1]]

    cleaner = rig.cleaner(in_work=in_work, first_retry_s=0)
    await cleaner.request(*PROJECT)
    running = asyncio.create_task(cleaner.run())
    await until(lambda: rig.execute("SELECT 1 FROM clean_jobs WHERE last_error IS NOT NULL"))
    began[0].set_result(None)
    await until(lambda: not cleaner.is_being_cleaned(OLD))
    await drop(running)


# --- objects -----------------------------------------------------------------------------------------


async def test_objects_older_than_the_marker_go(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.put_now(OLD, NEW, "acc/proj/.clean-0", *OTHERS)
    assert await clean(rig, store=bucket) == (0, 0, 0, 3)
    assert sorted(bucket.objects) == sorted(OTHERS)
    assert bucket.puts == ["acc/proj/.clean-1"]


async def test_the_object_of_a_newer_artifact_stays(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.put_now(OLD, NEW)
    cleaner = rig.cleaner(bucket)
    await cleaner.request(*PROJECT)
    await rig.store(b"new", key=NEW)
    await cleaner.work()
    assert list(bucket.objects) == [NEW]


async def test_an_object_of_the_second_of_the_marker_goes(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.head_knows_seconds_only = True
    bucket.put_now(OLD)
    assert await clean(rig, store=bucket) == (0, 0, 0, 1)
    assert bucket.objects == {}


async def test_an_artifact_stored_while_its_old_object_is_deleted_is_uploaded_again(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.put_now(OLD, NEW)

    async def store_and_upload() -> None:
        bucket.while_deleting = nothing
        await rig.store(b"new", key=NEW)
        rig.execute("DELETE FROM s3_transfers")
        bucket.put_now(NEW)

    bucket.while_deleting = store_and_upload
    await clean(rig, store=bucket)
    assert bucket.objects == {}
    await rig.transfers.flush()
    assert rig.queued() == [("upload", NEW)]


async def test_a_store_that_is_down_is_asked_until_it_is_back(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.put_now(OLD)
    await rig.store(b"old", key=OLD)
    bucket.fail_always(ObjectStoreError("the store is down"))
    cleaner = rig.cleaner(bucket, first_retry_s=0.001, longest_retry_s=0.002)
    with capture_logs() as logs:
        await cleaner.request(*PROJECT)
        await cleaner.request("acc", "proj2")
        running = asyncio.create_task(cleaner.run())
        await bucket.wait_until_asked(10)
        for project in (PROJECT, ("acc", "proj2")):
            job = cleaner.newest_job(*project)
            assert job is not None
            assert (job.stage, job.finished_at) == ("objects", None)
            assert job.last_error == "the object store failed: the store is down"
        assert artifact_files(rig.folder) == []
        assert cleaner.is_being_cleaned(OLD)
        bucket.heal()
        await until(lambda: cleaner.unfinished == 0)
    await drop(running)
    assert bucket.objects == {}
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert (job.stage, job.last_error) == ("done", None)
    ours = [entry["event"] for entry in logs if entry.get("project") == "proj"]
    assert ours == [
        "clean_project_begins",
        "clean_project_failed",
        "clean_project_recovered",
        "project_cleaned",
    ]


async def test_the_marker_is_put_once_and_what_is_younger_stays(rig: CleanRig) -> None:
    bucket = rig.bucket
    bucket.put_now(OLD)

    async def fail() -> None:
        bucket.while_deleting = nothing
        raise ObjectStoreError("not now")

    bucket.while_deleting = fail
    cleaner = rig.cleaner(bucket)
    await cleaner.request(*PROJECT)
    await cleaner.work()
    assert sorted(bucket.objects) == ["acc/proj/.clean-1", OLD]
    bucket.put_now(NEW)  # younger than the marker that is there
    again = rig.cleaner(bucket)
    await again.work()
    assert bucket.puts == ["acc/proj/.clean-1"]
    assert list(bucket.objects) == [NEW]


async def test_a_real_store(rig: CleanRig, tmp_path: Path) -> None:
    store = open_object_store(ObjectStoreSettings(f"file://{tmp_path}/bucket"), rig.telemetry)
    other = "acc/proj2/xcode/aa/bb/x"
    for key in ("acc/proj/bazel/a b/aa/bb/x", OLD, NEW, other):
        await store.put(key, io.BytesIO(b"bytes"), 5, None)
    assert (await clean(rig, store=store))[3] == 3
    assert [[found.key for found in page] async for page in store.list("acc")] == [[other]]


async def test_a_real_store_that_is_down_is_named_as_people_know_it(rig: CleanRig) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        settings = ObjectStoreSettings("s3://b", endpoint, access_key_id="id", secret_access_key="secret")
        cleaner = rig.cleaner(open_object_store(settings, rig.telemetry))
        await cleaner.request(*PROJECT)
        await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert job.last_error is not None
    assert job.last_error.startswith("the object store failed: upload of acc/proj/.clean-1: ")
    assert "Error:" not in job.last_error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatabaseLockedError("another process holds a lock"), "another process holds a lock"),
        (OSError(28, "No space left on device"), "the disk failed: No space left on device"),
        (OSError("short"), "the disk failed: short"),
        (apsw.BusyError("database is locked"), "the database failed: database is locked"),
    ],
)
def test_why_a_request_does_not_get_on_is_said_without_classes(error: Exception, words: str) -> None:
    assert in_words(error) == words


async def test_a_store_that_does_not_answer_is_not_waited_for_without_end(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_objects, "ANSWER_S", 0.001)
    rig.bucket.shut_gate()
    cleaner = rig.cleaner(rig.bucket)
    await cleaner.request(*PROJECT)
    await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert (job.stage, job.last_error) == (
        "objects",
        "the object store failed: waited 0.001 s for acc/proj/.clean-1 to be put",
    )


# --- requests ----------------------------------------------------------------------------------------


async def test_what_is_being_cleaned_is_known_from_request_to_end(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    before = cleaner.cleanings(OLD)
    assert not cleaner.is_being_cleaned(OLD)
    await cleaner.request(*PROJECT)
    during = cleaner.cleanings(OLD)
    assert cleaner.is_being_cleaned(OLD)
    assert [cleaner.is_being_cleaned(key) for key in OTHERS] == [False] * len(OTHERS)
    after_restart = rig.cleaner()
    assert after_restart.is_being_cleaned(OLD)
    await cleaner.work()
    assert not cleaner.is_being_cleaned(OLD)
    assert before < during == cleaner.cleanings(OLD)


async def test_a_request_waits_for_what_is_being_published(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    async with rig.artifacts.alone(OLD):
        request = asyncio.create_task(cleaner.request(*PROJECT))
        await until(lambda: rig.artifacts.alone(OLD)._waiters)
        # Whoever asks now is told, though there is no job yet.
        assert cleaner.is_being_cleaned(OLD)
        assert cleaner.newest_job(*PROJECT) is None
        rig.path(OLD).parent.mkdir(parents=True)
        rig.path(OLD).write_bytes(b"fetched")
        rig.buffer.enqueue_nowait(ArtifactAccess(OLD, 7, now_us(), stored=True))
    await request
    await cleaner.work()
    assert artifact_files(rig.folder) == []
    assert rig.artifact_keys() == []


async def test_a_request_that_fails_leaves_nothing(rig: CleanRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insisting, "LOCKED_ATTEMPTS", 1)
    cleaner = rig.cleaner()
    with lock_of_another_connection(rig.database.path), pytest.raises(DatabaseLockedError):
        await cleaner.request(*PROJECT)
    assert not cleaner.is_being_cleaned(OLD)
    assert cleaner.newest_job(*PROJECT) is None


async def test_a_short_lock_only_delays_a_request(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    tries: list[Any] = []
    really_add = clean_jobs._add
    with lock_of_another_connection(rig.database.path) as lock, pytest.MonkeyPatch.context() as patched:

        def add(*values: Any) -> Any:
            tries.append(values)
            if len(tries) == 2:
                lock.release()
            return really_add(*values)

        patched.setattr(clean_jobs, "_add", add)
        await cleaner.request(*PROJECT)
    assert len(tries) == 2


async def test_a_cancelled_request_that_was_committed_is_carried_out(rig: CleanRig) -> None:
    await rig.put_values(value_key("k"))
    cleaner = rig.cleaner()
    gate = threading.Event()
    held = threading.Event()

    def hold(_connection: apsw.Connection) -> None:
        held.set()
        gate.wait(20)

    holding = asyncio.create_task(rig.database.write(hold))
    await asyncio.to_thread(held.wait)
    request = asyncio.create_task(cleaner.request(*PROJECT))
    await until(lambda: rig.database._writer._jobs.qsize() > 0)
    await drop(request)
    work = asyncio.create_task(cleaner.work())
    await asyncio.sleep(0)
    # Whoever looks by the reader has looked by now.
    await rig.database.read(lambda _connection: None)
    gate.set()
    await asyncio.gather(holding, work)
    assert rig.values() == []
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert job.stage == "done"


async def test_a_newer_request_takes_the_place_of_one_that_waits(rig: CleanRig) -> None:
    await rig.put_values(value_key("before"))
    cleaner = rig.cleaner()
    first = await cleaner.request(*PROJECT)
    await rig.put_values(value_key("between"))
    second = await cleaner.request(*PROJECT)
    await rig.put_values(value_key("after"))
    assert rig.execute("SELECT id FROM clean_jobs") == [(second.id,)]
    assert second.id > first.id
    await cleaner.work()
    assert rig.values() == [value_key("after")]


class Gate:
    """Stops a worker at the end of the next slice of a stage."""

    def __init__(self, stage: str) -> None:
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()
        really_removed = CleanRun.removed

        async def removed(run: CleanRun, what: Any, count: int) -> None:
            await really_removed(run, what, count)
            if run.job.stage == stage and not self.arrived.is_set():
                self.arrived.set()
                await self.open.wait()
                await really_removed(run, what, 0)

        self.removed = removed


async def test_a_newer_request_takes_over_from_one_in_work(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.put_values(value_key("before"))
    await rig.store(b"old", key=OLD)
    gate = Gate("artifacts")
    monkeypatch.setattr(CleanRun, "removed", gate.removed)
    cleaner = rig.cleaner()
    with capture_logs() as logs:
        await cleaner.request(*PROJECT)
        work = asyncio.create_task(cleaner.work())
        await gate.arrived.wait()
        await rig.put_values(value_key("between"))
        await cleaner.request(*PROJECT)
        gate.open.set()
        await work
    assert rig.values() == []
    assert not cleaner.is_being_cleaned(OLD)
    # What the first one removed is not counted twice.
    assert progress(cleaner.newest_job(*PROJECT)) == (1, 0, 1, 0)
    assert [entry["event"] for entry in logs] == [
        "clean_project_begins",
        "clean_project_superseded",
        "clean_project_begins",
        "project_cleaned",
    ]


async def test_only_the_newest_finished_jobs_are_kept(rig: CleanRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_jobs, "FINISHED_KEPT", 2)
    cleaner = rig.cleaner()
    for number in range(4):
        await cleaner.request("acc", f"p{number}")
        await cleaner.work()
    assert rig.execute("SELECT project_handle FROM clean_jobs ORDER BY id") == [("p1",), ("p2",), ("p3",)]
    assert cleaner.newest_job("acc", "p0") is None


# --- interruptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["key_values", "artifacts", "transfers", "objects"])
async def test_a_new_worker_goes_on_where_one_was_lost(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(clean_stages, "SLICE_ROWS", 2)
    monkeypatch.setattr(clean_stages, "MOST_SLICE_ROWS", 2)
    monkeypatch.setattr(clean_stages, "SLICE_ARTIFACTS", 2)
    monkeypatch.setattr(clean_stages, "SLICE_TRANSFERS", 2)
    keys = [f"acc/proj/xcode/aa/bb/{n}" for n in range(5)]
    await rig.put_values(*(value_key(str(n)) for n in range(5)))
    for key in keys:
        await rig.store(b"old", key=key)
    rig.bucket.put_now(*keys)
    lost = rig.cleaner(rig.bucket)
    await lost.request(*PROJECT)
    gate = Gate(stage)
    with monkeypatch.context() as patched:
        patched.setattr(CleanRun, "removed", gate.removed)
        work = asyncio.create_task(lost.work())
        await gate.arrived.wait()
        await drop(work)
    half = lost.newest_job(*PROJECT)
    assert half is not None
    assert half.stage == stage
    cleaner = rig.cleaner(rig.bucket)
    await cleaner.open()
    assert cleaner.is_being_cleaned(OLD)
    await cleaner.work()
    assert (rig.values(), rig.artifact_keys(), rig.queued()) == ([], [], [])
    assert artifact_files(rig.folder) == []
    assert rig.bucket.objects == {}
    assert progress(cleaner.newest_job(*PROJECT)) == (5, 5, 5, 5)
    assert rig.accounts == (0, 0)


async def test_a_locked_database_is_tried_again_and_told_of_once(rig: CleanRig) -> None:
    await rig.put_values(value_key("k"))
    cleaner = rig.cleaner(first_retry_s=0.001, longest_retry_s=0.001)
    await cleaner.request(*PROJECT)
    failures: list[None] = []
    really_put_off = CleanRun.put_off

    def put_off(run: CleanRun, reason: str, longest_retry_s: float) -> None:
        failures.append(None)
        really_put_off(run, reason, longest_retry_s)

    with capture_logs() as logs, pytest.MonkeyPatch.context() as patched:
        patched.setattr(CleanRun, "put_off", put_off)
        with lock_of_another_connection(rig.key_value_database.path):
            running = asyncio.create_task(cleaner.run())
            await until(lambda: len(failures) >= 3)
        await until(lambda: not cleaner.is_being_cleaned(OLD))
    await drop(running)
    assert rig.values() == []
    assert [entry["event"] for entry in logs].count("clean_project_failed") == 1


async def test_jobs_that_cannot_be_read_are_told_of_once(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    with capture_logs() as logs, monkeypatch.context() as patched:
        patched.setattr(clean_jobs, "UNFINISHED", "SELECT * FROM nothing")
        await cleaner.work()
        await cleaner.work()
    assert [entry["event"] for entry in logs].count("clean_jobs_not_read") == 1
    # Its own requests it knows.
    assert not cleaner.is_being_cleaned(OLD)


async def test_a_request_wakes_the_worker(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    running = asyncio.create_task(cleaner.run())
    for _ in range(2):
        await until(lambda: cleaner._wake._waiters)
        await cleaner.request(*PROJECT)
        await until(lambda: not cleaner.is_being_cleaned(OLD))
    await drop(running)


async def test_the_project_that_is_least_far_is_next(rig: CleanRig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    really_removed = CleanRun.removed

    async def removed(run: CleanRun, what: Any, count: int) -> None:
        if (run.job.project, what) not in seen:
            seen.append((run.job.project, what))
        await really_removed(run, what, count)

    monkeypatch.setattr(CleanRun, "removed", removed)
    cleaner = rig.cleaner()
    for project in ("p1", "p2"):
        await rig.store(b"old", key=f"acc/{project}/xcode/aa/bb/x")
        await cleaner.request("acc", project)
    await cleaner.work()
    stages = ("key_values", "artifacts", "transfers")
    assert seen == [(project, stage) for stage in stages for project in ("p1", "p2")]


async def test_a_request_at_the_very_end_of_another_is_not_lost(
    rig: CleanRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    really_enter = CleanJobs.enter
    requests: list[CleanJob] = []

    async def enter(jobs: CleanJobs, job: CleanJob, stage: Any) -> None:
        await really_enter(jobs, job, stage)
        if stage == "done" and not requests:
            await rig.put_values(value_key("k"))
            requests.append(await cleaner.request(*PROJECT))

    monkeypatch.setattr(CleanJobs, "enter", enter)
    await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert (job.id, job.stage) == (requests[0].id, "done")
    assert rig.values() == []
    assert not cleaner.is_being_cleaned(OLD)


async def test_the_worker_ends_with_the_databases(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    running = asyncio.create_task(cleaner.run())
    await cleaner.request(*PROJECT)
    await until(lambda: not cleaner.is_being_cleaned(OLD))
    await rig.database.close()
    cleaner._wake.set()
    await running
    with pytest.raises(ClosedError):
        await cleaner.work()


async def test_a_job_that_meets_closed_parts_has_not_failed(rig: CleanRig) -> None:
    cleaner = rig.cleaner()
    await cleaner.request(*PROJECT)
    await rig.key_value_database.close()
    with pytest.raises(ClosedError):
        await cleaner.work()
    job = cleaner.newest_job(*PROJECT)
    assert job is not None
    assert job.last_error is None
