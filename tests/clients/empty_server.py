"""A cache that takes everything and finds nothing: the tests must fail against it."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class EmptyServer:
    """Where it listens, and how many requests of each method it has answered."""

    url: str
    seen: Counter[str] = field(default_factory=Counter)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def empty_server() -> Iterator[EmptyServer]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    server = EmptyServer("")
    with _Listener(("127.0.0.1", 0), _handler(server.seen)) as listener:
        server.url = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = threading.Thread(target=listener.serve_forever, name="empty-server")
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def _handler(seen: Counter[str]) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            self._answer(404)

        def do_HEAD(self) -> None:
            self._answer(404)

        def do_PUT(self) -> None:
            self._answer(200)

        def do_DELETE(self) -> None:
            self._answer(200)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Stay silent."""

        def _answer(self, status: int) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            with lock:
                seen[self.command] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
