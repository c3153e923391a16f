"""An artifact somebody may read."""

import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class OpenArtifact(NamedTuple):
    """An artifact open for reading; whoever has it closes it.

    `size` is in bytes, `content_sha256` 64 lowercase hex digits where it is known. Where only that is
    asked for there is no descriptor (-1).
    """

    descriptor: int
    size: int
    content_sha256: str | None
    reached: Callable[[int], Awaitable[None]] | None = None
    """For a file that is still being written: returns when so many bytes can be read; raises if they
    will never be. The last ones only can when all are known to be right."""
    start: int = 0
    """Where in the file the artifact begins, for one that lies behind what the node keeps about it."""

    def close(self) -> None:
        """Gives the descriptor back. Once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
