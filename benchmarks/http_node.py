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
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import uvloop

from benchmarks import report
from benchmarks.http_servers import HOST, NGINX_CONF, cpu_seconds, free_port, stop

QUERY = "account_handle=acme&project_handle=app"
KEYS = 10_000
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


def cases(seed: str) -> list[Case]:
    """All cases; a new seed for each run of wrk makes written keys unique."""
    put = _fill(PUT_KEY_VALUE, seed=seed, query=QUERY)
    get = _fill(GET_KEY_VALUE, query=QUERY, keys=KEYS)
    upload = _fill(PUT_FILE, seed=seed)
    found = [
        Case("key value PUT", "put_to_bare_handler", "bare", {"node": put, "buffered": put, "bare": put}),
        Case("key value GET", "get_to_bare_handler", "bare", {"node": get, "query": get, "bare": get}),
        Case("upload 10 KiB", "upload_10k_to_bare_handler", "bare", {"node": upload, "bare": upload}),
    ]
    for name, (_, count) in FILES.items():
        node = _fill(GET_FILE, prefix="/ccache/acme/app", name=name, count=count)
        nginx = _fill(GET_FILE, prefix="", name=name, count=count)
        figure = f"artifact_{name}_to_nginx"
        found.append(Case(f"artifact GET {name}", figure, "nginx", {"node": node, "nginx": nginx}))
    return found


def _fill(script: str, **values: object) -> str:
    for name, value in values.items():
        script = script.replace("{" + name + "}", str(value))
    return script


# --- the servers ----------------------------------------------------------------------------------


async def _bare(port: int, database: str | None) -> None:
    """Answers what the node answers without doing anything for it, but for a point query in `database`."""
    from undercroft.api.app import Application  # noqa: PLC0415
    from undercroft.api.tuist import _decoder  # noqa: PLC0415
    from undercroft.server import HttpServer, bind  # noqa: PLC0415

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


@dataclass(frozen=True)
class Running:
    """A started server; for the HTTP interface see `url`."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://{HOST}:{self.port}"


@contextlib.contextmanager
def started(name: str, folder: Path) -> Iterator[Running]:
    """Starts one server and ends it on leaving."""
    port = free_port()
    environment = {**os.environ, "UNDERCROFT_LOG__LEVEL": "error"}
    if name == "nginx":
        files = folder / "files"
        conf = folder / "nginx.conf"
        conf.write_text(NGINX_CONF.format(folder=files, host=HOST, port=port))
        command = ["nginx", "-p", str(folder), "-c", str(conf)]
    elif name in ("bare", "query"):
        command = [sys.executable, "-m", "benchmarks.http_node", "--bare", str(port)]
        if name == "query":
            command += ["--database", str(folder / "node" / "key_values.sqlite")]
    else:
        data = str(folder / name)
        command = [sys.executable, "-m", "undercroft", "serve", "--data-dir", data, "--port", str(port)]
        environment["UNDERCROFT_ACK"] = "buffered" if name == "buffered" else "committed"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        _wait_until_open(port, process)
        yield Running(name, process, port)
    finally:
        stop(process)


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.05)
    raise SystemExit("http_node: a server did not start")


def fill(node: Running, folder: Path) -> None:
    """Key values and files, the same files for nginx."""
    for number in range(1, KEYS + 1):
        value = hashlib.sha1(str(number).encode()).hexdigest()[:37]
        body = f'{{"cas_id":"bench{number}","entries":[{{"value":"{value}"}},{{"value":"{value}"}}]}}'
        _put(f"{node.url}/api/cache/keyvalue?{QUERY}", body.encode())
    for name, (size, count) in FILES.items():
        for number in range(1, count + 1):
            data = os.urandom(size)
            (folder / f"{name}{number:06d}").write_bytes(data)
            _put(f"{node.url}/ccache/acme/app/{name}{number:06d}", data)


def _put(url: str, body: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=10):
        pass


# --- measuring ------------------------------------------------------------------------------------


def load(server: Running, script: str, folder: Path, *, connections: int, seconds: float) -> dict[str, float]:
    """Requests per second and processor microseconds of the server a request. A failed one ends the run."""
    path = folder / "request.lua"
    path.write_text(script)
    before = cpu_seconds(server.process.pid)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(path), server.url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = cpu_seconds(server.process.pid) - before
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    count = re.search(r"(\d+) requests in", output)
    if not (rate and count) or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"http_node: wrk failed:\n{output}")
    return {"rate": float(rate.group(1)), "cpu_us": used * 1e6 / int(count.group(1))}


Figures = dict[str, dict[str, list[dict[str, float]]]]
"""Every round's figures by case and server."""


def measure(rounds: int, seconds: float, connections: int) -> Figures:
    """Every case on its servers in turn, so that a slow moment of the machine hits all of them."""
    names = ("node", "buffered", "bare", "query", "nginx")
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        files = folder / "files"
        files.mkdir()
        for path in (folder, files):
            path.chmod(0o755)  # nginx reads as another user
        running = {name: stack.enter_context(started(name, folder)) for name in names}
        fill(running["node"], files)
        for number in range(rounds + 1):  # round 0 warms up
            length = seconds if number else 1
            for case in cases(f"{number:08x}"):
                for name, script in case.scripts.items():
                    figure = load(running[name], script, folder, connections=connections, seconds=length)
                    if number:
                        figures.setdefault(case.name, {}).setdefault(name, []).append(figure)
            print(f"http_node: round {number} of {rounds} done", flush=True)
    return figures


def save(figures: Figures, parameters: dict[str, Any]) -> None:
    """Writes the result file and prints the table."""
    rows, ratios = [], {}
    for case in cases(""):
        medians = {name: _medians(runs) for name, runs in figures[case.name].items()}
        reference = medians[case.reference]
        ratios[case.figure] = round(medians["node"]["rate"] / reference["rate"], 3)
        for name, one in medians.items():
            shares = [f"{one[field] / reference[field]:.2f}" for field in ("rate", "cpu_us")]
            rows.append(
                [f"{case.name}, {name}", f"{one['rate']:,.0f}", shares[0], f"{one['cpu_us']:.0f}", shares[1]]
            )
    head = ["case, server", "requests/s", "ratio", "CPU us a request", "ratio"]
    shown = report.table("Requests and processor time, ratios to the reference of the case", head, rows, NOTE)
    report.write_result("http_node", parameters=parameters, figures=ratios, tables=[shown], rounds=figures)
    print(report.markdown([shown["head"], *shown["rows"]]))


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {field: statistics.median(one[field] for one in runs) for field in ("rate", "cpu_us")}


NOTE = (
    "`bare` is a handler on the same HTTP server that only parses the body, or answers a constant; `query` "
    "makes one point query in SQLite for its answer and nothing else. `node` acknowledges after the commit, "
    "`buffered` at once. Keys of PUTs are unique; GETs go to random ones of "
    f"{KEYS:,} key values, 200 files of 16 KiB and 20 of 1 MiB. The load generator shares the processors. "
    "The node's threads change places every millisecond, those of the handlers every five."
)


def main() -> None:
    """Reads the arguments, measures, writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_node")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)  # the port of the bare handler
    parser.add_argument("--database", help=argparse.SUPPRESS)  # what the bare handler queries
    args = parser.parse_args()
    if args.bare is not None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_bare(args.bare, args.database))
        return
    figures = measure(args.rounds, args.seconds, args.connections)
    save(figures, {"rounds": args.rounds, "seconds": args.seconds, "connections": args.connections})


if __name__ == "__main__":
    main()
