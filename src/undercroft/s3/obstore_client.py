"""The client of the second tier: the contract of `object_store`, kept with the library `obstore`."""

import asyncio
import builtins
import io
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, TypeAlias, cast

import obstore
from obstore.exceptions import GenericError, NotSupportedError

from undercroft.durable import sync_directory, sync_file
from undercroft.errors import ObjectStoreError, SettingsError
from undercroft.s3.object_names import key_of, object_name
from undercroft.s3.object_store import RemoteObject
from undercroft.s3.providers import Provider
from undercroft.s3.store_errors import STORE_ERRORS, Failure, ignores_ranges, read_failure
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

if TYPE_CHECKING:  # these exist for type checkers only
    from obstore import BytesStream, GetResult, ObjectMeta

Operation: TypeAlias = Literal["head", "download", "upload", "delete", "list"]

PAGE_OBJECTS = 1_000
MAX_CHUNK_BYTES = 1 << 20

# Chunks are gathered up to this; the last piece that comes in may take them over it.
GATHER_BYTES = 256 << 10

PART_BYTES = 8 << 20
PARTS_IN_FLIGHT = 2
MAX_PARTS = 9_000  # S3 allows 10000

# How long a cancelled upload may take to give back the parts that are already there.
ABORT_GRACE_S = 1.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class _RefusedError(ObjectStoreError):
    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message, throttled=failure.throttled)
        self.failure = failure


class _Request:
    """One question to the store; `result` is None as long as none was asked."""

    result: str | None = None


class ObstoreClient:
    """An `ObjectStore`."""

    def __init__(self, provider: Provider, telemetry: Events) -> None:
        self._provider = provider
        self._store = provider.store
        self._telemetry = telemetry

    async def head(self, key: str) -> RemoteObject | None:
        """See `ObjectStore`. A 404 to HEAD has no body and may mean the bucket: then GET is asked why."""
        name = object_name(key)
        with self._asked("head", key) as request:
            request.result = "absent"
            try:
                found = await obstore.get_async(self._store, name, options={"head": True})
            except FileNotFoundError:
                # Should it appear just now, it is found after all; its body is given up unread.
                if (late := await self._get_or_absent(name, "head", key)) is None:
                    return None
                found = late
            request.result = "found"
            return self._described(key, found)

    async def get(self, key: str, start: int = 0) -> "_Body | None":
        """See `ObjectStore`."""
        with self._asked("download", key) as request:
            request.result = "absent"
            found = await self._get_or_absent(object_name(key), "download", key, start)
            if found is None:
                return None
            request.result = "found"
            described = self._described(key, found)
            if start >= max(described.size, 1):  # a store that knows ranges has refused it
                raise ObjectStoreError(f"download of {key}: byte {start} is not in it, {described.size} are")
            return _Body(described, found, start)

    async def _get_or_absent(
        self, name: str, operation: Operation, key: str, start: int = 0
    ) -> "GetResult | None":
        try:
            return await self._get_from(name, start)
        except FileNotFoundError as error:
            await self._ensure_absent(error, operation, key)
            return None

    async def _get_from(self, name: str, start: int) -> "GetResult":
        if start:
            try:
                return await obstore.get_async(self._store, name, options={"range": {"offset": start}})
            except GenericError as error:
                if not ignores_ranges(error):
                    raise
        return await obstore.get_async(self._store, name)

    async def _ensure_absent(self, error: FileNotFoundError, operation: Operation, key: str) -> None:
        """Raises unless the store itself is there and only the object is not."""
        if self._provider.directory is not None:
            await self._ensure_directory(operation, key)
            return
        failure = read_failure(error)
        if not (failure.says_absent or failure.may_be_absent):
            _refuse(operation, key, failure)

    async def _ensure_directory(self, operation: Operation, key: str) -> None:
        """A directory that is gone is not an empty one; obstore takes it for that, or makes it anew."""
        directory = self._provider.directory
        if directory is not None and not await asyncio.to_thread(directory.is_dir):
            raise ObjectStoreError(f"{operation} of {key}: the directory {directory} is not there")

    def _described(self, key: str, found: "GetResult") -> RemoteObject:
        digest = None
        if (attribute := self._provider.digest_attribute) is not None:
            digest = found.attributes.get(attribute)
        if digest is not None and not _DIGEST.fullmatch(digest):
            digest = None
        return RemoteObject(key, found.meta["size"], digest, _modified_at(found.meta))

    async def put(self, key: str, file: BinaryIO, size: int, content_sha256: str | None) -> None:
        """See `ObjectStore`."""
        source = _Source(file, size)
        try:
            with self._asked("upload", key) as request:
                await self._ensure_directory("upload", key)
                await self._upload(object_name(key), source, content_sha256)
                await self._write_through(object_name(key))
                request.result = "done"
        except ObjectStoreError:
            if source.error is not None:  # the file is to blame, obstore only handed it on
                raise source.error from None
            raise

    async def _upload(self, name: str, source: "_Source", content_sha256: str | None) -> None:
        attribute = self._provider.digest_attribute
        attributes = {attribute: content_sha256} if attribute and content_sha256 else None
        in_parts = source.left > PART_BYTES
        uploading = obstore.put_async(
            self._store,
            name,
            cast("IO[bytes]", source),
            attributes=attributes,
            use_multipart=in_parts,
            chunk_size=max(PART_BYTES, -(-source.left // MAX_PARTS)),
            max_concurrency=PARTS_IN_FLIGHT,
        )
        upload = cast("asyncio.Future[Any]", uploading)  # that it is, although typed as a coroutine
        try:
            await asyncio.shield(upload)
        except asyncio.CancelledError:
            # If obstore was cancelled it would leave the parts where they are, invisible and paid for.
            # A source that fails makes it take them back.
            source.abandon()
            if in_parts:
                await asyncio.wait([upload], timeout=ABORT_GRACE_S)
            raise
        finally:
            upload.cancel()

    async def _write_through(self, name: str) -> None:
        """Makes a file durable; providers promise that with their answer."""
        if (root := self._provider.directory) is None:
            return

        def sync() -> None:
            sync_file(root / name)
            for folder in (root / name).parents[: name.count("/") + 1]:
                sync_directory(folder)

        await asyncio.to_thread(sync)

    async def delete(self, keys: Sequence[str]) -> None:
        """See `ObjectStore`. Providers that complain of an absent object are asked one by one."""
        if not keys:
            return
        with self._asked("delete", keys[0]) as request:
            await self._ensure_directory("delete", keys[0])
            try:
                await obstore.delete_async(self._store, [object_name(key) for key in keys])
            except FileNotFoundError as error:
                await self._ensure_absent(error, "delete", keys[0])
                await self._delete_each(keys)
            request.result = "done"

    async def _delete_each(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                await obstore.delete_async(self._store, [object_name(key)])
            except FileNotFoundError as error:
                await self._ensure_absent(error, "delete", key)

    async def list(self, prefix: str) -> "AsyncGenerator[builtins.list[RemoteObject], None]":
        """See `ObjectStore`."""
        name = object_name(prefix.rstrip("/"))
        pages = obstore.list(self._store, name or None, chunk_size=PAGE_OBJECTS)
        first = True
        while True:
            with self._asked("list", prefix) as request:
                if first:
                    await self._ensure_directory("list", prefix)
                page = await anext(pages, None)
                if page or first:
                    request.result = "done"
            if page is None:
                return
            first = False
            yield [described for meta in page if (described := _listed(meta)) is not None]

    async def presigned_url(self, key: str, expires_s: int) -> str | None:
        """See `ObjectStore`. No request, unless credentials have to be fetched first."""
        if (signer := self._provider.signer) is None:
            return None
        with _translated("presigned URL", key):
            try:
                expires = timedelta(seconds=expires_s)
                return await obstore.sign_async(signer, "GET", object_name(key), expires)
            except NotSupportedError:
                return None

    async def check(self) -> None:
        """See `ObjectStore`."""
        pages = self.list("")
        try:
            await anext(pages, None)
        except _RefusedError as error:
            if error.failure.is_about_settings:
                raise SettingsError(_advice(self._provider.url, error.failure)) from None
            raise
        finally:
            await pages.aclose()

    @contextmanager
    def _asked(self, operation: Operation, subject: str) -> Iterator[_Request]:
        """Tells of one request, and turns what obstore raises into `ObjectStoreError`.

        A request that was cancelled has no result and is not told of.
        """
        request = _Request()
        began = perf_counter()
        try:
            with _translated(operation, subject):
                yield request
        except ObjectStoreError as error:
            request.result = "throttled" if error.throttled else "error"
            raise
        except BaseException:
            request.result = None
            raise
        finally:
            if request.result is not None:
                measured = {"duration_ms": (perf_counter() - began) * 1_000}
                metadata = {"operation": operation, "result": request.result}
                self._telemetry.emit(events.OBJECT_STORE_REQUEST, measured, metadata)


class _Body:
    """A `RemoteBody`."""

    def __init__(self, described: RemoteObject, found: "GetResult", start: int) -> None:
        begins, ends = found.range
        self.object = described
        self._to_drop = start - begins
        self._left = ends - begins
        self._stream: BytesStream | None = found.stream(GATHER_BYTES)

    async def chunks(self) -> AsyncIterator[bytes]:
        while (piece := await self._next()) is not None:
            dropped = min(self._to_drop, len(piece))
            self._to_drop -= dropped
            for at in range(dropped, len(piece), MAX_CHUNK_BYTES):
                yield piece[at : at + MAX_CHUNK_BYTES]  # all of it, as a rule: then this copies nothing
        if self._left:
            raise self._error(f"the body ended {self._left} bytes early")

    async def _next(self) -> bytes | None:
        """The next bytes; the stream is held by no one else, so that `close` ends it."""
        if self._stream is None:
            raise self._error("it was closed")
        try:
            piece = await anext(self._stream, None)
        except STORE_ERRORS as error:
            self.close()
            _refuse("download", self.object.key, read_failure(error))
        if piece is not None:
            if len(piece) > self._left:
                raise self._error("the body is longer than announced")
            self._left -= len(piece)
        return piece

    def _error(self, reason: str) -> ObjectStoreError:
        self.close()
        return ObjectStoreError(f"download of {self.object.key}: {reason}")

    def close(self) -> None:
        self._stream = None


class _AbandonedError(OSError):
    """Stops an upload that nobody waits for any more."""


class _Source:
    """The first bytes of a file, for obstore to read on a thread of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._begun = False
        self._abandoned = False
        self.left = size
        self.error: OSError | None = None

    def read(self, limit: int = -1) -> bytes:
        """At most `limit` bytes; none only at the end."""
        try:
            data = self._read(self.left if limit < 0 else min(limit, self.left))
        except (OSError, ValueError) as error:
            if not isinstance(error, _AbandonedError):
                self.error = error if isinstance(error, OSError) else OSError(str(error))
            raise
        return data

    def _read(self, wanted: int) -> bytes:
        self._ensure_wanted()
        if not self._begun:
            self._file.seek(0)
            self._begun = True
        data = self._file.read(wanted)
        self._ensure_wanted()  # meanwhile the file may have been closed and its number given away
        if wanted and not data:
            raise OSError(f"the file ended {self.left} bytes early")
        self.left -= len(data)
        return data

    def _ensure_wanted(self) -> None:
        if self._abandoned:
            raise _AbandonedError("the upload was cancelled")

    def seek(self, offset: int, whence: int = 0) -> int:
        """Obstore wants a file to have it; it calls it only to find the size, which it is told."""
        raise io.UnsupportedOperation(f"seek to {offset} from {whence}: it is read once, from its beginning")

    def abandon(self) -> None:
        """From now on reading fails."""
        self._abandoned = True


@contextmanager
def _translated(operation: str, subject: str) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        _refuse(operation, subject, read_failure(error))


def _refuse(operation: str, subject: str, failure: Failure) -> NoReturn:
    # Not `from error`: its text holds URLs and bodies, and with them perhaps credentials.
    raise _RefusedError(f"{operation} of {subject or 'all objects'}: {failure.reason}", failure) from None


def _advice(url: str, failure: Failure) -> str:
    if failure.status in (401, 403):
        what = "check access_key_id, secret_access_key and their rights to list, read, write and delete"
    elif failure.is_about_region:
        what = "set region, or endpoint, to where the bucket is"
    else:
        what = "create the bucket, or correct url or endpoint"
    return f"object store {url}: {failure.reason}; {what}"


def _listed(meta: "ObjectMeta") -> RemoteObject | None:
    key = key_of(meta["path"])
    return None if key is None else RemoteObject(key, meta["size"], None, _modified_at(meta))


def _modified_at(meta: "ObjectMeta") -> int:
    return (meta["last_modified"] - _EPOCH) // _MICROSECOND
