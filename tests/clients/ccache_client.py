"""Builds a C program through ccache, with an HTTP cache behind it."""

import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .build_client import Build
from .c_project import CProject, c_project_in, write_c_project
from .commands import CommandError, run
from .digests import digests_under
from .installed import require

Layout = Literal["subdirs", "flat", "bazel"]

_COMPILE = ("ccache", "gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-c")
_COMMAND_LIMIT = 60.0
_JOBS = 4
_PROGRAM = "program"

FAULTS = ("remote_storage_error", "remote_storage_timeout")
"""Counters of what was wrong with the remote storage."""


@dataclass(frozen=True)
class CcacheBuild:
    """What a build left: ccache's counters, the digests of its files, what the program said."""

    stats: Mapping[str, int]
    outputs: Mapping[str, str]
    printed: str


@dataclass(frozen=True)
class CcacheClient:
    """ccache with one remote storage and no configuration but this."""

    url: str
    layout: Layout
    bearer_token: str | None = None

    def build(self, project: CProject, local: Path) -> CcacheBuild:
        """Compile, link and run `project`; the new folder `local` holds cache and outputs."""
        outputs = local / "outputs"
        outputs.mkdir(parents=True)
        env = self._environment(local)
        self._compile(project, outputs, env)
        printed = _link_and_run(project, outputs, env)
        return CcacheBuild(_stats(local, env), digests_under(outputs), printed)

    def _environment(self, local: Path) -> dict[str, str]:
        configuration = local / "empty.conf"
        configuration.touch()
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(local),
            "LC_ALL": "C",
            "CCACHE_CONFIGPATH": str(configuration),
            "CCACHE_DIR": str(local / "cache"),
            "CCACHE_REMOTE_STORAGE": "|".join(self._remote_storage()),
        }

    def _remote_storage(self) -> Iterator[str]:
        yield self.url
        yield f"layout={self.layout}"
        # The default of 100 ms for a connection is too short for a machine under load.
        yield "connect-timeout=2000"
        yield "operation-timeout=20000"
        if self.bearer_token is not None:
            yield f"bearer-token={self.bearer_token}"

    def _compile(self, project: CProject, outputs: Path, env: Mapping[str, str]) -> None:
        def compile_one(source: str) -> None:
            target = outputs / Path(source).with_suffix(".o")
            run([*_COMPILE, source, "-o", str(target)], project.folder, env, _COMMAND_LIMIT)

        with ThreadPoolExecutor(_JOBS) as pool:
            list(pool.map(compile_one, project.sources))


@dataclass(frozen=True)
class CcacheBuilds:
    """The same through the interface all tools share; a token is sent as Bearer."""

    name: str = "ccache"
    path: str = "/ccache/acme/app"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for ccache and a compiler."""
        require("ccache", "ccache")
        require("gcc", "gcc")

    def version(self) -> str:
        """Its version."""
        text = run(["ccache", "--version"], Path("/"), {"PATH": "/usr/bin:/bin"}, _COMMAND_LIMIT).stdout
        return text.splitlines()[0].removeprefix("ccache version ")

    def write_project(self, folder: Path, marker: str) -> None:
        """A program in C."""
        write_c_project(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Compile, link and run; what ccache received and could use is a hit."""
        sources = c_project_in(project)
        began = time.monotonic()
        try:
            build = CcacheClient(url, "subdirs", token).build(sources, local)
        except CommandError as error:
            return Build(
                False, 0, len(sources.sources), time.monotonic() - began, {}, (str(error),), str(error)
            )
        seconds = time.monotonic() - began
        stats = build.stats
        # The first counts what came, damaged or not; the second what was of use. The local cache is empty.
        hits = min(stats["remote_storage_hit"], stats["direct_cache_hit"] + stats["preprocessed_cache_hit"])
        complaints = [f"{name}: {stats[name]}" for name in FAULTS if stats[name]]
        return Build(
            green=True,
            hits=hits,
            cacheable=len(sources.sources),
            seconds=seconds,
            outputs=build.outputs,
            complaints=complaints,
            messages=str(stats),
        )


def _link_and_run(project: CProject, outputs: Path, env: Mapping[str, str]) -> str:
    objects = [str(Path(source).with_suffix(".o")) for source in project.sources]
    run(["gcc", *objects, "-o", _PROGRAM], outputs, env, _COMMAND_LIMIT)
    return run([str(outputs / _PROGRAM)], outputs, env, _COMMAND_LIMIT).stdout.strip()


def _stats(local: Path, env: Mapping[str, str]) -> dict[str, int]:
    text = run(["ccache", "--print-stats"], local, env, _COMMAND_LIMIT).stdout
    return {name: int(value) for name, value in re.findall(r"^(\w+)\t(\d+)$", text, re.MULTILINE)}
