"""Requests that came before, byte for byte or but for their bodies: answered without being parsed again.

Build tools ask for the same thing in the same words, on every machine, and store one thing after the other
under the same head. What is remembered is the question and who knows the answer, never the answer itself:
that is looked up each time, and each body is looked at.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

REPEAT = "undercroft.repeat"
"""Where in the scope of a request an application may leave its `Repeat`: there is such a place only if the
request came before, so that nothing is made for one that never comes again."""

# That which was not asked for the longest goes for a new one; 1.0 to 1.5 KB each.
MOST = 16_384

# Words that came, whatever was asked in them: that they come again is known of so many; 140 bytes each.
MOST_CAME = 65_536

# Heads that came with bodies: most are of artifacts, whose names come once, the others come again soon.
MOST_HEADS_CAME = 4_096

# Longer ones, or longer heads of those with a body, are parsed.
REQUEST_BYTES = 4 << 10

Head: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""The headers of an answer, shared by all that repeat it."""


class Answer(NamedTuple):
    """A whole answer; `headers` announce the length of `body`."""

    status: int
    headers: Head
    body: bytes | bytearray


Settle: TypeAlias = Callable[[], Awaitable[Answer]]
"""Waits for the answer to what was begun. Called once; what fails is an answer, too."""

Repeat: TypeAlias = Callable[[bytes], Answer | Settle | None]
"""Answers the same request once more, with another body where it had one: at once, or begins with it at once.

None: nothing was begun, it has to be asked in full.
"""


class Asked(NamedTuple):
    """A request that came in one read of its own, as far as that can be said without parsing it."""

    words: bytes
    """What tells it from all others. A digest: there may be secrets in it."""
    data: bytes
    body_at: int = 0
    """Where in `data` the body begins; 0 if there is none, or if it belongs to the words."""


class Repeats:
    """The newest requests that can be answered so, by their words (`asked_in`)."""

    def __init__(
        self, most: int = MOST, most_came: int = MOST_CAME, most_heads_came: int = MOST_HEADS_CAME
    ) -> None:
        self._most = most
        # Ordered ones: to find the oldest in a plain one takes the longer the more were removed.
        self._known: OrderedDict[bytes, Repeat] = OrderedDict()
        self._came = _Came(most_came)
        self._heads_came = _Came(most_heads_came)

    def came_before(self, asked: Asked) -> bool:
        """Whether a request of these words came already; from now on one has."""
        return (self._heads_came if asked.body_at else self._came).before(asked.words)

    def remember(self, words: bytes, repeat: Repeat) -> None:
        """The next request of these words is answered by `repeat`."""
        self._known[words] = repeat
        self._known.move_to_end(words)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def answer(self, asked: Asked) -> Answer | Settle | None:
        """The answer to the request, or how to wait for it, if it is known how to begin with it at once."""
        words = asked.words
        repeat = self._known.get(words)
        if repeat is None:
            return None
        try:
            answer = repeat(asked.data[asked.body_at :] if asked.body_at else b"")
        except Exception:  # noqa: BLE001  # asked in full it fails again, and that is answered and told
            answer = None
        if answer is None:
            del self._known[words]
        else:
            self._known.move_to_end(words)
        return answer


class _Came:
    """Words that came, so many, the oldest forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._words: OrderedDict[bytes, None] = OrderedDict()

    def before(self, words: bytes) -> bool:
        if words in self._words:
            return True
        if len(self._words) >= self._most:
            self._words.popitem(last=False)
        self._words[words] = None
        return False


def asked_in(data: bytes) -> Asked | None:
    """The request that this is, if it is one of a kind that may come again; nothing of it is checked."""
    if data.startswith(b"GET "):
        return Asked(_digest(data), data) if len(data) <= REQUEST_BYTES else None
    if not data.startswith(b"PUT "):
        return None
    end = data.find(b"\r\n\r\n", 0, REQUEST_BYTES) + 4
    if end < 4 or end == len(data):
        return None
    # The head says how many bytes follow. With the number among the words they are as many as were the body
    # when that was seen.
    return Asked(_digest(b"%d %b" % (len(data) - end, data[:end])), data, end)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
