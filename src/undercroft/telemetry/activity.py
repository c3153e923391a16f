"""What builds got from the node over the last hour and day, by tool and by project, for people to look at."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import msgspec

from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata

MINUTE_S = 60
MINUTES = 60
"""Of the hour that is shown, a point each."""

QUARTER_MINUTES = 15
QUARTERS = 96
"""Of the day that is shown, a point each."""

# Of pairs of a tool and a project. What comes beyond them within a minute is counted under OTHERS.
MOST_PAIRS = 500
OTHERS = "(others)"

KEY_VALUES = "key values"
"""What key values are counted under; artifacts are under their tool."""

Pair: TypeAlias = tuple[str, str]


class Counts(msgspec.Struct):
    """What happened; bytes are those of artifacts."""

    requests: int = 0
    """Reads and writes."""
    hits: int = 0
    misses: int = 0
    served_bytes: int = 0
    stored: int = 0
    stored_bytes: int = 0
    failed: int = 0
    """Reads and writes that the node could not do."""
    saved_seconds: float = 0.0
    """Run time of what was fetched instead of run again, where the tool says it."""

    def add(self, other: "Counts") -> None:
        """Adds up."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


Bucket: TypeAlias = dict[Pair, Counts]


class Point(msgspec.Struct, frozen=True):
    """One point in time of a plot."""

    at: int
    """Seconds since the epoch, the beginning of the minute or quarter."""
    total: Counts


class Period(msgspec.Struct, frozen=True):
    """An hour or a day until now."""

    total: Counts
    tools: dict[str, Counts]
    projects: dict[str, Counts]
    points: list[Point]


class Activity:
    """Counts in buckets of a minute; whole quarters of an hour are kept for a day.

    Only the event loop tells it anything. Memory is bounded by `MOST_PAIRS` pairs in each bucket.
    """

    def __init__(self, telemetry: Events, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._minutes: dict[int, Bucket] = {}
        self._quarters: dict[int, Bucket] = {}
        self._minute = -1
        self._next_s = 0.0
        self._bucket: Bucket = {}
        telemetry.attach(events.DOWNLOAD, self._on_download)
        telemetry.attach(events.UPLOAD, self._on_upload)
        telemetry.attach(events.KEY_VALUE_GET, self._on_get)
        telemetry.attach(events.KEY_VALUE_PUT, self._on_put)
        telemetry.attach(events.TURBOREPO, self._on_turborepo)

    # --- counting ---------------------------------------------------------------------------------

    def _of(self, tool: str, project: str) -> Counts:
        now = self._clock()
        # A clock that was set back by more than a minute begins anew, too.
        if not self._next_s - MINUTE_S <= now < self._next_s:
            self._turn(int(now) // MINUTE_S)
        counts = self._bucket.get((tool, project))
        if counts is None:
            pair = (tool, project) if len(self._bucket) < MOST_PAIRS else (tool, OTHERS)
            counts = self._bucket.setdefault(pair, Counts())
        return counts

    def _turn(self, minute: int) -> None:
        """Begins a minute; what is an hour or a day old goes."""
        self._minute, self._next_s = minute, float((minute + 1) * MINUTE_S)
        self._bucket = self._minutes.setdefault(minute, {})
        for old in [one for one in self._minutes if not minute - MINUTES < one <= minute]:
            _add_all(self._quarters.setdefault(old // QUARTER_MINUTES, {}), self._minutes.pop(old))
        newest = minute // QUARTER_MINUTES
        for old in [one for one in self._quarters if not newest - QUARTERS < one <= newest]:
            del self._quarters[old]

    def _on_download(self, measurements: Measurements, metadata: Metadata) -> None:
        counts, result = self._of(metadata["tool"], metadata["project"]), metadata["result"]
        counts.requests += 1
        counts.served_bytes += int(measurements["bytes"])
        if result in ("hit", "s3_hit"):
            counts.hits += 1
        elif result == "error":
            counts.failed += 1
        else:
            counts.misses += 1

    def _on_upload(self, measurements: Measurements, metadata: Metadata) -> None:
        counts, result = self._of(metadata["tool"], metadata["project"]), metadata["result"]
        counts.requests += 1
        if result in ("created", "replaced"):
            counts.stored += 1
            counts.stored_bytes += int(measurements["bytes"])
        elif result == "error":
            counts.failed += 1

    def _on_get(self, _measurements: Measurements, metadata: Metadata) -> None:
        counts = self._of(KEY_VALUES, metadata["project"])
        counts.requests += 1
        if metadata["result"] == "hit":
            counts.hits += 1
        else:
            counts.misses += 1

    def _on_put(self, _measurements: Measurements, metadata: Metadata) -> None:
        counts = self._of(KEY_VALUES, metadata["project"])
        counts.requests += 1
        if metadata["result"] == "success":
            counts.stored += 1
        else:
            counts.failed += 1

    def _on_turborepo(self, measurements: Measurements, metadata: Metadata) -> None:
        # What its local cache saved the node had no part in.
        if metadata["source"] == "remote":
            self._of("turborepo", metadata["project"]).saved_seconds += measurements["saved_seconds"]

    # --- showing ----------------------------------------------------------------------------------

    def hour(self) -> Period:
        """The last sixty minutes, this one included."""
        now = int(self._clock()) // MINUTE_S
        buckets = {one: self._minutes.get(one, {}) for one in range(now - MINUTES + 1, now + 1)}
        return _period(buckets, MINUTE_S)

    def day(self) -> Period:
        """The last 96 quarters of an hour, this one included."""
        quarters = {one: dict(bucket) for one, bucket in self._quarters.items()}
        for minute, bucket in self._minutes.items():
            of = quarters.setdefault(minute // QUARTER_MINUTES, {})
            quarters[minute // QUARTER_MINUTES] = _sum((of, bucket))
        now = int(self._clock()) // MINUTE_S // QUARTER_MINUTES
        shown = {one: quarters.get(one, {}) for one in range(now - QUARTERS + 1, now + 1)}
        return _period(shown, MINUTE_S * QUARTER_MINUTES)


def _add_all(into: Bucket, bucket: Mapping[Pair, Counts]) -> None:
    for pair, counts in bucket.items():
        into.setdefault(pair, Counts()).add(counts)


def _sum(buckets: Iterable[Mapping[Pair, Counts]]) -> Bucket:
    total: Bucket = {}
    for bucket in buckets:
        _add_all(total, bucket)
    return total


def _period(buckets: Mapping[int, Bucket], seconds: int) -> Period:
    total, tools, projects, points = Counts(), dict[str, Counts](), dict[str, Counts](), list[Point]()
    for number, bucket in buckets.items():
        point = Counts()
        for (tool, project), counts in bucket.items():
            point.add(counts)
            tools.setdefault(tool, Counts()).add(counts)
            projects.setdefault(project, Counts()).add(counts)
        total.add(point)
        points.append(Point(number * seconds, point))
    return Period(total, tools, projects, points)


def merged(periods: Iterable[Period]) -> Period:
    """What several processes counted in the same period."""
    total, tools, projects = Counts(), dict[str, Counts](), dict[str, Counts]()
    points: dict[int, Counts] = {}
    for period in periods:
        total.add(period.total)
        for into, from_ in ((tools, period.tools), (projects, period.projects)):
            for name, counts in from_.items():
                into.setdefault(name, Counts()).add(counts)
        for point in period.points:
            points.setdefault(point.at, Counts()).add(point.total)
    return Period(total, tools, projects, [Point(at, points[at]) for at in sorted(points)])
