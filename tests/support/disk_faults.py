"""Operations of the system that fail as a bad disk would have them fail."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from undercroft.storage import disk_threads

OPERATIONS = ("open", "write", "setxattr", "fsync", "link", "replace", "mkdir")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Fault:
    """Counts how often it struck."""

    def __init__(self, operation: str, number: int, after: int) -> None:
        self._really = getattr(os, operation)
        self._number = number
        self._after = after
        self.calls = 0
        self.struck = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self._after:
            return self._really(*args, **kwargs)
        self.struck += 1
        raise OSError(self._number, os.strerror(self._number))


@contextmanager
def fault(operation: str, number: int, *, after: int = 0) -> Iterator[Fault]:
    """From call `after` + 1 on, `os.<operation>` raises the error, until the end of the block."""
    injected = Fault(operation, number, after)
    with mock.patch.object(os, operation, injected):
        yield injected


def by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on threads do also what is small: a test that needs the event loop cannot hold that up."""
    monkeypatch.setattr(disk_threads, "SMALL_BYTES", -1)
