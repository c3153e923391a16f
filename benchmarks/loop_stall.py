"""How long the event loop stands still while our buffer is saturated.

`python -m benchmarks.loop_stall`. A producer enqueues as fast as back-pressure admits and gives way
every 100 events; a ticker measures how much later than asked the loop gets round to it. The baseline
is the same loop with the same producer feeding a sink that does nothing; `busy thread` is that beside a
thread that computes without Python's global lock: how late a loop is when only the machine is shared.
"""

import asyncio
import gc
import hashlib
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks import form, report
from benchmarks.contestants import YIELD_EVERY, Ours
from benchmarks.form import Form
from benchmarks.load import Row, make_rows
from benchmarks.workspaces import workspace
from undercroft.buffers.key_values import KeyValueWrite
from undercroft.errors import BufferFullError

TICK_S = 0.001
DISTINCT_ROWS = 400_000
INTERVALS_MS = (5, 1, 0.5, 0.1)
"""CPython's default first, which a process has that embeds the buffers, then that of the node."""

KINDS = ("baseline", "busy thread", "buffer")

Enqueue = Callable[[KeyValueWrite], Awaitable[object]]


@dataclass(frozen=True)
class Stall:
    """Lateness of the ticks in milliseconds, and the events per second that went through meanwhile."""

    p50: float
    p99: float
    longest: float
    events_per_s: float
    refused: int


async def tick(late_ms: list[float]) -> None:
    """Notes how much later than `TICK_S` each sleep ends, until it is cancelled."""
    clock = time.perf_counter
    while True:
        started = clock()
        await asyncio.sleep(TICK_S)
        late_ms.append((clock() - started - TICK_S) * 1_000)


async def produce(enqueue: Enqueue, rows: Sequence[Row], seconds: float) -> tuple[int, int]:
    """Feeds events for so long; answers how many were accepted and how many refused for want of room."""
    deadline = time.perf_counter() + seconds
    number = refused = 0
    while time.perf_counter() < deadline:
        for _ in range(YIELD_EVERY):
            key, payload = rows[number % len(rows)]
            try:
                await enqueue(KeyValueWrite(key, payload))
                number += 1
            except BufferFullError:
                refused += 1
        await asyncio.sleep(0)
    return number, refused


async def measure(enqueue: Enqueue, rows: Sequence[Row], seconds: float) -> Stall:
    """Runs producer and ticker side by side."""
    late: list[float] = []
    gc.collect()
    ticker = asyncio.create_task(tick(late))
    started = time.perf_counter()
    count, refused = await produce(enqueue, rows, seconds)
    elapsed = time.perf_counter() - started
    await asyncio.sleep(2 * TICK_S)  # the tick that is late by then belongs to it
    ticker.cancel()
    late.sort()
    return Stall(statistics.median(late), late[int(len(late) * 0.99)], late[-1], count / elapsed, refused)


async def swallow(_event: KeyValueWrite) -> None:
    """The sink of the baseline."""


async def baseline(rows: Sequence[Row], seconds: float) -> Stall:
    """The producer alone."""
    return await measure(swallow, rows, seconds)


async def beside_a_thread(rows: Sequence[Row], seconds: float) -> Stall:
    """The producer, and a thread that hashes, which gives up the global lock."""
    ended = threading.Event()

    def compute() -> None:
        data = bytes(1 << 20)
        while not ended.is_set():
            hashlib.sha256(data)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        return await measure(swallow, rows, seconds)
    finally:
        ended.set()
        thread.join()


async def saturated(rows: Sequence[Row], seconds: float) -> Stall:
    """The producer into our buffer with the node's default settings."""
    with workspace() as folder:
        ours = Ours(folder)
        await ours.open()
        stall = await measure(ours.buffer.enqueue, rows, seconds)
        await ours.close()
    return stall


def run_at(interval_ms: float, seconds: float, rows: Sequence[Row]) -> dict[str, Stall]:
    """Baseline and buffer at one switch interval."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_ms / 1_000)
    try:
        return {
            "baseline": uvloop.run(baseline(rows, seconds)),
            "busy thread": uvloop.run(beside_a_thread(rows, seconds)),
            "buffer": uvloop.run(saturated(rows, seconds)),
        }
    finally:
        sys.setswitchinterval(before)


def median_of(stalls: Sequence[Stall]) -> Stall:
    """Medians over the rounds, of the longest in each, too: that of all rounds grows with their number."""
    names = ("p50", "p99", "longest", "events_per_s")
    middle = {name: statistics.median(getattr(stall, name) for stall in stalls) for name in names}
    return Stall(refused=sum(stall.refused for stall in stalls), **middle)


Rounds = list[dict[float, dict[str, Stall]]]


def medians(rounds: Rounds) -> dict[float, dict[str, Stall]]:
    """Each interval with its kinds."""
    return {
        interval: {kind: median_of([r[interval][kind] for r in rounds]) for kind in KINDS}
        for interval in INTERVALS_MS
    }


def shown(found: dict[float, dict[str, Stall]], rounds: Rounds) -> dict[str, Any]:
    """The table for people."""
    rows = [
        [
            f"{kind}, switch interval {interval:g} ms",
            *(f"{value:.2f}" for value in (stall.p50, stall.p99, stall.longest)),
            f"{max(one[interval][kind].longest for one in rounds):.2f}",
            f"{stall.events_per_s:,.0f}",
            str(stall.refused),
        ]
        for interval, kinds in found.items()
        for kind, stall in kinds.items()
    ]
    head = ["loop", "p50 ms", "p99 ms", "max ms", "max of all ms", "events/s", "refused"]
    return report.table("Lateness of a tick each millisecond", head, rows, NOTE)


NOTE = (
    "p50, p99 and max (the longest in each round, of two seconds) are medians over the rounds. The baseline "
    "has the same producer feed a sink that does nothing: what it shows is the producer's own slices and the "
    "machine. `busy thread` is the baseline beside a thread that hashes without Python's global lock. "
    "'Refused' counts events that found no room within `enqueue_timeout_ms`, over all rounds."
)


def save(rounds: Rounds, work: Form) -> None:
    """Writes the result file and prints the table."""
    found = medians(rounds)
    content = shown(found, rounds)
    default, node = found[INTERVALS_MS[0]], found[INTERVALS_MS[1]]
    figures = {
        "stall_p99_ms": round(default["buffer"].p99, 3),
        "stall_max_ms": round(default["buffer"].longest, 3),
        "node_stall_p99_ms": round(node["buffer"].p99, 3),
        "node_stall_max_ms": round(node["buffer"].longest, 3),
        "baseline_p99_ms": round(default["baseline"].p99, 3),
        "baseline_max_ms": round(default["baseline"].longest, 3),
        "busy_thread_p99_ms": round(default["busy thread"].p99, 3),
        "busy_thread_max_ms": round(default["busy thread"].longest, 3),
    }
    plain = [
        {str(ms): {kind: vars(stall) for kind, stall in kinds.items()} for ms, kinds in one.items()}
        for one in rounds
    ]
    report.write_result(
        "loop_stall",
        quick=work.quick,
        parameters=work.parameters(yield_every=YIELD_EVERY),
        figures=figures,
        tables=[content],
        rounds=plain,
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    work = form.form_of(form.arguments("loop_stall").parse_args(), rounds=7, seconds=2, quick_seconds=0.2)
    rows = make_rows(DISTINCT_ROWS // 20 if work.quick else DISTINCT_ROWS)
    gc.freeze()
    rounds: Rounds = []
    for number in range(work.rounds):
        rounds.append({interval: run_at(interval, work.seconds, rows) for interval in INTERVALS_MS})
        print(f"loop_stall: round {number + 1} of {work.rounds} done", flush=True)
    save(rounds, work)


if __name__ == "__main__":
    main()
