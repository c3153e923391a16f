"""How much at once the object store bears, and when it is down. Arithmetic only."""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

# Of so many keys one after the other nothing but failures came: then the store counts as down. Of one key
# alone they say no more than that something is wrong with that key.
DOWN_AFTER = 3

# Transfers whose last failure is remembered, a few hundred bytes each. Who is forgotten has one more try.
MOST_BLAMED = 10_000


class Pauses(NamedTuple):
    """Seconds before one attempt at a time finds out whether the store is back; they double."""

    first: float
    longest: float


TRANSFER_PAUSES = Pauses(0.25, 5.0)


class StorePace:
    """Learns from how transfers end.

    The limit is halved when the store throttles, and grows by one with each `limit` successes up to
    `most`. While the store is down it is one, with pauses that double. Transfers that were in flight
    together tell the same story: what began before the last change says nothing new and changes
    nothing again, unless it succeeds.
    """

    def __init__(
        self, most: int, clock: Callable[[], float] = time.monotonic, pauses: Pauses = TRANSFER_PAUSES
    ) -> None:
        """`clock` answers seconds."""
        self._most = most
        self._pauses = pauses
        self._clock = clock
        self._limit = most
        self._round = 0
        self._successes = 0
        self._failing: set[str] = set()
        self._pause_s = 0.0
        self._not_before = 0.0
        self._succeeded: Counter[str] = Counter()
        self.outages = 0
        """How often it went down."""

    @property
    def limit(self) -> int:
        """How many may be in flight now; at least one."""
        return 1 if self.is_down else self._limit

    @property
    def is_down(self) -> bool:
        """Whether nothing but failures came of late."""
        return len(self._failing) >= DOWN_AFTER

    @property
    def pause_s(self) -> float:
        """Seconds until the next transfer may begin."""
        return max(self._not_before - self._clock(), 0.0)

    def begin(self) -> int:
        """A transfer begins; what this answers is given back with its end."""
        return self._round

    def succeeded(self, begun: int, kind: str | None) -> bool:
        """The store answered, and did what `kind` names if it is given. Whether that ended an outage."""
        was_down = self.is_down
        self._failing.clear()
        self._pause_s = self._not_before = 0.0
        if kind is not None:
            self._succeeded[kind] += 1
        if begun == self._round:
            self._grow()
        return was_down

    def _grow(self) -> None:
        self._successes += 1
        if self._successes >= self._limit:
            self._successes = 0
            self._limit = min(self._limit + 1, self._most)

    def failed(self, begun: int, key: str | None, *, throttled: bool) -> None:
        """The store could not be asked about `key`, or refused. None: the key alone is to blame."""
        if begun != self._round:
            return
        was_down = self.is_down
        if key is not None and not was_down:
            self._failing.add(key)
        if throttled:
            self._limit = max(self._limit // 2, 1)
        if self.is_down:
            self.outages += not was_down
            self._pause_s = min(self._pause_s * 2, self._pauses.longest) or self._pauses.first
            self._not_before = self._clock() + self._pause_s
        if throttled or self.is_down:
            self._successes = 0
            self._round += 1

    def successes(self, kind: str) -> int:
        """How often the store did what `kind` names."""
        return self._succeeded[kind]


class Standing(NamedTuple):
    """How things stood when a transfer failed."""

    successes: int
    failures: int
    """Of its kind, both; its own failures among them."""
    outages: int

    def did_better(self, since: "Standing", own_failures: int) -> bool:
        """Whether more of the others succeeded since then than failed."""
        return self.successes - since.successes > self.failures - since.failures - own_failures


class Blamed(NamedTuple):
    """What is remembered of a transfer that failed."""

    first: Standing
    """When it failed first since the last outage."""
    last: Standing
    times: int
    """Failures after the first."""


class Verdict(NamedTuple):
    """Whose fault a failure is."""

    is_own: bool
    """That of the very object: the store did the same for most others since the object failed last."""
    is_hopeless: bool
    """And the store was never down in between, so that to try again is unlikely to help."""


class Blame:
    """Tells whether a failure is the fault of the store or of the very object.

    Each object may fail once for the store's sake, and again whenever no more of its kind succeed than fail.
    So neither an outage, nor a store that takes no uploads at all, nor one that breaks off every other
    request is blamed on those it meets, and what was tried in vain in an outage gets more than one try
    after it.
    """

    def __init__(self, pace: StorePace) -> None:
        self._pace = pace
        self._failed: dict[str, Blamed] = {}
        self._failures: Counter[str] = Counter()

    def judge(self, transfer: str, kind: str) -> Verdict:
        """To be asked at each failure, before the pace is told of it."""
        self._failures[kind] += 1
        now = Standing(self._pace.successes(kind), self._failures[kind], self._pace.outages)
        first, last, times = self._failed.pop(transfer, Blamed(now, now, -1))
        own = last != now and now.did_better(last, 1)
        if first.outages != now.outages:
            first, times = now, -1
        self._failed[transfer] = Blamed(first, now, times + 1)
        if len(self._failed) > MOST_BLAMED:
            del self._failed[next(iter(self._failed))]
        # By chance few others were tried between two failures; from the first to the last there are more.
        hopeless = own and first != now and now.did_better(first, times + 1) and not self._pace.is_down
        return Verdict(own, hopeless)

    def forget(self, transfer: str) -> None:
        """It is over. Idempotent."""
        self._failed.pop(transfer, None)
