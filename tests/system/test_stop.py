"""How a node ends: by a signal, by a second one, by a fault of its own."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import crashing_node
from tests.support.locks import lock_of_another_process
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Answer, Client, eventually
from tests.system.data_dir import files_under, query, stored_artifacts, stored_values
from undercroft.cli.serve import ONE_REQUEST_S

ENTRY = "/ccache/acme/app/aabb"

SIGNALS = [signal.SIGTERM, signal.SIGINT]

# Nothing is committed by the clock: what is in SQLite after a stop was drained by it.
NEVER_BY_TIMER = {"ACK": "buffered", "BUFFERS__FLUSH_INTERVAL_MS": "600000"}

# So long that a test which needs it runs into its own time-out.
AGES_MS = "100000"


def names(node: NodeProcess) -> list[str]:
    """Of what was logged, but for what reconcile says whenever it is round."""
    return [record["event"] for record in node.log if not record["event"].startswith("reconcile_")]


# --- a signal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_drains_and_ends_with_0(data_dir: Path, number: signal.Signals) -> None:
    with node_process(data_dir, NEVER_BY_TIMER) as node, Client(node.url) as client:
        for index in range(50):
            assert client.put_value(f"id{index}", str(index)).status == 204
            assert client.put_ccache(f"key{index}", b"%d" % index).status == 201
        assert stored_values(data_dir) == {}
        node.signal(number)
        assert node.wait() == 0
        assert names(node) == ["listening", "stopping", "stopped"]
        assert node.logged("stopping")[0]["signal"] == number.name
        assert node.printed == []
    assert stored_values(data_dir) == {f"id{index}": str(index) for index in range(50)}
    assert len(stored_artifacts(data_dir)) == 50
    # All is in the files themselves, and nothing else is left over.
    assert sorted(path.name for path in data_dir.iterdir() if path.is_file()) == [
        "background.lock",
        "key_values.sqlite",
        "node.sqlite",
    ]
    assert list((data_dir / "temporary").iterdir()) == []


def test_a_stop_does_not_wait_for_idle_connections(data_dir: Path) -> None:
    with node_process(data_dir, {"HTTP__STOP_GRACE_MS": AGES_MS}) as node:
        clients = [Client(node.url) for _ in range(20)]
        for client in clients:
            assert client.request("GET", "/up").status == 200
        node.signal(signal.SIGTERM)
        assert node.wait(30) == 0
        for client in clients:
            client.connection.close()


class SlowUpload:
    """A PUT that stands half-way until `finish`: half of it is in a temporary file."""

    def __init__(self, node: NodeProcess) -> None:
        self.answer: Answer | None = None
        self.error: OSError | None = None
        self._go_on = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(node.url,))
        self._thread.start()
        # That it was sent does not mean that the node has it, nor even the connection.
        temporary = node.data_dir / "temporary"
        eventually(lambda: list(files_under(temporary)), "the first half is written")

    def _chunks(self) -> Iterator[bytes]:
        yield b"a" * 500_000
        self._go_on.wait(60)
        yield b"z" * 500_000

    def _run(self, url: str) -> None:
        with Client(url) as client:
            path = "/ccache/acme/app/slow"
            try:
                self.answer = client.request("PUT", path, self._chunks(), {"Content-Length": "1000000"})
            except OSError as error:
                self.error = error

    def finish(self) -> None:
        self._go_on.set()
        self._thread.join()


def accepts(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((str(address.hostname), int(address.port or 0))).close()
    except ConnectionError:
        return False
    return True


def test_a_request_in_progress_is_finished(data_dir: Path) -> None:
    with node_process(data_dir, {"HTTP__STOP_GRACE_MS": AGES_MS}) as node:
        upload = SlowUpload(node)
        node.signal(signal.SIGTERM)
        eventually(lambda: not accepts(node.url), "nothing new is let in")
        upload.finish()
        assert upload.answer is not None
        assert upload.answer.status == 201
        assert node.wait() == 0
    ((size, _),) = stored_artifacts(data_dir).values()
    assert size == 1_000_000


def test_a_request_that_does_not_end_is_given_up(data_dir: Path) -> None:
    with node_process(data_dir, {"HTTP__STOP_GRACE_MS": "300"}) as node:
        upload = SlowUpload(node)
        try:
            assert node.stop() == 0
        finally:
            upload.finish()
        assert names(node)[-1] == "stopped"
        assert node.printed == []
    assert stored_artifacts(data_dir) == {}
    assert list((data_dir / "temporary").iterdir()) == []


def test_a_second_node_on_the_same_data_leaves_uploads_of_the_first_alone(data_dir: Path) -> None:
    with node_process(data_dir) as first:
        upload = SlowUpload(first)
        with node_process(data_dir) as second:
            upload.finish()
            assert upload.answer is not None, upload.error
            assert upload.answer.status == 201
            with Client(second.url) as client:
                assert client.get_ccache("slow") == b"a" * 500_000 + b"z" * 500_000
            assert second.stop() == 0
        assert first.stop() == 0


def test_a_signal_while_it_starts(data_dir: Path) -> None:
    """At whatever moment: it ends, without a trace of an error, and starts the next time."""
    for delay_ms in range(0, 900, 100):
        node = NodeProcess(data_dir)
        time.sleep(delay_ms / 1_000)
        node.signal(signal.SIGTERM)
        try:
            assert node.wait() in (0, -signal.SIGTERM)
        finally:
            node.kill()
        assert node.printed == []
    with node_process(data_dir) as node:
        assert node.stop() == 0


# --- a second signal ------------------------------------------------------------------------------


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_stops_at_once(data_dir: Path, first: signal.Signals, second: signal.Signals) -> None:
    settings = NEVER_BY_TIMER | {"BUFFERS__SHUTDOWN_MS": AGES_MS}
    with node_process(data_dir, settings) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / "key_values.sqlite"):
            assert client.put_value("id", "value").status == 204
            node.signal(first)
            # The drain has begun, and cannot come to an end.
            node.wait_for("flush_stalled")
            assert node.process.poll() is None
            time.sleep(ONE_REQUEST_S)  # sooner it would count as the first
            node.signal(second)
            assert node.wait(20) == 128 + second
        assert names(node) == ["listening", "stopping", "flush_stalled"]
        assert node.printed == ["undercroft: stopped at once by a second signal"]
    with node_process(data_dir) as node:
        assert node.stop() == 0
    assert query(data_dir / "key_values.sqlite", "PRAGMA integrity_check") == [("ok",)]


def test_two_signals_at_once_are_one_request(data_dir: Path) -> None:
    """As `timeout` sends them, to the process and to its group."""
    with node_process(data_dir, NEVER_BY_TIMER) as node, Client(node.url) as client:
        assert client.put_value("id", "value").status == 204
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        assert node.printed == []
    assert stored_values(data_dir) != {}


@pytest.mark.parametrize("number", SIGNALS)
def test_nobody_reads_the_log_any_more(data_dir: Path, number: signal.Signals) -> None:
    """It goes on, answers as always, and stops when it is told to."""
    with node_process(data_dir, {"LOG__LEVEL": "debug"}) as node, Client(node.url) as client:
        assert client.request("PUT", ENTRY, b"bytes").status == 201
        node.stop_reading()
        file = data_dir / "artifacts" / "acme/app/ccache/aa/bb/aabb"
        file.write_bytes(b"BYTES!")
        assert client.request("GET", ENTRY).status == 404  # damaged, which is logged
        assert client.request("PUT", ENTRY, b"bytes").status == 201
        node.signal(number)
        assert node.wait() == 0
    assert stored_artifacts(data_dir)


# --- faults ---------------------------------------------------------------------------------------


def faulty(fault: str) -> tuple[str, ...]:
    """A program for `node_process`. Its folder must not become a place to import from (-P)."""
    return ("-P", crashing_node.__file__, fault)


@pytest.mark.parametrize(
    "worker", ["buffer key_values", "buffer cas_artifacts", "buffer s3_transfers", "http server"]
)
def test_a_crashed_worker_drains_the_node(data_dir: Path, worker: str) -> None:
    program = faulty(f"worker:{worker}")
    with node_process(data_dir, NEVER_BY_TIMER, program=program) as node, Client(node.url) as client:
        for index in range(50):
            assert client.put_value(f"id{index}", str(index)).status == 204
            assert client.put_ccache(f"key{index}", b"%d" % index).status == 201
        assert stored_values(data_dir) == {}
        node.signal(signal.SIGUSR1)
        assert node.wait() == 1
        assert [record["worker"] for record in node.logged("worker_crashed")] == [worker]
        (line,) = node.printed
        assert f"the worker {worker} crashed" in line
        assert crashing_node.FAULT in line
    assert stored_values(data_dir) == {f"id{index}": str(index) for index in range(50)}
    assert len(stored_artifacts(data_dir)) == 50


def test_a_faulty_worker_without_a_fault_stops_like_any_other(data_dir: Path) -> None:
    """The counterpart: it is the fault that the tests above see."""
    program = faulty("worker:buffer key_values")
    with node_process(data_dir, program=program) as node:
        assert node.stop() == 0
        assert names(node) == ["listening", "stopping", "stopped"]


def test_a_table_that_cannot_be_written_is_spilled_and_the_others_are_drained(data_dir: Path) -> None:
    program = faulty("table:key_values")
    settings = NEVER_BY_TIMER | {"BUFFERS__SHUTDOWN_MS": AGES_MS}
    with node_process(data_dir, settings, program=program) as node, Client(node.url) as client:
        for index in range(50):
            assert client.put_value(f"id{index}", str(index)).status == 204
            assert client.put_ccache(f"key{index}", b"%d" % index).status == 201
        with lock_of_another_process(data_dir / "node.sqlite"):
            node.signal(signal.SIGUSR1)
            node.signal(signal.SIGTERM)
            # The key values are given up while the artifacts still wait for their lock.
            eventually(lambda: node.logged("rows_spilled"), "the key values are spilled")
            eventually(lambda: node.logged("flush_stalled"), "the artifacts meet the lock")
        assert node.wait() == 1
        (line,) = node.printed
        assert "buffer key_values" in line
        assert crashing_node.FAULT in line
    assert stored_values(data_dir) == {}
    assert len(stored_artifacts(data_dir)) == 50
    with node_process(data_dir) as node:
        assert node.logged("spill_replayed")[0]["rows"] == 50
        assert stored_values(data_dir) == {f"id{index}": str(index) for index in range(50)}
        assert node.stop() == 0
