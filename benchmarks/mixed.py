"""Traffic shaped like that of real build caches: closed loop for the most there is, open loop for latency.

`python -m benchmarks.mixed`. With `--url` and `--dialect` it measures other servers on this machine, in turns
with the node and nginx, prints the figures and keeps no result.
"""

import argparse
import contextlib
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import dialects, form, others, report, servers, wrk
from benchmarks.form import Form
from benchmarks.latencies import ratio, with_spread
from benchmarks.loading import (
    Figures,
    Order,
    Target,
    cpu_s_per_thousand,
    failed_share,
    load,
    must_succeed,
)
from benchmarks.traffic import Mix, equal
from benchmarks.workspaces import workspace

SHARES = (25, 50, 75, 90)
"""Percent of its own closed-loop rate at which each server is asked in the open loop."""
TABLED = 50
"""The one whose latencies are shown for each kind of request."""
COMMON = "one rate"
"""The open loop in which all servers are asked at the same rate, by its name among the shares."""
COMMON_SHARE = 50
"""That rate, in percent of the most that the slowest of them can."""
CLOSED_CONNECTIONS = 64
OPEN_CONNECTIONS = 256
WARMUP_S = 1.0
QUICK_MIX = Mix(small=200, modules=8)
NODE_SETTINGS = {"DISK__LIMIT_BYTES": "24GiB"}
TINY = 4 << 10
TINY_COUNT = 100

Rounds = dict[str, list[dict[str, Figures]]]
"""By target, in each round: `closed`, and the open loop by percent and at one rate for all."""


def filled(target: Target, mix: Mix) -> None:
    """Stores what is there at the beginning."""
    must_succeed(target, Order("fill", mix=mix, connections=16))


def measured(target: Target, mix: Mix, seed: str, work: Form) -> dict[str, Figures]:
    """One round of a target: how much it can, then its latencies at shares of that."""
    order = Order("closed", f"closed {seed}", CLOSED_CONNECTIONS, work.seconds, mix=mix)
    found = {"closed": load(target, order)}
    for share in (TABLED,) if work.quick else SHARES:
        settle(work)
        rate = look_ups(found["closed"]) * share / 100
        found[str(share)] = opened(target, mix, f"{share} {seed}", rate, work)
    settle(work)
    return found


def look_ups(closed: Figures) -> float:
    """How many a second there were in a closed loop: writes follow misses, and are none."""
    reads = sum(one["count"] for kind, one in closed["kinds"].items() if not kind.startswith("store"))
    return float(reads / closed["all"]["count"] * closed["rate"])


def opened(target: Target, mix: Mix, seed: str, rate: float, work: Form) -> Figures:
    """An open loop."""
    warmup = min(WARMUP_S, work.seconds / 4)
    order = Order("open", f"open {seed}", OPEN_CONNECTIONS, work.seconds + warmup, warmup, rate, mix=mix)
    return {**load(target, order), "asked": round(rate, 1)}


def settle(work: Form) -> None:
    """Writes out what one measurement has left in memory, so that the next does not wait for it."""
    if not work.quick:
        os.sync()


def measure_all(targets: list[Target], mix: Mix, work: Form) -> Rounds:
    """Every target in every round."""
    found: Rounds = {target.name: [] for target in targets}
    for number in range(work.rounds):
        for target in targets:
            found[target.name].append(measured(target, mix, str(number), work))
            print(f"mixed: round {number + 1} of {work.rounds}, {target.name} done", flush=True)
        # Of the first round in all of them: medians of different rates would mean nothing.
        rate = min(look_ups(many[0]["closed"]) for many in found.values()) * COMMON_SHARE / 100
        for target in targets:
            found[target.name][-1][COMMON] = opened(target, mix, f"{COMMON} {number}", rate, work)
            settle(work)
    return found


# --- the generator's own limit --------------------------------------------------------------------


def generator_limit(server: servers.Server, folder: Path, seconds: float) -> dict[str, float]:
    """Requests per second of the generator, and of wrk, against the fastest server, with small files."""
    nginx = Target.of(server, "static")
    must_succeed(nginx, Order("store equal", size=TINY, count=TINY_COUNT))
    order = Order("fetch equal", "limit", CLOSED_CONNECTIONS, seconds, size=TINY, count=TINY_COUNT)
    found = must_succeed(nginx, order)
    paths = ", ".join(f'"/{entry.name}"' for entry in equal(nginx.place, TINY, TINY_COUNT))
    script = f"local paths = {{{paths}}}\n{GET_ANY}"
    fastest = wrk.load(server, script, folder, connections=CLOSED_CONNECTIONS, seconds=seconds)
    return {"rate": found["rate"], "load_share": found["load_share"], "wrk": fastest["rate"]}


GET_ANY = "request = function() return wrk.format(nil, paths[math.random(#paths)]) end"


# --- tables ---------------------------------------------------------------------------------------


def most(rounds: Rounds) -> dict[str, Any]:
    """The table of the closed loop."""
    head = [
        "server",
        "requests/s",
        f"ratio to {next(iter(rounds))}",
        "MB/s",
        "CPU s per 1,000",
        "generator",
        "failed",
    ]
    base = statistics.median(one["closed"]["rate"] for one in next(iter(rounds.values())))
    rows = []
    for name, many in rounds.items():
        closed = [one["closed"] for one in many]
        spent = [cpu for cpu in map(cpu_s_per_thousand, closed) if cpu is not None]
        rates = [one["rate"] for one in closed]
        rows.append(
            [
                name,
                with_spread(rates),
                f"{ratio(statistics.median(rates), base):.2f}",
                with_spread([one["bytes"] / one["seconds"] / 1e6 for one in closed]),
                with_spread(spent, 3) if spent else "-",
                f"{statistics.median(one['load_share'] for one in closed):.0%}",
                f"{max(map(failed_share, closed)):.2%}",
            ]
        )
    note = f"Closed loop, {CLOSED_CONNECTIONS} connections; medians, and how far the rounds lie apart."
    return report.table("The most there is: mixed traffic", head, rows, note)


def latency(rounds: Rounds) -> dict[str, Any]:
    """The table of the open loop."""
    head = [
        "server, share of its most",
        "look-ups/s",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "late p99",
        "failed",
    ]
    rows = []
    for name, many in rounds.items():
        for share in shares_of(many):
            one = [each[share] for each in many]
            cells = [
                f"{statistics.median(each['all'].get(p, 0) for each in one):,.2f}"
                for p in ("p50", "p90", "p99", "p99.9")
            ]
            longest = max(each["all"].get("max", 0) for each in one)
            late = statistics.median(each["late"].get("p99", 0) for each in one)
            asked = statistics.median(each["asked"] for each in one)
            failed = f"{max(map(failed_share, one)):.2%}"
            rows.append(
                [f"{name}, {share} %", f"{asked:,.0f}", *cells, f"{longest:,.0f}", f"{late:.2f}", failed]
            )
    return report.table("Latency at fixed rates: mixed traffic", head, rows, OPEN_NOTE)


OPEN_NOTE = (
    "Open loop: look-ups arrive at random (a Poisson process) whatever the server does, on up to "
    f"{OPEN_CONNECTIONS} connections; a miss is followed by its write. Latency counts from the moment a "
    "request was due until its last byte, all kinds and sizes together. `late p99` is how late the "
    "generator itself was while a connection was free: what latencies contain of it. Medians over the "
    "rounds; `max` is the longest of all."
)


def shares_of(many: Sequence[dict[str, Figures]]) -> list[str]:
    """The open loops at shares of what a server can."""
    return [name for name in many[0] if name not in ("closed", COMMON)]


def at_one_rate(rounds: Rounds) -> dict[str, Any]:
    """The table of the open loop in which all are asked alike, with ratios to nginx where it is there."""
    medians = {
        name: {p: statistics.median(one[COMMON]["all"].get(p, 0) for one in many) for p in ("p50", "p99")}
        for name, many in rounds.items()
    }
    nginx = next((found for name, found in medians.items() if name.startswith("nginx")), None)
    head = ["server", "p50 ms", "to nginx", "p99 ms", "to nginx", "max", "late p99", "failed"]
    rows = []
    for name, many in rounds.items():
        one = [each[COMMON] for each in many]
        cells = []
        for percent, value in medians[name].items():
            spread = with_spread([each["all"].get(percent, 0) for each in one], 2)
            cells += [spread, f"{ratio(value, nginx[percent]):.2f}" if nginx else "-"]
        longest = max(each["all"].get("max", 0) for each in one)
        late = statistics.median(each["late"].get("p99", 0) for each in one)
        rows.append([name, *cells, f"{longest:,.0f}", f"{late:.2f}", f"{max(map(failed_share, one)):.2%}"])
    asked = next(iter(rounds.values()))[0][COMMON]["asked"]
    note = (
        f"All are asked for {asked:,.0f} look-ups a second, {COMMON_SHARE} % of the most that the slowest of "
        "the run could in its first round; open loop, the same arrivals for all."
    )
    return report.table("Latency at one rate for all: mixed traffic", head, rows, note)


def by_kind(rounds: Rounds, share: str = str(TABLED)) -> dict[str, Any]:
    """Latencies of each kind of request on the first server."""
    name, many = next(iter(rounds.items()))
    kinds = sorted({kind for one in many for kind in one[share]["kinds"]})
    rows = []
    for kind in kinds:
        found = [one[share]["kinds"][kind] for one in many if kind in one[share]["kinds"]]
        cells = [
            f"{statistics.median(each[p] for each in found):,.2f}" for p in ("p50", "p90", "p99", "p99.9")
        ]
        count = sum(each["count"] for each in found)
        rows.append([kind, f"{count:,}", *cells, f"{max(each['max'] for each in found):,.0f}"])
    head = ["request", "answers", "p50 ms", "p90", "p99", "p99.9", "max"]
    return report.table(f"By kind of request: {name} at {share} %", head, rows)


def plots(rounds: Rounds) -> list[dict[str, Any]]:
    """Latency against rate."""
    return [_latency_plot(rounds, percent) for percent in ("p50", "p99")]


def _latency_plot(rounds: Rounds, percent: str) -> dict[str, Any]:
    lines = {}
    for name, many in rounds.items():
        shares = shares_of(many)
        asked = [statistics.median(one[share]["asked"] for one in many) for share in shares]
        late = [statistics.median(one[share]["all"].get(percent, 0) for one in many) for share in shares]
        lines[name] = (asked, late)
    title = f"Latency {percent} against rate, mixed traffic"
    return report.plot(f"mixed-{percent}", title, "look-ups per second", "milliseconds", lines, y_log=True)


def save(rounds: Rounds, limit: dict[str, float], work: Form, mix: Mix) -> None:
    """Writes the result file and prints the tables."""
    tables = [most(rounds), latency(rounds), at_one_rate(rounds), by_kind(rounds)]
    tables[0]["notes"].append(
        f"The generator's own limit: {limit['rate']:,.0f} GETs/s of {TINY >> 10} KiB from nginx in the same "
        f"run, busy {limit['load_share']:.0%} of the time (wrk: {limit['wrk']:,.0f}). `generator` is its "
        "share of a processor here: far below 100 %, it is not what limits."
    )
    rate = statistics.median(one["closed"]["rate"] for one in next(iter(rounds.values())))
    slow = statistics.median(one[str(TABLED)]["all"].get("p99", 0) for one in next(iter(rounds.values())))
    report.write_result(
        "mixed",
        quick=work.quick,
        parameters=work.parameters(**vars(mix)),
        figures={
            "mixed_rate": round(rate, 1),
            "mixed_p99_ms_at_half": round(slow, 2),
            "generator_limit": limit["rate"],
        },
        tables=tables,
        plots=plots(rounds),
        rounds=rounds,
    )
    report.show(tables)


def measure_here(work: Form, mix: Mix) -> None:
    """The node with its numbers of workers, and nginx that serves and stores the same as files."""
    with workspace() as folder, contextlib.ExitStack() as stack:
        targets = []
        for count in work.workers:
            data = folder / f"node-{count}"
            server = stack.enter_context(servers.node(data, workers=count, settings=NODE_SETTINGS))
            targets.append(Target.of(server, dialects.NODE))
        nginx = stack.enter_context(servers.nginx(folder / "nginx"))
        targets.append(Target.of(nginx, "static"))
        limit = generator_limit(nginx, folder, work.seconds / 2)
        for target in targets:
            filled(target, mix)
        settle(work)
        save(measure_all(targets, mix, work), limit, work, mix)


def measure_other(given: argparse.Namespace, work: Form, mix: Mix) -> None:
    """Other servers, in turns with the node and nginx.

    Nothing is kept: this project publishes figures of what it installs itself.
    """
    with (
        workspace() as folder,
        others.compared(given.others, folder, NODE_SETTINGS, alone=given.alone) as groups,
    ):
        targets = [target for group in groups.values() for target in group]
        for target in targets:
            print(f"mixed: {target.name} is filled first", flush=True)
            filled(target, mix)
        settle(work)
        found = measure_all(targets, mix, work)
    for group in groups.values():
        rounds = {target.name: found[target.name] for target in group}
        kinds = [by_kind({name: rounds[name]}) for name in rounds]
        report.show([most(rounds), latency(rounds), at_one_rate(rounds), *kinds])


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = form.arguments("mixed")
    others.add_arguments(parser)
    given = parser.parse_args()
    work = form.form_of(given, rounds=2, seconds=3, quick_seconds=0.25)
    mix = QUICK_MIX if given.quick else Mix()
    if given.others:
        measure_other(given, work, mix)
    else:
        measure_here(work, mix)


if __name__ == "__main__":
    main()
