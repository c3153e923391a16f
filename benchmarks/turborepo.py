"""Turborepo's routes: the node, `turborepo-remote-cache`, and nginx, with the same requests.

`python -m benchmarks.turborepo`. Node and peer check a token; nginx does not.
"""

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import dialects, form, report, servers
from benchmarks.form import Form
from benchmarks.latencies import ratio, with_spread
from benchmarks.loading import Figures, Order, Target, cpu_s_per_thousand, failed_share, load, must_succeed
from benchmarks.mixed import CLOSED_CONNECTIONS, QUICK_MIX, filled, settle
from benchmarks.traffic import Mix
from benchmarks.workspaces import workspace

MIX = Mix(small=2_000, modules=100)
SIZES = {"10 kB": (10_000, 200), "1 MB": (1_000_000, 40)}
"""Bytes, and how many artifacts of that size are fetched."""
MOST_BYTES = 256 << 20

Rounds = dict[tuple[str, str], list[Figures]]
"""By case and server."""


def new_token(data: Path) -> str:
    """A token for the node on this data directory, made before it starts."""
    command = [sys.executable, "-m", "undercroft", "token", "create", "--data-dir", str(data)]
    command += ["--name", "benchmark", "--project", "acme/*", "--read", "--write"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def targets(folder: Path, workers: tuple[int, ...]) -> Iterator[list[Target]]:
    """All servers, the peer first."""
    with contextlib.ExitStack() as stack:
        token = {"Authorization": f"Bearer {servers.TURBOREPO_TOKEN}"}
        peer = stack.enter_context(servers.turborepo_peer(folder / "peer"))
        found = [Target.of(peer, "turborepo", headers=token)]
        for count in workers:
            data = folder / f"node-{count}"
            token = {"Authorization": f"Bearer {new_token(data)}"}
            node = stack.enter_context(servers.node(data, workers=count, settings={"AUTH__MODE": "tokens"}))
            home = dialects.DIALECTS["turborepo"].home
            found.append(Target.of(node, "turborepo", home, token))
        nginx = stack.enter_context(servers.nginx(folder / "nginx"))
        yield [*found, Target.of(nginx, "turborepo")]


def sizes(*, quick: bool) -> dict[str, tuple[int, int]]:
    """Bytes and number of artifacts by name."""
    return {name: (size, count // (8 if quick else 1)) for name, (size, count) in SIZES.items()}


def orders(work: Form, mix: Mix, number: int) -> Iterator[tuple[str, Order]]:
    """Each case of a round."""
    for name, (size, count) in sizes(quick=work.quick).items():
        seed = f"{name} {number}"
        yield f"GET {name}", Order("fetch equal", seed, seconds=work.seconds, size=size, count=count)
        yield (
            f"PUT {name}",
            Order("uploads", seed, seconds=work.seconds, size=size, most_bytes=MOST_BYTES),
        )
    yield "mixed", Order("closed", f"mixed {number}", CLOSED_CONNECTIONS, work.seconds, mix=mix)


def measure(work: Form, mix: Mix, folder: Path) -> Rounds:
    """Every case on every server, in turns."""
    rounds: Rounds = {}
    with targets(folder, work.workers[:2]) as all_targets:
        for target in all_targets:
            filled(target, mix)
            for size, count in sizes(quick=work.quick).values():
                must_succeed(target, Order("store equal", connections=16, size=size, count=count))
        settle(work)
        for number in range(work.rounds):
            for case, order in orders(work, mix, number):
                for target in all_targets:
                    rounds.setdefault((case, target.name), []).append(load(target, order))
                    settle(work)
            print(f"turborepo: round {number + 1} of {work.rounds} done", flush=True)
    return rounds


def shown(rounds: Rounds) -> dict[str, Any]:
    """The table for people."""
    head = ["case, server", "requests/s", "ratio to peer", "p50 ms", "p99 ms", "CPU s per 1,000", "failed"]
    rows = []
    for (case, server), many in rounds.items():
        rates = [one["rate"] for one in many]
        peer = statistics.median(one["rate"] for one in rounds[case, PEER])
        spent = [cpu for cpu in map(cpu_s_per_thousand, many) if cpu is not None]
        rows.append(
            [
                f"{case}, {server}",
                with_spread(rates),
                f"{ratio(statistics.median(rates), peer):.2f}",
                *(f"{statistics.median(one['all'].get(p, 0) for one in many):,.2f}" for p in ("p50", "p99")),
                with_spread(spent, 3),
                f"{max(map(failed_share, many)):.2%}",
            ]
        )
    note = f"Closed loop, {CLOSED_CONNECTIONS} connections. `mixed` is the mix of the first section."
    return report.table("The same requests", head, rows, note)


PEER = "turborepo-remote-cache"


def save(rounds: Rounds, work: Form) -> None:
    """Writes the result file and prints the table."""
    content = shown(rounds)
    rates = {case: statistics.median(one["rate"] for one in many) for case, many in rounds.items()}
    cases = dict.fromkeys(case for case, _ in rounds)
    ratios = [ratio(rates[case, "node"], rates[case, PEER]) for case in cases]
    report.write_result(
        "turborepo",
        quick=work.quick,
        parameters=work.parameters(),
        figures={"lowest_ratio_to_peer": round(min(ratios), 3)},
        tables=[content],
        rounds={", ".join(case): many for case, many in rounds.items()},
    )
    report.show([content])


def main() -> None:
    """Reads the arguments, measures, writes."""
    given = form.arguments("turborepo").parse_args()
    work = form.form_of(given, rounds=2, seconds=1.2)
    with workspace() as folder:
        rounds = measure(work, QUICK_MIX if work.quick else MIX, folder)
    save(rounds, work)


if __name__ == "__main__":
    main()
