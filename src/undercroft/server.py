"""The HTTP server, inside the node's own event loop, on a socket the node bound itself.

Why Granian, and what it leaves to us: docs/decisions/0001-http-server.md.
"""

import asyncio
import errno
import socket
from typing import Any

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from undercroft.api.app import Application
from undercroft.api.request import Receive, Scope, Send
from undercroft.errors import ListenError

# Connections the kernel keeps for us until they are accepted, and those served at once.
BACKLOG = 1_024

# Time for the headers of a request, and between two requests on a connection. Bazel and Gradle lose
# their cache with servers that close idle connections early.
IDLE_TIMEOUT_MS = 75_000

# A reader that takes nothing for so long is cut off by the kernel (TCP_USER_TIMEOUT, man 7 tcp): the
# server itself would hold the connection, and what it has yet to send, until the client goes.
STUCK_READER_MS = 60_000

# Bound on the headers of a request, kept loosely by the server.
HEADER_BYTES = 64 << 10


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; raises `ListenError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _listen_error(host, port, error) from error
    try:
        # Not SO_REUSEPORT: a second node on the same port must fail, not take half of the requests.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit what follows.
        # Head and body of small answers must not wait 40 ms for each other.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_READER_MS)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _listen_error(host, port, error) from error
    return bound


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    taken = error.errno == errno.EADDRINUSE
    advice = "; is another node running? choose another port" if taken else ""
    return ListenError(f"cannot listen on {host}:{port}: {error.strerror}{advice}")


class _Embedded(Server):
    """Granian's embedded server on a socket that is given instead of opened."""

    def __init__(self, application: Any, bound: socket.socket, **options: Any) -> None:
        address, port = bound.getsockname()[:2]
        super().__init__(application, address, port, **options)
        self._bound = bound

    def _init_shared_socket(self) -> None:
        self._ssp = None
        # A file descriptor, not a Unix socket; the library's types know neither the call nor the field.
        self._shd: Any = SocketHolder(self._bound.detach(), False, self.backlog)  # type: ignore[call-arg]


class HttpServer:
    """Serves the application on a bound socket."""

    def __init__(self, application: Application, bound: socket.socket) -> None:
        self._application = application
        self._bound = bound
        self._requests: set[asyncio.Task[Any]] = set()
        self._started = False
        self._ended = asyncio.Event()
        self._server = _Embedded(
            self._serve_request,
            bound,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=BACKLOG,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_TIMEOUT_MS, max_buffer_size=HEADER_BYTES),
            log_enabled=False,
        )

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine always runs in one
        self._requests.add(task)
        try:
            await self._application(scope, receive, send)
        finally:
            self._requests.discard(task)

    def listen(self) -> None:
        """From now on connections are accepted, by the kernel until `run` does; raises `ListenError`."""
        try:
            self._bound.listen(BACKLOG)
        except OSError as error:
            # Two nodes may bind the same port as long as neither listens; this one came second.
            address, port = self._bound.getsockname()[:2]
            raise _listen_error(address, port, error) from error

    async def run(self) -> None:
        """Serves until `stop`, after `listen`. The supervisor runs it as a worker."""
        if self._bound.fileno() < 0:
            return  # stopped before this task had its first turn
        self._started = True
        try:
            await self._server.serve()
        finally:
            self._ended.set()

    async def stop(self, grace_ms: int) -> None:
        """Accepts nothing more; cancels requests that still run after `grace_ms`. Idempotent."""
        if not self._started:
            self._bound.close()
            return
        self._server.stop()  # type: ignore[no-untyped-call]  # the library has no types for it
        if not await self._ends_within(grace_ms / 1_000):
            for request in tuple(self._requests):
                request.cancel()
            # A reader that does not read can hold up the server, but no request of ours any more.
            await self._ends_within(1)

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True
