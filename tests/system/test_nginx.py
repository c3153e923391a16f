"""Debian's nginx in front as deploy/nginx/undercroft.conf has it: TLS, HTTP/2, hits from the disk."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.api.dialects import DIALECTS, DialectCase
from tests.clients.installed import require
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually

CONF = Path(__file__).parents[2] / "deploy/nginx/undercroft.conf"
PREFIX = "/artifacts-of-undercroft/"
SETTINGS = {"HTTP__ACCEL_REDIRECT": PREFIX}
BODY = bytes(range(256)) * 40

MAIN = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    {site}
}}
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


def site(node: NodeProcess, port: int, folder: Path) -> str:
    """The file as it is shipped, for this machine."""
    return (
        CONF.read_text()
        .replace("127.0.0.1:4000", node.url.removeprefix("http://"))
        .replace("listen 443", f"listen 127.0.0.1:{port}")
        .replace("/etc/ssl/undercroft.pem", str(folder / "cert.pem"))
        .replace("/etc/ssl/undercroft.key", str(folder / "key.pem"))
        .replace("/var/lib/undercroft/artifacts/", f"{node.data_dir}/artifacts/")
    )


class Front:
    """nginx, and who comes past it."""

    def __init__(self, node: NodeProcess, url: str, certificate: Path) -> None:
        self.node = node
        self.url = url
        self.certificate = certificate
        self.client = httpx.Client(base_url=url, verify=False, timeout=30)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    require("openssl", "openssl")
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or require("nginx", "nginx-light")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    key, certificate = folder / "key.pem", folder / "cert.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    made = ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", *kind, *made], check=True, capture_output=True)
    with node_process(folder / "node", SETTINGS) as node:
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, site=site(node, port, folder)))
        command = [
            program,
            "-p",
            str(folder),
            "-e",
            str(folder / "error.log"),
            "-c",
            str(folder / "nginx.conf"),
        ]
        subprocess.run([*command, "-t"], check=True, capture_output=True)
        nginx = subprocess.Popen(command)
        found = Front(node, f"https://127.0.0.1:{port}", certificate)
        try:
            eventually(lambda: is_up(found), "nginx answers")
            yield found
        finally:
            found.client.close()
            nginx.terminate()
            nginx.wait()
        assert node.stop() == 0
        assert node.logged("request_failed") == []


def is_up(front: Front) -> bool:
    try:
        return front.client.get("/up").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_dialect_gets_its_bytes(front: Front, dialect: DialectCase) -> None:
    body = BODY + dialect.name.encode()
    path = dialect.path_for(body)
    assert front.client.request(dialect.method, path, content=body).status_code == dialect.created
    got = front.client.get(path)
    assert (got.status_code, got.content) == (200, body)
    assert "x-accel-redirect" not in got.headers
    assert got.headers["etag"] == httpx.get(f"{front.node.url}{path}").headers["etag"]
    assert got.headers["cache-control"]
    assert front.client.head(path).status_code in (200, 204)


def bytes_served(front: Front) -> float:
    with Client(front.node.url) as client:
        return client.metric("undercroft_artifact_download_bytes_total", tool="ccache")


def test_parts_conditions_and_misses(front: Front) -> None:
    path = "/ccache/acme/app/" + "ef" * 20
    assert front.client.put(path, content=BODY).status_code == 201
    before = bytes_served(front)
    part = front.client.get(path, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, BODY[100:200])
    assert front.client.head(path).status_code == 200
    assert bytes_served(front) - before == 100
    tag = front.client.get(path).headers["etag"]
    assert front.client.get(path, headers={"if-none-match": tag}).status_code == 304
    assert front.client.get(path, headers={"range": "bytes=999999-"}).status_code == 416
    assert front.client.get("/ccache/acme/app/" + "00" * 20).status_code == 404
    assert front.client.get(f"{PREFIX}acme/app/ccache/ef/ef/{'ef' * 20}").status_code == 404


def test_names_of_any_kind(front: Front) -> None:
    path = "/gradle/acme/app/gr%C3%BCn%20%25%3F%23%2B%22(deleted)"
    assert front.client.put(path, content=BODY).status_code == 201
    assert front.client.get(path).content == BODY


def test_a_large_artifact_and_the_bytes_are_not_the_nodes_to_send(front: Front) -> None:
    body, path = bytes(100 << 20), "/ccache/acme/app/" + "aa" * 20
    assert front.client.put(path, content=body).status_code == 201
    assert front.client.get(path).content == body  # proven while it is sent, the first time
    direct = httpx.get(f"{front.node.url}{path}")
    assert direct.headers["x-accel-redirect"] == f"{PREFIX}acme/app/ccache/aa/aa/{'aa' * 20}"
    assert direct.content == b""
    assert front.client.get(path).content == body


def test_http_2_and_the_events_of_the_status_page(front: Front) -> None:
    curl = require("curl", "curl")
    command = [curl, "--cacert", str(front.certificate), "--resolve", "localhost:1:127.0.0.1", "-k", "-sS"]
    done = subprocess.run(
        [*command, "-o", "/dev/null", "-w", "%{http_version}", f"{front.url}/up"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2"
    with front.client.stream("GET", "/api/status", headers={"accept": "text/event-stream"}) as events:
        line = next(events.iter_lines())
    assert line.startswith("data: {")


def test_without_the_setting_nothing_is_left_to_anybody(tmp_path: Path) -> None:
    with node_process(tmp_path / "node") as node, Client(node.url) as client:
        client.put_ccache("ab" * 20, BODY)
        answer = client.request("GET", f"/ccache/acme/app/{'ab' * 20}")
        assert "x-accel-redirect" not in answer.headers
        assert answer.body == BODY
