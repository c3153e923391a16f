"""Gives orders to the load generator, and adds what the server spent meanwhile."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks import dialects
from benchmarks.processes import Usage
from benchmarks.servers import Server
from benchmarks.traffic import Mix, Place

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Figures = dict[str, Any]
"""What the generator prints, with `cpu_s` of the server."""


def place_of(url: str, dialect: str, headers: Mapping[str, str] | None = None) -> Place:
    """Where to send requests. Only loopback: a load generator is nobody's business but its own machine's."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK or parts.port is None:
        raise SystemExit(f"{url}: an address like http://127.0.0.1:9999/path is wanted, on this machine")
    if dialect not in (*dialects.FOREIGN, dialects.NODE):
        raise SystemExit(f"{dialect}: no dialect; there are {', '.join(dialects.FOREIGN)}")
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return Place(host, parts.port, parts.path.rstrip("/"), dialect, lines)


@dataclass(frozen=True)
class Target:
    """A server and how it is spoken to. `pid` is unknown of servers that somebody else has started."""

    name: str
    place: Place
    pid: int | None = None

    @classmethod
    def of(
        cls, server: Server, dialect: str, path: str = "", headers: Mapping[str, str] | None = None
    ) -> "Target":
        """A server that was started here."""
        return cls(server.name, place_of(server.url + path, dialect, headers), server.pid)


@dataclass(frozen=True)
class Order:
    """What to send. `what` is a case of `benchmarks.traffic.steps_of`."""

    what: str
    seed: str = ""
    connections: int = 64
    seconds: float = 1e9
    warmup: float = 0
    """Seconds of an open loop that are not counted."""
    rate: float = 0
    """Look-ups per second of an open loop."""
    most_bytes: float = 1e15
    """A closed loop ends after so many, too."""
    size: int = 0
    count: int = 0
    mix: Mix = field(default_factory=Mix)


def load(target: Target, order: Order) -> Figures:
    """Runs a generator to its end."""
    usage = None if target.pid is None else Usage.since_now(target.pid)
    text = json.dumps({**asdict(order), "place": asdict(target.place)})
    command = [sys.executable, "-m", "benchmarks.generator"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks: the load generator failed against {target.name}:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout)
    figures["cpu_s"] = None if usage is None else round(usage.seconds(), 3)
    return figures


def must_succeed(target: Target, order: Order) -> Figures:
    """The same for what must go well before anything is measured."""
    figures = load(target, order)
    if figures["errors"] or figures["all"]["count"] == 0:
        raise SystemExit(
            f"benchmarks: {target.name} answered {order.what} with {figures['errors'] or 'nothing'}"
        )
    return figures


def cpu_s_per_thousand(figures: Figures) -> float | None:
    """Processor seconds of the server for a thousand requests, failed ones among them."""
    count = figures["all"]["count"] + sum(figures["errors"].values())
    return None if figures["cpu_s"] is None or not count else 1e3 * float(figures["cpu_s"]) / count


def failed_share(figures: Figures) -> float:
    """Requests that got a wrong answer or none."""
    errors: int = sum(figures["errors"].values())
    return errors / max(1, errors + int(figures["all"]["count"]))
