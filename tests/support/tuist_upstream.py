"""A Tuist server as far as the node asks it: HTTP/1.1 on loopback, with every kind of misbehaviour."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

ACCESS = "/api/cache/access"
PROJECTS = "/api/projects"
PATIENCE_S = 20


class Received(NamedTuple):
    """A request as it came."""

    path: str
    headers: dict[str, str]


class TuistUpstream:
    """Answers 200 with the projects `acme/app` and `acme/lib` until it is told otherwise."""

    def __init__(self) -> None:
        self.port = 0
        self.scheme = "http"
        self.requests: list[Received] = []
        self.connections = 0
        self.most_at_once = 0
        self._answers: dict[str, bytes] = {}
        self._at_once = 0
        self._arrived = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._breaks_off = False
        self.lists("acme/app", "acme/lib")

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    # --- what it answers ---

    def lists(self, *projects: object, path: str = ACCESS) -> None:
        self.answers(200, json.dumps({"projects": projects}).encode(), path=path)

    def answers(
        self, status: int, body: bytes = b"", headers: Sequence[str] = (), *, path: str = ACCESS
    ) -> None:
        lines = [f"HTTP/1.1 {status} Status", *headers, f"content-length: {len(body)}", "", ""]
        self._answers[path] = "\r\n".join(lines).encode() + body

    def breaks_off(self) -> None:
        """It sends half of each answer from now on, and no more until the gate opens."""
        self._breaks_off = True

    def close_gate(self) -> None:
        """Requests come in from now on and get no answer until `open_gate`."""
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    async def arrived(self, count: int) -> None:
        """Returns when so many requests have come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.requests) < count:
                self._arrived.clear()
                await self._arrived.wait()

    # --- serving ---

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._serve_one(await reader.readuntil(b"\r\n\r\n"), writer)

    async def _serve_one(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        request_line, *lines = head.decode("latin-1").split("\r\n")
        headers = (line.split(": ", 1) for line in lines if line)
        path = request_line.split()[1]
        self.requests.append(Received(path, {name.lower(): value for name, value in headers}))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self._arrived.set()
        answer = self._answers.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        if self._breaks_off:
            writer.write(answer[: len(answer) - 5])
        await self._gate.wait()
        self._at_once -= 1
        if not self._breaks_off:
            writer.write(answer)
            await writer.drain()


@asynccontextmanager
async def tuist_upstream(tls: ssl.SSLContext | None = None) -> AsyncIterator[TuistUpstream]:
    """Starts one on a free port."""
    upstream = TuistUpstream()
    upstream.scheme = "http" if tls is None else "https"
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        # Cancelled below, which streams would take for a fault.
        with suppress(asyncio.CancelledError):
            await upstream.serve(reader, writer)
        writer.close()
        connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        upstream.open_gate()
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
