"""A volume without room, by operation: soft answers, nothing lost, no restart needed."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.api.dialects import CCACHE, DIALECTS, FREE_NAMES
from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.support.s3_endpoint import S3Endpoint
from tests.support.small_volume import Filler, fail, mount_anew, remount, small_volume
from tests.system.client import TENANT, Client, eventually
from tests.system.data_dir import query, snapshot
from tests.system.stored_bytes import Stored, content_of
from tests.system.test_object_store import settings
from undercroft.database.schema import NODE, migrations

VOLUME_MB = 64

EVICTED = "undercroft_disk_evicted_artifacts_total"

# Nothing is kept free by the node's own marks: what is tried here is the file system's refusal.
NO_MARGIN = {
    "DISK__LIMIT_PERCENT": "100",
    "DISK__HIGH_WATERMARK_PERCENT": "100",
    "DISK__TARGET_PERCENT": "99",
    "DISK__EVICTION_INTERVAL_MS": "200",
    "BUFFERS__COMMIT_TIMEOUT_MS": "300",
    "BUFFERS__SHUTDOWN_MS": "500",
}


def assert_sound(data_dir: Path) -> None:
    """Read by another SQLite, next to the running node."""
    for name in ("key_values.sqlite", "node.sqlite"):
        assert query(data_dir / name, "PRAGMA integrity_check") == [("ok",)]


def wait_until_well(client: Client) -> None:
    """Without a restart: everything accepted is committed, and `/up` says so."""
    eventually(lambda: client.metric("tuist_cache_sqlite_writer_pending_total") == 0, "all is committed")
    eventually(lambda: client.request("GET", "/up").status == 200, "/up is well")


BOTH = pytest.mark.parametrize("full", [1, 4], indirect=True)


class Full(NamedTuple):
    """A node on a volume, and who fills that."""

    root: Path
    node: NodeProcess
    client: Client
    filler: Filler
    more: tuple[str, ...]
    """Arguments that start another like it."""

    def fill(self) -> None:
        """Takes all there is, and the rest of what the databases had claimed."""
        self.filler.fill()
        # What SQLite's files still have room for goes with the first commits.
        for number in range(200):
            if self.client.put_value(f"crowd{number}", "x" * 50_000).status != 204:
                break
            self.filler.fill()
        else:
            raise AssertionError("the volume is not full")


@pytest.fixture
def full(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Full]:
    """A node on a volume that is not full yet, with one process unless the test wants `BOTH`."""
    more = ("--workers", str(getattr(request, "param", 1)))
    with (
        small_volume("tmpfs", tmp_path, VOLUME_MB) as root,
        node_process(root / "node", NO_MARGIN, arguments=more) as node,
        Client(node.url) as client,
    ):
        yield Full(root, node, client, Filler(root), more)


@pytest.fixture
def stored(campaign: Campaign) -> Iterator[Stored]:
    """What was stored; the summary says how much of it was compared."""
    found = Stored()
    yield found
    campaign.ran()
    for what, count in found.counts.items():
        campaign.checked(what, count)


@BOTH
def test_every_operation_of_every_dialect_on_a_full_volume(full: Full, stored: Stored) -> None:
    client = full.client
    # None of them is evicted: they are what is used last, and nothing else is there.
    assert all(stored.put(client, dialect, f"before {dialect.name}", 3_000) for dialect in DIALECTS)
    assert stored.put_value(client, "before", "value")
    full.fill()
    for dialect in DIALECTS:
        for size in (200, 2_000_000):
            for chunked in (False, True):
                name = f"full {dialect.name} {size} {chunked}"
                # A small one may get the block that an evicted one had.
                stored.put(client, dialect, name, size, chunked=chunked)
                full.filler.fill()
    assert not stored.put_module(client, "full", [500_000, 700_000])
    assert not stored.put_value(client, "before", "x" * 100_000)
    assert stored.counts["writes refused softly"] >= 2 * len(DIALECTS)
    assert client.request("GET", "/up").status == 503
    assert client.request("GET", "/metrics").status == 200
    stored.check_all(client)
    full.filler.free()
    wait_until_well(client)
    for dialect in DIALECTS:
        for size in (200, 2_000_000):
            assert stored.put(client, dialect, f"after {dialect.name} {size}", size, chunked=size > 200)
    assert stored.put_module(client, "after", [500_000, 700_000])
    assert stored.put_value(client, "before", "newer")
    stored.check_all(client)
    assert len(stored.missing) <= client.metric(EVICTED)
    assert_sound(full.root / "node")
    assert full.node.stop() == 0


@BOTH
def test_parts_that_are_complete_only_when_the_volume_is_full(full: Full) -> None:
    client, content = full.client, content_of("module", 3_000_000)
    query_ = f"{TENANT}&hash={'a' * 64}&name=m.zip"
    begun = client.request("POST", f"/api/cache/module/start?{query_}")
    upload_id = json.loads(begun.body)["upload_id"]
    for number in range(3):
        part = content[number * 1_000_000 : (number + 1) * 1_000_000]
        where = f"/api/cache/module/part?{TENANT}&upload_id={upload_id}&part_number={number + 1}"
        assert client.request("POST", where, part).status == 204
    full.fill()
    complete = f"/api/cache/module/complete?{TENANT}&upload_id={upload_id}"
    answer = client.request("POST", complete, json.dumps({"parts": [1, 2, 3]}).encode())
    assert answer.status in (503, 507), answer
    found = client.get_bytes(f"/api/cache/module/x?{query_}")
    assert found in (None, content)
    full.filler.free()
    wait_until_well(client)
    if answer.status == 503:
        assert client.request("POST", complete, json.dumps({"parts": [1, 2, 3]}).encode()).status == 204
        assert client.get_bytes(f"/api/cache/module/x?{query_}") == content
    assert client.metric("undercroft_multipart_parts") == 0
    assert client.metric("undercroft_disk_reserved_bytes") == 0
    assert full.node.stop() == 0


@BOTH
def test_a_stop_on_a_full_volume_says_what_it_could_not_keep(full: Full, stored: Stored) -> None:
    """Nothing of that was acknowledged; what was is there when there is room again."""
    client = full.client
    for number in range(50):
        assert stored.put_value(client, f"id{number}", "value")
        assert stored.put(client, CCACHE, f"artifact{number}", 2_000)
    full.fill()
    for number in range(5):
        assert not stored.put_value(client, f"id{number}", "newer" * 10_000)
    assert full.node.stop() == 1
    full.filler.free()
    (line,) = full.node.printed
    assert "rows accepted by buffer key_values are lost" in line
    assert "No space left on device" in line
    with node_process(full.root / "node", NO_MARGIN) as node, Client(node.url) as again:
        stored.check_all(again)
        # They made room for rows, in vain.
        assert len(stored.missing) <= sum(each["artifacts"] for each in full.node.logged("disk_evicted"))
        assert_sound(full.root / "node")
        assert node.stop() == 0


@BOTH
def test_a_start_on_a_full_volume(full: Full, stored: Stored) -> None:
    for number in range(20):
        assert stored.put_value(full.client, f"id{number}", "value")
        assert stored.put(full.client, CCACHE, f"artifact{number}", 2_000)
    assert full.node.stop() == 0
    full.filler.fill()
    before = snapshot(full.root / "node")
    node = NodeProcess(full.root / "node", NO_MARGIN, arguments=full.more)
    try:
        assert node.wait() == 2
    finally:
        node.kill()
    (line,) = node.printed
    assert "No space left on device" in line or "make room" in line
    assert snapshot(full.root / "node") == before
    full.filler.free()
    with (
        node_process(full.root / "node", NO_MARGIN, arguments=full.more) as node,
        Client(node.url) as again,
    ):
        stored.check_all(again)
        assert not stored.missing
        assert node.stop() == 0


@contextmanager
def reader_of_another_process(path: Path) -> Iterator[None]:
    """Holds a read transaction open: a shell that somebody forgot."""
    program = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM sqlite_schema').fetchall()\n"
        "print('reads', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        assert reader.stdout.readline() == b"reads\n"
        try:
            yield
        finally:
            reader.stdin.close()
            assert reader.wait(10) == 0


def test_a_wal_that_a_forgotten_reader_lets_grow_until_the_volume_is_full(full: Full, stored: Stored) -> None:
    client = full.client
    assert stored.put(client, CCACHE, "before", 3_000)
    database = full.root / "node" / "key_values.sqlite"
    with reader_of_another_process(database):
        # The same few keys: all of it is in the WAL, nearly none of it is needed.
        for number in range(10_000):
            if not stored.put_value(client, f"id{number % 20}", f"{number} " + "x" * 100_000):
                break
        else:
            raise AssertionError("the WAL did not fill the volume")
        # As much as is left to copy it to, and no more.
        assert VOLUME_MB * 400_000 < size_of_wal(database) < VOLUME_MB * 600_000
        eventually(lambda: client.request("GET", "/up").status == 503, "/up says so")
        stored.check_all(client)
    wait_until_well(client)
    assert stored.put_value(client, "id0", "after")
    stored.check_all(client)
    assert_sound(full.root / "node")
    assert full.node.stop() == 0


def size_of_wal(database: Path) -> int:
    return database.with_name(database.name + "-wal").stat().st_size


def test_a_migration_at_start_that_finds_no_room(tmp_path: Path) -> None:
    with small_volume("tmpfs", tmp_path, VOLUME_MB) as root:
        database, filler = root / "node" / "node.sqlite", Filler(root)
        database.parent.mkdir()
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.executescript(migrations(NODE)[0])
            connection.execute(f"PRAGMA application_id = {NODE.application_id}")
            connection.execute("PRAGMA user_version = 1")
            connection.execute("PRAGMA journal_mode = wal")
        before = snapshot(root / "node")
        # Enough to open it.
        for leave in (80_000,):
            filler.free()
            filler.fill(leave=leave)
            node = NodeProcess(root / "node", NO_MARGIN)
            try:
                assert node.wait() == 2, node.log
            finally:
                node.kill()
            (line,) = node.printed
            assert "No space left on device" in line or "make room" in line
            after = snapshot(root / "node")
            assert after["node.sqlite"] == before["node.sqlite"]
        filler.free()
        with node_process(root / "node", NO_MARGIN) as node:
            assert query(database, "PRAGMA user_version") == [(len(migrations(NODE)),)]
            assert_sound(root / "node")
            assert node.stop() == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_a_volume_without_inodes(tmp_path: Path, stored: Stored, workers: int) -> None:
    """Blocks enough, but no file more: soft answers, and the oldest artifacts make room for new ones."""
    more = ("--workers", str(workers))
    with (
        small_volume("ext4", tmp_path, VOLUME_MB, inodes=300) as root,
        node_process(root / "node", {"DISK__EVICTION_INTERVAL_MS": "100"}, arguments=more) as node,
        Client(node.url) as client,
    ):
        evicted = 0.0

        def goes_on() -> bool:
            return client.metric(EVICTED) > evicted

        for number in range(600):
            # In one directory: those are inodes, too, and stay longer.
            dialect = FREE_NAMES[number % len(FREE_NAMES)]
            if not stored.put(client, dialect, f"small{number}", 300, identifier=f"00000000{number}"):
                # How many are refused until it looks again is a matter of how quick we are.
                eventually(goes_on, "the oldest make room")
                evicted = client.metric(EVICTED)
        assert stored.put_value(client, "id", "value")
        eventually(lambda: client.request("GET", "/up").status == 200, "eviction frees files for it, too")
        stored.check_all(client)
        assert len(stored.missing) <= client.metric(EVICTED)
        # It goes on being of use: most were stored, though not half of them can be there.
        assert stored.counts["writes stored"] > 400
        assert_sound(root / "node")
        assert node.stop() == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_a_volume_that_becomes_read_only(tmp_path: Path, stored: Stored, workers: int) -> None:
    """As ext4 does at its first error: reads go on, writes are refused softly, and a check mends it."""
    more = ("--workers", str(workers))
    with small_volume("ext4", tmp_path, VOLUME_MB) as root:
        with node_process(root / "node", NO_MARGIN, arguments=more) as node, Client(node.url) as client:
            for dialect in DIALECTS:
                assert stored.put(client, dialect, f"before {dialect.name}", 3_000)
            assert stored.put_value(client, "before", "value")
            os.sync()
            fail(root)
            for dialect in DIALECTS:
                assert not stored.put(client, dialect, f"after {dialect.name}", 3_000)
            assert not stored.put_value(client, "after", "value")
            stored.check_all(client)
            assert not stored.missing
            assert client.request("GET", "/up").status == 503
            assert node.stop() == 1
            assert "are lost" in node.printed[0]
        mount_anew(root)
        remount(root, "ro")
        node = NodeProcess(root / "node", NO_MARGIN, arguments=more)
        try:
            assert node.wait() == 2
        finally:
            node.kill()
        assert "Read-only file system" in node.printed[0]
        remount(root, "rw")
        with node_process(root / "node", NO_MARGIN, arguments=more) as node, Client(node.url) as client:
            stored.check_all(client)
            assert not stored.missing
            assert stored.put_value(client, "after", "newer")
            assert_sound(root / "node")
            assert node.stop() == 0


@BOTH
def test_fetching_from_the_bucket_to_a_full_volume(
    tmp_path: Path, full: Full, stored: Stored, s3_endpoint: S3Endpoint
) -> None:
    """Right bytes or a miss; with room again they are kept."""
    environment = settings(s3_endpoint)
    with node_process(tmp_path / "writer", environment) as writer, Client(writer.url) as client:
        for dialect in DIALECTS:
            for size in (3_000, 1_500_000):
                assert stored.put(client, dialect, f"{dialect.name} {size}", size)
        eventually(
            lambda: client.metric("tuist_cache_s3_transfers_pending_total") == 0, "all are uploaded", 60
        )
        assert writer.stop() == 0
    with (
        node_process(full.root / "reader", NO_MARGIN | environment, arguments=full.more) as node,
        Client(node.url) as client,
    ):
        full.filler.fill()
        stored.check_all(client)
        assert client.request("GET", "/metrics").status == 200
        full.filler.free()
        # What did not fit is remembered as a miss for a moment.
        eventually(lambda: all(stored.get(client, path) for path in stored.paths()), "all are served")
        # With several processes it is held until its row is committed.
        eventually(lambda: client.metric("undercroft_disk_reserved_bytes") == 0, "nothing is held")
        assert node.stop() == 0
