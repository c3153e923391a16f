"""`undercroft status`: of a node that runs, of one that does not, of what is none."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client
from undercroft.cli import app, status
from undercroft.cli.status import duration
from undercroft.telemetry.status import Status


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["status", *map(str, arguments)])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_process(tmp_path / "node") as running:
        with Client(running.url) as client:
            client.put_ccache("a" * 40, b"x" * 1_000)
            client.get_ccache("a" * 40)
            client.get_ccache("b" * 40)
        yield running


@pytest.fixture
def nobody() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_of_a_running_node(node: NodeProcess) -> None:
    done = run("--url", node.url)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert done.output.splitlines()[0].endswith("all is well")
    assert ["ccache", "3", "50.0", "%", "1.0", "kB", "1.0", "kB", "-", "0"] in lines
    assert ["acme/app", "3", "50.0", "%", "1.0", "kB", "1.0", "kB", "-", "0"] in lines
    assert "last hour" in done.output
    assert "last day" in run("--url", node.url, "--day").output
    assert json.loads(run("--url", node.url, "--json").output)["hour"]["total"]["hits"] == 1


def test_the_address_comes_from_the_settings(node: NodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_PORT", node.url.rpartition(":")[2])
    assert run().exit_code == 0


def test_a_node_of_another_data_directory(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_PORT", node.url.rpartition(":")[2])
    assert run("--data-dir", node.data_dir).exit_code == 0
    another = run("--data-dir", tmp_path)
    assert another.exit_code == 2
    assert f"the node at {node.url} works in another directory than {tmp_path}" in another.stderr
    missing = run("--data-dir", tmp_path / "missing")
    assert missing.exit_code == 2
    assert (
        f"there is no directory {tmp_path / 'missing'}; the node at {node.url} has another" in missing.stderr
    )
    # Who names the address means the node there, whatever else is on this machine.
    assert run("--data-dir", tmp_path, "--url", node.url).exit_code == 0
    # One whose disk fails cannot say which it is.
    found = msgspec.json.decode(run("--url", node.url, "--json").output, type=Status)
    status.refuse_another(msgspec.structs.replace(found, data_directory=""), tmp_path, node.url)


def test_watching(node: NodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pause(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", pause)
    done = run("--url", node.url, "--watch")
    assert done.exit_code == 130
    assert asked == [status.WATCH_S] * 3
    assert "all is well" in done.output


def test_a_node_that_asks_for_a_token(tmp_path: Path) -> None:
    made = CliRunner().invoke(
        app, ["token", "create", "--data-dir", str(tmp_path / "node"), "--project", "*/*", "--read"]
    )
    with node_process(tmp_path / "node", {"AUTH__MODE": "tokens"}) as node:
        refused = run("--url", node.url)
        assert refused.exit_code == 2
        assert "asks for a token: give --token" in refused.stderr
        assert run("--url", node.url, "--token", made.output.strip()).exit_code == 0


def test_of_a_stopped_node(node: NodeProcess, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.stop() == 0
    (node.data_dir / "key_values.spill").write_bytes(b"x")
    monkeypatch.setenv("UNDERCROFT_PORT", nobody.rpartition(":")[2])
    done = run("--data-dir", node.data_dir)
    assert done.exit_code == 3
    assert "has 1 artifacts" in done.output
    assert "key_values.spill: rows that the next start commits" in done.output
    found = json.loads(run("--data-dir", node.data_dir, "--json").output)
    assert (found["running"], found["artifacts"], found["left_over"]) == (False, 1, ["key_values.spill"])


@pytest.mark.parametrize("content", [b"", b"no database " * 500], ids=["empty", "no database"])
@pytest.mark.parametrize("command", ["status", "scrub", "backup"])
def test_of_a_stopped_node_whose_database_cannot_be_read(
    node: NodeProcess, nobody: str, monkeypatch: pytest.MonkeyPatch, command: str, content: bytes
) -> None:
    assert node.stop() == 0
    for leftover in node.data_dir.glob("node.sqlite-*"):
        leftover.unlink()
    (node.data_dir / "node.sqlite").write_bytes(content)
    monkeypatch.setenv("UNDERCROFT_PORT", nobody.rpartition(":")[2])
    more = [str(node.data_dir.with_name("copy"))] if command == "backup" else []
    done = CliRunner().invoke(app, [command, *more, "--data-dir", str(node.data_dir)])
    assert done.exit_code == 2, done.output
    assert "node.sqlite" in done.stderr


def test_nobody_and_nothing(tmp_path: Path, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_PORT", nobody.rpartition(":")[2])
    for arguments in (["--data-dir", tmp_path], ["--url", nobody]):
        done = run(*arguments)
        assert done.exit_code == 3
        assert done.stderr == f"undercroft: no node answers at {nobody}\n"


@contextmanager
def server(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}"
        finally:
            made.shutdown()
            thread.join()


def test_who_is_no_node(node: NodeProcess) -> None:
    with server(b"hello") as url:
        done = run("--url", url)
    assert done.exit_code == 2
    assert "is no Undercroft of this version: hello" in done.stderr


def test_a_node_with_trouble(node: NodeProcess) -> None:
    found = json.loads(run("--url", node.url, "--json").output)
    found["buffers"][0]["stalled"] = "database is locked"
    found["transfers"]["parked"] = 2
    found["object_store"]["health"] = "failing"
    with server(json.dumps(found).encode()) as url:
        done = run("--url", url)
    assert done.exit_code == 1
    first = done.output.splitlines()[0]
    assert "buffer key_values: database is locked; the object store fails; 2 transfers are parked" in first


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "250 ms"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (200_000, "2 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
