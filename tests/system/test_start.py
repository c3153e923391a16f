"""What keeps a node from starting: one line that says so, exit status 2, and everything left as it was."""

import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client
from tests.system.data_dir import query, snapshot

KEY_VALUES_ID = 0x55434B56


def refusal(
    data_dir: Path,
    settings: Mapping[str, str] | None = None,
    *,
    port: int = 0,
    arguments: Sequence[str] = (),
    wrapper: Sequence[str] = (),
) -> str:
    """The line with which a node says that it will not start."""
    node = NodeProcess(data_dir, settings, port=port, arguments=arguments, wrapper=wrapper)
    try:
        status = node.wait()
    finally:
        node.kill()
    assert len(node.printed) == 1, node.printed
    assert node.log == []
    assert status == 2
    (line,) = node.printed
    assert line.startswith("undercroft: ")
    return line


@pytest.fixture
def filled(data_dir: Path) -> Path:
    """The data directory of a node that has stopped, with a key value in it."""
    with node_process(data_dir) as node:
        with Client(node.url) as client:
            assert client.put_value("kept", "value").status == 204
        assert node.stop() == 0
    return data_dir


def test_the_address_is_served_once_it_is_announced(data_dir: Path) -> None:
    for _ in range(3):
        with node_process(data_dir) as node, Client(node.url) as client:
            assert client.request("GET", "/up").status == 200


# --- the port -------------------------------------------------------------------------------------


def untouched(data_dir: Path) -> dict[str, str]:
    """What nobody writes to while nobody asks: all but the positions of the first node's own workers."""
    return {name: digest for name, digest in snapshot(data_dir).items() if not name.startswith("node.sqlite")}


@pytest.mark.parametrize("same_data", [True, False], ids=["same data", "other data"])
def test_a_second_node_on_the_port_is_refused(data_dir: Path, tmp_path: Path, same_data: bool) -> None:
    with node_process(data_dir) as node, Client(node.url) as client:
        assert client.put_value("kept", "value").status == 204
        port = int(node.url.rpartition(":")[2])
        second = data_dir if same_data else tmp_path / "second"
        before = untouched(data_dir)
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(second, port=port)
        assert untouched(data_dir) == before
        assert same_data or not second.exists()
        assert client.get_value("kept") == "value"
        assert client.put_value("later", "value").status == 204
        assert node.stop() == 0


def test_a_port_that_something_else_listens_on(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refusal(data_dir, port=port)
    assert not data_dir.exists()


def test_a_port_is_free_again_at_once(data_dir: Path) -> None:
    """Connections that linger after a stop must not keep the next node from its port."""
    with node_process(data_dir) as node, Client(node.url) as client:
        assert client.request("GET", "/up").status == 200
        port = int(node.url.rpartition(":")[2])
        assert node.stop() == 0
    with node_process(data_dir, port=port) as node:
        assert node.url.endswith(f":{port}")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_to_listen_beyond_loopback_must_be_said_explicitly(data_dir: Path, host: str) -> None:
    line = refusal(data_dir, arguments=["--host", host])
    assert repr(host) in line
    assert "allow_unauthenticated" in line
    assert not data_dir.exists()


def test_listening_everywhere_when_it_is_allowed(data_dir: Path) -> None:
    settings = {"HOST": "0.0.0.0", "ALLOW_UNAUTHENTICATED": "true"}
    with node_process(data_dir, settings) as node:
        with Client(node.url.replace("0.0.0.0", "127.0.0.1")) as client:
            assert client.request("GET", "/up").status == 200
        assert node.stop() == 0


def test_an_address_that_is_not_this_machines(data_dir: Path) -> None:
    line = refusal(data_dir, {"ALLOW_UNAUTHENTICATED": "true"}, arguments=["--host", "192.0.2.1"])
    assert "cannot listen on 192.0.2.1:0" in line


# --- settings -------------------------------------------------------------------------------------


def test_everything_wrong_is_reported_together(data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "undercroft.toml"
    config.write_text('ack = "sometimes"\nbogus_in_toml = 1\n[buffers.key_values]\nmax_batch_size = 0\n')
    settings = {
        "DISK__LIMIT_PERCENT": "101",
        "BUFFERS__SHUTDOWN_MS": "soon",
        "BOGUS_IN_ENVIRONMENT": "1",
        "LOG__BOGUS": "1",
    }
    line = refusal(data_dir, settings, port=70_000, arguments=["--config", str(config)])
    for wrong in (
        "port = 70000",
        "ack = 'sometimes'",
        "bogus_in_toml is no setting",
        "buffers.key_values.max_batch_size = 0",
        "disk.limit_percent = '101'",
        "buffers.shutdown_ms = 'soon'",
        "UNDERCROFT_BOGUS_IN_ENVIRONMENT in the environment is no setting",
        "UNDERCROFT_LOG__BOGUS in the environment is no setting",
    ):
        assert wrong in line
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("contents", "reason"),
    [(None, "No such file"), ("ack = ", "Invalid value"), ("ack = 1\nack = 2\n", "Cannot overwrite")],
    ids=["missing", "malformed", "double"],
)
def test_a_config_file_that_cannot_be_used(
    data_dir: Path, tmp_path: Path, contents: str | None, reason: str
) -> None:
    config = tmp_path / "undercroft.toml"
    if contents is not None:
        config.write_text(contents)
    line = refusal(data_dir, arguments=["--config", str(config)])
    assert str(config) in line
    assert reason in line
    assert not data_dir.exists()


def test_flags_win_over_the_environment_and_that_over_the_file(data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "undercroft.toml"
    config.write_text('host = "192.0.2.1"\nack = "committed"\ndata_dir = "/nonexistent"\n')
    settings = {"HOST": "192.0.2.2", "ACK": "buffered"}
    arguments = ["--config", str(config), "--host", "127.0.0.2"]
    with node_process(data_dir, settings, arguments=arguments) as node:
        (listening,) = node.logged("listening")
        assert listening["url"].startswith("http://127.0.0.2:")
        assert listening["ack"] == "buffered"
        assert listening["data_dir"] == str(data_dir)
        assert node.stop() == 0


# --- the data directory ---------------------------------------------------------------------------


def test_a_data_directory_below_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"not a directory")
    assert str(file) in refusal(file / "node")
    assert file.read_bytes() == b"not a directory"


def test_a_data_directory_that_is_a_file(data_dir: Path) -> None:
    data_dir.write_bytes(b"not a directory")
    assert str(data_dir) in refusal(data_dir)
    assert data_dir.read_bytes() == b"not a directory"


@pytest.fixture
def as_anybody() -> Sequence[str]:
    """A command prefix under which permissions hold; root passes over them otherwise."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is part of util-linux, which Debian cannot do without"
    return (setpriv, "--bounding-set", "-dac_override,-dac_read_search")


@pytest.fixture
def read_only(filled: Path) -> Iterator[Callable[[Path], None]]:
    """Takes away the permission to write; given back for the sweepers of pytest."""
    changed: list[tuple[Path, int]] = []

    def protect(path: Path) -> None:
        changed.append((path, path.stat().st_mode))
        path.chmod(0o555 if path.is_dir() else 0o444)

    yield protect
    for path, mode in changed:
        path.chmod(mode)


@pytest.mark.parametrize("protected", [".", "temporary", "key_values.sqlite", "node.sqlite"])
def test_a_data_directory_without_permission_to_write(
    filled: Path, protected: str, as_anybody: Sequence[str], read_only: Callable[[Path], None]
) -> None:
    before = snapshot(filled)
    read_only(filled / protected)
    line = refusal(filled, wrapper=as_anybody)
    assert str(filled) in line
    assert snapshot(filled) == before


def test_a_new_data_directory_without_permission_to_make_it(
    tmp_path: Path, as_anybody: Sequence[str]
) -> None:
    parent = tmp_path / "protected"
    parent.mkdir()
    parent.chmod(0o555)
    try:
        line = refusal(parent / "node", wrapper=as_anybody)
    finally:
        parent.chmod(0o755)
    assert str(parent / "node") in line
    assert "Permission denied" in line


# --- database files -------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(b"this was never a database\n" * 1_000)


def _garbage_inside(path: Path) -> None:
    """The first page as it was, nonsense behind it."""
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x99" * (len(data) - 4096))


def _truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
        connection.commit()


def _other_of_ours(path: Path) -> None:
    shutil.copyfile(path.with_name("node.sqlite"), path)


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (KEY_VALUES_ID,)
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_garbage, "not a usable SQLite database"),
        (_garbage_inside, "not a usable SQLite database"),
        (_truncated, "not a usable SQLite database"),
        (_foreign, "another program"),
        (_other_of_ours, "another program"),
        (_newer, "schema version 99"),
    ],
)
def test_a_database_file_that_is_not_usable(filled: Path, spoil: Callable[[Path], None], reason: str) -> None:
    path = filled / "key_values.sqlite"
    spoil(path)
    before = snapshot(filled)
    line = refusal(filled)
    assert str(path) in line
    assert reason in line
    assert "left untouched" in line
    assert snapshot(filled) == before


def test_a_directory_in_the_place_of_a_database(filled: Path) -> None:
    path = filled / "key_values.sqlite"
    path.unlink()
    path.mkdir()
    assert str(path) in refusal(filled)


def test_a_spill_file_that_cannot_be_read(filled: Path) -> None:
    """It holds rows that were acknowledged: only a person may say that they do not matter."""
    spill = filled / "key_values.spill"
    spill.write_text("not what the node wrote\n")
    before = snapshot(filled)
    assert str(spill) in refusal(filled)
    assert snapshot(filled) == before


def test_the_data_is_as_it_was_after_all_that(filled: Path) -> None:
    """The counterpart of the tests above: what they start from is good."""
    with node_process(filled) as node:
        with Client(node.url) as client:
            assert client.get_value("kept") == "value"
        assert node.stop() == 0
    assert query(filled / "key_values.sqlite", "PRAGMA integrity_check") == [("ok",)]
