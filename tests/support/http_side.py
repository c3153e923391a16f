"""One side of a proxy: HTTP/1.1 messages as bytes, taken apart only as far as they must be."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

Send: TypeAlias = Callable[[bytes], Awaitable[None]]
PIECE_BYTES = 64 * 1024
NO_LINGER = struct.pack("ii", 1, 0)
"""With it the kernel ends a connection by RST."""


class HttpSide:
    """The connection to the client, or that to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.body_bytes = 0

    async def head(self) -> bytes:
        """The next head with its empty line; b"" at the end of the connection."""
        with suppress(asyncio.IncompleteReadError):
            return await self._reader.readuntil(b"\r\n\r\n")
        return b""

    async def copy_body(self, head: bytes, send: Send | None) -> None:
        """Hands on the body that belongs to the head, counted or in chunks; None: drops it."""
        send = send or _drop
        headers = head.lower()
        if b"\r\ntransfer-encoding: chunked" in headers:
            while not (chunk := await self._chunk()).startswith(b"0\r\n"):
                await send(chunk)
            await send(chunk)
        left = 0
        if b"\r\ncontent-length:" in headers:
            left = int(headers.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
        while left:
            piece = await self._reader.read(min(left, PIECE_BYTES))
            if not piece:
                raise ConnectionAbortedError
            left -= len(piece)
            await send(piece)

    async def _chunk(self) -> bytes:
        line = await self._reader.readuntil(b"\r\n")
        return line + await self._reader.readexactly(int(line.split(b";")[0], 16) + 2)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """Ends the connection with RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.abort()

    def close(self) -> None:
        """Ends the connection when the other end has taken what was sent."""
        self._writer.close()

    def abort(self) -> None:
        """Ends it now. Idempotent."""
        self._writer.transport.abort()


async def _drop(_piece: bytes) -> None:
    pass
