"""How much at once the object store bears, and when it is down. Arithmetic only."""

import time
from collections.abc import Callable
from typing import NamedTuple

# Failures in a row after which the store counts as down.
DOWN_AFTER = 3


class Pauses(NamedTuple):
    """Seconds before one attempt at a time finds out whether the store is back; they double."""

    first: float
    longest: float


TRANSFER_PAUSES = Pauses(0.25, 5.0)


class StorePace:
    """Learns from how transfers end.

    The limit is halved when the store throttles, and grows by one with each `limit` successes up to
    `most`. While the store is down it is one, with pauses that double. Transfers that were in flight
    together tell the same story: what began before the last change says nothing new and changes
    nothing again, unless it succeeds.
    """

    def __init__(
        self, most: int, clock: Callable[[], float] = time.monotonic, pauses: Pauses = TRANSFER_PAUSES
    ) -> None:
        """`clock` answers seconds."""
        self._most = most
        self._pauses = pauses
        self._clock = clock
        self._limit = most
        self._round = 0
        self._successes = 0
        self._failures = 0
        self._pause_s = 0.0
        self._not_before = 0.0
        self._up_since: float | None = None
        self._last_success: dict[str, float] = {}

    @property
    def limit(self) -> int:
        """How many may be in flight now; at least one."""
        return 1 if self.is_down else self._limit

    @property
    def is_down(self) -> bool:
        """Whether nothing but failures came of late."""
        return self._failures >= DOWN_AFTER

    @property
    def pause_s(self) -> float:
        """Seconds until the next transfer may begin."""
        return max(self._not_before - self._clock(), 0.0)

    def begin(self) -> int:
        """A transfer begins; what this answers is given back with its end."""
        return self._round

    def succeeded(self, begun: int, kind: str | None) -> bool:
        """The store answered, and did what `kind` names if it is given. Whether that ended an outage."""
        now = self._clock()
        was_down = self.is_down
        self._failures = 0
        self._pause_s = self._not_before = 0.0
        if was_down or self._up_since is None:
            self._up_since = now
        if kind is not None:
            self._last_success[kind] = now
        if begun == self._round:
            self._grow()
        return was_down

    def _grow(self) -> None:
        self._successes += 1
        if self._successes >= self._limit:
            self._successes = 0
            self._limit = min(self._limit + 1, self._most)

    def failed(self, begun: int, *, throttled: bool) -> None:
        """The store could not be asked, or refused."""
        if begun != self._round:
            return
        self._failures += 1
        if throttled:
            self._limit = max(self._limit // 2, 1)
        if self.is_down:
            self._pause_s = min(self._pause_s * 2, self._pauses.longest) or self._pauses.first
            self._not_before = self._clock() + self._pause_s
        if throttled or self.is_down:
            self._successes = 0
            self._round += 1

    def works(self, kind: str, seconds: float) -> bool:
        """Whether what `kind` names succeeded within so many seconds, in which the store was never down.

        Then another failure of that kind is likely to be the fault of the very object.
        """
        since = self._clock() - seconds
        up_since, last = self._up_since, self._last_success.get(kind)
        return not self.is_down and up_since is not None and up_since <= since and (last or 0.0) >= since
