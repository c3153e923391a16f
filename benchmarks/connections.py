"""GETs on 1 to 256 connections, for the node with its numbers of workers and for nginx.

`python -m benchmarks.connections`.
"""

import contextlib
import hashlib
import statistics
from pathlib import Path
from typing import Any

from benchmarks import form, report, servers, wrk
from benchmarks.dialects import QUERY
from benchmarks.form import Form
from benchmarks.http_node import CCACHE, GET_FILE, GET_KEY_VALUE, SAMPLE, filled_script
from benchmarks.latencies import with_spread
from benchmarks.servers import Server
from benchmarks.traffic import block
from benchmarks.workspaces import workspace

CONNECTIONS = (1, 4, 16, 64, 256)
FILES, KEY_VALUES = 200, 2_000
FILE_BYTES = 16 << 10
NAME = "conn"

Digests = dict[str, str]
Rounds = dict[str, dict[str, dict[int, list[wrk.Figures]]]]
"""By kind of request, server and connections."""


def content(number: int) -> bytes:
    """The file of a number."""
    return block()[number * 1_000 : number * 1_000 + FILE_BYTES]


def fill_node(node: Server) -> Digests:
    """Files and key values; answers digests of a sample by path."""
    files = {f"{CCACHE}/{NAME}{n:06d}": content(n) for n in range(1, FILES + 1)}
    answers = [f'{{"entries":[{{"value":"{n:0500d}"}}]}}' for n in range(1, KEY_VALUES + 1)]
    stored = [f'{{"cas_id":"bench{n}",{answer[1:]}'.encode() for n, answer in enumerate(answers, 1)]
    wrk.put_all(node, [*files.items(), *((f"/api/cache/keyvalue?{QUERY}", body) for body in stored)])
    sample = dict(list(files.items())[:SAMPLE])
    for number, answer in enumerate(answers[:SAMPLE], 1):
        sample[f"/api/cache/keyvalue/bench{number}?{QUERY}"] = answer.encode()
    return digests_of(sample)


def fill_nginx(nginx: Server) -> Digests:
    """The same files."""
    files = {f"/{NAME}{n:06d}": content(n) for n in range(1, FILES + 1)}
    wrk.put_all(nginx, files.items())
    return digests_of(dict(list(files.items())[:SAMPLE]))


def digests_of(bodies: dict[str, bytes]) -> Digests:
    """SHA-256 by path."""
    return {path: hashlib.sha256(body).hexdigest() for path, body in bodies.items()}


def scripts(server: Server) -> dict[str, str]:
    """What a server is asked for, by kind of request."""
    prefix = "" if server.name == "nginx" else CCACHE
    found = {ARTIFACT: filled_script(GET_FILE, prefix=prefix, name=NAME, count=FILES)}
    if server.name != "nginx":
        found[KEY_VALUE] = filled_script(GET_KEY_VALUE, query=QUERY, keys=KEY_VALUES)
    return found


ARTIFACT, KEY_VALUE = "artifact GET 16 KiB", "key value GET"


def measure(work: Form, folder: Path, connections: tuple[int, ...]) -> Rounds:
    """Every number of connections on every server, in turns."""
    rounds: Rounds = {ARTIFACT: {}, KEY_VALUE: {}}
    with contextlib.ExitStack() as stack:
        digests: dict[Server, Digests] = {}
        for count in work.workers:
            node = stack.enter_context(servers.node(folder / f"node-{count}", workers=count))
            digests[node] = fill_node(node)
        nginx = stack.enter_context(servers.nginx(folder / "nginx"))
        digests[nginx] = fill_nginx(nginx)
        for number in range(work.rounds):
            for server, sample in digests.items():
                wrk.check(server, sample)
            for width in connections:
                for server in digests:
                    for kind, script in scripts(server).items():
                        found = wrk.load(server, script, folder, connections=width, seconds=work.seconds)
                        rounds[kind].setdefault(server.name, {}).setdefault(width, []).append(found)
            print(f"connections: round {number + 1} of {work.rounds} done", flush=True)
        for server, sample in digests.items():
            wrk.check(server, sample)
    return rounds


def shown(kind: str, by_server: dict[str, dict[int, list[wrk.Figures]]]) -> dict[str, Any]:
    """The table of a kind of request."""
    widths = next(iter(by_server.values()))
    head = ["server, requests/s", *(str(width) for width in widths), f"p99 ms at {max(widths)}"]
    rows = [
        [
            server,
            *(with_spread([one["rate"] for one in many]) for many in found.values()),
            f"{statistics.median(one['p99_ms'] for one in found[max(widths)]):.1f}",
        ]
        for server, found in by_server.items()
    ]
    return report.table(f"{kind} by number of connections", head, rows)


def plotted(name: str, kind: str, by_server: dict[str, dict[int, list[wrk.Figures]]]) -> dict[str, Any]:
    """The plot of a kind of request."""
    lines = {
        server: (list(found), [statistics.median(one["rate"] for one in many) for many in found.values()])
        for server, found in by_server.items()
    }
    title = f"{kind}: requests per second against connections"
    return report.plot(f"connections-{name}", title, "connections", "requests per second", lines, x_log=True)


def main() -> None:
    """Reads the arguments, measures, writes."""
    given = form.arguments("connections").parse_args()
    work = form.form_of(given, rounds=2, seconds=1, quick_seconds=1)
    with workspace() as folder:
        rounds = measure(work, folder, CONNECTIONS[3:4] if work.quick else CONNECTIONS)
    tables = [shown(kind, by_server) for kind, by_server in rounds.items()]
    short = {ARTIFACT: "artifact", KEY_VALUE: "key-value"}
    report.write_result(
        "connections",
        quick=work.quick,
        parameters=work.parameters(),
        figures={},
        tables=tables,
        plots=[plotted(short[kind], kind, by_server) for kind, by_server in rounds.items()],
        rounds=rounds,
    )
    report.show(tables)


if __name__ == "__main__":
    main()
