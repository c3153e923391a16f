"""The servers that benchmarks load: the node, its peers, and what shows the limit."""

import contextlib
import grp
import inspect
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.processes import tree
from undercroft.cli import serve

HOST = "127.0.0.1"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
POLL_S = 0.002

ROOT = Path(__file__).parents[1]
TURBOREPO_PEER = ROOT / ".venv/npm-peers/node_modules/turborepo-remote-cache/dist/cli.js"
TURBOREPO_TOKEN = "benchmark"

NGINX_CONF = """\
user {user} {group};
worker_processes {workers};
daemon off;
pid {state}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000000;
  client_max_body_size 0;
  client_body_temp_path {state}/body;
  proxy_temp_path {state}/proxy;
  fastcgi_temp_path {state}/fastcgi;
  uwsgi_temp_path {state}/uwsgi;
  scgi_temp_path {state}/scgi;
  {site}
}}
"""

# PUT as well as GET: the same requests as the node gets, from a server in C that promises less.
FILES = """
  server {{
    listen {host}:{port};
    root {files};
    dav_methods PUT;
    create_full_put_path on;
  }}
"""

ACCEL_REDIRECT = "/artifacts-of-undercroft/"

# What deploy/nginx/undercroft.conf says, but for TLS.
FRONT = """
  upstream undercroft {{ server {host}:{behind}; keepalive 64; }}
  server {{
    listen {host}:{port};
    location / {{
      proxy_pass http://undercroft;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_request_buffering off;
      proxy_buffering off;
    }}
    location {redirect} {{
      internal;
      alias {artifacts}/;
      etag off;
      add_header ETag $upstream_http_etag always;
    }}
  }}
"""


@dataclass(frozen=True)
class Server:
    """A started server. Its children belong to it."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    ready_s: float
    """Seconds from the start of the process until it answered."""
    behind: int | None = None
    """First process of the server that it passes requests on to."""

    @property
    def pids(self) -> list[int]:
        """First processes of all that work for an answer."""
        return [self.pid] if self.behind is None else [self.pid, self.behind]

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://{HOST}:{self.port}"


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def knows_workers() -> bool:
    """Whether this node can run as several processes."""
    return "workers" in inspect.signature(serve.serve).parameters


def workers_wanted(given: str) -> tuple[int, ...]:
    """`1,2,4` as numbers; only 1 where the node cannot do more."""
    numbers = tuple(int(number) for number in given.split(","))
    return numbers if knows_workers() else (1,)


@contextlib.contextmanager
def node(
    folder: Path, *, workers: int = 1, settings: Mapping[str, str] | None = None, name: str | None = None
) -> Iterator[Server]:
    """The node on a data directory. `settings` by their name in the environment."""
    port = free_port()
    command = [sys.executable, "-m", "undercroft", "serve", "--data-dir", str(folder), "--port", str(port)]
    if knows_workers():
        command += ["--workers", str(workers)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UNDERCROFT_")}
    environment |= {f"UNDERCROFT_{key}": value for key, value in (settings or {}).items()}
    environment["UNDERCROFT_LOG__LEVEL"] = "error"
    shown = name or (f"node, {workers} workers" if workers > 1 else "node")
    with launched(shown, command, port, environment=environment, ready="/up") as server:
        yield server


@contextlib.contextmanager
def nginx(folder: Path, *, workers: int = 1) -> Iterator[Server]:
    """nginx, serving and storing below `folder / "files"`."""
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    port = free_port()
    site = FILES.format(host=HOST, port=port, files=files)
    with launched("nginx", nginx_command(folder / "nginx", site, workers), port) as server:
        yield server


@contextlib.contextmanager
def front(state: Path, behind: Server, data_dir: Path, name: str) -> Iterator[Server]:
    """nginx in front of a node, which lets it send what it found where ACCEL_REDIRECT is its setting."""
    port = free_port()
    artifacts = data_dir / "artifacts"
    site = FRONT.format(
        host=HOST, port=port, behind=behind.port, redirect=ACCEL_REDIRECT, artifacts=artifacts
    )
    with launched(name, nginx_command(state, site), port) as server:
        yield replace(server, behind=behind.pid)


def nginx_command(state: Path, site: str, workers: int = 1) -> list[str]:
    """Writes a configuration with the site, and answers what starts nginx with it. `state` is its own."""
    state.mkdir(parents=True, exist_ok=True)
    conf = state / "nginx.conf"
    # Its workers would be another user, who may not enter our directories.
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    conf.write_text(NGINX_CONF.format(user=user, group=group, state=state, site=site, workers=workers))
    return ["nginx", "-p", str(state), "-c", str(conf)]


@contextlib.contextmanager
def turborepo_peer(folder: Path) -> Iterator[Server]:
    """`turborepo-remote-cache` with its storage on the local disk."""
    port = free_port()
    environment = os.environ | {
        "NODE_ENV": "production",
        "HOST": HOST,
        "PORT": str(port),
        "TURBO_TOKEN": TURBOREPO_TOKEN,
        "STORAGE_PROVIDER": "local",
        "STORAGE_PATH": str(folder),
        "STORAGE_PATH_USE_TMP_FOLDER": "false",
        "LOG_LEVEL": "error",
    }
    node_js = shutil.which("node") or "node"
    with launched(
        "turborepo-remote-cache", [node_js, str(TURBOREPO_PEER)], port, environment=environment
    ) as server:
        yield server


@contextlib.contextmanager
def launched(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    ready: str | None = None,
) -> Iterator[Server]:
    """Starts a server, and ends it on leaving. It is ready when it answers `ready`, or accepts."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        try:
            if not _becomes_ready(port, process, ready):
                said.seek(0)
                raise SystemExit(f"benchmarks: {name} did not start: {said.read()[-2_000:].decode()}")
            yield Server(name, process, port, time.perf_counter() - started)
        finally:
            end(process)


def _becomes_ready(port: int, process: subprocess.Popen[bytes], path: str | None) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 5):
            if path is None or _answers(port, path):
                return True
        time.sleep(POLL_S)
    return False


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server; by force, with all it has started, if it takes long."""
    processes = tree(process.pid) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
