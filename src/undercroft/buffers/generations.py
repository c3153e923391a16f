"""The events of a buffer that are not committed yet, by the flush that carries them."""

import asyncio
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from undercroft.buffers.bufferable import Batch, Bufferable, QueueStats

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")

# Rows may be large: a generation is closed at this size too, so that neither its transaction nor the
# encoding of its batches takes long.
BYTES_EACH = 8 << 20


@dataclass(slots=True)
class Generation(Generic[StateT]):
    """Events that are committed together. `since` is the monotonic time of the oldest."""

    number: int
    state: StateT
    since: float | None = None


class Generations(Generic[StateT, EventT]):
    """At most one generation in flight, full ones that wait their turn, and one that gathers.

    A generation is full at `rows_each` or BYTES_EACH: taking one, freeing one, and the room that one
    gives back are steps on the event loop that must stay small however much waits. One that SQLite
    does not take goes back to the front as it is. So generations are written strictly in order, and
    what is newer is written over what is older.
    """

    def __init__(self, table: Bufferable[StateT, EventT], rows_each: int) -> None:
        self._table = table
        self._rows_each = rows_each
        self._in_flight: Generation[StateT] | None = None
        self._full: deque[Generation[StateT]] = deque()
        self._gathering = Generation(1, table.init_state())
        # What is in flight and full. Plain numbers, as those below: they are asked for with every event, and
        # to make a pair of them each time was a fifth of its cost.
        self._closed_rows = self._closed_bytes = 0
        self.rows = 0
        """Rows of all generations."""
        self.bytes = 0
        """Their bytes."""
        self.rows_gathered = 0
        """Rows of the generation that gathers."""

    def add(self, event: EventT) -> int:
        """Merges an event into the generation that gathers; answers its number."""
        gathering = self._gathering
        if gathering.since is None:
            gathering.since = time.monotonic()
        self._table.handle_event(gathering.state, event)
        rows, size = self._table.queue_stats(gathering.state)
        self.rows_gathered = rows
        self.rows, self.bytes = rows + self._closed_rows, size + self._closed_bytes
        if rows >= self._rows_each or size >= BYTES_EACH:
            self._close()
        return gathering.number

    def _close(self) -> None:
        self._count(self._gathering, 1)
        self._full.append(self._gathering)
        self._gather_anew()

    def _gather_anew(self) -> None:
        self._gathering = Generation(self._gathering.number + 1, self._table.init_state())
        self.rows_gathered = 0
        self.rows, self.bytes = self._closed_rows, self._closed_bytes

    def _count(self, generation: Generation[StateT], times: int) -> None:
        rows, size = (times * figure for figure in self._table.queue_stats(generation.state))
        self._closed_rows, self._closed_bytes = self._closed_rows + rows, self._closed_bytes + size
        self.rows, self.bytes = self.rows + rows, self.bytes + size

    def take(self) -> Generation[StateT]:
        """The oldest generation that waits, now in flight; the one that gathers if there is no other."""
        if not self._full:
            self._close()
        self._in_flight = self._full.popleft()
        return self._in_flight

    def settle(self, *, committed: bool) -> None:
        """Ends the flight. What is not committed is the next to be taken again."""
        landed, self._in_flight = self._in_flight, None
        if landed is None:
            return
        if committed:
            self._count(landed, -1)
        else:
            self._full.appendleft(landed)

    def forget(self) -> None:
        """Drops what waits; nothing may be in flight."""
        self._full.clear()
        self._closed_rows = self._closed_bytes = 0
        self._gather_anew()

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
        return self._newest_word(key)[1]

    def number_of(self, key: Hashable) -> int | None:
        """The number of the generation that `pending` answers from, None if there is none."""
        return self._newest_word(key)[0]

    def _newest_word(self, key: Hashable) -> tuple[int | None, Any]:
        if not self.rows:
            return None, None  # as most of the time, and every read asks
        for generation in reversed(self.all()):
            found = self._table.pending(generation.state, key)
            if found is not None:
                return generation.number, found
        return None, None

    def stats(self) -> QueueStats:
        """Rows and bytes of all of them."""
        return QueueStats(self.rows, self.bytes)

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
        """Whether a closed generation waits for its turn."""
        return bool(self._full)


def let_go(batches: list[Batch]) -> None:
    """Frees one batch in each turn of the loop: to free all the rows of a generation at once takes 0.8 ms."""
    del batches[-1:]
    if batches:
        asyncio.get_running_loop().call_soon(let_go, batches)
