"""Rows per second from enqueue to commit: our buffer against what else Python offers for SQLite.

`python -m benchmarks.buffers`. Every contestant commits the same rows, with the event loop idle and
with the loop saturated by foreign work, which is counted: to starve it is no way to win.
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks import contestants, form, report
from benchmarks.contestants import BATCH, PRODUCERS, Contestant
from benchmarks.form import Form
from benchmarks.latencies import ratio, with_spread
from benchmarks.load import ForeignWork, Row, make_rows, unit_us
from benchmarks.workspaces import workspace

OURS: tuple[type[Contestant], ...] = (contestants.Ours, contestants.OursAcknowledged)
PER_ROW: tuple[type[Contestant], ...] = (
    contestants.AiosqliteEach,
    contestants.PeeweeQueue,
    contestants.DiskcacheSet,
)
"""Peers as their users write them: they take rows as they come, like our buffer."""
BATCHED: tuple[type[Contestant], ...] = (
    contestants.StdlibExecutemany,
    contestants.AiosqliteExecutemany,
    contestants.SQLAlchemyExecutemany,
    contestants.DiskcacheTransact,
)
"""Peers handed batches of 1000 that somebody has gathered for them."""
ONE_STATEMENT: tuple[type[Contestant], ...] = (contestants.PeeweeInsertMany, contestants.SQLAlchemyValues)
"""The same, with a batch to a statement."""
PEERS: tuple[type[Contestant], ...] = (*PER_ROW, *BATCHED, *ONE_STATEMENT)


@dataclass(frozen=True)
class Loop:
    """What else the event loop has to do, and the interval at which CPython lets threads take the GIL."""

    name: str
    handlers: int
    switch_interval_ms: float


# Busy with as many handlers as there are connections in the HTTP benchmarks. 5 ms is CPython's default.
LOOPS = (Loop("idle", 0, 5), Loop("busy", 64, 5))

MAX_ROWS = 60_000
FEWEST_ROWS = 100
# Ours gathers up to 8 batches for a transaction: fewer rows would measure a single wait, not a rate.
BACKLOG = 3 * 8 * BATCH
PATIENCE = 2


@dataclass(frozen=True)
class Run:
    """One measurement: rows committed, and how many units of foreign work got done meanwhile."""

    rows: int
    rows_per_s: float
    units_per_s: float


@dataclass
class Case:
    """A contestant next to an idle or busy loop, and how it did in each round."""

    contestant: type[Contestant]
    loop: Loop
    rows: int
    runs: list[Run] = field(default_factory=list)

    def median(self) -> float:
        """Rows per second."""
        return statistics.median(run.rows_per_s for run in self.runs)

    def shown(self) -> str:
        """Rows per second for the table."""
        return with_spread([run.rows_per_s for run in self.runs])

    def units(self) -> float:
        """Units of foreign work per second, the median."""
        return statistics.median(run.units_per_s for run in self.runs)


def measured(kind: type[Contestant], rows: Sequence[Row], loop: Loop, seconds: float) -> Run:
    """Commits the rows into a new database next to such a loop, in at most about `seconds`."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(loop.switch_interval_ms / 1_000)
    try:
        return uvloop.run(_measure(kind, rows, loop, seconds))
    finally:
        sys.setswitchinterval(before)


async def _measure(kind: type[Contestant], rows: Sequence[Row], loop: Loop, seconds: float) -> Run:
    with workspace() as folder:
        contestant = kind(folder)
        await contestant.open()
        prepared = contestant.prepare(rows)
        gc.collect()
        elapsed, units = await _timed(contestant, prepared, seconds, loop.handlers)
        count = await contestant.close()  # what is really in the table counts, nothing else
    return Run(count, count / elapsed, units / elapsed)


async def _timed(contestant: Contestant, prepared: Any, seconds: float, handlers: int) -> tuple[float, int]:
    foreign = ForeignWork(handlers)
    worker = asyncio.create_task(foreign.run()) if handlers else None
    await asyncio.sleep(0.05)
    units, started = foreign.units, time.perf_counter()
    await contestant.write(prepared, started + seconds)
    elapsed = time.perf_counter() - started
    units = foreign.units - units
    if worker is not None:
        worker.cancel()
    return elapsed, units


async def foreign_alone(seconds: float) -> float:
    """Units per second the loop does with nobody writing."""
    foreign = ForeignWork(1)
    worker = asyncio.create_task(foreign.run())
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    rate = foreign.units / (time.perf_counter() - started)
    worker.cancel()
    return rate


def pilot(kind: type[Contestant], loop: Loop, seconds: float) -> Case:
    """Finds, with more and more rows, how many a contestant commits in about `seconds`.

    Few at first: next to a busy loop some peers commit a hundred rows a second.
    """
    fewest = BACKLOG if kind is contestants.Ours else FEWEST_ROWS
    rows = fewest
    while True:
        rate = measured(kind, make_rows(rows), loop, seconds).rows_per_s
        if rate == 0:  # not even the fewest, on a machine that does something else
            return Case(kind, loop, fewest)
        if rows / rate > seconds / 2 or rows >= MAX_ROWS:
            return Case(kind, loop, min(MAX_ROWS, max(fewest, int(rate * seconds))))
        rows = min(MAX_ROWS, rows * 8)


def rounds_of(cases: Sequence[Case], count: int, seconds: float) -> list[float]:
    """Runs every case once a round; answers the foreign work done alone in each round."""
    alone = []
    everything = make_rows(MAX_ROWS)
    gc.freeze()
    for number in range(count):
        alone.append(uvloop.run(foreign_alone(0.5)))
        for case in cases:
            rows = everything[: case.rows]
            case.runs.append(measured(case.contestant, rows, case.loop, PATIENCE * seconds))
        print(f"buffers: round {number + 1} of {count} done", flush=True)
    return alone


def best(cases: Sequence[Case], kinds: Sequence[type[Contestant]], loop: Loop) -> Case:
    """The fastest of these contestants."""
    return max((c for c in cases if c.contestant in kinds and c.loop == loop), key=Case.median)


def figures(cases: Sequence[Case]) -> dict[str, float]:
    """The ratios of ours to the best peer of each sort."""
    found = {}
    for loop in LOOPS:
        ours, acknowledged = (best(cases, (kind,), loop).median() for kind in OURS)
        for name, kinds in (
            ("peer", PER_ROW + BATCHED),
            ("peer_per_row", PER_ROW),
            ("peer_batched", BATCHED),
            ("one_statement", ONE_STATEMENT),
        ):
            peer = best(cases, kinds, loop).median()
            found[f"ours_to_best_{name}_{loop.name}"] = ratio(ours, peer)
            found[f"ours_acknowledged_to_best_{name}_{loop.name}"] = ratio(acknowledged, peer)
    return found


def shown(cases: Sequence[Case], alone: float) -> dict[str, Any]:
    """The table for people: each contestant in one line."""
    rows = []
    for kind in (*OURS, *PEERS):
        found = [best(cases, (kind,), loop) for loop in LOOPS]
        cells = [cell for case in found for cell in (case.shown(), _times(cases, case))]
        kept = [f"{case.units() / alone:.0%}" for case in found[1:]]
        counts = " / ".join(f"{statistics.median(run.rows for run in case.runs):,.0f}" for case in found)
        rows.append([kind.title, *cells, *kept, counts])
    head = [
        "contestant",
        "rows/s idle",
        "ours is",
        "rows/s busy",
        "ours is",
    ]
    head += ["foreign work kept", "rows"]
    return report.table("From enqueue to commit, medians", head, rows, NOTE)


def _times(cases: Sequence[Case], case: Case) -> str:
    return f"{ratio(best(cases, OURS[:1], case.loop).median(), case.median()):.1f}x"


NOTE = (
    "Busy: 64 handlers keep the loop saturated, each giving way after a unit of pure-Python work; how long "
    "that takes is `unit_us` below, and a turn of the loop 64 times as long. "
    "'Foreign work kept' is how much of it still got done, against a loop with nobody writing. The peers "
    "named executemany, transact, insert_many and VALUES are handed batches of 1000 rows that somebody else "
    "has gathered; ours and the others take rows as they come. insert_many and VALUES reach SQLite as one "
    "statement a batch, which is our own technique: they are shown, and are no part of the goal. "
    "A peer that gives up Python's global lock once a row depends next to a busy loop on how quickly the "
    "machine wakes a waiting thread: between runs on one machine executemany has come to 400 and to 10,000 "
    "rows/s, ours, with a statement a batch, to 24,000 and to 30,000, so the goal was missed in some of "
    "them. SQLAlchemy's async engine is left out: it needs greenlet, and it writes through aiosqlite."
)


def save(cases: Sequence[Case], alone: Sequence[float], work: Form) -> None:
    """Writes the result file and prints the table."""
    content = shown(cases, statistics.median(alone))
    rounds = [
        {
            "contestant": case.contestant.title,
            "loop": case.loop.name,
            "rows": [run.rows for run in case.runs],
            "rows_per_s": [round(run.rows_per_s, 1) for run in case.runs],
            "units_per_s": [round(run.units_per_s, 1) for run in case.runs],
        }
        for case in cases
    ]
    found = {name: round(value, 3) for name, value in figures(cases).items()}
    report.write_result(
        "buffers",
        quick=work.quick,
        parameters=work.parameters(producers=PRODUCERS, batch=BATCH, unit_us=round(unit_us(), 1)),
        figures=found,
        tables=[content],
        foreign_alone_units_per_s=[round(rate, 1) for rate in alone],
        rounds=rounds,
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    work = form.form_of(form.arguments("buffers").parse_args(), rounds=2, seconds=1, quick_seconds=0.05)
    cases = [pilot(kind, loop, work.seconds) for loop in LOOPS for kind in (*OURS, *PEERS)]
    print("buffers: rows per case settled", flush=True)
    alone = rounds_of(cases, work.rounds, work.seconds)
    save(cases, alone, work)


if __name__ == "__main__":
    main()
