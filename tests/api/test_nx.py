"""Nx: of a GET it knows 200 and 404, of a PUT 200, 409 and 403; anything else fails the user's run."""

import asyncio

import pytest

from tests.support.served_node import ServedNode
from undercroft import artifacts

from .conftest import OpenNode

PATH = "/nx/acc/proj/v1/cache/12345678901234567890"
DATA = b"x" * 1_000
TEXT = "text/plain"


async def test_entries_never_change(served: ServedNode) -> None:
    assert (await served.client.get(PATH)).status_code == 404
    stored = await served.client.put(PATH, content=DATA)
    assert (stored.status_code, stored.content) == (200, b"")
    again = await served.client.put(PATH, content=b"other")
    assert (again.status_code, again.content) == (409, b"it is stored already")
    got = await served.client.get(PATH)
    assert (got.status_code, got.content) == (200, DATA)


async def test_one_of_many_writers_stores(served: ServedNode) -> None:
    bodies = [b"%d" % number for number in range(10)]
    answers = await asyncio.gather(*(served.client.put(PATH, content=body) for body in bodies))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200] + [409] * 9
    assert (await served.client.get(PATH)).content == bodies[statuses.index(200)]


@pytest.mark.parametrize("hash_", ["0", "18446744073709551615", "deadBEEF", "my-hash_1"])
async def test_hashes_of_other_hashers(served: ServedNode, hash_: str) -> None:
    path = f"/nx/acc/proj/v1/cache/{hash_}"
    assert (await served.client.put(path, content=DATA)).status_code == 200
    assert (await served.client.get(path)).content == DATA


async def test_conditions_and_ranges_are_not_answered_by_what_nx_does_not_know(served: ServedNode) -> None:
    await served.client.put(PATH, content=DATA)
    tag = (await served.client.get(PATH)).headers["etag"]
    for headers in (
        {"range": "bytes=0-1"},
        {"range": "bytes=9999-"},
        {"if-none-match": tag},
        {"if-none-match": "*"},
    ):
        got = await served.client.get(PATH, headers=headers)
        assert (got.status_code, got.content) == (200, DATA)


async def test_a_refusal_says_why_in_text(open_node: OpenNode) -> None:
    served = await open_node(uploads={"nx_max_bytes": 10})
    refused = await served.client.put(PATH, content=DATA)
    assert (refused.status_code, refused.headers["content-type"]) == (403, TEXT)
    assert refused.text == "the body has 1000 bytes or more, at most 10 are accepted"


async def test_who_is_not_known_is_told_in_plain_text(open_node: OpenNode) -> None:
    """Nx compares the content type as a whole before it shows what a 401 says."""
    served = await open_node(auth={"mode": "tokens"})
    refused = await served.client.put(PATH, content=DATA, headers={"authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["content-type"]) == (401, TEXT)
    assert refused.text == "the credential is no token of this node (uct_...): check what is configured"


BELOW = [
    "/nx/",
    "/nx/acc/proj",
    "/nx/acc/proj/v1/cache",
    "/nx/acc/proj/v1/cache/",
    "/nx/acc/proj/v1/cache/..",
    "/nx/acc/proj/v1/cache/%ff",
    "/nx/acc/proj/v1/cache/1/2",
    "/nx/acc/proj/v2/cache/1",
    "/nx/a%2Fc/proj/v1/cache/1",
    f"/nx/acc/proj/v1/cache/{'1' * 256}",
]


@pytest.mark.parametrize("path", BELOW)
async def test_whatever_lies_below_nx_obeys(served: ServedNode, path: str) -> None:
    for method, status in (("GET", 404), ("HEAD", 404), ("PUT", 403), ("POST", 403), ("DELETE", 403)):
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
        answer, usable = await served.raw(request.encode(), b"body", method=method)
        assert (answer.status, usable) == (status, True), method
        assert answer.headers["content-type"] == TEXT
        assert method == "HEAD" or answer.body
    await served.assert_nothing_stored()


async def test_other_methods_of_an_artifact(served: ServedNode) -> None:
    for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
        assert (await served.client.request(method, PATH)).status_code == 403


async def test_a_large_artifact_is_sent_only_when_its_digest_is_right(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "VERIFY_MAX_BYTES", len(DATA) - 1)
    other = "/ccache/acc/proj/k"
    for path in (PATH, other):
        await served.client.put(path, content=DATA)
    for file in (served.folder / "artifacts").rglob("*"):
        if file.is_file():
            file.write_bytes(DATA[:-1] + b"y")
    assert (
        await served.client.head(other)
    ).status_code == 200  # others are told by its size, until it is sent
    assert (await served.client.get(PATH)).status_code == 404
    assert (await served.client.put(PATH, content=DATA)).status_code == 200
    assert (await served.client.get(PATH)).content == DATA


@pytest.mark.parametrize("method", ["HEAD", "PUT"])
async def test_a_large_damaged_artifact_is_found_out_by_whoever_comes_first(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Nobody may vouch for it by its size, or the next GET would send it."""
    monkeypatch.setattr(artifacts, "VERIFY_MAX_BYTES", len(DATA) - 1)
    await served.client.put(PATH, content=DATA)
    (file,) = (path for path in (served.folder / "artifacts").rglob("*") if path.is_file())
    file.write_bytes(DATA[:-1] + b"y")
    first = await served.client.request(method, PATH, content=DATA if method == "PUT" else b"")
    assert first.status_code == (200 if method == "PUT" else 404)
    got = await served.client.get(PATH)
    assert (got.status_code, got.content == DATA) == ((200, True) if method == "PUT" else (404, False))
