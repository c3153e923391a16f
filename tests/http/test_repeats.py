"""Requests that come again word for word, over real sockets."""

import asyncio
from typing import Any

import pytest

from tests.http.test_connection import GET, LARGE, PUT, Peer, echo, serving, until
from undercroft.http.repeats import REPEAT, REQUEST_BYTES, Answer, Asked, Repeat, Repeats, asked_in

HEADERS = ((b"content-length", b"5"),)


def words_of(request: bytes) -> bytes:
    asked = asked_in(request)
    assert asked is not None
    return asked.words


class Counted:
    """An application that counts what it is asked in full, and how often it was asked again."""

    def __init__(self, repeated: Answer | Exception | None = None) -> None:
        self.in_full = 0
        self.again = 0
        self.repeated = repeated or Answer(200, HEADERS, b"again")
        self.go = asyncio.Event()
        self.go.set()

    def repeat(self, _body: bytes) -> Answer | None:
        self.again += 1
        if isinstance(self.repeated, Exception):
            raise self.repeated
        return self.repeated

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        self.in_full += 1
        while (await receive()).get("more_body"):
            pass
        if REPEAT in scope:
            scope[REPEAT] = self.repeat
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
        await send({"type": "http.response.body", "body": b"first"})


async def asked(peer: Peer, *pieces: bytes) -> bytes:
    """What is answered to a request that comes in these pieces."""
    for piece in pieces:
        await peer.send(piece)
        await asyncio.sleep(0.002)  # so that they come apart
    return await peer.answer()


async def asked_twice(peer: Peer) -> None:
    """From then on it is known how to answer it again."""
    assert [await asked(peer, GET) for _ in range(2)] == [b"first"] * 2


async def test_the_same_bytes_are_asked_in_full_twice_and_never_again() -> None:
    application = Counted()
    async with serving(application) as rig, rig.peer() as peer, rig.peer() as other:
        assert await asked(peer, GET) == b"first"
        assert await asked(other, GET) == b"first"
        assert [await asked(one, GET) for one in (peer, other, peer)] == [b"again"] * 3
        assert await asked(peer, GET.replace(b"q=1", b"q=2")) == b"first"
        assert await asked(peer, GET.replace(b"host: x", b"host: y")) == b"first"
    assert (application.in_full, application.again) == (4, 3)


async def test_nothing_is_made_for_what_comes_once() -> None:
    places: list[bool] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        places.append(REPEAT in scope)
        await echo(scope, receive, send)

    async with serving(application) as rig, rig.peer() as peer:
        for _ in range(3):
            await asked(peer, GET)
        assert places == [False, True, True]


async def test_a_repeated_answer_has_the_head_of_any_other() -> None:
    async with serving(Counted()) as rig, rig.peer() as peer:
        await asked_twice(peer)
        await peer.send(GET)
        status, headers = await peer.head()
        assert (status, headers[b"content-length"]) == (200, b"5")
        assert headers[b"date"].endswith(b" GMT")
        assert await peer.reader.readexactly(5) == b"again"


@pytest.mark.parametrize("size", [0, 1, 32 << 10, (32 << 10) + 1, LARGE])
async def test_bodies_of_any_size_arrive_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    answer = Answer(200, ((b"content-length", b"%d" % size),), bytearray(body[:size]))
    async with serving(Counted(answer)) as rig, rig.peer() as peer:
        await asked_twice(peer)
        for _ in range(3):
            assert await asked(peer, GET) == body[:size]


async def test_what_cannot_be_answered_at_once_is_asked_in_full() -> None:
    application = Counted()
    async with serving(application) as rig, rig.peer() as peer:
        await asked_twice(peer)
        rig.server.repeats.remember(words_of(GET), lambda _: None)
        assert [await asked(peer, GET) for _ in range(2)] == [b"first", b"again"]
    assert application.in_full == 3


async def test_what_fails_is_asked_in_full() -> None:
    application = Counted(OSError("the disk is gone"))
    async with serving(application) as rig, rig.peer() as peer:
        assert [await asked(peer, GET) for _ in range(4)] == [b"first"] * 4
    assert (application.in_full, application.again) == (4, 2)


@pytest.mark.parametrize(
    "pieces",
    [
        (GET[:10], GET[10:]),
        (GET + GET[:5], GET[5:] + GET, b""),
        (b"GET /" + b"a" * REQUEST_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n",),
        (b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",),
    ],
    ids=["in two pieces", "with others", "long", "HTTP/1.0"],
)
async def test_only_what_came_whole_alone_and_plain_is_remembered(pieces: tuple[bytes, ...]) -> None:
    application = Counted()
    async with serving(application) as rig, rig.peer() as peer:
        for _ in range(3):
            assert await asked(peer, *pieces) == b"first"
    assert application.again == 0


async def test_a_request_with_a_body_is_remembered_only_with_its_body() -> None:
    with_body = PUT.replace(b"PUT", b"GET")
    application = Counted()
    async with serving(application) as rig, rig.peer() as peer:
        for _ in range(2):
            assert await asked(peer, with_body) == b"first"
        assert await asked(peer, with_body) == b"again"
        assert await asked(peer, with_body.replace(b"hello", b"other")) == b"first"
        # The head alone is not the whole of a request.
        for _ in range(3):
            assert await asked(peer, with_body[:-5], b"hello") == b"first"


async def test_two_requests_of_one_read_are_two_answers_each_time() -> None:
    async with serving(Counted()) as rig, rig.peer() as peer:
        for _ in range(3):
            assert await asked(peer, GET + GET) == b"first"
            assert await peer.answer() == b"first"
        assert await asked(peer, GET.replace(b"q=1", b"q=2")) == b"first"


async def test_the_last_request_of_a_connection_is_asked_in_full() -> None:
    application = Counted()
    last = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with serving(application) as rig:
        for _ in range(3):
            async with rig.peer() as peer:
                assert await asked(peer, last) == b"first"
                assert await peer.rest() == b""


async def test_answers_keep_the_order_of_their_requests() -> None:
    """A request that could be answered at once waits for the one before it."""
    application = Counted()
    async with serving(application) as rig, rig.peer() as peer:
        await asked_twice(peer)
        application.go.clear()
        await peer.send(GET.replace(b"q=1", b"q=slow"))
        await until(lambda: rig.server.busy)
        await peer.send(GET)
        await asyncio.sleep(0.01)
        assert application.again == 0
        application.go.set()
        assert [await peer.answer() for _ in range(2)] == [b"first", b"first"]


async def test_a_head_that_has_begun_is_not_followed_by_a_request() -> None:
    """The same bytes mean something else in the middle of a head."""
    application = Counted()
    begun = b"GET /begun HTTP/1.1\r\nx: "
    async with serving(application) as rig, rig.peer() as peer:
        await asked_twice(peer)
        await peer.send(begun)
        await asyncio.sleep(0.01)
        await peer.send(GET)
        status, _ = await peer.head()
        assert status in (200, 400)
    assert application.again == 0


@pytest.mark.parametrize("again", [False, True], ids=["in full", "again"])
async def test_who_reads_no_answers_is_not_asked_for_more(again: bool) -> None:
    """Requests come one by one here: without a bound each would leave its answer in memory."""
    large = Answer(200, ((b"content-length", b"%d" % LARGE),), bytes(LARGE))
    application = Counted(large)
    count = 100

    async def in_full(scope: Any, receive: Any, send: Any) -> None:
        application.in_full += 1
        await send({"type": "http.response.start", "status": 200, "headers": [*large.headers]})
        await send({"type": "http.response.body", "body": bytes(LARGE)})
        if again:
            scope[REPEAT] = application.repeat

    async with serving(in_full) as rig, rig.peer() as peer:
        for _ in range(2):
            await asked(peer, GET)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it can be
        for _ in range(count):
            await peer.send(GET)
            await asyncio.sleep(0.001)
        # What the two kernel buffers take, and one more.
        assert application.in_full + application.again < 20
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(count):
            assert await peer.answer() == bytes(LARGE)
    assert application.in_full + application.again == count + 2
    assert bool(application.again) == again


async def test_a_client_that_has_gone_is_written_nothing() -> None:
    """It left after its request was read, and before the answer was written."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, failure: failures.append(failure))
    async with serving(Counted()) as rig, rig.peer() as peer:
        await asked_twice(peer)
        (connection,) = rig.server._connections

        def repeat(_body: bytes) -> Answer:
            connection.connection_lost(None)
            return Answer(200, HEADERS, b"again")

        rig.server.repeats.remember(words_of(GET), repeat)
        await peer.send(GET)
        await until(lambda: not rig.server._connections)
        await asyncio.sleep(0.01)
    assert failures == []


async def test_who_sends_no_more_is_answered_still() -> None:
    """Also when both are read in one turn of the loop."""
    async with serving(Counted()) as rig, rig.peer() as peer:
        await asked_twice(peer)
        (connection,) = rig.server._connections
        connection.data_received(GET)
        assert not connection.eof_received()
        connection._transport.close()  # type: ignore[union-attr]  # as a transport does that is told so
        assert await peer.answer() == b"again"
        assert await peer.rest() == b""


async def test_idle_time_counts_from_the_last_answer() -> None:
    async with serving(Counted(), idle_s=1e9) as rig, rig.peer() as peer:
        await asked_twice(peer)
        (connection,) = rig.server._connections
        connection.waits_since = 0.0
        before = asyncio.get_running_loop().time()
        assert await asked(peer, GET) == b"again"
        assert connection.waits_since >= before


def test_the_one_that_was_asked_for_last_stays() -> None:
    repeats = Repeats(most=2)
    known: dict[bytes, Repeat] = {}
    for name in (b"a", b"b"):
        known[name] = lambda _, name=name: Answer(200, (), name)  # type: ignore[misc]
        repeats.remember(name, known[name])
    assert repeats.answer(Asked(b"a", b"")) == Answer(200, (), b"a")
    repeats.remember(b"c", lambda _: Answer(200, (), b"c"))
    assert repeats.answer(Asked(b"b", b"")) is None
    assert repeats.answer(Asked(b"a", b"")) == Answer(200, (), b"a")
    assert repeats.answer(Asked(b"c", b"")) == Answer(200, (), b"c")


def test_what_could_not_be_answered_at_once_is_not_tried_again() -> None:
    tried = 0

    def fails(_body: bytes) -> None:
        nonlocal tried
        tried += 1

    repeats = Repeats()
    repeats.remember(b"a", fails)
    assert [repeats.answer(Asked(b"a", b"")) for _ in range(2)] == [None, None]
    assert tried == 1


def came(repeats: Repeats, words: bytes, body_at: int = 0) -> list[bool]:
    return [repeats.came_before(Asked(word.to_bytes(), b"data", body_at)) for word in words]


def test_words_that_came_are_forgotten_in_their_order() -> None:
    repeats = Repeats(most_came=2)
    assert came(repeats, b"abac") == [False, False, True, False]
    assert came(repeats, b"ba") == [True, False]


def test_heads_of_what_is_stored_push_out_nothing_that_is_fetched() -> None:
    repeats = Repeats(most_came=2, most_heads_came=2)
    came(repeats, b"ab")
    assert came(repeats, b"cdec", 1) == [False, False, False, False]
    assert came(repeats, b"ab") == [True, True]
