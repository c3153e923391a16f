"""The time as rows carry it: it does not go back while the process lives."""

import threading
import time
from collections.abc import Callable

# How far behind us the wall clock may be before we follow it back, unless `not_before` forbids that.
MOST_AHEAD_US = 60_000_000


class Clock:
    """Microseconds since 1970-01-01 UTC, by the wall clock where that goes forward.

    What is written later must not look older: a request to clean a project would leave what it must
    remove. So a wall clock that is set back is not followed. Nor does time stand still until it has
    caught up, which would be for a year after a year that was a mistake: artifacts would be evicted in
    no order, a failed transfer would never become due. Time goes on at half its speed instead, so a step
    of ten seconds is made good in twenty.

    A step of more than `MOST_AHEAD_US` is followed after all. To be far from the wall clock for long is
    the greater harm: ages of files are taken by it, and other processes on the data directory that
    started after the step have its time. Who must not misjudge what is written then either says so, for
    as long as that matters (`not_before`); who waits for a time to come must bound the wait.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._last = 0
        self._least = 0
        self._asked = monotonic_ns() // 1_000

    def now_us(self) -> int:
        """Not before any time it has answered, but for a step back of more than a minute."""
        with self._lock:
            wall, monotonic = self._wall_ns() // 1_000, self._monotonic_ns() // 1_000
            half = (monotonic - self._asked) // 2
            ours = self._last + half
            if wall >= self._least and not 0 < ours - wall <= MOST_AHEAD_US:
                self._last, self._asked = wall, monotonic
            else:
                # The odd microsecond counts next time: it must add up for whoever asks often.
                self._asked += 2 * half
                self._last = max(ours, self._least)
            return self._last

    def not_before(self, least_us: int) -> None:
        """From here on no time before this one is answered, however far ahead that is; 0 lifts that."""
        with self._lock:
            self._least = least_us


_clock = Clock()


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC; see `Clock`."""
    return _clock.now_us()


def not_before(least_us: int) -> None:
    """Lets `now_us` answer no time before this one, until it is told another; see `Clock`."""
    _clock.not_before(least_us)
