"""ccache's HTTP storage, and any other tool's opaque GET and PUT.

The layouts: https://ccache.dev/manual/4.7.5.html#_http_storage_backend.
"""

import re

from undercroft.api import responses
from undercroft.api.artifact_routes import FOUND, NOT_STORED
from undercroft.api.request import Request
from undercroft.api.routing import OCTETS, Route
from undercroft.api.services import Services
from undercroft.errors import InvalidKeyError
from undercroft.storage.layout import artifact_key, safe_component, safe_handle
from undercroft.storage.upload import Stored

_BAZEL_HASH = re.compile(r"[0-9a-f]{64}")


class CcacheApi:
    """`/ccache/{account}/{project}/...` in the layouts subdirs, flat and bazel."""

    def __init__(self, services: Services) -> None:
        self._entries = services.entries("ccache", services.uploads.ccache_max_bytes, replace=True)

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        path = "/ccache/{account}/{project}/{key...}"
        stored = {200: "replaced", 201: "stored", **NOT_STORED}
        removed = {204: "gone, or was never there", 400: "not a key", 413: "not removed"}
        named = {"key": {"type": "string", "pattern": "^([^/]{1,255}|[^/]{2}/[^/]{1,253}|ac/[0-9a-f]{64})$"}}
        return [
            Route("GET", path, self.get, "Fetch a ccache entry", FOUND, schemas=named),
            Route("HEAD", path, self.get, "Ask for a ccache entry", FOUND, schemas=named),
            Route("PUT", path, self.put, "Store a ccache entry", stored, body=OCTETS, schemas=named),
            Route("DELETE", path, self.delete, "Remove a ccache entry", removed, schemas=named),
        ]

    async def get(self, request: Request) -> None:
        """Serves an entry."""
        await self._entries.serve(request, _key(request))

    async def put(self, request: Request) -> None:
        """Stores an entry, over what is there."""
        stored = await self._entries.store(request, _key(request))
        await responses.empty(request, 201 if stored is Stored.CREATED else 200)

    async def delete(self, request: Request) -> None:
        """Removes an entry. ccache deletes keys that do not exist, and gives up on anything but success."""
        await self._entries.delete(request, _key(request))
        await responses.empty(request, 204)


def _key(request: Request) -> str:
    account, project, *rest = request.parameters
    account, project = safe_handle(account, "account"), safe_handle(project, "project")
    return artifact_key(account, project, "ccache", _identifier(rest))


def _identifier(parts: list[str]) -> str:
    """The opaque key in a path: `{key}`, `{2}/{rest}` or `ac/{64 hex}`."""
    match [safe_component(part, "key") for part in parts]:
        case [key]:
            return key
        case ["ac", digest] if _BAZEL_HASH.fullmatch(digest):
            return digest
        case [head, rest] if len(head) == 2:
            return safe_component(head + rest, "key")
        case _:
            raise InvalidKeyError(f"{'/'.join(parts)} is not a key in the layout subdirs, flat or bazel")
