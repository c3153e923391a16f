"""The HTTP server inside the node's loop: binding, stopping with its grace, requests that do not end."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.leaks import open_files
from tests.support.served_node import served_node
from undercroft.api import responses
from undercroft.api.app import Application
from undercroft.config import Settings
from undercroft.errors import ListenError
from undercroft.http import server
from undercroft.http.server import HttpServer, bind
from undercroft.node import Node, running
from undercroft.telemetry import events


def test_bind_takes_a_free_port() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize(("host", "reason"), [("203.0.113.1", "assign"), ("no.such.host.invalid", "")])
def test_address_that_is_not_ours(host: str, reason: str) -> None:
    with pytest.raises(ListenError, match=rf"{host}:4000.*{reason}.*give an address of this machine"):
        bind(host, 4000)


@pytest.mark.parametrize(
    ("number", "advised"), [(errno.EADDRINUSE, True), (errno.EACCES, False), (errno.EADDRNOTAVAIL, False)]
)
async def test_another_node_is_suspected_only_of_a_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, number: int, advised: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    opened = HttpServer(Application([]), bind("127.0.0.1", 0))
    for operation, act in (("bind", lambda: bind("127.0.0.1", 80)), ("listen", opened.listen)):
        with monkeypatch.context() as broken:
            broken.setattr(socket.socket, operation, refuse)
            with pytest.raises(ListenError, match=os.strerror(number)) as raised:
                act()
        assert ("another node" in str(raised.value)) == advised
    await opened.stop(0)


def test_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f":{port}.*choose another port"):
            bind("127.0.0.1", port)


async def test_who_comes_right_after_the_start_is_served(tmp_path: Path) -> None:
    node = Node(Settings(data_dir=tmp_path, port=0))
    async with running(node):
        # No turn of the loop in between: the kernel must have the connection already.
        with socket.create_connection(("127.0.0.1", node.port), timeout=10) as early:
            early.sendall(b"GET /up HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await asyncio.to_thread(early.recv, 100)).startswith(b"HTTP/1.1 200 ")


async def test_stop_right_after_the_start(tmp_path: Path) -> None:
    for _ in range(3):
        node = Node(Settings(data_dir=tmp_path, port=0))
        async with running(node):
            pass
    assert open_files(tmp_path) == []


async def test_ipv6(tmp_path: Path) -> None:
    node = Node(Settings(data_dir=tmp_path, port=0, host="::1"))
    async with running(node), httpx.AsyncClient(verify=False) as client:
        assert node.url.startswith("http://[::1]:")
        assert (await client.get(f"{node.url}/up")).status_code == 200


async def test_second_node_on_the_port_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    async with served_node(tmp_path / "one") as served:
        second = Node(Settings(data_dir=tmp_path / "two", port=served.node.port))
        with pytest.raises(ListenError):
            async with running(second):
                pass
    assert not (tmp_path / "two").exists()


async def test_stop_waits_for_requests_in_progress(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served, served.connection() as connection:
        await connection.send(b"PUT /ccache/a/p/k HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12345")
        await served.upload_begun()
        stopping = asyncio.create_task(served.node.stop())
        await asyncio.sleep(0)
        await connection.send(b"67890")
        assert (await connection.answer()).status == 201
        await stopping
        assert served.rows("SELECT size_bytes FROM cache_artifacts") == [(10,)]
    assert open_files(tmp_path) == []


async def test_stop_cancels_requests_that_do_not_end(tmp_path: Path) -> None:
    async with (
        served_node(tmp_path / "data", http={"stop_grace_ms": 5}) as served,
        served.connection() as connection,
    ):
        await connection.send(b"PUT /ccache/a/p/k HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n")
        await connection.send(b"x" * 500_000)
        await served.upload_begun()
        told: list[str] = []
        served.node.telemetry.attach(events.UPLOAD, lambda _, metadata: told.append(metadata["result"]))
        await served.node.stop()
        assert told == ["cancelled"]
        assert served.node.capacity.reserved == 0
        assert served.rows("SELECT key FROM cache_artifacts") == []
    assert [
        path
        for path in (tmp_path / "data").rglob("*")
        if path.is_file() and path.suffix not in (".sqlite", ".lock")
    ] == []
    assert open_files(tmp_path) == []


def connections_to(port: int) -> list[object]:
    """What this process has open to a client's port."""
    found = psutil.Process().net_connections("tcp")
    return [one for one in found if one.raddr[1:] == (port,)]  # empty while it only listens


async def test_connection_of_a_reader_that_takes_nothing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server, "STUCK_READER_MS", 500)
    async with served_node(tmp_path / "data") as served:
        await served.client.put("/ccache/a/p/k", content=b"x" * (40 << 20))
        with socket.create_connection(("127.0.0.1", served.node.port)) as stuck:
            stuck.sendall(b"GET /ccache/a/p/k HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.to_thread(stuck.recv, 100)
            port = stuck.getsockname()[1]
            # Its end of the connection: the client hears of it when it reads.
            assert connections_to(port)
            async with asyncio.timeout(20):
                while connections_to(port):  # noqa: ASYNC110  # the kernel has no event for it
                    await asyncio.sleep(0.05)


async def test_no_connection_after_the_stop(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served:
        port = served.node.port
        await served.node.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_idle_connection_stays_open_and_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served, served.connection() as idle:
        assert await idle.is_usable()
        assert await idle.is_usable()
        async with asyncio.timeout(5):
            await served.node.stop()
        assert await idle.rest() == b""
