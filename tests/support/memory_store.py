"""An object store in memory, by the contract, with gates to stand at and faults to meet."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

from undercroft.clock import now_us
from undercroft.errors import ObjectStoreError
from undercroft.s3.object_store import RemoteObject

Operation = Literal["head", "get", "put", "delete", "list"]

CHUNK_BYTES = 64 << 10
PAGE_OBJECTS = 1_000
PATIENCE_S = 20


@dataclass
class StoredObject:
    described: RemoteObject
    data: bytes


class MemoryBody:
    """A `RemoteBody`; with `breaks_at` it ends in an error there."""

    def __init__(self, stored: StoredObject, start: int, breaks_at: int | None) -> None:
        self.object = stored.described
        self._data = stored.data[start:breaks_at]
        self._broken = breaks_at is not None
        self.closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._data), CHUNK_BYTES):
            if self.closed:
                raise ObjectStoreError("the body was closed")
            await asyncio.sleep(0)
            yield self._data[at : at + CHUNK_BYTES]
        if self._broken:
            raise ObjectStoreError(f"{self.object.key} broke off")

    def close(self) -> None:
        self.closed = True


class MemoryStore:
    """Keeps objects by key."""

    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.asked: list[tuple[Operation, str]] = []
        """Every request, when it began."""
        self.bodies: list[MemoryBody] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.keeps_digests = True
        self.breaks_at: int | None = None
        """Bodies end in an error after so many bytes."""
        self._down: Exception | None = None
        self._next: deque[Exception | None] = deque()
        self._faults: dict[tuple[str, str], Exception] = {}
        self._gate = asyncio.Event()
        self._gate.set()
        self._news = asyncio.Event()

    # --- by the contract ---

    async def head(self, key: str) -> RemoteObject | None:
        async with _Request(self, "head", key):
            stored = self.objects.get(key)
            return None if stored is None else stored.described

    async def get(self, key: str, start: int = 0) -> MemoryBody | None:
        async with _Request(self, "get", key):
            stored = self.objects.get(key)
            if stored is None:
                return None
            body = MemoryBody(stored, start, self.breaks_at)
            self.bodies.append(body)
            return body

    async def put(self, key: str, file: BinaryIO, size: int, content_sha256: str | None) -> None:
        async with _Request(self, "put", key):
            file.seek(0)
            data = file.read(size)
            if len(data) != size:
                raise ObjectStoreError(f"the file of {key} ended early")
            self.keep(key, data, content_sha256)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            async with _Request(self, "delete", key):
                self.objects.pop(key, None)

    async def list(self, prefix: str) -> "AsyncIterator[list[RemoteObject]]":
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        found = [self.objects[key].described for key in sorted(self.objects) if key.startswith(prefix)]
        for at in range(0, len(found), PAGE_OBJECTS):
            async with _Request(self, "list", prefix):
                page = [one._replace(content_sha256=None) for one in found[at : at + PAGE_OBJECTS]]
            yield page

    async def presigned_url(self, key: str, expires_s: int) -> str | None:
        return None

    async def check(self) -> None:
        async with _Request(self, "list", ""):
            pass

    # --- for the test ---

    def keep(self, key: str, data: bytes, content_sha256: str | None = None) -> None:
        digest = content_sha256 if self.keeps_digests else None
        self.objects[key] = StoredObject(RemoteObject(key, len(data), digest, now_us()), data)

    def contents(self) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self.objects.items()}

    def count(self, operation: Operation, key: str | None = None) -> int:
        return sum(one == operation and key in {None, other} for one, other in self.asked)

    def fail_always(self, error: Exception | None) -> None:
        """Every request raises this from now on; None heals."""
        self._down = error

    def fail_next(self, *errors: Exception | None) -> None:
        """The next requests raise these, one each; None lets one pass."""
        self._next += errors

    def fail_on(self, operation: Operation, key: str, error: Exception) -> None:
        """Each such request raises this; with an empty key those of all."""
        self._faults[operation, key] = error

    def heal(self) -> None:
        self._down = None
        self._next.clear()
        self._faults.clear()
        self.breaks_at = None

    def shut_gate(self) -> None:
        """Requests that begin wait until `open_gate`."""
        self._gate.clear()

    def open_gate(self) -> None:
        self._gate.set()

    async def wait_until_asked(self, times: int) -> None:
        """Returns when so many requests began."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.asked) < times:
                self._news.clear()
                await self._news.wait()

    def begun(self, operation: Operation, key: str) -> None:
        self.asked.append((operation, key))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._news.set()

    async def pass_gate(self, operation: Operation, key: str) -> None:
        await self._gate.wait()
        await asyncio.sleep(0)
        error = self._down or (self._next.popleft() if self._next else None)
        error = error or self._faults.get((operation, key)) or self._faults.get((operation, ""))
        if error is not None:
            raise error


class _Request:
    def __init__(self, store: MemoryStore, operation: Operation, key: str) -> None:
        self._store, self._operation, self._key = store, operation, key

    async def __aenter__(self) -> None:
        self._store.begun(self._operation, self._key)
        try:
            await self._store.pass_gate(self._operation, self._key)
        except BaseException:
            self._store.in_flight -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        self._store.in_flight -= 1
