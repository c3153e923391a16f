"""sccache over WebDAV, and as much of WebDAV (RFC 4918) as other clients need to read and write files.

A collection is there because something lies in it; MKCOL has nothing to make. Asked for by a path that
ends in `/` every collection exists: so sccache asks for no parent twice, and writes at once.
"""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED, readable
from undercroft.api.bodies import Body
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.api.webdav_probes import PROBE, PROBE_BYTES, Probes
from undercroft.api.webdav_xml import INFINITE, XML, Resource, multistatus
from undercroft.errors import BadRequestError, InvalidKeyError
from undercroft.storage.collections import Name, collection_exists, group_of, list_collection
from undercroft.storage.layout import artifact_key, safe_component, safe_handle, scoped_key

_ALLOWED = b"DELETE, GET, HEAD, MKCOL, OPTIONS, PROPFIND, PUT"


class _Place(NamedTuple):
    """What a path means: a file, or without a `name` the collection of these `directories`."""

    base: str
    """The path of the project as the client wrote it, percent-encoded anew."""
    account: str
    project: str
    directories: list[str]
    name: str

    def key(self) -> str:
        """The key of the file; raises `InvalidKeyError`."""
        name = safe_component(self.name, "name of the file")
        group = [group_of(self.directories)]
        return artifact_key(self.account, self.project, "webdav", name, group=group)

    def as_collection(self) -> "_Place":
        """The same path with a `/` at its end."""
        return self._replace(directories=[*self.directories, self.name], name="") if self.name else self

    def href(self, name: Name | None = None) -> str:
        """The path, or that of something in this collection, percent-encoded."""
        below = [*self.directories, self.name]
        if name is not None:
            below[-1:] = [name.name] if name.size is not None else [name.name, ""]
        return "/".join([self.base, *(quote(part, safe="") for part in below)])


class WebdavApi:
    """`/webdav/{account}/{project}/...`, any path below."""

    def __init__(self, services: Services) -> None:
        self._entries = services.entries("webdav", services.uploads.webdav_max_bytes, replace=True)
        self._threads = services.artifacts.threads
        self._root = services.artifacts_root
        self._read_timeout_ms = services.uploads.read_timeout_ms
        self._probes = Probes()

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        path = "/webdav/{account}/{project}/{path...}"
        body = "application/octet-stream"
        stored = {201: "stored, or replaced", **NOT_STORED}
        removed = {
            204: "gone",
            400: "bad path",
            403: "a collection",
            404: "was never there",
            413: "not removed",
        }
        files = [
            Route("GET", path, self.get, "Fetch a file", FOUND),
            Route("HEAD", path, self.get, "Ask for a file", FOUND),
            Route("PUT", path, self.put, "Store a file", stored, body=body),
            Route("DELETE", path, self.delete, "Remove a file", removed),
        ]
        return files + [route for one in (path, path.removesuffix("/{path...}")) for route in self._any(one)]

    def _any(self, path: str) -> list[Route]:
        """What collections know as well."""
        described = {207: "what is there", 400: "bad path or depth", 403: "infinite depth", 404: "nothing"}
        made = {201: "may be written to", 400: "bad path", 405: "exists", 415: "it has a body"}
        return [
            Route("OPTIONS", path, self.options, "What can be done", {200: "in the header Allow"}),
            Route("PROPFIND", path, self.propfind, "Describe or list, Depth 0 or 1", described),
            Route("MKCOL", path, self.mkcol, "Make a collection", made),
        ]

    # --- files ------------------------------------------------------------------------------------

    async def get(self, request: Request) -> None:
        """Serves a file."""
        place = _place(request)
        key = place.key()
        if place.name != PROBE:
            await self._entries.serve(request, key)
        elif (probe := self._probe(request, key)) is not None:
            await responses.content(request, 200, probe, b"application/octet-stream")
        else:
            await responses.message(request, 404, "not found")

    async def put(self, request: Request) -> None:
        """Stores a file, over what is there. sccache takes 201 for both, and 202 for an error."""
        place = _place(request)
        key = place.key()
        if place.name == PROBE:
            probe = await Body(request, PROBE_BYTES, self._read_timeout_ms).whole()
            self._probes.put(scoped_key(key, request.caller.scope), probe)
        else:
            await self._entries.store(request, key)
        await responses.empty(request, 201)

    async def delete(self, request: Request) -> None:
        """Removes a file. A collection stays: one request is not to take a whole cache away."""
        place = _place(request)
        if not place.name:
            await responses.message(request, 403, "a collection cannot be removed, only the files in it")
            return
        key = place.key()
        if place.name == PROBE:
            there = self._probes.forget(scoped_key(key, request.caller.scope))
        else:
            there = await self._entries.exists(request, key)
            # Also what was not found: the object store may have it, and not have answered.
            await self._entries.delete(request, key)
        if there:
            await responses.empty(request, 204)
        else:
            await responses.message(request, 404, "not found")

    def _probe(self, request: Request, key: str) -> bytes | None:
        found = (self._probes.get(candidate) for candidate in readable(request, key))
        return next((probe for probe in found if probe is not None), None)

    # --- collections ------------------------------------------------------------------------------

    async def options(self, request: Request) -> None:
        """What clients look at before they believe that this is WebDAV."""
        await responses.empty(
            request, 200, [(b"dav", b"1"), (b"allow", _ALLOWED), (b"ms-author-via", b"DAV")]
        )

    async def propfind(self, request: Request) -> None:
        """Describes a file or collection; with `Depth: 1` also what is directly in it, on this disk.

        The body is not read, so nothing in it can do harm: whatever properties it asks for, the answer has
        all there are, and clients look for theirs in it. The application discards it within bounds.
        """
        place = _place(request)
        depth = request.headers.get(b"depth", b"infinity").strip().lower()
        if depth == b"infinity":
            await responses.content(request, 403, INFINITE, XML)
            return
        if depth not in (b"0", b"1"):
            raise BadRequestError(f"Depth is {depth[:80]!r}: 0 or 1 are answered")
        file = await self._file(request, place) if place.name else None
        if file is not None:
            await responses.content(request, 207, multistatus([file]), XML)
        elif place.name and not await self._collection_exists(request, place):
            await responses.message(request, 404, "not found")
        else:
            await self._describe(request, place.as_collection(), depth == b"1")

    async def _file(self, request: Request, place: _Place) -> Resource | None:
        key = place.key()
        if place.name == PROBE:
            probe = self._probe(request, key)
            return None if probe is None else Resource(place.href(), len(probe))
        found = await self._entries.about(request, key)
        if found is None:
            return None
        try:
            # Of what only the object store has it is not known.
            modified = os.fstat(found.descriptor).st_mtime if found.descriptor >= 0 else 0.0
        finally:
            found.close()
        return Resource(place.href(), found.size, modified)

    async def _describe(self, request: Request, place: _Place, members: bool) -> None:
        names: dict[tuple[str, bool], Name] = {}
        group_of(place.directories)  # bad paths are refused at any depth
        for directory in self._places(request, place) if members else ():
            listed = await self._threads.run(list_collection, directory, place.directories)
            if listed is None:
                # Half a listing would look like the whole to a client that synchronises.
                await responses.message(request, 403, "there is too much in this collection to list it")
                return
            names = {(name.name, name.size is None): name for name in listed} | names
        resources = [Resource(place.href())]
        resources += [
            Resource(place.href(name), name.size, name.modified) for _, name in sorted(names.items())
        ]
        await responses.content(request, 207, await self._threads.run(multistatus, resources), XML)

    async def mkcol(self, request: Request) -> None:
        """Says that a collection may be written to; 405 when something lies in it, as RFC 4918 has it."""
        place = _place(request).as_collection()
        group_of(place.directories)
        if b"transfer-encoding" in request.headers or request.headers.get(b"content-length", b"0") != b"0":
            await responses.message(request, 415, "MKCOL takes no body")
        elif not place.directories or await self._collection_exists(request, place):
            await responses.message(request, 405, "it exists", [(b"allow", _ALLOWED)])
        else:
            await responses.empty(request, 201)

    async def _collection_exists(self, request: Request, place: _Place) -> bool:
        directories = place.as_collection().directories
        try:
            for directory in self._places(request, place):
                if await self._threads.run(collection_exists, directory, directories):
                    return True
        except InvalidKeyError:
            pass  # too long for a collection, not for a file
        return False

    def _places(self, request: Request, place: _Place) -> list[Path]:
        """The directories that hold the groups of the project, for this caller."""
        groups = readable(request, f"{place.account}/{place.project}/webdav")
        return [self._root / key for key in groups]


def _place(request: Request) -> _Place:
    """What the path of a request means; raises `InvalidKeyError`."""
    account, project, *rest = request.parameters
    *directories, name = rest or [""]
    for part in directories:
        safe_component(part, "directory")
    if name:
        safe_component(name, "name of the file")
    base = f"/webdav/{quote(account, safe='')}/{quote(project, safe='')}"
    account, project = safe_handle(account, "account"), safe_handle(project, "project")
    return _Place(base, account, project, directories, name)
