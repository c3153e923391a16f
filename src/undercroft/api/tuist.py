"""Tuist's cache API: key values, CAS artifacts and Gradle entries, with the project in the query."""

import re
from collections.abc import Callable
from functools import partial
from sys import intern
from typing import Annotated, TypeAlias

import msgspec

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED
from undercroft.api.bodies import Body
from undercroft.api.request import Request
from undercroft.api.routing import COMPONENT, JSON, OCTETS, Route
from undercroft.api.services import Services
from undercroft.api.tuist_project import HANDLES, project_in
from undercroft.buffers import Ticket
from undercroft.errors import BadRequestError
from undercroft.http.repeats import Answer, Settle
from undercroft.storage.layout import artifact_key, key_value_key, safe_component
from undercroft.storage.upload import Stored
from undercroft.telemetry import events

CHECKSUM = b"tuist-checksum-sha256"

_CHECKSUM = re.compile(r"[0-9a-f]{64}")

# What is told of each request, made once: this is the hot path.
ONE = {"count": 1}

JSON_TYPE = (b"content-type", b"application/json")

# Of a request that does not say, or not rightly.
NO_PROJECT = "(unknown)"

STORED = Answer(204, (), b"")

NOT_STORED_NOW = {
    **NOT_STORED,
    422: "not the announced checksum",
    503: "not stored, try again",
    507: "no room now",
}

FOUND_OR_ELSEWHERE = {**FOUND, 307: "in the object store, at the location given"}

ANNOUNCED = {CHECKSUM.decode(): {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}}

Name = Annotated[str, msgspec.Meta(extra_json_schema=dict(COMPONENT))]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One value of a key."""

    value: str


class KeyValuePut(msgspec.Struct, frozen=True, gc=False):
    """The body of a key value PUT."""

    cas_id: Name
    entries: Annotated[list[Entry], msgspec.Meta(extra_json_schema={"minItems": 1})]


class Payload(msgspec.Struct, frozen=True, gc=False):
    """What is stored for a key, and what GET answers, as it is."""

    entries: list[Entry]


RowKey: TypeAlias = Callable[[str], str]
"""The key of the row of a `cas_id`."""

_decoder = msgspec.json.Decoder(KeyValuePut)
_encoder = msgspec.json.Encoder()


class TuistApi:
    """`/api/cache/...`, wire-compatible with the existing client."""

    def __init__(self, services: Services) -> None:
        uploads = services.uploads
        self.key_values = services.key_values
        self.telemetry = services.telemetry
        # The one client that is known to follow redirects.
        self.cas = services.entries("cas", uploads.cas_max_bytes, replace=False, redirects=True)
        self.gradle = services.entries("gradle", uploads.gradle_max_bytes, replace=False, redirects=True)
        self.key_value_max_bytes = uploads.key_value_max_bytes
        self.read_timeout_ms = uploads.read_timeout_ms

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        return [*self._key_value_routes(), *self._cas_routes(), *self._gradle_routes()]

    def _key_value_routes(self) -> list[Route]:
        values = {200: "the values in their order", 400: "bad parameters", 404: "no such key"}
        stored = {
            204: "stored",
            400: "malformed JSON, missing fields or empty entries",
            408: "the body stopped coming",
            413: "body too large",
            503: "not stored, try again",
        }
        one = "/api/cache/keyvalue/{cas_id}"
        put = "/api/cache/keyvalue"
        replace, fetch = "Replace the values of a key", "Fetch the values of a key"
        found = {200: Payload}
        return [
            Route("PUT", put, self.put, replace, stored, HANDLES, JSON, accepts=KeyValuePut),
            Route("GET", one, self.get, fetch, values, HANDLES, returns=found),
            Route(
                "PUT",
                one,
                self.get,
                f"{fetch}, as an old client does",
                values,
                HANDLES,
                returns=found,
                right="read",
            ),
        ]

    def _cas_routes(self) -> list[Route]:
        path = "/api/cache/cas/{id}"
        stored = {204: "stored, or already there", **NOT_STORED_NOW}
        return [
            Route("GET", path, self.get_cas, "Fetch a CAS artifact", FOUND_OR_ELSEWHERE, HANDLES),
            Route("HEAD", path, self.get_cas, "Ask for a CAS artifact", FOUND, HANDLES),
            Route(
                "POST",
                path,
                self.post_cas,
                "Store a CAS artifact",
                stored,
                HANDLES,
                OCTETS,
                headers=ANNOUNCED,
            ),
        ]

    def _gradle_routes(self) -> list[Route]:
        path = "/api/cache/gradle/{key}"
        stored = {200: "already there", 201: "stored", **NOT_STORED_NOW}
        return [
            Route("GET", path, self.get_gradle, "Fetch a Gradle entry", FOUND_OR_ELSEWHERE, HANDLES),
            Route("HEAD", path, self.get_gradle, "Ask for a Gradle entry", FOUND, HANDLES),
            Route(
                "PUT",
                path,
                self.put_gradle,
                "Store a Gradle entry",
                stored,
                HANDLES,
                OCTETS,
                headers=ANNOUNCED,
            ),
        ]

    # --- key values -------------------------------------------------------------------------------

    async def put(self, request: Request) -> None:
        """Replaces all values of a key; the last write wins."""
        result, where = "error", NO_PROJECT
        try:
            account, project = project_in(request)
            where = f"{account}/{project}"
            body = Body(request, self.key_value_max_bytes, self.read_timeout_ms)
            row_key = partial(key_value_key, account, project, scope=request.caller.scope)
            await self.key_values.put(*_row_of(await body.whole(), row_key))
            result = "success"
        finally:
            self.telemetry.emit(events.KEY_VALUE_PUT, ONE, {"result": result, "project": where})
        if request.may_come_again:
            request.repeat = partial(self._begin_put, row_key, intern(where))
        await responses.empty(request, 204)

    def _begin_put(self, row_key: RowKey, project: str, body: bytes) -> Settle | None:
        """Begins with another body under the same head. Raises what `_row_of` raises."""
        ticket = self.key_values.begin_put(*_row_of(body, row_key))
        return None if ticket is None else partial(self._settled, ticket, project)

    async def _settled(self, ticket: Ticket, project: str) -> Answer:
        result = "error"
        try:
            await self.key_values.settled(ticket)
            result = "success"
        finally:
            self.telemetry.emit(events.KEY_VALUE_PUT, ONE, {"result": result, "project": project})
        return STORED

    async def get(self, request: Request) -> None:
        """Answers the values of a key."""
        account, project = project_in(request)
        cas_id, scope = _component(request, "cas_id"), request.caller.scope
        own, where = key_value_key(account, project, cas_id, scope), f"{account}/{project}"
        answer = self._answer(own, where)
        if answer is None and scope is not None:
            answer = self._answer(key_value_key(account, project, cas_id), where)
        if answer is None:
            self.telemetry.emit(events.KEY_VALUE_GET, ONE, {"result": "miss", "project": where})
            await responses.message(request, 404, "no values are stored under this key")
            return
        if request.may_come_again and scope is None and request.method == "GET":
            request.repeat = partial(self._answer_again, own, intern(where))
        await responses.whole(request, answer)

    def _answer(self, key: str, project: str) -> Answer | None:
        """The payload of a row key; None for a miss, which is not counted."""
        payload = self.key_values.get(key)
        if payload is None:
            return None
        self.telemetry.emit(events.KEY_VALUE_GET, ONE, {"result": "hit", "project": project})
        body = payload.encode()
        return Answer(200, (JSON_TYPE, (b"content-length", b"%d" % len(body))), body)

    def _answer_again(self, key: str, project: str, _body: bytes) -> Answer | None:
        return self._answer(key, project)

    # --- artifacts --------------------------------------------------------------------------------

    async def get_cas(self, request: Request) -> None:
        """Serves a CAS artifact."""
        await self.cas.serve(request, _artifact(request, "xcode", "id"), digest_header=CHECKSUM)

    async def post_cas(self, request: Request) -> None:
        """Stores a CAS artifact unless it is there."""
        key = _artifact(request, "xcode", "id")
        await self.cas.store_unless_there(request, key, checksum_in(request))
        await responses.empty(request, 204)

    async def get_gradle(self, request: Request) -> None:
        """Serves a Gradle entry."""
        await self.gradle.serve(request, _artifact(request, "gradle", "key"), digest_header=CHECKSUM)

    async def put_gradle(self, request: Request) -> None:
        """Stores a Gradle entry unless it is there."""
        key = _artifact(request, "gradle", "key")
        stored = await self.gradle.store_unless_there(request, key, checksum_in(request))
        await responses.empty(request, 201 if stored is Stored.CREATED else 200)


def _row_of(body: bytes, row_key: RowKey) -> tuple[str, str]:
    """Key and payload of the row. Raises `BadRequestError`, `InvalidKeyError`."""
    written = _parse(body)
    key = row_key(safe_component(written.cas_id, "cas_id"))
    return key, _encoder.encode(Payload(written.entries)).decode()


def _parse(body: bytes) -> KeyValuePut:
    try:
        written = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not what a key value PUT sends: {error}") from error
    if not written.entries:
        raise BadRequestError("entries is empty: a key needs at least one value")
    return written


def _component(request: Request, what: str) -> str:
    return safe_component(request.parameters[0], what)


def _artifact(request: Request, kind: str, parameter: str) -> str:
    """The key of the artifact that the path's one parameter names; `parameter` is its name for messages."""
    account, project = project_in(request)
    return artifact_key(account, project, kind, _component(request, parameter))


def checksum_in(request: Request) -> str | None:
    """The digest that the client announced for its body, if it did. Raises `BadRequestError`."""
    header = request.headers.get(CHECKSUM)
    return None if header is None else checksum(header.decode("latin-1"), CHECKSUM.decode())


def checksum(text: str, what: str) -> str:
    """A SHA-256 in lower case; `what` names it in the error. Raises `BadRequestError`."""
    digits = text.lower()
    if _CHECKSUM.fullmatch(digits) is None:
        raise BadRequestError(f"{what} is {digits[:80]!r}: 64 hex digits are needed")
    return digits
