"""Giving pages back, cutting the WAL, statistics, and finding damage."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import apsw
import pytest

from tests.support.locks import lock_of_another_connection
from undercroft.database import Database, transaction, upkeep
from undercroft.database import connection as connections
from undercroft.database.connection import CHECKPOINT_PAGES, open_connection
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.database.upkeep import integrity_problems, optimize, pages, size_on_disk, vacuum_slice
from undercroft.errors import DatabaseFileError, DatabaseLockedError, DataDirectoryError

PATIENCE_SECONDS = 20
ROWS = 2_000


def fill(connection: apsw.Connection, rows: int = ROWS) -> None:
    sql = (
        "INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at) "
        "VALUES (?, ?, 1, 1, 1)"
    )
    with transaction(connection):
        first = connection.execute("SELECT count(*) FROM key_value_entries").get
        connection.executemany(sql, ((f"k{n}", "x" * 1_000) for n in range(first, first + rows)))


def empty(connection: apsw.Connection) -> None:
    connection.execute("DELETE FROM key_value_entries").fetchall()


@pytest.fixture(params=[2, 8], ids=["two processors", "eight processors"])
async def database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Database]:
    monkeypatch.setattr(connections, "processors", lambda: request.param)
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    database.open()
    await database.write(fill)
    yield database
    await database.close()


# --- pages ---


async def test_a_vacuum_slice_gives_back_so_many_pages_and_no_more(database: Database) -> None:
    await database.write(empty)
    before = await database.read(pages)
    assert before.free > 400
    step = await database.write(lambda connection: vacuum_slice(connection, 100))
    assert step.given_back == 100
    assert step.left == (before.size, before.total - 100, before.free - 100)
    assert step.left.used_bytes == before.used_bytes
    rest = await database.write(lambda connection: vacuum_slice(connection, 1_000_000))
    assert (rest.given_back, rest.left.free) == (before.free - 100, 0)
    assert (await database.write(lambda connection: vacuum_slice(connection, 100))).given_back == 0


async def test_a_vacuum_slice_under_a_lock_changes_nothing(database: Database) -> None:
    await database.write(empty)
    before = await database.read(pages)
    with lock_of_another_connection(database.path), pytest.raises(apsw.BusyError):
        await database.write(lambda connection: vacuum_slice(connection, 100))
    assert await database.read(pages) == before


# --- the WAL ---


async def test_truncating_empties_the_wal_and_shortens_the_file(database: Database) -> None:
    await database.truncate_wal()
    full = database.size_on_disk()
    assert (full.wal, full.total) == (0, full.file)
    await database.write(empty)
    await database.write(lambda connection: vacuum_slice(connection, 1_000_000))
    assert database.size_on_disk().wal > 0
    copied = await database.truncate_wal()
    assert copied is not None
    assert copied > 0
    left = await database.read(pages)
    assert database.size_on_disk() == (left.total * left.size, 0)
    assert database.size_on_disk().file < full.file / 10


async def test_a_reader_that_stays_makes_truncation_wait_for_another_time(database: Database) -> None:
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM key_value_entries").get == ROWS
    await database.write(empty)
    assert await database.truncate_wal() is None
    assert reader.execute("SELECT count(*) FROM key_value_entries").get == ROWS
    patience = await database.write(lambda connection: connection.pragma("busy_timeout"))
    assert patience == connections.BUSY_TIMEOUT_MS  # as before: only the truncation is impatient
    reader.close()
    assert await database.truncate_wal() is not None
    assert database.size_on_disk().wal == 0


async def test_the_writer_has_only_the_rest_to_copy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    for name in ("copy_wal", "truncate_wal"):
        really = getattr(connections, name)

        def noted(connection: apsw.Connection, really: object = really, name: str = name) -> object:
            threads.append(f"{name} {threading.current_thread().name}")
            assert callable(really)
            return really(connection)

        monkeypatch.setattr(connections, name, noted)
    await database.truncate_wal()
    assert threads == ["copy_wal key_values-checkpointer", "truncate_wal key_values-writer"]


async def test_no_checkpoint_starts_next_to_a_truncation(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.truncate_wal()
    monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 1)
    checkpoints = 0
    really = Database._checkpoint

    def checkpoint(self: Database, connection: apsw.Connection) -> None:
        nonlocal checkpoints
        checkpoints += 1
        really(self, connection)

    monkeypatch.setattr(Database, "_checkpoint", checkpoint)
    inside, release = threading.Event(), threading.Event()

    def hold(connection: apsw.Connection) -> None:
        inside.set()
        assert release.wait(PATIENCE_SECONDS)
        fill(connection, 10)

    holding = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(inside.wait, PATIENCE_SECONDS)
    truncating = asyncio.create_task(database.truncate_wal())
    await asyncio.sleep(0)  # it has begun, and waits behind the commit
    release.set()
    await holding
    assert await truncating is not None
    assert checkpoints == 0
    await database.write(lambda connection: fill(connection, 10))
    await database.close()
    assert checkpoints == 1  # and again as ever


async def test_relieving_copies_a_wal_that_has_grown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.truncate_wal()
    # As if each background checkpoint came too early to copy anything.
    monkeypatch.setattr(Database, "_checkpoint", lambda self, _: setattr(self, "_checkpoint_due", False))
    before = database.path.stat().st_size
    await database.write(lambda connection: fill(connection, 100))
    await database.relieve_wal()
    assert database.path.stat().st_size == before  # not worth it yet
    await database.write(lambda connection: fill(connection, CHECKPOINT_PAGES * 4))
    await database.relieve_wal()
    assert database.path.stat().st_size > before


async def test_relieving_waits_for_the_checkpoint_that_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.truncate_wal()
    release = threading.Event()
    really = Database._checkpoint

    def checkpoint(self: Database, connection: apsw.Connection) -> None:
        assert release.wait(PATIENCE_SECONDS)
        really(self, connection)

    monkeypatch.setattr(Database, "_checkpoint", checkpoint)
    before = database.path.stat().st_size
    await database.write(lambda connection: fill(connection, CHECKPOINT_PAGES * 4))
    relieving = asyncio.create_task(database.relieve_wal())
    await asyncio.sleep(0)  # it has asked whoever copies
    asyncio.get_running_loop().call_soon(release.set)
    await relieving
    assert database.path.stat().st_size > before


# Where it does not run between the commits of the writer.
@pytest.mark.parametrize("database", [8], indirect=True, ids=["eight processors"])
@pytest.mark.parametrize("step", [Database.relieve_wal, Database.truncate_wal])
async def test_no_copy_stands_in_the_way_of_a_restart(
    database: Database, monkeypatch: pytest.MonkeyPatch, step: Callable[[Database], Awaitable[object]]
) -> None:
    await database.truncate_wal()
    monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 1)
    database._restart_from = 1
    copies = 0
    checked, release = threading.Event(), threading.Event()
    really_check, really_copy = Database._checkpoint, upkeep.copy_wal

    def checkpoint(self: Database, connection: apsw.Connection) -> None:
        really_check(self, connection)
        checked.set()

    def copy(connection: apsw.Connection) -> int:
        nonlocal copies
        copies += 1
        return really_copy(connection)

    def hold(connection: apsw.Connection) -> None:
        fill(connection, 10)
        assert release.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(Database, "_checkpoint", checkpoint)
    monkeypatch.setattr(connections, "copy_wal", copy)
    holding = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(checked.wait, PATIENCE_SECONDS)  # the restart waits for the writer
    stepping = asyncio.ensure_future(step(database))
    await asyncio.sleep(0)
    await database._checkpointer.run(lambda _: None)  # whatever the step has the checkpointer do is done
    assert copies == 0
    release.set()
    await asyncio.gather(holding, stepping)
    assert database.checkpoint_failures == 0


async def test_sizes_of_what_is_not_there(tmp_path: Path) -> None:
    assert size_on_disk(tmp_path / "nothing.sqlite") == (0, 0)


# --- statistics ---


def rows_by_statistics(path: Path) -> int:
    """How many rows the planner believes there are."""
    connection = open_connection(path)
    sql = "SELECT stat FROM sqlite_stat1 WHERE idx = 'key_value_entries_last_accessed_at'"
    stat = str(connection.execute(sql).get)
    connection.close()
    return int(stat.split(maxsplit=1)[0])


async def test_optimize_makes_and_renews_statistics(database: Database) -> None:
    await database.write(optimize)
    first = rows_by_statistics(database.path)
    await database.write(lambda connection: fill(connection, ROWS * 14))
    # As after a start: this connection has not queried the table, and learns of the growth all the same.
    await database.close()
    again = Database(database.path, KEY_VALUES)
    again.open()
    await again.write(optimize)
    await again.close()
    assert rows_by_statistics(database.path) > first > 0


# --- integrity ---


def shares_of(path: Path) -> tuple[list[str], list[float]]:
    shares: list[float] = []
    return integrity_problems(path, KEY_VALUES, shares.append), shares


async def test_a_sound_database_has_no_problems_and_progress_is_told(database: Database) -> None:
    problems, shares = shares_of(database.path)
    assert problems == []
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert [share for share in shares if 0.4 < share < 0.6]
    assert (shares[-2] > 0.8, shares[-1]) == (True, 1.0)


async def test_the_check_writes_nothing(database: Database) -> None:
    await database.close()
    before = database.path.read_bytes()
    assert integrity_problems(database.path, KEY_VALUES, lambda _: None) == []
    assert database.path.read_bytes() == before


@pytest.mark.parametrize("page", [0, 3, -1])
async def test_a_damaged_page_is_found(database: Database, page: int) -> None:
    await database.close()
    with database.path.open("r+b") as file:
        # The first one keeps what says that it is a database of ours.
        file.seek(page * 4_096 or 100, 2 if page < 0 else 0)
        file.write(b"\xa5" * 3_000)
    assert integrity_problems(database.path, KEY_VALUES, lambda _: None)


async def test_every_problem_is_listed(database: Database) -> None:
    """Two leaves of the table and an index by which rows are counted: one does not hide the others."""
    await database.close()
    with database.path.open("r+b") as file:
        for page in (5, 50, 150):
            file.seek((page - 1) * 4_096)
            file.write(bytes(4_096))
    problems = integrity_problems(database.path, KEY_VALUES, lambda _: None)
    for page in (5, 50, 150):
        assert [text for text in problems if f"page {page}:" in text or f"page {page} " in text], problems


async def test_a_missing_table_is_a_problem(database: Database) -> None:
    await database.write(lambda connection: connection.execute("DROP TABLE key_value_entries").fetchall())
    problems, _ = shares_of(database.path)
    assert problems == ["table key_value_entries is missing"]


async def test_foreign_newer_missing_and_locked_files_cannot_be_checked(
    database: Database, tmp_path: Path
) -> None:
    with pytest.raises(DataDirectoryError, match="cannot read"):
        integrity_problems(tmp_path / "nothing.sqlite", KEY_VALUES, lambda _: None)
    assert not (tmp_path / "nothing.sqlite").exists()
    with pytest.raises(DatabaseFileError, match="another program"):
        integrity_problems(database.path, NODE, lambda _: None)
    await database.write(lambda connection: connection.pragma("user_version", 99))
    with pytest.raises(DatabaseFileError, match="version 99"):
        integrity_problems(database.path, KEY_VALUES, lambda _: None)


async def test_a_lock_that_keeps_readers_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.database.upkeep.CHECK_PATIENCE_MS", 1)
    await database.close()
    copy = Path(shutil.copy(database.path, database.path.with_name("copy.sqlite")))
    connection = apsw.Connection(str(copy))
    connection.pragma("journal_mode", "delete")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseLockedError, match="locked"):
        integrity_problems(copy, KEY_VALUES, lambda _: None)
    connection.close()
