"""Answers: empty, JSON, text, and artifacts with ranges and conditions (RFC 9110)."""

import asyncio
import os
import re
from typing import Any, NamedTuple

import msgspec

from undercroft.api.request import Request
from undercroft.http.repeats import Answer, Head
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.supervisor import to_its_end

# A file of at most this size is sent as one body; of a larger one this much is in memory at a time.
CHUNK_BYTES = 1 << 20

# A reader that takes nothing for so long has gone, or never meant to read.
SEND_TIMEOUT_S = 60

# An artifact of at most this size may be read and sent without waiting for anything: a copy of it takes less
# than the rest of the request.
SMALL_BYTES = 64 << 10

OCTETS = (b"content-type", b"application/octet-stream")
ACCEPTS_RANGES = (b"accept-ranges", b"bytes")


class Message(msgspec.Struct, frozen=True):
    """What an error says, and `/up`."""

    message: str


async def empty(request: Request, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """A status without a body."""
    length = [] if status in (204, 304) else [(b"content-length", b"0")]
    await request.start(status, [*(headers or ()), *length])
    await request.finish()


async def content(
    request: Request,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """A status with a body; to HEAD only its headers."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *(headers or ())]
    await request.start(status, head)
    await request.finish(b"" if request.method == "HEAD" else body)


async def whole(request: Request, answer: Answer) -> None:
    """An answer that is there whole; to HEAD only its headers."""
    await request.start(answer.status, [*answer.headers])
    await request.finish(b"" if request.method == "HEAD" else bytes(answer.body))


async def json(request: Request, status: int, value: Any) -> None:
    """A status with a JSON body."""
    await content(request, status, msgspec.json.encode(value), b"application/json")


async def message(
    request: Request, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """An error as the contract words it: `{"message": ...}`."""
    body = msgspec.json.encode(Message(text))
    await content(request, status, body, b"application/json", headers)


class Span(NamedTuple):
    """Bytes `start` to `end`, the end excluded."""

    start: int
    end: int


# No file has a size of more than 19 digits, and Python refuses to parse thousands of them.
_RANGE = re.compile(rb"bytes=(\d{0,19})-(\d{0,19})", re.IGNORECASE)


def parse_range(value: bytes, size: int) -> Span | None:
    """The span a `Range` header asks for; None when it is to be ignored (unknown unit, several ranges).

    A span that starts at or behind the end (`start >= end`) cannot be satisfied. RFC 9110, 14.1.2.
    """
    match = _RANGE.fullmatch(value.strip(b" \t"))
    if match is None or match.groups() == (b"", b""):
        return None
    first, last = match.groups()
    if not first:
        return Span(max(0, size - int(last)), size) if int(last) else Span(size, size)
    if last and int(last) < int(first):
        return None
    return Span(int(first), min(int(last) + 1, size) if last else size)


async def artifact(request: Request, found: OpenArtifact, headers: list[tuple[bytes, bytes]]) -> int:
    """Sends an open artifact, or the part or the 304 that was asked for; answers the bytes sent.

    The caller closes the descriptor.
    """
    tag = etag(found)
    common = [(b"etag", tag), ACCEPTS_RANGES, *headers]
    if _has_tag(request.headers.get(b"if-none-match"), tag):
        await empty(request, 304, common)
        return 0
    span = _asked_span(request, found, tag)
    if span is None:
        return await _send(request, found, 200, Span(0, found.size), common)
    if span.start >= span.end:
        common.append((b"content-range", b"bytes */%d" % found.size))
        await empty(request, 416, common)
        return 0
    common.append((b"content-range", b"bytes %d-%d/%d" % (span.start, span.end - 1, found.size)))
    return await _send(request, found, 206, span, common)


async def handed_over(
    request: Request, found: OpenArtifact, headers: list[tuple[bytes, bytes]], location: bytes
) -> int:
    """Lets a proxy send the artifact from `location`, or the part that was asked for; answers its bytes."""
    tag = etag(found)
    common = [(b"etag", tag), ACCEPTS_RANGES, *headers]
    if _has_tag(request.headers.get(b"if-none-match"), tag):
        await empty(request, 304, common)
        return 0
    where = (b"x-accel-redirect", location)
    await content(request, 200, b"", b"application/octet-stream", [where, *common])
    if request.method == "HEAD":
        return 0
    # The proxy makes of a range what `artifact` would.
    span = _asked_span(request, found, tag) or Span(0, found.size)
    return max(0, span.end - span.start)


def is_repeatable(request: Request, found: OpenArtifact) -> bool:
    """Whether the answer sent was all of a small artifact, and will be as long as its digest is the same."""
    is_whole = request.status == 200 and request.method == "GET" and found.reached is None
    return is_whole and found.content_sha256 is not None and found.size <= SMALL_BYTES


def repeated_head(found: OpenArtifact, headers: list[tuple[bytes, bytes]]) -> Head:
    """The headers that went before it."""
    length = (b"content-length", b"%d" % found.size)
    return (OCTETS, length, (b"etag", etag(found)), ACCEPTS_RANGES, *headers)


def at_once(found: OpenArtifact) -> bytearray | None:
    """All of a small artifact, if the kernel has it in memory and says so (RWF_NOWAIT, man 2 preadv2)."""
    body = bytearray(found.size)
    try:
        return body if os.preadv(found.descriptor, [body], 0, os.RWF_NOWAIT) == found.size else None
    except OSError:
        return None  # who asks in full waits for it, or learns what is wrong


def etag(found: OpenArtifact) -> bytes:
    """The digest, where it is known; else the size, which says at least when bytes differ in number."""
    return b'"%s"' % (found.content_sha256 or f"size-{found.size}").encode()


def _has_tag(header: bytes | None, tag: bytes) -> bool:
    if header is None:
        return False
    return header.strip() == b"*" or tag in (one.strip().removeprefix(b"W/") for one in header.split(b","))


def _asked_span(request: Request, found: OpenArtifact, tag: bytes) -> Span | None:
    asked = request.headers.get(b"range")
    if asked is None or request.method != "GET":
        return None
    condition = request.headers.get(b"if-range")
    if condition is not None and condition.strip() != tag:
        return None
    span = parse_range(asked, found.size)
    if span is not None and found.reached is not None and span.start < span.end < found.size:
        # Of a file that is still coming only the last byte is known to be right: without it this would be
        # complete, and maybe wrong. The whole can begin at once, and is not complete before it is right.
        return None
    return span


async def _send(
    request: Request, found: OpenArtifact, status: int, span: Span, headers: list[tuple[bytes, bytes]]
) -> int:
    length = span.end - span.start
    head = [OCTETS, (b"content-length", b"%d" % length), *headers]
    if request.method == "HEAD":
        await request.start(status, head)
        await request.finish()
        return 0
    # The first bytes before the status: what cannot be read must not be announced.
    first = await _read(found, span.start, min(length, CHUNK_BYTES))
    await request.start(status, head)
    if length <= CHUNK_BYTES:
        await request.finish(first)
        return length
    rest = Span(span.start + len(first), span.end)
    return await _send_chunks(request, found, rest, first)


async def _send_chunks(request: Request, found: OpenArtifact, span: Span, first: bytes) -> int:
    """Sends `first` and then the span; answers the bytes handed over before the client left."""
    sent = len(first)
    # After the client has gone the server swallows what is sent, so somebody must listen for that.
    gone = asyncio.ensure_future(client_gone(request))
    try:
        await in_time(request, first)
        for offset in range(span.start, span.end, CHUNK_BYTES):
            if gone.done():
                return sent
            piece = await _read(found, offset, min(CHUNK_BYTES, span.end - offset))
            await in_time(request, piece)
            sent += len(piece)
        await request.finish()
    except StuckReaderError:
        # Like one that left. The kernel cuts the connection off (server.py), and the server does not
        # use one again whose answer ended before its length.
        return sent
    finally:
        gone.cancel()
    return sent


async def client_gone(request: Request) -> None:
    """Returns when the client has left. To be cancelled while it waits."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class StuckReaderError(Exception):
    """The client has taken nothing for `SEND_TIMEOUT_S`."""


async def in_time(request: Request, piece: bytes) -> None:
    """Sends a piece of a body, not the last one. Raises `StuckReaderError`."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await request.finish(piece, more=True)
    except TimeoutError as error:
        raise StuckReaderError from error


async def beginning(found: OpenArtifact, size: int) -> bytes:
    """The first bytes of an artifact, so many or all there are, for who must look before it is sent.

    Raises OSError, and what `found.reached` raises.
    """
    return await _read(found, 0, min(size, found.size))


async def _read(found: OpenArtifact, offset: int, size: int) -> bytes:
    """So many bytes of a file: at once if the kernel seems to have them in memory, else from a thread."""
    if size == 0:
        return b""
    offset += found.start
    if found.reached is not None:
        await found.reached(offset + size)
    if _is_cached(found.descriptor, offset + size - 1):
        piece = os.pread(found.descriptor, size, offset)
    else:
        piece = await _read_in_thread(found.descriptor, offset, size)
    if len(piece) < size:
        raise OSError(f"the file ends at byte {offset + len(piece)}, {offset + size} were expected")
    return piece


async def _read_in_thread(descriptor: int, offset: int, size: int) -> bytes:
    """Reads in one of asyncio's own threads.

    Who is cancelled waits for it all the same: the descriptor is closed next, and the thread would read
    from whichever file gets its number.
    """
    loop = asyncio.get_running_loop()
    return await to_its_end(loop.run_in_executor(None, os.pread, descriptor, size, offset))


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte can be had without waiting for the disk (RWF_NOWAIT, man 2 preadv2).

    Files are written and read from front to back, so the last byte answers for those before it.
    Asking for all of them would mean a buffer filled twice, thirty times the cost at 1 MiB.
    """
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        # Not in memory, or a file system that cannot tell: the thread will find out which.
        return False
