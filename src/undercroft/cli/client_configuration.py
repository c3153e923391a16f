"""How each build tool is told to use a node: the very text that goes into its files and environment."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec


class Target(NamedTuple):
    """Which cache a tool is to use."""

    url: str
    """Of the node, without a slash at the end."""
    account: str
    project: str
    token: str | None
    """None where the node asks nobody who they are."""

    def base(self, tool: str) -> str:
        """Where the cache of the project lies for a tool."""
        return f"{self.url}/{tool}/{self.account}/{self.project}"


# Of languages that have no "#" for it.
COMMENTS = {"groovy": "//", "swift": "//"}


class Snippet(msgspec.Struct, frozen=True):
    """A piece of configuration and where it belongs."""

    place: str
    language: str
    text: str

    @property
    def with_place(self) -> str:
        """The text below a comment that says where it belongs."""
        return f"{COMMENTS.get(self.language, '#')} {self.place}\n{self.text}"


def _lines(*lines: str | None) -> str:
    return "\n".join(line for line in lines if line is not None)


def _environment(*lines: str | None, place: str = "in the environment of the build") -> Snippet:
    return Snippet(place, "sh", _lines(*lines))


def _bazel(target: Target) -> list[Snippet]:
    header = None
    if target.token is not None:
        header = f'build --remote_header="Authorization=Bearer {target.token}"'
    text = _lines(f"build --remote_cache={target.base('bazel')}", header)
    return [Snippet("in .bazelrc of the workspace, or ~/.bazelrc", "bazelrc", text)]


def _ccache(target: Target) -> list[Snippet]:
    token = "" if target.token is None else f"|bearer-token={target.token}"
    return [_environment(f"export CCACHE_REMOTE_STORAGE='{target.base('ccache')}{token}'")]


def _gradle(target: Target) -> list[Snippet]:
    # Gradle wants to be told that plain http is meant; versions before 6.2 do not know the word.
    insecure = "        if (delegate.hasProperty('allowInsecureProtocol')) allowInsecureProtocol = true"
    credentials = None
    if target.token is not None:
        credentials = _lines(
            "        credentials {",
            "            username = 'token'",
            "            password = System.getenv('CACHE_TOKEN')",
            "        }",
        )
    text = _lines(
        "buildCache {",
        "    remote(HttpBuildCache) {",
        f"        url = '{target.base('gradle')}/'",
        "        push = true",
        None if target.url.startswith("https:") else insecure,
        credentials,
        "    }",
        "}",
    )
    found = [Snippet("in settings.gradle; run gradle with --build-cache", "groovy", text)]
    if target.token is not None:
        found.append(_environment(f"export CACHE_TOKEN={target.token}"))
    return found


def _nx(target: Target) -> list[Snippet]:
    token = None
    if target.token is not None:
        token = f"export NX_SELF_HOSTED_REMOTE_CACHE_ACCESS_TOKEN={target.token}"
    return [_environment(f"export NX_SELF_HOSTED_REMOTE_CACHE_SERVER={target.base('nx')}", token)]


def _sccache(target: Target) -> list[Snippet]:
    return [
        _environment(
            f"export SCCACHE_WEBDAV_ENDPOINT={target.base('webdav')}",
            "export SCCACHE_WEBDAV_KEY_PREFIX=sccache",
            None if target.token is None else f"export SCCACHE_WEBDAV_TOKEN={target.token}",
            place="in the environment of the sccache server (sccache --stop-server ends one that runs)",
        )
    ]


def _turborepo(target: Target) -> list[Snippet]:
    # Without a team and a token turbo asks no remote cache, even one that wants neither.
    return [
        _environment(
            f"export TURBO_API={target.base('turborepo')}",
            f"export TURBO_TEAM={target.account}",
            f"export TURBO_TOKEN={target.token or 'none'}",
        )
    ]


def _tuist(target: Target) -> list[Snippet]:
    handle = f'let tuist = Tuist(fullHandle: "{target.account}/{target.project}")'
    return [
        Snippet(
            "in Tuist.swift, beside what is there", "swift", _lines("import ProjectDescription", "", handle)
        ),
        _environment(
            f"export TUIST_CACHE_ENDPOINT={target.url}",
            None if target.token is None else f"export TUIST_TOKEN={target.token}",
        ),
    ]


TOOLS: Mapping[str, Callable[[Target], list[Snippet]]] = {
    "bazel": _bazel,
    "ccache": _ccache,
    "gradle": _gradle,
    "nx": _nx,
    "sccache": _sccache,
    "tuist": _tuist,
    "turborepo": _turborepo,
}
