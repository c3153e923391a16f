"""The service of transfers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.locks import lock_of_another_connection
from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.buffers.s3_transfers import S3TransfersBuffer, TransferInsert
from undercroft.database import Database, insisting
from undercroft.database.schema import NODE
from undercroft.database.upkeep import optimize
from undercroft.errors import DatabaseLockedError, DataDirectoryError
from undercroft.s3 import transfers as service
from undercroft.s3.transfers import S3Transfers, Transfer, listed, retry_parked

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


# --- working --------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time, in its only element."""
    now = [1_000_000]
    monkeypatch.setattr("undercroft.s3.transfers.now_us", lambda: now[0])
    return now


async def execute(database: Database, sql: str, *values: "apsw.SQLiteValue") -> list[tuple[Any, ...]]:
    return await database.write(lambda connection: connection.execute(sql, values).fetchall())


def names(claimed: list[Transfer]) -> list[tuple[str, str]]:
    return [(transfer.type, transfer.key) for transfer in claimed]


async def test_claim_takes_downloads_first_then_the_oldest(transfers: S3Transfers) -> None:
    await transfers.enqueue_upload(KEYS[0])
    await transfers.enqueue_delete(KEYS[1])
    await transfers.enqueue_upload(KEYS[2])
    await transfers.enqueue_download(KEYS[3])
    await transfers.enqueue_download(KEYS[4])
    assert names(await transfers.claim(3)) == [
        ("download", KEYS[3]),
        ("download", KEYS[4]),
        ("upload", KEYS[0]),
    ]
    assert names(await transfers.claim(9)) == [("delete", KEYS[1]), ("upload", KEYS[2])]
    assert await transfers.claim(9) == []


async def test_some_are_kept_from_downloads(transfers: S3Transfers) -> None:
    await transfers.enqueue_upload(KEYS[0])
    await transfers.enqueue_delete(KEYS[1])
    for key in KEYS[1:]:
        await transfers.enqueue_download(key)
    assert names(await transfers.claim(2, 1)) == [("upload", KEYS[0]), ("download", KEYS[1])]
    assert names(await transfers.claim(9, 3)) == [("download", key) for key in KEYS[2:]]


async def test_an_upload_overtakes_the_delete_that_waits(transfers: S3Transfers) -> None:
    await transfers.enqueue_delete(KEYS[0])
    await transfers.flush()
    await transfers.enqueue_delete(KEYS[1])
    for key in KEYS[:2]:
        await transfers.enqueue_upload(key)
    await transfers.enqueue_delete(KEYS[2])
    assert names(await transfers.claim(9)) == [
        ("upload", KEYS[0]),
        ("upload", KEYS[1]),
        ("delete", KEYS[2]),
    ]
    assert await transfers.count() == {"upload": 2, "delete": 1}


async def test_a_delete_that_was_queued_after_the_upload_stays(transfers: S3Transfers) -> None:
    await transfers.enqueue_delete(KEYS[0])
    await transfers.enqueue_upload(KEYS[0])
    await transfers.enqueue_delete(KEYS[0])
    await transfers.flush()
    assert await transfers.count() == {"upload": 1, "delete": 1}
    await transfers.enqueue_upload(KEYS[0])
    await transfers.flush()
    assert await transfers.count() == {"upload": 1}


async def test_an_upload_does_not_overtake_the_delete_in_work(transfers: S3Transfers) -> None:
    """Its row keeps the upload waiting until the object is gone."""
    await transfers.enqueue_delete(KEYS[0])
    (claimed,) = await transfers.claim(9)
    await transfers.enqueue_upload(KEYS[0])
    assert await transfers.claim(9) == []
    await transfers.done(claimed)
    assert names(await transfers.claim(9)) == [("upload", KEYS[0])]


@pytest.mark.parametrize("kind", ["upload", "delete"])
async def test_outdates(transfers: S3Transfers, kind: str) -> None:
    await transfers.enqueue_download(KEYS[0])
    assert not transfers.outdates(KEYS[0])
    await getattr(transfers, f"enqueue_{kind}")(KEYS[0])
    assert transfers.outdates(KEYS[0])
    await transfers.flush()
    assert transfers.outdates(KEYS[0])
    await transfers.claim(9)
    assert transfers.outdates(KEYS[0])
    assert not transfers.outdates(KEYS[1])


async def test_one_row_of_a_key_is_in_work_at_a_time(transfers: S3Transfers) -> None:
    await transfers.enqueue_upload(KEYS[0])
    await transfers.enqueue_delete(KEYS[0])
    await transfers.enqueue_download(KEYS[0])
    await transfers.enqueue_upload(KEYS[1])
    first = await transfers.claim(8)
    assert names(first) == [("download", KEYS[0]), ("upload", KEYS[1])]
    assert await transfers.claim(8) == []
    await transfers.done(first[0])
    second = await transfers.claim(8)
    assert names(second) == [("upload", KEYS[0])]
    await transfers.done(second[0])
    assert names(await transfers.claim(8)) == [("delete", KEYS[0])]


async def test_many_rows_of_few_keys_do_not_hide_the_others(transfers: S3Transfers) -> None:
    for key in KEYS[:4]:
        await transfers.enqueue_upload(key)
        await transfers.enqueue_delete(key)
    await transfers.enqueue_upload(KEYS[4])
    assert [key for _, key in names(await transfers.claim(4))] == KEYS[:4]
    assert names(await transfers.claim(4)) == [("upload", KEYS[4])]


async def test_done(transfers: S3Transfers) -> None:
    await transfers.enqueue_upload(KEYS[0])
    (claimed,) = await transfers.claim(1)
    assert claimed.attempts == 0
    await transfers.done(claimed)
    await transfers.flush()
    assert await transfers.count() == {}


async def test_failed_row_waits_for_its_time(transfers: S3Transfers, clock: list[int]) -> None:
    await transfers.enqueue_upload(KEYS[0])
    (claimed,) = await transfers.claim(1)
    assert await transfers.next_attempt_at() is None
    await transfers.failed(claimed, "broken", delay_us=500, park=False)
    assert await transfers.next_attempt_at() == 1_000_500
    clock[0] += 499
    assert await transfers.claim(1) == []
    clock[0] += 1
    (again,) = await transfers.claim(1)
    assert again == Transfer(claimed.id, "upload", KEYS[0], 1)
    assert await transfers.next_attempt_at() is None


async def test_a_time_that_a_wrong_clock_gave_does_not_keep_a_row(
    transfers: S3Transfers, clock: list[int]
) -> None:
    await transfers.enqueue_upload(KEYS[0])
    (claimed,) = await transfers.claim(1)
    clock[0] += 86_400_000_000
    await transfers.failed(claimed, "broken", delay_us=500, park=False)
    clock[0] -= 86_400_000_000
    assert await transfers.claim(1, longest_delay_us=86_400_000_500) == []
    assert names(await transfers.claim(1, longest_delay_us=86_400_000_499)) == [("upload", KEYS[0])]


async def test_what_waits_does_not_stand_in_the_way_of_its_key(
    transfers: S3Transfers, clock: list[int]
) -> None:
    await transfers.enqueue_upload(KEYS[0])
    (claimed,) = await transfers.claim(1)
    await transfers.failed(claimed, "broken", delay_us=500, park=False)
    await transfers.enqueue_delete(KEYS[0])
    assert names(await transfers.claim(1)) == [("delete", KEYS[0])]
    clock[0] += 500
    assert await transfers.claim(1) == []


@pytest.mark.parametrize("how", ["failed", "parked", "released"])
async def test_queued_again_while_in_work_one_row_is_left(
    transfers: S3Transfers, clock: list[int], how: str
) -> None:
    await transfers.enqueue_upload(KEYS[0])
    (claimed,) = await transfers.claim(1)
    await transfers.committed(await transfers.enqueue_upload(KEYS[0]))
    if how == "released":
        await transfers.release([claimed])
    else:
        await transfers.failed(claimed, "broken", delay_us=500, park=how == "parked")
    (again,) = await transfers.claim(9)
    assert (again.key, again.attempts, again.id > claimed.id) == (KEYS[0], 0, True)


async def test_release_all(transfers: S3Transfers) -> None:
    for key in KEYS:
        await transfers.enqueue_upload(key)
    claimed = await transfers.claim(3)
    assert await transfers.release_all() == 3
    assert await transfers.release_all() == 0
    assert await transfers.claim(3) == claimed


async def test_hurry(transfers: S3Transfers, clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SLICE_ROWS", 2)
    for key in KEYS:
        await transfers.enqueue_upload(key)
    claimed = await transfers.claim(5)
    for number, transfer in enumerate(claimed):
        await transfers.failed(transfer, "broken", delay_us=500, park=number == 0)
    assert await transfers.hurry() == 4
    assert await transfers.next_attempt_at() is None
    assert [transfer.attempts for transfer in await transfers.claim(9)] == [1] * 4


async def test_parked_rows_wait_for_a_person(
    transfers: S3Transfers, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SLICE_ROWS", 2)
    for key in KEYS:
        await transfers.enqueue_upload(key)
    for transfer in await transfers.claim(5):
        await transfers.failed(transfer, "broken", delay_us=500, park=True)
    clock[0] += 10**12
    assert await transfers.claim(9) == []
    assert await transfers.next_attempt_at() is None
    await transfers.count()
    assert transfers.parked == 5
    assert await transfers.retry_parked() == 5
    assert [transfer.attempts for transfer in await transfers.claim(9)] == [0] * 5
    assert await transfers.retry_parked() == 0


async def test_listed_parked_ones_first_page_by_page(
    transfers: S3Transfers, database: Database, clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SLICE_ROWS", 2)
    for key in KEYS:
        await transfers.enqueue_upload(key)
    claimed = await transfers.claim(4)
    await transfers.failed(claimed[3], "broken", delay_us=500, park=True)
    await transfers.failed(claimed[1], "slow", delay_us=500, park=False)
    found = [one for page in [page async for page in listed(database)] for one in page]
    assert [(one.key, one.state, one.attempts, one.next_attempt_at, one.last_error) for one in found] == [
        (KEYS[3], "parked", 1, 1_000_500, "broken"),
        (KEYS[0], "in work", 0, 0, None),
        (KEYS[1], "waiting", 1, 1_000_500, "slow"),
        (KEYS[2], "in work", 0, 0, None),
        (KEYS[4], "waiting", 0, 0, None),
    ]


async def test_retry_insists_under_a_lock_but_not_for_ever(
    transfers: S3Transfers, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insisting, "LOCKED_ATTEMPTS", 2)
    with (
        lock_of_another_connection(database.path),
        pytest.raises(DatabaseLockedError, match="another process holds a lock"),
    ):
        await retry_parked(database)
    assert await retry_parked(database) == 0


async def test_retry_goes_on_when_the_lock_is_gone(
    transfers: S3Transfers, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [apsw.BusyError("locked"), apsw.LockedError("locked")]
    write = database.write

    async def refused(function: Any) -> Any:
        if errors:
            raise errors.pop()
        return await write(function)

    await transfers.committed(await transfers.enqueue_upload(KEYS[0]))
    await execute(database, "UPDATE s3_transfers SET parked_at = 1")
    monkeypatch.setattr(database, "write", refused)
    assert await retry_parked(database) == 1


async def test_other_errors_of_the_database_are_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_function: object) -> None:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr(database, "write", full)
    with pytest.raises(DataDirectoryError, match="is full"):
        await retry_parked(database)


PLANS = {
    "READY": "s3_transfers_ready",
    "WAKE": "s3_transfers_waiting",
    "WAKE_ASTRAY": "s3_transfers_waiting",
    "NEXT_ATTEMPT": "s3_transfers_waiting",
    "HURRY": "s3_transfers_waiting",
    "SELECT_CLAIMED": "s3_transfers_claimed",
    "RETRY_PARKED": "s3_transfers_parked",
    "LIST_PARKED": "s3_transfers_parked",
    "IS_QUEUED": "s3_transfers_key",
    "OUTDATES": "s3_transfers_key",
    "DROP_IF_QUEUED_AGAIN": "s3_transfers_unclaimed",
}


@pytest.mark.parametrize("analyzed", [False, True])
async def test_no_statement_walks_through_rows_it_does_not_want(
    transfers: S3Transfers, database: Database, *, analyzed: bool
) -> None:
    for number in range(2_000):
        await transfers.enqueue_upload(f"acc/proj/xcode/ab/cd/{number:064x}")
    await transfers.flush()
    waiting = "UPDATE s3_transfers SET next_attempt_at = 9 WHERE rowid % 2 = 0"
    await execute(database, waiting)
    if analyzed:
        await database.write(optimize)
        await execute(database, "ANALYZE")
    for name, index in PLANS.items():
        sql = getattr(service, name)
        values = (1,) * (3 if "?1" in sql else sql.count("?"))
        plan = [row[3] for row in await execute(database, f"EXPLAIN QUERY PLAN {sql}", *values)]
        steps = [step for step in plan if "SUBQUERY" not in step]
        assert any(index in step for step in steps), (name, plan)
        assert all("INDEX" in step for step in steps), (name, plan)
        assert not any("B-TREE" in step for step in steps), (name, plan)
