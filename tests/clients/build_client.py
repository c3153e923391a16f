"""What the tests ask of every build tool, however it names its statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Build:
    """What one build came to, by the tool's own statistics."""

    green: bool
    """Whether the tool ended with success."""
    hits: int
    """Steps whose result came from the node."""
    cacheable: int
    """Steps that could have come from there."""
    seconds: float
    outputs: Mapping[str, str]
    """Digests of what was built, by path."""
    complaints: Sequence[str]
    """What it said of trouble with its cache."""
    messages: str
    """What the tool said, for the one who reads a failure."""


class BuildClient(Protocol):
    """One build tool with one remote cache, and no configuration but the project's and this."""

    @property
    def name(self) -> str:
        """The tool, in lower case; its tests are called by it."""

    @property
    def path(self) -> str:
        """Where on a node its cache of one project lies; begins with a slash."""

    @property
    def survives_absence(self) -> bool:
        """Whether its build stays green while nothing listens at the node's address, or nobody lets it in."""

    def require(self) -> None:
        """Skip the test, or fail it, when the tool is not installed."""

    def version(self) -> str:
        """What the tool calls itself."""

    def write_project(self, folder: Path, marker: str) -> None:
        """Write a project into the new `folder`, with `marker` among the inputs of every step."""

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Build all of `project` with the cache at `url`.

        The new folder `local` gets everything the tool keeps: local caches, daemons' files,
        outputs. `project` stays as it is. A `token` is passed in the tool's own way. No process
        is left behind. Raises `CommandError` when the tool hangs; a red build is an answer.
        """
