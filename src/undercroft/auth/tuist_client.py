"""The HTTP client of a Tuist server, which says into which projects it lets a caller."""

import asyncio
import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple, TypeAlias

import httpx
import msgspec
import structlog

from undercroft.errors import ClosedError, SettingsError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

log = structlog.get_logger(__name__)

# Servers that do not know the first one yet have the second.
PATHS = ("/api/cache/access", "/api/projects")

# Room for some 50 thousand projects. More is a mistake, and must not fill the memory.
MAX_BODY_BYTES = 4 << 20

# Requests at once: whoever invents credentials makes the server work, and must not drown it.
CONCURRENCY = 16


class Listed(NamedTuple):
    """The server knows the credential."""

    projects: frozenset[str]
    """`account/project` in lower case: where the caller may read and write."""


class Refused(NamedTuple):
    """The server does not take the credential."""

    status: int
    """401 or 403."""


class Unknown(NamedTuple):
    """The server said nothing that could be understood."""

    reason: str


Reply: TypeAlias = Listed | Refused | Unknown


class _Project(msgspec.Struct):
    full_name: str


class _Body(msgspec.Struct):
    # `/api/projects` lists objects where `/api/cache/access` lists names.
    projects: list[str | _Project]


_body_decoder = msgspec.json.Decoder(_Body)


class TuistClient:
    """Sends the credentials of callers to one server, and to nobody else."""

    def __init__(self, url: str, telemetry: Events, *, timeout_ms: int) -> None:
        """Raises `SettingsError` for what httpx takes for no URL."""
        try:
            self._urls = [httpx.URL(url.rstrip("/") + path) for path in PATHS]
        except httpx.InvalidURL as error:
            raise SettingsError(f"auth.tuist_server_url: {error}") from None
        self._telemetry = telemetry
        self._timeout_s = timeout_ms / 1_000
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._http: httpx.AsyncClient | None = None

    def open(self) -> None:
        """Connects to nothing yet."""
        self._http = httpx.AsyncClient(
            # Another host must not get the credential.
            follow_redirects=False,
            # Nor a proxy that the environment happens to name.
            trust_env=False,
            # Nor one caller the session that the server opened for another.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            # What the system trusts, with what its administrator added.
            verify=ssl.create_default_context(),
            # For each step; the whole has the same limit (`ask`).
            timeout=self._timeout_s,
            # Requests are rare. A connection that was kept may be closed by the server just when it is
            # used again, which is no answer to somebody who could have had one.
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "undercroft"},
        )

    async def close(self) -> None:
        """Idempotent."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def ask(self, authorization: bytes, request_id: bytes) -> Reply:
        """What the server says of a credential; `Unknown` after `timeout_ms`, waiting for a slot included."""
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                reply = await self._ask(authorization, request_id)
        except (TimeoutError, httpx.TimeoutException):
            reply = Unknown(f"no answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            # The type alone: the text may repeat what was sent.
            reply = Unknown(type(error).__name__)
        if isinstance(reply, Unknown):
            log.warning("tuist_server_not_understood", host=self._urls[0].host, reason=reply.reason)
        return reply

    async def _ask(self, authorization: bytes, request_id: bytes) -> Reply:
        headers = {b"authorization": authorization}
        if request_id:
            headers[b"x-request-id"] = request_id
        reply: Reply | None = None
        for url in self._urls:
            reply = await self._get(url, headers)
            if reply is not None:
                break
        return reply or Unknown("404 for " + " and ".join(PATHS))

    async def _get(self, url: httpx.URL, headers: dict[bytes, bytes]) -> Reply | None:
        """None where the server does not know the path."""
        if self._http is None:
            raise ClosedError("the client of the Tuist server is not open")
        self._telemetry.emit(events.AUTH_SERVER_REQUEST, {"count": 1}, {})
        async with self._http.stream("GET", url, headers=headers) as response:
            if response.status_code == 404:
                return None
            if response.status_code in (401, 403):
                return Refused(response.status_code)
            if response.status_code != 200:
                return Unknown(f"status {response.status_code}")
            return _understood(await _body_of(response))


async def _body_of(response: httpx.Response) -> bytes | None:
    """The body as it was sent: unpacked it could be of any size. None if it is too large."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _understood(body: bytes | None) -> Reply:
    if body is None:
        return Unknown(f"a body of more than {MAX_BODY_BYTES} bytes")
    try:
        listed = _body_decoder.decode(body).projects
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Unknown("a body that is no list of projects")
    names = (one if isinstance(one, str) else one.full_name for one in listed)
    return Listed(frozenset(name.lower() for name in names))
