"""Several workers that write all the time: none starves, no WAL grows without end, no memory either."""

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.api.dialects import CCACHE
from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from tests.system.stored_bytes import Stored
from tests.system.test_disk_full import reader_of_another_process, size_of_wal
from tests.system.test_kill import check_clean
from tests.system.test_locks_by_chance import DATABASES, SLACK_S, Memory, Slowest, TimedClient
from tests.system.test_workers import pids
from undercroft.database.connection import WAL_LIMIT_PAGES
from undercroft.database.upkeep import PAGE_BYTES
from undercroft.workers.maintenance import TRUNCATE_FROM_BYTES

WORKERS = 4

# To each worker, half of them for key values: more than one has with its commits, so that it always writes.
CLIENTS = 4

# Far more than the longest that was seen, 0.5 s, and far less than a write waits that is forgotten.
COMMIT_TIMEOUT_S = 5.0
SETTINGS = {
    "BUFFERS__COMMIT_TIMEOUT_MS": str(int(COMMIT_TIMEOUT_S * 1_000)),
    "MAINTENANCE__INTERVAL_MS": "4000",
}

MIB = 1 << 20
# From where the writers themselves see to it that the WAL starts again, and what comes until they have.
MOST_WAL = WAL_LIMIT_PAGES * PAGE_BYTES + 16 * MIB
# Written before somebody reads: more than the WAL may have.
MUCH = int(1.1 * MOST_WAL)
# What a row takes in the WAL beyond its own bytes: pages that are not full, and those of indexes.
PAGES_OF_ROW = 1.2

# Of each process: SQLite's caches, and rows that are not committed yet.
MOST_GROWTH = 150 * MIB

SIZES = (500, 100_000, 200_000)
# So few that most writes replace a value: the file stays small, and what is tried is the WAL.
KEYS = 3


def connections(node: NodeProcess, slowest: Slowest) -> dict[int, list[TimedClient]]:
    """So many to each worker; the kernel spreads them by chance, and tells which process has which."""
    found: dict[int, list[TimedClient]] = defaultdict(list)
    workers = {number: psutil.Process(pid) for number, pid in pids(node).items()}
    while sum(map(len, found.values())) < WORKERS * CLIENTS:
        client = slowest.client(node.url)
        assert client.request("GET", "/up").status == 200
        port = client.connection.sock.getsockname()[1]
        (number,) = (
            number
            for number, process in workers.items()
            if any(one.raddr[1:] == (port,) for one in process.net_connections("tcp"))
        )
        if len(found[number]) < CLIENTS:
            found[number].append(client)
        else:
            client.connection.close()
    return found


@contextmanager
def readers(data_dir: Path) -> Iterator[None]:
    """Another process stays in a read transaction on each database."""
    with ExitStack() as both:
        for name in DATABASES:
            both.enter_context(reader_of_another_process(data_dir / name))
        yield


def longest_wal(data_dir: Path) -> int:
    return max(size_of_wal(data_dir / name) for name in DATABASES)


class Writer(threading.Thread):
    """Writes as fast as it is answered, key values or artifacts, and now and then reads one again."""

    def __init__(self, stored: Stored, client: TimedClient, name: str, *, key_values: bool) -> None:
        super().__init__()
        self._stored = stored
        self.client = client
        self._name = name
        self._chance = random.Random(name)
        self._key_values = key_values
        self.over = threading.Event()
        self.written = self.bytes = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._step()
        except BaseException as error:  # noqa: BLE001  # for the main thread to raise
            self.failure = error

    def _step(self) -> None:
        number = self.written
        if self._key_values:
            cas_id, size = f"{self._name}-{number % KEYS}", self._chance.choice(SIZES)
            # Refused would be a write that waited too long.
            assert self._stored.put_value(self.client, cas_id, "x" * size + f"-{number}")
        else:
            cas_id, size = "", self._chance.randrange(100, 5_000)
            assert self._stored.put(self.client, CCACHE, f"{self._name}-{number}", size)
        self.written, self.bytes = number + 1, self.bytes + size
        if self._chance.random() < 0.1 and cas_id:
            self._stored.get_value(self.client, cas_id)


class Steady:
    """All writers of a node at once, and how long its WALs are meanwhile."""

    def __init__(self, node: NodeProcess, stored: Stored, seed: str) -> None:
        self._node = node
        self.memory = Memory(node)
        self.longest_wal = 0
        self._slowest = Slowest()
        self.writers = {
            number: [
                Writer(stored, client, f"{seed}-{number}-{index}", key_values=index % 2 == 0)
                for index, client in enumerate(clients)
            ]
            for number, clients in connections(node, self._slowest).items()
        }
        self.all = [writer for some in self.writers.values() for writer in some]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """They are ended whatever happens; the first failure is raised."""
        for writer in self.all:
            writer.start()
        try:
            yield
        finally:
            for writer in self.all:
                writer.over.set()
            for writer in self.all:
                writer.join()
                writer.client.connection.close()
        for writer in self.all:
            if writer.failure is not None:
                raise writer.failure

    def bytes_written(self) -> int:
        return sum(writer.bytes for writer in self.all)

    def write_more(self, count: int, most_wal: float) -> None:
        """Returns when so many bytes more are acknowledged, or somebody failed."""
        until = self.bytes_written() + count

        def looked() -> bool:
            wal = longest_wal(self._node.data_dir)
            self.longest_wal = max(self.longest_wal, wal)
            assert wal < most_wal, f"the WAL has {wal // MIB} MiB"
            self.memory.look()
            assert self.memory.growth < MOST_GROWTH, self.memory.growth
            return self.bytes_written() >= until or any(writer.failure for writer in self.all)

        eventually(looked, f"{count // MIB} MiB are acknowledged", 120)

    def assert_shares(self) -> None:
        """With as many clients each worker got as much done, whoever had the lock before it."""
        for kind in (0, 1):
            shares = [sum(one.written for one in some[kind::2]) for some in self.writers.values()]
            assert min(shares) > sum(shares) / WORKERS / 3, shares

    def slowest_write_s(self) -> float:
        return self._slowest.of("PUT", "POST")

    def slowest_read_s(self) -> float:
        return self._slowest.of("GET")


def test_four_workers_that_write_all_the_time(data_dir: Path, campaign: Campaign) -> None:
    """Also while another process holds a read transaction open, and after that."""
    with node_process(data_dir, SETTINGS, arguments=("--workers", str(WORKERS))) as node:
        stored = Stored()
        for number in campaign.rounds(short=1, long=15):
            steady = Steady(node, stored, f"{campaign.seed}-{number}")
            with steady.going_on():
                steady.write_more(MUCH, MOST_WAL)
                usual = steady.longest_wal // MIB
                with readers(data_dir):
                    # The WAL has all that comes meanwhile: so much that the writers try to start it again.
                    much = int(MOST_WAL * campaign.random.uniform(0.7, 0.9) * (3 if campaign.torture else 1))
                    steady.write_more(much, MOST_WAL + much * PAGES_OF_ROW)
            steady.assert_shares()
            assert steady.slowest_write_s() < COMMIT_TIMEOUT_S + SLACK_S
            assert steady.slowest_read_s() < SLACK_S
            assert stored.counts["writes refused softly"] == 0
            # A moment after the last write, without a restart.
            eventually(lambda: longest_wal(data_dir) < TRUNCATE_FROM_BYTES, "the WALs are cut")
            campaign.took("slowest write", steady.slowest_write_s())
            print(  # noqa: T201
                f"WAL at most {usual} MiB, {steady.longest_wal // MIB} with a reader; "
                f"a process grew by {steady.memory.growth // MIB} MiB"
            )
            campaign.checked("MiB written", steady.bytes_written() // MIB)
        with Client(node.url) as client:
            stored.check_all(client)
        assert stored.missing == set()
        assert node.stop() == 0
        assert node.printed == []
    check_clean(data_dir)
    campaign.checked("writes stored", stored.counts["writes stored"])
