"""Requests that came before, byte for byte: answered at once, without being parsed again.

Build tools ask for the same thing in the same words, on every machine. What is remembered is the question
and who knows the answer, never the answer itself: that is looked up each time.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

REPEAT = "undercroft.repeat"
"""Where in the scope of a request an application leaves its `Repeat`."""

# That which was not asked for the longest goes for a new one; 1 KB each.
MOST = 16_384

# Longer ones are parsed.
REQUEST_BYTES = 4 << 10


Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


class Answer(NamedTuple):
    """A whole answer; `headers` announce the length of `body`."""

    status: int
    headers: Headers
    body: bytes | bytearray


Repeat: TypeAlias = Callable[[], Answer | None]
"""Answers the same request once more, at once; None: not so, it has to be asked in full."""


class Repeats:
    """The newest requests that can be answered so. By their digest: there may be secrets in them."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[bytes, Repeat] = {}

    def remember(self, request: bytes, repeat: Repeat) -> None:
        """The next request of exactly these bytes is answered by `repeat`."""
        digest = _digest(request)
        self._known.pop(digest, None)
        if len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[digest] = repeat

    def answer(self, request: bytes) -> Answer | None:
        """The answer to exactly these bytes, if it is known how to get it at once."""
        digest = _digest(request)
        repeat = self._known.pop(digest, None)
        if repeat is None:
            return None
        try:
            answer = repeat()
        except Exception:  # noqa: BLE001  # asked in full it fails again, and that is answered and told
            return None
        if answer is not None:
            self._known[digest] = repeat
        return answer


def _digest(request: bytes) -> bytes:
    return blake2b(request, digest_size=16).digest()
