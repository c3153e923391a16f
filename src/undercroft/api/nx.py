"""Nx's self-hosted remote cache (https://nx.dev/docs/guides/tasks--caching/self-hosted-caching).

Nx fails the user's run at every answer it does not know: of a GET it knows 200 and 404, of a PUT 200, 409
and 403, and of 403 it shows the text. Nothing below `/nx/` is answered in any other way, but for the 401 of
a PUT with a wrong token: of that Nx shows the text, too, and fails the run.
"""

from undercroft.api import responses
from undercroft.api.errors import Answers
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.storage.layout import artifact_key, safe_component, safe_handle
from undercroft.storage.upload import Stored

# Without a charset: of a 401 with another type than this Nx says "misconfigured" instead of showing it.
TEXT = b"text/plain"


def _text(_status: int, text: str) -> tuple[bytes, bytes]:
    return text.encode(), TEXT


NX = Answers(
    full_now=403,
    too_large=403,
    refused=403,
    busy=403,
    malformed=403,
    too_slow=403,
    mismatch=403,
    strict=True,
    render=_text,
)

# Answered with statuses that Nx does not know; who sends them (Nx does not) gets the whole artifact.
_CONDITIONS = (b"range", b"if-range", b"if-none-match")


class NxApi:
    """`GET/PUT /nx/{account}/{project}/v1/cache/{hash}`.

    An artifact never changes: what a task hash stands for is decided by who stores it first. A hash has up
    to 20 decimal digits, but hashers of a workspace's own may name it otherwise, so any name will do.
    """

    def __init__(self, services: Services) -> None:
        # A body that ends too soon, or is damaged, fails the run as well.
        self._entries = services.entries("nx", services.uploads.nx_max_bytes, replace=False, surely=True)

    def routes(self) -> list[Route]:
        """The routes of this dialect."""
        path = "/nx/{account}/{project}/v1/cache/{hash}"
        found = {200: "the artifact", 404: "no such artifact, or no hash"}
        stored = {200: "stored", 403: "not stored; the text says why", 409: "already there"}
        body = "application/octet-stream"
        return [
            Route("GET", path, self.get, "Fetch an Nx artifact", found),
            Route("HEAD", path, self.get, "Ask for an Nx artifact", found),
            Route("PUT", path, self.put, "Store an Nx artifact", stored, body=body),
        ]

    async def get(self, request: Request) -> None:
        """Serves an artifact, whole or not at all."""
        for header in _CONDITIONS:
            request.headers.pop(header, None)
        await self._entries.serve(request, _key(request))

    async def put(self, request: Request) -> None:
        """Stores an artifact unless there is one."""
        stored = await self._entries.store_unless_there(request, _key(request), None)
        if stored is Stored.EXISTS:
            await responses.content(request, 409, b"it is stored already", TEXT)
            return
        # One that was damaged was replaced, which is nothing the client must know.
        await responses.empty(request, 200)


def _key(request: Request) -> str:
    account, project, hash_ = request.parameters
    account, project = safe_handle(account, "account"), safe_handle(project, "project")
    return artifact_key(account, project, "nx", safe_component(hash_, "hash"))
