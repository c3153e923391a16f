"""How bytes come in: no more than there is room for, and not at the expense of the event loop."""

from collections.abc import AsyncIterator, Awaitable, Callable

from undercroft.errors import CapacityError
from undercroft.storage.capacity import Reservation
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.upload import Arrival, no_eviction


class Intake:
    """Takes bytes into uploads, each after there is room for it."""

    def __init__(self, threads: DiskThreads) -> None:
        self._threads = threads
        self.make_room: Callable[[int], Awaitable[bool]] = no_eviction
        """Asked for so many bytes when there is no room; answers whether to try again. Eviction sets it."""

    async def grow(self, room: Reservation, size: int) -> None:
        """Holds so many bytes more, after an eviction if need be. Raises `CapacityError`."""
        while True:
            try:
                room.grow(size)
            except CapacityError:
                # Others may take what was freed, so this may have to ask more than once.
                if not await self.make_room(size):
                    raise
            else:
                return

    async def receive(self, arrival: Arrival, chunks: AsyncIterator[bytes], room: Reservation) -> None:
        """Takes all bytes in; some may wait in memory. Raises what `grow` and `chunks` raise, and OSError.

        Those of a file from the object store are proven. Raises `DigestMismatchError` if they are wrong.
        """
        upload = arrival.upload
        async for chunk in chunks:
            spool_is_full = upload.add(chunk)
            if upload.size > room.size:
                await self.grow(room, upload.size - room.size)
            if spool_is_full:
                room.wrote(await self._threads.run(upload.write_out))
                arrival.on_written()
        if arrival.from_object_store and upload.on_disk:
            # Whatever is in its way from here on: who reads along gets the right bytes to their end.
            room.wrote(await self._threads.run(upload.prove, arrival.expected_sha256))
