"""The server's side of HTTP/1.1: bytes of a connection, without a socket."""

import asyncio
from itertools import pairwise
from typing import Any, cast

from tests.fuzz.target import Target
from undercroft.http.connection import HttpConnection
from undercroft.http.exchange import Application, Pieces
from undercroft.http.limits import Limits
from undercroft.http.repeats import Repeats
from undercroft.http.writing import WritingProtocol

WHOLE = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"


class _Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.written += b"".join(pieces)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def get_extra_info(self, _name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        del high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    async def wants_more(self) -> bool:
        """Whether a client may still send."""
        while not self.reading and not self.ended:  # noqa: ASYNC110  # each turn is one of the loop's
            await asyncio.sleep(0)
        return not self.ended


class _Owner:
    """Keeps one connection, and tells what its application was asked."""

    def __init__(self) -> None:
        self.application: Application = self._take
        self.limits = Limits()
        self.date_line = b"date: now\r\n"
        self.busy: set[HttpConnection] = set()
        self.asked: list[tuple[str, bytes, bytes, bytes]] = []
        self.repeats = Repeats()

    async def _take(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                self.asked.append((scope["method"], scope["raw_path"], scope["query_string"], body))
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def opened(self, connection: HttpConnection) -> None: ...

    def closed(self, connection: HttpConnection) -> None: ...

    def write_soon(self, connection: WritingProtocol, pieces: Pieces) -> None:
        connection.write(*pieces)

    def write_answers(self) -> None: ...

    def start(self, connection: HttpConnection) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(connection.serve())


async def _heard(pieces: list[bytes]) -> tuple[list[tuple[str, bytes, bytes, bytes]], bytes]:
    """What the application was asked when a client sent this and no more, and what it was answered."""
    owner, transport = _Owner(), _Transport()
    connection = HttpConnection(owner)
    connection.connection_made(cast("asyncio.Transport", transport))
    task = connection._task
    assert task is not None
    for piece in pieces:
        if await transport.wants_more():
            connection.data_received(piece)
        await asyncio.sleep(0)
    if await transport.wants_more():
        connection.eof_received()
    await asyncio.wait_for(task, 5)
    connection.connection_lost(None)
    assert not owner.busy
    return owner.asked, transport.written


def _statuses(answers: bytes) -> list[bytes]:
    return [line.split()[1] for line in answers.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


async def _check(data: bytes) -> None:
    """However it is cut, the same is asked; answers are whole; what is refused ends the connection."""
    at_once = await _heard([data])
    split = sorted({0, len(data), *(byte % (len(data) + 1) for byte in data[-4:])})
    cut = await _heard([data[start:end] for start, end in pairwise(split)])
    # Where a wish for another protocol is cut decides whether it is ignored or refused.
    speaks_http = b"pgrade" not in data and b"CONNECT" not in data
    if speaks_http:
        assert cut[0] == at_once[0]
    for asked, answers in (at_once, cut):
        statuses = [status for status in _statuses(answers) if status != b"100"]
        assert set(statuses) <= {b"200", b"400", b"431", b"501", b"505"}
        assert len(asked) <= statuses.count(b"200")
        assert all(status == b"200" for status in statuses[:-1])
    # A good request in front is answered whatever follows, and changes nothing of that.
    asked, answers = await _heard([WHOLE + data])
    assert asked[0] == ("GET", b"/a", b"", b"")
    if speaks_http:
        assert asked[1:] == at_once[0]
    assert answers.startswith(b"HTTP/1.1 200 ")


def connection(data: bytes) -> None:
    """See `_check`."""
    asyncio.run(_check(data))


TARGETS = (
    Target(
        "connection",
        connection,
        [
            WHOLE * 3,
            b"PUT /c?q HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello" + WHOLE,
            b"PUT /c HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
            b"POST /d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"3;e=x\r\nabc\r\n0\r\nx: y\r\n\r\n" + WHOLE,
            b"GET http://h:80/a?b HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + WHOLE,
            b"PUT / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
            b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h\r\ncontent-length: 3\r\n\r\nabc",
            b"CONNECT h:1 HTTP/1.1\r\n\r\n" + WHOLE,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
        ],
        1_024,
    ),
)
