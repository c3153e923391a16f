"""The gate that lets in whom a Tuist server lets in."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeAlias

from undercroft.auth.credentials import password_of
from undercroft.auth.grants import Caller, Question, Standing, admit_anonymous
from undercroft.auth.tuist_client import Listed, Refused, Reply, TuistClient, Unknown
from undercroft.auth.tuist_jwt import NAMELESS, TuistToken, TuistTokens
from undercroft.errors import AccessUnknownError, ForbiddenError, UnauthenticatedError, UndercroftError
from undercroft.supervisor import Jobs
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

# How long the answers of the server are taken for true, in seconds.
YES_S = 600.0
NO_S = 3.0

# Answers of each kind that are remembered. Apart, so that who invents credentials never displaces those
# that are good.
REMEMBERED = 10_000

# Credentials that may wait for the server.
WAITING = 1_000

# A header that is longer is no credential, and costs time to look at.
MAX_AUTHORIZATION_BYTES = 16_384

Clock: TypeAlias = Callable[[], float]


class _Asked(NamedTuple):
    """What an answer is for. The digest, so that no secret stays in memory."""

    credential: bytes
    project: str | None
    """None: whether the credential is good at all."""
    write: bool


class _Yes(NamedTuple):
    caller: Caller
    method: Literal["jwt", "server"]
    expires_at: float | None = None
    """When the credential itself ends, in seconds since the epoch."""


class _No(NamedTuple):
    error: type[UndercroftError]
    text: str


_Decision: TypeAlias = _Yes | _No


class _Memory:
    """Decisions until they are too old; the oldest goes for a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._decisions: dict[_Asked, tuple[float, _Decision]] = {}

    def find(self, asked: _Asked, now: float) -> _Decision | None:
        until, decision = self._decisions.get(asked, (now, None))
        return decision if now < until else None

    def keep(self, asked: _Asked, until: float, decision: _Decision) -> None:
        self._decisions.pop(asked, None)
        if len(self._decisions) >= self._most:
            del self._decisions[next(iter(self._decisions))]
        self._decisions[asked] = (until, decision)

    def __len__(self) -> int:
        return len(self._decisions)


class TuistGate:
    """Believes the JWTs of a Tuist server, if it has the key, and asks the server for everything else."""

    def __init__(
        self,
        client: TuistClient,
        telemetry: Events,
        *,
        tokens: TuistTokens | None,
        anonymous_read: bool,
        monotonic: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self._client = client
        self._telemetry = telemetry
        self._tokens = tokens
        self._anonymous_read = anonymous_read
        self._monotonic = monotonic
        self._wall = wall
        self._yes = _Memory(REMEMBERED)
        self._no = _Memory(REMEMBERED)
        self._in_flight: dict[bytes, asyncio.Task[Reply]] = {}
        self._jobs = Jobs()

    def open(self) -> None:
        """Before the first request."""
        self._client.open()

    async def close(self) -> None:
        """After the last request. Idempotent."""
        await self._jobs.stop()
        self._in_flight.clear()
        await self._client.close()

    async def admit(self, asked: Question) -> Caller:
        """See `Gate`."""
        if asked.authorization is None:
            return admit_anonymous(asked, may_read=self._anonymous_read)
        try:
            project = None if asked.right == "any" else "/".join(asked.project())
        except UndercroftError:
            # Who has no good credential is told that first.
            await self._decide(asked, asked.authorization, None)
            raise
        return await self._decide(asked, asked.authorization, project)

    def standing(self, authorization: bytes | None, caller: Caller) -> Standing | None:
        """See `Gate`. What the server says holds for a while only."""
        del authorization, caller
        return None

    async def readable(self, authorization: bytes, projects: Iterable[str]) -> set[str]:
        """See `Gate`. Nothing of it is remembered."""
        token = self._token_in(authorization)
        if token is not None and token.reads is not None:
            return set(projects) & (token.reads | token.writes)
        credential = hashlib.blake2b(authorization, digest_size=32).digest()
        reply = await self._ask(credential, authorization, b"")
        return set() if isinstance(reply, Refused) else set(projects) & set(reply.projects)

    # --- deciding ---------------------------------------------------------------------------------

    async def _decide(self, asked: Question, authorization: bytes, project: str | None) -> Caller:
        credential = hashlib.blake2b(authorization, digest_size=32).digest()
        key = _Asked(credential, project, asked.right in ("write", "clean"))
        decision = self._remembered(key)
        result = "miss" if decision is None else "hit"
        self._telemetry.emit(events.AUTH_CACHE, {"count": 1}, {"result": result})
        if decision is None:
            decision = await self._find_out(key, authorization, asked.request_id)
        if isinstance(decision, _No):
            raise decision.error(decision.text)
        self._telemetry.emit(events.AUTHORIZED, {"count": 1}, {"method": decision.method})
        return decision.caller

    def _remembered(self, key: _Asked) -> _Decision | None:
        now = self._monotonic()
        yes = self._yes.find(key, now)
        # By the wall clock, too: that may have been set since.
        if isinstance(yes, _Yes) and (yes.expires_at is None or self._wall() < yes.expires_at):
            return yes
        return self._no.find(key, now)

    async def _find_out(self, key: _Asked, authorization: bytes, request_id: bytes) -> _Decision:
        token = self._token_in(authorization)
        if token is not None and (key.project is None or token.reads is not None):
            if key.project is not None:
                token.check(key.project, write=key.write)
            decision: _Decision = _Yes(token.caller, "jwt", token.expires_at)
        else:
            reply = await self._ask(key.credential, authorization, request_id)
            decision = _decision(reply, key.project, token)
        self._keep(key, decision)
        return decision

    def _token_in(self, authorization: bytes) -> TuistToken | None:
        """The JWT in the header, if there is one. Raises `UnauthenticatedError`."""
        if len(authorization) > MAX_AUTHORIZATION_BYTES:
            raise UnauthenticatedError(f"the credential has more than {MAX_AUTHORIZATION_BYTES} bytes")
        password = password_of(authorization)
        if not password:
            raise UnauthenticatedError("the credential is empty")
        return None if self._tokens is None else self._tokens.read(password, self._wall())

    def _keep(self, key: _Asked, decision: _Decision) -> None:
        now = self._monotonic()
        if isinstance(decision, _No):
            self._no.keep(key, now + NO_S, decision)
            return
        left = YES_S if decision.expires_at is None else decision.expires_at - self._wall()
        self._yes.keep(key, now + min(left, YES_S), decision)

    # --- asking the server ------------------------------------------------------------------------

    async def _ask(self, credential: bytes, authorization: bytes, request_id: bytes) -> Listed | Refused:
        """One request for all who ask with the same credential meanwhile.

        It is nobody's own: whoever goes away leaves it to the others. Raises `AccessUnknownError`.
        """
        request = self._in_flight.get(credential)
        if request is None:
            if len(self._in_flight) >= WAITING:
                raise AccessUnknownError(f"{WAITING} callers wait for the Tuist server already")
            request = self._jobs.start(
                "ask the Tuist server", self._request(credential, authorization, request_id)
            )
            self._in_flight[credential] = request
        reply = await asyncio.shield(request)
        if isinstance(reply, Unknown):
            raise AccessUnknownError(f"the Tuist server did not say who may do what: {reply.reason}")
        return reply

    async def _request(self, credential: bytes, authorization: bytes, request_id: bytes) -> Reply:
        try:
            return await self._client.ask(authorization, request_id)
        finally:
            self._in_flight.pop(credential, None)


def _decision(reply: Listed | Refused, project: str | None, token: TuistToken | None) -> _Decision:
    """What follows from the server's answer. A JWT only says who it is, then, and until when."""
    if isinstance(reply, Refused):
        if reply.status == 401:
            return _No(UnauthenticatedError, "the Tuist server does not know the credential")
        return _No(ForbiddenError, "the Tuist server refuses the credential")
    if project is not None and project not in reply.projects:
        return _No(ForbiddenError, f"the Tuist server gives no access to the project {project}")
    if token is None:
        return _Yes(Caller(NAMELESS), "server")
    return _Yes(token.caller, "server", token.expires_at)
