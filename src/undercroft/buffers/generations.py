"""The events of a buffer that are not committed yet, by the flush that carries them."""

import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from undercroft.buffers.bufferable import Batch, Bufferable, QueueStats

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")


@dataclass(slots=True)
class Generation(Generic[StateT]):
    """Events that are committed together. `since` is the monotonic time of the oldest."""

    number: int
    state: StateT
    since: float | None = None


class Generations(Generic[StateT, EventT]):
    """At most one generation in flight, full ones that wait their turn, and one that gathers.

    A generation is full at `rows_each`: taking one, freeing one, and the room that one gives back are
    steps on the event loop that must stay small however much waits.
    """

    def __init__(self, table: Bufferable[StateT, EventT], rows_each: int) -> None:
        self._table = table
        self._rows_each = rows_each
        self._in_flight: Generation[StateT] | None = None
        self._full: deque[Generation[StateT]] = deque()
        self._gathering = Generation(1, table.init_state())
        # What is in flight and full, so that the sum is not made anew for every event.
        self._closed = QueueStats(0, 0)
        self.rows_gathered = 0
        """Rows of the generation that gathers."""

    def add(self, event: EventT) -> int:
        """Merges an event into the generation that gathers; answers its number."""
        gathering = self._gathering
        if gathering.since is None:
            gathering.since = time.monotonic()
        self._table.handle_event(gathering.state, event)
        self.rows_gathered = self._table.queue_stats(gathering.state).rows
        if self.rows_gathered >= self._rows_each:
            self._close()
        return gathering.number

    def _close(self) -> None:
        self._full.append(self._gathering)
        self._gathering = Generation(self._gathering.number + 1, self._table.init_state())
        self.rows_gathered = 0
        self._sum_up()

    def _sum_up(self) -> None:
        closed = list(self._full) if self._in_flight is None else [self._in_flight, *self._full]
        stats = [self._table.queue_stats(generation.state) for generation in closed]
        self._closed = QueueStats(sum(one.rows for one in stats), sum(one.bytes for one in stats))

    def take(self) -> Generation[StateT]:
        """The oldest generation that waits, now in flight; the one that gathers if there is no other."""
        if not self._full:
            self._close()
        self._in_flight = self._full.popleft()
        return self._in_flight

    def settle(self, left: list[Batch]) -> None:
        """Ends the flight. What is `left` uncommitted is merged *under* the events that came since."""
        landed, self._in_flight = self._in_flight, None
        if left and landed is not None:
            heir = self._full[0] if self._full else self._gathering
            for batch in left:
                self._table.restore(heir.state, batch)
            heir.since = landed.since
            self.rows_gathered = self._table.queue_stats(self._gathering.state).rows
        self._sum_up()

    def forget(self) -> None:
        """Drops what waits; nothing may be in flight."""
        self._full.clear()
        self._gathering = Generation(self._gathering.number + 1, self._table.init_state())
        self.rows_gathered = 0
        self._sum_up()

    def all(self) -> list[Generation[StateT]]:
        """Every generation that is not committed, the oldest first."""
        flying = [] if self._in_flight is None else [self._in_flight]
        return [*flying, *self._full, self._gathering]

    @property
    def newest(self) -> int:
        """The number of the newest generation that has events; it comes after all others."""
        empty = self._table.queue_empty(self._gathering.state)
        return self._gathering.number - 1 if empty else self._gathering.number

    def pending(self, key: Hashable) -> Any | None:
        """What the table makes of the key, the newest word first; None if no generation knows it."""
        for generation in reversed(self.all()):
            found = self._table.pending(generation.state, key)
            if found is not None:
                return found
        return None

    def stats(self) -> QueueStats:
        """Rows and bytes of all of them."""
        rows, size = self._table.queue_stats(self._gathering.state)
        return QueueStats(rows + self._closed.rows, size + self._closed.bytes)

    @property
    def rows_in_flight(self) -> int:
        """Rows of the generation in flight."""
        return 0 if self._in_flight is None else self._table.queue_stats(self._in_flight.state).rows

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest event came, 0.0 if there is none."""
        since = next((one.since for one in self.all() if one.since is not None), None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def full_waits(self) -> bool:
        """Whether a full generation waits for its turn."""
        return bool(self._full)
