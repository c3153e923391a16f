"""How a buffer behaves. The defaults are those of the node."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class BufferSettings:
    """The settings of one buffer; times in milliseconds."""

    flush_interval_ms: int = 200
    """Age of the oldest pending event at which it is written."""
    flush_timeout_ms: int = 30_000
    """How long `flush` waits before it raises `CommitTimeoutError`."""
    commit_timeout_ms: int = 10_000
    """How long `committed` waits before it raises `CommitTimeoutError`."""
    enqueue_timeout_ms: int = 1_000
    """How long `enqueue` waits for room before it raises `BufferFullError`."""
    max_batch_size: int = 1_000
    """Rows in one statement; so many pending rows start a flush."""
    max_pending_rows: int = 100_000
    """Bound on rows pending and in flight."""
    max_pending_bytes: int = 128 << 20
    """Bound on their size, in bytes."""
    retry_max_attempts: int = 5
    """Retries of a locked database before the rows wait for the next tick."""
    retry_base_delay_ms: int = 50
    """Delay before the first retry; it doubles with each further one."""
    retry_max_delay_ms: int = 2_000
    """Longest delay between two retries."""
    shutdown_ms: int = 30_000
    """How long `close` drains before it spills to a file."""

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError for what is no whole number, or too small."""
        for name, value in asdict(self).items():
            least = 1 if name.startswith("max_") else 0
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} = {value!r}: give a whole number")
            if value < least:
                raise ValueError(f"{name} = {value}: give at least {least}")
