"""The service of transfers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.buffers.s3_transfers import S3TransfersBuffer, TransferInsert
from undercroft.database import Database
from undercroft.database.schema import NODE
from undercroft.s3.transfers import S3Transfers

KEYS = [f"acc/proj/xcode/ab/cd/abcd{number}" for number in range(5)]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "node.sqlite", NODE)
    opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def transfers(database: Database) -> AsyncIterator[S3Transfers]:
    settings = BufferSettings(flush_interval_ms=3_600_000)
    telemetry = RecordedEvents()
    buffer = SQLiteBuffer(S3TransfersBuffer(), database, telemetry, settings)
    await buffer.open()
    runner = asyncio.create_task(buffer.run())
    yield S3Transfers(database, buffer, telemetry)
    await buffer.close()
    runner.cancel()
    with suppress(asyncio.CancelledError):
        await runner


def keys(found: list[TransferInsert]) -> list[str]:
    return [transfer.key for transfer in found]


async def test_pending_in_the_order_of_arrival(transfers: S3Transfers) -> None:
    for key in reversed(KEYS):
        await transfers.enqueue_upload(key)
    assert keys(await transfers.pending("upload", 10)) == KEYS[::-1]
    assert keys(await transfers.pending("upload", 2)) == KEYS[:2:-1]
    assert await transfers.pending("download", 10) == []


async def test_what_is_known_of_a_transfer(transfers: S3Transfers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.s3.transfers.now_us", lambda: 7)
    await transfers.enqueue_download(KEYS[0])
    (found,) = await transfers.pending("download", 10)
    assert found == TransferInsert(found.id, "download", "acc", "proj", "xcode", KEYS[0], 7)
    assert found.id[14] == "7"  # UUIDv7: sorted by time


async def test_queued_once_however_often_it_is_asked_for(transfers: S3Transfers) -> None:
    for _ in range(3):
        await transfers.enqueue_upload(KEYS[0])
    assert len(await transfers.pending("upload", 10)) == 1
    await transfers.enqueue_upload(KEYS[0])  # now against the table
    await transfers.enqueue_download(KEYS[0])  # and the other way round
    assert len(await transfers.pending("upload", 10)) == 1
    assert await transfers.count() == {"upload": 1, "download": 1}


async def test_committed(transfers: S3Transfers) -> None:
    ticket = await transfers.enqueue_upload(KEYS[0])
    assert await transfers.count() == {}
    await transfers.committed(ticket)
    assert await transfers.count() == {"upload": 1}


async def test_count_stays_as_it_was_while_the_database_fails(
    transfers: S3Transfers,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fail(*_: object) -> None:
        raise apsw.IOError("gone")

    await transfers.committed(await transfers.enqueue_upload(KEYS[0]))
    assert await transfers.count() == {"upload": 1}
    with monkeypatch.context() as broken:
        broken.setattr(database, "read", fail)
        for _ in range(2):
            assert await transfers.count() == {"upload": 1}
    assert capsys.readouterr().out.count("transfers_not_counted") == 1
    await transfers.committed(await transfers.enqueue_download(KEYS[0]))
    assert await transfers.count() == {"upload": 1, "download": 1}


async def test_delete(transfers: S3Transfers) -> None:
    for key in KEYS[:3]:
        await transfers.enqueue_upload(key)
    found = await transfers.pending("upload", 10)
    await transfers.delete([found[0].id, found[2].id, "no such id"])
    assert keys(await transfers.pending("upload", 10)) == [KEYS[1]]


async def test_claimed_transfer_is_not_pending_and_may_be_queued_again(
    transfers: S3Transfers, database: Database
) -> None:
    await transfers.enqueue_upload(KEYS[0])
    await transfers.flush()
    await database.write(
        lambda connection: connection.execute("UPDATE s3_transfers SET claimed_at = 1").fetchall()
    )
    assert await transfers.pending("upload", 10) == []
    await transfers.enqueue_upload(KEYS[0])
    assert keys(await transfers.pending("upload", 10)) == [KEYS[0]]
    assert await transfers.count() == {"upload": 2}
