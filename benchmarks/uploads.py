"""New artifacts of 10 kB, 256 kB and 2 MB, each acknowledged before the next is sent on its connection.

`python -m benchmarks.uploads`.
"""

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import dialects, form, report, servers
from benchmarks.form import Form
from benchmarks.http_node import bare
from benchmarks.latencies import ratio, with_spread
from benchmarks.loading import Figures, Order, Target, cpu_s_per_thousand, failed_share, load
from benchmarks.mixed import settle
from benchmarks.workspaces import workspace

SIZES = {"10 kB": 10_000, "256 kB": 256_000, "2 MB": 2_000_000}
CONNECTIONS = (1, 32)
"""One shows what a build waits for, 32 what the server can do."""
MOST_BYTES = 384 << 20
"""Of one measurement: what the kernel must write out is no figure of the server's."""

Rounds = dict[tuple[str, int, str], list[Figures]]
"""By size, connections and server."""


@contextlib.contextmanager
def targets(folder: Path, workers: tuple[int, ...]) -> Iterator[list[Target]]:
    """The node with its numbers of workers, a handler that forgets what it reads, and nginx."""
    with contextlib.ExitStack() as stack:
        found = [
            Target.of(
                stack.enter_context(servers.node(folder / f"node-{count}", workers=count)), "ccache", HOME
            )
            for count in workers
        ]
        found.append(Target.of(stack.enter_context(bare()), "ccache", HOME))
        found.append(Target.of(stack.enter_context(servers.nginx(folder / "nginx")), "ccache"))
        yield found


HOME = dialects.DIALECTS["ccache"].home


def measure(work: Form, folder: Path) -> Rounds:
    """Every size on every server, in turns."""
    rounds: Rounds = {}
    with targets(folder, work.workers) as all_targets:
        for number in range(work.rounds):
            for name, size in SIZES.items():
                for connections in CONNECTIONS[-1:] if work.quick else CONNECTIONS:
                    seed = f"{number} {connections}"
                    order = Order(
                        "uploads", seed, connections, work.seconds, most_bytes=MOST_BYTES, size=size
                    )
                    for target in all_targets:
                        rounds.setdefault((name, connections, target.name), []).append(load(target, order))
                        settle(work)
            print(f"uploads: round {number + 1} of {work.rounds} done", flush=True)
    return rounds


def shown(rounds: Rounds) -> dict[str, Any]:
    """The table for people."""
    head = ["size, connections, server", "uploads/s", "ratio to node", "MB/s", "p50 ms", "p99 ms"]
    head += ["CPU s per 1,000", "failed"]
    rows = []
    for (size, connections, server), many in rounds.items():
        rates = [one["rate"] for one in many]
        node = statistics.median(one["rate"] for one in rounds[size, connections, "node"])
        spent = [cpu for cpu in map(cpu_s_per_thousand, many) if cpu is not None]
        rows.append(
            [
                f"{size}, {connections}, {server}",
                with_spread(rates),
                f"{ratio(statistics.median(rates), node):.2f}",
                f"{statistics.median(rates) * SIZES[size] / 1e6:,.0f}",
                *(f"{statistics.median(one['all'].get(p, 0) for one in many):,.2f}" for p in ("p50", "p99")),
                with_spread(spent, 3),
                f"{max(map(failed_share, many)):.2%}",
            ]
        )
    return report.table("Uploads by size", head, rows)


def save(rounds: Rounds, work: Form) -> None:
    """Writes the result file and prints the table."""
    content = shown(rounds)
    figures = {}
    for size in SIZES:
        rates = {
            server: statistics.median(one["rate"] for one in rounds[size, CONNECTIONS[-1], server])
            for server in ("node", "nginx")
        }
        figures[f"upload_{size.replace(' ', '')}_to_nginx"] = round(ratio(rates["node"], rates["nginx"]), 3)
    plain = {", ".join(map(str, case)): many for case, many in rounds.items()}
    report.write_result(
        "uploads",
        quick=work.quick,
        parameters=work.parameters(connections=list(CONNECTIONS)),
        figures=figures,
        tables=[content],
        rounds=plain,
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    work = form.form_of(form.arguments("uploads").parse_args(), rounds=2, seconds=1, quick_seconds=0.3)
    with workspace() as folder:
        rounds = measure(work, folder)
    save(rounds, work)


if __name__ == "__main__":
    main()
