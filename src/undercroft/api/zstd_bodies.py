"""Bodies that arrive with `Content-Encoding: zstd` (RFC 8878)."""

from collections.abc import AsyncIterator

import zstandard

from undercroft.errors import BadRequestError, IncompleteBodyError, TooLargeError

# Memory of each upload; more is not to be used for a content encoding (RFC 9659).
MAX_WINDOW_BYTES = 8 << 20

# A block has 4 bytes or more and holds 128 KiB at most, so this bounds what one step can yield to 32 MiB.
STEP_BYTES = 1 << 10


async def decompressed(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The content of a body, of any number of frames.

    Raises `TooLargeError` as soon as it is over `max_bytes`, `BadRequestError` for what is not zstd,
    `IncompleteBodyError` if the last frame has no end, and what `chunks` raises.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    frame, size = None, 0
    async for chunk in chunks:
        for start in range(0, len(chunk), STEP_BYTES):
            rest = chunk[start : start + STEP_BYTES]
            while rest:
                frame = frame or decompressor.decompressobj()
                piece = _step(frame, rest)
                size += len(piece)
                if size > max_bytes:
                    raise TooLargeError(f"the body decompresses to more than {max_bytes} bytes")
                if piece:
                    yield piece
                rest, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise IncompleteBodyError(f"the zstd frame has no end after {size} bytes of content")


def _step(frame: "zstandard.ZstdDecompressionObj", data: bytes) -> bytes:
    try:
        return frame.decompress(data)
    except zstandard.ZstdError as error:
        raise BadRequestError(f"the body is not zstd, as its Content-Encoding says: {error}") from error
