"""`undercroft transfers`, beside a stopped and a running node."""

import json
from pathlib import Path

import apsw
import pytest
from typer.testing import CliRunner, Result

from tests.support.locks import lock_of_another_process
from tests.support.node_process import node_process
from undercroft.cli import app, transfers
from undercroft.database import insisting
from undercroft.database.connection import open_connection, transaction
from undercroft.database.schema import KEY_VALUES, NODE, migrate
from undercroft.s3 import transfers as service

INSERT = """
INSERT INTO s3_transfers (id, type, account_handle, project_handle, artifact_type, key, inserted_at,
    claimed_at, attempts, next_attempt_at, parked_at, last_error)
VALUES (?, ?, 'acc', 'proj', 'xcode', 'acc/proj/xcode/ab/cd/' || ?, 5, ?, ?, ?, ?, ?)
"""
DUE_AT = 1_700_000_000_000_000
ROWS = [
    ("01", "upload", "plain", None, 0, 0, None, None),
    ("02", "download", "failed", None, 3, DUE_AT, None, "no [bold]answer[/bold]"),
    ("03", "delete", "working", 7, 0, 0, None, None),
    ("04", "upload", "parked", None, 12, DUE_AT, 9, "status 403"),
    ("05", "upload", "parked too", None, 12, DUE_AT, 9, "status 403"),
]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """That of a stopped node."""
    connection = open_connection(tmp_path / "node.sqlite")
    with transaction(connection):
        migrate(connection, NODE)
        connection.executemany(INSERT, ROWS)
    connection.close()
    return tmp_path


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "COLUMNS", "UNDERCROFT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["transfers", *arguments, "--data-dir", str(data_dir)])


def parked(data_dir: Path) -> int:
    connection = apsw.Connection(str(data_dir / "node.sqlite"))
    try:
        return int(connection.execute("SELECT count(parked_at) FROM s3_transfers").get)
    finally:
        connection.close()


def test_list(data_dir: Path) -> None:
    done = run(data_dir, "list")
    assert done.exit_code == 0
    heading, *lines = (line.rstrip() for line in done.output.splitlines())
    assert heading.split() == ["type", "key", "state", "attempts", "next", "attempt", "last", "error"]
    assert [" ".join(line.split()) for line in lines] == [
        "upload acc/proj/xcode/ab/cd/parked parked 12 status 403",
        "upload acc/proj/xcode/ab/cd/parked too parked 12 status 403",
        "upload acc/proj/xcode/ab/cd/plain waiting 0 at once",
        "download acc/proj/xcode/ab/cd/failed waiting 3 2023-11-14 22:13:20 UTC no [bold]answer[/bold]",
        "delete acc/proj/xcode/ab/cd/working in work 0",
    ]


def test_list_as_json(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SLICE_ROWS", 2)
    done = run(data_dir, "list", "--json")
    assert done.exit_code == 0
    found = [json.loads(line) for line in done.output.splitlines()]
    assert [one["id"] for one in found] == ["04", "05", "01", "02", "03"]
    assert found[3] == {
        "id": "02",
        "type": "download",
        "key": "acc/proj/xcode/ab/cd/failed",
        "state": "waiting",
        "attempts": 3,
        "inserted_at": 5,
        "next_attempt_at": DUE_AT,
        "last_error": "no [bold]answer[/bold]",
    }


def test_table_has_an_end_and_says_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "SLICE_ROWS", 2)
    monkeypatch.setattr(transfers, "TABLE_ROWS", 3)
    lines = run(data_dir, "list").output.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "and 2 more, which --json lists"


def test_nothing_to_list(data_dir: Path) -> None:
    connection = open_connection(data_dir / "node.sqlite")
    connection.execute("DELETE FROM s3_transfers")
    connection.close()
    assert run(data_dir, "list").output == "no transfers\n"
    assert run(data_dir, "list", "--json").output == ""


def test_retry(data_dir: Path) -> None:
    done = run(data_dir, "retry")
    assert (done.exit_code, done.output) == (0, "2 parked transfer(s) will be tried again\n")
    assert parked(data_dir) == 0
    assert run(data_dir, "retry").output == "0 parked transfer(s) will be tried again\n"
    assert "parked waiting 0 at once" in " ".join(run(data_dir, "list").output.split())


@pytest.mark.parametrize("command", ["list", "retry"])
def test_no_database(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, command)
    assert done.exit_code == 2
    assert f"there is no {tmp_path / 'node.sqlite'}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["list", "retry"])
def test_foreign_database(tmp_path: Path, command: str) -> None:
    connection = open_connection(tmp_path / "node.sqlite")
    with transaction(connection):
        migrate(connection, KEY_VALUES)
    connection.close()
    before = (tmp_path / "node.sqlite").read_bytes()
    done = run(tmp_path, command)
    assert done.exit_code == 2
    assert "another program" in done.stderr
    assert (tmp_path / "node.sqlite").read_bytes() == before


def test_locked_database(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insisting, "LOCKED_ATTEMPTS", 2)
    with lock_of_another_process(data_dir / "node.sqlite"):
        done = run(data_dir, "retry")
        assert run(data_dir, "list").exit_code == 0
    assert done.exit_code == 2
    assert "another process holds a lock on" in done.stderr
    assert parked(data_dir) == 2


def test_beside_a_running_node(data_dir: Path) -> None:
    with node_process(data_dir):
        assert len(run(data_dir, "list", "--json").output.splitlines()) == len(ROWS)
        assert run(data_dir, "retry").output == "2 parked transfer(s) will be tried again\n"
        assert parked(data_dir) == 0
