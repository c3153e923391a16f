"""A TCP proxy in front of a store, whose faults are switched on and off while it runs.

It has a thread and an event loop of its own, so tests of either kind use it alike. HTTP/1.1 only; the
`Host` header passes unchanged, so requests must be signed for the address of the proxy.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from tests.support.http_side import HttpSide, Send

Mode = Literal["pass", "reset", "cut", "stall", "answer", "break_upload", "garble"]
Garbled = Literal["flipped", "shorter", "longer", "another's", "claims more", "claims less"]
T = TypeVar("T")
PATIENCE_S = 20

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True)
class Fault:
    """What is done with each request from now on. Counts are bytes of the body of the answer.

    `reset` ends the connection with RST after `after` bytes, `cut` closes it in good order (None: before
    the head), `stall` says nothing more (None: the request does not even reach the store); `answer`
    sends `status`, `headers` and `body` in place of the store; `break_upload` ends the connection with RST
    after `after` bytes of the body of the request; `garble` changes the body of an object, or what the
    head says of its length, as `garbled` names it.
    """

    mode: Mode = "pass"
    after: int | None = None
    status: int = 503
    body: bytes = SLOW_DOWN
    headers: str = ""
    """Further lines of the head, each with its end."""
    garbled: Garbled = "flipped"
    latency_s: float = 0
    bytes_per_s: float | None = None
    only: str = ""
    """Concerns only requests whose first line contains this."""


@dataclass
class Seen:
    """What went through."""

    connections: int = 0
    requests: list[str] = field(default_factory=list)
    """First lines of the requests, without the version."""
    body_bytes_down: int = 0
    """Of answers, towards the client."""


class FaultProxy:
    """Stands at `url` for the store at `target_port`, both on loopback."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._choose: Callable[[str], Fault] = lambda _line: Fault()
        self._last_object = b""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._sides: set[HttpSide] = set()
        self._news = asyncio.Condition()
        self.port = 0
        self.seen = Seen()
        self.answer_ranges_with_206 = True
        """`rclone serve s3` answers a range with 200, which a store should not: this makes it 206."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *error: object) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def set(self, fault: Fault) -> None:
        """Requests that begin from now on meet this fault."""
        self.choose(lambda _line: fault)

    def choose(self, choose: Callable[[str], Fault]) -> None:
        """Requests that begin from now on meet the fault that this answers for their first line."""
        self._choose = choose

    def refuse(self) -> None:
        """Ends all connections; new ones are refused until `accept`."""
        self._do(self._close())

    def accept(self) -> None:
        """Connections are accepted (again), on the same port."""
        self._do(self._listen())

    def wait_for_requests(self, count: int, beginning: str = "") -> None:
        """Returns when so many requests that begin so were seen. From a coroutine: `asyncio.to_thread`."""
        self._do(self._until(lambda: sum(each.startswith(beginning) for each in self.seen.requests) >= count))

    def wait_for_bytes(self, count: int) -> None:
        """Returns when so many bytes of bodies were sent to the client."""
        self._do(self._until(lambda: self.seen.body_bytes_down >= count))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            for listening in self._server.sockets:
                self._loop.remove_reader(listening.fileno())
            # A turn, because one that was just accepted is lost, unclosed, by a server that is closed.
            await asyncio.sleep(0)
            self._server.close()
            self._server = None
        for _ in range(10):
            # Turns of the loop: who had just been accepted is connected, and served, by then.
            await asyncio.sleep(0)
        for task in (serving := tuple(self._serving)):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for side in self._sides:
            # Closed is not gone: there may be bytes left that the other end does not read.
            side.abort()
        self._sides.clear()
        await asyncio.sleep(0)

    async def _until(self, seen: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(seen)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.seen.connections += 1
        client = HttpSide(reader, writer)
        self._sides.add(client)
        store: HttpSide | None = None
        try:
            store = HttpSide(*await asyncio.open_connection("127.0.0.1", self._target_port))
            self._sides.add(store)
            while head := await client.head():
                await self._exchange(head, client, store)
        except asyncio.CancelledError:
            client.reset()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._serving.discard(task)
            for side in filter(None, (client, store)):
                side.close()

    async def _exchange(self, head: bytes, client: HttpSide, store: HttpSide) -> None:
        first_line = head.split(b" HTTP/", 1)[0].decode("latin-1")
        fault = self._choose(first_line)
        fault = fault if fault.only in first_line else Fault()
        self.seen.requests.append(first_line)
        await self._tell()
        await asyncio.sleep(fault.latency_s)
        if fault.mode == "stall" and fault.after is None:
            await asyncio.Event().wait()
        if fault.mode == "answer":
            await self._answer_instead(head, client, fault)
        else:
            await store.send(head)
            await client.copy_body(head, self._up(client, store, fault))
            await self._answer(first_line.startswith("HEAD "), client, store, fault)

    def _up(self, client: HttpSide, store: HttpSide, fault: Fault) -> Send:
        """Hands the body of a request on, to its end or not."""
        if fault.mode != "break_upload":
            return store.send
        sent = 0

        async def send(piece: bytes) -> None:
            nonlocal sent
            await store.send(piece[: max((fault.after or 0) - sent, 0)])
            sent += len(piece)
            if sent >= (fault.after or 0):
                client.reset()
                raise ConnectionAbortedError

        return send

    async def _answer_instead(self, head: bytes, client: HttpSide, fault: Fault) -> None:
        await client.copy_body(head, None)
        line = f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}\r\n"
        # The date is for answers that are to look like objects.
        headers = f"{fault.headers}last-modified: {formatdate(usegmt=True)}\r\n"
        headers += f"content-length: {len(fault.body)}\r\n\r\n"
        body = b"" if head.startswith(b"HEAD ") else fault.body
        await client.send((line + headers).encode() + body)

    async def _answer(self, is_head: bool, client: HttpSide, store: HttpSide, fault: Fault) -> None:
        if fault.after is None and fault.mode in ("reset", "cut"):
            await self._strike(client, fault)
        head = await store.head()
        while head.startswith(b"HTTP/1.1 100"):
            head = await store.head()
        if self.answer_ranges_with_206 and b"\r\ncontent-range:" in head.lower():
            head = head.replace(b" 200 OK", b" 206 Partial Content", 1)
        status = head.split(b" ", 2)[1]
        if fault.mode == "garble" and not is_head and status in (b"200", b"206"):
            await self._garble(head, client, store, fault)
            return
        await client.send(head)
        if is_head or status == b"204":
            return

        async def down(piece: bytes) -> None:
            await self._down(piece, client, fault, store)

        store.body_bytes = 0
        if fault.after == 0:
            await self._strike(client, fault)
        await store.copy_body(head, down)

    async def _garble(self, head: bytes, client: HttpSide, store: HttpSide, fault: Fault) -> None:
        """Sends an object, or whatever it is, that is not what the store has."""
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await store.copy_body(head, keep)
        body = b"".join(pieces)
        wrong = self._wrong(body, fault.garbled)
        claimed = len(wrong) + {"claims more": 10, "claims less": -10}.get(fault.garbled, 0)
        if body:
            self._last_object = body
        length = rb"(?im)^(content-length:).*\r$"
        await client.send(re.sub(length, rb"\1 %d\r" % max(claimed, 0), head) + wrong)
        if fault.garbled.startswith("claims"):
            raise ConnectionAbortedError

    def _wrong(self, body: bytes, how: Garbled) -> bytes:
        middle = len(body) // 2
        if how == "flipped" and body:
            return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if how == "shorter":
            return body[:middle]
        if how == "longer":
            return body + b"and more"
        return self._last_object if how == "another's" else body

    async def _down(self, piece: bytes, client: HttpSide, fault: Fault, store: HttpSide) -> None:
        left = len(piece) if fault.after is None else max(fault.after - store.body_bytes, 0)
        await client.send(piece[:left])
        store.body_bytes += len(piece[:left])
        self.seen.body_bytes_down += len(piece[:left])
        await self._tell()
        if fault.bytes_per_s is not None:
            await asyncio.sleep(len(piece) / fault.bytes_per_s)
        if fault.after is not None and store.body_bytes >= fault.after:
            await self._strike(client, fault)

    async def _strike(self, client: HttpSide, fault: Fault) -> None:
        if fault.mode == "stall":
            await asyncio.Event().wait()
        if fault.mode == "reset":
            client.reset()
        raise ConnectionAbortedError
