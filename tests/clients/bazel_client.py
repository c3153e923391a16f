"""Builds the folder `bazel_workspace` with Debian's Bazel 4.2.3, an HTTP cache and no network."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .build_client import Build
from .commands import Attempt, CommandError, Output, run, try_to_run
from .daemon import Daemon
from .digests import digests_under
from .installed import require, require_folder

_WORKSPACE = Path(__file__).parent / "bazel_workspace"
_RULES_CC = Path("/usr/share/bazel/rules/cc")

# What a build without network takes from the machine: repository name, Debian package, folder.
DEBIAN_REPOSITORIES: tuple[tuple[str, str, Path], ...] = (
    ("rules_cc", "bazel-rules-cc", _RULES_CC),
    ("rules_java", "bazel-rules-java", Path("/usr/share/bazel/rules/java")),
    ("rules_proto", "bazel-rules-proto", Path("/usr/share/bazel/rules/proto")),
    ("platforms", "bazel-platforms", Path("/usr/share/bazel/tools/platforms")),
    ("bazel_skylib", "bazel-skylib", Path("/usr/share/bazel/tools/skylib")),
)

_BUILD_LIMIT = 180.0
_COMMAND_LIMIT = 30.0
# "WARNING: Reading from Remote Cache:" and "WARNING: Writing to Remote Cache:".
_COMPLAINT = re.compile(r"^.*Remote Cache:.*$", re.MULTILINE)

# A short-lived server: little memory, and no time spent on optimising its code.
_JVM = tuple(
    f"--host_jvm_args={option}" for option in ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
)

_BUILD_FLAGS = (
    "--jobs=2",
    "--spawn_strategy=local",
    "--color=no",
    "--curses=no",
    "--noshow_progress",
    "--symlink_prefix=/",
    "--incompatible_strict_action_env",
    "--remote_upload_local_results",
    "--remote_timeout=20",
)


@dataclass(frozen=True)
class BazelBuild:
    """What a build left: how its actions were run, the digests of its outputs, its messages."""

    green: bool
    seconds: float
    processes: Mapping[str, int]
    outputs: Mapping[str, str]
    messages: str

    @property
    def spawned(self) -> int:
        """Actions that needed a command, or a cache in its place."""
        return sum(count for how, count in self.processes.items() if how != "internal")

    @property
    def remote_hits(self) -> int:
        """Actions whose result came from the remote cache."""
        return self.processes.get("remote cache hit", 0)


@dataclass(frozen=True)
class BazelClient:
    """Bazel with one remote cache and no configuration but the system's and this."""

    url: str
    bearer_token: str | None = None

    def build(self, workspace: Path, local: Path) -> BazelBuild:
        """Build everything; the new folder `local` holds all of Bazel's state and outputs."""
        local.mkdir(parents=True)
        with _server(workspace, local) as server:
            attempt = server.try_to_run("build", "//...", *self._flags(local), limit=_BUILD_LIMIT)
            messages = attempt.output.stderr
            outputs = server.run("info", "bazel-bin", *_overrides(local)).stdout.strip()
            return BazelBuild(
                attempt.code == 0,
                attempt.seconds,
                processes_in(messages),
                _outputs_under(Path(outputs)),
                messages,
            )

    def _flags(self, local: Path) -> Iterator[str]:
        yield from _BUILD_FLAGS
        yield from _overrides(_with_patched_rules(local))
        yield f"--remote_cache={self.url}"
        if self.bearer_token is not None:
            yield f"--remote_header=Authorization=Bearer {self.bearer_token}"


def write_workspace(folder: Path, marker: str) -> Path:
    """Copy the workspace into the new `folder`, with `marker` in the inputs of each action."""
    shutil.copytree(_WORKSPACE, folder)
    (folder / "marker.h").write_text(f'#define MARKER "{marker}"\n')
    (folder / "marker.txt").write_text(f"{marker}\n")
    return folder


def processes_in(messages: str) -> dict[str, int]:
    """Read Bazel's last summary: "12 processes: 6 remote cache hit, 6 internal."."""
    summaries = re.findall(r"^INFO: \d+ process(?:es)?: (.+)\.$", messages, re.MULTILINE)
    if not summaries:
        raise ValueError(f"no summary of processes in {messages}")
    return {how: int(count) for count, how in re.findall(r"(\d+) ([^,]+)", summaries[-1])}


def _with_patched_rules(local: Path) -> Path:
    """Copy rules_cc; Debian's asks for a function that Bazel 4.2.3 does not have."""
    copy = local / "rules_cc"
    shutil.copytree(_RULES_CC, copy)
    for rule in (copy / "cc" / "private" / "rules_impl").glob("*.bzl"):
        text = rule.read_text().replace(', "use_cpp_toolchain"', "")
        toolchains = '["@bazel_tools//tools/cpp:toolchain_type"]'
        rule.write_text(text.replace("use_cpp_toolchain()", toolchains))
    return local


def _overrides(local: Path) -> Iterator[str]:
    for name, _, folder in DEBIAN_REPOSITORIES:
        used = local / "rules_cc" if folder == _RULES_CC else folder
        yield f"--override_repository={name}={used}"


def _outputs_under(folder: Path) -> dict[str, str]:
    digests = digests_under(folder)
    # Manifests of runfiles name the output folder, which differs from build to build.
    return {path: digest for path, digest in digests.items() if ".runfiles" not in path}


@dataclass(frozen=True)
class BazelBuilds:
    """The same through the interface all tools share; a token goes into `--remote_header`."""

    name: str = "bazel"
    path: str = "/bazel/acme/app"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for Bazel, a compiler, and everything that replaces the network."""
        require("bazel", "bazel-bootstrap")
        require("g++", "g++")
        for _, package, folder in DEBIAN_REPOSITORIES:
            require_folder(folder, package)

    def version(self) -> str:
        """The version of the Debian package: asking Bazel itself would start a server."""
        argv = ["dpkg-query", "--show", "--showformat=${Version}", "bazel-bootstrap"]
        return run(argv, Path("/"), {"PATH": "/usr/bin:/bin"}, _COMMAND_LIMIT).stdout.partition("+")[0]

    def write_project(self, folder: Path, marker: str) -> None:
        """Libraries, a program and generated files."""
        write_workspace(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Build everything with a server of its own."""
        build = BazelClient(url, token).build(project, local)
        return Build(
            green=build.green,
            hits=build.remote_hits,
            cacheable=build.spawned,
            seconds=build.seconds,
            outputs=build.outputs,
            complaints=_COMPLAINT.findall(build.messages),
            messages=build.messages,
        )


@dataclass(frozen=True)
class _Server:
    """The Bazel server of one workspace; it starts with the first command."""

    workspace: Path
    local: Path

    def run(self, command: str, *flags: str) -> Output:
        return run(self._argv(command, *flags), self.workspace, self._env(), _COMMAND_LIMIT)

    def try_to_run(self, command: str, *flags: str, limit: float) -> Attempt:
        return try_to_run(self._argv(command, *flags), self.workspace, self._env(), limit)

    def _argv(self, command: str, *flags: str) -> list[str]:
        return ["bazel", *self._startup(), command, *flags]

    def stop(self) -> None:
        """Shut the server down; end it by its process id if it does not obey."""
        with suppress(FileNotFoundError, ProcessLookupError), closing(self._process()) as process:
            with suppress(CommandError):
                self.run("shutdown")
            process.end()

    def _process(self) -> Daemon:
        return Daemon(int((self._base() / "server" / "server.pid.txt").read_text()))

    def _base(self) -> Path:
        return self.local / "base"

    def _startup(self) -> Iterator[str]:
        yield "--nohome_rc"
        yield f"--output_user_root={self.local / 'user'}"
        yield f"--output_base={self._base()}"
        yield from _JVM
        yield "--max_idle_secs=60"

    def _env(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.local), "LC_ALL": "C"}


@contextmanager
def _server(workspace: Path, local: Path) -> Iterator[_Server]:
    server = _Server(workspace, local)
    try:
        yield server
    finally:
        server.stop()
