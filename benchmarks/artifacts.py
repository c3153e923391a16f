"""The service of artifacts without HTTP: what one store and one read cost, by size and concurrency.

`python -m benchmarks.artifacts [--against SRC]`. Each round measures every code base in turn, each time in a
process of its own; `--against` names the `src` folder of another checkout, and keeps no result. CPU time is
that of the whole process, threads included; a turn of the event loop is late by as much as something else
held it.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import form, report
from benchmarks.form import Form
from benchmarks.workspaces import workspace

SIZES = {"4k": 4 << 10, "10k": 10 << 10, "64k": 64 << 10, "256k": 256 << 10, "2m": 2 << 20}
CONCURRENT = (1, 16, 64)
FILES = 64
PIECE = 64 << 10
"""Of a body, as a server hands it over."""

Act = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Cost:
    """Of one operation at one size and concurrency."""

    cpu_us: float
    per_second: float
    late_p99_ms: float


async def _tick(late: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - began) * 1_000 - 1)


async def cost_of(act: Act, concurrent: int, seconds: float) -> Cost:
    """Does it over and over, so many at once."""
    numbers = itertools.count()
    done = 0
    late: list[float] = [0.0]
    ticking = asyncio.create_task(_tick(late))
    until = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await act(next(numbers))
            done += 1

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrent)))
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    ticking.cancel()
    return Cost(cpu / done * 1e6, done / took, statistics.quantiles([*late, 0.0], n=100)[98])


async def measure(folder: Path, seconds: float, only: str) -> dict[str, Cost]:
    """All cases whose name contains `only`, in a data directory of their own."""
    # Not at the top: which code base it is depends on the path.
    from undercroft.artifacts import CacheArtifacts  # noqa: PLC0415
    from undercroft.buffers import SQLiteBuffer  # noqa: PLC0415
    from undercroft.buffers.cache_artifacts import CacheArtifactsBuffer  # noqa: PLC0415
    from undercroft.database import Database  # noqa: PLC0415
    from undercroft.database.schema import NODE  # noqa: PLC0415
    from undercroft.storage.capacity import Capacity, volume_of  # noqa: PLC0415
    from undercroft.storage.disk import Disk  # noqa: PLC0415
    from undercroft.telemetry.events import Events  # noqa: PLC0415

    database, disk = Database(folder / "node.sqlite", NODE), Disk(folder)
    buffer = SQLiteBuffer(CacheArtifactsBuffer(), database, Events())
    artifacts = CacheArtifacts(database, buffer, disk, Capacity(volume_of(folder), None, 99.0), "committed")
    disk.open_directories()
    database.open()
    await buffer.open()
    running = asyncio.create_task(buffer.run())
    artifacts.open()
    costs: dict[str, Cost] = {}
    try:
        for (name, size), concurrent in itertools.product(SIZES.items(), CONCURRENT):
            body = os.urandom(size)
            acts = _acts(artifacts, body, f"{name}{concurrent}")
            cases = {f"{kind} {name} x{concurrent}": act for kind, act in acts.items()}
            wanted = {case: act for case, act in cases.items() if only in case}
            for number in range(FILES if wanted else 0):
                await acts["replace"](number)
                await acts["read"](number)
            for case, act in wanted.items():
                costs[case] = await cost_of(act, concurrent, seconds)
    finally:
        await buffer.close()
        await running
        artifacts.close()
        await database.close()
        disk.close()
    return costs


def _acts(artifacts: Any, body: bytes, series: str) -> dict[str, Act]:
    pieces = [body[start : start + PIECE] for start in range(0, len(body), PIECE)]

    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    def key(number: int) -> str:
        # In few directories, as on a node that has served for a while: there are all of them by then.
        name = hashlib.sha256(f"{series} {number}".encode()).hexdigest()
        return f"acme/app/ccache/{name[0]}0/{name[1]}0/{name}"

    async def store(number: int) -> None:
        await artifacts.store(key(number), chunks(), declared_size=len(body), replace=False)

    async def replace(number: int) -> None:
        await artifacts.store(key(-1 - number % FILES), chunks(), declared_size=len(body), replace=True)

    async def read(number: int) -> None:
        # No body: what sending it costs is the HTTP layer's.
        found = await artifacts.read(key(-1 - number % FILES))
        found.close()
        await asyncio.sleep(0)  # others get their turn, as they do when it is sent

    async def store_and_read(number: int) -> None:
        await artifacts.store(f"{key(number)}r", chunks(), declared_size=len(body), replace=False)
        (await artifacts.read(f"{key(number)}r")).close()

    return {"store": store, "replace": replace, "read": read, "store and read": store_and_read}


def _in_process(source: Path, seconds: float, only: str) -> dict[str, Cost]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.artifacts",
        "--one",
        "--seconds",
        str(seconds),
        "--only",
        only,
    ]
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{report.ROOT}"}
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {case: Cost(**cost) for case, cost in json.loads(answer).items()}


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        *(statistics.median(column) for column in zip(*(asdict(c).values() for c in costs), strict=True))
    )


def _rows(medians: dict[str, dict[str, Cost]]) -> list[list[str]]:
    ours, *others = medians
    rows = []
    for case, cost in medians[ours].items():
        row = [case, f"{cost.cpu_us:.0f}", f"{cost.per_second:,.0f}", f"{cost.late_p99_ms:.1f}"]
        for other in others:
            before = medians[other][case]
            row += [f"{before.cpu_us / cost.cpu_us:.2f}", f"{cost.per_second / before.per_second:.2f}"]
        rows.append(row)
    return rows


def main() -> None:
    """Runs the rounds and writes the result."""
    parser = form.arguments("artifacts")
    parser.add_argument("--against", type=Path, help="the src folder of another checkout, to compare with")
    parser.add_argument("--only", default="", help="cases whose name contains this, like 'store 10k'")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = form.form_of(given, rounds=5, seconds=0.3, quick_seconds=0.02)
    if given.one:
        sys.setswitchinterval(0.001)  # as the node does
        with workspace() as folder:
            costs = uvloop.run(measure(folder, given.seconds, given.only))
        print(json.dumps({case: asdict(cost) for case, cost in costs.items()}))
        return
    sources = {"this": report.ROOT / "src"} | ({"other": given.against} if given.against else {})
    report_of(shape, sources, given.only)


def report_of(shape: Form, sources: dict[str, Path], only: str) -> None:
    """Measures in turn and tells; keeps the figures of all cases, of this code only."""
    rounds: dict[str, list[dict[str, Cost]]] = {name: [] for name in sources}
    for _ in range(shape.rounds):
        for name, source in sources.items():
            rounds[name].append(_in_process(source, shape.seconds, only))
    medians = {
        name: {case: _median([one[case] for one in measured]) for case in measured[0]}
        for name, measured in rounds.items()
    }
    head = ["operation, size, at once", "CPU us", "per second", "loop late p99 ms"]
    if "other" in sources:
        head += ["CPU of the other / ours", "rate ours / the other's"]
    shown = [report.table("The service of artifacts without HTTP", head, _rows(medians))]
    report.show(shown)
    if only or "other" in sources:
        return
    kept = [{case: asdict(cost) for case, cost in costs.items()} for costs in rounds["this"]]
    report.write_result(
        "artifacts",
        quick=shape.quick,
        parameters=shape.parameters(),
        figures={},
        tables=shown,
        plots=[],
        rounds=kept,
    )


if __name__ == "__main__":
    main()
