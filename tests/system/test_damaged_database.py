"""Databases that are damaged while the node runs or is stopped: contained, told, and a way out that works."""

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.api.dialects import DIALECTS
from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from tests.system.data_dir import query, snapshot
from tests.system.stored_bytes import Stored
from tests.system.test_kill import kill_all, processes_of

PAGE = 4_096

SETTINGS = {
    "BUFFERS__COMMIT_TIMEOUT_MS": "300",
    "BUFFERS__SHUTDOWN_MS": "500",
    "MAINTENANCE__INTERVAL_MS": "200",
    "DISK__EVICTION_INTERVAL_MS": "500",
    "KEY_VALUES__EVICTION_INTERVAL_MS": "500",
    "RECONCILE__PAUSE_MS": "1000",
}


def wal_of(database: Path) -> Path:
    return database.with_name(database.name + "-wal")


def fill(stored: Stored, client: Client, count: int = 100) -> None:
    """So much that tables and indexes have many pages."""
    for number in range(count):
        assert stored.put(client, DIALECTS[number % len(DIALECTS)], f"artifact{number}", 500)
        assert stored.put_value(client, f"id{number}", f"value{number} " + "x" * 200)


def copy_wal(database: Path) -> None:
    """Has everything in the file, and nothing in the WAL."""

    def copied() -> bool:
        with closing(sqlite3.connect(database)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    eventually(copied, "the WAL is copied")


def damage(database: Path, chance: random.Random, table: str, count: int = 1) -> None:
    """Overwrites leaves of a table, or of one of its indexes, as a bad medium would."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT pageno FROM dbstat WHERE pagetype = 'leaf' AND name IN "
            "(SELECT name FROM sqlite_schema WHERE tbl_name = ?)",
            (table,),
        ).fetchall()
    with database.open("r+b") as file:
        for (number,) in chance.sample(rows, count):
            file.seek((number - 1) * PAGE)
            file.write(chance.randbytes(PAGE))


def check(data_dir: Path) -> tuple[int, str]:
    """Status and output of `undercroft check`."""
    done = subprocess.run(
        [sys.executable, "-m", "undercroft", "check", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


TABLES = {"key_values.sqlite": "key_value_entries", "node.sqlite": "cache_artifacts"}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", TABLES)
def test_pages_damaged_while_the_node_runs(
    data_dir: Path, campaign: Campaign, name: str, workers: int
) -> None:
    if workers > 1 and name == "key_values.sqlite":
        campaign.is_for_the_long_form()
    chance, more = campaign.random, ("--workers", str(workers))
    for number in campaign.rounds(short=1, long=15):
        root = data_dir / str(number)
        database, stored = root / name, Stored()
        with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
            fill(stored, client)
            copy_wal(database)
            damage(database, chance, TABLES[name], count=chance.choice((1, 2, 5)))
            # Somebody commits: what connections have in memory counts no more.
            stored.put_value(client, "new", "value")
            stored.put(client, DIALECTS[0], "new", 500)
            read_all(stored, client)
            eventually(lambda: client.request("GET", "/up").status == 503, "/up says so")
            assert name in client.request("GET", "/up").body.decode()
            assert client.metric("undercroft_databases_damaged") == 1
            # Each worker tells once what it met itself.
            told = node.logged("database_damaged")
            assert 1 <= len(told) <= workers
            assert all("docs/operations.md" in each["what_to_do"] for each in told)
            # It goes on: reads of what is whole, soft answers to the rest.
            for later in range(20):
                stored.put_value(client, f"more{later}", "value")
                stored.put(client, DIALECTS[later % len(DIALECTS)], f"more{later}", 500)
            read_all(stored, client)
            # A leaf of some twenty rows, or a few, out of many.
            assert stored.counts["reads compared"] > stored.counts["reads missed"]
            status, text = check(root)
            assert status == 1, text
            assert f"{name}: " in text
            assert node.process.poll() is None
            assert node.stop() in (0, 1)
            assert node.printed == [] or "crash" not in node.printed[0]
        campaign.checked("answers", sum(stored.counts.values()))
        recover(root, name, stored, more)
        campaign.checked("artifacts kept by the way out", len(stored.artifacts))


def read_all(stored: Stored, client: Client) -> None:
    """Right bytes or a miss, of everything."""
    for path in stored.paths():
        stored.get(client, path)
    for cas_id in stored.unknown_values:
        answer = client.request("GET", f"/api/cache/keyvalue/{cas_id}?account_handle=acme&project_handle=app")
        assert answer.status in (200, 404), answer


def recover(root: Path, name: str, stored: Stored, more: Sequence[str]) -> None:
    """The way out of docs/operations.md: the file is moved away, and the tree of artifacts is the truth."""
    for file in sorted(root.glob(f"{name}*")):
        file.rename(file.with_name(f"damaged-{file.name}"))
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        # The tree of artifacts is the truth, and the database an index of it.
        for path in list(stored.artifacts):
            assert stored.get(client, path), path
        if name == "node.sqlite":
            for cas_id in stored.values:
                stored.get_value(client, cas_id)
        assert stored.put(client, DIALECTS[0], "afterwards", 500)
        assert stored.put_value(client, "afterwards", "value")
        assert client.request("GET", "/up").status == 200
        assert node.stop() == 0
    assert query(root / name, "PRAGMA integrity_check") == [("ok",)]


def serve_in_vain(root: Path, more: Sequence[str]) -> str:
    """A start that is refused; the line that says why."""
    node = NodeProcess(root, SETTINGS, arguments=more)
    try:
        assert node.wait() == 2, node.log
    finally:
        node.kill()
    (line,) = node.printed
    return line


def damaged_while_stopped(root: Path, name: str, more: Sequence[str]) -> None:
    """Refused at start with a line that names the way out, and the way out works."""
    stored, database = Stored(), root / name
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        fill(stored, client, 40)
        assert node.stop() == 0
    with database.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 2_000)
    before = snapshot(root)
    line = serve_in_vain(root, more)
    assert f"{database} is not a usable SQLite database" in line
    assert "move it away" in line
    assert snapshot(root) == before
    assert check(root)[0] == 1
    recover(root, name, stored, more)


def somebody_elses(root: Path, name: str, more: Sequence[str]) -> None:
    """Left alone."""
    stored, database = Stored(), root / name
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        fill(stored, client, 20)
        assert node.stop() == 0
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = snapshot(root)
    assert "is a database of another program" in serve_in_vain(root, more)
    assert snapshot(root) == before
    recover(root, name, stored, more)


def lost_after_a_kill(root: Path, name: str, more: Sequence[str], suffix: str, how: str) -> None:
    """Of what was committed since the last checkpoint the end may be missing, and nothing is wrong."""
    stored, database = Stored(), root / name
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        fill(stored, client, 40)
        family = processes_of(node)
        kill_all(node)
        assert psutil.wait_procs(family[1:], timeout=60)[1] == []
    beside = database.with_name(f"{name}-{suffix}")
    if how == "deleted":
        beside.unlink()
    else:
        with beside.open("r+b") as file:
            middle = beside.stat().st_size // 2
            file.seek(middle)
            if how == "cut":
                file.truncate()
            else:
                file.write(b"\xff" * 5_000)
    may_be_lost = suffix == "wal" and name == "key_values.sqlite"
    come_back(root, name, stored, more, may_be_lost=may_be_lost)


def deleted_while_it_runs(root: Path, name: str, more: Sequence[str], suffix: str) -> None:
    """The node has it open still: it goes on, and a clean stop copies it into the file."""
    stored, database = Stored(), root / name
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        fill(stored, client, 30)
        database.with_name(f"{name}-{suffix}").unlink()
        for number in range(30):
            assert stored.put(client, DIALECTS[number % len(DIALECTS)], f"more{number}", 500)
            assert stored.put_value(client, f"more{number}", "value")
        stored.check_all(client)
        assert not stored.missing
        assert node.stop() == 0
    come_back(root, name, stored, more, may_be_lost=False)


def come_back(root: Path, name: str, stored: Stored, more: Sequence[str], *, may_be_lost: bool) -> None:
    """A start without anybody's help."""
    with node_process(root, SETTINGS, arguments=more) as node, Client(node.url) as client:
        for path in list(stored.artifacts):
            # Rows of artifacts are an index: each file says what it is.
            assert stored.get(client, path), path
        for cas_id, value in stored.values.items():
            found = client.get_value(cas_id)
            assert found == value or (found is None and may_be_lost), cas_id
        assert stored.put(client, DIALECTS[0], "afterwards", 500)
        assert stored.put_value(client, "afterwards", "value")
        assert client.request("GET", "/up").status == 200
        assert node.stop() == 0
    assert query(root / name, "PRAGMA integrity_check") == [("ok",)]


Misfortune = Callable[[Path, str, Sequence[str]], None]

MISFORTUNES: dict[str, Misfortune] = {
    "WAL deleted after a kill": partial(lost_after_a_kill, suffix="wal", how="deleted"),
    "WAL cut after a kill": partial(lost_after_a_kill, suffix="wal", how="cut"),
    "WAL damaged after a kill": partial(lost_after_a_kill, suffix="wal", how="damaged"),
    "shm deleted after a kill": partial(lost_after_a_kill, suffix="shm", how="deleted"),
    "shm damaged after a kill": partial(lost_after_a_kill, suffix="shm", how="damaged"),
    "WAL deleted while it runs": partial(deleted_while_it_runs, suffix="wal"),
    "shm deleted while it runs": partial(deleted_while_it_runs, suffix="shm"),
    # The last two are met by whoever starts, alone.
    "damaged while stopped": damaged_while_stopped,
    "somebody else's": somebody_elses,
}


def every_case(*, other: bool) -> list[tuple[str, str]]:
    """Each kind with one database, in turns, then each with the other, which is the first if `other`."""
    names = list(TABLES)
    return [
        (what, names[(number + turn + other) % 2])
        for turn in range(2)
        for number, what in enumerate(MISFORTUNES)
    ]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_database_meets_with_misfortune(data_dir: Path, campaign: Campaign, workers: int) -> None:
    # One process meets all kinds in the short form; several those in which they have a file open together.
    cases, short = every_case(other=workers > 1), 9 if workers == 1 else 7
    for number in campaign.rounds(short=short, long=2 * len(cases)):
        what, name = cases[number % len(cases)]
        print(what, name)  # noqa: T201  # pytest shows it with a failure
        MISFORTUNES[what](data_dir / str(number), name, ("--workers", str(workers)))
        campaign.checked(f"{what} ({name.removesuffix('.sqlite')})")
