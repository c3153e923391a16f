"""Gradle's HTTP build cache (https://docs.gradle.org/current/userguide/build_cache.html)."""

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.storage.layout import artifact_key, safe_component, safe_handle
from undercroft.storage.upload import Stored


class GradleApi:
    """`GET/PUT /gradle/{account}/{project}/{key}`. Overwriting succeeds: it heals damaged entries."""

    def __init__(self, services: Services) -> None:
        self._entries = services.entries("gradle", services.uploads.gradle_max_bytes, replace=True)

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        path = "/gradle/{account}/{project}/{key}"
        stored = {200: "replaced", 201: "stored", **NOT_STORED}
        body = "application/octet-stream"
        return [
            Route("GET", path, self.get, "Fetch a Gradle build cache entry", FOUND),
            Route("HEAD", path, self.get, "Ask for a Gradle build cache entry", FOUND),
            Route("PUT", path, self.put, "Store a Gradle build cache entry", stored, body=body),
        ]

    async def get(self, request: Request) -> None:
        """Serves an entry."""
        await self._entries.serve(request, _key(request))

    async def put(self, request: Request) -> None:
        """Stores an entry, over what is there."""
        stored = await self._entries.store(request, _key(request))
        await responses.empty(request, 201 if stored is Stored.CREATED else 200)


def _key(request: Request) -> str:
    account, project, key = request.parameters
    account, project = safe_handle(account, "account"), safe_handle(project, "project")
    return artifact_key(account, project, "gradle", safe_component(key, "key"))
