"""`/up`, `/metrics` and `/api/spec`: what the node says of itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import apsw
import msgspec

from undercroft.api import responses
from undercroft.api.openapi import openapi
from undercroft.api.request import Request
from undercroft.api.routing import Endpoint, Route
from undercroft.auth.grants import Right
from undercroft.buffers import SQLiteBuffer
from undercroft.database import Database
from undercroft.errors import UndercroftError
from undercroft.storage.disk import Disk

Check: TypeAlias = Callable[[], Awaitable[str | None]]
"""Answers what is wrong, None when nothing is."""


def database_check(database: Database) -> Check:
    """Whether the database answers a query, and never met a damaged page."""

    async def check() -> str | None:
        if database.damage is not None:
            return f"database {database.path.name} is damaged ({database.damage}): see docs/operations.md"
        try:
            database.find("SELECT count(*) FROM sqlite_schema")
        except (apsw.Error, UndercroftError) as error:
            return f"database {database.path.name}: {error}"
        return None

    return check


def disk_check(disk: Disk) -> Check:
    """Whether a file can be written."""

    def write() -> None:
        file = disk.temporary()
        try:
            file.write(b"up")
        finally:
            file.discard()

    async def check() -> str | None:
        try:
            await asyncio.to_thread(write)
        except (OSError, UndercroftError) as error:
            return f"disk: {error}"
        return None

    return check


def buffer_check(buffer: SQLiteBuffer[Any, Any]) -> Check:
    """Whether rows reach the database; one that is locked for a moment does no harm."""

    async def check() -> str | None:
        if buffer.stalled and buffer.oldest_age * 1_000 > buffer.settings.commit_timeout_ms:
            return f"buffer {buffer.name}: rows have waited {buffer.oldest_age:.0f} s, {buffer.stalled}"
        return None

    return check


def _get_and_head(  # noqa: PLR0917  # what a route is made of, in its order
    path: str,
    endpoint: Endpoint,
    summary: str,
    answers: Mapping[int, str],
    returns: Any,
    right: Right = "nothing",
) -> list[Route]:
    """A path for people and probes: some of those ask with HEAD. `returns` is what 200 comes with."""
    return [
        Route(method, path, endpoint, summary, answers, returns={200: returns}, right=right)
        for method in ("GET", "HEAD")
    ]


class HealthApi:
    """Asks each part whether it works; renders the metrics."""

    def __init__(
        self,
        checks: Sequence[Check],
        missing_workers: Callable[[], str | None],
        render_metrics: Callable[[], Awaitable[tuple[bytes, str]]] | None,
        metrics_right: Right = "nothing",
    ) -> None:
        """`missing_workers` says which siblings of this process are not there.

        `metrics_right`: what a caller needs to be shown the metrics.
        """
        self._checks = checks
        self._missing_workers = missing_workers
        self._render_metrics = render_metrics
        self._metrics_right = metrics_right

    def routes(self) -> list[Route]:
        """The routes; `/metrics` only if it is served."""
        healthy = {200: "database, disk and buffers work", 503: "something does not; the message says what"}
        routes = _get_and_head("/up", self.up, "Health", healthy, responses.Message)
        if self._render_metrics is not None:
            answers = {200: "Prometheus text format", 503: "the node could not gather them"}
            right = self._metrics_right
            routes += _get_and_head("/metrics", self.metrics, "Metrics", answers, "text/plain", right)
        return routes

    async def up(self, request: Request) -> None:
        """200 if all checks pass, else 503 and what is wrong."""
        wrong = [problem for check in self._checks if (problem := await check()) is not None]
        missing = self._missing_workers()
        # Who was asked works all the same.
        words = [*(wrong or ["up"]), *([] if missing is None else [missing])]
        await responses.message(request, 503 if wrong else 200, "; ".join(words))

    async def metrics(self, request: Request) -> None:
        """All series."""
        assert self._render_metrics is not None  # noqa: S101  # else there is no such route
        body, content_type = await self._render_metrics()
        await responses.content(request, 200, body, content_type.encode())


class SpecApi:
    """`/api/spec`: the OpenAPI document of the node's routes, made from the routes themselves."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [*routes, *self.routes()]

    @cached_property
    def _document(self) -> bytes:
        # Made when it is first asked for, and only then: it takes some milliseconds of the event loop.
        return msgspec.json.encode(openapi(self._routes))

    def routes(self) -> list[Route]:
        """The routes of the document."""
        answers = {200: "an OpenAPI document", 503: "the node could not make it"}
        return _get_and_head("/api/spec", self.spec, "This document", answers, dict[str, Any])

    async def spec(self, request: Request) -> None:
        """The document."""
        await responses.content(request, 200, self._document, b"application/json")
