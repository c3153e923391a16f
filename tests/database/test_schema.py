"""Migrations, and files that are refused without a byte of them changed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.support.leaks import open_files
from undercroft.database import Database, transaction
from undercroft.database.schema import KEY_VALUES, NODE, Schema, check_file, is_current, migrate, migrations
from undercroft.errors import DatabaseFileError, DataDirectoryError

SCHEMAS = pytest.mark.parametrize("schema", [KEY_VALUES, NODE], ids=lambda schema: schema.name)


@pytest.fixture
def connection() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    yield connection
    connection.close()


async def made(path: Path, schema: Schema) -> None:
    """A file of ours with a row in its last table."""
    database = Database(path, schema)
    database.open()
    await database.close()


def refuse(path: Path, schema: Schema, match: str) -> None:
    """`open` must raise and leave every file as it was."""
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(DatabaseFileError, match=match) as raised:
        Database(path, schema).open()
    assert "left untouched" in str(raised.value)
    assert str(path) in str(raised.value)
    assert {file: file.read_bytes() for file in before} == before
    assert open_files(path.parent) == []


# --- migrations ---


@SCHEMAS
def test_migrations_bring_the_tables_and_the_version(connection: apsw.Connection, schema: Schema) -> None:
    assert not is_current(connection, schema)
    with transaction(connection):
        migrate(connection, schema)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables >= {name for _, name in schema.tables}
    assert connection.pragma("application_id") == schema.application_id
    assert connection.pragma("user_version") == len(migrations(schema)) >= 1
    assert is_current(connection, schema)


@pytest.fixture
def three_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of migrations of its own; answers where `Schema("steps", ...)` looks."""
    folder = tmp_path / "package" / "migrations" / "steps"
    folder.mkdir(parents=True)
    (folder / "0001_first.sql").write_text("CREATE TABLE log (step INTEGER); INSERT INTO log VALUES (1);")
    (folder / "0002_second.sql").write_text("INSERT INTO log VALUES (2);")
    (folder / "0003_third.sql").write_text("INSERT INTO log VALUES (3);")
    monkeypatch.setattr("undercroft.database.schema.resources.files", lambda _: tmp_path / "package")
    return folder


STEPS = Schema("steps", 7, ((1, "log"),))


def steps_done(connection: apsw.Connection) -> list[int]:
    return [int(str(row[0])) for row in connection.execute("SELECT step FROM log")]


def test_each_migration_is_applied_once_in_order(connection: apsw.Connection, three_steps: Path) -> None:
    last = (three_steps / "0003_third.sql").read_text()
    (three_steps / "0003_third.sql").unlink()
    for _ in range(2):
        migrate(connection, STEPS)
    assert steps_done(connection) == [1, 2]
    (three_steps / "0003_third.sql").write_text(last)
    assert not is_current(connection, STEPS)
    for _ in range(2):
        migrate(connection, STEPS)
    assert steps_done(connection) == [1, 2, 3]
    assert connection.pragma("user_version") == 3


def test_a_missing_number_is_refused(three_steps: Path) -> None:
    (three_steps / "0002_second.sql").unlink()
    with pytest.raises(ValueError, match=r"0003_third.sql stands at place 2"):
        migrations(STEPS)


def test_a_doubled_number_is_refused(three_steps: Path) -> None:
    (three_steps / "0002_another.sql").write_text("")
    with pytest.raises(ValueError, match=r"0002_second.sql stands at place 3"):
        migrations(STEPS)


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, three_steps: Path) -> None:
    (three_steps / "0003_third.sql").write_text("INSERT INTO nowhere VALUES (1);")
    database = Database(tmp_path / "steps.sqlite", STEPS)
    with pytest.raises(apsw.SQLError):
        database.open()
    connection = apsw.Connection(str(database.path))
    assert connection.pragma("user_version") == 0
    assert connection.execute("SELECT count(*) FROM sqlite_schema").fetchall() == [(0,)]
    connection.close()


@SCHEMAS
async def test_opening_a_current_file_does_not_write_to_it(tmp_path: Path, schema: Schema) -> None:
    path = tmp_path / "current.sqlite"
    await made(path, schema)
    before = path.read_bytes()
    await made(path, schema)
    assert path.read_bytes() == before


# --- refusals ---


@SCHEMAS
async def test_a_newer_schema_is_refused(tmp_path: Path, schema: Schema) -> None:
    path = tmp_path / "newer.sqlite"
    await made(path, schema)
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", len(migrations(schema)) + 1)
    connection.close()
    refuse(path, schema, "run the newer Undercroft")


async def test_our_other_file_is_refused(tmp_path: Path) -> None:
    for mine, other in ((KEY_VALUES, NODE), (NODE, KEY_VALUES)):
        path = tmp_path / f"{mine.name}.sqlite"
        await made(path, mine)
        refuse(path, other, "another program")


@pytest.mark.parametrize("application_id", [0, 0x0F055112])
@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_a_database_of_another_program_is_refused(
    tmp_path: Path, application_id: int, journal_mode: str
) -> None:
    path = tmp_path / "foreign.sqlite"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", journal_mode)
    connection.pragma("application_id", application_id)
    connection.execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
    connection.close()
    refuse(path, KEY_VALUES, "another program")


def test_the_wal_that_another_program_left_over_is_not_touched(tmp_path: Path) -> None:
    live, path = tmp_path / "live.sqlite", tmp_path / "foreign" / "foreign.sqlite"
    path.parent.mkdir()
    connection = apsw.Connection(str(live))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
    for suffix in ("", "-wal"):  # as after a crash: the WAL is not copied into the file
        shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
    connection.close()
    refuse(path, KEY_VALUES, "another program")


@pytest.mark.parametrize(
    "content", [b"not a database at all", b"x" * 100_000, b"SQLite format 3\0" + b"\xff" * 5_000]
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.sqlite"
    path.write_bytes(content)
    refuse(path, KEY_VALUES, "not a usable SQLite database")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
async def test_a_truncated_database_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "key_values.sqlite"
    database = Database(path, KEY_VALUES)
    database.open()
    sql = (
        "INSERT INTO key_value_entries (key, json_payload, inserted_at, updated_at) "
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "SELECT i, hex(randomblob(200)), 1, 1 FROM n"
    )
    await database.write(lambda connection: connection.execute(sql).fetchall())
    await database.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refuse(path, KEY_VALUES, "not a usable SQLite database")


async def test_a_file_of_ours_without_its_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key_values.sqlite"
    await made(path, KEY_VALUES)
    connection = apsw.Connection(str(path))
    connection.execute("DROP TABLE key_value_entries")
    connection.close()
    refuse(path, KEY_VALUES, "key_value_entries")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key_values.sqlite"
    path.mkdir()
    with pytest.raises(DatabaseFileError, match="not a usable SQLite database"):
        Database(path, KEY_VALUES).open()


async def test_what_is_wrong_around_a_file_is_not_called_damage(
    tmp_path: Path,
) -> None:
    path = tmp_path / "key_values.sqlite"
    await made(path, KEY_VALUES)
    # As on a full disk: SQLite cannot make what it needs beside the file.
    (tmp_path / "key_values.sqlite-wal").mkdir()
    with pytest.raises(DataDirectoryError, match=r"cannot open .* make room"):
        Database(path, KEY_VALUES).open()


@pytest.mark.parametrize("exists", [True, False])
async def test_an_empty_file_is_a_new_one(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "key_values.sqlite"
    if exists:
        await asyncio.to_thread(path.touch)
    check_file(path, KEY_VALUES)
    await made(path, KEY_VALUES)
    connection = apsw.Connection(str(path))
    assert connection.pragma("application_id") == KEY_VALUES.application_id
    assert connection.pragma("auto_vacuum") == 2  # only takes in a new file
    connection.close()


async def test_a_file_with_a_left_over_wal_of_ours_opens(tmp_path: Path) -> None:
    live, path = tmp_path / "live.sqlite", tmp_path / "crashed" / "key_values.sqlite"
    path.parent.mkdir()
    database = Database(live, KEY_VALUES)
    database.open()
    sql = "INSERT INTO key_value_entries (key, json_payload, inserted_at, updated_at) VALUES ('a', '', 1, 1)"
    await database.write(lambda connection: connection.execute(sql).fetchall())
    for suffix in ("", "-wal"):
        shutil.copy(f"{live}{suffix}", f"{path}{suffix}")
    await database.close()
    again = Database(path, KEY_VALUES)
    again.open()
    assert again.find("SELECT key FROM key_value_entries") == ("a",)
    await again.close()
