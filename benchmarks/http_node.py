"""The node over HTTP, against a handler that does as little as possible, and against nginx.

Run with ``python -m benchmarks.http_node``.  The bare handler runs on the same HTTP server, with the
same options, and only parses the body or answers a constant; nginx serves the same files.  ``wrk``
loads them in turn, several rounds; ratios are of medians.  The load generator shares the processors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import uvloop

from benchmarks import form, report, servers, wrk
from benchmarks.dialects import QUERY
from benchmarks.form import Form
from benchmarks.latencies import with_spread
from benchmarks.servers import HOST, Server
from benchmarks.workspaces import workspace

KEYS = 10_000
CCACHE = "/ccache/acme/app"
WARM_UP_S = 6
"""Long enough that nearly every key is asked for twice."""
SAMPLE = 5
"""Answers of each kind that are compared with what was stored."""
NEW_WORDS = "node, new words"
FRONT = "nginx in front"
BEHIND = "node behind nginx"
ACCEL = "nginx in front, accel"
FILES = {"16k": (16 << 10, 200), "1m": (1 << 20, 20)}

# Request scripts of wrk; {seed} makes the keys of a run its own.
PUT_KEY_VALUE = """
local n = 0
wrk.method = "PUT"
request = function()
  n = n + 1
  local id = string.format("%s%032x", "{seed}", n)
  local body = '{"cas_id":"' .. id .. '","entries":[{"value":"' .. id .. '"},{"value":"' .. id .. '"}]}'
  return wrk.format(nil, "/api/cache/keyvalue?{query}", nil, body)
end
"""
GET_KEY_VALUE = """
request = function()
  return wrk.format(nil, string.format("/api/cache/keyvalue/bench%d?{query}", math.random({keys})))
end
"""
GET_FILE = """
request = function()
  return wrk.format(nil, string.format("{prefix}/%s%06d", "{name}", math.random({count})))
end
"""
# Behind another: no head is like another.
EACH_IN_NEW_WORDS = """
local said = request
local n = 0
request = function()
  n = n + 1
  return (said():gsub("\\r\\n\\r\\n", "\\r\\nX-Unlike: " .. n .. "{seed}\\r\\n\\r\\n", 1))
end
"""
PUT_FILE = """
local n = 0
wrk.method = "PUT"
local body = string.rep("u", 10240)
request = function()
  n = n + 1
  return wrk.format(nil, string.format("/ccache/acme/app/%s%032x", "{seed}", n), nil, body)
end
"""


@dataclass(frozen=True)
class Case:
    """One kind of request: its script by server, and which server is the reference of the figure."""

    name: str
    figure: str
    reference: str
    scripts: dict[str, str]


def cases(seed: str, workers: Sequence[int]) -> list[Case]:
    """All cases; a new seed for each run of wrk makes written keys unique."""
    more = [f"node, {count} workers" for count in workers if count > 1]
    put = filled_script(PUT_KEY_VALUE, seed=seed, query=QUERY)
    get = filled_script(GET_KEY_VALUE, query=QUERY, keys=KEYS)
    upload = filled_script(PUT_FILE, seed=seed)
    anew = filled_script(EACH_IN_NEW_WORDS, seed=seed)
    found = [
        Case(
            "key value PUT",
            "put_to_bare_handler",
            "bare",
            dict.fromkeys(["node", *more, "buffered", "bare"], put) | {NEW_WORDS: put + anew},
        ),
        Case(
            "key value GET",
            "get_to_bare_handler",
            "bare",
            {"node": get, NEW_WORDS: get + anew, "query": get, "bare": get},
        ),
        Case(
            "upload 10 KiB",
            "upload_10k_to_bare_handler",
            "bare",
            dict.fromkeys(["node", *more, "bare"], upload),
        ),
    ]
    for name, (_, count) in FILES.items():
        node = filled_script(GET_FILE, prefix=CCACHE, name=name, count=count)
        nginx = filled_script(GET_FILE, prefix="", name=name, count=count)
        scripts = {"node": node, NEW_WORDS: node + anew, FRONT: node, ACCEL: node, "nginx": nginx}
        found.append(Case(f"artifact GET {name}", f"artifact_{name}_to_nginx", "nginx", scripts))
    return found


def filled_script(script: str, **values: object) -> str:
    """The script with its values in place."""
    for name, value in values.items():
        script = script.replace("{" + name + "}", str(value))
    return script


# --- the servers ----------------------------------------------------------------------------------


async def _bare(port: int, database: str | None) -> None:
    """Answers what the node answers without doing anything for it, but for a point query in `database`."""
    from undercroft.api.app import Application  # noqa: PLC0415
    from undercroft.api.tuist import _decoder  # noqa: PLC0415
    from undercroft.http.server import HttpServer, bind  # noqa: PLC0415

    connection = None if database is None else apsw.Connection(database)
    constant = b'{"entries":[{"value":"%s"},{"value":"%s"}]}' % (b"a" * 37, b"b" * 37)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "PUT":
            length = int(dict(scope["headers"])[b"content-length"])
            body = b""
            while len(body) < length:
                body += (await receive())["body"]
            if scope["path"].startswith("/api"):
                _decoder.decode(body)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            body = constant if connection is None else _queried(connection, scope["path"])
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    handler: Application = application  # type: ignore[assignment]  # the server only calls it
    server = HttpServer(handler, bind(HOST, port))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    serving = asyncio.create_task(server.run())
    await stopping.wait()
    await server.stop(1_000)
    await serving


def _queried(connection: apsw.Connection, path: str) -> bytes:
    sql = "SELECT json_payload FROM key_value_entries WHERE key = ?"
    row = connection.execute(sql, (f"keyvalue:acme:app:{path.rpartition('/')[2]}",)).fetchone()
    return b"" if row is None else str(row[0]).encode()


@contextlib.contextmanager
def bare(name: str = "bare", database: Path | None = None) -> Iterator[Server]:
    """The handler that does nothing, or one query in the database."""
    port = servers.free_port()
    command = [sys.executable, "-m", "benchmarks.http_node", "--bare", str(port)]
    if database is not None:
        command += ["--database", str(database)]
    with servers.launched(name, command, port) as server:
        yield server


@contextlib.contextmanager
def started(work: Form, folder: Path) -> Iterator[dict[str, Server]]:
    """All servers by name."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(servers.node(folder / f"node-{count}", workers=count))
            for count in work.workers
        ]
        # One of its own: what it remembers in vain would push out what `node` remembers.
        found.append(stack.enter_context(servers.node(folder / "anew", name=NEW_WORDS)))
        buffered = servers.node(folder / "buffered", settings={"ACK": "buffered"}, name="buffered")
        found.append(stack.enter_context(buffered))
        found.append(stack.enter_context(bare()))
        found.append(stack.enter_context(bare("query", folder / "node-1" / "key_values.sqlite")))
        found.append(stack.enter_context(servers.nginx(folder)))
        redirects = {"HTTP__ACCEL_REDIRECT": servers.ACCEL_REDIRECT}
        behind = stack.enter_context(servers.node(folder / "behind", settings=redirects, name=BEHIND))
        found.append(behind)
        for name, server, data_dir in ((FRONT, found[0], "node-1"), (ACCEL, behind, "behind")):
            front = servers.front(folder / name.replace(" ", "-"), server, folder / data_dir, name)
            found.append(stack.enter_context(front))
        yield {server.name: server for server in found}


def fill(nodes: Sequence[Server], files: Path) -> dict[str, str]:
    """Key values and files, the same for every node, the files for nginx too.

    Answers digests of a few by path, for `wrk.check`.
    """
    answers = dict(map(key_value, range(1, KEYS + 1)))
    fetched = f"/api/cache/keyvalue/%s?{QUERY}"
    stored = f"/api/cache/keyvalue?{QUERY}"
    bodies = [(stored, f'{{"cas_id":"{name}",{answer[1:]}'.encode()) for name, answer in answers.items()]
    found = {fetched % name: answers[name].encode() for name in list(answers)[:SAMPLE]}
    for name, (size, count) in FILES.items():
        written = {f"{name}{number:06d}": os.urandom(size) for number in range(1, count + 1)}
        for file, data in written.items():
            (files / file).write_bytes(data)
        bodies += [(f"{CCACHE}/{file}", data) for file, data in written.items()]
        found |= {f"{CCACHE}/{file}": data for file, data in list(written.items())[:SAMPLE]}
    for node in nodes:
        wrk.put_all(node, bodies)
    return {path: hashlib.sha256(body).hexdigest() for path, body in found.items()}


def key_value(number: int) -> tuple[str, str]:
    """Name of a key value, and what a GET of it must answer."""
    value = hashlib.sha1(str(number).encode()).hexdigest()[:37]
    return f"bench{number}", f'{{"entries":[{{"value":"{value}"}},{{"value":"{value}"}}]}}'


# --- measuring ------------------------------------------------------------------------------------

Figures = dict[str, dict[str, list[wrk.Figures]]]
"""Every round's figures by case and server."""


def measure(work: Form, connections: int) -> Figures:
    """Every case on its servers in turn, so that a slow moment of the machine hits all of them."""
    figures: Figures = {}
    with workspace() as folder, started(work, folder) as running:
        digests = fill([running[name] for name in ("node", NEW_WORDS, BEHIND)], folder / "files")
        check(running, digests)
        for number in range(int(work.quick), work.rounds + 1):  # round 0 warms up
            for case in cases(f"{number:08x}", work.workers):
                for name, script in case.scripts.items():
                    length = work.seconds if number else WARM_UP_S
                    figure = wrk.load(running[name], script, folder, connections=connections, seconds=length)
                    if number:
                        figures.setdefault(case.name, {}).setdefault(name, []).append(figure)
            print(f"http_node: round {number} of {work.rounds} done", flush=True)
        check(running, digests)
    return figures


def check(running: Mapping[str, Server], digests: Mapping[str, str]) -> None:
    """Looks at answers of the node, and at those that go past nginx."""
    for name in ("node", FRONT, ACCEL):
        wrk.check(running[name], digests)


def save(figures: Figures, work: Form, connections: int) -> None:
    """Writes the result file and prints the table."""
    rows, ratios = [], {}
    for case in cases("", work.workers):
        medians = {name: _medians(runs) for name, runs in figures[case.name].items()}
        reference = medians[case.reference]
        ratios[case.figure] = round(medians["node"]["rate"] / reference["rate"], 3)
        for name, one in medians.items():
            shares = [f"{one[field] / reference[field]:.2f}" for field in ("rate", "cpu_us")]
            runs = figures[case.name][name]
            rates = with_spread([each["rate"] for each in runs])
            spent = with_spread([each["cpu_us"] / 1e3 for each in runs], 3)
            rows.append([f"{case.name}, {name}", rates, shares[0], f"{one['p99_ms']:.2f}", spent, shares[1]])
    head = ["case, server", "requests/s", "ratio", "p99 ms", "CPU s per 1,000", "ratio"]
    shown = report.table("Requests and processor time, ratios to the reference of the case", head, rows, NOTE)
    report.write_result(
        "http_node",
        quick=work.quick,
        parameters=work.parameters(connections=connections),
        figures=ratios,
        tables=[shown],
        rounds=figures,
    )
    report.show([shown])


def _medians(runs: list[wrk.Figures]) -> wrk.Figures:
    return {field: statistics.median(one[field] for one in runs) for field in ("rate", "cpu_us", "p99_ms")}


NOTE = (
    "`bare` is a handler on the same HTTP server that only parses the body, or answers a constant; `query` "
    "makes one point query in SQLite for its answer and nothing else; both parse every request. What was "
    "asked before in the same words, or under the same head, the node does not parse; with `new words` "
    "nothing was (their p99 is also that of `wrk`, which makes each anew). "
    "`node` acknowledges after the commit, "
    "`buffered` at once. Keys of PUTs are unique; GETs go to random ones of "
    f"{KEYS:,} key values, 200 files of 16 KiB and 20 of 1 MiB. `nginx in front` passes on to a node what "
    "it is asked, and with `accel` (`http.accel_redirect`) sends the file that the node names; their "
    "processor time is that of both. The load generator shares the processors. "
    "The node's threads change places every millisecond, those of the handlers every five."
)


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = form.arguments("http_node")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)  # the port of the bare handler
    parser.add_argument("--database", help=argparse.SUPPRESS)  # what the bare handler queries
    given = parser.parse_args()
    if given.bare is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_bare(given.bare, given.database))
        return
    work = form.form_of(given, rounds=3, seconds=1, quick_seconds=1)
    save(measure(work, given.connections), work, given.connections)


if __name__ == "__main__":
    main()
