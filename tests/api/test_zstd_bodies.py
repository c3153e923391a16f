"""Bodies that are compressed: what they hold in memory while they are read."""

import asyncio
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from undercroft.api.zstd_bodies import STEPS_AT_ONCE, ZstdBodies
from undercroft.errors import IncompleteBodyError, TooLargeError
from undercroft.storage.upload import SPOOL_BYTES

BLOCK_BYTES = 128 << 10
BLOCKS = 256
WINDOW_OF_128_KIB = 7 << 3


def bomb() -> bytes:
    """A frame of 1 KiB in blocks of 4 bytes, each of which says "128 KiB of zeros": 32 MiB in all."""
    sizes = (BLOCK_BYTES << 3 | 1 << 1 | (number == BLOCKS - 1) for number in range(BLOCKS))
    blocks = b"".join(struct.pack("<I", size)[:3] + b"\0" for size in sizes)
    return b"\x28\xb5\x2f\xfd" + bytes([0, WINDOW_OF_128_KIB]) + blocks


async def sent(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class Reader:
    """Reads content and lets go of each piece only when it may."""

    def __init__(self, bodies: ZstdBodies) -> None:
        self._bodies = bodies
        self.size = 0
        self.largest = 0

    async def read(self, may_go_on: asyncio.Event) -> None:
        async with aclosing(self._bodies.content(sent(bomb()))) as content:
            async for piece in content:
                self.size += len(piece)
                self.largest = max(self.largest, len(piece))
                await may_go_on.wait()
                await asyncio.sleep(0)


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_many_uploads_hold_the_content_of_a_few_steps() -> None:
    bodies, gate = ZstdBodies(BLOCKS * BLOCK_BYTES), asyncio.Event()
    readers = [Reader(bodies) for _ in range(40)]
    tracemalloc.start()
    reading = [asyncio.create_task(reader.read(gate)) for reader in readers]
    await turns(10)
    assert sum(reader.size > 0 for reader in readers) == STEPS_AT_ONCE
    gate.set()
    await asyncio.gather(*reading)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A step is 2 MiB, and while it is made it may be there twice. Whoever waits has the piece it read last.
    assert peak < (STEPS_AT_ONCE + 1) * (3 << 20) + len(readers) * SPOOL_BYTES
    assert {reader.size for reader in readers} == {BLOCKS * BLOCK_BYTES}
    assert max(reader.largest for reader in readers) <= SPOOL_BYTES


async def test_who_waits_for_the_rest_of_a_body_holds_nobody_up() -> None:
    bodies, more = ZstdBodies(BLOCKS * BLOCK_BYTES), asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield bomb()[:100]
        await more.wait()

    halted = [asyncio.create_task(_all(bodies.content(halting()))) for _ in range(2 * STEPS_AT_ONCE)]
    assert await _all(bodies.content(sent(bomb()))) == BLOCKS * BLOCK_BYTES
    more.set()
    ended = await asyncio.gather(*halted, return_exceptions=True)
    assert {type(one) for one in ended} == {IncompleteBodyError}


async def _all(content: AsyncIterator[bytes]) -> int:
    return sum([len(piece) async for piece in content])


async def test_a_body_that_is_refused_lets_others_read() -> None:
    bodies = ZstdBodies(BLOCK_BYTES)
    for _ in range(STEPS_AT_ONCE + 1):
        with pytest.raises(TooLargeError):
            await _all(bodies.content(sent(bomb())))
