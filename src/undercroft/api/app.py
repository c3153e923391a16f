"""The ASGI application: finds the route, runs its endpoint, and has an answer for whatever goes wrong."""

import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import structlog

from undercroft.api import errors, responses
from undercroft.api.bodies import discard_rest
from undercroft.api.dialects import answers_for, project_of
from undercroft.api.request import SERVER, Receive, Request, Scope, Send
from undercroft.api.routing import Route, Router, decoded
from undercroft.auth.grants import Gate, Question, Right, Standing
from undercroft.errors import DataDirectoryError, ForbiddenError
from undercroft.http.repeats import REPEAT, Answer, Repeat, Settle

log = structlog.get_logger(__name__)

# An id from a client is a label for logs, so it must not be able to look like anything else in them.
REQUEST_ID_BYTES = 128


class Application:
    """Answers every request. It has no state of its own."""

    def __init__(self, routes: Sequence[Route], gate: Gate | None = None) -> None:
        """Without a gate everybody may do everything."""
        self._router = Router(routes)
        self._gate = gate
        self._ids = os.urandom(4).hex()
        self._count = 0
        # Asked once: gathering the values of a record costs more than routing a request.
        self._logs_requests = log.is_enabled_for(logging.DEBUG)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, by the rules of ASGI."""
        request = Request(scope, receive, send)
        request.request_id = self._request_id(request)
        started = time.perf_counter()
        try:
            await self._dispatch(request, scope["raw_path"])
        except Exception as error:  # noqa: BLE001  # the edge: whatever it is becomes an answer
            await self._answer(request, scope, error)
        if self._logs_requests:
            self._log(request, scope, started)
        elif request.repeat is not None:
            scope[REPEAT] = self._repeat_of(request, scope, request.repeat)
        if not request.body_over and request.method != "GET":
            await discard_rest(request)

    def _repeat_of(self, request: Request, scope: Scope, repeat: Repeat) -> Repeat | None:
        """How the request is answered when it comes again: to who may still ask, under an id of its own."""
        if b"x-request-id" in request.headers:
            return None
        standing: Standing | None = None
        if self._gate is not None:
            standing = self._gate.standing(request.headers.get(b"authorization"), request.caller)
            if standing is None:
                return None
        # Not the request itself: it has the credential.
        about = _Repeated(request.method, scope["path"], answers_for(scope["raw_path"]))
        return partial(self._answer_again, repeat, standing, about)

    def _answer_again(
        self, repeat: Repeat, standing: Standing | None, about: "_Repeated", body: bytes
    ) -> Answer | Settle | None:
        found = repeat(body) if standing is None or standing.holds() else None
        if found is None:
            return None
        if standing is not None:
            # Not before: what is not answered so is asked in full, and told of there.
            standing.tell()
        if isinstance(found, Answer):
            return self._signed(found, self._next_id())
        return partial(self._answer_settled, found, about)

    async def _answer_settled(self, settle: Settle, about: "_Repeated") -> Answer:
        """The answer to what was begun, also if that failed."""
        request_id = self._next_id()
        try:
            answer = await settle()
        except Exception as error:  # noqa: BLE001  # the edge, as in `__call__`
            answer = errors.answer_to(error, about.method, about.answers)
            said = {"request_id": request_id.decode(), "method": about.method, "path": about.path}
            _tell_of(error, answer.status, said)
        return self._signed(answer, request_id)

    def _signed(self, answer: Answer, request_id: bytes) -> Answer:
        """With the headers that every answer has."""
        headers = (*answer.headers, SERVER, (b"x-request-id", request_id))
        return Answer(answer.status, headers, answer.body)

    def _log(self, request: Request, scope: Scope, started: float) -> None:
        log.debug(
            "request",
            **_about(request, scope),
            status=request.status,
            duration_ms=round((time.perf_counter() - started) * 1_000, 3),
        )

    async def _dispatch(self, request: Request, raw_path: bytes) -> None:
        route, parameters, methods = self._router.find(request.method, raw_path)
        if route is not None:
            request.parameters = [decoded(part) for part in parameters]
            if route.needs in ("write", "clean") and b"origin" in request.headers:
                # No build tool sends it. A page in a browser could otherwise write to a node on loopback.
                raise ForbiddenError("a request with an Origin comes from a browser, and those may not write")
            if self._gate is not None and route.needs != "nothing":
                request.caller = await self._gate.admit(_question(request, raw_path, route.needs))
            await route.endpoint(request)
        else:
            await errors.no_route(request, methods, answers_for(raw_path))

    async def _answer(self, request: Request, scope: Scope, error: Exception) -> None:
        answers = answers_for(scope["raw_path"])
        if request.status:
            # Half an answer is out; only a broken connection tells the client that it is not whole.
            if not errors.is_foreseen(error):
                log.error("request_failed", **_about(request, scope), exc_info=error)
            raise error
        answer = errors.answer_to(error, request.method, answers)
        _tell_of(error, answer.status, _about(request, scope))
        await responses.whole(request, answer)

    def _request_id(self, request: Request) -> bytes:
        given = request.headers.get(b"x-request-id", b"")
        if 0 < len(given) <= REQUEST_ID_BYTES and given.isascii() and given.decode().isprintable():
            return given
        return self._next_id()

    def _next_id(self) -> bytes:
        self._count += 1
        return f"{self._ids}-{self._count:x}".encode()


class _Repeated(NamedTuple):
    """What is known of a request that comes again: enough to tell that it failed."""

    method: str
    path: str
    answers: errors.Answers


def _question(request: Request, raw_path: bytes, right: Right) -> Question:
    """What the gate is asked about a request."""
    authorization = request.headers.get(b"authorization")
    return Question(authorization, right, lambda: project_of(request, raw_path), request.request_id)


def _tell_of(error: Exception, status: int, about: dict[str, str]) -> None:
    """Records why a request is answered with that status."""
    if not errors.is_foreseen(error):
        log.error("request_failed", **about, exc_info=error)
    else:
        # What the client asked for is one thing; a data directory that needs a person is another.
        tell = log.warning if isinstance(error, DataDirectoryError) else log.info
        tell("request_refused", **about, status=status, error=str(error))


def _about(request: Request, scope: Scope) -> dict[str, str]:
    """What every record of a request says."""
    return {
        "request_id": request.request_id.decode(),
        "method": request.method,
        "path": scope["path"],
        "client": _client(request, scope),
    }


def _client(request: Request, scope: Scope) -> str:
    """Address and name of the client, so that the machine with a wrong credential can be found."""
    address = scope.get("client") or ("?",)
    agent = request.headers.get(b"user-agent", b"")[:80].decode("latin-1")
    return f"{address[0]} {agent}".strip()
