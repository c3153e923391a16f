"""`python -m tests.support.jumping_node serve ...`: a node whose wall clock is set by a file, while it runs.

The file named by `JUMPING_CLOCK` has the seconds that the clock is off. The monotonic clock goes on as it
does when somebody sets the time.
"""

import os
import time
from pathlib import Path

OFF = Path(os.environ["JUMPING_CLOCK"])

_time_ns = time.time_ns


def time_ns() -> int:
    return _time_ns() + int(OFF.read_text() or "0") * 1_000_000_000


def seconds() -> float:
    return time_ns() / 1_000_000_000


# Before anything of the node is imported: some keep the functions themselves.
time.time_ns = time_ns
time.time = seconds

if __name__ == "__main__":
    from undercroft.cli import main

    main()
