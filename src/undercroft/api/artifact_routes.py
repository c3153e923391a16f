"""What every dialect does with artifacts: serve one, store one, and tell how it went."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from sys import intern
from typing import NamedTuple, TypeAlias

from undercroft import errors as node_errors
from undercroft.api import responses
from undercroft.api.accel import Accel
from undercroft.api.bodies import Body
from undercroft.api.request import Request
from undercroft.artifacts import CacheArtifacts
from undercroft.http.repeats import Answer, Head, Repeat
from undercroft.read_through import Lookup, ReadThrough, Source
from undercroft.storage.layout import project_of, scoped_key
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.storage.upload import Origin, Stored
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

# What a route can answer, for `/api/spec`.
FOUND = {
    200: "the artifact",
    206: "a part of it",
    304: "unchanged",
    400: "bad parameters",
    404: "no such artifact",
    416: "no such part",
}
NOT_STORED = {
    400: "bad parameters or an incomplete body",
    408: "the body stopped coming",
    413: "not stored: too large, or no room now",
}

USER_AGENT_BYTES = 200


class Admitted(NamedTuple):
    """What of an artifact that was looked into is to be served, and with which headers of its own."""

    artifact: OpenArtifact
    headers: list[tuple[bytes, bytes]]


Admit: TypeAlias = Callable[[OpenArtifact], Awaitable[Admitted | None]]
"""Looks into an artifact; None: nobody may be given it, which is a miss. It does not close it."""

Look: TypeAlias = Callable[[str, bool, float], Awaitable[Lookup]]
"""Looks for an artifact in the object store; whether it must be known to be whole, and until when to wait."""

Decode: TypeAlias = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]
"""Makes the bytes to be stored of those that arrive; it bounds them itself."""


@dataclass
class _Upload:
    result: str = "error"
    reason: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class ArtifactRoutes:
    """The artifact service as one dialect uses it.

    `tool` is the label under which it is counted. With `replace` a write heals whatever is there.
    """

    artifacts: CacheArtifacts
    lookup: ReadThrough
    telemetry: Events
    tool: str
    replace: bool
    max_bytes: int
    read_timeout_ms: int
    redirects: bool = False
    """Whether clients of this dialect can be sent to the object store."""
    caching: tuple[tuple[bytes, bytes], ...] = ()
    """What proxies and clients may do with a copy, as headers of every answer with an artifact."""
    surely: bool = False
    """Whether not a byte is sent before all are known to be right: a tool may not survive an end too soon."""
    accel: Accel | None = None
    """Where a proxy in front sends what is on disk."""

    async def serve(
        self, request: Request, key: str, *, digest_header: bytes | None = None, admit: Admit | None = None
    ) -> None:
        """Answers GET and HEAD: 200, 206, 304 or 416, and 404 for a miss; 307 where redirects are wanted.

        With `admit` it is looked into before, and what that does not admit is a miss.
        """
        result, sent = "error", 0
        try:
            if self.redirects and request.caller.scope is None and await self._redirected(request, key):
                result = "s3_hit"
                return
            # What is to be looked into has to be here, for HEAD as well.
            asks = request.method == "HEAD" and admit is None
            admitted, source = await self._find(
                request, key, self.lookup.ask if asks else self.lookup.fetch, admit
            )
            if admitted is None:
                result = "s3_miss" if source is Source.NOWHERE else "miss"
                await responses.message(request, 404, "not found")
                return
            found, headers = admitted
            try:
                headers = [*self.caching, *headers, *_digest(found, digest_header)]
                sent = await self._send(request, found, headers)
                result = "hit" if source is Source.DISK else "s3_hit"
                if request.may_come_again and source is Source.DISK and admit is None:
                    request.repeat = self._repeat(request, key, found, headers)
            finally:
                found.close()
        finally:
            metadata = {"tool": self.tool, "project": project_of(key), "result": result}
            self.telemetry.emit(events.DOWNLOAD, {"bytes": sent}, metadata)

    async def _send(self, request: Request, found: OpenArtifact, headers: list[tuple[bytes, bytes]]) -> int:
        """Answers the bytes sent, or left to the proxy."""
        if self.accel is not None and request.method == "GET":
            location = self.accel.location(found)
            if location is not None:
                return await responses.handed_over(request, found, headers, location)
        return await responses.artifact(request, found, headers)

    def _repeat(
        self, request: Request, key: str, found: OpenArtifact, headers: list[tuple[bytes, bytes]]
    ) -> Repeat | None:
        """How the same is served again, as long as it is the same: small, and asked for whole."""
        scoped = request.caller.scope is not None
        if scoped or self.accel is not None or not responses.is_repeatable(request, found):
            return None
        head = responses.repeated_head(found, headers)
        metadata = {"tool": self.tool, "project": intern(project_of(key)), "result": "hit"}
        return partial(self._serve_again, key, found.content_sha256, head, metadata)

    def _serve_again(
        self, key: str, sha256: str | None, head: Head, metadata: dict[str, str], _body: bytes
    ) -> Answer | None:
        found = self.artifacts.read_again(key)
        if found is None:
            return None
        try:
            body = responses.at_once(found) if found.content_sha256 == sha256 else None
        finally:
            found.close()
        if body is None:
            return None
        self.telemetry.emit(events.DOWNLOAD, {"bytes": len(body)}, metadata)
        return Answer(200, head, body)

    async def peek(self, request: Request, key: str, admit: Admit) -> Admitted | None:
        """What GET would serve, closed already: its size and headers. Not counted as a download."""
        admitted, _ = await self._find(request, key, self.lookup.fetch, admit)
        if admitted is not None:
            admitted.artifact.close()
        return admitted

    async def content(self, request: Request, key: str, max_bytes: int) -> bytes | None:
        """A small artifact whole; None if it is not there. Not counted as a download.

        Raises `TooLargeError` if it has more than `max_bytes`.
        """
        admitted, _ = await self._find(request, key, self.lookup.fetch, None)
        if admitted is None:
            return None
        found = admitted.artifact
        try:
            if found.size > max_bytes:
                raise node_errors.TooLargeError(f"{key} has {found.size} bytes, more than {max_bytes}")
            return await responses.beginning(found, found.size)
        finally:
            found.close()

    async def _redirected(self, request: Request, key: str) -> bool:
        """Whether the client was sent to the object store."""
        url = await self.lookup.redirect_url(key) if request.method == "GET" else None
        if url is None:
            return False
        # Not to be kept: the URL expires, and next time the artifact is on disk.
        headers = [(b"location", url.encode()), (b"cache-control", b"no-store")]
        await responses.empty(request, 307, headers)
        return True

    async def store(
        self,
        request: Request,
        key: str,
        *,
        expected_sha256: str | None = None,
        preamble: bytes = b"",
        decode: Decode | None = None,
        admit: Admit | None = None,
    ) -> Stored:
        """Stores the body under the key; raises what the service raises. The dialect answers.

        The `preamble` goes in front of it into the same file. What `decode` makes of the body is stored
        instead; `expected_sha256` is the digest of all that is stored. What is there and not admitted
        counts as damaged: it is replaced even where entries stay, or it would stay and never be served.
        """
        own = scoped_key(key, request.caller.scope)
        async with AsyncExitStack() as decoding:
            upload = decoding.enter_context(self._told(key))
            body = Body(request, self.max_bytes, self.read_timeout_ms)
            chunks, size = body.chunks(), body.declared
            if decode is not None:
                # Closed at once when nothing more is taken of it: it may hold what others wait for.
                chunks, size = await decoding.enter_async_context(aclosing(decode(chunks))), None
            if preamble:
                chunks, size = _led_by(preamble, chunks), None if size is None else size + len(preamble)
            stored = await self.artifacts.store(
                own,
                chunks,
                declared_size=size,
                replace=self.replace or (admit is not None and await self._is_useless(own, admit)),
                expected_sha256=expected_sha256,
                origin=self.origin(request),
            )
            upload.result, upload.bytes = stored.value, body.received
        return stored

    def origin(self, request: Request) -> Origin:
        """Who writes. What a client calls itself may be anything, and is shown to people."""
        agent = request.headers.get(b"user-agent", b"")[:USER_AGENT_BYTES].decode("latin-1")
        printable = "".join(character if character.isprintable() else "?" for character in agent)
        return Origin(request.caller.label, self.tool, printable or None)

    @contextmanager
    def _told(self, key: str) -> Iterator[_Upload]:
        """Tells how the upload inside ended, whichever way that was."""
        upload = _Upload()
        try:
            yield upload
        except (node_errors.IncompleteBodyError, asyncio.CancelledError):
            # The client left, or the node stops: nothing was wrong with the upload itself.
            upload.result = "cancelled"
            raise
        except Exception as error:
            upload.reason = type(error).__name__
            raise
        finally:
            metadata = {
                "tool": self.tool,
                "project": project_of(key),
                "result": upload.result,
                "reason": upload.reason,
            }
            self.telemetry.emit(events.UPLOAD, {"bytes": upload.bytes}, metadata)

    async def store_unless_there(
        self,
        request: Request,
        key: str,
        expected_sha256: str | None,
        *,
        preamble: bytes = b"",
        same: Admit | None = None,
        admit: Admit | None = None,
    ) -> Stored:
        """Like `store`; what is there already is not compared, the body is only read to its end.

        With `same` what that does not admit is not there.
        """
        there = await self._stored_key(request, key, same)
        if there is None:
            return await self.store(
                request, key, expected_sha256=expected_sha256, preamble=preamble, admit=admit
            )
        with self._told(key) as upload:
            await Body(request, self.max_bytes, self.read_timeout_ms).drain()
            # Whoever stored it may still wait for its commit; until then "it is there" promises too much.
            await self.artifacts.settled(there)
            upload.result = Stored.EXISTS.value
        return Stored.EXISTS

    async def exists(self, request: Request, key: str) -> bool:
        """Whether GET would find it, on disk or in the object store. Not counted as a download."""
        found = await self.about(request, key)
        if found is not None:
            found.close()
        return found is not None

    async def about(self, request: Request, key: str) -> OpenArtifact | None:
        """What GET would find, like `exists`; whoever gets it closes it."""
        admitted, _ = await self._find(request, key, self.lookup.ask, None)
        return None if admitted is None else admitted.artifact

    async def is_stored(self, request: Request, key: str) -> bool:
        """Whether there is nothing left to upload; then that counts as an upload of what was there.

        Unlike `exists` it waits until that can be relied on. Raises like `CacheArtifacts.settled`.
        """
        if self.artifacts.is_doomed(key) or not await self.exists(request, key):
            return False
        with self._told(key) as upload:
            for candidate in readable(request, key):
                await self.artifacts.settled(candidate)
            upload.result = Stored.EXISTS.value
        return True

    async def delete(self, request: Request, key: str) -> None:
        """Removes what is stored under the key, here and in the object store; nothing is fine as well."""
        await self.lookup.delete(scoped_key(key, request.caller.scope))

    async def _stored_key(self, request: Request, key: str, same: Admit | None) -> str | None:
        """Under which of the keys the caller may read it lies, whole, on this disk.

        What GET comes to first decides: to have the same behind it is of no use.
        """
        for candidate in readable(request, key):
            if self.artifacts.find(candidate) is None or self.artifacts.is_doomed(candidate):
                continue
            found = await self.artifacts.read(candidate, self.surely)
            if found is None:
                continue
            admitted = await _admitted(found, same)
            if admitted is None:
                return None
            admitted.artifact.close()
            return candidate
        return None

    async def _is_useless(self, key: str, admit: Admit) -> bool:
        """Whether what is stored under the key on this disk is not admitted."""
        found = await self.artifacts.read(key, self.surely)
        if found is None:
            return False  # a file that is damaged is healed by who stores
        admitted = await _admitted(found, admit)
        if admitted is not None:
            admitted.artifact.close()
        return admitted is None

    async def _find(
        self, request: Request, key: str, look: Look, admit: Admit | None
    ) -> tuple[Admitted | None, Source]:
        """The first that is admitted of what the caller may be served, and where it was; else why not.

        The object store is asked only if nothing on disk will do: of a scope's own object and what is
        trusted on disk it is the latter, which costs no wait, and is no less right.
        """
        source, elsewhere = Source.NOWHERE, []
        for candidate in readable(request, key):
            found = await self.lookup.on_disk(candidate, self.surely)
            if found is None:
                elsewhere.append(candidate)
                continue
            admitted = await _admitted(found, admit)
            if admitted is not None:
                return admitted, Source.DISK
            source = Source.UNKNOWN
        deadline = self.lookup.deadline()
        for candidate in elsewhere:
            found, source = await look(candidate, self.surely, deadline)
            if found is None:
                continue
            admitted = await _admitted(found, admit)
            if admitted is not None:
                return admitted, source
            source = Source.UNKNOWN
        return None, source


async def _admitted(found: OpenArtifact, admit: Admit | None) -> Admitted | None:
    """What `admit` makes of it; closed unless that is something."""
    if admit is None:
        return Admitted(found, [])
    admitted = None
    try:
        admitted = await admit(found)
    finally:
        if admitted is None:
            found.close()
    return admitted


async def _led_by(preamble: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield preamble
    async for chunk in chunks:
        yield chunk


def readable(request: Request, key: str) -> tuple[str, ...]:
    """What the caller may be served for a key: of its own scope first, then what is trusted."""
    return (key,) if request.caller.scope is None else (scoped_key(key, request.caller.scope), key)


def _digest(found: OpenArtifact, header: bytes | None) -> list[tuple[bytes, bytes]]:
    if header is None or found.content_sha256 is None:
        return []
    return [(header, found.content_sha256.encode())]
