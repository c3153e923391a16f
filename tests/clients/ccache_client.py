"""Builds a C program through ccache, with an HTTP cache behind it."""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .c_project import CProject
from .commands import run
from .digests import digests_under

Layout = Literal["subdirs", "flat", "bazel"]

_COMPILE = ("ccache", "gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-c")
_COMMAND_LIMIT = 60.0
_JOBS = 4
_PROGRAM = "program"


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


def _link_and_run(project: CProject, outputs: Path, env: Mapping[str, str]) -> str:
    objects = [str(Path(source).with_suffix(".o")) for source in project.sources]
    run(["gcc", *objects, "-o", _PROGRAM], outputs, env, _COMMAND_LIMIT)
    return run([str(outputs / _PROGRAM)], outputs, env, _COMMAND_LIMIT).stdout.strip()


def _stats(local: Path, env: Mapping[str, str]) -> dict[str, int]:
    text = run(["ccache", "--print-stats"], local, env, _COMMAND_LIMIT).stdout
    return {name: int(value) for name, value in re.findall(r"^(\w+)\t(\d+)$", text, re.MULTILINE)}
