"""Builds the folder `gradle_project` with Debian's Gradle 4.4.1 and its HTTP build cache."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .build_client import Build
from .commands import run, try_to_run
from .digests import digests_under
from .installed import require
from .marked_copy import write_marked_copy

_PROJECT = Path(__file__).parent / "gradle_project"
_BUILD_LIMIT = 100.0
_COMMAND_LIMIT = 30.0
_COMPLAINT = re.compile(r"^.*(?:Could not|disabled|build cache entry).*$", re.MULTILINE)

# A short-lived process: little memory, and no time spent on optimising its code.
_JVM = "-Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@dataclass(frozen=True)
class GradleClient:
    """Gradle with the local build cache off; a token is the password of preemptive Basic."""

    name: str = "gradle"
    path: str = "/gradle/acme/app/"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for Gradle and a compiler."""
        require("gradle", "gradle")
        require("javac", "default-jdk-headless")

    def version(self) -> str:
        """Its version, and that of Java below it."""
        text = run(
            ["gradle", "--version"], Path("/"), _environment(Path("/nonexistent")), _COMMAND_LIMIT
        ).stdout
        found = dict(re.findall(r"^(Gradle|JVM):? +([\d.]+)", text, re.MULTILINE))
        return f"{found['Gradle']} on JDK {found['JVM']}"

    def write_project(self, folder: Path, marker: str) -> None:
        """A library and an application in Java: two steps each can be cached."""
        write_marked_copy(_PROJECT, folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Assemble everything in a copy; no daemon is used."""
        # --offline would switch the remote cache off.
        command = ["gradle", "--no-daemon", "--build-cache", "--console=plain", "assemble"]
        workspace = local / "workspace"
        shutil.copytree(project, workspace)
        env = _environment(local) | {"CACHE_URL": url} | ({"CACHE_TOKEN": token} if token else {})
        attempt = try_to_run(command, workspace, env, _BUILD_LIMIT)
        messages = attempt.output.stdout + attempt.output.stderr
        states = dict(_tasks_in(messages))
        return Build(
            green=attempt.code == 0,
            hits=list(states.values()).count("FROM-CACHE"),
            cacheable=len(states),
            seconds=attempt.seconds,
            outputs=_outputs_under(workspace),
            complaints=_COMPLAINT.findall(messages),
            messages=messages,
        )


def _tasks_in(messages: str) -> Iterator[tuple[str, str]]:
    """The cacheable tasks that ran, and what was said of each: nothing, or FROM-CACHE."""
    yield from re.findall(r"^(:\w+:(?:compileJava|report))(?: (\S+))?$", messages, re.MULTILINE)


def _outputs_under(workspace: Path) -> dict[str, str]:
    digests = digests_under(workspace)
    built = re.compile(r"^\w+/build/(classes/.*\.class|report\.txt|libs/.*\.jar)$")
    return {path: digest for path, digest in digests.items() if built.match(path)}


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C", "GRADLE_OPTS": _JVM}
