"""The HTTP server inside the node's loop: binding, stopping with its grace, requests that do not end."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest

from tests.support.leaks import open_files
from tests.support.served_node import served_node
from undercroft.config import Settings
from undercroft.errors import ListenError
from undercroft.node import Node, running
from undercroft.server import bind


def test_bind_takes_a_free_port() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize(("host", "reason"), [("203.0.113.1", "assign"), ("no.such.host.invalid", "")])
def test_address_that_is_not_ours(host: str, reason: str) -> None:
    with pytest.raises(ListenError, match=rf"cannot listen on {host}:4000.*{reason}"):
        bind(host, 4000)


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
        await served.node.stop()
        assert served.node.capacity.reserved == 0
        assert served.rows("SELECT key FROM cache_artifacts") == []
    assert [
        path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".sqlite"
    ] == []
    assert open_files(tmp_path) == []


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
