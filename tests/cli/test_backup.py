"""`undercroft backup` and `restore`: beside a node under load, and what comes back."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.node_process import node_process
from tests.system.client import Client
from undercroft.cli import app
from undercroft.storage.layout import artifact_key, artifact_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def content(number: int) -> bytes:
    return f"artifact {number} ".encode() * (number % 50 + 1)


def store(url: str, numbers: range) -> None:
    with Client(url) as client:
        for number in numbers:
            assert client.put_ccache(f"{number:040x}", content(number)).status == 201
            assert client.put_value(f"k{number}", str(number)).status == 204


def check_served(url: str, numbers: range) -> None:
    with Client(url) as client:
        for number in numbers:
            assert client.get_ccache(f"{number:040x}") == content(number)
            assert client.get_value(f"k{number}") == str(number)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Somebody who writes all the time."""
    ended = threading.Event()

    def work() -> None:
        with Client(url) as client:
            number = 10_000
            while not ended.is_set():
                client.put_ccache(f"{number:040x}", content(number))
                client.put_value(f"k{number}", "later")
                number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_backup_of_a_running_node(tmp_path: Path) -> None:
    with node_process(tmp_path / "node") as node:
        store(node.url, range(60))
        with load(node.url):
            done = run("backup", tmp_path / "copy", "--data-dir", tmp_path / "node", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["artifacts"] >= 60
        assert json.loads(done.output)["gone"] == 0
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0
    restored = run("restore", tmp_path / "copy", "--data-dir", tmp_path / "new")
    assert restored.exit_code == 0, restored.output
    with node_process(tmp_path / "new") as node:
        check_served(node.url, range(60))
        assert node.logged("artifact_damaged") == []
        assert node.stop() == 0


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a node that has stopped."""
    with node_process(tmp_path / "node") as node:
        store(node.url, range(5))
        assert node.stop() == 0
    return tmp_path / "node"


def test_databases_only(stopped: Path, tmp_path: Path) -> None:
    assert run("backup", tmp_path / "copy", "--data-dir", stopped, "--databases-only").exit_code == 0
    assert not (tmp_path / "copy" / "artifacts").exists()
    done = run("restore", tmp_path / "copy", "--data-dir", tmp_path / "new")
    assert done.exit_code == 0
    assert "0 artifacts, 0 B; 5 are not in the backup, and are misses" in done.output
    with node_process(tmp_path / "new") as node, Client(node.url) as client:
        assert client.get_value("k3") == "3"
        assert client.get_ccache(f"{3:040x}") is None


def test_what_was_replaced_by_something_of_another_size_is_left_out(stopped: Path, tmp_path: Path) -> None:
    key = artifact_key("acme", "app", "ccache", f"{3:040x}")
    Path(artifact_path(stopped / "artifacts", key)).write_bytes(b"newer")
    done = run("backup", tmp_path / "copy", "--data-dir", stopped)
    assert "4 artifacts" in done.output
    assert "1 went while it was made" in done.output


@pytest.mark.parametrize("database", ["node.sqlite", "key_values.sqlite"])
def test_a_damaged_backup_is_not_restored(stopped: Path, tmp_path: Path, database: str) -> None:
    assert run("backup", tmp_path / "copy", "--data-dir", stopped).exit_code == 0
    with (tmp_path / "copy" / database).open("r+b") as file:
        file.seek(4_096)
        file.write(bytes(4_096))
    done = run("restore", tmp_path / "copy", "--data-dir", tmp_path / "new")
    assert done.exit_code == 2
    assert database in done.stderr
    assert not list(tmp_path.glob("new*"))


def test_names_that_are_taken(stopped: Path, tmp_path: Path) -> None:
    assert "is there already" in run("backup", tmp_path, "--data-dir", stopped).stderr
    assert run("backup", tmp_path / "copy", "--data-dir", stopped).exit_code == 0
    refused = run("restore", tmp_path / "copy", "--data-dir", stopped)
    assert refused.exit_code == 2
    assert "is there already: give another by --data-dir" in refused.stderr
    (tmp_path / "other.partial").mkdir()
    assert (
        "is left of one that did not end" in run("backup", tmp_path / "other", "--data-dir", stopped).stderr
    )


@pytest.mark.parametrize("place", ["artifacts/copy", "copy", "."])
def test_a_backup_goes_nowhere_into_the_data_directory(stopped: Path, place: str) -> None:
    """Below artifacts the node would take its files in, and evict them."""
    done = run("backup", stopped / place, "--data-dir", stopped)
    assert done.exit_code == 2
    assert f"is inside the data directory {stopped}: choose a place outside" in done.stderr


def test_the_directory_around_a_backup_must_be_there(stopped: Path, tmp_path: Path) -> None:
    done = run("backup", tmp_path / "no" / "copy", "--data-dir", stopped)
    assert done.exit_code == 2
    assert f"make {tmp_path}/no first" in done.stderr


def test_rows_that_wait_in_a_spill_file_are_not_forgotten(stopped: Path, tmp_path: Path) -> None:
    (stopped / "key_values.spill").write_bytes(b"rows")
    done = run("backup", tmp_path / "copy", "--data-dir", stopped)
    assert done.exit_code == 2
    assert "start the node once" in done.stderr
    assert not list(tmp_path.glob("copy*"))


def test_what_is_no_backup(tmp_path: Path) -> None:
    done = run("restore", tmp_path, "--data-dir", tmp_path / "new")
    assert done.exit_code == 2
    assert "is no backup: there is no backup.json in it" in done.stderr
    (tmp_path / "backup.json").write_text("{")
    assert "is damaged" in run("restore", tmp_path, "--data-dir", tmp_path / "new").stderr
