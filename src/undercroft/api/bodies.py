"""Bodies of requests: whole or in chunks, never longer than allowed, never silently short."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from undercroft.api.request import Event, Request
from undercroft.errors import BodyTimeoutError, IncompleteBodyError, TooLargeError, UndercroftError
from undercroft.http.exchange import TOO_SLOW

# What is read of a body nobody wants, so that the client sees its answer. More is cut off.
DISCARD_BYTES = 128 << 20
DISCARD_S = 5

# What a client has to send of a body in a second, over all the time that it was waited for beyond
# `read_timeout_ms`. Apache's mod_reqtimeout wants 500. A byte now and then would keep a connection for ever.
LEAST_BYTES_PER_S = 1_000

# And however it comes it is not waited for longer in all: room is reserved for what was announced.
LONGEST_S = 3_600


class Body:
    """The body of a request, to be read once.

    `declared` is Content-Length in bytes, 0 without a body, None for a chunked one. The constructor
    raises `TooLargeError` if it is over `max_bytes`; reading raises it too, `BodyTimeoutError` after a
    pause of `read_timeout_ms` or when it comes too slowly (a server that is full allows less), and
    `IncompleteBodyError` if the client goes away.
    """

    def __init__(self, request: Request, max_bytes: int, read_timeout_ms: int) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._read_timeout_s = read_timeout_ms / 1_000
        self._waited_s = 0.0
        self.declared = _declared_length(request)
        self._check(self.declared or 0)

    @property
    def received(self) -> int:
        """Bytes read so far."""
        return self._request.received

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLargeError(f"the body has {size} bytes or more, at most {self._max_bytes} are accepted")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        while (chunk := await self._next()) is not None:
            yield chunk

    async def _next(self) -> bytes | None:
        """More of the body, None at its end."""
        # The server reports the end of a body in an event of its own; who counts need not wait for it.
        more = not self._request.body_over and self.received != self.declared
        while more:
            chunk, more = await self._receive()
            self._request.received += len(chunk)
            more = more and self.received != self.declared
            self._request.body_over = not more
            self._check(self.received)
            if chunk:
                return chunk
        self._request.body_over = True
        if self.declared is not None and self.received != self.declared:
            raise IncompleteBodyError(f"the body ended after {self._progress()}")
        return None

    async def _receive(self) -> tuple[bytes, bool]:
        if self._request.is_here():
            event = await self._request.receive()  # at once: a timer would cost more than that
        else:
            event = await self._in_time()
        if event["type"] != "http.request":
            self._request.body_over = True
            if event.get(TOO_SLOW):
                raise BodyTimeoutError(
                    f"the body comes too slowly, {self._progress()} so far, and all connections are taken: "
                    "others need this one"
                )
            raise IncompleteBodyError(f"the client left after {self._progress()}")
        return event.get("body", b""), event.get("more_body", False)

    async def _in_time(self) -> Event:
        # Only what the client is waited for counts: the node may be slow to take what it has sent.
        allowed_s = min(self._read_timeout_s + self.received / LEAST_BYTES_PER_S, LONGEST_S)
        left_s, began = allowed_s - self._waited_s, time.monotonic()
        try:
            async with asyncio.timeout(min(left_s, self._read_timeout_s)):
                return await self._request.receive()
        except TimeoutError:
            pass
        finally:
            self._waited_s += time.monotonic() - began
        self._request.body_over = True
        if left_s >= self._read_timeout_s:
            raise BodyTimeoutError(
                f"nothing came for {self._read_timeout_s * 1_000:.0f} ms after {self._progress()}"
            )
        raise BodyTimeoutError(
            f"the body comes too slowly, {self._progress()} in {self._waited_s:.0f} s: send at least "
            f"{LEAST_BYTES_PER_S} bytes a second, and all in {LONGEST_S} s"
        )

    def _progress(self) -> str:
        return (
            f"{self.received} of {'an unknown number of' if self.declared is None else self.declared} bytes"
        )

    async def whole(self) -> bytes:
        """The whole body in memory."""
        chunks = []
        while (chunk := await self._next()) is not None:
            chunks.append(chunk)
        return b"".join(chunks)

    async def drain(self) -> None:
        """Reads the body and forgets it."""
        while await self._next() is not None:
            pass


async def discard_rest(request: Request) -> None:
    """Reads what an answer left unread of the body, within bounds.

    A server that closes with bytes of the client's unread resets the connection: the client may never
    see the answer, and Gradle gives its cache up for the rest of the build after one closed connection.
    """
    if request.body_over or _declared_length(request) == 0:
        return
    with suppress(TimeoutError, UndercroftError):
        async with asyncio.timeout(DISCARD_S):
            await Body(request, request.received + DISCARD_BYTES, DISCARD_S * 1_000).drain()


def _declared_length(request: Request) -> int | None:
    if b"transfer-encoding" in request.headers:
        return None
    return int(request.headers.get(b"content-length", b"0"))  # the server has checked it
