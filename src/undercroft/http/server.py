"""Listens, and keeps the connections."""

import asyncio
import errno
import socket
from email.utils import formatdate
from operator import itemgetter

import structlog

from undercroft.errors import ListenError
from undercroft.http.connection import HttpConnection
from undercroft.http.exchange import Application, Pieces
from undercroft.http.limits import Limits
from undercroft.http.repeats import Repeats
from undercroft.http.writing import WritingProtocol

log = structlog.get_logger(__name__)

# Connections the kernel keeps for us until they are accepted.
BACKLOG = 1_024

# A reader that takes nothing for so long is cut off by the kernel (TCP_USER_TIMEOUT, man 7 tcp).
STUCK_READER_MS = 60_000


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; raises `ListenError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter of names that no name server could know
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


def _listen_error(host: str, port: int, error: OSError | UnicodeError) -> ListenError:
    if isinstance(error, UnicodeError):
        return ListenError(f"cannot listen on {host}:{port}: that is no name of a machine")
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        advice = "; give an address of this machine, or a name for one"
    elif error.errno == errno.EADDRINUSE:
        advice = "; is another node running? choose another port"
    else:
        advice = ""
    return ListenError(f"cannot listen on {host}:{port}: {error.strerror}{advice}")


class HttpServer:
    """Serves an ASGI application on a bound socket. `listen`, then `run`, then `stop`."""

    def __init__(self, application: Application, bound: socket.socket, limits: Limits | None = None) -> None:
        self.application = application
        self.limits = limits or Limits()
        self.date_line = b""
        """When answers are sent, to the second (RFC 9110, 6.6.1)."""
        self.repeats = Repeats()
        self._answers: list[tuple[WritingProtocol, Pieces]] = []
        self._bound = bound
        self._connections: set[HttpConnection] = set()
        self.busy: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._turned_away = 0
        """Connections for which there was no room, and of which nobody was told yet."""
        self._stopped = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

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
        self._look()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self), sock=self._bound, backlog=BACKLOG
        )
        await self._stopped.wait()

    async def stop(self, grace_ms: int) -> None:
        """Accepts nothing more; cancels requests that still run after `grace_ms`. Idempotent."""
        self._stopped.set()
        if self._server is None:
            self._bound.close()
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.stop()
        if not await self._emptied_within(grace_ms / 1_000):
            for connection in tuple(self._connections):
                connection.cancel()
            await self._emptied_within(1)
        # Until now it has ended those that wait for a client to hang up.
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _emptied_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in tuple(self._connections):
            connection.look(now)
        self._tell_of_turned_away()
        self._sweep = loop.call_later(self.limits.sweep_s, self._look)

    def _tell_of_turned_away(self) -> None:
        """Once in a sweep, however many there were."""
        if self._turned_away:
            count, self._turned_away = self._turned_away, 0
            log.warning("connections_turned_away", count=count, max_connections=self.limits.max_connections)

    # --- for connections --------------------------------------------------------------------------

    def opened(self, connection: HttpConnection) -> None:
        """See `Owner`."""
        if len(self._connections) >= self.limits.max_connections:
            self._make_way(connection)
        self._connections.add(connection)
        self._empty.clear()
        if self._stopped.is_set():
            connection.stop()

    def _make_way(self, newest: HttpConnection) -> None:
        """Ends the connection that was idle for longest, or one whose body is slow, or else the newest."""
        if idle := [one for one in self._connections if one.may_make_way]:
            min(idle, key=lambda one: one.waits_since).stop()
            return
        now = asyncio.get_running_loop().time()
        slow = [(rate, one) for one in self._connections if (rate := one.slowness(now)) is not None]
        if not slow:
            newest.stop()
            self._turned_away += 1
            return
        rate, slowest = min(slow, key=itemgetter(0))
        log.info("slow_body_ended", bytes_per_s=round(rate, 1), connections=len(self._connections))
        slowest.end_body()

    def closed(self, connection: HttpConnection) -> None:
        """See `Owner`."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def start(self, connection: HttpConnection) -> "asyncio.Task[None]":
        """See `Owner`."""
        task = asyncio.get_running_loop().create_task(connection.serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def write_soon(self, connection: WritingProtocol, pieces: Pieces) -> None:
        """See `Owner`. A client on the same machine is woken once for many answers, not by each."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self.write_answers)
        self._answers.append((connection, pieces))

    def write_answers(self) -> None:
        """See `Owner`."""
        if self._answers:
            answers, self._answers = self._answers, []
            for connection, pieces in answers:
                connection.write(*pieces)
