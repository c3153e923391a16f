"""The protocol over real sockets, with an application that does what a test says."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from undercroft.http.exchange import PIECE_BYTES, TOO_SLOW, Application, Exchange
from undercroft.http.limits import BODY_BYTES, SLICE_BYTES, Limits
from undercroft.http.server import HttpServer, bind

PATIENCE_S = 20
LARGE = 1 << 20

Scope = dict[str, Any]


async def read_all(receive: Callable[[], Awaitable[Any]]) -> tuple[bytes, int]:
    """The body, and how it ended: 1 whole, 0 because the client left, -1 as it came too slowly."""
    body = b""
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return body, -1 if event[TOO_SLOW] else 0
        body += event["body"]
        if not event["more_body"]:
            return body, 1


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers what was asked."""
    body, whole = await read_all(receive)
    said = b"%s %s %s %d" % (scope["method"].encode(), scope["raw_path"], body, whole)
    headers = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def echo_after(go: asyncio.Event) -> Application:
    """Answers like `echo`, but touches no body before it may."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await echo(scope, receive, send)

    return application


class Peer:
    """A client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        names = {line.partition(b": ")[0]: line.partition(b": ")[2] for line in lines[1:] if line}
        return int(lines[0].split()[1]), names

    async def answer(self) -> bytes:
        status, headers = await self.head()
        assert status == 200
        return await self.reader.readexactly(int(headers[b"content-length"]))

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


class Rig:
    """A server and those who connect to it."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server = server
        self.port = port

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Peer(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def serving(application: Application, **limits: Any) -> AsyncIterator[Rig]:
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = HttpServer(application, bound, Limits(**{"sweep_s": 0.005} | limits))
    server.listen()
    running = asyncio.create_task(server.run())
    try:
        yield Rig(server, port)
    finally:
        await server.stop(1_000)
        await running
        assert not server.busy


GET = b"GET /a%2Fb?q=1 HTTP/1.1\r\nhost: x\r\n\r\n"
PUT = b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
CHUNKS = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx: y\r\n\r\n"
CHUNKED = b"POST /d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKS
STREAM = [(GET, b"GET /a%2Fb  1"), (PUT, b"PUT /c hello 1"), (CHUNKED, b"POST /d abcde 1")]


@given(
    order=st.lists(st.sampled_from(STREAM), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_split_of_a_stream_gives_the_same_answers_in_their_order(
    order: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(request for request, _ in order)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})

    async def run() -> None:
        async with serving(echo) as rig, rig.peer() as peer:
            for start, end in pairwise(places):
                await peer.send(data[start:end])
                await asyncio.sleep(0)
            for _, said in order:
                assert await peer.answer() == said

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01 hello tls\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\ncontent-length: -3\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
        (b"PUT / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000, 431),
        (b"GET /" + b"y" * 200_000, 431),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_is_answered_once_and_ends(data: bytes, status: int) -> None:
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(PUT, data)
        assert await peer.answer() == b"PUT /c hello 1"
        found, headers = await peer.head()
        assert found == status
        assert headers[b"connection"] == b"close"
        assert (await peer.rest()).startswith(b'{"message":"')


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # what it waits for sets no event
            await asyncio.sleep(0.001)


def exchanges(rig: Rig) -> list[Exchange]:
    """Those of its connections that are in memory."""
    found = [one for one in gc.get_objects() if isinstance(one, Exchange)]
    return [one for one in found if getattr(one._wire, "_owner", None) is rig.server]


async def test_a_request_leaves_no_garbage() -> None:
    """A body would stay in memory until it is collected."""
    async with serving(echo) as rig, rig.peer() as peer:
        gc.disable()
        try:
            for request in (GET, PUT, CHUNKED):
                await peer.send(request[:-4])
                await asyncio.sleep(0.002)
                await peer.send(request[-4:])
                await peer.answer()
                await until(lambda: not rig.server.busy)
                assert exchanges(rig) == []
        finally:
            gc.enable()


async def test_requests_sent_ahead_wait_as_bytes() -> None:
    go = asyncio.Event()
    small = b"GET / HTTP/1.1\r\nhost:\r\n\r\n"
    count = 200_000 // len(small)
    async with serving(echo_after(go)) as rig, rig.peer() as peer:
        sending = asyncio.create_task(peer.send(small * count))
        await until(lambda: exchanges(rig))
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(exchanges(rig)) <= SLICE_BYTES // len(small) + 1
        go.set()
        for _ in range(count):
            assert await peer.answer() == b"GET /  1"
        await sending


async def test_a_body_of_tiny_chunks_is_kept_within_its_bound() -> None:
    go = asyncio.Event()
    head = b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    count = 60_000
    async with serving(echo_after(go)) as rig, rig.peer() as peer:
        sending = asyncio.create_task(peer.send(head + b"1\r\nx\r\n" * count + b"0\r\n\r\n"))
        await until(lambda: [one for one in exchanges(rig) if one.body_bytes >= BODY_BYTES])
        for _ in range(50):
            await asyncio.sleep(0)
        (exchange,) = exchanges(rig)
        assert len(exchange.pieces) <= (BODY_BYTES + SLICE_BYTES * PIECE_BYTES // 6) // PIECE_BYTES
        go.set()
        assert await peer.answer() == b"PUT / " + b"x" * count + b" 1"
        await sending


async def test_answers_nobody_reads_hold_up_what_was_asked_after_them() -> None:
    asked = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        asked += 1
        headers = [(b"content-length", b"%d" % LARGE)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(LARGE)})

    count = 100
    async with serving(application) as rig, rig.peer() as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it can be
        await peer.send(GET * count)
        await until(lambda: rig.server.busy)
        for _ in range(1_000):
            await asyncio.sleep(0)
        # What the two kernel buffers take, and one more.
        assert asked < 20
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(count):
            assert await peer.answer() == bytes(LARGE)


async def test_others_get_their_turn_between_two_requests_of_one_read() -> None:
    turns = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(turns)
        await echo(scope, receive, send)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    seen: list[int] = []
    async with serving(application) as rig, rig.peer() as peer:
        other = asyncio.create_task(others())
        await peer.send(GET * 50)
        for _ in range(50):
            await peer.answer()
        other.cancel()
        assert len(set(seen)) == 50


async def test_a_stop_does_not_wait_for_a_client_that_does_not_hang_up() -> None:
    async with serving(echo, linger_s=0.05) as rig, rig.peer() as peer:
        await peer.send(b"no request\r\n\r\n")
        assert (await peer.head())[0] == 400
        async with asyncio.timeout(PATIENCE_S):
            await rig.server.stop(grace_ms=PATIENCE_S * 10_000)


async def test_a_header_of_the_answer_cannot_become_two() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0"), (b"x", b"y\r\nset-cookie: z")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(GET)
        assert await peer.rest() == b""


async def test_100_continue_only_when_the_body_is_asked_for() -> None:
    asked = asyncio.Event()
    head = b"PUT /c HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
    async with serving(echo_after(asked)) as rig, rig.peer() as peer:
        await peer.send(head)
        await asyncio.sleep(0.005)
        assert not peer.reader._buffer  # type: ignore[attr-defined]  # nobody else knows what has come
        asked.set()
        assert (await peer.head())[0] == 100
        await peer.send(b"hello")
        assert await peer.answer() == b"PUT /c hello 1"
        # A body that comes all the same is not waited for.
        await peer.send(head + b"hello")
        assert await peer.answer() == b"PUT /c hello 1"


async def test_an_older_client() -> None:
    async with serving(echo) as rig:
        async with rig.peer() as peer:
            await peer.send(b"GET /a HTTP/1.0\r\n\r\n")
            assert b"connection: close" in await peer.rest()
        async with rig.peer() as peer:
            await peer.send(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            assert (await peer.head())[1][b"connection"] == b"keep-alive"


async def stream(scope: Any, _receive: Any, send: Any) -> None:
    """An answer that does not know its length."""
    del scope
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ab", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body", "body": b"c"})


async def test_an_answer_without_a_length_comes_in_chunks() -> None:
    async with serving(stream) as rig:
        async with rig.peer() as peer:
            await peer.send(GET)
            assert (await peer.head())[1][b"transfer-encoding"] == b"chunked"
            assert await peer.reader.readexactly(18) == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"[:18]
        async with rig.peer() as peer:
            await peer.send(b"GET /a HTTP/1.0\r\n\r\n")
            assert (await peer.rest()).endswith(b"\r\n\r\nabc")


async def test_no_body_where_none_may_be() -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        status = int(scope["raw_path"][1:])
        headers = [(b"content-length", b"3")] if status == 200 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"abc"})

    async with serving(application) as rig, rig.peer() as peer:
        for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)):
            await peer.send(f"{method} /{status} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            found, headers = await peer.head()
            assert found == status
            assert b"transfer-encoding" not in headers
        await peer.send(b"GET /200 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await peer.answer() == b"abc"


async def test_an_answer_of_another_length_than_it_said_ends_the_connection() -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        body = b"abcdef" if scope["raw_path"] == b"/long" else b"ab"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": body})

    async with serving(application) as rig:
        for path, sent in (("/long", b"abcd"), ("/short", b"ab")):
            async with rig.peer() as peer:
                await peer.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                assert (await peer.rest()).partition(b"\r\n\r\n")[2] in (sent, b"")


async def test_an_early_answer_is_seen_although_the_body_goes_on() -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        del scope
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        await peer.send(b"x" * 1_000_000)
        assert (await peer.head())[0] == 413
        assert await peer.rest() == b""


async def test_a_client_that_sends_without_end_after_its_answer_is_cut_off() -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        del scope
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with serving(application, linger_s=0.01) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(peer.send(*[b"x" * 100_000] * 1_000), PATIENCE_S)


async def test_a_body_that_nobody_takes_is_not_read() -> None:
    go_on = asyncio.Event()
    sizes = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        while (event := await receive())["more_body"]:
            sizes.append(len(event["body"]))
        await echo(scope, lambda: asyncio.sleep(0, event), send)

    size = 30 << 20
    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        sending = asyncio.create_task(peer.send(b"x" * size))
        # What fits into the kernel's buffers and ours goes, and no more.
        done, _ = await asyncio.wait([sending], timeout=0.2)
        assert not done
        go_on.set()
        await sending
        await peer.head()
    assert max(sizes) < 2 << 20


async def test_who_does_not_read_makes_the_application_wait() -> None:
    sent = 0

    async def application(scope: Any, _receive: Any, send: Any) -> None:
        nonlocal sent
        del scope
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", b"%d" % (50 << 20))],
            }
        )
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(GET)
        await peer.head()
        await asyncio.sleep(0.01)
        assert sent < 20
        assert len(await peer.reader.readexactly(50 << 20)) == 50 << 20


async def test_the_application_hears_that_the_client_has_gone() -> None:
    heard: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        await heard.put(await read_all(receive))

    async with serving(application) as rig:
        async with rig.peer() as peer:
            await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\nhello")
            while not rig.server.busy:  # noqa: ASYNC110  # the server has no event for it
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            body, whole = await heard.get()
        assert not whole
        assert body in (b"", b"hello")


async def test_a_half_closed_client_is_answered() -> None:
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(PUT + GET)
        peer.writer.write_eof()
        assert await peer.answer() == b"PUT /c hello 1"
        assert await peer.answer() == b"GET /a%2Fb  1"
        assert await peer.rest() == b""


async def test_headers_that_do_not_come_in_time() -> None:
    async with serving(echo, headers_s=0.02) as rig, rig.peer() as peer:
        await peer.send(b"GET / HTTP/1.1\r\nhost")
        assert (await peer.head())[0] == 408


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with serving(echo, idle_s=0.05) as rig, rig.peer() as peer:
        await peer.send(GET)
        await peer.answer()
        assert await peer.rest() == b""


async def test_beyond_the_bound_the_one_that_was_idle_for_longest_makes_way() -> None:
    async with serving(echo, max_connections=2) as rig, rig.peer() as first, rig.peer() as second:
        for peer in (first, second):
            await peer.send(GET)
            await peer.answer()
        async with rig.peer() as third:
            await third.send(GET)
            await third.answer()
            assert await first.rest() == b""
            await second.send(GET)
            await second.answer()


async def test_where_none_is_idle_the_slowest_body_makes_way() -> None:
    limits = {"max_connections": 2, "body_grace_s": 0.0}
    async with serving(echo, **limits) as rig, rig.peer() as slow, rig.peer() as quick:
        for peer, begun in ((slow, b"1"), (quick, b"12345")):
            await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n" + begun)
        connections = rig.server._connections
        now = asyncio.get_running_loop().time
        await until(lambda: sum(one.slowness(now()) is not None for one in connections) == 2)
        async with rig.peer() as third:
            await third.send(GET)
            await third.answer()
            assert await slow.answer() == b"PUT /c 1 -1"
            assert await slow.rest() == b""
        await quick.send(b"6")
        assert await quick.answer() == b"PUT /c 123456 1"


@pytest.mark.parametrize("begun", [b"\r\n12345", b"expect: 100-continue\r\n\r\n"])
async def test_a_body_that_waits_for_the_application_makes_way_for_nobody(begun: bytes) -> None:
    go = asyncio.Event()
    async with serving(echo_after(go), max_connections=1, body_grace_s=0.0) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n" + begun)
        await until(lambda: rig.server.busy)
        await is_turned_away(rig)
        go.set()
        await peer.send(b"6" if begun.endswith(b"5") else b"123456")
        if begun.startswith(b"expect"):
            assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await peer.answer() == b"PUT /c 123456 1"


async def test_a_body_that_comes_quickly_makes_way_for_nobody() -> None:
    limits = {"max_connections": 1, "body_grace_s": 0.0, "slow_bytes_per_s": 0}
    async with serving(echo, **limits) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n12345")
        await until(lambda: rig.server.busy)
        with capture_logs() as logs:
            await is_turned_away(rig)
            await until(lambda: logs)
        assert [(told["event"], told["count"]) for told in logs] == [("connections_turned_away", 1)]
        await peer.send(b"6")
        assert await peer.answer() == b"PUT /c 123456 1"


async def is_turned_away(rig: Rig) -> None:
    """There is no room for another connection."""
    async with rig.peer() as other:
        await other.send(GET)
        with suppress(ConnectionError):
            assert await other.rest() == b""


async def test_an_application_that_fails_ends_its_connection_only() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["raw_path"] == b"/bad":
            raise ValueError("a bug")
        await echo(scope, receive, send)

    async with serving(application) as rig, rig.peer() as good:
        async with rig.peer() as bad:
            await bad.send(b"GET /bad HTTP/1.1\r\nhost: x\r\n\r\n")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await bad.head()
        await good.send(GET)
        await good.answer()


@pytest.mark.parametrize("target", ["http://host:80/a%2Fb?q=1", "/a%2Fb?q=1"])
async def test_the_raw_path_and_the_query(target: str) -> None:
    seen = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["raw_path"], scope["query_string"], scope["path"]))
        await echo(scope, receive, send)

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await peer.answer()
    assert seen == [(b"/a%2Fb", b"q=1", "/a/b")]


UPGRADE = b"PUT /c HTTP/1.1\r\nhost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\ncontent-length: %d\r\n\r\n%b"


async def test_a_wish_for_another_protocol_is_ignored() -> None:
    body = b"\r\nupgrade: is part of the body"
    async with serving(echo) as rig, rig.peer() as peer:
        for _ in range(2):
            await peer.send(UPGRADE % (len(body), body))
            assert await peer.answer() == b"PUT /c %b 1" % body


async def test_where_it_cannot_be_ignored_nothing_is_taken_for_an_empty_body() -> None:
    request = UPGRADE % (5, b"hello")
    for cut in range(len(request)):
        async with serving(echo) as rig, rig.peer() as peer:
            await peer.send(request[:cut])
            await asyncio.sleep(0.001)
            await peer.send(request[cut:])
            status, headers = await peer.head()
            assert status in (200, 400)
            if status == 200:
                said = await peer.reader.readexactly(int(headers[b"content-length"]))
                assert said == b"PUT /c hello 1"


async def test_hundreds_of_requests_in_one_read_are_not_one_head() -> None:
    many = 3_000
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(GET * many + GET[:10])
        for _ in range(many):
            assert await peer.answer() == b"GET /a%2Fb  1"
        await peer.send(GET[10:])
        assert await peer.answer() == b"GET /a%2Fb  1"


@pytest.mark.parametrize("endless", [b"x: " + b"y" * 1_000, b"y" * 1_000])
async def test_trailers_have_the_bound_of_a_head(endless: bytes) -> None:
    head = b"POST /d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(head + b"3\r\nabc\r\n0\r\nx: ")
        with pytest.raises(ConnectionError):  # the bound, and what lingering takes
            await asyncio.wait_for(peer.send(*[endless] * 20_000), PATIENCE_S)


async def test_many_small_chunks_are_no_trailers() -> None:
    count = 300
    head = b"POST /d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(head)
        for _ in range(count):
            for piece in (b"1;" + b"e" * 300 + b"\r\n", b"x\r\n"):
                await peer.send(piece)
                await asyncio.sleep(0.001)  # each is read by itself
        await peer.send(b"0\r\n\r\n")
        assert await peer.answer() == b"POST /d %b 1" % (b"x" * count)


@pytest.mark.parametrize("reads_on", [True, False])
async def test_an_answer_before_the_end_of_a_body_ends_the_connection_unless_the_rest_is_read(
    reads_on: bool,
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        while reads_on and (await receive()).get("more_body"):
            pass

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        assert b"connection" not in (await peer.head())[1]
        await peer.send(b"12345")
        if reads_on:
            await peer.send(b"GET /d HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await peer.head())[0] == 401
        else:
            assert await peer.rest() == b""


async def test_an_older_client_is_not_told_to_go_on() -> None:
    async with serving(echo) as rig, rig.peer() as peer:
        await peer.send(b"PUT /c HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        await asyncio.sleep(0.005)
        await peer.send(b"hello")
        assert await peer.answer() == b"PUT /c hello 1"


async def test_what_comes_after_the_stop_does_not_cost_the_answer_before() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await go_on.wait()
        await echo(scope, receive, send)

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(GET)
        await asked.wait()
        stopping = asyncio.create_task(rig.server.stop(PATIENCE_S * 1_000))
        await asyncio.sleep(0)
        await peer.send(GET)
        peer.writer.write_eof()
        await asyncio.sleep(0.01)
        go_on.set()
        assert await peer.answer() == b"GET /a%2Fb  1"
        await stopping


async def test_a_burst_does_not_leave_more_connections_than_the_bound() -> None:
    async with serving(echo, max_connections=5) as rig, AsyncExitStack() as stack:
        peers = []
        for _ in range(2):
            peers += await asyncio.gather(*(stack.enter_async_context(rig.peer()) for _ in range(20)))
        await peers[-1].send(GET)
        await peers[-1].answer()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(peer.reader.read() for peer in peers[:20]))
        assert len(rig.server._connections) <= 5


async def test_the_stop_does_not_leave_a_connection_whose_client_reads_nothing() -> None:
    async def application(scope: Any, _receive: Any, send: Any) -> None:
        del scope
        headers = [(b"content-length", b"%d" % (50 << 20)), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(50 << 20)})

    async with serving(application) as rig, rig.peer() as peer:
        await peer.send(GET)
        await peer.head()
        await rig.server.stop(10)
        assert not rig.server._connections
