"""A node gives back what it takes: descriptors and memory."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.node_process import node_process
from tests.system.client import Client, eventually

MIB = 1 << 20
UPLOAD_BYTES = 200 * MIB
ALLOWED_GROWTH = 80 * MIB

WITHOUT_ROW = "nobody-vouches-for-it"


@contextmanager
def no_background_work(data_dir: Path) -> Iterator[None]:
    """The node leaves it to the process that holds the lock; else a file without a row is adopted."""
    data_dir.mkdir()
    with (data_dir / "background.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Peak:
    """The largest resident size seen."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.start = process.memory_info().rss
        self.highest = self.start

    def sample(self) -> None:
        self.highest = max(self.highest, self._process.memory_info().rss)

    @property
    def growth(self) -> int:
        return self.highest - self.start


@contextmanager
def watched(pid: int) -> Iterator[Peak]:
    peak = Peak(psutil.Process(pid))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak.sample()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def use_everything(url: str, run: str, rounds: int) -> None:
    """Every kind of request, well and badly ended, half of them on connections of their own."""
    with Client(url) as kept:
        for index in range(rounds):
            name = f"{run}{index}"
            assert kept.put_value(name, "value").status == 204
            assert kept.get_value(name) == "value"
            assert kept.put_ccache(name, b"x" * (300_000 if index % 20 == 0 else 300)).status == 201
            assert kept.get_ccache(name) is not None
            assert kept.get_ccache(f"no-{name}") is None
            assert kept.get_ccache(WITHOUT_ROW) is None
            with Client(url) as fresh:
                assert fresh.put_ccache(name, b"y" * 300).status == 200
                assert fresh.get_ccache(name) == b"y" * 300
            leave_in_the_middle(url, name)


def leave_in_the_middle(url: str, name: str) -> None:
    with Client(url) as client:
        client.connection.putrequest("PUT", f"/ccache/acme/app/left-{name}")
        client.connection.putheader("Content-Length", "600000")
        client.connection.endheaders(b"x" * 300_000)


def test_descriptors_and_temporary_files_are_given_back(data_dir: Path) -> None:
    with no_background_work(data_dir), node_process(data_dir) as node:
        process = psutil.Process(node.process.pid)
        orphan = data_dir / f"artifacts/acme/app/ccache/no/bo/{WITHOUT_ROW}"
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"a file without a row")
        # What is opened once for all, by threads that start at their first use, is not a leak.
        use_everything(node.url, "warm", 30)
        with Client(node.url) as client:
            before = process.num_fds()
            use_everything(node.url, "then", 500)
            eventually(lambda: process.num_fds() <= before, "as many descriptors as before")
            assert client.request("GET", "/up").status == 200
        (temporary,) = (data_dir / "temporary").iterdir()
        eventually(lambda: list(temporary.iterdir()) == [], "no temporary file is left")
        assert node.stop() == 0


def test_a_large_artifact_takes_no_memory(data_dir: Path) -> None:
    block = bytes(MIB)
    path = "/ccache/acme/app/large"
    with node_process(data_dir) as node, Client(node.url) as client:
        assert client.put_ccache("small", b"x" * 1_000_000).status == 201
        assert client.get_ccache("small") is not None
        with watched(node.process.pid) as sent:
            chunks = (block for _ in range(UPLOAD_BYTES // MIB))
            headers = {"Content-Length": str(UPLOAD_BYTES)}
            assert client.request("PUT", path, chunks, headers).status == 201
        with watched(node.process.pid) as fetched:
            client.connection.request("GET", path)
            response = client.connection.getresponse()
            received = 0
            while piece := response.read(MIB):
                received += len(piece)
            assert received == UPLOAD_BYTES
        with watched(node.process.pid) as sent_in_chunks:
            chunks = (block for _ in range(UPLOAD_BYTES // MIB))
            assert client.request("PUT", path, chunks).status == 200
        assert node.stop() == 0
    (data_dir / "artifacts/acme/app/ccache/la/rg/large").unlink()
    assert sent.growth < ALLOWED_GROWTH
    assert fetched.growth < ALLOWED_GROWTH
    assert sent_in_chunks.growth < ALLOWED_GROWTH
