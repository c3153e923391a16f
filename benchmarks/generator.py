"""The load generator: a process of its own, on one thread, without an event loop of anybody.

`python -m benchmarks.generator` reads an order (JSON) from standard input and prints what came of it.

A closed loop sends the next request when an answer is there. In an open loop requests arrive by a clock,
however the server does, and latency counts from the moment a request was due: who waits for a free
connection, or for a generator that is late, waits (no coordinated omission).
"""

import contextlib
import gc
import itertools
import json
import os
import random
import select
import sys
import time
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import latencies
from benchmarks.connection import BrokenConnectionError, Connection
from benchmarks.dialects import STORED
from benchmarks.traffic import Action, Entry, Place, Step, steps_of

COMPARE_EVERY = 16
"""One in so many bodies is compared from end to end."""
RECENT = 64
PREPARED = 4_000
"""Steps of a closed loop that are made before it starts; later ones are made in passing."""
PATIENCE_S = 30
"""How long answers are awaited after the last request."""

PRIORITY = -10
"""Of the process (man 7 sched), where it may be raised."""

_clock = time.perf_counter


class Tally:
    """What has been seen."""

    def __init__(self) -> None:
        self.seconds: dict[str, array[float]] = defaultdict(lambda: array("d"))
        """Latencies of good answers, by what was done with what."""
        self.bodies: Counter[str] = Counter()
        """Bytes of bodies, both ways."""
        self.errors: Counter[str] = Counter()
        self.compared = 0
        self.in_time = 0
        """Good answers before a closed loop asked no more: later ones come from a server that is idle."""
        self.late: array[float] = array("d")
        """How long after its time a request went out though a connection was free: our own part."""

    def figures(self) -> dict[str, Any]:
        """For the report: milliseconds."""
        kinds = {
            kind: {
                "count": len(values),
                **{name: round(1e3 * s, 3) for name, s in latencies.summary(values).items()},
            }
            for kind, values in sorted(self.seconds.items())
        }
        every = array("d", itertools.chain.from_iterable(self.seconds.values()))
        total = {
            "count": len(every),
            **{name: round(1e3 * s, 3) for name, s in latencies.summary(every).items()},
        }
        late = {name: round(1e3 * s, 3) for name, s in latencies.summary(self.late).items()}
        return {
            "all": total,
            "kinds": kinds,
            "late": late,
            "errors": dict(self.errors),
            "compared": self.compared,
        }


class Generator:
    """Runs the steps on its connections."""

    def __init__(self, place: Place, connections: int, *, warmup: float = 0, recent_share: float = 0) -> None:
        self.tally = Tally()
        self._warmup, self._recent_share = warmup, recent_share
        self._chance = random.Random(0).random
        self._recent: dict[str, deque[Entry]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._poll = select.epoll()
        self._by_number: dict[int, Connection] = {}
        self._free: list[Connection] = []
        self._actions: dict[Connection, Action] = {}
        self._number = itertools.count()
        self._began = 0.0
        self._end = float("inf")
        for _ in range(connections):
            connection = Connection((place.host, place.port))
            self._watch(connection)
            self._free.append(connection)

    def _watch(self, connection: Connection) -> None:
        number = connection.socket.fileno()
        self._by_number[number] = connection
        self._poll.register(number, select.EPOLLIN)

    def close(self) -> None:
        """Closes all connections."""
        self._poll.close()
        for connection in self._by_number.values():
            connection.socket.close()

    # --- the two loops ----------------------------------------------------------------------------

    def closed(self, steps: Iterator[Step], seconds: float, most_bytes: float) -> float:
        """The next step on each connection that is free; answers how many seconds it took."""
        self._began = now = _clock()
        self._end = end = now + seconds
        asked = 0
        while now < end and asked < most_bytes:
            while self._free:
                step = next(steps, None)
                if step is None:
                    return self._finish()
                asked += step.entry.size
                self._start(step, now, now)
            self._turn(self._poll.poll(1))
            now = _clock()
        return self._finish()

    def open(self, steps: Iterable[Step]) -> float:
        """Each step at its time, as soon as a connection is free; answers how many seconds it took."""
        self._began = began = _clock() + 0.05
        waiting: deque[Step] = deque()
        coming = iter(steps)
        step = next(coming, None)
        while step is not None or waiting:
            now = _clock()
            had_room = bool(self._free) and not waiting
            while step is not None and began + step.due <= now:
                waiting.append(step)
                step = next(coming, None)
            while waiting and self._free:
                due = began + waiting[0].due
                if had_room and due - began >= self._warmup:
                    self.tally.late.append(now - due)
                self._start(waiting.popleft(), due, now)
            self._turn(self._events(began + step.due if step is not None else now + 1))
        return self._finish()

    def _events(self, until: float) -> list[tuple[int, int]]:
        """Waits for answers until then: with `select`, for `epoll_wait` counts in milliseconds."""
        found = self._poll.poll(0)
        left = until - _clock()
        if found or left <= 0:
            return found
        select.select([self._poll], [], [], left)
        return self._poll.poll(0)

    def _finish(self) -> float:
        """Awaits what is under way."""
        end = _clock() + PATIENCE_S
        while len(self._free) < len(self._by_number) and _clock() < end:
            self._turn(self._poll.poll(1))
        unanswered = len(self._by_number) - len(self._free)
        if unanswered:
            self.tally.errors["no answer"] += unanswered
        return _clock() - self._began

    # --- one request ------------------------------------------------------------------------------

    def _start(self, step: Step, due: float, now: float) -> None:
        connection, entry, action = self._free.pop(), step.entry, step.action
        if action is Action.FETCH and self._recent_share:
            recent = self._recent[entry.kind]
            if recent and self._chance() < self._recent_share:
                entry = recent[int(self._chance() * len(recent))]
        self._send(connection, entry, action, due, now)

    def _send(self, connection: Connection, entry: Entry, action: Action, due: float, now: float) -> None:
        self._actions[connection] = action
        try:
            if action is Action.STORE:
                sent = connection.store(entry, due, now)
            else:
                compare = action is Action.FETCH and next(self._number) % COMPARE_EVERY == 0
                self.tally.compared += compare
                sent = connection.fetch(entry, due, now, compare=compare)
        except OSError:
            self._broken(connection)
            return
        if not sent:
            self._poll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _turn(self, events: list[tuple[int, int]]) -> None:
        for number, event in events:
            connection = self._by_number[number]
            try:
                if event & select.EPOLLOUT and connection.send_more():
                    self._poll.modify(number, select.EPOLLIN)
                if event & ~select.EPOLLOUT and connection.receive():
                    self._answered(connection)
            except (BrokenConnectionError, OSError):
                self._broken(connection)

    def _broken(self, connection: Connection) -> None:
        if connection.entry is not None:
            self.tally.errors["connection broken"] += 1
            self._actions.pop(connection, None)
            self._free.append(connection)
        self._reopen(connection)

    def _reopen(self, connection: Connection) -> None:
        del self._by_number[connection.socket.fileno()]
        connection.reopen()
        connection.entry = None
        self._watch(connection)

    def _answered(self, connection: Connection) -> None:
        now = _clock()
        entry, action = connection.entry, self._actions.pop(connection)
        assert entry is not None
        kind, problem = judged(connection, entry, action)
        if problem:
            self.tally.errors[problem] += 1
        elif connection.due - self._began >= self._warmup:
            self.tally.seconds[kind].append(now - connection.due)
            self.tally.in_time += now <= self._end
            self.tally.bodies[kind] += entry.size if action is Action.STORE else connection.received
        connection.entry = None
        if connection.closing:
            self._reopen(connection)
        if problem is None and action is Action.FETCH_AND_STORE:
            # The client has built it by itself; how long that took is no matter of the server.
            self._send(connection, entry, Action.STORE, now, now)
            return
        if problem is None and action is Action.STORE:
            self._recent[entry.kind].append(entry)
        self._free.append(connection)


def judged(connection: Connection, entry: Entry, action: Action) -> tuple[str, str | None]:
    """What was done, and what is wrong about the answer if anything is."""
    status = connection.status
    if action is Action.STORE:
        return f"store {entry.kind}", None if status in STORED else f"store answered {status}"
    if action is Action.FETCH_AND_STORE:
        return "miss", None if status == 404 else f"fetch of what nobody stored answered {status}"
    kind = f"fetch {entry.kind}"
    if status != 200:
        return kind, f"fetch answered {status}"
    if connection.received != entry.length:
        return kind, "wrong length"
    return kind, "wrong body" if connection.wrong else None


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Does what the order says; see `benchmarks.loading.Order` for its fields."""
    place = Place(**order["place"])
    steps = steps_of(order, place)
    share = order["mix"]["recent_share"] if order["what"] in ("open", "closed") else 0
    generator = Generator(place, order["connections"], warmup=order["warmup"], recent_share=share)
    if not isinstance(steps, list):
        steps = itertools.chain(list(itertools.islice(steps, PREPARED)), steps)
    gc.collect()
    gc.freeze()
    gc.disable()
    used = time.process_time()
    if isinstance(steps, list):
        took = generator.open(steps)
    else:
        took = generator.closed(iter(steps), order["seconds"], order["most_bytes"])
    used = time.process_time() - used
    generator.close()
    tally = generator.tally
    counted = min(took, order["seconds"]) if not isinstance(steps, list) else took - order["warmup"]
    return {
        "seconds": round(took, 4),
        "rate": round(tally.in_time / counted, 1),
        "bytes": sum(tally.bodies.values()),
        "generator_cpu_s": round(used, 4),
        "load_share": round(used / took, 3),
        **tally.figures(),
    }


def main() -> None:
    """Reads the order, runs it, prints the result."""
    # It shares the processors with what it loads, and must keep its times all the same.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    json.dump(run(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
