"""Uploads in parts: each part waits in a temporary file until all are there and become one artifact.

What is known of them is in memory. After a restart an upload is unknown, and its files were swept.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

import structlog

from undercroft.artifact_rows import Taken
from undercroft.artifacts import CacheArtifacts
from undercroft.errors import (
    BufferFullError,
    CommitTimeoutError,
    IncompleteBodyError,
    PartsTooLargeError,
    UnknownUploadError,
)
from undercroft.multipart.bounds import MultipartBounds, Owner
from undercroft.multipart.session import FinishedUploads, Part, Session, fingerprint
from undercroft.settings_sections import UploadsSection
from undercroft.storage.capacity import Capacity, Reservation
from undercroft.storage.layout import project_of
from undercroft.storage.upload import UNKNOWN_ORIGIN, Arrival, Origin, Stored, told_of_no_room
from undercroft.supervisor import Jobs
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.telemetry.life_metrics import Figures

log = structlog.get_logger(__name__)

TOOL = "module"
"""The tool whose uploads these are counted as."""


# The client left, or the node stops: nothing was wrong with the upload itself.
GONE = (IncompleteBodyError, asyncio.CancelledError)


class MultipartUploads:
    """All uploads in parts that are going on. Everything is called from the event loop."""

    def __init__(
        self,
        artifacts: CacheArtifacts,
        capacity: Capacity,
        telemetry: Events,
        limits: UploadsSection,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` in seconds from any start; `sleep` like that of asyncio."""
        self._artifacts = artifacts
        self._capacity = capacity
        self._bounds = MultipartBounds(capacity, limits.module_max_bytes)
        self._telemetry = telemetry
        self._max_bytes = limits.module_max_bytes
        self._idle_s = limits.multipart_idle_ms / 1_000
        self._clock = clock
        self._sleep = sleep
        self._sessions: dict[str, Session] = {}
        self._finished = FinishedUploads()
        self._orders = itertools.count()
        self._jobs = Jobs()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def parts(self) -> int:
        """Parts that are here or being sent."""
        return self._bounds.total.parts

    def figures(self) -> Figures:
        """What is asked at each scrape."""
        return {
            "undercroft_multipart_uploads": ("Uploads in parts that are going on", lambda: len(self)),
            "undercroft_multipart_parts": ("Parts that are here or being sent", lambda: self.parts),
        }

    # --- what clients do --------------------------------------------------------------------------

    def start(self, owner: Owner, key: str, origin: Origin = UNKNOWN_ORIGIN) -> str:
        """Begins an upload; answers its id, which nobody can guess. Raises `CapacityError`."""
        self._bounds.add_upload(owner)
        upload_id = str(uuid.uuid4())
        self._sessions[upload_id] = Session(owner, key, origin, self._clock())
        return upload_id

    def expect(self, owner: Owner, upload_id: str) -> None:
        """Raises `UnknownUploadError` unless the upload takes parts: before a body is read for nothing."""
        self._open_session(owner, upload_id)

    async def put_part(
        self,
        owner: Owner,
        upload_id: str,
        number: int,
        chunks: AsyncIterator[bytes],
        *,
        declared_size: int | None,
        expected_sha256: str | None = None,
    ) -> None:
        """Takes a part in, in the place of an older one with its number.

        Raises what `chunks` raises, `UnknownUploadError`, `PartsTooLargeError`, `CapacityError`,
        `DigestMismatchError`, OSError; then an older one stays.
        """
        session = self._open_session(owner, upload_id)
        self._check_total(session, number, declared_size or 0)
        self._bounds.add_part(owner)
        part = Part(self._artifacts.new_upload(), Reservation(self._capacity), next(self._orders))
        with self._in_use(session):
            try:
                await self._receive(owner, part, chunks, declared_size, expected_sha256)
                unneeded = self._take(session, number, part)
            except BaseException as error:
                session.trouble = "" if isinstance(error, GONE) else type(error).__name__
                await self._discard(owner, part)
                raise
            session.trouble = ""
            session.used_at = self._clock()
            if unneeded is not None:
                await self._discard(owner, unneeded)

    async def complete(
        self, owner: Owner, upload_id: str, numbers: Sequence[int], expected_sha256: str | None
    ) -> Stored:
        """Makes the parts one artifact, in the order of their numbers; durable by the rule of `ack`.

        Raises `BadRequestError` if these are not the parts that arrived, `BufferFullError`; then the
        upload goes on. `CommitTimeoutError`: the artifact is there, its row may be late; who asks again
        waits again. Whatever else it raises ends the upload: `UnknownUploadError`, `DigestMismatchError`,
        `CapacityError`, the other errors of a buffer, OSError. It goes on when the caller is cancelled,
        and is done once: who asks for the same meanwhile or later gets the same result.
        """
        session = self._session(owner, upload_id)
        asked = fingerprint(numbers, expected_sha256)
        if session.asked is None:
            session.check(numbers)
            session.asked = asked
        elif session.asked != asked:
            raise UnknownUploadError(
                f"the upload {upload_id} is completed with other parts or another checksum"
            )
        if session.completion is None:
            work = self._completed(upload_id, session, expected_sha256)
            session.completion = self._jobs.start(f"complete {session.key}", work)
        elif session.late is not None and session.completion.done():
            work = self._acknowledged(session, session.late)
            session.completion = self._jobs.start(f"commit {session.key}", work)
        return await asyncio.shield(session.completion)

    def _session(self, owner: Owner, upload_id: str) -> Session:
        session = self._sessions.get(upload_id) or self._finished.find(owner, upload_id)
        if session is None or session.owner != owner:
            raise UnknownUploadError(f"there is no upload {upload_id[:80]!r} in parts: begin a new one")
        return session

    def _open_session(self, owner: Owner, upload_id: str) -> Session:
        session = self._session(owner, upload_id)
        if session.asked is not None:
            raise UnknownUploadError(f"the upload {upload_id} is completed: it takes no parts any more")
        return session

    # --- parts ------------------------------------------------------------------------------------

    def _check_total(self, session: Session, number: int, size: int) -> int:
        """The bytes of all parts, if part `number` had `size` bytes. Raises `PartsTooLargeError`."""
        total = session.size_with(number, size)
        if total > self._max_bytes:
            raise PartsTooLargeError(
                f"the parts have {total} bytes together, at most {self._max_bytes} are accepted"
            )
        return total

    @contextmanager
    def _in_use(self, session: Session) -> Iterator[None]:
        """While a part is on its way the upload is not idle, however slow that is."""
        session.requests += 1
        try:
            yield
        finally:
            session.requests -= 1

    async def _receive(
        self,
        owner: Owner,
        part: Part,
        chunks: AsyncIterator[bytes],
        size: int | None,
        expected_sha256: str | None,
    ) -> None:
        arrival = Arrival("", part.upload, replace=True, expected_sha256=expected_sha256)
        with told_of_no_room(part.upload):
            self._count(owner, part, size or 0)
            await self._artifacts.intake.grow(part.room, size or 0)
            async with aclosing(self._counted(owner, part, chunks)) as counted:
                await self._artifacts.intake.receive(arrival, counted, part.room)
            # An upload may have thousands of parts, so none keeps its descriptor.
            part.room.wrote(await self._artifacts.threads.run(part.upload.pause, expected_sha256))

    def _count(self, owner: Owner, part: Part, size: int) -> None:
        """Counts a part as one of `size` bytes, unless it counts for more already."""
        if size > part.counted:
            self._bounds.add_bytes(owner, size - part.counted)
            part.counted = size

    async def _counted(
        self, owner: Owner, part: Part, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Counts before room is asked for: nothing is evicted for what is beyond its owner's bound."""
        async for chunk in chunks:
            self._count(owner, part, part.upload.size + len(chunk))
            yield chunk

    def _take(self, session: Session, number: int, part: Part) -> Part | None:
        """Puts a part that is here in its place; answers the one of which no more is needed."""
        if session.asked is not None:
            raise UnknownUploadError("the upload was completed before this part was here")
        older = session.parts.get(number)
        if older is not None and older.order > part.order:
            return part  # it was sent again meanwhile, and that one was quicker
        session.size = self._check_total(session, number, part.upload.size)
        session.parts[number] = part
        return older

    async def _discard(self, owner: Owner, part: Part) -> None:
        try:
            if part.upload.on_disk:
                await self._artifacts.threads.run(part.upload.discard)
        except OSError as error:
            log.warning("part_not_removed", reason=str(error))
        finally:
            part.room.release()
            self._bounds.drop_part(owner, part.counted)

    # --- completing -------------------------------------------------------------------------------

    async def _completed(self, upload_id: str, session: Session, expected_sha256: str | None) -> Stored:
        result, reason = "error", ""
        try:
            # Before a part is moved: without room for a row they all stay, and more may come.
            await self._artifacts.wait_for_room()
            taken = await self._publish(session, expected_sha256)
            stored = await self._acknowledged(session, taken)
            result = stored.value
        except asyncio.CancelledError:
            result = "cancelled"
            raise
        except BufferFullError as error:
            session.reopen(type(error).__name__)
            raise
        except Exception as error:
            reason = type(error).__name__
            raise
        finally:
            if session.completion is not None:
                remembered = session.late is not None or result not in ("error", "cancelled")
                await self._finish(upload_id, session, remembered=remembered)
                self._tell(session, session.size, result, reason)
        return stored

    async def _publish(self, session: Session, expected_sha256: str | None) -> Taken:
        """Moves all parts to the end of the first, one by one, and publishes that.

        The disk never holds more than one part twice, and the first, often the only one, is not copied
        at all: its digest goes on from where it was.
        """
        first, *others = sorted(session.parts)
        whole = session.parts[first]
        arrival = Arrival(session.key, whole.upload, False, expected_sha256, session.origin)
        run = self._artifacts.threads.run
        with told_of_no_room(whole.upload):
            await run(whole.upload.resume)
            for number in others:
                part = session.parts[number]
                size = part.upload.size
                await self._artifacts.intake.grow(whole.room, size)
                session.moved = True
                await run(whole.upload.append, part.upload)
                whole.room.wrote(size)
                whole.counted, part.counted = whole.counted + part.counted, 0
                await self._discard(session.owner, session.parts.pop(number))
            try:
                return await self._artifacts.publish(arrival, whole.room)
            except BufferFullError:
                # The buffers were filled while the parts were moved: the whole waits like a part.
                whole.room.wrote(await run(whole.upload.pause, None))
                raise

    async def _acknowledged(self, session: Session, taken: Taken) -> Stored:
        try:
            return await self._artifacts.acknowledged(taken)
        except CommitTimeoutError:
            session.late = taken
            raise

    async def _finish(self, upload_id: str, session: Session, *, remembered: bool) -> None:
        self._end(upload_id)
        if remembered:
            session.used_at = self._clock()
            self._finished.add(upload_id, session)
        while session.parts:
            await self._discard(session.owner, session.parts.popitem()[1])

    def _tell(self, session: Session, size: int, result: str, reason: str) -> None:
        metadata = {"tool": TOOL, "project": project_of(session.key), "result": result, "reason": reason}
        self._telemetry.emit(events.UPLOAD, {"bytes": size}, metadata)

    # --- life -------------------------------------------------------------------------------------

    def _end(self, upload_id: str) -> Session:
        """From now on the upload is not known any more; its parts are the caller's to discard."""
        session = self._sessions.pop(upload_id)
        self._bounds.drop_upload(session.owner)
        return session

    async def run(self) -> None:
        """Removes uploads that nobody goes on with, for ever."""
        while True:
            await self._sleep(self._idle_s / 4)
            removed = await self.remove_idle()
            if removed:
                log.info("idle_uploads_removed", uploads=removed)

    async def remove_idle(self) -> int:
        """Removes the uploads of which nothing was heard for too long; answers how many."""
        bound = self._clock() - self._idle_s
        self._finished.forget_until(bound)
        idle = [
            upload_id
            for upload_id, session in self._sessions.items()
            if session.used_at <= bound and session.requests == 0 and session.completion is None
        ]
        # All at once, so that none gets a part while the files of another are deleted.
        await self._abandon([self._end(upload_id) for upload_id in idle])
        return len(idle)

    async def _abandon(self, sessions: list[Session]) -> None:
        for session in sessions:
            while session.parts:
                await self._discard(session.owner, session.parts.popitem()[1])
            # The client left, unless it was the node that did not take its parts.
            self._tell(session, 0, "error" if session.trouble else "cancelled", session.trouble)

    async def stop(self) -> None:
        """Ends what is being completed and removes all parts. No request may be going on. Idempotent."""
        await self._jobs.stop()
        self._finished.clear()
        await self._abandon([self._end(upload_id) for upload_id in list(self._sessions)])
