"""`wrk`, for requests of one kind in a closed loop: in C, it takes little from the server it loads."""

import contextlib
import hashlib
import http.client
import re
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.dialects import STORED
from benchmarks.processes import Usage
from benchmarks.servers import HOST, Server

Figures = dict[str, float]
"""`rate`: answers per second; `cpu_us`: processor microseconds of the server for each; `p99_ms`."""

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def load(server: Server, script: str, folder: Path, *, connections: int, seconds: float) -> Figures:
    """Runs wrk to its end. A single failed request ends the benchmark: it would be a fast one."""
    path = folder / "request.lua"
    path.write_text(script)
    usages = [Usage.since_now(pid) for pid in server.pids]
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-s",
        str(path),
        server.url,
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = sum(usage.seconds() for usage in usages)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    count = re.search(r"(\d+) requests in", output)
    if not (rate and count) or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"benchmarks: wrk failed against {server.name}:\n{output}")
    found = {"rate": float(rate.group(1)), "cpu_us": used * 1e6 / int(count.group(1))}
    return {**found, "p99_ms": _p99_ms(output)}


def _p99_ms(output: str) -> float:
    found = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", output)
    return float(found.group(1)) * _UNITS_MS[found.group(2)] if found else 0.0


def check(server: Server, digests: Mapping[str, str]) -> None:
    """Compares the bodies at these paths with their SHA-256: a wrong answer is no fast answer."""
    for path, digest in digests.items():
        with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as answer:
            if hashlib.sha256(answer.read()).hexdigest() != digest:
                raise SystemExit(
                    f"benchmarks: {server.name} answers {path} with something else than was stored"
                )


def put_all(server: Server, bodies: Iterable[tuple[str, bytes]]) -> None:
    """Stores bodies by path before anything is measured."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=10)) as connection:
        for path, body in bodies:
            connection.request("PUT", path, body)
            with connection.getresponse() as answer:
                answer.read()
                if answer.status not in STORED:
                    raise SystemExit(f"benchmarks: {server.name} answered {answer.status} to PUT {path}")
