"""A volume that is filled many times over: every write succeeds, what is in use stays."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.support.small_volume import MEGABYTE, occupied, small_volume
from tests.system.client import TENANT, Client

SECONDS, SECONDS_IN_THE_LONG_FORM = 5, 180
VOLUME_MB = 200
ENOUGH = 3 * VOLUME_MB * MEGABYTE
WRITERS = 6
HOT = 20
ENOUGH_READS = 10 * HOT

# Percent of the volume; what is above it is for the databases.
LIMIT = 95.0

BLOCK = random.Random(1).randbytes(9 * MEGABYTE)
LARGEST = 8 * MEGABYTE
SMALLEST = 4_000


class Load:
    """Writers, readers and an eye on the volume, until time and work are over or one of them fails."""

    def __init__(self, node: NodeProcess, root: Path, seconds: float, seed: str) -> None:
        self._node = node
        self._root = root
        self._seed = seed
        self._end = time.monotonic() + seconds
        self.failures: list[str] = []
        self.writes = self.bytes_written = 0
        self.reads = 0
        self.fullest = 0.0
        self._lock = threading.Lock()

    def run(self) -> None:
        works: list[Callable[[], None]] = [self._watch, self._read, self._read]
        works += [lambda name=name: self._write(name) for name in range(WRITERS)]  # type: ignore[misc]
        threads = [threading.Thread(target=self._guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # a thread has nobody to raise it to
            self.failures.append(repr(error))

    def _goes_on(self) -> bool:
        """However slow the machine is: the volume is filled more than once."""
        is_over = time.monotonic() >= self._end and self.bytes_written > ENOUGH and self.reads > ENOUGH_READS
        return not self.failures and not is_over

    def _watch(self) -> None:
        while self._goes_on():
            self.fullest = max(self.fullest, occupied(self._root))
            time.sleep(0.002)

    def _read(self) -> None:
        with Client(self._node.url) as client:
            while self._goes_on():
                for number in range(HOT):
                    assert client.get_ccache(f"hot{number}") == hot(number), f"hot{number}"
                    self.reads += 1

    def _write(self, name: int) -> None:
        chance = random.Random(f"{self._seed} {name}")
        number = 0
        with Client(self._node.url) as client:
            while self._goes_on():
                number += 1
                self._write_one(client, chance, f"{name}n{number}")

    def _write_one(self, client: Client, chance: random.Random, name: str) -> None:
        # As many of 4 to 8 kB as of 4 to 8 MB.
        size = int(SMALLEST * (LARGEST / SMALLEST) ** chance.random())
        start = chance.randrange(len(BLOCK) - size)
        content = BLOCK[start : start + size]
        body = content if chance.random() < 0.5 else pieces(content)
        method, path, stored = chance.choice(
            [
                ("PUT", f"/ccache/acme/app/{name}", 201),
                ("POST", f"/api/cache/cas/{name}?{TENANT}", 204),
            ]
        )
        answer = client.request(method, path, body)
        assert answer.status == stored, (name, size, answer)
        with self._lock:
            self.writes += 1
            self.bytes_written += size


def pieces(content: bytes) -> Iterator[bytes]:
    """Sent in chunks: the node does not know how much will come."""
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


def hot(number: int) -> bytes:
    return BLOCK[number * 1_000 : number * 1_000 + 20_000 * (number + 1)]


# Writers are as fast as the node: several times the volume.
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_volume_never_refuses_what_fits(
    tmp_path: Path, campaign: Campaign, kind: str, workers: int
) -> None:
    for number in campaign.rounds(short=1, long=3):
        fill_many_times(tmp_path / str(number), campaign, kind, workers)


def fill_many_times(folder: Path, campaign: Campaign, kind: str, workers: int) -> None:
    more, seconds = ("--workers", str(workers)), SECONDS_IN_THE_LONG_FORM if campaign.torture else SECONDS
    folder.mkdir()
    with (
        small_volume(kind, folder, VOLUME_MB) as root,
        node_process(root / "node", {"DISK__LIMIT_PERCENT": str(LIMIT)}, arguments=more) as node,
    ):
        with Client(node.url) as client:
            for number in range(HOT):
                assert client.put_ccache(f"hot{number}", hot(number)).status == 201
        load = Load(node, root, seconds, f"{campaign.seed} {folder.name}")
        load.run()
        assert load.failures == []
        # Another connection: one that was idle for so long has been closed.
        with Client(node.url) as client:
            for number in range(HOT):
                assert client.get_ccache(f"hot{number}") == hot(number)
        written = f"{load.bytes_written / MEGABYTE:,.0f} MB in {seconds} s"
        print(f"{kind}, {workers} processes: {written}, fullest {load.fullest:.1f} %")  # noqa: T201
        assert node.stop() == 0
        assert node.printed == []
        assert [record for record in node.log if record["level"] not in ("debug", "info")] == []
        assert [record for record in node.log if "exception" in record] == []
        assert 85.0 < load.fullest <= LIMIT + 1.0
        evicted = sum(record["artifacts"] for record in node.logged("disk_evicted"))
        assert evicted > 100
        campaign.checked("writes", load.writes)
        campaign.checked("MB written", load.bytes_written // MEGABYTE)
        campaign.checked("reads compared", load.reads)
        campaign.checked("evictions", evicted)
