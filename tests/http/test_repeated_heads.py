"""Requests whose head came before, with another body each time, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.test_connection import CHUNKED, GET, LARGE, PUT, Peer, Rig, read_all, serving, until
from tests.support.http_side import HttpSide
from undercroft.http.connection import HttpConnection
from undercroft.http.limits import SLICE_BYTES
from undercroft.http.repeats import REPEAT, REQUEST_BYTES, Answer, Settle


def answer_of(body: bytes) -> Answer:
    return Answer(200, ((b"content-length", b"%d" % len(body)),), body)


class Store:
    """An application that says what it was sent, and how it came to it; `go` lets answers go."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.in_full = 0
        self.go = asyncio.Event()
        self.go.set()
        self.take: Callable[[bytes], Settle | Answer | None] = lambda body: partial(self._settle, body)

    def repeat(self, body: bytes) -> Settle | Answer | None:
        self.begun.append(body)
        return self.take(body)

    async def _settle(self, body: bytes) -> Answer:
        await self.go.wait()
        return answer_of(b"again " + body)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.in_full += 1
        body, _ = await read_all(receive)
        if REPEAT in scope:
            scope[REPEAT] = self.repeat
        answer = answer_of(b"first " + body)
        await send({"type": "http.response.start", "status": 200, "headers": [*answer.headers]})
        await send({"type": "http.response.body", "body": bytes(answer.body)})


def put(body: bytes) -> bytes:
    """The head is the same for all bodies of one length."""
    return b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def asked(peer: Peer, *pieces: bytes) -> bytes:
    """What is answered to a request that comes in these pieces."""
    for piece in pieces:
        await peer.send(piece)
        await asyncio.sleep(0.002)  # so that they come apart
    return await peer.answer()


async def known(peer: Peer, *requests: bytes) -> None:
    """From then on it is known how their heads are answered."""
    for request in requests or (PUT,):
        for _ in range(2):
            assert (await asked(peer, request)).startswith(b"first ")


def connection_of(rig: Rig) -> HttpConnection:
    """The only one."""
    (connection,) = rig.server._connections
    return connection


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[Store, Rig, Peer]]:
    """A PUT that was begun with, and whose answer waits until the store lets it go."""
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        store.go.clear()
        await peer.send(PUT)
        await until(lambda: rig.server.busy)
        yield store, rig, peer


async def test_other_bodies_under_the_same_head_are_begun_with_at_once() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer, rig.peer() as other:
        await known(peer)
        for one, body in ((peer, b"hello"), (other, b"other"), (peer, b"\r\n\r\nx"), (peer, b"GET /")):
            assert await asked(one, put(body)) == b"again " + body
        assert store.begun == [b"hello", b"other", b"\r\n\r\nx", b"GET /"]
        assert await asked(peer, put(b"longer")) == b"first longer"
        assert await asked(peer, put(b"other").replace(b"host: x", b"host: y")) == b"first other"
        assert await asked(peer, put(b"hello")) == b"again hello"
    assert store.in_full == 4


async def test_its_answer_has_the_head_of_any_other() -> None:
    async with serving(Store()) as rig, rig.peer() as peer:
        await known(peer)
        await peer.send(PUT)
        status, headers = await peer.head()
        assert (status, headers[b"content-length"]) == (200, b"11")
        assert headers[b"date"].endswith(b" GMT")
        assert b"connection" not in headers


@pytest.mark.parametrize(
    "pieces",
    [
        (PUT[:-5], b"hello"),
        (PUT[:-2], b"lo"),
        (PUT[:10], PUT[10:]),
        (CHUNKED.replace(b"POST", b"PUT"),),
        (b"PUT /" + b"a" * REQUEST_BYTES + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",),
        (PUT.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"host: x", b"connection: keep-alive"),),
        (b"PUT /c HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",),
        (PUT.replace(b"PUT", b"POST"),),
    ],
    ids=["head first", "in the body", "in the head", "chunked", "long", "HTTP/1.0", "empty", "POST"],
)
async def test_only_what_came_whole_alone_and_plain_is_remembered(pieces: tuple[bytes, ...]) -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        for _ in range(4):
            assert (await asked(peer, *pieces)).startswith(b"first ")
    assert store.begun == []


async def test_a_body_that_is_not_here_yet_is_asked_in_full() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        assert await asked(peer, PUT[:-5], b"other") == b"first other"
        assert await asked(peer, PUT[:-1], b"o") == b"first hello"
        assert await asked(peer, PUT) == b"again hello"
    assert store.begun == [b"hello"]


@pytest.mark.parametrize("more", [0, 1])
async def test_what_came_with_another_request_behind_it_is_not_remembered(more: int) -> None:
    """Also where the parser is given no more than the first at once: its length would be wrong."""
    size = SLICE_BYTES - len(put(b"a" * 1_000)) + 1_000 + more
    first, second = put(b"a" * size), put(b"b" * size)
    assert len(first) == SLICE_BYTES + more
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        for _ in range(4):
            assert await asked(peer, first + second) == b"first " + b"a" * size
            assert await peer.answer() == b"first " + b"b" * size
    assert store.begun == []


@pytest.mark.parametrize("behind", [b"\r\n", b"\n", b"\r\n\r\n"])
async def test_line_ends_that_the_parser_skips_are_no_body(behind: bytes) -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        for _ in range(4):
            assert await asked(peer, PUT + behind) == b"first hello"
        # Else these would be taken for the end of the body.
        assert await asked(peer, PUT + GET[: len(behind)], GET[len(behind) :]) == b"first hello"
        assert await peer.answer() == b"first "


@pytest.mark.parametrize(
    "head", [b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"content-length: 0\r\n\r\n\r\n"]
)
async def test_what_ends_an_empty_body_is_no_body(head: bytes) -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        for _ in range(4):
            assert await asked(peer, b"PUT /c HTTP/1.1\r\nhost: x\r\n" + head) == b"first "
    assert store.begun == []


REFUSED = [
    b"GET /b HTTP/1.1\r\n\r\n",
    b"GET /b HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"GET /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    b"GET /b HTTP/2.0\r\nhost: x\r\n\r\n",
]


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("good", [GET, PUT], ids=["GET", "PUT"])
async def test_a_request_that_is_refused_is_so_each_time(good: bytes, refused: bytes) -> None:
    """And is no part of the one before it, which was answered."""
    store = Store()
    async with serving(store) as rig:
        for _ in range(4):
            async with rig.peer() as peer:
                assert (await asked(peer, good + refused)).startswith(b"first ")
                status, headers = await peer.head()
                assert (status >= 400, headers[b"connection"]) == (True, b"close")
    assert store.begun == []


async def test_more_than_was_said_is_the_next_request() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        await peer.send(PUT + GET)
        assert [await peer.answer() for _ in range(2)] == [b"first hello", b"first "]
    assert store.begun == []


@pytest.mark.parametrize("failure", [None, ValueError("not such a body")])
async def test_what_is_not_begun_with_is_asked_in_full(failure: Exception | None) -> None:
    store = Store()

    def refuse(_body: bytes) -> None:
        if failure is not None:
            raise failure

    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        take, store.take = store.take, refuse
        assert await asked(peer, PUT) == b"first hello"
        store.take = take
        assert await asked(peer, PUT) == b"again hello"


async def test_what_is_known_at_once_is_answered_at_once() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        store.take = answer_of
        assert await asked(peer, PUT) == b"hello"


async def test_answers_keep_the_order_of_their_requests() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer, PUT, GET)
        store.go.clear()
        await peer.send(PUT)
        await until(lambda: rig.server.busy)
        await peer.send(put(b"other") + GET)
        await until(lambda: connection_of(rig)._queue)
        assert store.begun == [b"hello"]
        store.go.set()
        answers = [await peer.answer() for _ in range(3)]
    assert answers == [b"again hello", b"first other", b"first "]


async def test_what_is_no_request_is_told_after_the_answer() -> None:
    async with waiting() as (store, rig, peer):
        await peer.send(b"garbage\r\n\r\n")
        await until(lambda: connection_of(rig)._refusal)
        store.go.set()
        assert await peer.answer() == b"again hello"
        status, headers = await peer.head()
        assert (status, headers[b"connection"]) == (400, b"close")


async def test_who_sends_no_more_is_answered_still() -> None:
    async with waiting() as (store, rig, peer):
        peer.writer.write_eof()
        await until(lambda: connection_of(rig)._eof)
        store.go.set()
        assert await peer.answer() == b"again hello"
        assert await peer.rest() == b""


async def test_a_client_that_has_gone_is_no_reason_to_stop() -> None:
    store = Store()
    async with serving(store) as rig:
        async with rig.peer() as peer:
            await known(peer)
            store.go.clear()
            await peer.send(PUT)
            await until(lambda: rig.server.busy)
            HttpSide(peer.reader, peer.writer).reset()
            await until(lambda: not rig.server._connections)
            assert len(rig.server.busy) == 1
        store.go.set()
        await until(lambda: not rig.server.busy)
        async with rig.peer() as peer:
            assert await asked(peer, PUT) == b"again hello"


async def test_a_stop_waits_for_the_answer_and_says_that_it_is_the_last() -> None:
    async with waiting() as (store, rig, peer):
        stop = asyncio.create_task(rig.server.stop(10_000))
        await asyncio.sleep(0)  # in its first turn it tells the connection
        store.go.set()
        status, headers = await peer.head()
        assert (status, headers[b"connection"]) == (200, b"close")
        assert await peer.rest() == b"again hello"
        await stop


async def test_a_stop_ends_what_does_not_end() -> None:
    async with waiting() as (_, rig, peer):
        await rig.server.stop(5)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await peer.answer()


async def test_a_connection_that_waits_for_a_commit_is_not_idle() -> None:
    async with waiting() as (store, rig, peer):
        connection_of(rig).look(asyncio.get_running_loop().time() + 1e6)
        store.go.set()
        assert [await peer.answer(), await asked(peer, PUT)] == [b"again hello"] * 2


async def test_many_wait_for_one_commit_and_each_gets_its_own_answer() -> None:
    store = Store()
    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        store.go.clear()

        async def one(number: int) -> None:
            async with rig.peer() as other:
                body = b"%05d" % number
                assert await asked(other, put(body)) == b"again " + body

        tasks = [asyncio.create_task(one(number)) for number in range(50)]
        await until(lambda: len(rig.server.busy) == 50)
        store.go.set()
        await asyncio.gather(*tasks)


# Bodies that look like requests, and heads that were never known before.
MESSAGES = st.one_of(
    st.binary(max_size=8).map(put),
    st.sampled_from([PUT, GET, put(GET), put(PUT), put(b"")]),
)


@given(st.lists(st.tuples(MESSAGES, st.booleans(), st.integers(0, 200)), max_size=40))
async def test_however_requests_come_each_is_answered_in_its_turn(
    requests: list[tuple[bytes, bool, int]],
) -> None:
    """Whole or cut in two, one by one or before the one before them is answered."""
    store = Store()
    answers: list[bytes] = []
    async with serving(store) as rig, rig.peer() as peer:
        for count, (request, waits, cut) in enumerate(requests, 1):
            await peer.send(request[:cut])
            await asyncio.sleep(0)
            await peer.send(request[cut:])
            if waits or count == len(requests):
                answers += [await peer.answer() for _ in range(count - len(answers))]
    bodies = [request.partition(b"\r\n\r\n")[2] for request, _, _ in requests]
    assert [answer.partition(b" ")[2] for answer in answers] == bodies


async def test_large_answers_wait_for_who_does_not_read() -> None:
    store, count = Store(), 30
    large = Answer(200, ((b"content-length", b"%d" % LARGE),), bytes(LARGE))

    async def settle() -> Answer:
        return large

    async with serving(store) as rig, rig.peer() as peer:
        await known(peer)
        store.take = lambda _: settle
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it can be
        for _ in range(count):
            await peer.send(PUT)
            await asyncio.sleep(0.001)
        # What the two kernel buffers take, and one more.
        assert len(store.begun) + store.in_full < 20
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        sizes = [len(await peer.answer()) for _ in range(count)]
    assert set(sizes) == {LARGE, len(b"first hello")}
