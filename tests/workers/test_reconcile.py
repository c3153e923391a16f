"""Reconcile: what is surely whole is served again, what nobody vouches for goes, the rest is not touched."""

import asyncio
import errno
import hashlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.artifact_rig import KEY
from tests.support.disk_faults import fault
from tests.support.fake_cleaning import FakeCleaning
from tests.support.folders import artifact_files, files_under
from tests.support.leaks import open_files
from tests.support.reconcile_rig import FakeStore, FakeTime, ReconcileRig, cancelled, make_old
from tests.test_artifacts import Gate
from undercroft.artifact_rows import agrees
from undercroft.buffers import BufferSettings
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.errors import BufferFullError, ClosedError
from undercroft.storage.boot import boot_id
from undercroft.storage.disk import Disk
from undercroft.storage.layout import artifact_key
from undercroft.storage.open_file import CheckedFile, identity_at
from undercroft.storage.upload import Stored
from undercroft.telemetry import events
from undercroft.workers import reconcile_files, reconcile_round
from undercroft.workers.pace import Pace

OpenRig = Callable[..., Awaitable[ReconcileRig]]

HOUR_US = 3_600_000_000

# By another process; the size is still to be filled in.
INSERT_ROW = (
    "INSERT INTO cache_artifacts (key, size_bytes, last_accessed_at, inserted_at, updated_at, stored_at) "
    "VALUES (?, {}, 1, 1, 1, 1)"
)


@pytest.fixture
async def open_rig(tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens the service; may be called again for the next life of the same folder."""
    rigs: list[ReconcileRig] = []

    async def open_one(**options: Any) -> ReconcileRig:
        rig = ReconcileRig(tmp_path, **options)
        rigs.append(rig)
        await rig.open()
        return rig

    yield open_one
    for rig in rigs:
        await rig.close()
    assert open_files(tmp_path) == []


@pytest.fixture
async def rig(open_rig: OpenRig) -> ReconcileRig:
    return await open_rig()


@pytest.fixture
async def tiered(open_rig: OpenRig) -> ReconcileRig:
    """With an object store."""
    rig = await open_rig(uploads=True)
    rig.store_of_objects = FakeStore()
    return rig


def store_of(rig: ReconcileRig) -> FakeStore:
    assert rig.store_of_objects is not None
    return rig.store_of_objects


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_key(data: bytes) -> str:
    return artifact_key("acc", "proj", "bazel_cas", sha256(data))


# --- files without rows ------------------------------------------------------------------------------


async def test_a_file_of_this_boot_is_taken_in_and_uploaded(tiered: ReconcileRig) -> None:
    tiered.place(KEY, b"12345")
    await tiered.of_this_boot()
    assert await tiered.round() == {"adopted": 1}
    assert await tiered.content() == b"12345"
    assert tiered.accounts == (5, 0)
    assert await tiered.queued() == [("upload", KEY)]
    await tiered.artifacts.flush()
    assert tiered.rows() == {KEY: (5, sha256(b"12345"))}
    assert store_of(tiered).asked == []
    assert await tiered.round() == {"agrees": 1}


async def test_what_is_taken_in_was_used_when_it_was_written(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    written_at = (now_us() - HOUR_US) // 1_000_000
    os.utime(rig.path(), (written_at, written_at))
    await rig.of_this_boot()
    await rig.round()
    row = rig.artifacts.find(KEY)
    assert row is not None
    assert row.accessed_at == written_at * 1_000_000


@pytest.mark.parametrize("data", [b"", b"12345"])
async def test_a_file_of_an_earlier_boot_goes_when_nobody_vouches_for_it(
    rig: ReconcileRig, data: bytes
) -> None:
    rig.place(KEY, data)
    await rig.power_loss()
    assert await rig.round() == {"removed": 1}
    assert artifact_files(rig.folder) == []
    assert rig.accounts == (0, 0)
    assert await rig.store(b"again") is Stored.CREATED


async def test_a_start_without_a_remembered_boot_is_a_new_boot(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    assert await rig.round() == {"removed": 1}
    rig.place(KEY, b"12345")  # since that start
    assert await rig.round() == {"adopted": 1}


async def test_what_is_adopted_is_named_in_the_log(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_round, "MOST_REPORTS", 2)
    keys = [artifact_key("acc", "proj", "xcode", name) for name in ("abcd", "abce", "abcf")]
    await rig.of_this_boot()
    for key in keys:
        rig.place(key, b"12345")
    with capture_logs() as logs:
        assert await rig.round() == {"adopted": 3}
    told = [entry for entry in logs if entry["event"] == "reconcile_adopted"]
    assert [(entry["log_level"], entry["key"], entry["size"]) for entry in told] == [
        ("info", key, 5) for key in keys[:2]
    ]


async def test_a_new_name_alone_makes_no_file_young(rig: ReconcileRig) -> None:
    """The sweep at a start takes its second name from what power cut off, which moves the ctime."""
    rig.place(KEY, b"torn")
    make_old(rig.path())
    await rig.set_boot(boot_id(), now_us() - HOUR_US)
    assert await rig.round() == {"removed": 1}


async def test_a_time_to_come_is_no_proof(rig: ReconcileRig) -> None:
    rig.place(KEY, b"who knows")
    tomorrow = time.time() + 86_400
    os.utime(rig.path(), (tomorrow, tomorrow))
    await rig.of_this_boot()
    assert await rig.round() == {"removed": 1}


@pytest.mark.parametrize("same_boot", [True, False])
async def test_a_blob_is_proven_by_its_name(rig: ReconcileRig, same_boot: bool) -> None:
    good, bad = blob_key(b"good"), blob_key(b"bad")
    rig.place(good, b"good")
    rig.place(bad, b"\0\0\0")
    await (rig.of_this_boot() if same_boot else rig.power_loss())
    assert await rig.round() == {"adopted": 1, "removed": 1}
    assert artifact_files(rig.folder) == [good]
    assert await rig.content(good) == b"good"


async def test_what_the_object_store_has_is_whole_and_not_uploaded_again(tiered: ReconcileRig) -> None:
    tiered.place(KEY, b"12345")
    store_of(tiered).put_object(KEY, 5, sha256(b"12345"))
    await tiered.power_loss()
    assert await tiered.round() == {"adopted": 1}
    assert await tiered.content() == b"12345"
    assert await tiered.queued() == []
    assert store_of(tiered).asked == [KEY]


@pytest.mark.parametrize("remote", [None, (4, sha256(b"12345")), (5, sha256(b"54321")), (5, None)], ids=str)
async def test_what_the_object_store_does_not_confirm_goes(
    tiered: ReconcileRig, remote: tuple[int, str | None] | None
) -> None:
    tiered.place(KEY, b"12345")
    if remote is not None:
        store_of(tiered).put_object(KEY, *remote)
    await tiered.power_loss()
    with capture_logs() as logs:
        assert await tiered.round() == {"removed": 1}
    assert artifact_files(tiered.folder) == []
    # It is not read where that could prove nothing.
    comparable = remote is not None and remote[0] == 5 and remote[1] is not None
    assert logs[-1]["bytes_hashed"] == (5 if comparable else 0)


@pytest.mark.parametrize("trouble", ["down", "hangs"])
async def test_a_store_that_cannot_be_asked_costs_no_file(
    tiered: ReconcileRig, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(reconcile_files, "HEAD_S", 0.0)
    others = [artifact_key("acc", "proj", "xcode", f"{number:04}") for number in range(20)]
    for key in (KEY, *others):
        tiered.place(key, b"12345")
    await tiered.power_loss()
    setattr(store_of(tiered), trouble, True)
    at = FakeTime()
    reconcile = tiered.reconcile(at)
    with capture_logs() as logs:
        assert await reconcile.run_round()
    assert tiered.found() == {}
    assert artifact_files(tiered.folder) == sorted((KEY, *others))
    assert len(store_of(tiered).asked) == 1  # not once for each file
    (line,) = (line for line in logs if line["event"] == "reconcile_round")
    assert (line["left"], line["errors"]) == (21, 21)
    setattr(store_of(tiered), trouble, False)
    monkeypatch.undo()
    store_of(tiered).put_object(KEY, 5, sha256(b"12345"))
    at.now += reconcile_files.STORE_PAUSE_S
    assert await reconcile.run_round()
    assert tiered.found() == {"adopted": 1, "removed": 20}


async def test_a_file_that_may_get_its_row_from_another_process_waits(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    other = Disk(rig.folder)
    other.open_directories()
    assert await rig.round() == {}
    assert await rig.round(grace_ms=0) == {"adopted": 1}
    rig.place("acc/proj/xcode/zz/zz/zzzz", b"1")
    assert await rig.round() == {"agrees": 1}
    other.close()
    (rig.folder / "temporary" / "dead").mkdir()
    # It is gone, so nothing is about to be committed: after a crash files need not wait.
    assert await rig.round() == {"adopted": 1, "agrees": 1}


async def test_rows_that_are_not_committed_yet_are_rows(open_rig: OpenRig) -> None:
    rig = await open_rig(ack="buffered")
    await rig.store(b"12345")
    await rig.power_loss()
    assert await rig.round(flush=False) == {}
    assert rig.rows() == {}
    assert await rig.content() == b"12345"


async def test_what_was_cleaned_does_not_come_back(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    rig.place("acc/other/xcode/ab/cd/abcdef", b"12345")
    await rig.of_this_boot()
    sql = "INSERT INTO clean_jobs (account_handle, project_handle, requested_at, stage) VALUES (?, ?, ?, ?)"
    await rig.execute(sql, "acc", "proj", now_us() - HOUR_US, "done")
    await rig.execute(sql, "acc", "other", now_us() + 1, "done")
    assert await rig.round() == {"removed": 1, "adopted": 1}
    assert artifact_files(rig.folder) == [KEY]


async def test_nothing_is_adopted_while_its_project_is_being_cleaned(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    rig.place("acc/other/xcode/ab/cd/abcdef", b"12345")
    await rig.of_this_boot()
    rig.cleaning = FakeCleaning()
    rig.cleaning.prefixes.add("acc/proj/")
    assert await rig.round() == {"adopted": 1}
    assert KEY in artifact_files(rig.folder)
    rig.cleaning.prefixes.clear()
    assert await rig.round() == {"adopted": 1, "agrees": 1}


async def test_a_file_that_is_replaced_while_it_is_hashed(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    at = FakeTime()

    async def replace() -> None:
        assert await rig.store(b"new one", replace=True) is Stored.CREATED

    reconcile = rig.reconcile(at, bytes_per_second=1)  # a sleep for each byte
    at.meanwhile = nothing_before_the_first_byte(at, replace)
    assert await reconcile.run_round()
    assert rig.found() == {"agrees": 1}
    assert await rig.content() == b"new one"
    assert rig.accounts == (7, 0)


def asked_for_the_lock(rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when somebody, from now on, is about to wait for the lock of a key."""
    asked = asyncio.Event()
    really_alone = rig.artifacts.alone

    def alone(key: str) -> asyncio.Lock:
        asked.set()
        return really_alone(key)

    monkeypatch.setattr(rig.artifacts, "alone", alone)
    return asked


def nothing_before_the_first_byte(
    at: FakeTime, act: Callable[[], Awaitable[None]]
) -> Callable[[], Awaitable[None]]:
    """`act` in the first sleep that takes time: only hashing does."""

    async def look() -> None:
        if at.slept[-1] > 0:
            await act()
        else:
            at.meanwhile = look

    return look


async def test_a_file_that_changes_while_it_is_hashed_is_left(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    at = FakeTime()

    async def change() -> None:
        with rig.path().open("ab") as file:
            file.write(b"6")

    reconcile = rig.reconcile(at, bytes_per_second=1)
    at.meanwhile = nothing_before_the_first_byte(at, change)
    assert await reconcile.run_round()
    assert rig.found() == {}
    assert await rig.round() == {"adopted": 1}
    assert await rig.content() == b"123456"


async def test_a_file_that_gets_its_row_while_it_is_hashed(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    at = FakeTime()

    async def commit() -> None:
        """What another process does."""
        await rig.execute(
            INSERT_ROW.format("5"),
            KEY,
        )

    reconcile = rig.reconcile(at, bytes_per_second=1)
    at.meanwhile = nothing_before_the_first_byte(at, commit)
    assert await reconcile.run_round()
    assert rig.found() == {"agrees": 1}
    assert rig.accounts == (0, 0)


async def test_a_file_that_is_evicted_while_it_is_hashed(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    at = FakeTime()

    async def evict() -> None:
        await rig.artifacts.evict(KEY)

    reconcile = rig.reconcile(at, bytes_per_second=1)
    at.meanwhile = nothing_before_the_first_byte(at, evict)
    assert await reconcile.run_round()
    assert rig.found() == {}
    assert rig.artifacts.find(KEY) is None
    assert rig.accounts == (0, 0)


async def test_an_upload_that_has_no_row_yet_is_left_to_its_writer(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.power_loss()
    gate = Gate(monkeypatch, rig.disk, "publish_new", after=True)
    storing = asyncio.create_task(rig.store(b"12345"))
    await gate.arrived()
    asked = asked_for_the_lock(rig, monkeypatch)
    round_ = asyncio.create_task(rig.round())
    await asked.wait()
    gate.open()
    assert await storing is Stored.CREATED
    assert await round_ in ({"agrees": 1}, {})
    assert await rig.content() == b"12345"
    assert rig.accounts == (5, 0)


# --- files that say what they are ---------------------------------------------------------------------


async def labelled_without_row(rig: ReconcileRig) -> None:
    """A file as a kill between its name and its row leaves it."""
    await rig.store(b"12345", replace=True)
    await rig.execute("DELETE FROM cache_artifacts")
    await rig.execute("DELETE FROM s3_transfers")
    rig.artifacts.open()


async def test_a_file_that_says_what_it_is_is_taken_in_whatever_the_boot(tiered: ReconcileRig) -> None:
    await labelled_without_row(tiered)
    await tiered.power_loss()
    assert await tiered.round() == {"adopted": 1}
    assert store_of(tiered).asked == []
    row = tiered.artifacts.find(KEY)
    found = tiered.disk.look(KEY)
    assert row is not None
    assert found is not None
    assert found.label is not None
    assert agrees(row, found.label)
    assert await tiered.queued() == [("upload", KEY)]
    assert tiered.accounts == (5, 0)
    assert await tiered.round() == {"agrees": 1}


@pytest.mark.parametrize("damage", [b"1234\0", b"1234"])
async def test_a_file_that_is_not_what_it_says_goes_though_it_is_of_this_boot(
    rig: ReconcileRig, damage: bytes
) -> None:
    await labelled_without_row(rig)
    await rig.of_this_boot()
    rig.path().write_bytes(damage)
    assert await rig.round() == {"removed": 1}
    assert artifact_files(rig.folder) == []


async def test_a_file_that_says_it_is_older_than_a_request_to_clean_goes(rig: ReconcileRig) -> None:
    await labelled_without_row(rig)
    found = rig.disk.look(KEY)
    assert found is not None
    assert found.label is not None
    # Whatever its times are.
    os.utime(rig.path(), (time.time() + 1_000, time.time() + 1_000))
    sql = "INSERT INTO clean_jobs (account_handle, project_handle, requested_at, stage) VALUES (?, ?, ?, ?)"
    await rig.execute(sql, "acc", "proj", found.label.stored_at, "done")
    assert await rig.round() == {"removed": 1}


@pytest.mark.parametrize("size", [3, 5])
async def test_the_row_of_what_was_replaced_is_mended(rig: ReconcileRig, size: int) -> None:
    await rig.store(b"12345", replace=True)
    sql = "UPDATE cache_artifacts SET size_bytes = ?, content_sha256 = ?, stored_at = 7"
    await rig.execute(sql, size, "0" * 64)
    rig.artifacts.open()
    await rig.power_loss()
    assert await rig.round() == {"mended": 1}
    await rig.artifacts.flush()
    assert rig.rows() == {KEY: (5, sha256(b"12345"))}
    assert rig.accounts == (5, 0)
    assert files_under(rig.folder / "quarantine") == []
    assert await rig.round() == {"agrees": 1}


# --- what is not the node's --------------------------------------------------------------------------


async def test_foreign_things_are_reported_once_and_left_alone(rig: ReconcileRig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "ab" / "cd").mkdir(parents=True)
    (outside / "ab" / "cd" / "abcdef").write_bytes(b"theirs")
    root = rig.disk.artifacts
    (root / "acc/proj").mkdir(parents=True)
    (root / "acc/proj/linked").symlink_to(outside)
    rig.place("acc/proj/xcode/ab/cd/abcdee", b"ours")
    directory = root / "acc/proj/xcode/ab/cd"
    (directory / "abcdef").symlink_to(outside / "ab/cd/abcdef")
    (directory / "wrong").write_bytes(b"wrong pair")
    (directory / "notes").mkdir()
    (directory / "notes" / "ab").write_bytes(b"too deep")
    os.mkfifo(directory / "abcdfifo")
    (root / "README").write_bytes(b"too high")
    (root / "Upper").mkdir()
    (root / os.fsdecode(b"\xff\xfe")).mkdir()
    before = sorted(os.walk(os.fsencode(root)))
    await rig.of_this_boot()
    reconcile = rig.reconcile()
    foreign = []
    for _ in range(2):
        with capture_logs() as logs:
            assert await reconcile.run_round()
        foreign.append([line["path"] for line in logs if line["event"] == "reconcile_foreign"])
        (line,) = (line for line in logs if line["event"] == "reconcile_round")
        assert line["foreign"] == 8
        assert line["directories_removed"] == 0
    assert len(foreign[0]) == 8
    assert foreign[1] == []
    assert sorted(os.walk(os.fsencode(root))) == before
    assert (outside / "ab/cd/abcdef").read_bytes() == b"theirs"
    assert rig.found() == {"adopted": 1}


async def test_empty_directories_go_once_nothing_happens_in_them(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    await rig.power_loss()
    await rig.round()
    await rig.round()
    assert rig.path().parent.is_dir()  # a moment ago something was in it
    make_old(rig.path().parent)
    await rig.round()
    assert not rig.path().parent.exists()
    make_old(rig.path().parent.parent)
    await rig.round()
    kind = rig.path().parent.parent.parent
    assert list(kind.iterdir()) == []
    make_old(kind)
    await rig.round()
    assert kind.is_dir()
    assert await rig.store(b"12345") is Stored.CREATED


# --- rows --------------------------------------------------------------------------------------------


async def test_a_row_without_a_file_is_forgotten(rig: ReconcileRig) -> None:
    await rig.store(b"12345")
    await rig.store(b"123", key="acc/proj/xcode/zz/zz/zzzz")
    rig.path().unlink()
    assert await rig.round() == {"row_without_file": 1, "agrees": 1}
    assert rig.artifacts.find(KEY) is None
    assert rig.accounts == (3, 0)
    await rig.artifacts.flush()
    assert list(rig.rows()) == ["acc/proj/xcode/zz/zz/zzzz"]


DAMAGES = {"cut": b"1234", "grown": b"123456", "bit": b"12344", "empty": b""}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
async def test_a_damaged_file_is_set_aside_and_fetched_again(tiered: ReconcileRig, damage: bytes) -> None:
    await tiered.store(b"12345")
    tiered.path().write_bytes(damage)
    assert await tiered.round() == {"damaged": 1}
    (kept,) = (tiered.folder / "quarantine").iterdir()
    assert kept.read_bytes() == damage
    assert tiered.artifacts.find(KEY) is None
    assert tiered.accounts == (0, 0)
    assert ("download", KEY) in await tiered.queued()


async def test_without_an_object_store_there_is_nothing_to_fetch(rig: ReconcileRig) -> None:
    await rig.store(b"12345")
    rig.path().write_bytes(b"1234")
    assert await rig.round() == {"damaged": 1}
    assert await rig.queued() == []


async def test_without_a_digest_the_size_must_do(rig: ReconcileRig) -> None:
    insert = INSERT_ROW.format("?")
    await rig.execute(insert, KEY, 5)
    await rig.execute(insert, "acc/proj/xcode/zz/zz/zzzz", 5)
    rig.place(KEY, b"54321")
    rig.place("acc/proj/xcode/zz/zz/zzzz", b"4321")
    rig.artifacts.open()
    assert await rig.round() == {"agrees": 1, "damaged": 1}
    assert artifact_files(rig.folder) == [KEY]


@pytest.mark.parametrize("publish", ["publish_over", "publish_new"])
async def test_a_replacement_that_has_no_row_yet_is_no_damage(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch, publish: str
) -> None:
    await rig.store(b"old", replace=True)
    if publish == "publish_new":
        rig.path().unlink()  # a row without a file is stored anew
    gate = Gate(monkeypatch, rig.disk, publish, after=True)
    replacing = asyncio.create_task(rig.store(b"new one", replace=publish == "publish_over"))
    await gate.arrived()
    # The file is the new one, the row the old.
    asked = asked_for_the_lock(rig, monkeypatch)
    round_ = asyncio.create_task(rig.round())
    await asked.wait()
    gate.open()
    assert await replacing is Stored.REPLACED
    assert await round_ == {}
    assert await rig.content() == b"new one"
    assert files_under(rig.folder / "quarantine") == []
    assert rig.accounts == (7, 0)
    assert await rig.round() == {"agrees": 1}


async def test_a_file_that_comes_while_it_is_missed_keeps_its_row(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    rig.path().unlink()
    async with rig.artifacts.alone(KEY):
        asked = asked_for_the_lock(rig, monkeypatch)
        round_ = asyncio.create_task(rig.round())
        await asked.wait()
        rig.place(KEY, b"12345")
    assert await round_ == {}
    assert await rig.content() == b"12345"


async def test_damage_that_is_replaced_while_it_is_hashed(rig: ReconcileRig) -> None:
    await rig.store(b"12345", replace=True)
    rig.path().write_bytes(b"54321")
    at = FakeTime()

    async def replace() -> None:
        await rig.store(b"healed", replace=True)

    reconcile = rig.reconcile(at, bytes_per_second=1)
    at.meanwhile = nothing_before_the_first_byte(at, replace)
    assert await reconcile.run_round()
    assert rig.found() == {}
    assert await rig.content() == b"healed"
    assert files_under(rig.folder / "quarantine") == []


async def test_a_file_that_is_replaced_right_before_it_is_set_aside(
    tiered: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tiered.store(b"12345", replace=True)
    tiered.path().write_bytes(b"1234")
    really_quarantine = tiered.artifacts.quarantine

    async def quarantine(*args: Any) -> None:
        await tiered.store(b"healed", replace=True)
        await really_quarantine(*args)

    monkeypatch.setattr(tiered.artifacts, "quarantine", quarantine)
    assert await tiered.round() == {}
    assert await tiered.content() == b"healed"
    assert await tiered.queued() == [("upload", KEY)]


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "pipe"])
async def test_what_is_no_file_in_the_place_of_one_is_left(rig: ReconcileRig, kind: str) -> None:
    await rig.store(b"12345")
    rig.path().unlink()
    if kind == "directory":
        rig.path().mkdir()
    elif kind == "pipe":
        os.mkfifo(rig.path())
    else:
        target = rig.folder / "elsewhere"
        if kind == "link":
            target.write_bytes(b"theirs")
        rig.path().symlink_to(target)
    with capture_logs() as logs:
        assert await rig.round() == {}
    assert (logs[-1]["errors"], logs[-1]["foreign"]) == (1, 1)
    assert identity_at(str(rig.path())) is not None
    assert rig.artifacts.find(KEY) is not None


async def test_a_row_whose_key_is_none_of_ours_touches_nothing(rig: ReconcileRig, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"theirs")
    insert = INSERT_ROW.format("1")
    for key in ("../precious", "acc/proj/x/../../../../precious", "nul\0", ""):
        await rig.execute(insert, key)
    with capture_logs() as logs:
        assert await rig.round() == {}
    assert precious.read_bytes() == b"theirs"
    assert logs[-1]["foreign"] == 3  # "" is before everything
    assert logs[-1]["errors"] == 0


# --- pace --------------------------------------------------------------------------------------------


async def test_no_more_files_and_rows_per_second_than_allowed(rig: ReconcileRig) -> None:
    for number in range(300):
        rig.place(artifact_key("acc", "proj", "xcode", f"abcd{number}"), b"")
    await rig.of_this_boot()
    await rig.round()
    await rig.artifacts.flush()
    at = FakeTime()
    began = at.now
    looked: list[float] = []
    really_find = rig.artifacts.find

    def find(key: str) -> Any:
        looked.append(at.now)
        return really_find(key)

    rig.artifacts.find = find  # type: ignore[method-assign]
    assert await rig.reconcile(at, files_per_second=100).run_round()
    assert len(looked) == 600
    # 300 files, 6 directories, 300 rows; and never many at once.
    assert 6.0 <= at.now - began <= 6.2
    for first in set(looked):
        assert len([one for one in looked if first <= one < first + 1]) <= 105
    assert max(at.slept) < 0.1


async def test_no_more_bytes_per_second_than_allowed_within_a_file(rig: ReconcileRig) -> None:
    await rig.store(os.urandom(5_000_000))
    at = FakeTime()
    began = at.now
    with capture_logs() as logs:
        assert await rig.reconcile(at, bytes_per_second=500_000).run_round()
    assert 9.9 <= at.now - began <= 10.1
    assert max(at.slept) <= 1.05
    assert logs[-1]["bytes_hashed"] == 5_000_000
    assert rig.found() == {"agrees": 1}


async def test_who_was_idle_has_not_saved_up() -> None:
    at = FakeTime()
    pace = Pace(100, at.clock, at.sleep)
    at.now += 1_000
    began = at.now
    for _ in range(200):
        await pace.take(1)
    assert at.now - began == pytest.approx(2, abs=0.05)


async def test_one_disk_thread_at_most(rig: ReconcileRig) -> None:
    for number in range(20):
        rig.place(artifact_key("acc", "proj", "xcode", f"{number:04}"), os.urandom(100_000))
    await rig.of_this_boot()
    running: list[int] = [0]
    seen: list[int] = []
    really_run = rig.artifacts.threads.run

    async def run(function: Callable[..., Any], *args: Any) -> Any:
        running[0] += 1
        seen.append(running[0])
        try:
            return await really_run(function, *args)
        finally:
            running[0] -= 1

    rig.artifacts.threads.run = run  # type: ignore[method-assign,assignment]
    await rig.round()
    assert len(seen) > 100
    assert set(seen) == {1}


@pytest.mark.parametrize("cached", [True, False])
async def test_only_what_was_in_memory_is_left_there(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    await rig.store(b"x" * 3_000_000)
    dropped: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, _start, size, _advice: dropped.append(size))
    monkeypatch.setattr("undercroft.storage.open_file._is_cached", lambda _fd: cached)
    assert await rig.round() == {"agrees": 1}
    assert sum(dropped) == (0 if cached else 3_000_000)


# --- the cursor --------------------------------------------------------------------------------------


class Stop(Exception):  # noqa: N818  # no error: the end of a process
    pass


async def stopped_after(rig: ReconcileRig, looks: int) -> None:
    """A reconcile whose process ends after so many things it looked at; the cursor is saved each time."""
    at = FakeTime()
    count = 0

    async def sleep(seconds: float) -> None:
        nonlocal count
        count += 1
        if count > looks:
            raise Stop
        at.now += 11.0
        await asyncio.sleep(0)

    reconcile = rig.reconcile(at, sleep=sleep)
    with pytest.raises(Stop):
        await reconcile.run_round()


async def test_after_a_restart_the_files_go_on_where_they_were(rig: ReconcileRig) -> None:
    keys = [artifact_key("acc", "proj", "xcode", f"{number:02}00") for number in range(50)]
    for key in keys:
        rig.place(key, b"1")
    await rig.of_this_boot()
    # Four directories above; for each file two more, itself, and its only byte.
    await stopped_after(rig, 4 + 4 * 30)
    adopted = rig.found()["adopted"]
    assert adopted == 30
    with capture_logs() as logs:
        assert await rig.round() == {"adopted": 50 - adopted, "agrees": adopted}
    begins, line = logs[0], logs[-1]
    assert (begins["event"], begins["stage"]) == ("reconcile_begins", "files")
    assert begins["place"].startswith("acc/proj/xcode/")
    assert line["resumed"]
    assert line["files"] in (50 - adopted, 50 - adopted + 1)
    with capture_logs() as logs:
        assert await rig.round() == {"agrees": 50}
    assert not logs[-1]["resumed"]
    assert logs[-1]["files"] == 50


async def test_after_a_restart_the_rows_go_on_where_they_were(rig: ReconcileRig) -> None:
    keys = [f"acc/proj/xcode/{number // 100:02}/{number % 100:02}/{number:04}" for number in range(1_000)]
    insert = INSERT_ROW.format("1")
    for key in keys:
        await rig.execute(insert, key)
    rig.artifacts.open()
    await stopped_after(rig, 1 + 450)  # the root, then rows
    forgotten = rig.found()["row_without_file"]
    assert forgotten == 450
    with capture_logs() as logs:
        assert await rig.round() == {"row_without_file": 550}
    assert (logs[0]["stage"], logs[0]["place"]) == ("rows", keys[399])
    assert logs[-1]["resumed"]
    assert logs[-1]["files"] == 0
    assert logs[-1]["rows"] == 550
    assert rig.accounts == (0, 0)


async def test_the_cursor_is_not_written_for_every_file(rig: ReconcileRig) -> None:
    for number in range(100):
        rig.place(artifact_key("acc", "proj", "xcode", f"{number:02}00"), b"1")
    await rig.of_this_boot()
    writes = 0
    really_write = rig.database.write

    async def write(function: Callable[..., Any]) -> Any:
        nonlocal writes
        writes += "Cursors" in getattr(function, "__qualname__", "")
        return await really_write(function)

    rig.database.write = write  # type: ignore[method-assign]
    await rig.round()
    assert writes == 2  # after the files, and at the end


# --- errors ------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_read_is_left(rig: ReconcileRig) -> None:
    await rig.store(b"12345")
    other = "acc/proj/xcode/zz/zz/zzzz"
    rig.place(other, b"123")
    await rig.of_this_boot()
    with fault("pread", errno.EIO), capture_logs() as logs:
        assert await rig.round() == {}
    assert logs[-1]["errors"] == 2
    (line,) = (line for line in logs if line["event"] == "reconcile_failed")  # of each kind once
    assert "Input/output" in line["error"]
    assert await rig.round() == {"adopted": 1, "agrees": 1}


async def test_a_directory_that_cannot_be_read_is_left(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    really_scan = os.scandir

    def scan(path: Path) -> object:
        if path == rig.path().parent:
            raise OSError(errno.EIO, "broken")
        return really_scan(path)

    monkeypatch.setattr("undercroft.storage.tree.os.scandir", scan)
    with capture_logs() as logs:
        assert await rig.round() == {}
    assert (logs[-1]["errors"], logs[-1]["files"]) == (1, 0)
    monkeypatch.undo()
    assert await rig.round() == {"adopted": 1}


async def test_a_full_buffer_leaves_the_file_for_later(open_rig: OpenRig) -> None:
    settings = BufferSettings(flush_interval_ms=3_600_000, max_pending_rows=1, enqueue_timeout_ms=0)
    rig = await open_rig(ack="buffered", settings=settings)
    rig.place(KEY, b"12345")
    await rig.of_this_boot()
    rig.table.shut_gate()
    await rig.store(b"1", key="acc/proj/xcode/zz/zz/zzzz")
    with capture_logs() as logs:
        round_ = asyncio.create_task(rig.round(flush=False))
        await rig.telemetry.wait_for(events.REJECTED)
        rig.table.open_gate()  # the writer has the cursor to save
        assert "adopted" not in await round_
    assert BufferFullError.__name__ in logs[1]["error"]
    assert rig.accounts == (1, 0)
    assert await rig.round() == {"adopted": 1, "agrees": 1}


async def test_a_database_that_fails_for_one_row_is_given_a_pause(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    at = FakeTime()
    reconcile = rig.reconcile(at)

    def fail(_key: str) -> None:
        raise apsw.BusyError("locked")

    monkeypatch.setattr(rig.artifacts, "find", fail)
    assert await reconcile.run_round()
    assert at.slept.count(1.0) == 2  # for the file and for the row
    monkeypatch.undo()
    assert await rig.round() == {"agrees": 1}


async def test_a_round_that_the_database_stops_is_taken_up_again(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"12345")
    really_read = Database.read

    async def read(database: Database, function: Callable[..., Any]) -> Any:
        if "_keys" in repr(function):
            raise apsw.BusyError("locked")
        return await really_read(database, function)

    monkeypatch.setattr(Database, "read", read)
    with capture_logs() as logs:
        assert not await rig.reconcile().run_round()
    assert logs[-1]["event"] == "reconcile_failed"
    assert rig.telemetry.count(events.RECONCILE_ROUND) == 0
    monkeypatch.undo()
    with capture_logs() as logs:
        assert await rig.round() == {"agrees": 1}
    assert (logs[-1]["resumed"], logs[-1]["files"]) == (True, 0)


async def test_a_boot_that_cannot_be_remembered_costs_no_file(rig: ReconcileRig) -> None:
    rig.place(KEY, b"12345")
    lock = apsw.Connection(str(rig.database.path))
    try:
        lock.execute("BEGIN IMMEDIATE")
        assert not await rig.reconcile().run_round()
        lock.execute("ROLLBACK")
    finally:
        lock.close()
    assert artifact_files(rig.folder) == [KEY]


# --- round after round -------------------------------------------------------------------------------


class Rounds(FakeTime):
    """Ends `run` by what it raises after some pauses."""

    def __init__(self, pauses: int) -> None:
        super().__init__()
        self._left = pauses

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if seconds >= 1:
            self._left -= 1
            if not self._left:
                raise Stop


@pytest.mark.parametrize(("pause_ms", "pause_s"), [(0, 1.0), (3_600_000, 3_600.0)])
async def test_rounds_and_pauses(rig: ReconcileRig, pause_ms: int, pause_s: float) -> None:
    await rig.store(b"12345")
    at = Rounds(3)
    with pytest.raises(Stop):
        await rig.reconcile(at, pause_ms=pause_ms).run()
    assert [seconds for seconds in at.slept if seconds] == [pause_s] * 3
    assert rig.telemetry.count(events.RECONCILE_ROUND) == 3


async def test_a_round_that_was_resumed_is_followed_by_a_whole_one(rig: ReconcileRig) -> None:
    """An hour of pause would be an hour of misses for what the crash between the two left without rows."""
    await rig.store(b"12345")
    await stopped_after(rig, 1)
    at = Rounds(2)
    with pytest.raises(Stop):
        await rig.reconcile(at, pause_ms=3_600_000).run()
    assert [seconds for seconds in at.slept if seconds] == [10.0, 3_600.0]
    assert rig.telemetry.count(events.RECONCILE_ROUND) == 2


async def test_a_failed_round_waits_no_longer_than_it_must(
    rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_database: Database, _function: Callable[..., Any]) -> Any:
        raise apsw.BusyError("locked")

    monkeypatch.setattr(Database, "read", read)
    for pause_ms, pause_s in ((3_600_000, 10.0), (0, 1.0)):
        at = Rounds(2)
        with pytest.raises(Stop):
            await rig.reconcile(at, pause_ms=pause_ms).run()
        assert [seconds for seconds in at.slept if seconds] == [pause_s] * 2
    assert rig.telemetry.count(events.RECONCILE_ROUND) == 0


async def test_it_ends_when_the_node_closes_its_parts(rig: ReconcileRig) -> None:
    await rig.store(b"12345")
    rig.place("acc/proj/xcode/zz/zz/zzzz", b"1")
    await rig.of_this_boot()
    await rig.buffer.close()
    await rig.reconcile().run()
    await rig.database.close()
    await rig.reconcile().run()
    with pytest.raises(ClosedError):
        await rig.reconcile().run_round()


async def test_it_can_be_cancelled_anywhere(rig: ReconcileRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.place(KEY, b"x" * 100_000)
    await rig.of_this_boot()
    for owner, name in ((CheckedFile, "open"), (CheckedFile, "hash_piece"), (CheckedFile, "is_still_there")):
        gate = StaticGate(monkeypatch, owner, name)
        running = asyncio.create_task(rig.reconcile().run())
        await gate.arrived()
        asyncio.get_running_loop().call_later(0.02, gate.open)
        await cancelled(running)
        monkeypatch.undo()
        assert open_files(rig.disk.artifacts) == []
    assert rig.accounts == (0, 0)
    assert await rig.round() == {"adopted": 1}


class StaticGate(Gate):
    """A gate in front of a method of a class."""

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return lambda *args: self(instance, *args)


async def test_a_long_round_tells_how_far_it_is(rig: ReconcileRig) -> None:
    for number in range(100):
        rig.place(artifact_key("acc", "proj", "xcode", f"{number:02}00"), b"1")
    await rig.of_this_boot()
    with capture_logs() as logs:
        await rig.round(files_per_second=1)
    lines = [line for line in logs if line["event"] == "reconcile_goes_on"]
    seconds = [line["seconds"] for line in lines]
    assert len(lines) >= 3
    assert min(later - sooner for sooner, later in itertools.pairwise(seconds)) >= 60
    assert logs[-1]["event"] == "reconcile_round"
    (round_,) = rig.telemetry.of(events.RECONCILE_ROUND)
    assert round_.measurements["duration_seconds"] == pytest.approx(logs[-1]["seconds"], abs=0.1)


# --- next to work ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ack", ["committed", "buffered"])
async def test_rounds_at_full_speed_next_to_writers(open_rig: OpenRig, ack: str) -> None:
    """Each key has one writer, who knows what must be there."""
    rig = await open_rig(ack=ack, settings=BufferSettings(flush_interval_ms=2), uploads=True)
    await rig.of_this_boot()
    rounds = asyncio.create_task(go_round(rig))
    expected = await asyncio.gather(*(write(rig, number) for number in range(8)))
    await cancelled(rounds)
    await rig.artifacts.flush()
    for contents in expected:
        for key, content in contents.items():
            assert await rig.content(key) == content, key
    assert files_under(rig.folder / "quarantine") == []
    await rig.artifacts.flush()
    rows = rig.rows()
    assert rig.capacity.used == sum(size for size, _ in rows.values())
    kept = {key: content for contents in expected for key, content in contents.items() if content is not None}
    assert rows == {key: (len(content), sha256(content)) for key, content in kept.items()}
    assert artifact_files(rig.folder) == sorted(kept)
    found = rig.found()
    assert found.get("damaged", 0) == found.get("removed", 0) == 0


async def go_round(rig: ReconcileRig) -> None:
    while True:
        assert await rig.reconcile().run_round()


async def write(rig: ReconcileRig, writer: int) -> dict[str, bytes | None]:
    """Stores, replaces and evicts; answers what is to be found afterwards."""
    keys = [artifact_key("acc", "proj", "ccache", f"{number}ab{writer}") for number in range(5)]
    contents: dict[str, bytes | None] = dict.fromkeys(keys)
    for step in itertools.count():
        if step >= 100 and rig.telemetry.count(events.RECONCILE_ROUND) >= 3:
            break
        key = keys[step % 5]
        if step % 7 == 6:
            await rig.artifacts.evict(key)
            contents[key] = None
            continue
        data = f"{writer} {step} ".encode() * (step % 100 * 40 + 1)
        replace = step % 3 > 0
        stored = await rig.store(data, key=key, replace=replace)
        if stored is not Stored.EXISTS:
            contents[key] = data
        assert await rig.content(key) == contents[key]
    return contents
