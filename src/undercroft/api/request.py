"""One request as the endpoints see it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from undercroft.auth.grants import ANYBODY
from undercroft.errors import BadRequestError
from undercroft.http.exchange import IS_HERE
from undercroft.http.repeats import REPEAT, Repeat

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The server cannot be told to leave its own name out, only to send another.
SERVER = (b"server", b"undercroft")


def _not_known() -> bool:
    return False


class Request:
    """The ASGI triple, with headers and parameters at hand."""

    __slots__ = (
        "body_over",
        "caller",
        "headers",
        "is_here",
        "may_come_again",
        "method",
        "parameters",
        "query_string",
        "receive",
        "received",
        "repeat",
        "request_id",
        "send",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.query_string: bytes = scope["query_string"]
        self.receive = receive
        self.is_here: Callable[[], bool] = scope.get(IS_HERE, _not_known)
        """Whether `receive` need not wait."""
        self.send = send
        self.parameters: list[str] = []
        """The decoded components of the path that its route names, in order."""
        self.received = 0
        """Bytes of the body read so far."""
        self.body_over = False
        """Whether there is nothing more to read: the body is complete, or no more of it will come."""
        self.may_come_again = REPEAT in scope
        """Whether it is worth saying how to `repeat` it."""
        self.repeat: Repeat | None = None
        """How it is answered when it comes again, where that takes no more than to look something up, or to
        look at another body; without the headers that every answer has."""
        self.request_id = b""
        self.caller = ANYBODY
        self.status = 0
        """The status sent; 0 as long as there is none, when something else may still be answered."""

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends status and headers."""
        self.status = status
        headers += [SERVER, (b"x-request-id", self.request_id)]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def finish(self, body: bytes = b"", *, more: bool = False) -> None:
        """Sends a piece of the body, the last one unless `more` follows."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})


def parse_query(query_string: bytes) -> dict[str, str]:
    """Query parameters; of a repeated one the last counts. Raises `BadRequestError`."""
    try:
        return dict(parse_qsl(query_string.decode(), keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError as error:
        raise BadRequestError(f"the query {query_string[:80]!r} is not percent-encoded UTF-8") from error
