"""The worker that moves artifacts to and from the object store, against one in memory and a real one."""

import asyncio
import errno
import gc
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.artifact_rig import ArtifactRig
from tests.support.fake_cleaning import FakeCleaning
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.folders import temporary_files
from tests.support.leaks import open_files
from tests.support.locks import lock_of_another_connection
from tests.support.memory_store import MemoryStore
from tests.support.recorded_events import RecordedEvents
from tests.support.s3_endpoint import S3Endpoint
from tests.support.set_clock import SetClock
from undercroft.errors import BufferFullError, ObjectStoreError
from undercroft.s3 import moves, transfer_worker, transfers
from undercroft.s3.concurrency import DOWN_AFTER
from undercroft.s3.object_names import object_name
from undercroft.s3.object_store import ObjectStore, open_object_store
from undercroft.s3.transfer_worker import TransferWorker
from undercroft.settings_sections import ObjectStoreSection
from undercroft.supervisor import Supervisor
from undercroft.telemetry import events

KEY = "acc/proj/xcode/ab/cd/abcdef"
KEYS = [f"acc/proj/xcode/ab/cd/abcd{number:04}" for number in range(1_000)]
THROTTLED = ObjectStoreError("slow down", throttled=True)
BROKEN = ObjectStoreError("broken")
PATIENCE_S = 30

# Nothing in here waits for a person, and little for the clock.
QUICK: dict[str, Any] = {"retry_base_delay_ms": 1, "retry_max_delay_ms": 20}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Row(NamedTuple):
    type: str
    key: str
    claimed: bool
    parked: bool
    attempts: int
    next_attempt_at: int
    last_error: str | None


class WorkerRig(ArtifactRig):
    """Artifacts with a worker, which `start` starts."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        super().__init__(folder, uploads=True)
        self.store_of_objects = store
        self.clock = SetClock()
        self.cleaning = FakeCleaning()
        self.supervisor = Supervisor()
        self.worker = self.new_worker()

    def new_worker(self, **settings: Any) -> TransferWorker:
        self.worker = TransferWorker(
            self.transfers,
            self.artifacts,
            self.disk,
            self.store_of_objects,
            self.telemetry,
            settings=ObjectStoreSection(**(QUICK | settings)),
            cleaning=self.cleaning,
            clock=self.clock,
            random=lambda: 1.0,
        )
        return self.worker

    def start(self, **settings: Any) -> TransferWorker:
        worker = self.new_worker(**settings)
        self.supervisor.start("transfers", worker.run())
        return worker

    async def stop_worker(self) -> None:
        self.supervisor.expect_end()
        await self.worker.stop()
        await self.supervisor.stop(0)
        self.supervisor = Supervisor()

    async def close(self) -> None:
        await self.stop_worker()
        await super().close()

    async def ended(self, count: int) -> list[tuple[str, str, float]]:
        """Type, result and bytes of the first so many attempts, once they ended."""
        await self.telemetry.wait_for(events.TRANSFER, count)
        return [
            (one.metadata["type"], one.metadata["result"], one.measurements["bytes"])
            for one in self.telemetry.of(events.TRANSFER)[:count]
        ]

    async def transfer_rows(self) -> list[Row]:
        """As another process sees them."""
        await self.transfers.flush()
        connection = apsw.Connection(str(self.database.path))
        try:
            sql = """SELECT type, key, claimed_at IS NOT NULL, parked_at IS NOT NULL, attempts,
                     next_attempt_at, last_error FROM s3_transfers ORDER BY id"""
            return [Row(*row) for row in connection.execute(sql)]
        finally:
            connection.close()

    async def all_rows_gone(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            ended = 0
            while await self.transfer_rows():
                await self.telemetry.wait_for(events.TRANSFER, ended + 1)
                ended = self.telemetry.count(events.TRANSFER)

    async def execute(self, sql: str, *values: Any) -> None:
        await self.database.write(lambda connection: connection.execute(sql, values).fetchall())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def rig(tmp_path: Path, store: MemoryStore) -> AsyncIterator[WorkerRig]:
    opened = WorkerRig(tmp_path, store)
    await opened.open()
    yield opened
    store.open_gate()
    await opened.close()
    assert open_files(tmp_path) == []


async def turns(count: int = 200) -> None:
    """Lets everything that can go on go on, as far as it needs no thread."""
    for _ in range(count):
        await asyncio.sleep(0)


# --- uploads --------------------------------------------------------------------------------------


async def test_upload(rig: WorkerRig, store: MemoryStore) -> None:
    rig.start()
    await rig.store(b"content")
    assert await rig.ended(1) == [("upload", "moved", 7)]
    assert store.objects[KEY].data == b"content"
    assert store.objects[KEY].described.content_sha256 == sha256(b"content")
    assert await rig.transfer_rows() == []


async def test_upload_of_a_file_whose_label_cannot_be_read(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again, without a descriptor left open: `rig` looks for those."""

    def unreadable(_descriptor: int) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(moves, "label_of", unreadable)
    await rig.store(b"content")
    rig.start()
    assert await rig.ended(2) == [("upload", "retried", 0)] * 2
    monkeypatch.undo()
    assert (await rig.ended(3))[2] == ("upload", "moved", 7)
    gc.collect()


async def test_what_is_there_is_not_uploaded_again(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, b"content", sha256(b"content"))
    await rig.store(b"content")
    rig.start()
    assert await rig.ended(1) == [("upload", "skipped", 0)]
    assert store.count("put") == 0
    assert await rig.transfer_rows() == []


@pytest.mark.parametrize(
    ("data", "digest"), [(b"content", None), (b"another", sha256(b"another")), (b"longer one", None)]
)
async def test_other_or_unknown_objects_are_replaced(
    rig: WorkerRig, store: MemoryStore, data: bytes, digest: str | None
) -> None:
    store.keep(KEY, data, digest)
    await rig.store(b"content")
    rig.start()
    assert await rig.ended(1) == [("upload", "moved", 7)]
    assert store.contents() == {KEY: b"content"}


async def lose(rig: WorkerRig, how: str) -> None:
    """The artifact goes before it was uploaded, in one of the ways in which nobody asked for it."""
    if how == "evicted":
        await rig.artifacts.evict(KEY)
    elif how == "without file":
        rig.path().unlink()
    elif how == "too short":
        rig.path().write_bytes(b"ne")
    else:
        rig.path().write_bytes(bytes(len(b"new content")))


LOSSES = ["evicted", "without file", "too short", "damaged"]


@pytest.mark.parametrize("how", LOSSES)
async def test_what_was_lost_before_its_upload_takes_the_older_object_along(
    rig: WorkerRig, store: MemoryStore, how: str
) -> None:
    """The newer bytes were acknowledged: the older ones must not be found any more."""
    store.keep(KEY, b"old", sha256(b"old"))
    await rig.store(b"new content")
    await lose(rig, how)
    rig.start()
    assert await rig.ended(1) == [("upload", "gone", 0)]
    assert store.contents() == {}
    assert store.count("put") == 0
    assert await rig.content() is None
    assert await rig.transfer_rows() == []


@pytest.mark.parametrize("how", LOSSES)
async def test_what_was_lost_before_its_upload_and_was_never_there(
    rig: WorkerRig, store: MemoryStore, how: str
) -> None:
    await rig.store(b"new content")
    await lose(rig, how)
    rig.start()
    assert await rig.ended(1) == [("upload", "gone", 0)]
    assert store.count("delete") == 0


@pytest.mark.parametrize("how", ["without file", "damaged"])
async def test_the_very_object_that_was_to_be_uploaded_stays(
    rig: WorkerRig, store: MemoryStore, how: str
) -> None:
    store.keep(KEY, b"new content", sha256(b"new content"))
    await rig.store(b"new content")
    await lose(rig, how)
    rig.start()
    assert await rig.ended(1) == [("upload", "skipped", 0)]
    assert store.contents() == {KEY: b"new content"}


async def test_older_objects_of_a_cleaned_project_are_left_to_the_cleaning(
    rig: WorkerRig, store: MemoryStore
) -> None:
    store.keep(KEY, b"of another node", sha256(b"of another node"))
    await rig.store(b"content")
    await rig.artifacts.evict(KEY)
    rig.cleaning.prefixes.add("acc/proj/")
    rig.start()
    assert await rig.ended(1) == [("upload", "gone", 0)]
    assert store.asked == []


async def test_an_older_object_that_cannot_be_deleted_keeps_its_row(
    rig: WorkerRig, store: MemoryStore
) -> None:
    store.keep(KEY, b"old", sha256(b"old"))
    store.fail_on("delete", KEY, BROKEN)
    await rig.store(b"new content")
    await rig.artifacts.evict(KEY)
    rig.start()
    assert await rig.ended(1) == [("upload", "retried", 0)]
    assert rig.transfers.outdates(KEY)
    store.heal()
    await rig.all_rows_gone()
    assert store.contents() == {}


async def test_damaged_file_is_set_aside_and_not_uploaded(
    rig: WorkerRig, store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    await rig.store(b"new content")
    await lose(rig, "damaged")
    rig.start()
    assert await rig.ended(1) == [("upload", "gone", 0)]
    assert store.count("put") == 0
    assert rig.artifacts.find(KEY) is None
    assert not rig.path().exists()
    assert "artifact_damaged" in capsys.readouterr().out
    await rig.store(b"new content")
    assert (await rig.ended(2))[1] == ("upload", "moved", 11)
    assert store.contents() == {KEY: b"new content"}


async def test_digest_of_an_old_row_is_computed(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "HASH_BYTES", 3)
    await rig.store(b"content")
    await rig.execute("UPDATE cache_artifacts SET content_sha256 = NULL")
    rig.start()
    await rig.ended(1)
    assert store.objects[KEY].described.content_sha256 == sha256(b"content")


async def test_replaced_while_it_is_uploaded(rig: WorkerRig, store: MemoryStore) -> None:
    store.shut_gate()
    rig.start()
    await rig.store(b"old")
    await store.wait_until_asked(1)
    await rig.store(b"new content", replace=True)
    await rig.transfers.flush()
    await turns()
    assert rig.worker.in_work == 1  # the second row of the key waits for the first
    store.open_gate()
    assert await rig.ended(2) == [("upload", "moved", 3), ("upload", "moved", 11)]
    assert store.objects[KEY].data == b"new content"
    assert store.objects[KEY].described.content_sha256 == sha256(b"new content")
    assert store.most_in_flight == 1
    assert await rig.transfer_rows() == []


async def test_queued_again_while_in_work(rig: WorkerRig, store: MemoryStore) -> None:
    store.shut_gate()
    rig.start()
    await rig.store(b"content")
    await store.wait_until_asked(1)
    for _ in range(3):
        await rig.transfers.enqueue_upload(KEY)
    store.open_gate()
    await rig.transfers.flush()
    assert await rig.ended(2) == [("upload", "moved", 7), ("upload", "skipped", 0)]
    assert await rig.transfer_rows() == []


async def test_a_thousand_uploads(rig: WorkerRig, store: MemoryStore) -> None:
    rig.start(concurrency=8)
    contents = {key: key.encode() for key in KEYS}
    await asyncio.gather(*(rig.store(content, key=key) for key, content in contents.items()))
    await rig.ended(1_000)
    assert store.contents() == contents
    assert store.count("put") == 1_000
    assert store.most_in_flight == 8
    assert await rig.transfer_rows() == []


# --- downloads ------------------------------------------------------------------------------------


async def test_download(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, b"content", sha256(b"content"))
    rig.start()
    await rig.transfers.committed(await rig.transfers.enqueue_download(KEY))
    assert await rig.ended(1) == [("download", "moved", 7)]
    assert await rig.content() == b"content"
    assert rig.rows() == {KEY: (7, sha256(b"content"))}
    assert await rig.transfer_rows() == []  # it is not uploaded to where it came from
    assert all(body.closed for body in store.bodies)


async def test_download_of_what_is_here(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    await rig.execute("DELETE FROM s3_transfers")
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    assert await rig.ended(1) == [("download", "skipped", 0)]
    assert store.asked == []


async def test_download_mends_what_is_missing_or_damaged(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:2]:
        store.keep(key, b"content", sha256(b"content"))
        await rig.store(b"content", key=key)
    rig.path(KEYS[0]).unlink()
    rig.path(KEYS[1]).write_bytes(b"half")
    await rig.execute("DELETE FROM s3_transfers")
    for key in KEYS[:2]:
        await rig.transfers.enqueue_download(key)
    rig.start()
    assert await rig.ended(2) == [("download", "moved", 7)] * 2
    assert [await rig.content(key) for key in KEYS[:2]] == [b"content"] * 2


async def test_download_of_what_the_store_has_not(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    assert await rig.ended(1) == [("download", "gone", 0)]
    assert await rig.transfer_rows() == []
    assert rig.rows() == {}


async def test_what_is_to_be_deleted_is_not_downloaded(rig: WorkerRig, store: MemoryStore) -> None:
    rig.cleaning.prefixes.add("cleaned/")
    for key in (KEY, "cleaned/proj/xcode/ab/cd/abcdef"):
        store.keep(key, b"content")
        await rig.transfers.enqueue_download(key)
    await rig.transfers.enqueue_delete(KEY)
    rig.start(concurrency=1)
    found = await rig.ended(3)
    assert sorted(found) == [("delete", "moved", 0), ("download", "gone", 0), ("download", "gone", 0)]
    assert rig.rows() == {}
    assert KEY not in store.objects


async def test_deleted_while_it_is_downloaded(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, b"content", sha256(b"content"))
    store.shut_gate()
    rig.start()
    await rig.transfers.committed(await rig.transfers.enqueue_download(KEY))
    await store.wait_until_asked(1)
    await rig.artifacts.delete(KEY)
    store.open_gate()
    assert await rig.ended(2) == [("download", "gone", 0), ("delete", "moved", 0)]
    assert await rig.content() is None
    assert store.contents() == {}
    assert await rig.transfer_rows() == []


async def test_cleaned_from_beginning_to_end_while_it_is_downloaded(
    rig: WorkerRig, store: MemoryStore
) -> None:
    store.keep(KEY, b"content", sha256(b"content"))
    store.shut_gate()
    rig.start()
    await rig.transfers.committed(await rig.transfers.enqueue_download(KEY))
    await store.wait_until_asked(1)
    rig.cleaning.requests[KEY] += 1
    store.open_gate()
    assert await rig.ended(1) == [("download", "gone", 0)]
    assert await rig.content() is None
    assert await rig.transfer_rows() == []


async def test_body_that_breaks_off_leaves_nothing(
    rig: WorkerRig, store: MemoryStore, tmp_path: Path
) -> None:
    content = b"content" * 100_000
    store.keep(KEY, content, sha256(content))
    store.breaks_at = 300_000
    await rig.transfers.enqueue_download(KEY)
    rig.start(retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    # It is resumed where it broke off, three times, with nothing more coming.
    assert await rig.ended(1) == [("download", "retried", 0)]
    assert rig.rows() == {}
    assert temporary_files(tmp_path) == []
    store.heal()
    await rig.transfers.hurry()
    rig.transfers.committed_news.set()
    assert (await rig.ended(2))[1] == ("download", "moved", 700_000)
    assert await rig.content() == content


async def test_body_that_was_replaced_while_it_came_is_closed(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep(KEY, b"content" * 100_000)
    store.breaks_at = 300_000
    really_get = store.get

    async def get(key: str, start: int = 0) -> Any:
        if start:
            store.heal()
            store.keep(KEY, b"another" * 100_000)
        return await really_get(key, start)

    monkeypatch.setattr(store, "get", get)
    await rig.transfers.enqueue_download(KEY)
    rig.start(retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    assert await rig.ended(1) == [("download", "retried", 0)]
    assert [body.closed for body in store.bodies] == [True, True]


async def test_download_without_room_is_tried_again(rig: WorkerRig, store: MemoryStore) -> None:
    rig.capacity.books.published(99_999_999, replaced=0)
    store.keep(KEY, b"content")
    await rig.transfers.enqueue_download(KEY)
    rig.start(max_attempts=2)
    assert await rig.ended(3) == [("download", "retried", 0)] * 3
    rig.capacity.books.forgot(99_999_999, removed=True)
    await rig.all_rows_gone()
    assert await rig.content() == b"content"


async def test_download_that_can_never_fit_is_parked(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, bytes(1_000))
    rig.capacity._limit_bytes = 100
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    assert await rig.ended(1) == [("download", "parked", 0)]
    (row,) = await rig.transfer_rows()
    assert (row.parked, row.claimed) == (True, False)
    assert "can never fit" in (row.last_error or "")


async def test_object_with_a_wrong_digest_stays_and_the_next_upload_replaces_it(
    rig: WorkerRig, store: MemoryStore
) -> None:
    """By size and digest it would be taken for the right one, and the upload be skipped."""
    store.keep(KEY, b"damaged", sha256(b"content"))
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    results = [result for _, result, _ in await rig.ended(3)]
    assert results == ["retried", "retried", "gone"]
    assert rig.rows() == {}
    assert (store.contents(), store.count("delete")) == ({KEY: b"damaged"}, 0)
    await rig.store(b"content")
    assert (await rig.ended(4))[3] == ("upload", "moved", 7)
    assert store.contents() == {KEY: b"content"}
    await rig.store(b"content", replace=True)
    assert (await rig.ended(5))[4] == ("upload", "skipped", 0)


async def test_object_that_came_right_in_the_end_is_not_replaced(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, b"content", sha256(b"content"))
    rig.transfers.wrong_objects.found(KEY)
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    assert await rig.ended(1) == [("download", "moved", 7)]
    await rig.transfers.enqueue_upload(KEY)
    assert (await rig.ended(2))[1] == ("upload", "skipped", 0)


async def test_object_of_what_was_stored_meanwhile_is_not_deleted(rig: WorkerRig, store: MemoryStore) -> None:
    store.keep(KEY, b"damaged", sha256(b"content"))
    store.shut_gate()
    await rig.transfers.enqueue_download(KEY)
    rig.start()
    await store.wait_until_asked(1)
    await rig.store(b"other content")
    store.open_gate()
    await rig.all_rows_gone()
    assert store.contents() == {KEY: b"other content"}
    assert store.count("delete") == 0


async def test_download_does_not_bring_back_what_a_pending_upload_replaces(
    rig: WorkerRig, store: MemoryStore
) -> None:
    """As when reconcile finds the new artifact damaged before it was uploaded."""
    store.keep(KEY, b"old", sha256(b"old"))
    await rig.store(b"new content")
    await rig.artifacts.evict(KEY)
    await rig.transfers.enqueue_download(KEY)
    rig.start(concurrency=1)
    assert sorted(await rig.ended(2)) == [("download", "gone", 0), ("upload", "gone", 0)]
    assert await rig.content() is None
    assert store.contents() == {}


# --- deletes --------------------------------------------------------------------------------------


async def test_delete(rig: WorkerRig, store: MemoryStore) -> None:
    rig.start()
    await rig.store(b"content")
    await rig.ended(1)
    await rig.artifacts.delete(KEY)
    assert (await rig.ended(2))[1] == ("delete", "moved", 0)
    assert store.contents() == {}
    # It is queued once more when the file is gone.
    await rig.all_rows_gone()


async def test_what_was_stored_again_is_not_deleted(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    await rig.artifacts.delete(KEY)
    await rig.store(b"again")
    rig.start()
    assert await rig.ended(1) == [("upload", "moved", 5)]  # which replaces what was to be deleted
    assert store.contents() == {KEY: b"again"}
    assert await rig.transfer_rows() == []


@pytest.mark.parametrize("parked", [False, True])
async def test_a_delete_that_failed_does_not_remove_what_was_stored_since(
    rig: WorkerRig, store: MemoryStore, *, parked: bool
) -> None:
    store.keep(KEY, b"old", sha256(b"old"))
    store.fail_on("delete", KEY, BROKEN)
    await rig.transfers.enqueue_delete(KEY)
    rig.start(retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    assert await rig.ended(1) == [("delete", "retried", 0)]
    if parked:
        await rig.execute("UPDATE s3_transfers SET parked_at = 1")
    store.heal()
    await rig.store(b"new content")
    assert (await rig.ended(2))[1] == ("upload", "moved", 11)
    assert await rig.transfer_rows() == []
    assert store.contents() == {KEY: b"new content"}


async def test_a_delete_that_fails_after_the_artifact_was_stored_again_is_dropped(
    rig: WorkerRig, store: MemoryStore
) -> None:
    store.shut_gate()
    store.fail_on("delete", KEY, BROKEN)
    await rig.transfers.enqueue_delete(KEY)
    rig.start(retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    await rig.transfers.flush()
    await store.wait_until_asked(1)
    await rig.store(b"new content")
    assert [row.type for row in await rig.transfer_rows()] == ["delete", "upload"]
    store.open_gate()
    assert await rig.ended(2) == [("delete", "retried", 0), ("upload", "moved", 11)]
    assert await rig.transfer_rows() == []
    assert store.contents() == {KEY: b"new content"}


async def test_delete_of_what_has_a_row_and_no_file(rig: WorkerRig, store: MemoryStore) -> None:
    """As SIGKILL leaves it, between the commit of the transfer and that of the row."""
    await rig.store(b"content")
    rig.path().unlink()
    await rig.execute("DELETE FROM s3_transfers")
    store.keep(KEY, b"content")
    await rig.transfers.enqueue_delete(KEY)
    rig.start()
    assert await rig.ended(1) == [("delete", "moved", 0)]
    assert store.contents() == {}


async def test_delete_that_is_claimed_before_the_artifact_is_gone(rig: WorkerRig, store: MemoryStore) -> None:
    rig.start()
    await rig.store(b"content")
    await rig.ended(1)
    async with rig.artifacts.alone(KEY):
        deleting = asyncio.create_task(rig.artifacts.delete(KEY))
        await turns(1)
        await rig.transfers.flush()
        await _in_work(rig)
        await turns()
    await deleting
    assert (await rig.ended(2))[1] == ("delete", "moved", 0)
    assert store.contents() == {}


async def _in_work(rig: WorkerRig) -> None:
    """Returns when a transfer is in work."""
    async with asyncio.timeout(PATIENCE_S):
        while not rig.worker.in_work:
            await rig.transfers.next_attempt_at()  # a turn of the database's thread


async def test_delete_waits_for_the_upload_in_work(rig: WorkerRig, store: MemoryStore) -> None:
    store.shut_gate()
    rig.start()
    await rig.store(b"content")
    await store.wait_until_asked(1)
    await rig.artifacts.delete(KEY)
    await turns()
    assert store.asked == [("head", KEY)]
    store.open_gate()
    await rig.ended(2)
    assert store.asked == [("head", KEY), ("put", KEY), ("delete", KEY)]
    assert store.contents() == {}


# --- order and number -----------------------------------------------------------------------------


async def test_downloads_first(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:3]:
        await rig.store(b"content", key=key)
    await rig.transfers.enqueue_download(KEYS[3])
    await rig.transfers.flush()
    rig.start(concurrency=1)
    await rig.ended(4)
    firsts = list(dict.fromkeys(key for _, key in store.asked))
    assert firsts == [KEYS[3], *KEYS[:3]]


@pytest.mark.parametrize("concurrency", [1, 2, 8])
async def test_downloads_leave_room_for_others(rig: WorkerRig, store: MemoryStore, concurrency: int) -> None:
    for key in KEYS[:3]:
        await rig.store(b"content", key=key)
    for key in KEYS[100:200]:
        await rig.transfers.enqueue_download(key)
    await rig.transfers.flush()
    rig.start(concurrency=concurrency)
    await rig.ended(40)
    assert store.count("put") == 3


async def test_downloads_take_what_others_do_not_need(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:20]:
        await rig.transfers.enqueue_download(key)
    await rig.transfers.flush()
    store.shut_gate()
    rig.start(concurrency=8)
    await store.wait_until_asked(8)
    assert store.in_flight == 8


async def test_throttling_halves_and_success_recovers(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:40]:
        await rig.store(b"content", key=key)
    store.fail_next(THROTTLED)
    store.shut_gate()
    rig.start(concurrency=8)
    await store.wait_until_asked(8)
    assert (rig.worker.in_work, rig.worker.limit) == (8, 8)
    store.fail_next(*[THROTTLED] * 7)
    store.open_gate()
    await rig.ended(8)
    assert rig.worker.limit == 4  # once for all eight
    await rig.all_rows_gone()
    assert rig.worker.limit == 8
    assert len(store.contents()) == 40


async def test_a_dead_store_is_probed_by_one_at_a_time(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:30]:
        await rig.store(b"content", key=key)
    store.fail_always(BROKEN)
    rig.start(concurrency=8, max_attempts=2)
    await rig.ended(8)
    assert rig.worker.limit == 1
    store.most_in_flight = 0
    attempted = 8
    for _ in range(20):
        await turns()
        assert len(store.asked) == attempted  # it pauses
        rig.clock.now += 10
        rig.transfers.committed_news.set()
        attempted += 1
        await rig.ended(attempted)
    assert store.most_in_flight == 1
    rows = await rig.transfer_rows()
    assert not any(row.parked for row in rows)  # for all that some failed more than twice
    assert len(rows) == 30


async def test_after_an_outage_all_go_at_once(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:DOWN_AFTER]:
        await rig.store(b"content", key=key)
    store.fail_always(BROKEN)
    rig.start(retry_base_delay_ms=3_600_000, retry_max_delay_ms=3_600_000)
    await rig.ended(DOWN_AFTER)
    assert rig.worker.limit == 1
    store.heal()
    rig.clock.now += 10
    await rig.store(b"content", key=KEYS[9])  # finds out that it is back
    await rig.ended(2 * DOWN_AFTER + 1)
    assert len(store.contents()) == DOWN_AFTER + 1
    assert rig.worker.limit == 8


async def test_an_outage_is_one_line_and_not_one_for_each_attempt(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:20]:
        await rig.store(b"content", key=key)
    store.fail_always(BROKEN)
    with capture_logs() as logs:
        rig.start()
        await rig.ended(8)
        for attempted in range(9, 20):
            rig.clock.now += 10
            rig.transfers.committed_news.set()
            await rig.ended(attempted)
        store.heal()
        rig.clock.now += 10
        await rig.all_rows_gone()
    told = [(entry["event"], entry["log_level"]) for entry in logs]
    # The first ones may be told before it is known.
    assert told.count(("transfer_retried", "info")) < DOWN_AFTER
    assert sum(event == "transfer_retried" for event, _ in told) == 19
    outage = [event for event, _ in told if event.startswith("object_store")]
    assert outage == ["object_store_down", "object_store_back"]


async def test_a_failure_without_an_outage_is_told(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    store.fail_next(BROKEN)
    with capture_logs() as logs:
        rig.start()
        await rig.all_rows_gone()
    (retried,) = [entry for entry in logs if entry["event"] == "transfer_retried"]
    assert (retried["log_level"], retried["key"], retried["error"]) == ("info", KEY, "broken")


# --- failures -------------------------------------------------------------------------------------


async def test_delays_double_up_to_the_longest(rig: WorkerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.new_worker(retry_base_delay_ms=500, retry_max_delay_ms=300_000)
    delays = [rig.worker._delay_us(attempts) // 1_000 for attempts in (0, 1, 2, 9, 10, 11, 10_000)]
    assert delays == [500, 1_000, 2_000, 256_000, 300_000, 300_000, 300_000]
    rig.worker._random = lambda: 0.0
    assert rig.worker._delay_us(1) == 500_000


async def test_row_that_failed_waits_and_says_why(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undercroft.s3.transfers.now_us", lambda: 1_000_000)
    await rig.store(b"content")
    store.fail_always(BROKEN)
    rig.start(retry_base_delay_ms=500, retry_max_delay_ms=300_000)
    assert await rig.ended(1) == [("upload", "retried", 0)]
    assert await rig.transfer_rows() == [Row("upload", KEY, False, False, 1, 1_500_000, "broken")]


async def test_tried_again_when_it_is_due(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_worker, "SLOW_POLL_S", 3_600.0)
    await rig.store(b"content")
    store.fail_next(BROKEN, BROKEN)
    rig.start(retry_base_delay_ms=10)
    results = [result for _, result, _ in await rig.ended(3)]
    assert results == ["retried", "retried", "moved"]


async def test_parked_while_others_succeed_until_somebody_retries(
    rig: WorkerRig, store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    rig.start(max_attempts=3, retry_base_delay_ms=100_000, retry_max_delay_ms=100_000)
    await rig.store(b"content", key=KEYS[0])
    await rig.ended(1)
    rig.clock.now += 101  # by now uploads have worked for a while
    store.fail_on("put", KEY, BROKEN)
    await rig.store(b"content")
    results = [(await rig.ended(2))[1][1]]
    for number in (1, 2):
        await rig.store(b"content", key=KEYS[number])
        await rig.ended(2 * number + 1)
        await rig.transfers.hurry()
        rig.transfers.committed_news.set()
        results.append((await rig.ended(2 * number + 2))[-1][1])
    assert results == ["retried", "retried", "parked"]
    (row,) = await rig.transfer_rows()
    assert (row.parked, row.claimed, row.attempts, row.last_error) == (True, False, 3, "broken")
    assert "transfer_parked" in capsys.readouterr().out
    await rig.transfers.count()
    assert rig.transfers.parked == 1
    store.heal()
    assert await rig.transfers.retry_parked() == 1
    rig.transfers.committed_news.set()
    assert (await rig.ended(7))[6] == ("upload", "moved", 7)
    assert await rig.transfer_rows() == []


async def test_a_key_that_always_fails_is_no_outage_and_is_parked(
    rig: WorkerRig, store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """However soon after the start, and however often it fails."""
    rig.start(max_attempts=2)
    store.fail_on("put", KEY, BROKEN)
    await rig.store(b"content")
    await rig.telemetry.wait_for(events.TRANSFER, DOWN_AFTER + 2)
    assert rig.worker.limit == 8
    await rig.store(b"content", key=KEYS[0])
    async with asyncio.timeout(PATIENCE_S):
        ended = 0
        while not any(row.parked for row in await rig.transfer_rows()):
            await rig.telemetry.wait_for(events.TRANSFER, ended := ended + 1)
    log = capsys.readouterr().out
    assert "object_store_down" not in log
    assert log.count("transfer_parked") == 1
    assert [row.key for row in await rig.transfer_rows()] == [KEY]
    assert list(store.contents()) == [KEYS[0]]


async def test_a_name_that_a_real_store_cannot_take(tmp_path: Path, s3_endpoint: S3Endpoint) -> None:
    """Where rclone has a directory it answers 500 to an upload of that name."""
    rig = WorkerRig(tmp_path, open_object_store(s3_endpoint.settings(), RecordedEvents()))
    await rig.open()
    try:
        in_the_way = s3_endpoint.bucket / object_name(KEY) / "sub"
        in_the_way.mkdir(parents=True)
        await rig.store(b"content")
        rig.start(max_attempts=2)
        await rig.telemetry.wait_for(events.TRANSFER, DOWN_AFTER + 1)
        await rig.store(b"content", key=KEYS[0])
        async with asyncio.timeout(PATIENCE_S):
            ended = 0
            while not any(row.parked for row in await rig.transfer_rows()):
                await rig.telemetry.wait_for(events.TRANSFER, ended := ended + 1)
        (listed,) = [page async for page in transfers.listed(rig.database)]
        assert [(row.key, row.state) for row in listed] == [(KEY, "parked")]
        assert "500" in (listed[0].last_error or "")
        in_the_way.rmdir()
        in_the_way.parent.rmdir()
        assert await transfers.retry_parked(rig.database) == 1
        rig.transfers.committed_news.set()
        await rig.all_rows_gone()
        assert s3_endpoint.files()[object_name(KEY)] == b"content"
    finally:
        await rig.close()


async def test_a_store_that_takes_no_uploads_parks_none(rig: WorkerRig, store: MemoryStore) -> None:
    rig.start(max_attempts=3)
    store.fail_on("put", "", BROKEN)
    await rig.store(b"content")
    for number in range(6):  # meanwhile downloads succeed, and uploads answer "not there"
        await rig.telemetry.wait_for(events.TRANSFER, 2 * number + 1)
        rig.clock.now += 1
        store.keep(KEYS[number], b"content")
        await rig.transfers.committed(await rig.transfers.enqueue_download(KEYS[number]))
        await rig.telemetry.wait_for(events.TRANSFER, 2 * number + 2)
    await rig.ended(15)
    assert not any(row.parked for row in await rig.transfer_rows())


async def test_new_bytes_give_a_parked_one_another_chance(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    await rig.execute("UPDATE s3_transfers SET parked_at = 1, attempts = 12")
    rig.start()
    await turns()
    assert store.asked == []
    await rig.store(b"more content", replace=True)
    assert await rig.ended(1) == [("upload", "moved", 12)]


async def test_deadline(rig: WorkerRig, store: MemoryStore, tmp_path: Path) -> None:
    await rig.store(b"content")
    store.shut_gate()
    rig.start(transfer_timeout_ms=20, retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    assert await rig.ended(1) == [("upload", "retried", 0)]
    (row,) = await rig.transfer_rows()
    assert (row.claimed, row.attempts, row.last_error) == (False, 1, f"waited 0.02 s for the upload of {KEY}")
    assert rig.worker.limit == 4
    assert not [file for file in open_files(tmp_path) if "/artifacts/" in file]


async def test_question_without_an_answer(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    await rig.transfers.enqueue_delete(KEYS[0])
    await rig.transfers.enqueue_download(KEYS[1])
    store.shut_gate()
    rig.start(read_timeout_ms=20, retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    assert {result for _, result, _ in await rig.ended(3)} == {"retried"}
    assert [row.attempts for row in await rig.transfer_rows()] == [1, 1, 1]


async def test_a_fault_in_the_code_costs_one_row_an_attempt(
    rig: WorkerRig, store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    store.fail_on("head", KEYS[0], RuntimeError("a bug"))
    for key in KEYS[:3]:
        await rig.store(b"content", key=key)
    rig.start(retry_base_delay_ms=60_000, retry_max_delay_ms=60_000)
    assert sorted(result for _, result, _ in await rig.ended(3)) == ["moved", "moved", "retried"]
    (row,) = await rig.transfer_rows()
    assert (row.key, row.claimed, row.last_error) == (KEYS[0], False, "RuntimeError('a bug')")
    assert rig.worker.in_work == 0
    assert "Traceback" in capsys.readouterr().out


async def test_disk_that_fails_is_no_fault_of_the_store(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_key: str) -> None:
        raise OSError(5, "Input/output error")

    for key in KEYS[:DOWN_AFTER]:
        await rig.store(b"content", key=key)
    with monkeypatch.context() as broken:
        broken.setattr(rig.disk, "open", fail)
        rig.start()
        await rig.ended(DOWN_AFTER)
    assert rig.worker.limit == 8
    await rig.all_rows_gone()
    assert len(store.contents()) == DOWN_AFTER


@pytest.mark.parametrize("method", ["claim", "failed", "done"])
async def test_what_cannot_be_written_now_is_written_later(
    rig: WorkerRig,
    store: MemoryStore,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A full disk, a lock, a full buffer: logged once, and nothing is lost."""
    errors = [apsw.BusyError("locked"), apsw.FullError("full"), BufferFullError("full")]
    method_itself = getattr(rig.transfers, method)

    async def refused(*args: Any, **named: Any) -> Any:
        if errors:
            raise errors.pop()
        return await method_itself(*args, **named)

    monkeypatch.setattr(transfer_worker, "FIRST_DATABASE_PAUSE_S", 0.001)
    await rig.store(b"content")
    monkeypatch.setattr(rig.transfers, method, refused)
    store.fail_next(BROKEN)
    rig.start()
    assert [result for _, result, _ in await rig.ended(2)] == ["retried", "moved"]
    assert errors == []
    assert await rig.transfer_rows() == []
    assert capsys.readouterr().out.count("transfers_not_written") == 1


async def test_locked_database(rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = asyncio.Event()
    failed = rig.transfers.failed

    async def told(*args: Any, **named: Any) -> None:
        try:
            await failed(*args, **named)
        except apsw.BusyError:
            refused.set()
            raise

    monkeypatch.setattr(rig.transfers, "failed", told)
    await rig.store(b"content")
    store.fail_next(BROKEN)
    store.shut_gate()
    rig.start()
    await store.wait_until_asked(1)
    with lock_of_another_connection(rig.database.path):
        store.open_gate()
        async with asyncio.timeout(PATIENCE_S):
            await refused.wait()
        assert rig.worker.in_work == 1
    assert [result for _, result, _ in await rig.ended(2)] == ["retried", "moved"]
    assert await rig.transfer_rows() == []


# --- life -----------------------------------------------------------------------------------------


async def test_idle_worker_asks_once(rig: WorkerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = 0
    claim = rig.transfers.claim

    async def counted(*args: int, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*args, **options)

    monkeypatch.setattr(rig.transfers, "claim", counted)
    rig.start()
    for _ in range(20):
        await rig.transfers.next_attempt_at()  # a turn of the database's thread
        await turns()
    assert claims == 1


async def test_a_row_that_waits_for_another_of_its_key_does_not_make_it_spin(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.shut_gate()
    rig.start()
    await rig.store(b"content")
    await store.wait_until_asked(1)
    await rig.transfers.committed(await rig.transfers.enqueue_upload(KEY))
    claims = 0
    claim = rig.transfers.claim

    async def counted(*args: int, **options: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*args, **options)

    monkeypatch.setattr(rig.transfers, "claim", counted)
    for _ in range(20):
        await rig.transfers.next_attempt_at()
        await turns()
    assert claims <= 1


async def test_rows_of_another_process_are_found(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_worker, "SLOW_POLL_S", 0.01)
    await rig.store(b"content")
    await rig.execute("UPDATE s3_transfers SET parked_at = 1")
    rig.start()
    connection = apsw.Connection(str(rig.database.path))
    connection.execute("UPDATE s3_transfers SET parked_at = NULL")
    connection.close()
    assert await rig.ended(1) == [("upload", "moved", 7)]


async def test_what_a_dead_process_had_in_work_arrives(rig: WorkerRig, store: MemoryStore) -> None:
    for key in KEYS[:20]:
        await rig.store(b"content", key=key)
    claimed = await rig.transfers.claim(8)
    assert len(claimed) == 8
    await rig.transfers.enqueue_upload(claimed[0].key)
    # Three of them had arrived, and died before they could say so.
    for transfer in claimed[:3]:
        store.keep(transfer.key, b"content", sha256(b"content"))
    rig.start()
    found = await rig.ended(20)
    assert [result for _, result, _ in found].count("skipped") == 3
    assert len(store.contents()) == 20
    assert store.count("put") == 17
    assert await rig.transfer_rows() == []


async def test_stop_breaks_off_and_gives_rows_back(
    rig: WorkerRig, store: MemoryStore, tmp_path: Path
) -> None:
    for key in KEYS[:12]:
        await rig.store(b"content", key=key)
    store.keep(KEYS[20], b"content")
    await rig.transfers.enqueue_download(KEYS[20])
    store.shut_gate()
    rig.start(concurrency=8)
    await store.wait_until_asked(8)
    assert sum(row.claimed for row in await rig.transfer_rows()) == 8
    async with asyncio.timeout(1):
        await rig.stop_worker()
        await rig.worker.stop()  # idempotent
    rows = await rig.transfer_rows()
    assert [(row.claimed, row.attempts) for row in rows] == [(False, 0)] * 13
    assert store.in_flight == 0
    assert not [file for file in open_files(tmp_path) if "/artifacts/" in file]
    assert temporary_files(tmp_path) == []
    store.open_gate()
    rig.start()
    await rig.ended(13)
    assert len(store.contents()) == 13


async def test_cancelled_run_gives_rows_back(rig: WorkerRig, store: MemoryStore) -> None:
    await rig.store(b"content")
    store.shut_gate()
    worker = rig.new_worker()
    task = asyncio.create_task(worker.run())
    await store.wait_until_asked(1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert [row.claimed for row in await rig.transfer_rows()] == [False]


async def test_stop_under_a_lock_is_quick(
    rig: WorkerRig, store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    await rig.store(b"content")
    store.shut_gate()
    rig.start()
    await store.wait_until_asked(1)
    with lock_of_another_connection(rig.database.path):
        async with asyncio.timeout(2):
            await rig.stop_worker()
    assert "transfers_stay_claimed" in capsys.readouterr().out
    store.open_gate()
    rig.start()
    assert await rig.ended(1) == [("upload", "moved", 7)]


async def test_worker_ends_with_the_database(rig: WorkerRig, store: MemoryStore) -> None:
    task = asyncio.create_task(rig.new_worker().run())
    await rig.store(b"content")
    await rig.ended(1)
    await rig.transfer_buffer.close()
    rig.transfers.committed_news.set()
    async with asyncio.timeout(PATIENCE_S):
        await task


async def test_in_work_under_a_prefix(rig: WorkerRig, store: MemoryStore) -> None:
    store.shut_gate()
    rig.start()
    await rig.store(b"content")
    await store.wait_until_asked(1)
    assert await rig.worker.in_work_under("acc/other/") == frozenset()
    in_work = await rig.worker.in_work_under("acc/proj/")
    assert [task.done() for task in in_work] == [False]
    store.open_gate()
    await asyncio.wait(in_work, timeout=PATIENCE_S)
    assert store.contents() == {KEY: b"content"}


async def test_a_delay_that_a_wrong_clock_gave_is_cut_short(
    rig: WorkerRig, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.store(b"content")
    (claimed,) = await rig.transfers.claim(1)
    await rig.transfers.failed(claimed, "broken", delay_us=400_000_000, park=False)
    rig.start(retry_max_delay_ms=300_000)
    assert await rig.ended(1) == [("upload", "moved", 7)]


# --- a real endpoint ------------------------------------------------------------------------------

OpenRig = Callable[[str], Awaitable[WorkerRig]]


@pytest.fixture
async def open_rig(s3_endpoint: S3Endpoint, tmp_path: Path) -> AsyncIterator[OpenRig]:
    """Opens one that reaches the endpoint by a URL; its clock is the real one."""
    opened: list[WorkerRig] = []

    async def open_one(url: str) -> WorkerRig:
        settings = s3_endpoint.settings(endpoint=url)
        rig = WorkerRig(tmp_path, open_object_store(settings, RecordedEvents()))
        rig.clock = asyncio.get_running_loop().time  # type: ignore[assignment]
        await rig.open()
        opened.append(rig)
        return rig

    yield open_one
    for rig in opened:
        await rig.close()
    assert open_files(tmp_path) == []


CONTENTS = {key: key.encode() * 1_000 for key in KEYS[:40]} | {KEYS[99]: bytes(range(256)) * 80_000}


async def store_all(rig: WorkerRig) -> None:
    await asyncio.gather(*(rig.store(content, key=key) for key, content in CONTENTS.items()))


def in_bucket(endpoint: S3Endpoint) -> dict[str, bytes]:
    return endpoint.files()


EXPECTED = {object_name(key): content for key, content in CONTENTS.items()}


async def test_uploads_arrive(open_rig: OpenRig, s3_endpoint: S3Endpoint) -> None:
    rig = await open_rig(s3_endpoint.url)
    rig.start()
    await store_all(rig)
    await rig.all_rows_gone()
    assert in_bucket(s3_endpoint) == EXPECTED
    for key in CONTENTS:
        await rig.transfers.enqueue_upload(key)
    rig.telemetry.forget()
    await rig.transfers.flush()
    found = await rig.ended(len(CONTENTS))
    assert {result for _, result, _ in found} == {"skipped"}
    for key in CONTENTS:
        await rig.artifacts.evict(key)
        await rig.transfers.enqueue_download(key)
    await rig.all_rows_gone()
    for key, content in CONTENTS.items():
        assert await rig.content(key) == content
        await rig.artifacts.delete(key)
    await rig.all_rows_gone()
    assert in_bucket(s3_endpoint) == {}


async def test_endpoint_dies_and_comes_back(open_rig: OpenRig, s3_endpoint: S3Endpoint) -> None:
    rig = await open_rig(s3_endpoint.url)
    # More than one, for its return: of 480 uploads at once to new folders rclone answers 3 with status 500.
    rig.start(max_attempts=4)
    await asyncio.to_thread(s3_endpoint.stop)
    await store_all(rig)
    # Eight at once, then the one that is asked for again: five attempts.
    await rig.ended(12)
    rows = await rig.transfer_rows()
    assert len(rows) == len(CONTENTS)
    assert not any(row.parked for row in rows)
    await asyncio.to_thread(s3_endpoint.start)
    await rig.all_rows_gone()
    assert in_bucket(s3_endpoint) == EXPECTED


FAULTS = [
    Fault("reset", only="PUT "),
    Fault("answer", status=429),
    Fault("answer", status=503),
    Fault("stall"),
    Fault("cut"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mode}-{fault.status}")
async def test_uploads_arrive_in_spite_of(open_rig: OpenRig, s3_endpoint: S3Endpoint, fault: Fault) -> None:
    with FaultProxy(s3_endpoint.port) as proxy:
        rig = await open_rig(proxy.url)
        proxy.set(fault)
        rig.start(read_timeout_ms=300, transfer_timeout_ms=2_000, concurrency=4)
        await store_all(rig)
        results = [result for _, result, _ in await rig.ended(4)]
        assert "retried" in results
        proxy.set(Fault())
        await rig.all_rows_gone()
        await rig.stop_worker()
    assert in_bucket(s3_endpoint) == EXPECTED


async def test_refused_connections(open_rig: OpenRig, s3_endpoint: S3Endpoint) -> None:
    with FaultProxy(s3_endpoint.port) as proxy:
        rig = await open_rig(proxy.url)
        proxy.refuse()
        rig.start()
        await store_all(rig)
        await rig.ended(10)
        proxy.accept()
        await rig.all_rows_gone()
        await rig.stop_worker()
    assert in_bucket(s3_endpoint) == EXPECTED


@pytest.mark.parametrize("mode", ["reset", "cut", "stall"])
async def test_half_an_object_is_no_artifact(
    open_rig: OpenRig, s3_endpoint: S3Endpoint, tmp_path: Path, mode: Any
) -> None:
    with FaultProxy(s3_endpoint.port) as proxy:
        rig = await open_rig(proxy.url)
        rig.start(read_timeout_ms=300)
        await store_all(rig)
        await rig.all_rows_gone()
        for key in CONTENTS:
            await rig.artifacts.evict(key)
        rig.telemetry.forget()
        proxy.set(Fault(mode, after=10_000, only="GET "))
        for key in CONTENTS:
            await rig.transfers.enqueue_download(key)
        await rig.transfers.flush()
        results = {result for _, result, _ in await rig.ended(6)}
        assert results == {"retried"}
        assert [await rig.content(key) for key in CONTENTS] == [None] * len(CONTENTS)
        proxy.set(Fault())
        await rig.all_rows_gone()
        assert [await rig.content(key) for key in CONTENTS] == list(CONTENTS.values())
        assert temporary_files(tmp_path) == []
        await rig.stop_worker()
