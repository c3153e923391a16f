"""Bodies by the rules of ASGI, whatever server delivers them."""

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import pytest

from undercroft.api import bodies
from undercroft.api.bodies import Body, discard_rest
from undercroft.api.request import Request
from undercroft.errors import BodyTimeoutError, IncompleteBodyError, TooLargeError
from undercroft.http.exchange import TOO_SLOW

GONE = {"type": "http.disconnect"}


def piece(data: bytes, *, more: bool = True) -> MutableMapping[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


class Client:
    """Delivers events; silent after the last."""

    def __init__(self, *events: MutableMapping[str, Any], length: int | None = None) -> None:
        self.left = list(events)
        headers = (
            [(b"transfer-encoding", b"chunked")] if length is None else [(b"content-length", b"%d" % length)]
        )
        scope = {"method": "PUT", "headers": headers, "query_string": b""}
        self.request = Request(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self.left:
            await asyncio.Event().wait()
        return self.left.pop(0)

    async def _send(self, _event: MutableMapping[str, Any]) -> None:
        raise AssertionError("nothing is sent")

    def body(self, max_bytes: int = 100, read_timeout_ms: int = 5) -> Body:
        return Body(self.request, max_bytes, read_timeout_ms)


async def test_whole_body_with_a_length_needs_no_last_event() -> None:
    client = Client(piece(b"12"), piece(b""), piece(b"345"), length=5)
    assert await client.body().whole() == b"12345"
    assert client.request.body_over


async def test_whole_chunked_body() -> None:
    client = Client(piece(b"12"), piece(b"3"), piece(b"", more=False))
    assert await client.body().whole() == b"123"
    assert client.request.body_over


async def test_no_body_asks_for_nothing() -> None:
    assert await Client(length=0).body().whole() == b""


@pytest.mark.parametrize("last", [piece(b"", more=False), GONE])
async def test_short_body(last: MutableMapping[str, Any]) -> None:
    client = Client(piece(b"12"), last, length=5)
    with pytest.raises(IncompleteBodyError, match="2 of 5"):
        await client.body().whole()
    assert client.request.body_over


async def test_a_body_whose_connection_others_need_came_too_slowly() -> None:
    client = Client(piece(b"12"), GONE | {TOO_SLOW: True}, length=5)
    with pytest.raises(BodyTimeoutError, match="too slowly, 2 of 5 bytes so far, and all connections"):
        await client.body().whole()
    assert client.request.body_over


async def test_client_that_leaves_a_chunked_body() -> None:
    with pytest.raises(IncompleteBodyError, match="unknown number"):
        await Client(piece(b"12"), GONE).body().whole()


async def test_silence_is_a_timeout() -> None:
    client = Client(piece(b"12"), length=5)
    with pytest.raises(BodyTimeoutError, match="5 ms after 2 of 5"):
        await client.body().whole()
    assert client.request.body_over  # nobody waits for it once more


class Trickle(Client):
    """A piece of so many bytes whenever it is asked for one, a moment later than that."""

    def __init__(self, size: int, length: int | None = None) -> None:
        super().__init__(length=length)
        self._piece = piece(bytes(size))

    async def _receive(self) -> MutableMapping[str, Any]:
        await asyncio.sleep(0.002)
        return self._piece


@pytest.mark.parametrize(("size", "length"), [(1, None), (1, 1_000_000)])
async def test_a_body_that_comes_too_slowly_is_a_timeout(size: int, length: int | None) -> None:
    client = Trickle(size, length)
    async with asyncio.timeout(20):
        with pytest.raises(BodyTimeoutError, match=r"too slowly.*bytes a second"):
            await client.body(max_bytes=1 << 40, read_timeout_ms=100).drain()
    assert client.request.body_over


async def test_no_body_is_waited_for_longer_than_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LONGEST_S", 0.1)
    async with asyncio.timeout(20):
        with pytest.raises(BodyTimeoutError, match=r"all in 0\.1 s"):
            await Trickle(10_000).body(max_bytes=1 << 40, read_timeout_ms=5_000).drain()


async def test_one_that_comes_quickly_enough_may_take_longer_than_a_pause() -> None:
    body = Trickle(100_000).body(max_bytes=1 << 40, read_timeout_ms=100)
    async with asyncio.timeout(20):
        began, chunks = time.monotonic(), body.chunks()
        while time.monotonic() - began < 0.3:
            await anext(chunks)


async def test_time_that_the_reader_takes_is_not_held_against_the_client() -> None:
    body = Trickle(1, length=3).body(read_timeout_ms=20)
    async for _ in body.chunks():
        await asyncio.sleep(0.03)


async def test_declared_length_over_the_limit_is_refused_before_reading() -> None:
    client = Client(piece(b"x" * 101), length=101)
    with pytest.raises(TooLargeError):
        client.body()
    assert len(client.left) == 1


async def test_chunked_body_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    client = Client(piece(b"x" * 100), piece(b"x"), piece(b"x"), piece(b"", more=False))
    with pytest.raises(TooLargeError):
        await client.body().whole()
    assert len(client.left) == 2
    assert not client.request.body_over


# --- what is left unread -----------------------------------------------------------------------------


async def test_rest_is_read_from_where_reading_ended() -> None:
    client = Client(piece(b"x" * 60), piece(b"x" * 60), piece(b"x" * 30), length=150)
    chunks = client.body(150).chunks()
    await anext(chunks)
    await discard_rest(client.request)
    assert client.left == []
    assert client.request.body_over


async def test_rest_of_a_refused_body_is_read() -> None:
    client = Client(piece(b"x" * 60), piece(b"x" * 60), piece(b"", more=False))
    with pytest.raises(TooLargeError):
        await client.body(100).whole()
    await discard_rest(client.request)
    assert client.left == []


@pytest.mark.parametrize("length", [0, 101])
async def test_nothing_is_read_of_no_body_or_of_far_too_much(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "DISCARD_BYTES", 100)
    client = Client(piece(b"x"), length=length)
    await discard_rest(client.request)
    assert len(client.left) == 1


async def test_endless_chunks_end_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DISCARD_BYTES", 100)
    client = Client(*(piece(b"x" * 60) for _ in range(5)))
    await discard_rest(client.request)
    assert len(client.left) == 3


async def test_slow_rest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DISCARD_S", 0.005)
    client = Client(piece(b"x"), length=50)
    await discard_rest(client.request)
    assert client.left == []


async def test_what_is_over_is_not_asked_for_again() -> None:
    client = Client(GONE, GONE, length=5)
    with pytest.raises(IncompleteBodyError):
        await client.body().whole()
    await discard_rest(client.request)
    assert len(client.left) == 1
