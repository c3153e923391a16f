"""Requests that came before, byte for byte: answered at once, without being parsed again.

Build tools ask for the same thing in the same words, on every machine. What is remembered is the question
and who knows the answer, never the answer itself: that is looked up each time.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

REPEAT = "undercroft.repeat"
"""Where in the scope of a request an application may leave its `Repeat`: there is such a place only if the
request came before, so that nothing is made for one that never comes again."""

# That which was not asked for the longest goes for a new one; 1 KB each.
MOST = 16_384

# Words that came, whatever was asked in them: that they come again is known of so many; 140 bytes each.
MOST_CAME = 65_536

# Longer ones are parsed.
REQUEST_BYTES = 4 << 10

Head: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""The headers of an answer, shared by all that repeat it."""


class Answer(NamedTuple):
    """A whole answer; `headers` announce the length of `body`."""

    status: int
    headers: Head
    body: bytes | bytearray


Repeat: TypeAlias = Callable[[], Answer | None]
"""Answers the same request once more, at once; None: not so, it has to be asked in full."""


class Repeats:
    """The newest requests that can be answered so, by their words (`words_of`)."""

    def __init__(self, most: int = MOST, most_came: int = MOST_CAME) -> None:
        self._most = most
        self._most_came = most_came
        # Ordered ones: to find the oldest in a plain one takes the longer the more were removed.
        self._known: OrderedDict[bytes, Repeat] = OrderedDict()
        self._came: OrderedDict[bytes, None] = OrderedDict()

    def came_before(self, words: bytes) -> bool:
        """Whether a request of these words came already; from now on one has."""
        if words in self._came:
            return True
        if len(self._came) >= self._most_came:
            self._came.popitem(last=False)
        self._came[words] = None
        return False

    def remember(self, words: bytes, repeat: Repeat) -> None:
        """The next request of these words is answered by `repeat`."""
        self._known[words] = repeat
        self._known.move_to_end(words)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def answer(self, words: bytes) -> Answer | None:
        """The answer to a request of these words, if it is known how to get it at once."""
        repeat = self._known.get(words)
        if repeat is None:
            return None
        try:
            answer = repeat()
        except Exception:  # noqa: BLE001  # asked in full it fails again, and that is answered and told
            answer = None
        if answer is None:
            del self._known[words]
        else:
            self._known.move_to_end(words)
        return answer


def words_of(request: bytes) -> bytes:
    """What tells the bytes of a request from all others. A digest: there may be secrets in them."""
    return blake2b(request, digest_size=16).digest()
