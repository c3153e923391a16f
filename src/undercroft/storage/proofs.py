"""Large files are proven while they are sent: their digest is computed just ahead of who reads them.

To read all of a large file before its first byte is sent would keep whoever asks first waiting for seconds.
So it is sent at once, and its last bytes only when all are known to be right: who has read to the end has
read the right bytes, everybody else sees the connection break.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeAlias
from weakref import WeakValueDictionary

from undercroft.errors import DamagedArtifactError
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.open_file import READ_BYTES, OpenFile
from undercroft.storage.verified_files import RowT, VerifiedFiles

# Read with one hand-over to a thread.
PIECES_AT_ONCE = 4

Reached: TypeAlias = Callable[[int], Awaitable[None]]


class _Proof:
    """How far the digest of one file has come; all who read the file share it."""

    def __init__(self, size: int, expected: str) -> None:
        self._size = size
        self._expected = expected
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._turn = asyncio.Lock()
        self.right: bool | None = None
        """Whether the bytes are right; None until all were read."""

    async def come_to(self, offset: int, descriptor: int, threads: DiskThreads) -> None:
        """Returns when so many bytes went into the digest, or none are left. Raises OSError."""
        async with self._turn:
            while self._hashed < offset and self.right is None:
                await threads.run(self._go_on, descriptor)

    def _go_on(self, descriptor: int) -> None:
        for _ in range(PIECES_AT_ONCE):
            piece = os.pread(descriptor, min(READ_BYTES, self._size - self._hashed), self._hashed)
            self._digest.update(piece)
            self._hashed += len(piece)
            if self._hashed == self._size or not piece:
                self.right = self._digest.hexdigest() == self._expected
                return


class Proofs(Generic[RowT]):
    """The proofs that are under way. Without readers they go no further, and are forgotten."""

    def __init__(
        self,
        threads: DiskThreads,
        verified: VerifiedFiles[RowT],
        on_damaged: Callable[[str, RowT, OpenFile], Awaitable[None]],
    ) -> None:
        """`on_damaged` is told of each file that is not what its row says, once by each who reads it."""
        self._threads = threads
        self._verified = verified
        self._on_damaged = on_damaged
        self._under_way = WeakValueDictionary[tuple[str, int, int], _Proof]()

    def reached(self, file: OpenFile, row: RowT) -> Reached | None:
        """What whoever sends the file asks before each piece; None if there is nothing to prove.

        It returns when the file may be sent up to an offset. Raises `DamagedArtifactError`, OSError.
        """
        if row.content_sha256 is None or self._verified.row(row.key, file, surely=True) is not None:
            return None
        name = (row.key, file.inode, file.modified_ns)
        proof = self._under_way.get(name)
        if proof is None:
            proof = self._under_way[name] = _Proof(file.size, row.content_sha256)
        return partial(self._reached, proof, file, row)

    async def _reached(self, proof: _Proof, file: OpenFile, row: RowT, offset: int) -> None:
        await proof.come_to(offset, file.descriptor, self._threads)
        if proof.right:
            self._verified.add(file, row)
        elif proof.right is False:
            await self._on_damaged(row.key, row, file)
            raise DamagedArtifactError(f"{row.key} is not what it was when it was stored")
