"""Several worker processes on one data directory: together they are one node."""

import http.client
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.support.small_volume import small_volume
from tests.system.client import TENANT, Answer, Client, eventually
from tests.system.data_dir import files_under, stored_artifacts, stored_values
from undercroft.cli.parent import EXIT_UNUSABLE
from undercroft.processes.worker_application import owner_of

WORKERS = 4

# One after the other, each on a connection of its own: with so many every worker gets some.
MANY = 24


@pytest.fixture
def node(data_dir: Path) -> Iterator[NodeProcess]:
    with node_process(data_dir, arguments=("--workers", str(WORKERS))) as node:
        yield node


def pids(node: NodeProcess) -> dict[int, int]:
    """The process of each worker, the newest one."""
    return {record["worker"]: record["pid"] for record in node.logged("worker_started")}


def is_alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_write_through_one_is_read_through_all(node: NodeProcess) -> None:
    for index in range(MANY):
        with Client(node.url) as client:
            assert client.put_value(f"id{index}", f"{index}").status == 204
            assert client.put_ccache(f"aa{index}", b"%d" % index).status == 201
        for _ in range(3):
            with Client(node.url) as client:
                assert client.get_value(f"id{index}") == f"{index}"
                assert client.get_ccache(f"aa{index}") == b"%d" % index
    assert {record["worker"] for record in node.logged("worker_serves")} == set(range(WORKERS))


def test_the_parent_has_no_thread_and_one_worker_needs_no_parent(data_dir: Path, node: NodeProcess) -> None:
    assert len(list(Path(f"/proc/{node.process.pid}/task").iterdir())) == 1
    with node_process(data_dir.with_name("other")) as alone:
        assert alone.logged("worker_started") == []
        assert "worker" not in alone.logged("listening")[0]


def test_a_second_node_on_the_port_fails(data_dir: Path, node: NodeProcess) -> None:
    port = int(node.url.rsplit(":", 1)[1])
    second = NodeProcess(data_dir.with_name("second"), port=port, arguments=("--workers", "2"))
    try:
        assert second.wait(30) == 2
        assert "another node" in second.printed[0]
        assert not data_dir.with_name("second").exists()
    finally:
        second.kill()


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(node: NodeProcess) -> None:
    stored: dict[str, str] = {}
    for number in range(WORKERS):
        victim = pids(node)[number]
        for index in range(8):
            with Client(node.url) as client:
                assert client.put_value(f"{number}-{index}", f"{victim}").status == 204
            stored[f"{number}-{index}"] = f"{victim}"
        os.kill(victim, signal.SIGKILL)
        died = node.wait_for("worker_died")
        assert (died["worker"], died["pid"], died["exit_status"]) == (number, victim, -signal.SIGKILL)
        node.wait_for("worker_serves")
    for key, value in stored.items():
        with Client(node.url) as client:
            assert client.get_value(key) == value
    assert node.stop() == 0


def test_a_worker_that_cannot_start_for_a_while_does_not_end_the_others(tmp_path: Path) -> None:
    with (
        small_volume("tmpfs", tmp_path, 64, inodes=300) as volume,
        node_process(volume / "data", arguments=("--workers", "2")) as node,
    ):
        ballast = volume / "ballast"
        ballast.mkdir()
        with suppress(OSError):
            for number in itertools.count():
                (ballast / str(number)).touch()
        os.kill(pids(node)[0], signal.SIGKILL)
        node.wait_for("worker_died")
        assert node.wait_for("worker_died")["exit_status"] == EXIT_UNUSABLE
        shutil.rmtree(ballast)
        node.wait_for("worker_serves")
        assert node.stop() == 0


def test_another_worker_takes_over_the_background_work(node: NodeProcess) -> None:
    def holders() -> list[int]:
        return [record["worker"] for record in node.logged("reconcile_begins")]

    eventually(holders, "reconcile begins in the one that has the turn")
    (first,) = holders()
    os.kill(pids(node)[first], signal.SIGKILL)
    eventually(lambda: len(holders()) == 2, "another one has the turn")


def test_the_workers_end_with_their_parent(data_dir: Path, node: NodeProcess) -> None:
    with Client(node.url) as client:
        assert client.put_value("id", "kept").status == 204
    node.process.kill()
    eventually(lambda: not any(map(is_alive, pids(node).values())), "all workers are gone")
    assert node.wait() == -signal.SIGKILL
    # They ended by themselves, in order.
    assert len(node.logged("stopped")) == WORKERS
    assert stored_values(data_dir) == {"id": "kept"}
    # Of several connections that are closed at the same moment none may be the last for SQLite, and the WAL
    # is left. The next node takes it.
    with node_process(data_dir) as again:
        assert again.stop() == 0
    assert list(data_dir.glob("*-wal")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_commits_what_was_accepted(
    data_dir: Path, node: NodeProcess, number: signal.Signals
) -> None:
    kept: set[str] = set()

    def put(name: int) -> None:
        with suppress(OSError), Client(node.url) as client:
            for index in range(100_000):
                if client.put_ccache(f"{name:02}{index:06}", b"x" * 1_000).status == 201:
                    kept.add(f"{name:02}{index:06}")

    threads = [threading.Thread(target=put, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(kept) > 200, "there is load")
    node.signal(number)
    assert node.wait() == 0
    for thread in threads:
        thread.join()
    names = {key.rsplit("/", 1)[1] for key in stored_artifacts(data_dir)}
    assert kept <= names
    assert list(files_under(data_dir / "temporary")) == []
    assert list(data_dir.glob("*.spill")) == []
    assert not any(map(is_alive, pids(node).values()))


def test_a_second_signal_ends_all_at_once(node: NodeProcess) -> None:
    with Client(node.url) as client:
        # A request that does not end holds up the stop, once a worker has it.
        client.connection.putrequest("PUT", "/ccache/acme/app/aabb")
        client.connection.putheader("content-length", "10")
        client.connection.putheader("expect", "100-continue")
        client.connection.endheaders()
        assert client.connection.sock.recv(100).startswith(b"HTTP/1.1 100 ")
        node.signal(signal.SIGTERM)
        node.wait_for("stopping")
        eventually(lambda: _ends_by_second_signal(node), "a second signal counts")
    assert node.wait() == 128 + signal.SIGTERM
    eventually(lambda: not any(map(is_alive, pids(node).values())), "all workers are gone")


def _ends_by_second_signal(node: NodeProcess) -> bool:
    node.signal(signal.SIGTERM)
    return node.process.poll() is not None


def test_settings_that_cannot_be_used_end_all(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "node.sqlite").write_bytes(b"no database" * 1_000)
    node = NodeProcess(data_dir, arguments=("--workers", str(WORKERS)))
    try:
        assert node.wait(30) == 2
        assert "node.sqlite is not a usable SQLite database" in node.printed[0]
    finally:
        node.kill()


def test_buffered_acknowledgements_are_refused(data_dir: Path) -> None:
    node = NodeProcess(data_dir, {"ACK": "buffered", "WORKERS": "2"})
    try:
        assert node.wait(30) == 2
        assert "set ack to committed, or workers to 1" in node.printed[0]
    finally:
        node.kill()


class Owner:
    """Writes its own keys again and again, and reads them through whichever worker it comes to."""

    def __init__(self, node: NodeProcess, name: int, seed: str) -> None:
        self.node = node
        self._name = name
        self._random = random.Random(f"{seed} {name}")
        self._may_be: dict[str, list[str | None]] = {}
        """What was acknowledged last under a key, and all that was sent since."""
        self.checked = 0
        self.wrong: list[object] = []
        self.ended = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.ended.is_set():
            number += 1
            key = f"{self._random.choice(('kv', 'cc'))}{self._name:02}{self._random.randrange(6):02}"
            # Neither refused nor acknowledged: it may be there, now or later.
            with suppress(OSError, http.client.HTTPException):
                self._write_and_read(key, f"{key} {number} " + "x" * self._random.randrange(3_000))

    def _write_and_read(self, key: str, value: str) -> None:
        self._may_be.setdefault(key, [None]).append(value)
        with Client(self.node.url) as client:
            if key.startswith("kv"):
                status = client.put_value(key, value).status
            else:
                status = client.put_ccache(key, value.encode()).status
        if status in (201, 204):
            self._may_be[key] = [value]
        self.read(key)

    def read(self, key: str) -> None:
        with Client(self.node.url) as client:
            if key.startswith("kv"):
                found = client.get_value(key)
            else:
                body = client.get_ccache(key)
                found = None if body is None else body.decode()
        self.checked += 1
        if found not in self._may_be[key]:
            self.wrong.append((key, found, self._may_be[key]))

    def read_all(self) -> None:
        for key in self._may_be:
            self.read(key)


def test_replacements_survive_the_death_of_workers(data_dir: Path, campaign: Campaign) -> None:
    with node_process(data_dir, arguments=("--workers", str(WORKERS))) as node:
        owners = [Owner(node, name, campaign.seed) for name in range(6)]
        threads = [threading.Thread(target=owner.run) for owner in owners]
        for thread in threads:
            thread.start()
        try:
            for _ in campaign.rounds(short=5, long=300):
                time.sleep(campaign.random.uniform(0.05, 0.5))
                os.kill(pids(node)[campaign.random.randrange(WORKERS)], signal.SIGKILL)
                node.wait_for("worker_died")
                node.wait_for("worker_serves")
        finally:
            for owner in owners:
                owner.ended.set()
            for thread in threads:
                thread.join()
        for owner in owners:
            owner.read_all()
        assert node.stop() == 0
    with node_process(data_dir) as alone:
        for owner in owners:
            owner.node = alone
            owner.read_all()
            assert owner.wrong == []
            campaign.checked("values and artifacts", owner.checked)


# --- what one of them has ---


class Module:
    """A module that is uploaded in parts, each request on a connection of its own."""

    def __init__(self, node: NodeProcess, project: str, data: bytes) -> None:
        self.node = node
        self.query = f"account_handle=acme&project_handle={project}"
        self.data = data
        self.named = "hash=abcdef&name=A.zip"

    def post(self, step: str, query: str, body: bytes = b"") -> Answer:
        with Client(self.node.url) as client:
            return client.request("POST", f"/api/cache/module/{step}?{self.query}&{query}", body)

    def start(self) -> str:
        answer = self.post("start", self.named)
        assert answer.status == 200, answer
        return str(json.loads(answer.body)["upload_id"])

    def part(self, upload: str, number: int, body: bytes) -> Answer:
        return self.post("part", f"upload_id={upload}&part_number={number}", body)

    def complete(self, upload: str, count: int) -> Answer:
        body = json.dumps({"parts": list(range(1, count + 1))}).encode()
        return self.post("complete", f"upload_id={upload}", body)

    def get(self) -> bytes | None:
        with Client(self.node.url) as client:
            return client.get_bytes(f"/api/cache/module/any?{self.query}&{self.named}")


def test_the_parts_of_an_upload_may_arrive_at_any(node: NodeProcess) -> None:
    for project in ("a", "b", "c"):
        data = os.urandom(1_500_000)
        module = Module(node, project, data)
        upload = module.start()
        for number in range(6):
            piece = data[number * 250_000 : (number + 1) * 250_000]
            assert module.part(upload, number + 1, piece).status == 204
        assert Module(node, "other", data).complete(upload, 6).status == 404
        assert module.part(upload, 7, b"").status in (204, 400)
        assert module.complete(upload, 7).status == 204
        for _ in range(4):
            assert module.get() == data
    with Client(node.url) as client:
        assert client.metric("undercroft_multipart_uploads") == 0
        assert client.metric("tuist_cache_module_upload_success_total") == 3
        assert client.metric("undercroft_disk_reserved_bytes") == 0


def test_an_upload_in_parts_ends_with_the_worker_that_has_it(node: NodeProcess) -> None:
    module = Module(node, "a", b"")
    upload = module.start()
    scope = {"query_string": module.query.encode(), "method": "POST", "headers": []}
    owner = owner_of(scope, WORKERS)
    assert owner is not None
    os.kill(pids(node)[owner], signal.SIGKILL)
    seen = []

    def asked() -> bool:
        with suppress(OSError, http.client.HTTPException):
            seen.append(module.part(upload, 1, b"x").status)
        return 404 in seen

    eventually(asked, "the new one is asked")
    # Not there, or its successor, who does not know it.
    assert set(seen) <= {404, 503}
    assert module.start()


def test_metrics_are_those_of_all_and_never_go_back(node: NodeProcess) -> None:
    puts = 0
    for number in (0, 1):
        for index in range(MANY):
            with Client(node.url) as client:
                assert client.put_value(f"{number}-{index}", "x").status == 204
            puts += 1
        with Client(node.url) as client:
            assert client.metric("cache_kv_put_success_total") == puts
            assert client.metric("undercroft_workers_serving") == WORKERS
        os.kill(pids(node)[number], signal.SIGKILL)
        for _ in range(8):
            with suppress(OSError, http.client.HTTPException), Client(node.url) as client:
                assert f"\ncache_kv_put_success_total {puts}.0\n" in metrics(client)
        node.wait_for("worker_died")
        node.wait_for("worker_serves")
    with Client(node.url) as client:
        assert client.metric("undercroft_worker_starts") == WORKERS + 2
        assert metrics(client).count("# TYPE cache_kv_put_success_total counter") == 1


def metrics(client: Client) -> str:
    return client.request("GET", "/metrics").body.decode()


def test_the_status_is_that_of_all(node: NodeProcess) -> None:
    for index in range(MANY):
        with Client(node.url) as client:
            assert client.put_value(f"s{index}", "x").status == 204
    with Client(node.url) as client:
        status = json.loads(client.request("GET", "/api/status").body)
    assert status["workers"] == WORKERS
    assert status["hour"]["total"]["stored"] == status["day"]["total"]["stored"] == MANY
    assert [point["total"]["stored"] for point in status["hour"]["points"]][-2:].count(0) <= 1


def test_health_tells_of_a_worker_that_is_not_there(node: NodeProcess) -> None:
    def words() -> str:
        with suppress(OSError, http.client.HTTPException), Client(node.url) as client:
            client.connection.timeout = 0.5  # it may be the missing one's
            answer = client.request("GET", "/up")
            assert answer.status == 200
            return str(json.loads(answer.body)["message"])
        return ""

    assert words() == "up"
    said: list[str] = []
    while "up; worker 2 not there" not in said:
        assert len(said) < 20, said
        # Each of its deaths puts the next start off a little longer.
        os.kill(pids(node)[2], signal.SIGKILL)
        node.wait_for("worker_died")
        said.append(words())
        node.wait_for("worker_serves")
    eventually(lambda: words() == "up", "it is replaced")


def test_a_token_is_known_to_all_at_once(data_dir: Path) -> None:
    arguments = ("--workers", str(WORKERS))
    with node_process(data_dir, {"AUTH__MODE": "tokens"}, arguments=arguments) as node:
        command = [sys.executable, "-m", "undercroft", "token"]
        made = subprocess.run(
            [
                *command,
                "create",
                "--data-dir",
                str(data_dir),
                "--name",
                "ci",
                "--project",
                "acme/*",
                "--read",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        headers = {"authorization": f"Bearer {made.stdout.split()[-1]}"}
        path = f"/api/cache/keyvalue/none?{TENANT}"

        def statuses() -> set[int]:
            found = set()
            for _ in range(MANY):
                with Client(node.url) as client:
                    found.add(client.request("GET", path, headers=headers).status)
            return found

        assert statuses() == {404}
        subprocess.run(
            [*command, "revoke", "ci", "--data-dir", str(data_dir)], check=True, capture_output=True
        )
        eventually(lambda: statuses() == {401}, "all know that it was revoked")


def test_a_project_is_cleaned_whoever_is_asked(node: NodeProcess) -> None:
    for index in range(MANY):
        with Client(node.url) as client:
            assert client.put_value(f"id{index}", "old").status == 204
            assert client.put_ccache(f"aa{index}", b"old").status == 201
    with Client(node.url) as client:
        assert client.request("DELETE", f"/api/cache/clean?{TENANT}").status == 204
    for index in range(MANY):
        with Client(node.url) as client:
            assert client.put_ccache(f"bb{index}", b"new").status == 201

    def is_gone(index: int) -> bool:
        with Client(node.url) as client:
            return client.get_value(f"id{index}") is None and client.get_ccache(f"aa{index}") is None

    eventually(lambda: all(map(is_gone, range(MANY))), "what was there before is gone")
    for index in range(MANY):
        with Client(node.url) as client:
            assert client.get_ccache(f"bb{index}") == b"new"


# --- what they share ------------------------------------------------------------------------------

PAGE = 4_096
LIMIT = 4_096 * PAGE
BODIES = [b"x" * (pages * PAGE) for pages in (1, 8, 64, 128)]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds nothing but a data directory, and says what that takes."""
    with small_volume("tmpfs", tmp_path, 256) as root:
        yield root


def test_the_limit_holds_for_all_of_them_together(volume: Path) -> None:
    data_dir = volume / "node"
    settings = {"DISK__LIMIT_BYTES": str(LIMIT), "DISK__LIMIT_PERCENT": "99"}
    with node_process(data_dir, settings, arguments=("--workers", str(WORKERS))) as node:
        stored: list[str] = []
        with _uploading(node, stored):
            most = 0
            while len(stored) < 250:
                status = os.statvfs(volume)
                taken = (status.f_blocks - status.f_bfree) * status.f_frsize
                most = max(most, taken - sum(path.stat().st_size for path in data_dir.glob("*.sqlite*")))
            assert LIMIT / 2 < most <= LIMIT
            # What a worker held that dies is given back, too.
            os.kill(pids(node)[1], signal.SIGKILL)
            eventually(lambda: len(node.logged("worker_serves")) > WORKERS, "it is replaced")
        with Client(node.url) as client:
            eventually(lambda: client.metric("undercroft_disk_reserved_bytes") == 0, "all room is given back")
            assert 0 < client.metric("undercroft_disk_used_bytes") <= LIMIT
            assert client.metric("undercroft_disk_limit_bytes") == LIMIT
        # The parent too: siblings that cannot tell their figures would be left out of all sums of gauges.
        assert node.stop() == 0
        assert node.printed == []


@contextmanager
def _uploading(node: NodeProcess, stored: list[str]) -> Iterator[None]:
    """Uploads of far more than there is room for, from many at once, each on a connection of its own."""
    ended = threading.Event()

    def put(name: int) -> None:
        for index in itertools.count():
            if ended.is_set():
                return
            with suppress(OSError, http.client.HTTPException), Client(node.url) as own:
                if own.put_ccache(f"{name:02}{index:06}", BODIES[(name + index) % 4]).status == 201:
                    stored.append(f"{name:02}{index:06}")

    threads = [threading.Thread(target=put, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
