"""What is fuzzed: a parser, and what must be true of it whatever it is given."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """A parser with its promise."""

    name: str
    check: Callable[[bytes], None]
    """Fails, with whatever exception, if the promise does not hold for these bytes."""
    seeds: Sequence[bytes]
    """Inputs to begin with: what clients send, and what they should not."""
    longest: int = 4_096
    """Bytes of the longest input tried."""
