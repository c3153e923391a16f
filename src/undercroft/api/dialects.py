"""Every build tool the node speaks to: one line each. Add yours here, and its file beside this one."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from undercroft.api.bazel import BazelApi
from undercroft.api.ccache import CcacheApi
from undercroft.api.errors import Answers
from undercroft.api.gradle import GradleApi
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.api.tuist import TuistApi
from undercroft.api.turborepo import TurborepoApi, turborepo_error


class DialectApi(Protocol):
    """What a dialect is to the node: routes."""

    def routes(self) -> list[Route]:
        """The routes of this dialect."""


class Dialect(NamedTuple):
    """Which paths are the tool's, who answers them, and what it is told when something is wrong."""

    prefix: bytes
    api: Callable[[Services], DialectApi]
    answers: Answers


# Bazel repeats 5xx five times with growing pauses, so it gets a 4xx for what will not get better soon;
# Gradle turns its cache off at whatever it does not know, and forgives 413. Turborepo repeats 5xx and 429,
# and then lets its cache rest for half a minute.
TURBOREPO = Answers(full_now=412, too_large=413, refused=413, busy=412, render=turborepo_error)

# fmt: off
DIALECTS = (
    Dialect(b"/api/cache/", TuistApi, Answers(full_now=507, too_large=413, refused=400, busy=503)),
    Dialect(b"/gradle/", GradleApi, Answers(full_now=413, too_large=413, refused=413, busy=413)),
    Dialect(b"/bazel/", BazelApi, Answers(full_now=413, too_large=413, refused=413, busy=413, mismatch=400)),
    Dialect(b"/ccache/", CcacheApi, Answers(full_now=413, too_large=413, refused=413, busy=413)),
    Dialect(b"/turborepo/", TurborepoApi, TURBOREPO),
)
# fmt: on

# What belongs to no tool: /up, /metrics, /api/spec. Who watches the node must see that it is broken.
NODE = Answers(full_now=503, too_large=413, refused=503, busy=503, broken=503)


def answers_for(raw_path: bytes) -> Answers:
    """How the client that asks for this path wants to hear of errors."""
    found = (dialect.answers for dialect in DIALECTS if raw_path.startswith(dialect.prefix))
    return next(found, NODE)


def dialect_routes(services: Services) -> list[Route]:
    """The routes of all of them."""
    return [route for dialect in DIALECTS for route in dialect.api(services).routes()]
