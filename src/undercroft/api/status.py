"""The status page, the value it shows, and that value as it changes (server-sent events)."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import resources
from typing import NamedTuple, TypeAlias

import msgspec

from undercroft.api import responses
from undercroft.api.errors import RETRY_AFTER
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.auth.grants import Gate, Right
from undercroft.telemetry.activity import Period
from undercroft.telemetry.status import Status

GetStatus: TypeAlias = Callable[[], Awaitable[Status]]

# How often a page that is watched gets news. To make a status takes some milliseconds of the event loop.
NEWS_S = 2.0

# How soon the end of the node ends what is watched.
LOOK_S = 0.25

# Who asks within that time gets the same one.
FRESH_S = 1.0

# Pages that are watched at once.
MOST_WATCHERS = 50

# What a caller may see changes seldom; a Tuist server is asked for it.
RIGHTS_S = 60.0

HTML = "text/html; charset=utf-8"
EVENT_STREAM = b"text/event-stream"

TYPES = {
    "html": HTML,
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}

# Nothing from anywhere else, and in nobody's frame.
HEADERS = [
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]


class _File(NamedTuple):
    content: bytes
    content_type: bytes
    etag: bytes


class StatusApi:
    """Serves the page to people and the status to programs.

    With a gate a caller sees the figures of the projects it may read, and warnings without their values,
    in which there are keys and addresses of others.
    """

    def __init__(self, get_status: GetStatus, gate: Gate | None) -> None:
        self._get_status = get_status
        self._gate = gate
        self._right: Right = "nothing" if gate is None else "any"
        self._files = _files()
        self._watchers = 0
        self._stopping = False
        self._made_at = 0.0
        self._made: Status | None = None
        self._making = asyncio.Lock()

    def routes(self) -> list[Route]:
        """The routes."""
        answers = {200: "the status; as events if those are accepted", 503: "too many watch"}
        returns = {200: Status}
        found = [
            Route("GET", "/api/status", self.status, "Status", answers, returns=returns, right=self._right)
        ]
        page, part = (
            {200: "the page", 304: "unchanged"},
            {200: "the file", 304: "unchanged", 404: "no such file"},
        )
        for method in ("GET", "HEAD"):
            html, any_type = {200: HTML}, {200: "*/*"}
            found += [
                Route(method, "/", self.page, "The status page", page, returns=html, right=self._right),
                Route(
                    method,
                    "/page/{name}",
                    self.part,
                    "A file of it",
                    part,
                    returns=any_type,
                    right=self._right,
                ),
            ]
        return found

    async def page(self, request: Request) -> None:
        """The page."""
        await self._serve(request, self._files["index.html"])

    async def part(self, request: Request) -> None:
        """A file that the page needs."""
        file = self._files.get(request.parameters[0])
        if file is None:
            await responses.message(request, 404, "no such file")
        else:
            await self._serve(request, file)

    async def _serve(self, request: Request, file: _File) -> None:
        headers = [*HEADERS, (b"etag", file.etag)]
        if request.headers.get(b"if-none-match") == file.etag:
            await responses.empty(request, 304, headers)
        else:
            await responses.content(request, 200, file.content, file.content_type, headers)

    # --- the status -------------------------------------------------------------------------------

    async def status(self, request: Request) -> None:
        """What is known now; to who accepts events, again and again."""
        if EVENT_STREAM in request.headers.get(b"accept", b""):
            await self.watch(request)
            return
        body = await self._encoded(await self._readable(request))
        await responses.content(request, 200, body, b"application/json", [(b"cache-control", b"no-store")])

    async def watch(self, request: Request) -> None:
        """Sends it again and again, until the client leaves or the node stops."""
        if self._watchers >= MOST_WATCHERS:
            text = f"{MOST_WATCHERS} pages are watched already: close one of them"
            await responses.message(request, 503, text, [RETRY_AFTER])
            return
        self._watchers += 1
        try:
            readable, asked_at = await self._readable(request), time.monotonic()
            await request.start(200, [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-store")])
            while await self._goes_on(request, readable):
                if time.monotonic() - asked_at >= RIGHTS_S:
                    # A token that was revoked meanwhile ends it.
                    readable, asked_at = await self._readable(request), time.monotonic()
            await request.finish()
        finally:
            self._watchers -= 1

    async def _goes_on(self, request: Request, readable: set[str] | None) -> bool:
        """Sends one status and waits; answers whether there is still somebody to send to."""
        await responses.in_time(request, b"data: " + await self._encoded(readable) + b"\n\n")
        until = time.monotonic() + NEWS_S
        while time.monotonic() < until and not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await responses.client_gone(request)
                    return False
        return not self._stopping

    def stop(self) -> None:
        """Ends what is watched, so that nobody holds up a stop of the node. Idempotent."""
        self._stopping = True

    async def _readable(self, request: Request) -> set[str] | None:
        """The projects the caller may see; None for all."""
        authorization = request.headers.get(b"authorization")
        if self._gate is None or authorization is None:
            return None
        status = await self._fresh()
        return await self._gate.readable(authorization, {*status.hour.projects, *status.day.projects})

    async def _encoded(self, readable: set[str] | None) -> bytes:
        status = await self._fresh()
        if readable is not None:
            status = msgspec.structs.replace(
                status,
                hour=_only(status.hour, readable),
                day=_only(status.day, readable),
                warnings=[msgspec.structs.replace(one, values={}) for one in status.warnings],
            )
        return msgspec.json.encode(status)

    async def _fresh(self) -> Status:
        """The status, made anew when it is older than `FRESH_S`; once for all who ask meanwhile."""
        async with self._making:
            if self._made is None or time.monotonic() - self._made_at >= FRESH_S:
                self._made = await self._get_status()
                self._made_at = time.monotonic()
            return self._made


def _only(period: Period, projects: set[str]) -> Period:
    shown = {name: counts for name, counts in period.projects.items() if name in projects}
    return msgspec.structs.replace(period, projects=shown)


def _files() -> dict[str, _File]:
    """The files of the page by name. Blocks."""
    found = {}
    for file in resources.files("undercroft.api").joinpath("page").iterdir():
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
        found[file.name] = _File(content, TYPES[file.name.rpartition(".")[2]].encode(), etag)
    return found
