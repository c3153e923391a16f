"""What a growing table of key values costs: flushes, GETs, the start of the node.

`python -m benchmarks.growth`. Up to 10 million rows, for which some 8 GB of disk must be free.
"""

import asyncio
import hashlib
import resource
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import uvloop

from benchmarks import form, report, servers, wrk
from benchmarks.contestants import FILE, Ours
from benchmarks.dialects import QUERY
from benchmarks.form import Form
from benchmarks.http_node import filled_script
from benchmarks.latencies import with_spread
from benchmarks.load import make_rows
from benchmarks.workspaces import workspace
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
SMALL, LARGE = 100_000, 10_000_000
ROWS = 50_000
"""New ones in a measurement of flushes."""
SLICE = 500_000
BYTES_PER_ROW = 750
"""On disk, with indexes, WAL and room to spare."""

# Keys in order, so that this takes minutes and not hours, but spread over all there are: the rows that
# follow land anywhere between them.
FILL = """
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :end)
INSERT INTO key_value_entries (key, json_payload, last_accessed_at, inserted_at, updated_at)
SELECT 'keyvalue:acme:app:' || printf('%08x%056x', n * :step, n), :payload, :now, :now, :now FROM numbers
"""

GET = """
request = function()
  local n = math.random({count}) - 1
  return wrk.format(nil, string.format("/api/cache/keyvalue/%08x%056x?{query}", n * {step}, n))
end
"""


@dataclass
class Grown:
    """What was measured beside so many rows."""

    rows: int
    file_bytes: int
    flush_us: list[float]
    """Microseconds from enqueue to commit for each new row."""
    flush_cpu_us: list[float]
    start_s: list[float]
    gets: list[wrk.Figures]


def step(count: int) -> int:
    """The distance between keys."""
    return (1 << 32) // count


async def fill(database: Database, sql: str, count: int, **values: Any) -> None:
    """Puts `count` rows into an empty table, in slices: one transaction would hold all of them in memory."""
    values |= {"step": step(count), "now": time.time_ns() // 1_000}
    for first in range(0, count, SLICE):
        part = {"first": first, "end": min(count, first + SLICE), **values}
        await database.write(partial(_execute, sql=sql, values=part))


def _execute(connection: apsw.Connection, sql: str, values: dict[str, Any]) -> None:
    connection.execute(sql, values)


async def filled(folder: Path, count: int) -> int:
    """Makes the database; answers its size."""
    database = Database(folder / FILE, KEY_VALUES)
    await asyncio.to_thread(database.open)
    await fill(database, FILL, count, payload=make_rows(1)[0].json_payload)
    await database.close()
    return (folder / FILE).stat().st_size


async def flush_us(folder: Path, numbers: range) -> tuple[float, float]:
    """What a new row costs, on the clock and on the processor, the loop otherwise idle."""
    rows = make_rows(numbers.stop)[numbers.start :]
    ours = Ours(folder)
    await ours.open()
    started, used = time.perf_counter(), _cpu_s()
    await ours.write(rows, float("inf"))
    elapsed, used = time.perf_counter() - started, _cpu_s() - used
    await ours.close()
    return elapsed * 1e6 / len(rows), used * 1e6 / len(rows)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(count: int, work: Form) -> Grown:
    """Fills a database of its own, and removes it afterwards."""
    new = ROWS // 10 if work.quick else ROWS
    with workspace() as folder:
        size = uvloop.run(filled(folder, count))
        grown = Grown(count, size, [], [], [], [])
        for number in range(work.rounds):
            wall, cpu = uvloop.run(flush_us(folder, range(number * new, (number + 1) * new)))
            grown.flush_us.append(round(wall, 2))
            grown.flush_cpu_us.append(round(cpu, 2))
        for _ in range(work.rounds):
            with servers.node(folder) as node:
                grown.start_s.append(round(node.ready_s, 3))
                wrk.check(node, digests(count))
                script = filled_script(GET, count=count, step=step(count), query=QUERY)
                grown.gets.append(wrk.load(node, script, folder, connections=64, seconds=work.seconds))
    print(f"growth: {count:,} rows done", flush=True)
    return grown


def digests(count: int) -> dict[str, str]:
    """What must be answered for the first and the last row, and one between them."""
    digest = hashlib.sha256(make_rows(1)[0].json_payload.encode()).hexdigest()
    paths = (f"/api/cache/keyvalue/{n * step(count):08x}{n:056x}?{QUERY}" for n in (0, count // 2, count - 1))
    return dict.fromkeys(paths, digest)


def has_room(count: int) -> bool:
    """Whether the disk can take so many rows, and half of it stay free."""
    return shutil.disk_usage(Path.cwd()).free > 2 * count * BYTES_PER_ROW


def shown(found: Sequence[Grown]) -> dict[str, Any]:
    """The table for people."""
    head = [
        "rows",
        "file MB",
        "flush, us a row",
        "CPU us a row",
        "GET requests/s",
        "CPU s per 1,000",
        "start s",
    ]
    rows = [
        [
            f"{one.rows:,}",
            f"{one.file_bytes / 1e6:,.0f}",
            with_spread(one.flush_us, 1),
            with_spread(one.flush_cpu_us, 1),
            with_spread([each["rate"] for each in one.gets]),
            with_spread([each["cpu_us"] / 1e3 for each in one.gets], 3),
            with_spread(one.start_s, 2),
        ]
        for one in found
    ]
    return report.table("Beside so many rows", head, rows, NOTE)


NOTE = (
    f"A flush: {ROWS:,} new rows with keys like hashes, enqueued by one producer, until the last is "
    "committed; no HTTP. GETs: random existing keys over HTTP, 64 connections. The database has just been "
    "written, so that the kernel has much of it in memory, as on a machine that does nothing else."
)


def plots(found: Sequence[Grown]) -> list[dict[str, Any]]:
    """The growth curves."""
    rows = [one.rows for one in found]
    flush = [statistics.median(one.flush_us) for one in found]
    gets = [statistics.median(each["cpu_us"] for each in one.gets) for one in found]
    lines = {"flush, per new row": (rows, flush), "GET, processor time of the node": (rows, gets)}
    return [
        report.plot("growth", "Cost against rows in the table", "rows", "microseconds", lines, x_log=True)
    ]


def save(found: Sequence[Grown], work: Form) -> None:
    """Writes the result file and prints the table."""
    content = shown(found)
    cost = {one.rows: statistics.median(one.flush_us) for one in found}
    figures = {}
    if SMALL in cost and LARGE in cost:
        figures["growth_cost"] = round(cost[LARGE] / cost[SMALL], 3)
    report.write_result(
        "growth",
        quick=work.quick,
        parameters=work.parameters(new_rows=ROWS),
        figures=figures,
        tables=[content],
        plots=plots(found),
        rounds=[asdict(one) for one in found],
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = form.arguments("growth")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="leave out larger tables")
    given = parser.parse_args()
    work = form.form_of(given, rounds=2, seconds=2, quick_seconds=1)
    sizes = SIZES[:1] if work.quick else [size for size in SIZES if size <= given.most]
    for size in sizes:
        if not has_room(size):
            print(f"growth: {size:,} rows left out, the disk is too full", flush=True)
    save([measure(size, work) for size in sizes if has_room(size)], work)


if __name__ == "__main__":
    main()
