"""Clients that are slow, rude, broken, or many: everybody else is served, and what they took comes back."""

import random
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually

CROWD = 2_000
SLOW = 60
PIPELINED = 300
LARGE = 24 << 20

# Of each process of a node: what 2,000 connections, ten readers that read nothing
# (a quarter of a MiB and what the kernel keeps), and SQLite's page caches may come to.
ALLOWED_GROWTH = 120 << 20

# Of each process beyond one for each connection: files being read, SQLite, sockets of siblings.
ALLOWED_DESCRIPTORS = 40

KNOWN = "/ccache/acme/app/" + "ab" * 20
KNOWN_BODY = b"what everybody asks for " * 400
LARGE_PATH = "/ccache/acme/app/" + "cd" * 20

# One body in the node's memory, and many of them in a request for each.
MEDIUM = 1 << 20
MEDIUM_PATH = "/ccache/acme/app/" + "ef" * 20
UNREAD = 400

REFUSED = 20


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


def put(path: str, body: bytes, size: int | None = None) -> bytes:
    return f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size or len(body)}\r\n\r\n".encode() + body


class Target:
    """A node, and sockets to it."""

    def __init__(self, node: NodeProcess, generator: random.Random) -> None:
        self.node = node
        self.random = generator
        self._address = urlsplit(node.url)
        parent = psutil.Process(node.process.pid)
        self._processes = [parent, *parent.children(recursive=True)]
        self._resident_at_first = self.resident
        self._descriptors_at_first = self.descriptors - psutil.Process().num_fds()

    def connect(self) -> socket.socket:
        return socket.create_connection((self._address.hostname or "", self._address.port or 0), timeout=60)

    @property
    def descriptors(self) -> int:
        return sum(process.num_fds() for process in self._processes)

    @property
    def resident(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]

    def serves(self) -> None:
        """Somebody who behaves gets what they ask for, and the node takes no more than it may."""
        with Client(self.node.url) as client:
            assert client.get_bytes(KNOWN) == KNOWN_BODY
        growth = [now - then for now, then in zip(self.resident, self._resident_at_first, strict=True)]
        assert max(growth) < ALLOWED_GROWTH, growth
        # One for each socket of ours, and what it opens once; some worker may not know yet who has gone.
        allowed = self._descriptors_at_first + ALLOWED_DESCRIPTORS * len(self._processes)
        eventually(
            lambda: self.descriptors - psutil.Process().num_fds() <= allowed, "descriptors are bounded"
        )


def answer(opened: socket.socket) -> tuple[int, bytes]:
    """The next answer, by its Content-Length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = opened.recv(1)
        assert piece, head
        head += piece
    status = int(head.split()[1])
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ),
        0,
    )
    body = b""
    while len(body) < length:
        piece = opened.recv(length - len(body))
        assert piece
        body += piece
    return status, body


def refused(target: Target, requests: list[bytes], beginning: bytes) -> int:
    """How many requests were, each on a connection of its own that ends after it: nearly all are told why.

    On a busy machine one may send for longer than the node reads what it has refused, and is reset then.
    """
    told = 0
    for request in requests:
        with target.connect() as opened, suppress(ConnectionError):
            opened.sendall(request)
            opened.shutdown(socket.SHUT_WR)
            first = opened.recv(len(beginning), socket.MSG_WAITALL)
            assert first in (b"", beginning), first
            told += first == beginning
    assert told >= 0.9 * len(requests), f"{told} of {len(requests)} were told"
    return len(requests)


def reset(opened: socket.socket) -> None:
    """Ends it without a good-bye."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.close()


# --- what they do ---------------------------------------------------------------------------------


def slow_headers(target: Target) -> int:
    with ExitStack() as stack:
        opened = [stack.enter_context(target.connect()) for _ in range(SLOW)]
        for byte in get(KNOWN)[:20]:
            for one in opened:
                one.sendall(bytes([byte]))
        target.serves()
    return SLOW


def slow_bodies(target: Target) -> int:
    with ExitStack() as stack:
        for number in range(SLOW):
            one = stack.enter_context(target.connect())
            one.sendall(put(f"/ccache/acme/app/slow{number}", b"x" * 10, 100_000))
        target.serves()
    with Client(target.node.url) as client:
        assert client.get_bytes("/ccache/acme/app/slow0") is None
    return SLOW


def crowd(target: Target) -> int:
    with ExitStack() as stack:
        opened = [stack.enter_context(target.connect()) for _ in range(CROWD)]
        target.serves()
        for one in opened:
            one.sendall(get(KNOWN))
        for one in opened:
            assert answer(one) == (200, KNOWN_BODY)
        target.serves()
    return CROWD


def half_closed(target: Target) -> int:
    with target.connect() as opened:
        opened.sendall(get(LARGE_PATH))
        opened.shutdown(socket.SHUT_WR)
        status, body = answer(opened)
        assert (status, len(body)) == (200, LARGE)
        assert opened.recv(1) == b""
    return 1


def large_headers(target: Target) -> int:
    request = get(KNOWN, "x: " + "y" * 300_000)
    return refused(target, [request] * REFUSED, b"HTTP/1.1 431")


def pipeline(target: Target) -> int:
    paths = [target.random.choice((KNOWN, "/ccache/acme/app/nothing")) for _ in range(PIPELINED)]
    with target.connect() as opened:
        opened.sendall(b"".join(map(get, paths)))
        for path in paths:
            status, body = answer(opened)
            assert (status, body) == (200, KNOWN_BODY) if path == KNOWN else status == 404
    return PIPELINED


def garbage(target: Target) -> int:
    sizes = [target.random.randrange(1, 5_000) for _ in range(REFUSED)]
    requests = [target.random.randbytes(size) + b"\r\n\r\n" for size in sizes]
    return refused(target, requests, b"HTTP/1.1 400")


def split_anywhere(target: Target) -> int:
    body = target.random.randbytes(3_000)
    path = f"/ccache/acme/app/{target.random.getrandbits(160):040x}"
    stream = put(path, body) + get(path) + get(KNOWN)
    with target.connect() as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while stream:
            size = target.random.choice((1, 1, 2, 7, 100, 1_000))
            opened.sendall(stream[:size])
            stream = stream[size:]
        assert answer(opened)[0] == 201
        assert answer(opened) == (200, body)
        assert answer(opened) == (200, KNOWN_BODY)
    return 3


def reset_in_a_body(target: Target) -> int:
    for number in range(20):
        opened = target.connect()
        opened.sendall(put(f"/ccache/acme/app/reset{number}", b"x" * 400_000, 500_000))
        reset(opened)
    with Client(target.node.url) as client:
        assert client.get_bytes("/ccache/acme/app/reset3") is None
    return 20


def reset_in_an_answer(target: Target) -> int:
    for _ in range(10):
        opened = target.connect()
        opened.sendall(get(LARGE_PATH))
        opened.recv(1_000)
        reset(opened)
    return 10


def never_reads(target: Target) -> int:
    with ExitStack() as stack:
        for _ in range(10):
            opened = stack.enter_context(closing(target.connect()))
            opened.sendall(get(LARGE_PATH))
            opened.recv(100)
        target.serves()
    return 10


def answers_nobody_reads(target: Target) -> int:
    with closing(target.connect()) as opened:
        opened.sendall(get(MEDIUM_PATH) * UNREAD)
        opened.recv(100)
        for _ in range(5):
            target.serves()
    return UNREAD


def tiny_requests(target: Target) -> int:
    one = get("/up")
    count = 200_000 // len(one)
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(target.connect())) for _ in range(20)]
        for each in opened:
            each.sendall(one * count)
        target.serves()
        for _ in range(100):
            assert answer(opened[0])[0] == 200
    return count * len(opened)


def tiny_chunks(target: Target) -> int:
    head = b"PUT /ccache/acme/app/tiny HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing(target.connect()) as opened:
        opened.sendall(head + b"1\r\nx\r\n" * 50_000)
        target.serves()
        opened.sendall(b"0\r\n\r\n")
        assert answer(opened)[0] in (200, 201)
    with Client(target.node.url) as client:
        assert client.get_bytes("/ccache/acme/app/tiny") == b"x" * 50_000
    return 50_000


DEEDS: tuple[Callable[[Target], int], ...] = (
    slow_headers,
    slow_bodies,
    crowd,
    half_closed,
    large_headers,
    pipeline,
    garbage,
    split_anywhere,
    reset_in_a_body,
    reset_in_an_answer,
    never_reads,
    answers_nobody_reads,
    tiny_requests,
    tiny_chunks,
)


@pytest.fixture(params=[1, 4], ids=["1 worker", "4 workers"])
def target(request: pytest.FixtureRequest, data_dir: Path, campaign: Campaign) -> Iterator[Target]:
    arguments = ("--workers", str(request.param))
    with node_process(data_dir, arguments=arguments) as node:
        with Client(node.url) as client:
            assert client.request("PUT", KNOWN, KNOWN_BODY).status == 201
            assert client.request("PUT", LARGE_PATH, bytes(LARGE)).status == 201
            assert client.request("PUT", MEDIUM_PATH, bytes(MEDIUM)).status == 201
        yield Target(node, campaign.random)
        assert node.stop() == 0
        assert node.logged("request_failed") == []


def test_odd_clients(target: Target, campaign: Campaign) -> None:
    for deed in DEEDS:  # what is opened once, and allocated once, is no leak
        deed(target)
    before = target.descriptors
    for _ in campaign.rounds(short=1, long=30):
        for deed in campaign.random.sample(DEEDS, len(DEEDS)):
            campaign.checked(deed.__name__.replace("_", " "), deed(target))
            target.serves()
            # Those that are idle go when their client has; nobody keeps a file open.
            eventually(
                lambda: target.descriptors <= before, f"descriptors are given back after {deed.__name__}"
            )


def trickle(one: socket.socket) -> bytes | None:
    """Sends one byte more; what the node says when it has enough of that, None before."""
    try:
        one.send(b"x")
        return one.recv(4_096)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def last_words(tricklers: list[socket.socket], timeout_s: float = 30) -> list[bytes]:
    """What the node says when it ends them, all of whom send a byte now and then until it does."""
    said: dict[socket.socket, bytes] = {}

    def all_ended() -> bool:
        for one in tricklers:
            if one not in said and (last := trickle(one)) is not None:
                said[one] = last
        return len(said) == len(tricklers)

    eventually(all_ended, "the node ends every connection", timeout_s)
    return list(said.values())


@pytest.mark.parametrize("workers", [1, 4])
def test_bodies_that_trickle_are_ended(data_dir: Path, workers: int) -> None:
    """They would keep the room for what they have announced as long as they like."""
    settings = {"UPLOADS__READ_TIMEOUT_MS": "500", "DISK__LIMIT_BYTES": "100MB"}
    arguments = ("--workers", str(workers))
    with node_process(data_dir, settings, arguments=arguments) as node, ExitStack() as stack:
        target, large = Target(node, random.Random(1)), 19_000_000
        tricklers = [stack.enter_context(target.connect()) for _ in range(7)]
        for number, one in enumerate(tricklers):
            one.sendall(put(f"/ccache/acme/app/trickle{number}", b"x", large))
            one.setblocking(False)
        said = last_words(tricklers)
        assert any(last.startswith(b"HTTP/1.1 408 ") and b"too slowly" in last for last in said)
        with Client(node.url) as client:
            for number in range(5):  # all the room there is
                assert client.request("PUT", f"/ccache/acme/app/whole{number}", bytes(large)).status == 201
        assert node.stop() == 0


def test_a_body_that_is_slow_makes_way_where_all_connections_are_taken(data_dir: Path) -> None:
    with node_process(data_dir, {"HTTP__MAX_CONNECTIONS": "3"}) as node, ExitStack() as stack:
        target = Target(node, random.Random(1))
        slow = [stack.enter_context(target.connect()) for _ in range(3)]
        for number, one in enumerate(slow):
            one.sendall(put(f"/ccache/acme/app/slow{number}", b"x", 100_000))

        def is_served() -> bool:
            with target.connect() as other, suppress(ConnectionError):
                other.sendall(get("/up"))
                return other.recv(len(b"HTTP/1.1 200")) == b"HTTP/1.1 200"
            return False

        eventually(is_served, "a slow body makes way for who comes")
        (ended,) = select.select(slow, [], [], 10)[0]
        status, body = answer(ended)
        assert (status, b"others need this one" in body) == (408, True)
        assert node.stop() == 0


def test_headers_that_trickle_are_ended(data_dir: Path, campaign: Campaign) -> None:
    """A client has 30 s for them, in which a byte comes now and then."""
    campaign.is_for_the_long_form()
    with node_process(data_dir) as node, ExitStack() as stack:
        target = Target(node, campaign.random)
        slow = [stack.enter_context(target.connect()) for _ in range(SLOW)]
        for one in slow:
            one.sendall(b"GET /up HTTP/1.1\r\nx: ")
            one.setblocking(False)
        said = last_words(slow, timeout_s=60)
        for last in said:
            assert last.startswith(b"HTTP/1.1 408 "), last
        campaign.checked("answers", len(said))
        assert node.stop() == 0
