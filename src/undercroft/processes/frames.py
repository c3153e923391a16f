"""How worker processes speak to each other: pieces with a kind and a length, on a Unix socket."""

import asyncio
import enum
import struct
from typing import NamedTuple

_HEAD = struct.Struct("!BI")

# A chunk of a body is what a server hands over at once, far less; this bounds what a peer may announce.
MAX_BYTES = 64 << 20


class Kind(enum.IntEnum):
    """What a piece is."""

    REQUEST = 1
    """Line and headers of a request that is handed on."""
    BODY = 2
    LAST_BODY = 3
    ANSWER = 4
    """Status and headers."""
    PIECE = 5
    LAST_PIECE = 6
    METRICS = 7
    """Asks for the sums of one worker, and answers."""
    STATUS = 8
    """Asks for the status of one worker, and answers."""
    TOO_SLOW = 9
    """The body comes too slowly, and no more of it will be read."""


class Frame(NamedTuple):
    """A piece."""

    kind: Kind
    data: bytes


def write(writer: asyncio.StreamWriter, kind: Kind, data: bytes = b"") -> None:
    """Hands a piece over; wait with `drain`. Nothing happens once the other side has gone."""
    if writer.is_closing():
        return  # asyncio's own loop writes to nobody, uvloop's raises
    writer.write(_HEAD.pack(kind, len(data)))
    if data:
        writer.write(data)


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """The next piece; None when the other side has gone, or is none of ours. Raises OSError."""
    try:
        kind, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if length > MAX_BYTES:
            return None
        return Frame(Kind(kind), await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ValueError):
        return None
