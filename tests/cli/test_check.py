"""`undercroft check`, as a process of its own."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.node_process import node_process
from tests.system.client import Client
from undercroft.cli.check import MOST_SHOWN, shown
from undercroft.database.connection import open_connection, transaction
from undercroft.database.schema import KEY_VALUES, NODE, migrate
from undercroft.database.upkeep import MAX_PROBLEMS

PAGE = 4_096
SQL = "INSERT INTO key_value_entries (key, json_payload, inserted_at, updated_at) VALUES (?, ?, 1, 1)"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """The databases of a stopped node."""
    for schema in (KEY_VALUES, NODE):
        connection = open_connection(tmp_path / f"{schema.name}.sqlite")
        with transaction(connection):
            migrate(connection, schema)
            if schema is KEY_VALUES:
                connection.executemany(SQL, ((f"k{n}", "x" * 300) for n in range(2_000)))
        connection.close()
    return tmp_path


def check(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UNDERCROFT_")}
    command = [sys.executable, "-m", "undercroft", "check", *arguments]
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


def damage(path: Path) -> None:
    """Overwrites a page in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // PAGE // 2 * PAGE)
        file.write(b"\xa5" * PAGE)


def contents(data_dir: Path) -> dict[str, bytes]:
    """Of the databases; SQLite leaves an empty WAL and its index behind."""
    return {path.name: path.read_bytes() for path in data_dir.glob("*.sqlite")}


SOUND = "key_values.sqlite: ok\nnode.sqlite: ok\n"


def test_sound_databases(data_dir: Path) -> None:
    before = contents(data_dir)
    done = check("--data-dir", str(data_dir))
    assert (done.returncode, done.stdout) == (0, SOUND)
    assert done.stderr == ""
    assert contents(data_dir) == before


def test_the_directory_comes_from_the_environment_and_the_file_as_well(
    data_dir: Path, tmp_path: Path
) -> None:
    assert check(UNDERCROFT_DATA_DIR=str(data_dir)).stdout == SOUND
    file = tmp_path / "undercroft.toml"
    file.write_text(f"data_dir = {str(data_dir)!r}\n")
    assert check("--config", str(file)).stdout == SOUND
    assert check("--config", str(file), "--data-dir", "nowhere").returncode == 2


@pytest.mark.parametrize("damaged", ["key_values.sqlite", "node.sqlite"])
def test_a_damaged_page_is_named_with_its_database(data_dir: Path, damaged: str) -> None:
    damage(data_dir / damaged)
    done = check("--data-dir", str(data_dir))
    assert done.returncode == 1, done
    lines = done.stdout.splitlines()
    (sound,) = {"key_values.sqlite", "node.sqlite"} - {damaged}
    assert f"{sound}: ok" in lines
    problems = [line for line in lines if line.startswith(f"{damaged}: ")]
    assert problems
    assert f"{damaged}: ok" not in problems


def test_a_file_with_many_problems_is_said_in_a_few_lines(data_dir: Path) -> None:
    path = data_dir / "key_values.sqlite"
    with path.open("r+b") as file:
        for page in range(10, path.stat().st_size // PAGE, 3):
            file.seek(page * PAGE)
            file.write(b"\xa5" * PAGE)
    done = check("--data-dir", str(data_dir))
    assert done.returncode == 1, done
    *problems, last, other = done.stdout.splitlines()
    assert len(problems) == MOST_SHOWN
    assert re.fullmatch(r"key_values.sqlite: and (at least )?\d+ more", last)
    assert other == "node.sqlite: ok"


def test_few_problems_are_all_shown() -> None:
    few = [f"problem {n}" for n in range(MOST_SHOWN)]
    assert shown(few) == few
    assert shown([*few, "one"]) == [*few, "and 1 more"]
    assert shown(few * MAX_PROBLEMS)[-1].startswith("and at least ")


def test_what_is_no_database_at_all_is_damaged(data_dir: Path) -> None:
    (data_dir / "node.sqlite").write_bytes(b"no database" * 1_000)
    done = check("--data-dir", str(data_dir))
    assert (done.returncode, "not a database" in done.stdout) == (1, True)


def test_what_cannot_be_checked(data_dir: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--data-dir", str(tmp_path / "nowhere")],
        ["--config", str(tmp_path / "nowhere.toml")],
    ):
        done = check(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("undercroft: ")
        assert "nowhere" in done.stderr
        assert not (tmp_path / "nowhere").exists()
    (data_dir / "node.sqlite").write_bytes((data_dir / "key_values.sqlite").read_bytes())
    done = check("--data-dir", str(data_dir))
    assert done.returncode == 2
    assert "another program" in done.stderr


@pytest.mark.system
def test_next_to_a_running_node_under_load(data_dir: Path) -> None:
    checked = threading.Event()
    answers: list[int] = []

    def put(url: str, name: str) -> None:
        with Client(url) as client:
            count = 0
            while not checked.is_set() or count < 50:
                answers.append(client.put_value(f"{name}{count}", "value").status)
                count += 1

    with node_process(data_dir) as node:
        putting = [threading.Thread(target=put, args=(node.url, name)) for name in "ab"]
        for thread in putting:
            thread.start()
        try:
            results = [check("--data-dir", str(data_dir)) for _ in range(2)]
        finally:
            checked.set()
            for thread in putting:
                thread.join()
        assert [(done.returncode, done.stdout) for done in results] == [(0, SOUND)] * 2
        assert set(answers) == {204}
        assert node.stop() == 0
