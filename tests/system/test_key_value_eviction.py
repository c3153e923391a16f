"""A node whose key values have outgrown their bound: it evicts while clients go on."""

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from undercroft.database.connection import open_connection, transaction
from undercroft.database.schema import KEY_VALUES, migrate

ROWS, ROWS_IN_THE_LONG_FORM = 60_000, 1_000_000
PATIENCE_S = 900
CLIENTS = 4
PAUSE_S = 0.02
"""Between two puts of a client, so that what all of them put fits in the room that the bound leaves."""

SQL = """INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at)
VALUES (?, ?, ?, ?, ?)"""


def fill(data_dir: Path, rows: int) -> int:
    """Writes the rows with no node around; answers the size of the file."""
    data_dir.mkdir()
    path = data_dir / "key_values.sqlite"
    yesterday = time.time_ns() // 1_000 - 86_400_000_000
    connection = open_connection(path)
    with transaction(connection):
        migrate(connection, KEY_VALUES)
        for n in range(rows):
            digest = hashlib.sha256(str(n).encode()).hexdigest()
            payload = json.dumps({"entries": [{"value": digest * 3 + digest[:30]}]})
            at = yesterday + n
            connection.execute(SQL, (f"keyvalue:acme:app:{digest}", payload, at, at, at))
    connection.close()
    return path.stat().st_size


def on_disk(data_dir: Path) -> int:
    """Bytes of the file and of its WAL."""
    files = (data_dir / name for name in ("key_values.sqlite", "key_values.sqlite-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


class Clients:
    """Puts over HTTP, from threads of their own, with their latencies."""

    def __init__(self, url: str) -> None:
        self.put: dict[str, str] = {}
        self.statuses: set[int] = set()
        self._latencies: list[float] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, n)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self, url: str, number: int) -> None:
        with Client(url) as client:
            count = 0
            while not self._ended.wait(PAUSE_S):
                name, value = f"new{number}-{count}", f"{number} {count} " * 25
                started = time.perf_counter()
                self.statuses.add(client.put_value(name, value).status)
                self._latencies.append(time.perf_counter() - started)
                self.put[name] = value
                count += 1

    def p99_ms(self, least: int = 500) -> float:
        """Of the puts since the last time this was asked, so many of them at least."""
        eventually(lambda: len(self._latencies) >= least, "enough puts to tell")
        latencies, self._latencies = sorted(self._latencies), []
        return latencies[int(len(latencies) * 0.99)] * 1_000

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def evict(node: NodeProcess, bound: int) -> tuple[Clients, float]:
    """Lets clients put until the files are below the bound; the clients, and their p99."""
    clients = Clients(node.url)
    try:
        eventually(
            lambda: node.logged("key_values_evicted") and on_disk(node.data_dir) <= bound,
            "the files are below the bound",
            PATIENCE_S,
        )
        p99 = clients.p99_ms(1)
    finally:
        clients.stop()
    return clients, p99


def quiet_p99(data_dir: Path) -> float:
    """With a bound that nothing exceeds."""
    with node_process(data_dir) as node:
        clients = Clients(node.url)
        try:
            p99 = clients.p99_ms()
        finally:
            clients.stop()
        assert node.stop() == 0
    return p99


def test_the_files_shrink_below_the_bound_while_clients_put(
    data_dir: Path, pytestconfig: pytest.Config
) -> None:
    rows = ROWS_IN_THE_LONG_FORM if pytestconfig.getoption("--torture") else ROWS
    before = fill(data_dir, rows)
    bound = before // 3
    quiet = quiet_p99(data_dir)
    settings = {
        "KEY_VALUES__MAX_DATABASE_BYTES": str(bound),
        "KEY_VALUES__EVICTION_INTERVAL_MS": "500",
    }
    started = time.monotonic()
    with node_process(data_dir, settings) as node:
        clients, during = evict(node, bound)
        took = time.monotonic() - started
        assert clients.statuses == {204}
        with Client(node.url) as client:
            assert {name: client.get_value(name) for name in clients.put} == clients.put
        eventually(lambda: on_disk(data_dir) <= bound, "the files are below the bound at rest")
        after = on_disk(data_dir)
        assert node.stop() == 0
    sys.stdout.write(
        f"\n{rows} rows: {before} bytes, bound {bound}, then {after}, in {took:.1f} s with the start; "
        f"put p99 {quiet:.2f} ms quiet, {during:.2f} ms during eviction, ratio {during / quiet:.2f}\n"
    )
