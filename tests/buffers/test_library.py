"""The buffers in a program that is not the node."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.support.locks import lock_of_another_connection
from undercroft.buffers import BufferSettings, UpsertTable, open_buffer
from undercroft.errors import (
    BufferFullError,
    ClosedError,
    CommitTimeoutError,
    DatabaseLockedError,
    RowRefusedError,
)

ROOT = Path(__file__).parents[2]

# What a program that only wants buffers does not get, of ours and of others.
NODE_ONLY = {
    "api",
    "artifacts",
    "auth",
    "cli",
    "config",
    "key_values",
    "node",
    "s3",
    "server",
    "storage",
    "workers",
}
LIBRARIES = {"granian", "httptools", "httpx", "obstore", "prometheus_client", "pydantic", "typer"}


class Visit(msgspec.Struct, frozen=True, array_like=True):
    page: str
    visitor: str
    at: float


CREATE = """
CREATE TABLE IF NOT EXISTS visits (page TEXT PRIMARY KEY, visitor TEXT CHECK (visitor <> 'nobody'), at REAL)
"""
UPSERT = """
INSERT INTO visits SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(:entries) WHERE true
ON CONFLICT (page) DO UPDATE SET visitor = excluded.visitor, at = excluded.at
"""


def make_table(*, may_be_dropped: bool = False) -> UpsertTable[Visit]:
    return UpsertTable("visits", Visit, UPSERT, key=lambda visit: visit.page, may_be_dropped=may_be_dropped)


def rows(path: Path) -> list[tuple[object, ...]]:
    connection = apsw.Connection(str(path))
    try:
        return list(connection.execute("SELECT * FROM visits ORDER BY page"))
    finally:
        connection.close()


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    assert len(example.splitlines()) < 40
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Visit(page='/', visitor='bob', at=2.0)\n"
    assert rows(tmp_path / "visits.sqlite") == [("/", "bob", 2.0)]


def test_nothing_of_the_node_is_imported() -> None:
    program = "import undercroft.buffers, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert "undercroft.buffers.sqlite_buffer" in names
    assert {name for name in names if name.startswith("undercroft.")} & {
        f"undercroft.{one}" for one in NODE_ONLY
    } == set()
    assert names & LIBRARIES == set()


async def test_what_was_accepted_is_committed_on_leaving(tmp_path: Path) -> None:
    path = tmp_path / "app.sqlite"
    never = BufferSettings(flush_interval_ms=3_600_000)
    async with open_buffer(path, make_table(), create=CREATE, settings=never) as buffer:
        for number in range(2_500):
            await buffer.enqueue(Visit(f"/{number % 2_000:04}", "ann", number))
    found = rows(path)
    assert len(found) == 2_000
    assert found[0] == ("/0000", "ann", 2_000.0)
    assert not buffer.spill_path.exists()
    with pytest.raises(ClosedError):
        buffer.enqueue_nowait(Visit("/", "late", 0))


async def test_the_file_may_be_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "app.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute(CREATE)
    connection.execute("CREATE TABLE other (x)")
    connection.pragma("user_version", 17)
    connection.close()
    async with open_buffer(path, make_table()) as buffer:
        await buffer.committed(await buffer.enqueue(Visit("/", "ann", 1)))
        assert buffer.pending("/") is None
        assert rows(path) == [("/", "ann", 1.0)]
    connection = apsw.Connection(str(path))
    assert connection.pragma("user_version") == 17
    connection.close()


async def test_a_row_that_is_refused_tells_its_waiter_only(tmp_path: Path) -> None:
    async with open_buffer(tmp_path / "app.sqlite", make_table(), create=CREATE) as buffer:
        bad = await buffer.enqueue(Visit("/bad", "nobody", 1))
        good = await buffer.enqueue(Visit("/good", "ann", 1))
        await buffer.committed(good)
        with pytest.raises(RowRefusedError):
            await buffer.committed(bad)
    assert rows(tmp_path / "app.sqlite") == [("/good", "ann", 1.0)]


@pytest.mark.parametrize("may_be_dropped", [False, True])
async def test_a_full_buffer(tmp_path: Path, may_be_dropped: bool) -> None:
    settings = BufferSettings(max_pending_rows=10, enqueue_timeout_ms=1)
    table = make_table(may_be_dropped=may_be_dropped)
    async with open_buffer(tmp_path / "app.sqlite", table, create=CREATE, settings=settings) as buffer:
        accept = [buffer.enqueue_nowait] * 12
        refused = 0
        for number, enqueue in enumerate(accept):
            try:
                enqueue(Visit(f"/{number}", "ann", 1))
            except BufferFullError:
                refused += 1
        assert refused == (0 if may_be_dropped else 2)
    assert len(rows(tmp_path / "app.sqlite")) == (8 if may_be_dropped else 10)


async def test_sizes_are_those_of_the_newest(tmp_path: Path) -> None:
    table = make_table()
    state = table.init_state()
    table.handle_event(state, Visit("/", "x" * 1_000, 1))
    large = table.queue_stats(state)
    table.handle_event(state, Visit("/", "é", 1))
    small = table.queue_stats(state)
    assert (large.rows, small.rows) == (1, 1)
    assert large.bytes - small.bytes == 998
    assert not table.queue_empty(state)


async def test_wrong_sql_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(apsw.SQLError):
        async with open_buffer(tmp_path / "app.sqlite", make_table(), create="CREATE nonsense"):
            raise AssertionError("not reached")
    assert [task for task in asyncio.all_tasks() if "buffer" in task.get_name()] == []


async def test_what_is_committed_can_be_read(tmp_path: Path) -> None:
    async with open_buffer(tmp_path / "a.sqlite", make_table(), create=CREATE) as buffer:
        await buffer.committed(await buffer.enqueue(Visit("/", "ann", 1.0)))
        assert await buffer.read("SELECT visitor, at FROM visits WHERE page = ?", ("/",)) == [("ann", 1.0)]
        with pytest.raises(apsw.Error, match="readonly"):
            await buffer.read("DELETE FROM visits")


async def test_databases_in_one_directory_keep_their_rows_apart(tmp_path: Path) -> None:
    """What one spilled is not taken up by another that has a table of the same name, or a longer one."""
    first = tmp_path / "a.sqlite"
    settings = BufferSettings(shutdown_ms=50)
    async with open_buffer(first, make_table(), create=CREATE, settings=settings) as buffer:
        with lock_of_another_connection(first):
            await buffer.enqueue(Visit("/a", "ann", 1.0))
            await buffer.close()
    assert buffer.spill_path.name == "a.sqlite.visits.spill"
    for other in ("b.sqlite", "a.sqlite.visits"):
        async with open_buffer(tmp_path / other, make_table(), create=CREATE):
            pass
        assert rows(tmp_path / other) == []
    async with open_buffer(first, make_table(), create=CREATE):
        pass
    assert rows(first) == [("/a", "ann", 1.0)]


async def test_a_mistake_in_the_statement_is_told_when_it_is_opened(tmp_path: Path) -> None:
    table = UpsertTable("visits", Visit, "INSERT INTO nope VALUES (:entries)", key=lambda visit: visit.page)
    with pytest.raises(apsw.SQLError, match="no such table: nope"):
        async with open_buffer(tmp_path / "a.sqlite", table, create=CREATE):
            pass


async def test_to_open_changes_nothing(tmp_path: Path) -> None:
    """Not even with a statement that has something to say of no entries."""
    newest = "INSERT INTO visits SELECT 'newest', 'ann', max(value ->> 2) FROM json_each(:entries) WHERE true"
    newest += " ON CONFLICT (page) DO UPDATE SET at = excluded.at"
    table = UpsertTable("visits", Visit, newest, key=lambda visit: visit.page)
    for _ in range(2):
        async with open_buffer(tmp_path / "a.sqlite", table, create=CREATE) as buffer:
            await buffer.committed(await buffer.enqueue(Visit("/", "ann", 7.0)))
        async with open_buffer(tmp_path / "a.sqlite", table, create=CREATE) as buffer:
            assert await buffer.read("SELECT at FROM visits") == [(7.0,)]


async def test_a_database_that_is_locked_is_said_to_be(tmp_path: Path) -> None:
    async with open_buffer(tmp_path / "a.sqlite", make_table(), create=CREATE):
        pass
    with lock_of_another_connection(tmp_path / "a.sqlite"), pytest.raises(DatabaseLockedError):
        async with open_buffer(tmp_path / "a.sqlite", make_table()):
            pass


async def test_who_waits_in_vain_is_told_why(tmp_path: Path) -> None:
    path, settings = tmp_path / "a.sqlite", BufferSettings(commit_timeout_ms=300, shutdown_ms=10_000)
    async with open_buffer(path, make_table(), create=CREATE, settings=settings) as buffer:
        with lock_of_another_connection(path):
            ticket = await buffer.enqueue(Visit("/", "ann", 1.0))
            with pytest.raises(CommitTimeoutError, match=r"within 300 ms .*BusyError.*locked"):
                await buffer.committed(ticket)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"flush_interval_ms": -1}, ValueError),
        ({"max_pending_bytes": "128MiB"}, TypeError),
    ],
)
def test_settings_that_cannot_be_meant(setting: dict[str, Any], error: type[Exception]) -> None:
    (name,) = setting
    with pytest.raises(error, match=f"{name} = .*: give"):
        BufferSettings(**setting)
