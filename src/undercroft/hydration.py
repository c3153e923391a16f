"""One artifact on its way from the object store to the disk, with any number of readers along."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple, Protocol

import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.errors import ObjectStoreError, UndercroftError
from undercroft.s3.object_store import ObjectStore, RemoteBody, RemoteObject
from undercroft.s3.patience import in_time
from undercroft.s3.transfers import S3Transfers
from undercroft.settings_sections import ObjectStoreSection
from undercroft.storage.layout import digest_in
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.storage.upload import Arrival, Upload

log = structlog.get_logger(__name__)

# How often a body that breaks off is taken up again where it ended. A reset in the middle of a large
# artifact is no reason to begin anew, and the client notices nothing.
RESUMPTIONS = 5


class Cleaning(Protocol):
    """What is known of projects that are being removed."""

    def is_being_cleaned(self, key: str) -> bool:
        """Whether what the store has under a key may be about to be deleted there."""
        ...

    def cleanings(self, key: str) -> int:
        """How many requests there were that concern the key: a whole one may come and go meanwhile."""
        ...


class Outdated:
    """Knows of which objects the store has, or may have, other bytes than were stored here last."""

    def __init__(self, transfers: S3Transfers, cleaning: Cleaning) -> None:
        self._transfers = transfers
        self.cleaning = cleaning

    def now(self, key: str) -> bool:
        """Whether the object is about to go or to be replaced: what is older must not come back."""
        return self.cleaning.is_being_cleaned(key) or self._transfers.outdates(key)


class HydrationTimes(NamedTuple):
    """How long to wait for the object store, in seconds."""

    first_byte_s: float
    read_s: float
    negative_s: float
    whole_s: float

    @classmethod
    def of(cls, section: ObjectStoreSection) -> "HydrationTimes":
        """As set."""
        return cls(
            section.first_byte_timeout_ms / 1_000,
            section.read_timeout_ms / 1_000,
            section.negative_ttl_ms / 1_000,
            section.transfer_timeout_ms / 1_000,
        )


class Hydration:
    """Fetches one object. The artifact gets its name when it is whole and its digest is right.

    Readers follow the temporary file as it grows. They get its last bytes only after its digest was right:
    who has read to the end has read the right bytes, everybody else sees the connection break.
    """

    def __init__(
        self,
        key: str,
        store: ObjectStore,
        artifacts: CacheArtifacts,
        times: HydrationTimes,
        outdated: Outdated,
    ) -> None:
        self.key = key
        self.received = 0
        """Bytes that came so far."""
        self._store = store
        self._artifacts = artifacts
        self._times = times
        self._outdated = outdated
        self._cleanings = outdated.cleaning.cleanings(key)
        self._forbidden = False
        self._object: RemoteObject | None = None
        self._upload: Upload | None = None
        self._descriptor = -1
        self._readable = 0
        self._ended = False
        self.error: UndercroftError | OSError | None = None
        """What went wrong."""
        self._moved = asyncio.Event()

    # --- readers ----------------------------------------------------------------------------------

    async def begun(self) -> RemoteObject | None:
        """Returns when the store has said what it has; None if it has nothing. Raises what went wrong."""
        await self._until(lambda: self._object is not None)
        return self._object

    async def finished(self) -> None:
        """Returns when the artifact is on disk; raises what went wrong."""
        await self._until(lambda: False)

    async def reader(self) -> OpenArtifact:
        """The artifact as it grows; raises what went wrong before there was anything to read."""
        await self._until(lambda: self._descriptor >= 0)
        if self._object is None or self._descriptor < 0:
            raise ObjectStoreError(f"{self.key} ended before it could be read")
        copy = os.dup(self._descriptor)
        return OpenArtifact(copy, self._object.size, self._object.content_sha256, self._reached)

    async def _reached(self, offset: int) -> None:
        await self._until(lambda: self._readable >= offset)
        if self._readable < offset:
            raise ObjectStoreError(f"{self.key} ended at byte {self._readable}")

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not (self._ended or reached()):
            await self._moved.wait()
        if self.error is not None and not reached():
            raise self.error

    def forbid(self) -> None:
        """The artifact was deleted or stored: what is still to come is older and must not be published."""
        self._forbidden = True

    @property
    def unwanted(self) -> bool:
        """Whether what comes is outdated. Two point queries.

        What is unwanted gets no name. While a newer artifact is here nothing gets it anyway, unless its
        project is being cleaned: then what is here would be replaced.
        """
        cleaning = self._outdated.cleaning
        if cleaning.is_being_cleaned(self.key) or cleaning.cleanings(self.key) != self._cleanings:
            return True
        old = self._forbidden or self._outdated.now(self.key)
        return old and not self._artifacts.is_here(self.key)

    # --- the work ---------------------------------------------------------------------------------

    async def run(self) -> str:
        """Fetches; answers `stored`, `absent`, `refused` (no room, not wanted any more) or `failed`."""
        try:
            body = await self._get(0)
            if body is None:
                return "absent"
            try:
                await self._store_body(body)
            finally:
                body.close()
        except ObjectStoreError as error:
            return self._failed("failed", error)
        except (UndercroftError, OSError) as error:
            return self._failed("refused", error)
        except BaseException:
            self.error = ObjectStoreError(f"the fetching of {self.key} was broken off")
            raise
        else:
            return "stored"
        finally:
            self._end()

    async def _store_body(self, body: RemoteBody) -> None:
        self._object = body.object
        self._upload = self._artifacts.new_upload()
        self._tell()
        arrival = Arrival(
            self.key,
            self._upload,
            replace=False,
            expected_sha256=self._expected_sha256(body.object),
            from_object_store=True,
            check=self._check,
            on_written=self._on_written,
        )
        # Closed here and not whenever the garbage collector finds it: there is a connection inside.
        async with aclosing(self._chunks(body)) as chunks:
            try:
                await self._artifacts.take_in(arrival, chunks, body.object.size)
            finally:
                # Something may be in the way of its name: who reads along has the right bytes all the same.
                if self._upload.is_proven:
                    self._readable = body.object.size

    def _expected_sha256(self, object_: RemoteObject) -> str | None:
        """The digest the bytes must have, by whoever vouches for them; None if nobody does.

        A store may have lost what it was told of an object, or never keep it, and the bytes may have been
        changed there: the name of a blob is no worse as a witness.
        """
        # Not a row that is left of a lost file: another node may have replaced the object since.
        return digest_in(self.key) or object_.content_sha256

    def _failed(self, result: str, error: UndercroftError | OSError) -> str:
        log.warning("not_hydrated", key=self.key, result=result, reason=str(error))
        self.error = error
        return result

    def _end(self) -> None:
        self._ended = True
        self._tell()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _tell(self) -> None:
        """Lets everyone who waits look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    def _check(self) -> None:
        """Right before the artifact gets its name."""
        if self.unwanted:
            raise UndercroftError(f"{self.key} was deleted or replaced while it was fetched")

    def _on_written(self) -> None:
        """More of the temporary file can be read: all but what only the end may release."""
        if self._upload is None or self._object is None:
            return
        if self._descriptor < 0:
            self._descriptor = self._upload.open_for_reading()
        self._readable = min(self._upload.size, self._object.size - 1)
        self._tell()

    # --- the body ---------------------------------------------------------------------------------

    async def _get(self, start: int) -> RemoteBody | None:
        return await in_time(
            self._store.get(self.key, start), self._times.first_byte_s, f"the first byte of {self.key}"
        )

    async def _chunks(self, body: RemoteBody) -> AsyncGenerator[bytes, None]:
        """All bytes of the object, in spite of a few interruptions."""
        resumptions = 0
        while True:
            try:
                async with aclosing(self._in_time(body)) as chunks:
                    async for chunk in chunks:
                        self.received += len(chunk)
                        yield chunk
            except ObjectStoreError as error:
                if resumptions == RESUMPTIONS:
                    raise
                resumptions += 1
                log.info("hydration_resumed", key=self.key, at=self.received, reason=str(error))
                body = await self._resumed(body.object)
            else:
                return

    async def _resumed(self, object_: RemoteObject) -> RemoteBody:
        body = await self._get(self.received)
        if body is None or body.object != object_:
            if body is not None:
                body.close()
            raise ObjectStoreError(f"{self.key} changed in the object store while it was fetched")
        return body

    async def _in_time(self, body: RemoteBody) -> AsyncGenerator[bytes, None]:
        """The chunks of one answer; a pause that is too long is an error."""
        chunks = body.chunks()
        try:
            while True:
                chunk = await in_time(anext(chunks, None), self._times.read_s, f"more of {self.key}")
                if chunk is None:
                    return
                yield chunk
        finally:
            body.close()
