"""The other worker processes: each listens for them on a Unix socket in a directory of their parent's."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from undercroft.api.request import Receive, Scope, Send
from undercroft.errors import SiblingError, UndercroftError
from undercroft.http.exchange import TOO_SLOW
from undercroft.processes import frames
from undercroft.processes.frames import Frame, Kind
from undercroft.processes.place import Place
from undercroft.storage.ledger import Entry
from undercroft.supervisor import Jobs

log = structlog.get_logger(__name__)

# A sibling that is at work answers within milliseconds; one that does not is taken to be dying.
FIGURES_S = 2.0

# What the reader of one connection keeps in memory.
READ_BYTES = 256 << 10

Answering = Callable[[Scope, Receive, Send], Awaitable[None]]

Figures = Mapping[Kind, Callable[[], Awaitable[bytes]]]


class HandedOn(msgspec.Struct, array_like=True):
    """A request as it goes from one worker to another."""

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: Sequence[tuple[bytes, bytes]]
    client: str | None
    """Its address; its port is of no use to anybody."""


_decoder = msgspec.msgpack.Decoder(HandedOn)
_Head = tuple[int, list[tuple[bytes, bytes]]]
_head_decoder = msgspec.msgpack.Decoder(_Head)


class Siblings:
    """Listens to the siblings of one worker, and speaks to them. `open` it, then `close` it."""

    def __init__(self, place: Place, answer: Answering, figures: Figures) -> None:
        """`answer` answers a request here, `figures` are those of this worker, by how they are asked for."""
        self._place = place
        self._answer = answer
        self._figures = figures
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[Any]] = set()
        self._jobs = Jobs()

    @property
    def number(self) -> int:
        """Of this worker."""
        return self._place.number

    @property
    def count(self) -> int:
        """How many there are, this one among them."""
        return self._place.count

    def missing(self) -> list[int]:
        """Those that do not serve now."""
        serving = self._place.ledger.column(Entry.SERVES)
        return [number for number, serves in enumerate(serving) if not serves and number != self.number]

    # --- listening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """From now on they are answered. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._talk, sock=self._bound(), limit=READ_BYTES)

    def _bound(self) -> socket.socket:
        """In the place of the one of who was here before."""
        path = self._path(self.number)
        Path(path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        return listener

    def _path(self, worker: int) -> str:
        # By way of the open directory: its own path may be longer than a socket's may be.
        return f"/proc/self/fd/{self._place.directory}/{worker}"

    async def close(self, grace_ms: int) -> None:
        """Hears nobody more; cancels what is still answered after `grace_ms`. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._talks:
            _, late = await asyncio.wait(self._talks, timeout=grace_ms / 1_000)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._jobs.stop()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine always runs in one
        self._talks.add(task)
        try:
            await self._hear(reader, writer)
        except (OSError, UndercroftError) as error:
            # It, or its client, has gone; or half an answer cannot be finished, which it sees by its end.
            log.debug("talk_broke_off", error=str(error))
        except asyncio.CancelledError:
            # By `close`, which waits for the end of this and of nothing else. Python's streams would take a
            # task that was cancelled for a fault, and print it.
            log.debug("talk_cut_off")
        finally:
            self._talks.discard(task)
            writer.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frame = await frames.read(reader)
        if frame is not None and frame.kind in self._figures:
            frames.write(writer, frame.kind, await self._figures[frame.kind]())
            await writer.drain()
        elif frame is not None and frame.kind is Kind.REQUEST:
            await self._answer_for(_decoder.decode(frame.data), reader, writer)

    async def _answer_for(
        self, asked: HandedOn, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def receive() -> dict[str, Any]:
            frame = await frames.read(reader)
            if frame is None or frame.kind is Kind.TOO_SLOW:
                return {"type": "http.disconnect", TOO_SLOW: frame is not None}
            return {"type": "http.request", "body": frame.data, "more_body": frame.kind is Kind.BODY}

        async def send(event: Any) -> None:
            if event["type"] == "http.response.start":
                head = event["status"], [(bytes(name), bytes(value)) for name, value in event["headers"]]
                frames.write(writer, Kind.ANSWER, msgspec.msgpack.encode(head))
            else:
                more = event.get("more_body", False)
                frames.write(writer, Kind.PIECE if more else Kind.LAST_PIECE, event.get("body", b""))
            with suppress(ConnectionError):  # who asked has gone, which is no fault of who answers
                await writer.drain()

        scope = {"type": "http", "http_version": "1.1", "scheme": "http", **msgspec.structs.asdict(asked)}
        scope["client"] = None if asked.client is None else (asked.client, 0)
        await self._answer(scope, receive, send)
        if writer.is_closing():
            return
        # Whoever closes with bytes unread resets the connection, and the answer may be lost with it.
        writer.write_eof()
        while await frames.read(reader) is not None:
            pass

    # --- asking -----------------------------------------------------------------------------------

    async def ask(self, worker: int, kind: Kind) -> bytes | None:
        """Figures of a sibling; None if it does not answer."""
        try:
            async with asyncio.timeout(FIGURES_S):
                reader, writer = await asyncio.open_unix_connection(self._path(worker), limit=READ_BYTES)
                try:
                    frames.write(writer, kind)
                    frame = await frames.read(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return None if frame is None else frame.data

    async def hand_on(self, worker: int, scope: Scope, receive: Receive, send: Send) -> bool:
        """Lets a sibling answer a request; False if it did not begin to.

        Raises `SiblingError` when it breaks off in the middle of the answer.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._path(worker), limit=READ_BYTES)
        except OSError:
            return False
        try:
            _send_request(writer, scope)
            sending = self._jobs.start("body for a sibling", _send_body(receive, writer))
            try:
                return await _relay(reader, send)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            writer.close()


def _send_request(writer: asyncio.StreamWriter, scope: Scope) -> None:
    client = scope.get("client")
    asked = HandedOn(
        scope["method"],
        scope["path"],
        scope["raw_path"],
        scope["query_string"],
        [(bytes(name), bytes(value)) for name, value in scope["headers"]],
        None if client is None else client[0],
    )
    frames.write(writer, Kind.REQUEST, msgspec.msgpack.encode(asked))


async def _send_body(receive: Receive, writer: asyncio.StreamWriter) -> None:
    """To its end, or until the client leaves, which the sibling sees by an end too soon."""
    more = True
    with suppress(OSError):
        while more:
            event = await receive()
            if event["type"] != "http.request":
                if event.get(TOO_SLOW):
                    frames.write(writer, Kind.TOO_SLOW)
                if not writer.is_closing():
                    writer.write_eof()
                return
            more = event.get("more_body", False)
            frames.write(writer, Kind.BODY if more else Kind.LAST_BODY, event.get("body", b""))
            await writer.drain()


async def _relay(reader: asyncio.StreamReader, send: Send) -> bool:
    """Passes the answer on, and returns when the sibling has ended: until then it may read of the body."""
    begun = complete = False
    while (frame := await _next_frame(reader)) is not None:
        if frame.kind is Kind.ANSWER:
            status, headers = _head_decoder.decode(frame.data)
            begun = True
            await send({"type": "http.response.start", "status": status, "headers": headers})
        else:
            complete = frame.kind is Kind.LAST_PIECE
            await send({"type": "http.response.body", "body": frame.data, "more_body": not complete})
    if begun and not complete:
        raise SiblingError("the worker that answers broke off in the middle of its answer")
    return begun


async def _next_frame(reader: asyncio.StreamReader) -> Frame | None:
    """None when the sibling has ended, in whichever way."""
    try:
        return await frames.read(reader)
    except OSError:
        return None
