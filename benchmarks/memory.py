"""Memory of the node: over a long run of mixed traffic, with large uploads, and after a million events.

`python -m benchmarks.memory`; `--seconds` sets the length of the long run.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import psutil
import uvloop

from benchmarks import dialects, form, report, servers
from benchmarks.contestants import FILE
from benchmarks.form import Form
from benchmarks.load import make_rows
from benchmarks.loading import Order, Target, load, must_succeed
from benchmarks.mixed import OPEN_CONNECTIONS, QUICK_MIX, filled, settle
from benchmarks.processes import forget_peak, peak_bytes, resident_bytes
from benchmarks.traffic import Mix
from benchmarks.workspaces import workspace
from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueWrite
from undercroft.buffers.settings import BufferSettings
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES
from undercroft.telemetry.events import Events
from undercroft.workers.spare_memory import SpareMemory

MIX = Mix(small=4_000, modules=150)
LOOK_UPS_PER_S = 250
"""Of the long run: some 20 modules a second are written, so that eviction has work too."""
LIMIT = "1500MiB"
LONG_RUN_S = 300
"""Caches of bounded size take minutes to fill, and what never stops growing must have time to show."""
SAMPLES = 120
MIB = 1 << 20
UPLOADS = {"8 x 2 MiB": (2 * MIB, 8), "8 x 32 MiB": (32 * MIB, 8)}
EVENTS = 1_000_000
QUICK_EVENTS = 20_000
ROUNDS_OF_EVENTS = 3
FLUSH_TIMEOUT_MS = 600_000


@dataclass
class Course:
    """Memory over time, in seconds and MiB."""

    name: str
    at_s: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """The last quarter against the second, medians: the first one fills caches of bounded size."""
        quarter = max(1, len(self.mib) // 4)
        return statistics.median(self.mib[-quarter:]) / statistics.median(
            self.mib[quarter : 2 * quarter] or self.mib
        )


@contextmanager
def watched(pid: int, course: Course, every_s: float) -> Iterator[None]:
    """Notes the memory of the processes until the block ends."""
    over = threading.Event()
    began = time.perf_counter()

    def note() -> None:
        while not over.wait(every_s):
            course.at_s.append(round(time.perf_counter() - began, 2))
            course.mib.append(round(resident_bytes(pid) / MIB, 1))

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def long_run(target: Target, mix: Mix, work: Form) -> Course:
    """Mixed traffic in an open loop, with less room on disk than it writes."""
    assert target.pid is not None
    course = Course(target.name)
    filled(target, mix)
    settle(work)
    order = Order("open", "memory", OPEN_CONNECTIONS, work.seconds, rate=LOOK_UPS_PER_S, mix=mix)
    with watched(target.pid, course, max(0.02, work.seconds / SAMPLES)):
        found = load(target, order)
    # Evicted entries are misses here, so 404 is no failure.
    wrong = {what: count for what, count in found["errors"].items() if what != "fetch answered 404"}
    print(f"memory: {target.name}, {found['all']['count']:,} answers, failed: {wrong or 'none'}", flush=True)
    return course


def large_uploads(target: Target, work: Form) -> dict[str, float]:
    """How many MiB the processes took more than before, at most, during uploads of each size."""
    assert target.pid is not None
    found = {}
    for name, (size, count) in UPLOADS.items():
        before = resident_bytes(target.pid)
        forget_peak(target.pid)
        must_succeed(
            target,
            Order("store equal", connections=count, size=size // (16 if work.quick else 1), count=count),
        )
        found[name] = round((peak_bytes(target.pid) - before) / MIB, 1)
        settle(work)
    return found


# --- a million events -----------------------------------------------------------------------------


@dataclass
class Left:
    """MiB before, then after each time that so many rows were pending and got flushed."""

    resident: list[float] = field(default_factory=list)
    sqlite: list[float] = field(default_factory=list)
    """What SQLite has of it: page caches, but for half a MiB."""

    def note(self) -> None:
        """Looks at this process."""
        # Not Pss: a file that others have mapped, too, would count less as soon as one of them starts.
        self.resident.append(round(psutil.Process().memory_info().rss / MIB, 1))
        self.sqlite.append(round(apsw.status(apsw.SQLITE_STATUS_MEMORY_USED)[0] / MIB, 1))

    def figures(self) -> dict[str, float]:
        """What goals look at."""
        return {
            "events_left": round(self.resident[1] / self.resident[0], 3),
            "events_growth": round(self.resident[-1] / self.resident[1], 3),
        }


async def events(folder: Path, count: int) -> Left:
    """A buffer of key values that takes them faster than it commits them."""
    database = Database(folder / FILE, KEY_VALUES)
    await asyncio.to_thread(database.open)
    settings = BufferSettings(
        max_pending_rows=2 * count, max_pending_bytes=4 << 30, flush_timeout_ms=FLUSH_TIMEOUT_MS
    )
    telemetry = Events()
    buffer = SQLiteBuffer(KeyValueBuffer(), database, telemetry, settings)
    spare = SpareMemory([database], telemetry)
    await buffer.open()
    runner = asyncio.create_task(buffer.run())
    found = Left()
    found.note()
    for number in range(ROUNDS_OF_EVENTS):
        for start in range(0, count, 1_000):
            # Made in passing: a million rows in a list would be what is measured.
            for row in range(start, start + 1_000):
                await buffer.enqueue(KeyValueWrite(f"keyvalue:acme:app:{number}-{row:056x}", PAYLOAD))
        await buffer.flush()
        # As the node does when a minute has passed without a burst.
        await spare.give_back()
        found.note()
    await buffer.close()
    await runner
    await database.close()
    return found


PAYLOAD = make_rows(1)[0].json_payload


def events_in_a_process(count: int) -> Left:
    """The same in a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.memory", "--events", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Left(**json.loads(done.stdout))


# --- the result -----------------------------------------------------------------------------------


def tables(courses: Sequence[Course], uploads: dict[str, dict[str, float]], left: Left) -> list[Any]:
    """For people."""
    head = ["MiB", "beginning", "second quarter", "last quarter", "most", "growth"]
    rows = []
    for course in courses:
        quarter = max(1, len(course.mib) // 4)
        parts = (course.mib[0], statistics.median(course.mib[quarter : 2 * quarter] or course.mib))
        last = statistics.median(course.mib[-quarter:])
        cells = [f"{value:,.0f}" for value in (*parts, last, max(course.mib))]
        rows.append([course.name, *cells, f"{course.growth():.2f}"])
    long = report.table("A long run of mixed traffic", head, rows, LONG_NOTE)
    names = list(UPLOADS)
    upload_rows = [[name, *(f"{found[each]:,.1f}" for each in names)] for name, found in uploads.items()]
    upload = report.table(
        "More than before, at most, during uploads", ["MiB", *names], upload_rows, UPLOAD_NOTE
    )
    names = ["before", *(f"after {n}" for n in range(1, len(left.resident)))]
    event = report.table(
        "Events enqueued at once and flushed",
        ["MiB", *names],
        [
            ["all of a process with a buffer", *(f"{mib:,.0f}" for mib in left.resident)],
            ["of it SQLite, mostly page cache", *(f"{mib:,.0f}" for mib in left.sqlite)],
        ],
        EVENT_NOTE,
    )
    return [long, upload, event]


LONG_NOTE = (
    f"{LOOK_UPS_PER_S} look-ups a second in an open loop, and the writes that follow misses; artifacts may "
    f"take {LIMIT}, so that eviction works along. `growth` is the last quarter against the second."
)
UPLOAD_NOTE = (
    "Eight at once, through the ccache dialect. Peaks of several processes are added up, so they are an "
    "upper bound."
)
EVENT_NOTE = (
    f"{EVENTS:,} key values at a time, enqueued faster than they can be committed, in a process that has "
    "nothing but a buffer; memory is given back as by a node after a calm minute."
)


def save(courses: Sequence[Course], uploads: dict[str, dict[str, float]], left: Left, work: Form) -> None:
    """Writes the result file and prints the tables."""
    content = tables(courses, uploads, left)
    lines = {course.name: (course.at_s, course.mib) for course in courses}
    report.write_result(
        "memory",
        quick=work.quick,
        parameters=work.parameters(look_ups_per_s=LOOK_UPS_PER_S, disk_limit=LIMIT, events=EVENTS),
        figures={
            "long_run_growth": round(courses[0].growth(), 3),
            "upload_mib": max(uploads["node"].values()),
            **left.figures(),
        },
        tables=content,
        plots=[report.plot("memory", "Resident memory during mixed traffic", "seconds", "MiB", lines)],
        rounds={"courses": [vars(course) for course in courses], "uploads": uploads, "events": vars(left)},
    )
    report.show(content)


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = form.arguments("memory")
    parser.add_argument("--events", type=int, help="only enqueue and flush so many, and print MiB (JSON)")
    given = parser.parse_args()
    if given.events:
        with workspace() as folder:
            print(json.dumps(vars(uvloop.run(events(folder, given.events)))))
        return
    work = form.form_of(given, rounds=1, seconds=LONG_RUN_S, quick_seconds=1)
    courses, uploads = [], {}
    for count in dict.fromkeys((work.workers[0], work.workers[-1])):
        with (
            workspace() as folder,
            servers.node(folder, workers=count, settings={"DISK__LIMIT_BYTES": LIMIT}) as node,
        ):
            courses.append(long_run(Target.of(node, dialects.NODE), QUICK_MIX if work.quick else MIX, work))
            ccache = dialects.DIALECTS["ccache"].home
            uploads[node.name] = large_uploads(Target.of(node, "ccache", ccache), work)
        print(f"memory: {courses[-1].name} done", flush=True)
    save(courses, uploads, events_in_a_process(QUICK_EVENTS if work.quick else EVENTS), work)


if __name__ == "__main__":
    main()
