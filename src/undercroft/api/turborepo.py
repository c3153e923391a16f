"""Turborepo's remote cache API (https://turborepo.com/docs/openapi, version 8)."""

import asyncio
import re
from collections import defaultdict
from functools import partial
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED
from undercroft.api.bodies import Body
from undercroft.api.request import Request
from undercroft.api.routing import JSON, OCTETS, Route
from undercroft.api.services import Services
from undercroft.api.turborepo_labels import HEADERS, MAX_DURATION_MS, admit, labels_of, preamble
from undercroft.errors import BadRequestError, InvalidKeyError
from undercroft.storage.layout import artifact_key, safe_handle
from undercroft.telemetry import events

_T = TypeVar("_T")

_HASH = re.compile(r"[0-9a-f]{16}")

# What a build of a few thousand tasks sends, ten times over.
MAX_JSON_BYTES = 4 << 20

# Each may mean a fetch from the object store.
MAX_HASHES = 1_000
QUERIES_AT_ONCE = 16

# Without Access-Control-Allow-Origin: turbo does not look for it, and with it any web page could make a
# browser write to a node on its own machine. From Allow-Headers turbo learns that it may send its token.
PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, HEAD, PUT, POST, OPTIONS"),
    (
        b"access-control-allow-headers",
        b", ".join(
            (
                b"Authorization",
                b"Content-Type",
                b"User-Agent",
                *HEADERS.values(),
                b"x-artifact-client-ci",
                b"x-artifact-client-interactive",
            )
        ),
    ),
]

SOURCES = {"LOCAL": "local", "REMOTE": "remote"}
EVENTS = {"HIT": "hit", "MISS": "miss"}


class Question(msgspec.Struct):
    """The body of a query."""

    hashes: Annotated[list[Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]], Meta(max_length=MAX_HASHES)]


class Known(msgspec.Struct, rename="camel", omit_defaults=True):
    """What is known of an artifact."""

    size: int
    task_duration_ms: int
    tag: str | None = None


class Enabled(msgspec.Struct):
    """The remote cache is on."""

    status: Literal["enabled"] = "enabled"


class Taken(msgspec.Struct):
    """An artifact was taken."""

    urls: list[str]


class Reported(msgspec.Struct):
    """What turbo tells of one task."""

    source: str
    event: str
    duration: Annotated[float, Meta(ge=0, le=MAX_DURATION_MS)] = 0
    """How long the task ran when it ran, in milliseconds."""


_question = msgspec.json.Decoder(Question)
_reports = msgspec.json.Decoder(list[Reported])


def turborepo_error(status: int, text: str) -> tuple[bytes, bytes]:
    """An error as turbo reads it: of a 403 it wants the code."""
    if status == 403:
        value: object = {"error": {"code": "forbidden", "message": text}}
    else:
        value = {"message": text}
    return msgspec.json.encode(value), b"application/json"


class TurborepoApi:
    """`/turborepo/{account}/{project}` is what `TURBO_API` names; `teamId` and `slug` mean nothing here."""

    def __init__(self, services: Services) -> None:
        # Replaces what `put` does not take for an artifact that is there.
        self._entries = services.entries("turborepo", services.uploads.turborepo_max_bytes, replace=True)
        self._telemetry = services.telemetry
        self._read_timeout_ms = services.uploads.read_timeout_ms

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        base = "/turborepo/{account}/{project}/v8/artifacts"
        one, told, status = f"{base}/{{hash}}", f"{base}/events", f"{base}/status"
        on = {200: "it is", 400: "bad parameters"}
        artifact, named = "a Turborepo artifact", {"hash": {"type": "string", "pattern": "^[0-9a-f]{16}$"}}
        return [
            Route("GET", status, self.status, "Whether the cache is on", on, returns={200: Enabled}),
            Route("GET", one, self.get, f"Fetch {artifact}", FOUND, schemas=named),
            Route("HEAD", one, self.get, f"Ask for {artifact}", FOUND, schemas=named),
            Route(
                "PUT",
                one,
                self.put,
                f"Store {artifact}",
                {202: "stored, or already there", **NOT_STORED, 412: "not stored: no room now"},
                body=OCTETS,
                schemas=named,
                returns={202: Taken},
            ),
            *self._json_routes(base, told),
            *(
                Route("OPTIONS", path, self.preflight, "What may be sent", {204: "this"}, right="nothing")
                for path in (base, one, told, status)
            ),
        ]

    def _json_routes(self, base: str, told: str) -> list[Route]:
        slow = {408: "the body stopped coming", 413: "the body is too large"}
        known = {200: "what is known of each hash, or null", 400: "not a list of at most 1000 hashes", **slow}
        counted = {200: "counted", 400: "not a list of events", **slow}
        return [
            Route(
                "POST",
                base,
                self.query,
                "Ask for many artifacts",
                known,
                body=JSON,
                right="read",
                accepts=Question,
                returns={200: dict[str, Known | None]},
            ),
            # Who may only read also saves time.
            Route(
                "POST",
                told,
                self.events,
                "Tell of hits and misses",
                counted,
                body=JSON,
                right="read",
                accepts=list[Reported],
            ),
        ]

    async def status(self, request: Request) -> None:
        """Anything but this makes turbo go on without its remote cache."""
        _project(request)
        await responses.json(request, 200, Enabled())

    async def preflight(self, request: Request) -> None:
        """Tells `turbo --preflight` that it may send what it sends."""
        await responses.empty(request, 204, list(PREFLIGHT))

    async def get(self, request: Request) -> None:
        """Serves an artifact with its labels."""
        await self._entries.serve(request, _key(request), admit=admit)

    async def put(self, request: Request) -> None:
        """Stores an artifact with its labels unless it is there with the same signature.

        turbo asks before it uploads. If there is one of another signature, it could not use that: it has
        a new key, or only now one at all.
        """
        key, labels = _key(request), labels_of(request)
        same = partial(admit, signed=labels)
        await self._entries.store_unless_there(
            request, key, None, preamble=preamble(labels), same=same, admit=admit
        )
        await responses.json(request, 202, Taken([]))

    # --- many at once -----------------------------------------------------------------------------

    async def query(self, request: Request) -> None:
        """Tells size, duration and tag of each artifact that is there."""
        account, project = _project(request)
        hashes = set(_parsed(_question, await self._json(request)).hashes)
        keys = {one: artifact_key(account, project, "turborepo", one) for one in hashes}
        turns = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def known(key: str) -> Known | None:
            async with turns:
                return await self._known(request, key)

        answers = await asyncio.gather(*map(known, keys.values()))
        await responses.json(request, 200, dict(zip(keys, answers, strict=True)))

    async def _known(self, request: Request, key: str) -> Known | None:
        admitted = await self._entries.peek(request, key, admit)
        if admitted is None:
            return None
        headers = dict(admitted.headers)
        tag = headers.get(HEADERS["tag"])
        return Known(
            admitted.artifact.size,
            int(headers.get(HEADERS["duration"], b"0")),
            None if tag is None else tag.decode(),
        )

    async def events(self, request: Request) -> None:
        """Counts what turbo found where, and the time that saved: only turbo knows of its local cache."""
        project = "/".join(_project(request))
        reports = _parsed(_reports, await self._json(request))
        counts: dict[tuple[str, str], int] = defaultdict(int)
        saved_ms: dict[tuple[str, str], float] = defaultdict(float)
        for report in reports:
            # Words of a newer turbo are no reason to refuse those that are known.
            if report.source in SOURCES and report.event in EVENTS:
                label = SOURCES[report.source], EVENTS[report.event]
                counts[label] += 1
                saved_ms[label] += report.duration if report.event == "HIT" else 0
        for (source, event), count in counts.items():
            measured = {"count": count, "saved_seconds": saved_ms[source, event] / 1_000}
            labels = {"source": source, "event": event, "project": project}
            self._telemetry.emit(events.TURBOREPO, measured, labels)
        await responses.empty(request, 200)

    async def _json(self, request: Request) -> bytes:
        return await Body(request, MAX_JSON_BYTES, self._read_timeout_ms).whole()


def _parsed(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not what turbo sends: {error}") from error


def _project(request: Request) -> tuple[str, str]:
    account, project = request.parameters[:2]
    return safe_handle(account, "account"), safe_handle(project, "project")


def _key(request: Request) -> str:
    return artifact_key(*_project(request), "turborepo", _checked(request.parameters[2]))


def _checked(identifier: str) -> str:
    if _HASH.fullmatch(identifier) is None:
        raise InvalidKeyError(f"{identifier[:80]!r} is not a hash of 16 lowercase hex digits")
    return identifier
