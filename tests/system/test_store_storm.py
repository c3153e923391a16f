"""An object store in trouble of all kinds: hit or miss in time, no wrong byte, every upload in the end."""

import hashlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.api.dialects import NX
from tests.support.campaign import Campaign
from tests.support.fault_proxy import Fault, FaultProxy, Garbled
from tests.support.node_process import NodeProcess, node_process
from tests.support.s3_endpoint import S3Endpoint
from tests.system.client import Client, eventually
from tests.system.data_dir import query
from tests.system.stored_bytes import Shaking, Stored
from tests.system.test_object_store import settings

FIRST_BYTE_MS = 700

QUICK = {
    "OBJECT_STORE__NEGATIVE_TTL_MS": "50",
    "OBJECT_STORE__CONNECT_TIMEOUT_MS": "500",
    "OBJECT_STORE__FIRST_BYTE_TIMEOUT_MS": str(FIRST_BYTE_MS),
    "OBJECT_STORE__READ_TIMEOUT_MS": "700",
    "OBJECT_STORE__TRANSFER_TIMEOUT_MS": "3000",
    "OBJECT_STORE__RETRY_BASE_DELAY_MS": "20",
    "OBJECT_STORE__RETRY_MAX_DELAY_MS": "500",
    "BUFFERS__COMMIT_TIMEOUT_MS": "20000",
}

# From the deadline to a client that waits among others on a machine that does other work as well.
PATIENCE_S = 15.0

# What a client may be sent while it comes; then a break is all that can tell that it is not whole.
WHOLE_BYTES = 1 << 20

MIB = 1 << 20
MOST_GROWTH = 200 * MIB
MOST_DESCRIPTORS = 300

GARBLED: tuple[Garbled, ...] = ("flipped", "shorter", "longer", "another's", "claims more", "claims less")

REVOKED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist.</Message></Error>"
)

Weather = Callable[[random.Random], Fault]

WEATHERS: dict[str, Weather] = {
    "fair": lambda _: Fault(),
    "black hole": lambda _: Fault("stall"),
    "slow first byte": lambda chance: Fault(latency_s=chance.uniform(0.1, 2)),
    "trickle": lambda chance: Fault(bytes_per_s=chance.choice((5_000, 100_000, 1_000_000))),
    "429": lambda _: Fault("answer", status=429),
    "429 with Retry-After": lambda _: Fault("answer", status=429, headers="retry-after: 1\r\n"),
    "503 with Retry-After": lambda _: Fault("answer", status=503, headers="retry-after: 120\r\n"),
    "500 or 503": lambda chance: Fault("answer", status=chance.choice((500, 503))),
    "reset": lambda chance: Fault("reset", after=chance.choice((None, 0, 100, 70_000, 500_000))),
    "cut": lambda chance: Fault("cut", after=chance.choice((None, 0, 100, 70_000, 500_000))),
    "stall in the middle": lambda chance: Fault("stall", after=chance.choice((0, 100, 70_000))),
    "broken upload": lambda chance: Fault("break_upload", after=chance.choice((0, 100, 70_000))),
    "wrong bytes": lambda chance: Fault("garble", garbled=chance.choice(GARBLED)),
    "credential revoked": lambda _: Fault("answer", status=403, body=REVOKED),
}

THROTTLING = {"429", "429 with Retry-After", "503 with Retry-After", "500 or 503"}


class Weathermaker:
    """Changes what the store does to requests; each draws for itself within the weather of the hour."""

    def __init__(self, proxy: FaultProxy, chance: random.Random) -> None:
        self._proxy = proxy
        self._chance = chance
        self.seen: set[str] = set()
        self._is_gone = False

    def go(self) -> None:
        """Nobody is there until the next change."""
        self._proxy.refuse()
        self._is_gone = True

    def _come_back(self) -> None:
        if not self._is_gone:
            return
        # It was away all the time.
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self._proxy.port)):
            pass
        self._proxy.accept()
        self._is_gone = False

    def change(self) -> None:
        """Another weather, or all of them at once."""
        self._come_back()
        kind = self._chance.random()
        one = "fair" if kind < 0.3 else self._chance.choice(list(WEATHERS))
        names = [*WEATHERS, *["fair"] * len(WEATHERS)] if kind > 0.7 else [one]
        self.seen.update(names)
        draws = random.Random(self._chance.random())
        self._proxy.choose(lambda _line: WEATHERS[draws.choice(names)](draws))

    def clear(self) -> None:
        """The store works."""
        self._come_back()
        self._proxy.set(Fault())


class Bounds:
    """Watches what a node takes of memory and descriptors."""

    def __init__(self, node: NodeProcess) -> None:
        parent = psutil.Process(node.process.pid)
        self._processes = [parent, *parent.children(recursive=True)]
        self._first = self._memory()
        self.growth = 0
        self.descriptors = 0
        self.lowest_limit = 1_000.0

    def _memory(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)

    def look(self, client: Client) -> None:
        self.growth = max(self.growth, self._memory() - self._first)
        self.descriptors = max(process.num_fds() for process in self._processes)
        self.lowest_limit = min(self.lowest_limit, client.metric("undercroft_transfers_limit"))
        assert self.growth < MOST_GROWTH * len(self._processes), (
            f"{self.growth:,} bytes more than at the start"
        )
        assert self.descriptors < MOST_DESCRIPTORS, self.descriptors


class Asking:
    """Reads on a node without a copy of its own what another has uploaded, as far as it has."""

    def __init__(self, stored: Stored, url: str, seed: str) -> None:
        self._stored = stored
        self._url = url
        self._over = threading.Event()
        self.hits = self.misses = self.broken = 0
        self.longest_s = 0.0
        self._failure: BaseException | None = None
        self._chance = random.Random(f"asking {seed}")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                with Client(self._url) as client:
                    self._ask_on(client)
        except BaseException as error:  # noqa: BLE001  # for the main thread to raise
            self._failure = error

    def _ask_on(self, client: Client) -> None:
        """Asks on one connection until that breaks."""
        while not self._over.is_set():
            if not (paths := list(self._stored.artifacts)):
                time.sleep(0.01)
                continue
            path = self._chance.choice(paths)
            dialect, content = self._stored.artifacts[path]
            began = time.monotonic()
            try:
                answer = client.request("GET", path)
            except (http.client.HTTPException, OSError):
                # Nx fails its build for it, and what is small has no reason to be sent too soon.
                assert len(content) > WHOLE_BYTES, f"{path} broke off"
                assert dialect is not NX
                self.broken += 1
                return
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            assert answer.status in (200, 404), answer
            assert answer.status == 404 or answer.body == content, f"wrong bytes: {path}"
            self.hits += answer.status == 200
            self.misses += answer.status == 404

    def end(self) -> None:
        """Ends it; raises what went wrong."""
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


def in_bucket(endpoint: S3Endpoint) -> set[str]:
    """Digests of all objects."""
    return {hashlib.sha256(body).hexdigest() for body in endpoint.files().values()}


def transfers_left(data_dir: Path) -> int:
    ((count,),) = query(data_dir / "node.sqlite", "SELECT count(*) FROM s3_transfers")
    return int(count)


@contextmanager
def running(load: Shaking, asking: Asking) -> Iterator[None]:
    """Whatever happens inside, both are ended, and what they found wrong is raised."""
    try:
        yield
    finally:
        try:
            load.end()
        finally:
            asking.end()


def test_a_store_in_trouble(tmp_path: Path, s3_endpoint: S3Endpoint, campaign: Campaign) -> None:
    chance = campaign.random
    data_dir, stored = tmp_path / "writer", Stored()
    lowest_limit, throttled = 1_000.0, False
    with FaultProxy(s3_endpoint.port) as proxy:
        weather = Weathermaker(proxy, chance)
        environment = settings(s3_endpoint, proxy.url, **QUICK)
        for number in campaign.rounds(short=1, long=20):
            more = ("--workers", str(chance.choice((1, 4))))
            with (
                node_process(data_dir, environment, arguments=more) as writer,
                node_process(tmp_path / f"reader{number}", environment) as reader,
                Client(writer.url) as client,
            ):
                seed = f"{campaign.seed}-{number}"
                bounds = Bounds(writer), Bounds(reader)
                load = Shaking(stored, writer.url, seed, writers=3, large=1_600_000)
                asking = Asking(stored, reader.url, seed)
                with running(load, asking), Client(reader.url) as other:
                    changes = chance.randint(4, 8)
                    gone = chance.randrange(1, changes)
                    for hour in range(changes):
                        weather.change()
                        if hour == gone:
                            weather.go()
                            campaign.checked("times that nobody was there")
                        for _ in range(3):
                            load.wait(chance.uniform(0, 0.25))
                            bounds[0].look(client)
                            bounds[1].look(other)
                # A deadline that nobody kept would be seen by far: the proxy says nothing for minutes.
                assert asking.longest_s < PATIENCE_S
                throttled = throttled or bool(weather.seen & THROTTLING)
                lowest_limit = min(lowest_limit, bounds[0].lowest_limit)
                for what in ("hits", "misses", "broken"):
                    campaign.checked(f"reads through: {what}", getattr(asking, what))
                if chance.random() < 0.5:
                    writer.kill()  # with all that is queued, in the middle of the storm
                else:
                    assert writer.stop() == 0
                assert reader.stop() == 0
            weather.clear()
            with node_process(data_dir, environment, arguments=more) as writer, Client(writer.url) as client:
                eventually(lambda: transfers_left(data_dir) == 0, "the backlog is gone", 60)
                assert client.metric("undercroft_transfers_parked") == 0
                expected = {
                    hashlib.sha256(dialect.preamble + content).hexdigest()
                    for dialect, content in stored.artifacts.values()
                }
                # Whatever was fetched meanwhile, nothing of it was a reason to delete.
                assert not expected - in_bucket(s3_endpoint)
                stored.check_all(client)
                assert not stored.missing
                assert writer.stop() == 0
            campaign.checked("objects compared", len(expected))
    for what, count in stored.counts.items():
        campaign.checked(what, count)
    assert not throttled or lowest_limit < 8
