"""A request that is sent in the same words as often as a test likes, and whether it was parsed."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.support.served_node import PATIENCE_S, ServedNode
from undercroft.http.repeats import asked_in

# What no two answers have in common.
OWN = re.compile(rb"(?<=\r\n)(x-request-id|date): [^\r\n]+")


class Reply(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    head: bytes
    """All of it, as it came."""
    headers: dict[str, str]
    body: bytes
    repeated: bool
    """Whether it was given without asking the application."""

    @property
    def common(self) -> bytes:
        """What the answers to the same request have in common: all but the values of id and date."""
        return OWN.sub(rb"\1", self.head) + self.body


class InFull:
    """Between server and application: counts what is asked in full."""

    def __init__(self, served: ServedNode) -> None:
        assert served.node.server is not None
        self.count = 0
        # A node that tells of each request is asked in full, and without settings for its log it tells all.
        served.node.application._logs_requests = False
        self._application = served.node.server.application
        served.node.server.application = self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        await self._application(scope, receive, send)


class SameWords:
    """A request on a connection of its own."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: tuple[str, str, dict[str, str], bytes],
        in_full: InFull,
    ) -> None:
        method, path, headers, self._body = request
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{lines}\r\n".encode()
        self.request = self._head + self._body
        self._is_bodiless = {304, 204} if method != "HEAD" else range(1_000)
        self._reader, self._writer, self._in_full = reader, writer, in_full

    async def __call__(self, body: bytes | None = None) -> Reply:
        """Sends it once more, or another body under its head. Nobody else may ask for anything meanwhile."""
        before = self._in_full.count
        self._writer.write(self._head + (self._body if body is None else body))
        async with asyncio.timeout(PATIENCE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            status = int(lines[0].split()[1])
            length = 0 if status in self._is_bodiless else int(headers["content-length"])
            body = await self._reader.readexactly(length)
        return Reply(status, head, headers, body, self._in_full.count == before)

    async def twice(self) -> Reply:
        """The second of two answers, which are the same."""
        first, second = await self(), await self()
        assert second.common == first.common
        return second


@asynccontextmanager
async def same_words(
    served: ServedNode, path: str, *, method: str = "GET", body: bytes = b"", **headers: str
) -> AsyncIterator[SameWords]:
    """An underscore in the name of a header stands for a dash."""
    if body:
        headers["content_length"] = str(len(body))
    assert served.node.server is not None
    application = served.node.server.application
    in_full = application if isinstance(application, InFull) else InFull(served)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.node.port)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        asked = SameWords(reader, writer, (method, path, named, body), in_full)
        # As if it had come already, or the second would still be asked in full.
        if (words := asked_in(asked.request)) is not None:
            served.node.server.repeats.came_before(words)
        yield asked
    finally:
        writer.close()
        await writer.wait_closed()
