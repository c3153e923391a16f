"""How the load generator speaks each build tool's HTTP: where an entry lies, how it is stored."""

from collections.abc import Callable
from dataclasses import dataclass

QUERY = "account_handle=acme&project_handle=app"
STORED = frozenset({200, 201, 202, 204})


@dataclass(frozen=True)
class Dialect:
    """One tool's routes. `path` makes one of 64 hexadecimal digits that name the entry."""

    name: str
    home: str
    """Where the node has it; any other server has it below the URL that is given."""
    path: Callable[[str], str]
    method: str = "PUT"
    store_path: Callable[[str], str] | None = None
    """Where it is stored, if not where it is fetched."""
    headers: str = ""
    by_content: bool = False
    """The name must be the SHA-256 of the body."""


def _decimal(name: str) -> str:
    return str(int(name[:15], 16))


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("bazel", "/bazel/acme/app", lambda name: f"/cas/{name}", by_content=True),
        Dialect("ccache", "/ccache/acme/app", lambda name: f"/{name[:2]}/{name[2:40]}"),
        Dialect(
            "gradle",
            "/gradle/acme/app",
            lambda name: f"/{name[:32]}",
            headers="Content-Type: application/vnd.gradle.build-cache-artifact.v2\r\n",
        ),
        Dialect(
            "turborepo",
            "/turborepo/acme/app",
            # The team is asked for by other servers, and ignored by the node.
            lambda name: f"/v8/artifacts/{name[:16]}?teamId=team_benchmark",
            headers="Content-Type: application/octet-stream\r\nx-artifact-duration: 1200\r\n",
        ),
        Dialect("nx", "/nx/acme/app", lambda name: f"/v1/cache/{_decimal(name)}"),
        Dialect("webdav", "/webdav/acme/app", lambda name: f"/{name[0]}/{name[1]}/{name[2]}/{name}"),
        Dialect("static", "", lambda name: f"/{name}"),
        Dialect("xcode", "", lambda name: f"/api/cache/cas/{name}?{QUERY}", method="POST"),
        Dialect(
            "key_values",
            "",
            lambda name: f"/api/cache/keyvalue/{name}?{QUERY}",
            store_path=lambda _name: f"/api/cache/keyvalue?{QUERY}",
            headers="Content-Type: application/json\r\n",
        ),
    )
}

FOREIGN = ("bazel", "ccache", "gradle", "turborepo", "nx", "webdav", "static")
"""What `--dialect` takes for a server that is not the node."""

NODE = "node"
"""All dialects of the node together, each for what its tool stores."""

SMALL_OF_NODE = ("ccache", "bazel", "webdav", "xcode")
MODULES_OF_NODE = ("gradle", "turborepo", "nx")
