"""`undercroft doctor`: each thing that can be wrong is found and named, with what to do."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.node_process import node_process
from undercroft.cli import app, examinations
from undercroft.storage.capacity import Volume

FAR_S = 3_600


def diagnose(data_dir: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and every finding that is not "ok"."""
    done = CliRunner().invoke(app, ["doctor", "--data-dir", str(data_dir), "--json", *arguments])
    findings = [json.loads(line) for line in done.output.splitlines()]
    assert findings, done.output
    assert all(one["advice"] for one in findings if one["state"] != "ok")
    return done.exit_code, [one for one in findings if one["state"] != "ok"]


@pytest.fixture(autouse=True)
def _free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        monkeypatch.setenv("UNDERCROFT_PORT", str(free.getsockname()[1]))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    found = tmp_path / "node"
    found.mkdir(mode=0o700)
    return found


def test_before_the_first_start(tmp_path: Path) -> None:
    assert diagnose(tmp_path / "new") == (0, [])
    assert not (tmp_path / "new").exists()


def test_beside_a_running_node(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_process(data_dir) as node:
        monkeypatch.setenv("UNDERCROFT_PORT", node.url.rpartition(":")[2])
        done = CliRunner().invoke(app, ["doctor", "--data-dir", str(data_dir)])
        assert done.exit_code == 0
        assert f"{node.url} runs and is well" in done.output
        assert "PROBLEM" not in done.output
    assert diagnose(data_dir) == (0, [])
    assert not list(data_dir.glob("doctor-*"))


def test_beside_a_node_of_another_data_directory(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node_process(data_dir) as node:
        monkeypatch.setenv("UNDERCROFT_PORT", node.url.rpartition(":")[2])
        for other in (tmp_path / "new", tmp_path):
            status, found = diagnose(other)
            assert status == 0
            assert [one["found"] for one in found if one["what"] == "node"] == [
                f"{node.url} runs, but works in another directory than {other}"
            ]


def test_wrong_settings(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_ACK", "later")
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["what"], finding["state"]) == (1, "settings", "problem")
    assert "ack = 'later'" in finding["found"]


def test_settings_that_do_nothing_or_too_much(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__REGION", "eu")
    monkeypatch.setenv("UNDERCROFT_ALLOW_UNAUTHENTICATED", "true")
    code, (first, second) = diagnose(data_dir)
    assert code == 0
    assert first["found"] == "object_store.region has no effect"
    assert second["what"] == "access"


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    # A file where a directory should be stops everybody, root too.
    (tmp_path / "file").write_text("")
    code, findings = diagnose(tmp_path / "file" / "node")
    assert code == 1
    assert "cannot be made" in findings[0]["found"]
    code, findings = diagnose(tmp_path / "file")
    assert code == 1
    assert "cannot be written to: Not a directory" in findings[0]["found"]


def test_a_directory_everybody_may_look_into(data_dir: Path) -> None:
    data_dir.chmod(0o755)
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["what"]) == (0, "permissions")


@pytest.mark.parametrize(
    ("free", "state", "code"), [(40, None, 0), (8, "warning", 0), (4, "problem", 1)], ids=str
)
def test_room(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str | None, code: int
) -> None:
    volume = Volume(100 << 30, free << 30)
    monkeypatch.setattr(examinations, "volume_of", lambda _path: lambda: volume)
    found_code, findings = diagnose(data_dir)
    assert found_code == code
    assert [one["state"] for one in findings] == ([] if state is None else [state])


def test_no_room_for_databases(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_DISK__LIMIT_PERCENT", "100")
    (finding,) = diagnose(data_dir)[1]
    assert finding["found"] == "disk.limit_percent = 100"


def test_damaged_database_and_rows_left_over(data_dir: Path) -> None:
    (data_dir / "node.sqlite").write_bytes(b"not a database at all" * 1_000)
    (data_dir / "key_values.spill").write_bytes(b"x")
    (data_dir / "key_values.refused.jsonl").write_bytes(b"{}\n")
    code, (database, spill, refused) = diagnose(data_dir)
    assert code == 1
    assert "is not a usable SQLite database" in database["found"]
    assert spill["advice"].startswith("start the node")
    assert refused["found"] == "key_values.refused.jsonl: 3 B of refused rows"


def test_a_clock_that_was_set_back(data_dir: Path) -> None:
    with node_process(data_dir) as node:
        node.stop()
    later = (data_dir / "node.sqlite").stat().st_mtime + FAR_S
    os.utime(data_dir / "node.sqlite", (later, later))
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["what"]) == (0, "clock")


@pytest.fixture
def other_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Listens and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("UNDERCROFT_PORT", str(other.getsockname()[1]))
        monkeypatch.setattr(examinations, "ANSWER_S", 0.05)
        yield


@pytest.mark.usefixtures("other_program")
def test_a_port_that_is_taken(data_dir: Path) -> None:
    code, (finding,) = diagnose(data_dir)
    assert code == 1
    assert "is taken by who does not answer" in finding["found"]


def test_an_address_of_somebody_else(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_HOST", "192.0.2.1")
    monkeypatch.setenv("UNDERCROFT_ALLOW_UNAUTHENTICATED", "true")
    code, findings = diagnose(data_dir)
    assert code == 1
    assert "cannot listen on 192.0.2.1" in findings[-1]["found"]


def test_an_address_no_machine_can_have(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_HOST", "a" * 64 + ".example")
    monkeypatch.setenv("UNDERCROFT_ALLOW_UNAUTHENTICATED", "true")
    code, findings = diagnose(data_dir)
    assert code == 1
    assert "that is no name of a machine" in findings[-1]["found"]


def test_a_limit_without_its_unit(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_DISK__LIMIT_BYTES", "200")
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["state"]) == (0, "warning")
    assert "disk.limit_bytes = 200 bytes" in finding["found"]
    monkeypatch.setenv("UNDERCROFT_DISK__LIMIT_BYTES", "200GB")
    assert diagnose(data_dir) == (0, [])


def test_few_open_files(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 1_024))
    (finding,) = diagnose(data_dir)[1]
    assert finding["found"] == "at most 1024 open files"


def test_object_store(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", f"file://{tmp_path}/bucket")
    (tmp_path / "bucket").mkdir()
    assert diagnose(data_dir) == (0, [])
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", f"file://{tmp_path}/not/there")
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["what"], finding["state"]) == (1, "object store", "problem")
    assert diagnose(data_dir, "--no-bucket") == (0, [])


def test_the_directory_of_an_object_store_that_is_not_there_is_not_made(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", f"file://{tmp_path}/bucket")
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["state"], finding["found"]) == (0, "warning", f"there is no {tmp_path}/bucket")
    assert not (tmp_path / "bucket").exists()


def test_object_store_that_is_down(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = os.environ["UNDERCROFT_PORT"]
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", "s3://bucket")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__ACCESS_KEY_ID", "a")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__SECRET_ACCESS_KEY", "b")
    code, (finding,) = diagnose(data_dir)
    assert (code, finding["state"]) == (0, "warning")
