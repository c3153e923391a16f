"""Which of several worker processes this one is, and what it has from their parent."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Who has buffers alone, as a library, gets nothing of the storage.
    from undercroft.storage.ledger import Ledger


@dataclass(frozen=True)
class Place:
    """The place of a worker process. Another takes it when this one dies."""

    number: int
    """0 is the first; it starts before the others do."""
    count: int
    """How many there are."""
    listener: socket.socket
    """The socket it accepts from; the others have sockets of their own on the same address."""
    lifeline: int
    """A descriptor that can be read when this process is to end: its parent says so, or is dead."""
    directory: int
    """A descriptor of their parent's own directory, where each has a socket for the others."""
    ledger: "Ledger"
    """What all of them know of each other."""
    siblings_run: bool
    """Whether others may be at work already."""
    serves: Callable[[], None]
    """Tells the parent that this one serves."""
