"""Whether the disk is so quick that the event loop may wait for it."""

import time
from collections.abc import Callable

# On average, of the calls that store a small artifact. An idle ext4 takes some 0.1 ms for all of them.
SLOW_S = 0.001

# The average moves by this share of the difference: one call of 16 ms is slow, or four of 5 ms, not one that
# the kernel has made wait for a processor.
WEIGHT = 1 / 16

# A disk that was slow is not tried again by the loop for so long, and so many times what the last call took:
# one whose calls take 2 ms or more holds the loop up for about a fiftieth of the time. But no longer than
# ten minutes: the process may have been stopped meanwhile, for days.
PAUSE_S = 1.0
PAUSE_TIMES = 100
LONGEST_PAUSE_S = 600.0


class DiskSpeed:
    """Judges the disk by what small calls to it took lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._average_s = 0.0
        self._slow_until = clock()

    @property
    def is_quick(self) -> bool:
        """Whether the event loop may wait for the disk now."""
        return self._clock() >= self._slow_until

    def took(self, seconds: float) -> None:
        """The loop has waited so long for a small call."""
        self._average_s += (seconds - self._average_s) * WEIGHT
        if self._average_s > SLOW_S:
            self._slow_until = self._clock() + min(max(PAUSE_S, PAUSE_TIMES * seconds), LONGEST_PAUSE_S)
            self._average_s = 0.0
