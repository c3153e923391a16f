"""Gradle's own dialect: whatever it does not know turns its cache off, so the statuses are exact."""

import pytest

from tests.support.served_node import ServedNode

PATH = "/gradle/acc/proj/0123456789abcdef0123456789abcdef"
TYPES = ["application/vnd.gradle.build-cache-artifact.v1", "application/vnd.gradle.build-cache-artifact.v2"]


@pytest.mark.parametrize("content_type", TYPES)
async def test_put_and_get(served: ServedNode, content_type: str) -> None:
    headers = {"content-type": content_type, "authorization": "Basic OnRva2Vu"}
    assert (await served.client.get(PATH, headers=headers)).status_code == 404
    assert (await served.client.put(PATH, content=b"first", headers=headers)).status_code == 201
    got = await served.client.get(PATH, headers=headers)
    assert (got.status_code, got.content) == (200, b"first")


async def test_overwriting_heals(served: ServedNode) -> None:
    await served.client.put(PATH, content=b"damaged")
    assert (await served.client.put(PATH, content=b"sound")).status_code == 200
    assert (await served.client.get(PATH)).content == b"sound"


async def test_it_shares_entries_with_tuists_gradle(served: ServedNode) -> None:
    await served.client.put("/gradle/ACC/Proj/abcdef", content=b"entry")
    got = await served.client.get("/api/cache/gradle/abcdef?account_handle=acc&project_handle=proj")
    assert got.content == b"entry"


async def test_expect_100_continue(served: ServedNode) -> None:
    async with served.connection() as connection:
        head = f"PUT {PATH} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        await connection.send(head.encode())
        assert (await connection.answer()).status == 100
        await connection.send(b"bytes")
        assert (await connection.answer()).status == 201
        assert await connection.is_usable()
    assert (await served.client.get(PATH)).content == b"bytes"
