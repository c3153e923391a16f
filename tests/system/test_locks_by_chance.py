"""Others lock, copy and rewrite the databases under load, by chance: soft answers in time, nothing lost."""

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.campaign import Campaign
from tests.support.locks import BACKUP, VACUUM, VACUUM_INTO, lock_of_another_process, run_in_another_process
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Answer, Client, eventually
from tests.system.data_dir import query, stored_artifacts, stored_values
from tests.system.stored_bytes import Shaking, Stored
from tests.system.test_disk_full import wait_until_well
from tests.system.test_locks import RETRIES

DATABASES = ("key_values.sqlite", "node.sqlite")

COMMIT_TIMEOUT_S = 0.4
ENQUEUE_TIMEOUT_S = 1.0
SETTINGS = {
    "BUFFERS__COMMIT_TIMEOUT_MS": str(int(COMMIT_TIMEOUT_S * 1_000)),
    "BUFFERS__ENQUEUE_TIMEOUT_MS": str(int(ENQUEUE_TIMEOUT_S * 1_000)),
}

# What an answer may take beyond its limits on a machine that does other work as well. Far less than the
# long lock: a write that waited until that is released is seen.
SLACK_S = 2.5
LONG_LOCK_S = (4.2, 5.0)

WRITERS = 6

# So large that a VACUUM holds its lock for longer than it takes to come by.
BULK_ROWS = 150
BULK_BYTES = 100_000

MIB = 1 << 20
# Of each process. The caches of SQLite grow with the databases; what is pending is no more than a few rows.
MOST_GROWTH = 100 * MIB


class Slowest:
    """The longest that a read and a write took. For many threads, each of which only ever adds."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, float]] = []

    def client(self, url: str) -> "TimedClient":
        return TimedClient(url, self.answers)

    def of(self, *methods: str) -> float:
        return max((seconds for method, seconds in self.answers if method in methods), default=0.0)


class TimedClient(Client):
    """Notes how long each answer took."""

    def __init__(self, url: str, answers: list[tuple[str, float]]) -> None:
        super().__init__(url)
        self._answers = answers

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        started = time.monotonic()
        answer = super().request(method, path, body, headers)
        self._answers.append((method, time.monotonic() - started))
        return answer


class Memory:
    """The resident memory of the process of a node that grew most."""

    def __init__(self, node: NodeProcess) -> None:
        parent = psutil.Process(node.process.pid)
        self._first = {p: p.memory_info().rss for p in (parent, *parent.children(recursive=True))}
        self.growth = 0

    def look(self) -> None:
        self.growth = max(self.growth, *(p.memory_info().rss - before for p, before in self._first.items()))


class Disturbed(NamedTuple):
    """A node under load, and where others may get at it."""

    data_dir: Path
    copies: Path
    load: Shaking
    stored: Stored
    memory: Memory
    campaign: Campaign

    def database(self) -> Path:
        return self.data_dir / self.campaign.random.choice(DATABASES)

    def go_on(self, seconds: float) -> None:
        """The load goes on for so long, or until it fails."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.load.wait(0.05):
            self.memory.look()


# --- what others do -------------------------------------------------------------------------------


def lock_briefly(disturbed: Disturbed) -> None:
    with lock_of_another_process(disturbed.database(), "EXCLUSIVE"):
        disturbed.go_on(disturbed.campaign.random.uniform(0, COMMIT_TIMEOUT_S))


def lock_for_long(disturbed: Disturbed) -> None:
    """Longer than anybody waits for a commit: they are refused softly, and what they sent may still come."""
    refused = disturbed.stored.counts["writes refused softly"]
    with lock_of_another_process(disturbed.database(), "EXCLUSIVE"):
        disturbed.go_on(disturbed.campaign.random.uniform(*LONG_LOCK_S))
    assert disturbed.stored.counts["writes refused softly"] > refused


def lock_both(disturbed: Disturbed) -> None:
    first, second = (disturbed.data_dir / name for name in DATABASES)
    with lock_of_another_process(first, "EXCLUSIVE"), lock_of_another_process(second, "EXCLUSIVE"):
        disturbed.go_on(disturbed.campaign.random.uniform(0, 3 * COMMIT_TIMEOUT_S))


def lock_again_and_again(disturbed: Disturbed) -> None:
    chance = disturbed.campaign.random
    for _ in range(chance.randint(3, 8)):
        lock_briefly(disturbed)
        disturbed.go_on(chance.uniform(0, 0.1))


def vacuum(disturbed: Disturbed) -> None:
    run_in_another_process(VACUUM, disturbed.database())


def copy_by(program: str, disturbed: Disturbed) -> None:
    database = disturbed.database()
    before = Acknowledged(disturbed.stored)
    copy = disturbed.copies / database.name
    run_in_another_process(program, database, copy)
    before.check(copy, disturbed.campaign)
    copy.unlink()


def undercroft_backup(disturbed: Disturbed) -> None:
    before = Acknowledged(disturbed.stored)
    copies = disturbed.copies / "backup"
    command = [sys.executable, "-m", "undercroft", "backup", "--databases-only", "--data-dir"]
    subprocess.run([*command, disturbed.data_dir, copies], check=True, timeout=60, capture_output=True)
    for name in DATABASES:
        before.check(copies / name, disturbed.campaign)
        (copies / name).unlink()
    copies.rename(disturbed.copies / f"done {time.monotonic_ns()}")


DISTURBANCES: dict[str, Callable[[Disturbed], None]] = {
    "short locks": lock_briefly,
    "long locks": lock_for_long,
    "locks on both": lock_both,
    "repeated locks": lock_again_and_again,
    "vacuums": vacuum,
    "copies by VACUUM INTO": functools.partial(copy_by, VACUUM_INTO),
    "copies by the backup API": functools.partial(copy_by, BACKUP),
    "copies by undercroft backup": undercroft_backup,
}


class Acknowledged:
    """What was acknowledged at one moment: a copy that begins after it holds all of it, or newer values."""

    def __init__(self, stored: Stored) -> None:
        self._values = dict(stored.values)
        self._rows = {dialect.stored_row(content) for dialect, content in list(stored.artifacts.values())}

    def check(self, copy: Path, campaign: Campaign) -> None:
        assert query(copy, "PRAGMA integrity_check") == [("ok",)]
        if copy.name == "key_values.sqlite":
            found = stored_values(copy.parent)
            assert self._values.keys() <= found.keys()
            assert all(age(found[cas_id]) >= age(value) for cas_id, value in self._values.items())
            campaign.checked("rows compared", len(self._values))
        else:
            assert self._rows <= set(stored_artifacts(copy.parent).values())
            campaign.checked("rows compared", len(self._rows))


def age(value: str) -> int:
    """The values of a key are numbered in the order in which they were sent."""
    return int(value.rsplit("-", 1)[1])


# --- the campaign ---------------------------------------------------------------------------------


def assert_in_time(slowest: Slowest) -> None:
    """Nobody who reads waits for a lock, nobody who writes for longer than is promised."""
    assert slowest.of("GET", "HEAD") < SLACK_S
    assert slowest.of("PUT", "POST") < ENQUEUE_TIMEOUT_S + COMMIT_TIMEOUT_S + SLACK_S


def assert_all_is_kept(data_dir: Path, client: Client, stored: Stored, campaign: Campaign) -> None:
    """Without a restart: everything is committed, served, and sound."""
    wait_until_well(client)
    stored.check_all(client)
    assert stored.missing == set()
    for name in DATABASES:
        Acknowledged(stored).check(data_dir / name, campaign)


def assert_clean_end(node: NodeProcess) -> None:
    assert node.stop() == 0
    assert node.printed == []
    assert [record for record in node.log if "exception" in record] == []
    assert list(node.data_dir.glob("*.spill")) == []


def count(campaign: Campaign, stored: Stored, slowest: Slowest) -> None:
    campaign.checked("answers in time", len(slowest.answers))
    for what, number in stored.counts.items():
        campaign.checked(what, number)


def disturb(node: NodeProcess, disturbed: Disturbed) -> None:
    """All of it, in an order by chance; after each the node is well again without help, under load."""
    names = list(DISTURBANCES)
    disturbed.campaign.random.shuffle(names)
    with Client(node.url) as client:
        for name in names:
            DISTURBANCES[name](disturbed)
            eventually(lambda: client.request("GET", "/up").status == 200, f"the node is well after {name}")
            disturbed.campaign.checked(name)
            disturbed.go_on(disturbed.campaign.random.uniform(0, 0.2))


@pytest.mark.parametrize("workers", [1, 4])
def test_others_lock_and_copy_the_databases_under_load(
    data_dir: Path, tmp_path: Path, campaign: Campaign, workers: int
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    more = ("--workers", str(workers)) if workers > 1 else ()
    with node_process(data_dir, SETTINGS, arguments=more) as node:
        stored, slowest = Stored(), Slowest()
        with Client(node.url) as client:
            for number in range(BULK_ROWS):
                assert stored.put_value(client, f"bulk{number}", "x" * BULK_BYTES + f"-{number}")
        memory = Memory(node)
        for number in campaign.rounds(short=1, long=15):
            seed = f"{campaign.seed}-{number}"
            load = Shaking(stored, node.url, seed, writers=WRITERS, large=400_000, client=slowest.client)
            try:
                disturb(node, Disturbed(data_dir, copies, load, stored, memory, campaign))
            finally:
                load.end()
            with Client(node.url) as client:
                assert client.metric(RETRIES) > 0
                assert_all_is_kept(data_dir, client, stored, campaign)
            assert_in_time(slowest)
            assert memory.growth < MOST_GROWTH
        count(campaign, stored, slowest)
        assert_clean_end(node)


PENDING_ROWS = 400


def fill_under_a_lock(data_dir: Path, client: Client, stored: Stored, load: Shaking, seconds: float) -> None:
    """Until somebody is refused, and for so long after that."""
    refused = stored.counts["writes refused softly"]
    with lock_of_another_process(data_dir / "node.sqlite", "EXCLUSIVE"):
        eventually(
            lambda: stored.counts["writes refused softly"] > refused or not load.wait(0),
            "the buffer is full",
        )
        load.wait(seconds)
        pending = client.metric("tuist_cache_sqlite_writer_pending_cas_artifacts")
        # Past the bound are the rows of those who looked for room at the same moment.
        assert PENDING_ROWS <= pending <= PENDING_ROWS + WRITERS


def test_a_buffer_that_is_full_under_a_lock(data_dir: Path, campaign: Campaign) -> None:
    """Acknowledged before the commit: what has no room is refused softly and in time, the rest is kept."""
    settings = SETTINGS | {"ACK": "buffered", "BUFFERS__MAX_PENDING_ROWS": str(PENDING_ROWS)}
    chance = campaign.random
    with node_process(data_dir, settings) as node, Client(node.url) as client:
        stored, slowest, memory = Stored(), Slowest(), Memory(node)
        for number in campaign.rounds(short=1, long=20):
            seed = f"{campaign.seed}-{number}"
            load = Shaking(stored, node.url, seed, writers=WRITERS, large=400_000, client=slowest.client)
            try:
                fill_under_a_lock(data_dir, client, stored, load, chance.uniform(0, 2))
                load.wait(chance.uniform(0, 0.5))
            finally:
                load.end()
            assert_all_is_kept(data_dir, client, stored, campaign)
            assert_in_time(slowest)
            memory.look()
            assert memory.growth < MOST_GROWTH
        count(campaign, stored, slowest)
        assert_clean_end(node)
