"""Compare the HTTP servers the node could be built on, its own among them.

Run with ``python -m benchmarks.http_servers``.  Every server runs the same raw
ASGI application in a process of its own on a free loopback port; ``wrk`` loads
them one after the other, several rounds, and the median of each case counts.  The
processor time a server spends per request is recorded too: it says more than the
rate when other work shares the processors.  nginx serving the same two files is
the upper limit; it is skipped when missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import servers
from benchmarks.report import write_result
from benchmarks.servers import HOST, Server

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Table = dict[str, dict[str, float]]

CHUNK = 256 * 1024
FILES = {"16k": 16 * 1024, "1m": 1024 * 1024}
JSON_PUT = {
    "key": "5f" * 32,
    "size": 1234,
    "digest": "a7" * 32,
    "tags": {"os": "linux", "arch": "x86_64"},
}


@dataclass(frozen=True)
class Case:
    """One kind of request; a body makes it a PUT, anything else is a GET."""

    name: str
    path: str
    body: bytes | None = None
    nginx: bool = False


CASES = (
    Case("json_put", "/json", json.dumps(JSON_PUT).encode()),
    Case("json_put_counted", "/json?counted", json.dumps(JSON_PUT).encode()),
    Case("json_get", "/json"),
    Case("upload_10k", "/upload", b"u" * 10240),
    Case("upload_10k_counted", "/upload?counted", b"u" * 10240),
    Case("file_16k_body", "/16k", nginx=True),
    Case("file_1m_body", "/1m", nginx=True),
    Case("file_1m_chunks", "/1m/chunks"),
    Case("file_1m_pathsend", "/1m/pathsend"),
)
OWN = "undercroft"
SERVERS = (OWN, "uvicorn", "granian", "granian-rust-task", "granian-own-process", "nginx")
DEFAULT = (OWN, "uvicorn", "granian", "granian-own-process", "nginx")
REFERENCE = "uvicorn"


class Entry(msgspec.Struct):
    """What a build tool sends about one artifact."""

    key: str
    size: int
    digest: str
    tags: dict[str, str]


# --- the application ---------------------------------------------------------


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _read_body(receive: Receive, length: int) -> bytes:
    """Read a body to its end, or with a *length* only until all bytes are there.

    Granian tells the end of a body with a message of its own, one more turn
    through its thread; whoever counts the bytes can do without it.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the client went away")
        parts.append(message["body"])
        length -= len(message["body"])
        if not message["more_body"] or length == 0:
            return b"".join(parts)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return -1


async def _send_chunks(send: Send, path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        left = os.fstat(fd).st_size
        headers = [(b"content-length", str(left).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while left:
            data = os.read(fd, CHUNK)
            left -= len(data)
            await send({"type": "http.response.body", "body": data, "more_body": left > 0})
    finally:
        os.close(fd)


def _size_header(path: str) -> tuple[bytes, bytes]:
    return b"content-length", str(Path(path).stat().st_size).encode()


async def _send_path(send: Send, path: str) -> None:
    headers = [_size_header(path)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.pathsend", "path": path})


def make_app(folder: str) -> App:
    """The application every server runs; *folder* holds the files to serve."""
    decoder = msgspec.json.Decoder(Entry)
    constant = json.dumps({"status": "ok", "entries": 12345, "bytes": 987654321}).encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")
        path = scope["path"]
        if scope["method"] == "PUT":
            counted = scope["query_string"] == b"counted"
            body = await _read_body(receive, _content_length(scope) if counted else -1)
            if path == "/json":
                decoder.decode(body)
            await _respond(send, 204, b"")
        elif path == "/json":
            await _respond(send, 200, constant)
        else:
            _, name, *how = path.split("/")
            file = f"{folder}/{name}"
            if not how:
                fd = os.open(file, os.O_RDONLY)
                try:
                    data = os.read(fd, FILES[name])
                finally:
                    os.close(fd)
                await _respond(send, 200, data)
            elif how == ["chunks"]:
                await _send_chunks(send, file)
            elif "http.response.pathsend" in scope.get("extensions", {}):
                await _send_path(send, file)
            else:
                await _respond(send, 404, b"")

    return app


# --- the servers, each in a process of its own -------------------------------


async def _until_signal() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def _serve_own(app: App, port: int) -> None:
    from undercroft.http.server import HttpServer, bind  # noqa: PLC0415

    server = HttpServer(app, bind(HOST, port))  # type: ignore[arg-type]  # a scope is any mapping there
    serving = asyncio.create_task(server.run())
    await _until_signal()
    await server.stop(1_000)
    await serving


async def _serve_uvicorn(app: App, port: int) -> None:
    import uvicorn  # noqa: PLC0415

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # the node handles the signals itself

    config = uvicorn.Config(
        app,
        host=HOST,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve())
    await _until_signal()
    server.should_exit = True
    await serving


async def _serve_granian(app: App, port: int, rust_task: bool) -> None:
    from granian.constants import HTTPModes, Interfaces, TaskImpl  # noqa: PLC0415
    from granian.server.embed import Server  # noqa: PLC0415

    server = Server(
        app,
        HOST,
        port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        backlog=1024,
        log_enabled=False,
        task_impl=TaskImpl.rust if rust_task else TaskImpl.asyncio,
    )
    serving = asyncio.create_task(server.serve())
    await _until_signal()
    server.stop()  # type: ignore[no-untyped-call]
    await serving


def _serve_granian_process(folder: str, port: int) -> None:
    from granian.constants import HTTPModes, Interfaces, Loops  # noqa: PLC0415
    from granian.server.mp import MPServer  # noqa: PLC0415

    server = MPServer(
        "benchmarks.http_servers:make_app",
        HOST,
        port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        log_enabled=False,
    )
    server.serve(target_loader=lambda *_args, **_kwargs: make_app(folder))


def serve(kind: str, port: int, folder: str) -> None:
    """Run one Python server until SIGTERM."""
    if kind == "granian-own-process":
        _serve_granian_process(folder, port)
        return
    app = make_app(folder)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if kind == OWN:
            runner.run(_serve_own(app, port))
        elif kind == "uvicorn":
            runner.run(_serve_uvicorn(app, port))
        else:
            runner.run(_serve_granian(app, port, kind == "granian-rust-task"))


# --- measuring ---------------------------------------------------------------


@contextlib.contextmanager
def started(kind: str, folder: Path) -> Iterator[Server]:
    """One server, once it accepts connections."""
    port = servers.free_port()
    if kind == "nginx":
        site = servers.FILES.format(host=HOST, port=port, files=folder)
        command = servers.nginx_command(folder / "nginx", site)
    else:
        serve_args = ["--serve", kind, str(port), str(folder)]
        command = [sys.executable, "-m", "benchmarks.http_servers", *serve_args]
    with servers.launched(kind, command, port) as server:
        yield server


def cpu_seconds(pid: int) -> float:
    """Processor time a process and its children have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = (task / "children").read_text().split()
        used += sum(cpu_seconds(int(child)) for child in children)
    return used


@dataclass(frozen=True)
class Load:
    """One run of wrk: requests per second, and server microseconds per request."""

    rate: float
    cpu_us: float


def wrk(server: Server, case: Case, folder: Path, connections: int, seconds: float) -> Load:
    """Load one case; any failed request ends the run."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    if case.body is not None:
        script = folder / f"{case.name}.lua"
        script.write_bytes(b'wrk.method = "PUT"\nwrk.body = [[' + case.body + b"]]\n")
        command += ["-s", str(script)]
    command.append(f"http://{HOST}:{server.port}{case.path}")
    before = cpu_seconds(server.process.pid)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = cpu_seconds(server.process.pid) - before
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    count = re.search(r"(\d+) requests in", output)
    if not (rate and count) or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"http_servers: wrk failed on {case.name}:\n{output}")
    return Load(float(rate.group(1)), used * 1e6 / int(count.group(1)))


def applies(server: str, case: Case) -> bool:
    """Whether a server can answer a case at all."""
    if server == "nginx":
        return case.nginx
    return server not in (OWN, "uvicorn") or case.name != "file_1m_pathsend"


def measure(
    kinds: list[str], cases: Sequence[Case], rounds: int, connections: int, seconds: float
) -> dict[str, dict[str, list[Load]]]:
    """Every case on every server, servers interleaved within each round."""
    figures: dict[str, dict[str, list[Load]]] = {c.name: {} for c in cases}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for file, size in FILES.items():
            (folder / file).write_bytes(os.urandom(size))
        running = {kind: stack.enter_context(started(kind, folder)) for kind in kinds}
        for number in range(rounds + 1):  # round 0 warms up
            for case in cases:
                for server in kinds:
                    if not applies(server, case):
                        continue
                    length = seconds if number else 1
                    load = wrk(running[server], case, folder, connections, length)
                    if number:
                        figures[case.name].setdefault(server, []).append(load)
            print(f"round {number} of {rounds} done", file=sys.stderr)
    return figures


def _table(title: str, medians: Table, kinds: list[str]) -> Table:
    """Print medians and return their ratios to the reference."""
    ratios: Table = {}
    print(f"{title:<20}" + "".join(f"{s:>22}" for s in kinds))
    for case, row in medians.items():
        # the reference knows no pathsend: there its single body stands for it
        base = row.get(REFERENCE) or medians.get("file_1m_body", {}).get(REFERENCE)
        ratios[case] = {s: round(v / base, 2) for s, v in row.items()} if base else {}
        cells = []
        for server in kinds:
            ratio = ratios[case].get(server)
            times = "" if ratio is None else f" ({ratio:.2f}x)"
            cells.append(f"{row[server]:,.0f}{times}" if server in row else "-")
        print(f"{case:<20}" + "".join(f"{c:>22}" for c in cells))
    return ratios


def report(figures: dict[str, dict[str, list[Load]]], kinds: list[str]) -> dict[str, Any]:
    """Print the tables and return medians, ratios and the single rounds."""
    result: dict[str, Any] = {}
    for field, title in (("rate", "requests/s"), ("cpu_us", "CPU us/request")):
        rounds = {
            case: {server: [round(getattr(x, field), 1) for x in runs] for server, runs in row.items()}
            for case, row in figures.items()
        }
        medians = {
            case: {server: statistics.median(runs) for server, runs in row.items()}
            for case, row in rounds.items()
        }
        ratios = _table(title, medians, kinds)
        result[field] = {"medians": medians, "ratios_to_uvicorn": ratios, "rounds": rounds}
    return result


def main() -> None:
    """Read the arguments, measure, print and write the result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_servers")
    parser.add_argument("--quick", action="store_true", help="two servers, few cases, one round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(DEFAULT))
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # KIND PORT FOLDER
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], int(args.serve[1]), args.serve[2])
        return
    if shutil.which("wrk") is None:
        raise SystemExit("http_servers: wrk is missing; install the Debian package wrk")
    kinds: list[str] = args.servers
    if "nginx" in kinds and shutil.which("nginx") is None:
        print("http_servers: nginx is missing and is skipped", file=sys.stderr)
        kinds = [kind for kind in kinds if kind != "nginx"]
    cases: Sequence[Case] = CASES
    if args.quick:
        kinds, cases, args.rounds = kinds[:2], CASES[::4], 1
    figures = measure(kinds, cases, args.rounds, args.connections, args.seconds)
    setup = {
        "connections": args.connections,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "wrk_threads": 1,
    }
    write_result("http_servers", quick=args.quick, setup=setup, **report(figures, kinds))


if __name__ == "__main__":
    main()
