"""Bodies that arrive with `Content-Encoding: zstd` (RFC 8878)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import zstandard

from undercroft.errors import BadRequestError, IncompleteBodyError, TooLargeError
from undercroft.storage.upload import SPOOL_BYTES

# Memory of each upload; more is not to be used for a content encoding (RFC 9659).
MAX_WINDOW_BYTES = 8 << 20

# A block has 4 bytes or more and holds 128 KiB at most, so this bounds what one step can yield to 2 MiB.
# Smaller ones bound it further, but a step costs some 0.4 us however little it yields.
STEP_BYTES = 1 << 6

# So many uploads may have the content of a step in memory, however many there are.
STEPS_AT_ONCE = 4


class ZstdBodies:
    """Decompresses bodies of at most `max_bytes` of content; what all of them hold at once is bounded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._steps = asyncio.Semaphore(STEPS_AT_ONCE)

    async def content(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The content of a body, of any number of frames, in pieces of `SPOOL_BYTES` at most.

        Who does not read to the end must close it: until then others may wait. Raises `TooLargeError` as
        soon as there is too much, `BadRequestError` for what is not zstd, `IncompleteBodyError` if the last
        frame has no end, and what `chunks` raises.
        """
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        frame, size = None, 0
        async for chunk in chunks:
            for start in range(0, len(chunk), STEP_BYTES):
                rest = chunk[start : start + STEP_BYTES]
                while rest:
                    frame = frame or decompressor.decompressobj()
                    async with self._steps:
                        step = _step(frame, rest)
                        size += len(step)
                        self._check(size)
                        for at in range(0, len(step), SPOOL_BYTES):
                            yield step[at : at + SPOOL_BYTES]
                        del step  # before the next one's turn
                    rest, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise IncompleteBodyError(f"the zstd frame has no end after {size} bytes of content")

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLargeError(f"the body decompresses to more than {self._max_bytes} bytes")


def _step(frame: "zstandard.ZstdDecompressionObj", data: bytes) -> bytes:
    try:
        return frame.decompress(data)
    except zstandard.ZstdError as error:
        raise BadRequestError(f"the body is not zstd, as its Content-Encoding says: {error}") from error
