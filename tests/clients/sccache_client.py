"""Builds a C program through sccache with a WebDAV server behind it."""

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build_client import Build
from .c_project import CProject, c_project_in, write_c_project
from .commands import CommandError, run
from .daemon import Daemon
from .digests import digests_under
from .installed import require, require_python

_COMPILE = ("gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-c")
_COMMAND_LIMIT = 60.0
_JOBS = 4


@dataclass(frozen=True)
class SccacheClient:
    """sccache with a server of its own for each build; a token is sent as Bearer."""

    name: str = "sccache"
    path: str = "/webdav/acme/app"
    # Its server asks the cache something at its start, and does not start without an answer.
    survives_absence: bool = False

    def require(self) -> None:
        """Ask for sccache and a compiler."""
        require_python("sccache")
        require("gcc", "gcc")

    def version(self) -> str:
        """Its version."""
        argv = [require_python("sccache"), "--version"]
        return run(argv, Path("/"), {}, _COMMAND_LIMIT).stdout.split()[1]

    def write_project(self, folder: Path, marker: str) -> None:
        """A program in C."""
        write_c_project(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Compile every file; red when sccache does not start or a compilation fails."""
        sources = c_project_in(project)
        outputs = local / "outputs"
        outputs.mkdir(parents=True)
        began = time.monotonic()
        try:
            with _server(_environment(url, local, token), local) as env:
                _compile(sources, outputs, env)
                statistics = _statistics(local, env)
        except CommandError as error:
            return Build(
                False, 0, len(sources.sources), time.monotonic() - began, {}, (str(error),), str(error)
            )
        return Build(
            green=True,
            hits=sum(statistics["cache_hits"]["counts"].values()),
            cacheable=statistics["requests_executed"],
            seconds=time.monotonic() - began,
            outputs=digests_under(outputs),
            complaints=_complaints(statistics),
            messages=json.dumps(statistics),
        )


def _complaints(statistics: Mapping[str, Any]) -> list[str]:
    errors = {
        name: statistics[name] for name in ("cache_timeouts", "cache_read_errors", "cache_write_errors")
    }
    return [f"{name}: {count}" for name, count in errors.items() if count]


def _environment(url: str, local: Path, token: str | None) -> dict[str, str]:
    (local / "empty.conf").touch()
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(local),
        "LC_ALL": "C",
        "SCCACHE_CONF": str(local / "empty.conf"),
        "SCCACHE_SERVER_UDS": str(local / "socket"),
        "SCCACHE_WEBDAV_ENDPOINT": url,
        "SCCACHE_WEBDAV_KEY_PREFIX": "sccache",
        # Should the tests be killed, the server ends by itself.
        "SCCACHE_IDLE_TIMEOUT": "60",
    } | ({"SCCACHE_WEBDAV_TOKEN": token} if token else {})


@contextmanager
def _server(env: Mapping[str, str], local: Path) -> Iterator[Mapping[str, str]]:
    """Uploads go on after compilations; what the server was told before its stop, it finishes."""
    run([require_python("sccache"), "--start-server"], local, env, _COMMAND_LIMIT)
    with closing(Daemon(_listener(env["SCCACHE_SERVER_UDS"]))) as daemon:
        try:
            yield env
        finally:
            with suppress(CommandError):
                run([require_python("sccache"), "--stop-server"], local, env, _COMMAND_LIMIT)
            daemon.end()


def _listener(path: str) -> int:
    """The id of the process that listens on a Unix socket; the kernel tells who connects."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid


def _compile(project: CProject, outputs: Path, env: Mapping[str, str]) -> None:
    sccache = require_python("sccache")

    def compile_one(source: str) -> None:
        target = outputs / Path(source).with_suffix(".o")
        run([sccache, *_COMPILE, source, "-o", str(target)], project.folder, env, _COMMAND_LIMIT)

    with ThreadPoolExecutor(_JOBS) as pool:
        list(pool.map(compile_one, project.sources))


def _statistics(local: Path, env: Mapping[str, str]) -> dict[str, Any]:
    argv = [require_python("sccache"), "--show-stats", "--stats-format", "json"]
    statistics: dict[str, Any] = json.loads(run(argv, local, env, _COMMAND_LIMIT).stdout)["stats"]
    return statistics
