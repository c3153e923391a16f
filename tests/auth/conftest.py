"""A Tuist server, and gates that ask it."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.tuist_upstream import TuistUpstream, tuist_upstream
from undercroft.auth.counted_gate import CountedGate
from undercroft.auth.grants import Question, Right
from undercroft.auth.tuist_client import TuistClient
from undercroft.auth.tuist_jwt import TuistTokens
from undercroft.auth.tuist_server import TuistGate
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata

EVENTS = (events.AUTH_CACHE, events.AUTHORIZED, events.AUTH_REFUSED, events.AUTH_SERVER_REQUEST)
APP = ("acme", "app")


class Times:
    """Both clocks of a gate, in seconds."""

    def __init__(self) -> None:
        self.monotonic = 50.0
        self.wall = 1_800_000_000.0

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


class GateRig:
    """A gate with its clocks, and what it told."""

    def __init__(self, url: str, secret: str | None = None, *, timeout_ms: int, anonymous_read: bool) -> None:
        self.times = Times()
        self.told: Counter[str] = Counter()
        telemetry = Events()
        for name in EVENTS:
            telemetry.attach(name, self._tell(name))
        self.tuist = TuistGate(
            TuistClient(url, telemetry, timeout_ms=timeout_ms),
            telemetry,
            tokens=None if secret is None else TuistTokens(secret),
            anonymous_read=anonymous_read,
            monotonic=lambda: self.times.monotonic,
            wall=lambda: self.times.wall,
        )
        self.gate = CountedGate(self.tuist, telemetry)

    def _tell(self, event: str) -> Callable[[Measurements, Metadata], None]:
        def on_event(_measurements: Measurements, metadata: Metadata) -> None:
            self.told[" ".join([event.removeprefix("undercroft.auth."), *metadata.values()])] += 1

        return on_event

    async def admit(self, *args: Any, **more: Any) -> str | None:
        """The name of who is let in."""
        return (await self.gate.admit(asked(*args, **more))).name


def asked(
    credential: str | None = "secret-1",
    right: Right = "read",
    project: tuple[str, str] | Exception = APP,
    request_id: bytes = b"request-1",
) -> Question:
    def read_project() -> tuple[str, str]:
        if isinstance(project, Exception):
            raise project
        return project

    header = None if credential is None else f"Bearer {credential}".encode()
    return Question(header, right, read_project, request_id)


OpenGate = Callable[..., GateRig]


@pytest.fixture
async def upstream() -> AsyncIterator[TuistUpstream]:
    async with tuist_upstream() as upstream:
        yield upstream


@pytest.fixture
async def open_gate(upstream: TuistUpstream) -> AsyncIterator[OpenGate]:
    """Opens gates that are closed after the test."""
    async with AsyncExitStack() as stack:

        def open_one(
            secret: str | None = None,
            *,
            url: str = "",
            timeout_ms: int = 20_000,
            anonymous_read: bool = False,
        ) -> GateRig:
            rig = GateRig(url or upstream.url, secret, timeout_ms=timeout_ms, anonymous_read=anonymous_read)
            rig.tuist.open()
            stack.push_async_callback(rig.tuist.close)
            return rig

        yield open_one
