"""What a caller may do, in which projects, and in which trust scope."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from undercroft.errors import ForbiddenError, ReadOnlyError, SettingsError, UnauthenticatedError
from undercroft.storage.layout import safe_handle

Right: TypeAlias = Literal["nothing", "any", "read", "write", "clean"]
"""What a route asks for: nothing at all, any valid credential, to read, to write, or to remove a project."""

Project: TypeAlias = tuple[str, str]
"""Handles of account and project, checked and in lower case."""

# A scope is a directory of its own, and stands between colons in the keys of key values.
_SCOPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Caller(NamedTuple):
    """Who sends a request: a name for people, None for nobody in particular."""

    name: str | None = None
    scope: str | None = None
    """The trust scope what it writes goes to; None for what everybody reads."""
    token_id: str | None = None
    """Of names there may be several in the course of time."""

    @property
    def label(self) -> str | None:
        """Name and token, for what is kept."""
        plain = self.name is None or self.token_id in (None, self.name)
        return self.name if plain else f"{self.name} ({self.token_id})"


ANYBODY = Caller()


class Question(NamedTuple):
    """What a gate is asked. `project` reads the handles from the request, and raises if it cannot."""

    authorization: bytes | None
    right: Right
    project: Callable[[], Project]
    request_id: bytes = b""


class Standing(NamedTuple):
    """How somebody who was let in is let in again."""

    holds: Callable[[], bool]
    """Whether they would be now; False also where that cannot be said at once."""
    tell: Callable[[], None]
    """Tells that they were, as `admit` does."""


class Gate(Protocol):
    """Lets requests in."""

    async def admit(self, asked: Question) -> Caller:
        """Who it is. The credential is looked at first, then the project, then the right.

        Raises `UnauthenticatedError`, `ForbiddenError`, `ReadOnlyError`, `AccessUnknownError`, and what
        `asked.project` raises.
        """

    def standing(self, authorization: bytes | None, caller: Caller) -> Standing | None:
        """How to look whether the same may be asked once more; None where that takes asking in full.

        For what was admitted, as that caller. It holds no secret.
        """

    async def readable(self, authorization: bytes, projects: Iterable[str]) -> set[str]:
        """Which of the projects, `account/project` each, a caller that was let in may read.

        Raises `UnauthenticatedError`, `AccessUnknownError`.
        """


def admit_anonymous(asked: Question, *, may_read: bool) -> Caller:
    """Who has no credential.

    Raises `UnauthenticatedError`, `ReadOnlyError`, and what `asked.project` raises.
    """
    if not may_read or asked.right == "any":
        raise UnauthenticatedError("a token is needed: send it as Bearer, or as the password of Basic")
    asked.project()
    if asked.right != "read":
        # Not "unknown": tools without a token are told softly that nothing is stored, like any reader.
        raise ReadOnlyError("without a token one may only read here")
    return ANYBODY


@dataclass(frozen=True)
class Grant:
    """The rights of one caller in the projects that match one of the patterns `{account}/{project}`."""

    caller: Caller
    projects: tuple[str, ...]
    may_read: bool
    may_write: bool

    def check(self, right: Right, project: Project) -> None:
        """Raises `ForbiddenError`, or `ReadOnlyError` for a write by who may only read."""
        name = "/".join(project)
        if not any(matches(pattern, project) for pattern in self.projects):
            raise ForbiddenError(f"{self._who} has no access to the project {name}")
        if right == "read" and not self.may_read:
            raise ForbiddenError(f"{self._who} may not read in {name}")
        if right in ("write", "clean") and not self.may_write:
            raise ReadOnlyError(f"{self._who} may only read in {name}")
        if right == "clean" and self.caller.scope is not None:
            raise ForbiddenError(
                f"{self._who} writes into scope {self.caller.scope}, it cannot remove {name}"
            )

    def readable(self, projects: Iterable[str]) -> set[str]:
        """Those, `account/project` each, that may be read."""
        if not self.may_read:
            return set()
        return {
            name
            for name in projects
            if name.count("/") == 1
            and any(matches(pattern, (name.split("/")[0], name.split("/")[1])) for pattern in self.projects)
        }

    @property
    def _who(self) -> str:
        return f"token {self.caller.name}"


def matches(pattern: str, project: Project) -> bool:
    """Whether a pattern like `acme/*` covers the project.

    A star stands for any characters but the slash; every other character for itself.
    """
    halves = zip(pattern.split("/"), project, strict=True)
    return all(_covers(half, handle) for half, handle in halves)


def _covers(half: str, handle: str) -> bool:
    """In time proportional to both: a client chooses the handle, so nothing may be tried again and again."""
    first, *rest = half.split("*")
    if not rest:
        return handle == first
    *between, last = rest
    end = len(handle) - len(last)
    at = len(first)
    if end < at or not (handle.startswith(first) and handle.endswith(last)):
        return False
    # What stands between two stars is found as early as it can be, which leaves most for the others.
    for piece in between:
        found = handle.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def checked_pattern(text: str) -> str:
    """The pattern in lower case, as handles are. Raises `SettingsError`."""
    parts = text.split("/")
    if len(parts) != 2:
        raise SettingsError(f"{text!r} is no pattern of projects: write ACCOUNT/PROJECT, ACCOUNT/* or */*")
    return "/".join(safe_handle(part, "project pattern") for part in parts)


def checked_scope(text: str) -> str:
    """The name of a trust scope. Raises `SettingsError`."""
    if _SCOPE.fullmatch(text) is None:
        raise SettingsError(
            f"{text!r} is no name of a scope: lower case letters, digits, dot, dash, underscore, at most 63"
        )
    return text
