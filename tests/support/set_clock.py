"""A clock that a test sets."""


class SetClock:
    """Seconds, like `time.monotonic`, that pass only when `now` is set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now
