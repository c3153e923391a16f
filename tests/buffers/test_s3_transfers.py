"""The rules of the table of transfers."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import apsw
import pytest
import uuid_utils

from undercroft.buffers.s3_transfers import (
    DELETES,
    INSERT_BYTES,
    INSERTS,
    S3TransfersBuffer,
    S3TransfersState,
    TransferDelete,
    TransferEvent,
    TransferInsert,
    TransferType,
)

from .drivers import S3Transfers
from .rig import Rig

TABLE = S3TransfersBuffer()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(S3Transfers(), tmp_path).open()
    yield rig
    await rig.crash()


def insert(name: str, key: str = "k", kind: TransferType = "upload") -> TransferInsert:
    return TransferInsert(name, kind, "acme", "app", "xcode", key, 1)


def state_after(*events: TransferEvent) -> S3TransfersState:
    state = TABLE.init_state()
    for event in events:
        TABLE.handle_event(state, event)
    return state


async def flushed(rig: Rig, *events: TransferEvent) -> list[str]:
    """The ids in the table after these events."""
    for event in events:
        rig.buffer.enqueue_nowait(event)
    await rig.buffer.flush()
    return await ids(rig)


async def ids(rig: Rig) -> list[str]:
    def select(connection: apsw.Connection) -> list[str]:
        return [str(row[0]) for row in connection.execute("SELECT id FROM s3_transfers ORDER BY id")]

    return await rig.database.read(select)


async def claim(rig: Rig, name: str) -> None:
    sql = "UPDATE s3_transfers SET claimed_at = 1 WHERE id = ?"
    await rig.database.write(lambda connection: connection.execute(sql, (name,)).fetchall())


DELETE, OVERTAKEN = insert("3", kind="delete"), TransferDelete("", "k")
I1, I2, D1, D2 = insert("1"), insert("2"), TransferDelete("1"), TransferDelete("2")


@pytest.mark.parametrize(
    ("events", "inserts", "deletes"),
    [
        ([I1, I2], [I1], []),  # de-duplicated by type and key
        ([I1, insert("2", kind="download")], [I1, insert("2", kind="download")], []),
        ([I1, insert("2", "other")], [I1, insert("2", "other")], []),
        ([I1, D1], [], [D1]),
        ([D1, D1], [], [D1]),  # idempotent
        ([I1, D1, I2], [I2], [D1]),  # queued again after it was done: not lost
        ([I1, D2], [I1], [D2]),  # a delete is about its id, not its key
        ([I1, D1, I2, D2], [], [D1, D2]),
        ([DELETE, OVERTAKEN], [], [OVERTAKEN]),
        ([DELETE, OVERTAKEN, I1], [I1], [OVERTAKEN]),
        ([OVERTAKEN, DELETE], [DELETE], [OVERTAKEN]),  # deleted again after that
    ],
)
def test_events_merge(events: list[TransferEvent], inserts: list[object], deletes: list[object]) -> None:
    state = state_after(*events)
    assert list(state.inserts.values()) == inserts
    assert list(state.deletes.values()) == deletes
    assert TABLE.queue_stats(state).rows == len(inserts) + len(deletes)


def test_deletes_are_written_before_inserts() -> None:
    batches, new = TABLE.flush_batches(state_after(I1, D2), 10)
    assert batches == [(DELETES, [D2]), (INSERTS, [I1])]
    assert TABLE.queue_empty(new)


def test_batches_are_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.buffers.bufferable.BATCH_BYTES", 2 * INSERT_BYTES)
    state = state_after(
        *(insert(str(n), str(n)) for n in range(3)), *(TransferDelete(f"d{n}") for n in range(3))
    )
    assert [len(batch.entries) for batch in TABLE.flush_batches(state, 100)[0]] == [3, 2, 1]


def test_pending_by_type_and_key_or_by_id() -> None:
    state = state_after(I1, D2)
    assert TABLE.pending(state, ("upload", "k")) == I1
    assert TABLE.pending(state, ("download", "k")) is None
    assert TABLE.pending(state, "2") == D2
    assert TABLE.pending(state, "1") is None


def test_nothing_may_be_shed() -> None:
    assert not TABLE.sheddable(I1)
    assert not TABLE.sheddable(D1)


async def test_all_columns_arrive(rig: Rig) -> None:
    name = str(uuid_utils.uuid7())
    await flushed(rig, TransferInsert(name, "download", "acme", "app", "gradle", "acme/app/gradle/x", 42))
    columns = "id, type, account_handle, project_handle, artifact_type, key, inserted_at, claimed_at"
    found = rig.database.find(f"SELECT {columns} FROM s3_transfers")
    assert found == (name, "download", "acme", "app", "gradle", "acme/app/gradle/x", 42, None)
    assert UUID(found[0]).version == 7


async def test_a_row_that_is_queued_already_stays(rig: Rig) -> None:
    await flushed(rig, I1)
    assert await flushed(rig, I2) == ["1"]
    assert await flushed(rig, insert("3", kind="download")) == ["1", "3"]


async def test_what_is_queued_while_its_row_is_in_work_is_not_lost(rig: Rig) -> None:
    await flushed(rig, I1)
    await claim(rig, "1")
    assert await flushed(rig, I2) == ["1", "2"]
    assert await flushed(rig, insert("3")) == ["1", "2"]  # and is itself queued only once
    assert await flushed(rig, D1) == ["2"]


async def test_done_and_queued_again_in_one_flush(rig: Rig) -> None:
    await flushed(rig, I1)
    assert await flushed(rig, I2, D1) == ["2"]
    assert await flushed(rig, D2, insert("3")) == ["3"]


async def test_insert_delete_insert_in_one_flush(rig: Rig) -> None:
    assert await flushed(rig, I1, D1, I2) == ["2"]


async def test_a_delete_that_waits_is_overtaken_by_its_key(rig: Rig) -> None:
    await flushed(rig, DELETE, insert("4", "other", "delete"), I1)
    assert await flushed(rig, OVERTAKEN) == ["1", "4"]


async def test_a_delete_in_work_is_not_overtaken(rig: Rig) -> None:
    await flushed(rig, DELETE)
    await claim(rig, "3")
    assert await flushed(rig, OVERTAKEN, I1) == ["1", "3"]


async def test_a_delete_is_idempotent(rig: Rig) -> None:
    await flushed(rig, I1, insert("2", "other"))
    for _ in range(2):
        assert await flushed(rig, D1) == ["2"]


async def test_an_insert_that_is_written_twice_is_one_row(rig: Rig) -> None:
    await flushed(rig, I1)
    await claim(rig, "1")
    assert await flushed(rig, I1) == ["1"]
