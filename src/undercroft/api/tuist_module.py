"""Tuist's modules: built frameworks, fetched whole and uploaded in parts."""

import re
from typing import Annotated

import msgspec

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND
from undercroft.api.bodies import Body
from undercroft.api.request import Request, parse_query
from undercroft.api.routing import JSON, OCTETS, Route
from undercroft.api.services import Services
from undercroft.api.tuist import (
    ANNOUNCED,
    CHECKSUM,
    FOUND_OR_ELSEWHERE,
    NOT_STORED_NOW,
    checksum,
    checksum_in,
)
from undercroft.api.tuist_project import HANDLES, project_in
from undercroft.errors import BadRequestError
from undercroft.multipart import Owner
from undercroft.storage.layout import module_key, scoped_key

MAX_PART_NUMBER = 10_000

# Room for all part numbers several times over.
COMPLETE_MAX_BYTES = 1 << 20

DEFAULT_CATEGORY = "builds"

CATEGORY = ("cache_category",)

_PART_NUMBER = re.compile(r"[0-9]{1,5}")

NUMBER = {"type": "integer", "minimum": 1, "maximum": MAX_PART_NUMBER}

BEGUN = {
    200: "the id of the upload; null when the module is stored already",
    400: "bad parameters",
    503: "try again",
    507: "no room for another upload now, or too many of the project",
}
NOT_TAKEN = {
    **NOT_STORED_NOW,
    404: "no such upload: completed, removed after a pause, of another project, or never begun",
}
TAKEN = {204: "here", **NOT_TAKEN, 422: "not the announced checksum, or all parts together too large"}
COMPLETED = {
    204: "stored, or already there, also for who asks for the same again",
    **NOT_TAKEN,
    400: "not the parts that arrived: try again",
    404: "no such upload: completed otherwise, removed after a pause, of another project, or never begun",
}


# For the document only: what is wrong with a body is told in words of our own.
PartNumber = Annotated[int, msgspec.Meta(extra_json_schema=NUMBER)]
Digest = Annotated[str, msgspec.Meta(extra_json_schema=ANNOUNCED[CHECKSUM.decode()])]


class Complete(msgspec.Struct, frozen=True, gc=False):
    """The body that completes an upload."""

    parts: list[PartNumber]
    checksum_sha256: Digest | None = None


class Begun(msgspec.Struct, frozen=True, gc=False):
    """The answer to who begins an upload."""

    upload_id: str | None


_decoder = msgspec.json.Decoder(Complete)


class TuistModuleApi:
    """`/api/cache/module/...`, wire-compatible with the existing client. The `{id}` of a path is ignored."""

    def __init__(self, services: Services) -> None:
        limits = services.uploads
        self._modules = services.entries("module", limits.module_max_bytes, replace=False, redirects=True)
        self._uploads = services.multipart
        self._part_max_bytes = limits.module_part_max_bytes
        self._read_timeout_ms = limits.read_timeout_ms

    def routes(self) -> list[Route]:
        """The routes of modules."""
        one = "/api/cache/module/{id}"
        there = {204: "on disk or in the object store", 400: FOUND[400], 404: FOUND[404]}
        named = (*HANDLES, "hash", "name")
        return [
            Route("GET", one, self.get, "Fetch a module", FOUND_OR_ELSEWHERE, named, optional=CATEGORY),
            Route("HEAD", one, self.head, "Ask for a module", there, named, optional=CATEGORY),
            *self._multipart_routes(named),
        ]

    def _multipart_routes(self, named: tuple[str, ...]) -> list[Route]:
        path = "/api/cache/module/"
        numbered = (*HANDLES, "upload_id", "part_number")
        ended = (*HANDLES, "upload_id")
        return [
            Route(
                "POST",
                f"{path}start",
                self.start,
                "Begin the upload of a module",
                BEGUN,
                named,
                optional=CATEGORY,
                returns={200: Begun},
            ),
            Route(
                "POST",
                f"{path}part",
                self.part,
                "Send a part of a module",
                TAKEN,
                numbered,
                OCTETS,
                schemas={"part_number": NUMBER},
                headers=ANNOUNCED,
            ),
            Route(
                "POST",
                f"{path}complete",
                self.complete,
                "Store a module",
                COMPLETED,
                ended,
                JSON,
                accepts=Complete,
            ),
        ]

    # --- asking -----------------------------------------------------------------------------------

    async def get(self, request: Request) -> None:
        """Serves a module."""
        await self._modules.serve(request, _key(request), digest_header=CHECKSUM)

    async def head(self, request: Request) -> None:
        """204 if GET would find it."""
        if await self._modules.exists(request, _key(request)):
            await responses.empty(request, 204)
        else:
            await responses.message(request, 404, "not found")

    # --- uploading --------------------------------------------------------------------------------

    async def start(self, request: Request) -> None:
        """Begins an upload unless there is nothing to upload."""
        key = _key(request)
        upload_id = None
        if not await self._modules.is_stored(request, key):
            own_key = scoped_key(key, request.caller.scope)
            upload_id = self._uploads.start(_owner(request), own_key, self._modules.origin(request))
        await responses.json(request, 200, Begun(upload_id))

    async def part(self, request: Request) -> None:
        """Takes a part in."""
        owner, query = _owner(request), parse_query(request.query_string)
        upload_id, number = _required(query, "upload_id"), _part_number(query)
        expected_sha256 = checksum_in(request)
        self._uploads.expect(owner, upload_id)
        body = Body(request, self._part_max_bytes, self._read_timeout_ms)
        await self._uploads.put_part(
            owner,
            upload_id,
            number,
            body.chunks(),
            declared_size=body.declared,
            expected_sha256=expected_sha256,
        )
        await responses.empty(request, 204)

    async def complete(self, request: Request) -> None:
        """Makes the parts a module."""
        owner, query = _owner(request), parse_query(request.query_string)
        upload_id = _required(query, "upload_id")
        asked = _parse(await Body(request, COMPLETE_MAX_BYTES, self._read_timeout_ms).whole())
        given = asked.checksum_sha256
        expected = None if given is None else checksum(given, "checksum_sha256")
        await self._uploads.complete(owner, upload_id, asked.parts, expected)
        await responses.empty(request, 204)


def _owner(request: Request) -> Owner:
    return Owner(*project_in(request), request.caller.scope)


def _key(request: Request) -> str:
    account, project = project_in(request)
    query = parse_query(request.query_string)
    category = query.get("cache_category", DEFAULT_CATEGORY)
    return module_key(account, project, category, _required(query, "hash"), _required(query, "name"))


def _required(query: dict[str, str], name: str) -> str:
    if not query.get(name):
        raise BadRequestError(f"missing in the query: {name}")
    return query[name]


def _part_number(query: dict[str, str]) -> int:
    text = _required(query, "part_number")
    number = int(text) if _PART_NUMBER.fullmatch(text) else 0
    if not 1 <= number <= MAX_PART_NUMBER:
        raise BadRequestError(f"part_number is {text[:80]!r}: it must be 1 to {MAX_PART_NUMBER}")
    return number


def _parse(body: bytes) -> Complete:
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not what completes an upload: {error}") from error
