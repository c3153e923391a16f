"""Objects whose bytes were not those they were stored with, when somebody fetched them last."""

import time
from collections.abc import Callable

# A store, or a proxy before it, that lies for a while is asked again soon after; what stays wrong costs a
# few fetches per this time and process.
REMEMBERED_S = 300.0

# Some 3 MB. What is forgotten too soon is found out again by the next who fetches it.
MAX_REMEMBERED = 10_000


class WrongObjects:
    """Remembers keys for some minutes, in this process only; the bucket keeps what it has.

    Nothing is deleted for what a fetch brought: that may be the fault of the way, and the object all
    right. Meanwhile it is a miss, and an upload of the key does not take it for what it says it is.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` answers seconds."""
        self._clock = clock
        self._until: dict[str, float] = {}

    def found(self, key: str) -> None:
        """The object was fetched, and its bytes were wrong."""
        self._until.pop(key, None)
        self._until[key] = self._clock() + REMEMBERED_S
        if len(self._until) > MAX_REMEMBERED:
            del self._until[next(iter(self._until))]

    def mended(self, key: str) -> None:
        """The object was replaced, or came as it should. Idempotent."""
        self._until.pop(key, None)

    def __contains__(self, key: str) -> bool:
        """Whether the object was wrong lately."""
        until = self._until.get(key)
        return until is not None and self._clock() < until
