"""A quick, blocking HTTP client with one connection, and the requests the tests send with it."""

import http.client
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

TENANT = "account_handle=acme&project_handle=app"

# Longer than any test waits on purpose.
TIMEOUT_S = 60


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def in_turns(url: str, workers: int) -> Iterator[Iterator["Client"]]:
    """Clients without an end, so that each of several workers is likely to be asked; one for one worker."""
    with ExitStack() as stack:
        yield itertools.cycle([stack.enter_context(Client(url)) for _ in range(4 * workers - 3)])


class Client:
    """Requests to one node. Not for two threads at once."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        with self._in_one_piece():
            self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        return Answer(
            response.status,
            {name.lower(): value for name, value in response.headers.items()},
            response.read(),
        )

    @contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """Head and body leave together, as most tools send what is small."""
        if self.connection.sock is None:
            self.connection.connect()
        self._cork(1)
        yield
        self._cork(0)

    def _cork(self, on: int) -> None:
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    # --- key values ---

    def put_value(self, cas_id: str, value: str, tenant: str = TENANT) -> Answer:
        body = json.dumps({"cas_id": cas_id, "entries": [{"value": value}]}).encode()
        return self.request("PUT", f"/api/cache/keyvalue?{tenant}", body)

    def get_value(self, cas_id: str, tenant: str = TENANT) -> str | None:
        """The only value of a key; None when there is none."""
        answer = self.request("GET", f"/api/cache/keyvalue/{cas_id}?{tenant}")
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        (entry,) = json.loads(answer.body)["entries"]
        return str(entry["value"])

    # --- artifacts ---

    def put_ccache(self, key: str, body: bytes) -> Answer:
        return self.request("PUT", f"/ccache/acme/app/{key}", body)

    def get_ccache(self, key: str) -> bytes | None:
        return self.get_bytes(f"/ccache/acme/app/{key}")

    def get_bytes(self, path: str) -> bytes | None:
        """The whole body; None when there is nothing."""
        answer = self.request("GET", path)
        assert answer.status in (200, 404), answer
        return answer.body if answer.status == 200 else None

    # --- metrics ---

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name which carry the labels."""
        families = text_string_to_metric_families(self.request("GET", "/metrics").body.decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()


def eventually(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Waits for what another process does and tells nobody."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
