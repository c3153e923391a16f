"""The status page and what it shows, over HTTP; the page itself is driven in tests/system."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.support.served_node import RawConnection, ServedNode
from undercroft.api import status
from undercroft.telemetry.status import Status

from .conftest import OpenNode

ASK_FOR_EVENTS = b"GET /api/status HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "FRESH_S", 0.0)
    monkeypatch.setattr(status, "NEWS_S", 0.02)
    monkeypatch.setattr(status, "LOOK_S", 0.005)


async def get_status(served: ServedNode) -> Status:
    answer = await served.client.get("/api/status")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return msgspec.json.decode(answer.content, type=Status)


async def test_what_was_done_is_in_it(open_node: OpenNode) -> None:
    served = await open_node(disk={"limit_bytes": "1GB"})
    assert (await served.client.put("/ccache/acme/app/" + "a" * 40, content=b"x" * 1_000)).status_code == 201
    assert (await served.client.get("/ccache/acme/app/" + "a" * 40)).status_code == 200
    assert (await served.client.get("/nx/acme/other/v1/cache/12")).status_code == 404
    found = await get_status(served)
    assert (found.hour.total.hits, found.hour.total.misses, found.hour.total.stored_bytes) == (1, 1, 1_000)
    assert found.day.total == found.hour.total
    assert set(found.hour.tools) == {"ccache", "nx"}
    assert set(found.hour.projects) == {"acme/app", "acme/other"}
    assert found.disk.limit_bytes == 1_000_000_000
    assert found.disk.used_bytes == 1_000
    assert found.object_store.health == "none"
    assert [buffer.name for buffer in found.buffers] == ["key_values", "cas_artifacts", "s3_transfers"]
    assert found.buffers[1].flush_ms is not None


async def test_files_of_the_page(served: ServedNode) -> None:
    page = await served.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (await served.client.head("/")).headers["content-length"] == str(len(page.content))
    tag = {"if-none-match": page.headers["etag"]}
    assert (await served.client.get("/", headers=tag)).status_code == 304
    for name, kind in (
        ("page.js", "javascript"),
        ("page.css", "css"),
        ("icon.svg", "svg"),
        ("uPlot-LICENSE.txt", ""),
    ):
        part = await served.client.get(f"/page/{name}")
        assert part.status_code == 200
        assert kind in part.headers["content-type"]
    assert (await served.client.get("/page/nothing")).status_code == 404
    assert (await served.client.get("/page/..%2f__init__.py")).status_code == 404


async def event(connection: RawConnection) -> Status:
    """The next one."""
    line = b""
    async with asyncio.timeout(20):
        while not line.startswith(b"data: "):
            line = await connection.line()
    return msgspec.json.decode(line.removeprefix(b"data: "), type=Status)


async def test_it_is_told_again_and_again(served: ServedNode) -> None:
    async with served.connection() as connection:
        await connection.send(ASK_FOR_EVENTS)
        assert (await event(connection)).hour.total.requests == 0
        await served.client.get("/nx/acme/other/v1/cache/12")
        while (await event(connection)).hour.total.requests == 0:
            pass
    await served.requests_ended()


async def test_so_many_may_watch(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "MOST_WATCHERS", 1)
    async with served.connection() as first:
        await first.send(ASK_FOR_EVENTS)
        await event(first)
        answer, _ = await served.raw(ASK_FOR_EVENTS)
        assert answer.status == 503
        assert b"1 pages are watched already" in answer.body
    await served.requests_ended()
    async with served.connection() as second:
        await second.send(ASK_FOR_EVENTS)
        await event(second)


async def test_who_watches_does_not_hold_up_a_stop(open_node: OpenNode) -> None:
    served = await open_node(http={"stop_grace_ms": 60_000})
    async with served.connection() as connection:
        await connection.send(ASK_FOR_EVENTS)
        await event(connection)
        async with asyncio.timeout(20):
            await served.node.stop()


async def test_one_answer_for_all_who_ask_at_once(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "FRESH_S", 3_600.0)
    made: list[Any] = []
    make = served.node.status_api._get_status

    async def make_and_count() -> Status:
        made.append(1)
        return await make()

    monkeypatch.setattr(served.node.status_api, "_get_status", make_and_count)
    await asyncio.gather(*(served.client.get("/api/status") for _ in range(10)))
    assert len(made) == 1
