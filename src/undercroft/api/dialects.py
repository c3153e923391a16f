"""Every build tool the node speaks to: one line each. Add yours here, and its file beside this one."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from undercroft.api.bazel import BazelApi
from undercroft.api.ccache import CcacheApi
from undercroft.api.errors import Answers
from undercroft.api.gradle import GradleApi
from undercroft.api.nx import NX, NxApi
from undercroft.api.request import Request
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.api.tuist import TuistApi
from undercroft.api.tuist_module import TuistModuleApi
from undercroft.api.tuist_project import project_in
from undercroft.api.turborepo import TurborepoApi, turborepo_error
from undercroft.api.webdav import WebdavApi
from undercroft.auth.grants import Project
from undercroft.storage.layout import safe_handle


class DialectApi(Protocol):
    """What a dialect is to the node: routes."""

    def routes(self) -> list[Route]:
        """The routes of this dialect."""


def _in_path(request: Request) -> Project:
    account, project = request.parameters[:2]
    return safe_handle(account, "account"), safe_handle(project, "project")


class Dialect(NamedTuple):
    """Which paths are the tool's, who answers them, and what it is told when something is wrong."""

    prefix: bytes
    api: Callable[[Services], DialectApi]
    answers: Answers
    project: Callable[[Request], Project] = _in_path


# Bazel repeats 5xx five times with growing pauses, so it gets a 4xx for what will not get better soon;
# Gradle turns its cache off at whatever it does not know, and forgives 413. Turborepo repeats 5xx and 429,
# and then lets its cache rest for half a minute. sccache does not start, and compiles nothing, unless what
# it reads first is there or not there; that it may not write it hears when it writes.
TUIST = Answers(full_now=507, too_large=413, refused=400, busy=503, access_unknown=503)
SOFT = Answers(full_now=413, too_large=413, refused=413, busy=413)

DIALECTS = (
    Dialect(b"/api/cache/module/", TuistModuleApi, TUIST, project_in),
    Dialect(b"/api/cache/", TuistApi, TUIST, project_in),
    Dialect(b"/gradle/", GradleApi, SOFT._replace(read_only=413)),
    Dialect(b"/bazel/", BazelApi, SOFT._replace(mismatch=400)),
    Dialect(b"/ccache/", CcacheApi, SOFT),
    Dialect(b"/webdav/", WebdavApi, SOFT._replace(unauthenticated_read=404, forbidden_read=404)),
    Dialect(b"/turborepo/", TurborepoApi, SOFT._replace(full_now=412, busy=412, render=turborepo_error)),
    Dialect(b"/nx/", NxApi, NX),
)

# What belongs to no tool: /up, /metrics, /api/spec. Who watches the node must see that it is broken.
NODE = Answers(full_now=503, too_large=413, refused=503, busy=503, broken=503)


def answers_for(raw_path: bytes) -> Answers:
    """How the client that asks for this path wants to hear of errors."""
    found = (dialect.answers for dialect in DIALECTS if raw_path.startswith(dialect.prefix))
    return next(found, NODE)


def project_of(request: Request, raw_path: bytes) -> Project:
    """The project a request is about. Raises `BadRequestError`, `InvalidKeyError`."""
    dialect = next(dialect for dialect in DIALECTS if raw_path.startswith(dialect.prefix))
    return dialect.project(request)


def dialect_routes(services: Services) -> list[Route]:
    """The routes of all of them."""
    return [route for dialect in DIALECTS for route in dialect.api(services).routes()]
