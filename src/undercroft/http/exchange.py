"""One request and its answer, as the application sees them: `receive` and `send` of ASGI.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol, TypeAlias, cast

import msgspec

from undercroft.http.repeats import REPEAT, Answer, Repeat, Settle

Event: TypeAlias = MutableMapping[str, Any]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Application: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]],
    Awaitable[None],
]

Pieces: TypeAlias = "list[bytes | bytearray]"
"""Of an answer, in the order in which they are written."""

IS_HERE = "undercroft.is_here"
"""Where in the scope of a request a server leaves how to ask whether `receive` would answer at once."""

TOO_SLOW = "undercroft.too_slow"
"""In `http.disconnect`: whether a body came so slowly that its connection is taken back."""

STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# What the memory of a piece of a body takes beside its bytes.
PIECE_BYTES = 64

# Up to this size head and body are one piece of memory: to copy it costs less than a second buffer.
JOINED_BYTES = 32 << 10

# Answers to these have no body, and say nothing of its length (RFC 9110, 8.6).
BODILESS = frozenset({204, 304})


class Wire(Protocol):
    """The connection an exchange belongs to."""

    @property
    def date_line(self) -> bytes:
        """The header with the time of an answer."""
        ...

    def write(self, *pieces: bytes) -> None:
        """Hands bytes to the transport; nothing happens once the client has gone."""
        ...

    def write_soon(self, pieces: Pieces) -> None:
        """Does so at the end of this turn of the loop, together with other answers, or before the end."""
        ...

    async def drained(self) -> None:
        """Returns when the client has read enough for more."""
        ...

    def body_taken(self) -> None:
        """Some of a body was taken by the application."""
        ...


class Begun:
    """A request that the application has begun with already: only its answer is waited for."""

    __slots__ = ("_settle", "_wire", "answered", "keep_alive")

    complete = True
    words = repeat = None

    def __init__(self, wire: Wire, settle: Settle) -> None:
        self._wire = wire
        self._settle = settle
        self.keep_alive = True
        self.answered = False

    def lose(self) -> None:
        """Nobody is there who would read the answer. What was begun goes on."""

    async def answered_by(self, _application: Application) -> None:
        """Answers it."""
        answer = await self._settle()
        self._wire.write_soon(pieces_of(answer, self._wire.date_line, keep_alive=self.keep_alive))
        self.answered = True


class Exchange:
    """Made when the headers are complete; the body may still be coming."""

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_ended",
        "_head",
        "_http_10",
        "_left",
        "_waiter",
        "_waits_since",
        "_wire",
        "answered",
        "body_bytes",
        "complete",
        "expects_continue",
        "keep_alive",
        "lost",
        "pieces",
        "received",
        "scope",
        "to_come",
        "too_slow",
        "waited_s",
        "words",
    )

    def __init__(self, wire: Wire, scope: MutableMapping[str, Any], *, keep_alive: bool) -> None:
        self._wire = wire
        self.scope = scope
        self.keep_alive = keep_alive
        self._http_10 = scope["http_version"] == "1.0"
        self.expects_continue = False
        self.to_come = 0
        """Bytes of the body that are yet to come, if its length was announced."""
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.to_come = int(value)
            elif name == b"expect":
                # An older client would take the answer for the final one (RFC 9110, 10.1.1).
                self.expects_continue = value.lower() == b"100-continue" and not self._http_10
        self.pieces: list[bytes] = []
        self.body_bytes = 0
        """Of memory that pieces of the body take until the application asks for them."""
        self.received = 0
        """Bytes of the body that have come."""
        self.complete = False
        """Whether all of the body has come."""
        self.lost = False
        """Whether no more of it, or nobody who would read an answer, is there."""
        self.too_slow = False
        """Whether it was lost because its body came too slowly."""
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = self.waited_s = 0.0
        self._head: bytes | None = None
        self._chunked = self._bodiless = False
        self._left: int | None = None
        self.answered = False
        """Whether the whole answer was written, or waits for the end of this turn of the loop."""
        self.words: bytes | None = None
        """Of the request, if it came at once and alone, and not for the first time."""

    def asks_again(self, words: bytes) -> None:
        """It came whole and alone, and in these words before: the application may say how to repeat it."""
        self.words = words
        self.scope[REPEAT] = None

    async def answered_by(self, application: Application) -> None:
        """Has the application answer it. Raises what that raises."""
        if self.complete and not self.pieces:
            return await application(self.scope, self.receive, self.send)  # nobody waits for a body
        self.scope[IS_HERE] = self._is_here
        try:
            await application(self.scope, self.receive, self.send)
        finally:
            # It leads back here, so that a body would stay until garbage is collected.
            del self.scope[IS_HERE]

    # --- the body ---------------------------------------------------------------------------------

    def add(self, piece: bytes) -> None:
        """More of the body has come."""
        self.pieces.append(piece)
        self.body_bytes += len(piece) + PIECE_BYTES
        self.to_come -= len(piece)
        self.received += len(piece)
        self._wake()

    def end(self) -> None:
        """All of it has."""
        self.complete = True
        self._wake()

    def lose(self) -> None:
        """Nothing more will come."""
        self.lost = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_here(self) -> bool:
        return bool(self.pieces) or self.lost or (self.complete and not self._ended)

    def bytes_per_s(self, now: float, grace_s: float) -> float | None:
        """How quickly the body comes, in the time that the application waits for it.

        None if it does not wait now, or did not for so long in all: then it is not the client's turn.
        """
        waited_s = self.waited_s + now - self._waits_since
        return None if self._waiter is None or waited_s <= grace_s else self.received / waited_s

    async def receive(self) -> Event:
        """The next of the body, then `http.disconnect` when the client has gone."""
        if self.expects_continue:
            self.expects_continue = False
            if not self.complete and not self.pieces and self._head is None:
                self._wire.write(CONTINUE)
        loop = asyncio.get_running_loop()
        while not self._is_here():
            self._waiter, self._waits_since = loop.create_future(), loop.time()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.waited_s += loop.time() - self._waits_since
        if self._ended or (self.lost and not self.complete):
            return {"type": "http.disconnect", TOO_SLOW: self.too_slow}
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.body_bytes = 0
        self._ended = self.complete
        event: Event = {"type": "http.request", "body": body, "more_body": not self.complete}
        self._wire.body_taken()  # more of the body may be added by this
        return event

    # --- the answer -------------------------------------------------------------------------------

    @property
    def repeat(self) -> Repeat | None:
        """How the request can be answered when it comes again word for word, if it can."""
        if self.words is None or self._http_10 or not (self.keep_alive and self.answered):
            return None
        return cast("Repeat | None", self.scope.get(REPEAT))

    async def send(self, event: Event) -> None:
        """A piece of the answer. Returns when there is room for the next one."""
        if event["type"] == "http.response.start":
            self._start(event["status"], event["headers"])
        else:
            await self._continue(event.get("body", b""), more=event.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        lines = [status_line(status)]
        length: int | None = None
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
        self._bodiless = self.scope["method"] == "HEAD" or status in BODILESS
        if self._bodiless:
            length = 0
        elif length is None:
            self._chunked = not self._http_10
            # Only the end of the connection tells an older client where the body ends.
            self.keep_alive = self.keep_alive and self._chunked
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self._http_10:
            lines.append(b"connection: keep-alive\r\n")
        lines += (self._wire.date_line, b"\r\n")
        self._head = b"".join(lines)
        if self._head.count(b"\n") != len(lines):
            raise ValueError(f"a header of the answer has a line break: {self._head!r}")
        self._left = length

    async def _continue(self, body: bytes, *, more: bool) -> None:
        if self._bodiless:
            body = b""
        elif self._left is not None:
            if len(body) > self._left:
                # What follows on the wire would be taken for the next answer.
                self.keep_alive = False
                body = body[: self._left]
            self._left -= len(body)
        head, self._head = self._head, b""
        if self._chunked:
            body = _chunk(body, last=not more)
        if not head:
            if body:
                self._wire.write(body)
        elif len(body) <= JOINED_BYTES and not more:
            self._wire.write_soon([head + body])
        else:
            self._wire.write(head, body)
        if more:
            await self._wire.drained()
        else:
            # With less than was announced the connection cannot go on.
            self.keep_alive = self.keep_alive and not self._left
            self.answered = not self._left


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def refused(status: int, text: str) -> bytes:
    """The answer to what is no request, in the words of an error; the connection ends after it."""
    body = msgspec.json.encode({"message": text})
    head = b"content-type: application/json\r\ncontent-length: %d\r\nserver: undercroft\r\n" % len(body)
    return status_line(status) + head + b"connection: close\r\n\r\n" + body


def pieces_of(answer: Answer, date_line: bytes, *, keep_alive: bool = True) -> Pieces:
    """What is to be written of an answer that is there whole."""
    lines: Pieces = [status_line(answer.status)]
    lines += [b"%b: %b\r\n" % header for header in answer.headers]
    lines += (date_line, b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    if len(answer.body) <= JOINED_BYTES:
        lines.append(answer.body)
        return [b"".join(lines)]
    return [b"".join(lines), answer.body]


def _chunk(body: bytes, *, last: bool) -> bytes:
    """RFC 9112, 7.1."""
    piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return piece + b"0\r\n\r\n" if last else piece
