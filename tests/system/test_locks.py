"""A database that another process keeps locked, as a backup or a `sqlite3` shell does."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.campaign import Campaign
from tests.support.locks import lock_of_another_process
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Answer, Client, eventually
from tests.system.data_dir import SPILL, stored_artifacts, stored_values

LOCK_S = 3
RETRIES = "tuist_cache_sqlite_writer_retries_total"

BUFFERED = {"ACK": "buffered"}
SHORT_STOP = BUFFERED | {"BUFFERS__SHUTDOWN_MS": "300"}


def put_values(client: Client, prefix: str, seconds: float) -> int:
    """As many key values as go into so many seconds, each answered before the next is sent."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        assert client.put_value(f"{prefix}{count}", str(count)).status == 204
        count += 1
    return count


class Asynchronously:
    """A request in a thread of its own."""

    def __init__(self, url: str, send: Callable[[Client], Answer]) -> None:
        self._answer: Answer | None = None
        self._thread = threading.Thread(target=self._run, args=(url, send))
        self._thread.start()

    def _run(self, url: str, send: Callable[[Client], Answer]) -> None:
        with Client(url) as client:
            self._answer = send(client)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def answer(self) -> Answer:
        self._thread.join()
        assert self._answer is not None
        return self._answer


# --- buffered -------------------------------------------------------------------------------------


def test_buffered_writes_are_answered_while_the_database_is_locked(
    data_dir: Path, campaign: Campaign
) -> None:
    with node_process(data_dir, BUFFERED) as node, Client(node.url) as client:
        quiet = put_values(client, "quiet", 1)
        eventually(lambda: len(stored_values(data_dir)) == quiet, "all of the quiet run is committed")
        with lock_of_another_process(data_dir / "key_values.sqlite"):
            # All of these are answered before the lock is released.
            locked = put_values(client, "locked", LOCK_S)
            assert len(stored_values(data_dir)) == quiet
            assert client.metric(RETRIES, buffer="key_values", operation="key_values") > 0
            assert client.metric("tuist_cache_sqlite_writer_pending_key_values") == locked
            assert client.get_value("locked0") == "0"
            assert client.request("GET", "/up").status == 200
        # Three times as long: at least as many, however busy this machine is.
        assert locked >= quiet
        assert locked >= 100
        eventually(lambda: len(stored_values(data_dir)) == quiet + locked, "everything is committed")
        expected = {f"quiet{n}": str(n) for n in range(quiet)} | {f"locked{n}": str(n) for n in range(locked)}
        assert stored_values(data_dir) == expected
        campaign.checked("values committed", len(expected))
        assert client.metric("tuist_cache_sqlite_writer_pending_key_values") == 0
        assert client.metric("tuist_cache_sqlite_writer_pending_total") == 0
        assert node.stop() == 0
        assert not list(data_dir.glob("*.spill"))
    campaign.ran()


def test_without_a_lock_nothing_is_retried(data_dir: Path) -> None:
    """The counterpart: it is the lock that the test above counts."""
    with node_process(data_dir, BUFFERED) as node, Client(node.url) as client:
        assert put_values(client, "id", 1) > 0
        assert client.metric(RETRIES) == 0
        assert node.stop() == 0


def test_artifacts_are_stored_and_served_while_their_database_is_locked(
    data_dir: Path, campaign: Campaign
) -> None:
    with node_process(data_dir, BUFFERED) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / "node.sqlite"):
            for index in range(100):
                assert client.put_ccache(f"key{index}", b"%d" % index).status == 201
                assert client.get_ccache(f"key{index}") == b"%d" % index
            node.wait_for("flush_stalled")
            assert stored_artifacts(data_dir) == {}
        eventually(lambda: len(stored_artifacts(data_dir)) == 100, "every row is committed")
        assert client.metric(RETRIES, buffer="cas_artifacts") > 0
        assert node.stop() == 0
    campaign.ran()
    campaign.checked("artifacts served under the lock", 100)


# --- committed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", ["key_values.sqlite", "node.sqlite"])
def test_a_committed_write_waits_for_the_lock(data_dir: Path, database: str) -> None:
    settings = {"BUFFERS__COMMIT_TIMEOUT_MS": "60000"}
    with node_process(data_dir, settings) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / database):
            write = Asynchronously(node.url, lambda c: write_to(database, c))
            eventually(lambda: client.metric(RETRIES) >= 2, "the write meets the lock")
            assert not write.done
        assert write.answer().status in (201, 204)
        assert written(database, data_dir)
        assert node.stop() == 0


def write_to(database: str, client: Client) -> Answer:
    if database == "key_values.sqlite":
        return client.put_value("id", "value")
    return client.put_ccache("abcd", b"value")


def written(database: str, data_dir: Path) -> bool:
    if database == "key_values.sqlite":
        return stored_values(data_dir) == {"id": "value"}
    return set(stored_artifacts(data_dir)) == {"acme/app/ccache/ab/cd/abcd"}


@pytest.mark.parametrize(("database", "status"), [("key_values.sqlite", 503), ("node.sqlite", 413)])
def test_a_commit_that_takes_too_long(data_dir: Path, database: str, status: int) -> None:
    """The client is told to come back, in the terms of its dialect; the row is kept all the same."""
    with node_process(data_dir, {"BUFFERS__COMMIT_TIMEOUT_MS": "300"}) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / database):
            answer = write_to(database, client)
            assert answer.status == status
            assert ("retry-after" in answer.headers) == (status == 503)
            assert not written(database, data_dir)
            # Health says so once it lasts.
            eventually(lambda: client.request("GET", "/up").status == 503, "the node is not healthy")
        eventually(lambda: written(database, data_dir), "the row is committed")
        eventually(lambda: client.request("GET", "/up").status == 200, "the node is healthy again")
        assert node.stop() == 0


# --- a stop under a lock --------------------------------------------------------------------------


def stop_under_lock(data_dir: Path, database: str) -> bytes:
    """Stops a node that cannot drain; answers what it spilled."""
    with node_process(data_dir, SHORT_STOP) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / database):
            assert write_to(database, client).status in (201, 204)
            assert node.stop() == 0
        (spilled,) = node.logged("rows_spilled")
        assert spilled["rows"] == 1
        assert node.logged("drain_timed_out")
        assert node.printed == []
    assert [path.name for path in data_dir.glob("*.spill*")] == [SPILL[database]]
    return (data_dir / SPILL[database]).read_bytes()


def is_served(database: str, client: Client) -> bool:
    if database == "key_values.sqlite":
        return client.get_value("id") == "value"
    return client.get_ccache("abcd") == b"value"


@pytest.mark.parametrize("database", ["key_values.sqlite", "node.sqlite"])
def test_what_a_lock_keeps_out_is_spilled_and_replayed(
    data_dir: Path, campaign: Campaign, database: str
) -> None:
    for number in campaign.rounds(short=1, long=20):
        spill_and_replay(data_dir / str(number), database)
        campaign.checked("spills replayed")


def spill_and_replay(data_dir: Path, database: str) -> None:
    stop_under_lock(data_dir, database)
    assert not written(database, data_dir)
    with node_process(data_dir) as node, Client(node.url) as client:
        # Before the address was served.
        (replayed,) = node.logged("spill_replayed")
        assert replayed["rows"] == 1
        assert names_of(node).index("spill_replayed") < names_of(node).index("listening")
        assert written(database, data_dir)
        assert list(data_dir.glob("*.spill*")) == []
        assert is_served(database, client)
        assert node.stop() == 0


def names_of(node: NodeProcess) -> list[str]:
    return [record["event"] for record in node.log]


@pytest.mark.parametrize("database", ["key_values.sqlite", "node.sqlite"])
def test_a_start_under_the_lock_keeps_the_spill(data_dir: Path, database: str) -> None:
    spill = stop_under_lock(data_dir, database)
    with lock_of_another_process(data_dir / database):
        node = NodeProcess(data_dir)
        try:
            assert node.wait() == 2
        finally:
            node.kill()
        (line,) = node.printed
        assert SPILL[database] in line
        assert "start again" in line
        assert (data_dir / SPILL[database]).read_bytes() == spill
    with node_process(data_dir) as node, Client(node.url) as client:
        assert is_served(database, client)
        assert node.stop() == 0


def test_a_spill_survives_a_kill_during_its_replay(data_dir: Path, campaign: Campaign) -> None:
    for number in campaign.rounds(short=1, long=20):
        kill_the_replay(data_dir / str(number), "key_values.sqlite")
        campaign.checked("spills kept and replayed")


def kill_the_replay(data_dir: Path, database: str) -> None:
    spill = stop_under_lock(data_dir, database)
    with lock_of_another_process(data_dir / database):
        node = NodeProcess(data_dir, {"BUFFERS__RETRY_MAX_ATTEMPTS": "1000"})
        try:
            node.wait_for("flush_stalled")
        finally:
            node.kill()
    assert (data_dir / SPILL[database]).read_bytes() == spill
    with node_process(data_dir) as node, Client(node.url) as client:
        assert is_served(database, client)
        assert node.stop() == 0


def test_a_start_next_to_a_lock_that_has_nothing_to_wait_for_it(data_dir: Path) -> None:
    """Without a spill a node starts beside a backup: it has nothing to write yet."""
    with node_process(data_dir) as node:
        assert node.stop() == 0
    with lock_of_another_process(data_dir / "key_values.sqlite"), node_process(data_dir) as node:
        with Client(node.url) as client:
            assert client.get_value("id") is None
        assert node.stop() == 0
