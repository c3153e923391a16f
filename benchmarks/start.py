"""How long the node takes until it is ready, with up to 5 million artifacts in its database.

`python -m benchmarks.start`. Some 4 GB of disk must be free for the largest.
"""

import asyncio
import hashlib
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import form, report, servers
from benchmarks.form import Form
from benchmarks.growth import fill
from benchmarks.latencies import with_spread
from benchmarks.workspaces import workspace
from undercroft.database import Database
from undercroft.database.schema import NODE

FILE = "node.sqlite"
SIZES = (0, 100_000, 1_000_000, 5_000_000)
BYTES_PER_ROW = 700
"""On disk, with indexes, WAL and room to spare."""
TIMES, PLUS_S = 1.5, 1.0
"""The goal: ready in so many times what an empty node takes, and so many seconds."""

# In the order of keys, which are spread like hashes: minutes become seconds.
FILL = """
WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :end)
INSERT INTO cache_artifacts
    (key, size_bytes, content_sha256, last_accessed_at, inserted_at, updated_at, stored_at)
SELECT format('acme/app/ccache/%02x/%02x/%08x%032x',
              (n * :step) >> 24, ((n * :step) >> 16) & 255, n * :step, n),
    16384, :digest, :now - n, :now - n, :now - n, :now - n FROM numbers
"""

Rounds = dict[str, dict[int, list[float]]]
"""Seconds until ready, by server and rows."""


async def prepare(folder: Path, count: int) -> None:
    """Makes the database of a node with so many artifacts, whose files are not there."""
    database = Database(folder / FILE, NODE)
    await asyncio.to_thread(database.open)
    if count:
        await fill(database, FILL, count, digest=hashlib.sha256(b"").hexdigest())
    await database.close()


def measure(sizes: Sequence[int], work: Form) -> Rounds:
    """Starts each, in turns. Round 0 is not counted: what a first start does is done once."""
    rounds: Rounds = {}
    with workspace() as folder:
        for size in sizes:
            (folder / str(size)).mkdir()
            uvloop.run(prepare(folder / str(size), size))
            print(f"start: {size:,} rows made", flush=True)
        for number in range(work.rounds + 1):
            for count in dict.fromkeys((work.workers[0], work.workers[-1])):
                for size in sizes:
                    with servers.node(folder / str(size), workers=count) as node:
                        if number:
                            rounds.setdefault(node.name, {}).setdefault(size, []).append(
                                round(node.ready_s, 3)
                            )
            print(f"start: round {number} of {work.rounds} done", flush=True)
    return rounds


def has_room(count: int) -> bool:
    """Whether the disk can take so many rows, and half of it stay free."""
    return shutil.disk_usage(Path.cwd()).free > 2 * count * BYTES_PER_ROW


def excess(found: dict[int, list[float]]) -> float:
    """The start with the most rows, as a share of what it may take."""
    empty, most = statistics.median(found[0]), statistics.median(found[max(found)])
    return most / (TIMES * empty + PLUS_S)


def shown(rounds: Rounds) -> dict[str, Any]:
    """The table for people."""
    sizes = list(next(iter(rounds.values())))
    head = ["seconds until ready, artifacts", *(f"{size:,}" for size in sizes)]
    rows = [[name, *(with_spread(times, 2) for times in found.values())] for name, found in rounds.items()]
    return report.table("Start", head, rows, NOTE)


NOTE = (
    "From the start of the process until `/up` answered 200. Most of it is Python importing modules; `/up` "
    "itself looks at databases, disk and buffers. The files of the rows do not exist; a start does not look."
)


def save(rounds: Rounds, work: Form) -> None:
    """Writes the result file and prints the table."""
    content = shown(rounds)
    found = rounds["node"]
    figures = {"start_excess": round(excess(found), 3)} if max(found) == SIZES[-1] else {}
    lines = {
        name: (list(one), [statistics.median(times) for times in one.values()])
        for name, one in rounds.items()
    }
    report.write_result(
        "start",
        quick=work.quick,
        parameters=work.parameters(),
        figures=figures,
        tables=[content],
        plots=[
            report.plot("start", "Start against artifacts", "artifacts known", "seconds until ready", lines)
        ],
        rounds=rounds,
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = form.arguments("start")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="leave out larger tables")
    given = parser.parse_args()
    work = form.form_of(given, rounds=4, seconds=0)
    sizes = [size for size in ((0, 10_000) if work.quick else SIZES) if size <= given.most and has_room(size)]
    save(measure(sizes, work), work)


if __name__ == "__main__":
    main()
