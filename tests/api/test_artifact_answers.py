"""What holds for artifacts in every dialect: bytes, ranges, conditions, HEAD, odd names, chunks."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import quote

import pytest

from tests.support.leaks import open_files
from tests.support.served_node import ServedNode
from undercroft.api import responses
from undercroft.auth.tokens import NewToken, create_token
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.telemetry import events

from .conftest import OpenNode
from .dialects import CCACHE, DIALECTS, FREE_NAMES, GRADLE, REPLACING, TUIST_CAS, TURBOREPO, DialectCase

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

DATA = bytes(range(256)) * 4
TAG = f'"{hashlib.sha256(DATA).hexdigest()}"'
BIG = 3 * (1 << 20) + 12_345

ODD_NAMES = [
    "a b",
    "grün 日本",
    "100%",
    "%2e%2e",
    "a?b",
    "a+b",
    "~x",
    "a:b",
    "a&b=c",
    "...",
    "#",
    ".a",
    "a",
    "é" * 127,
]


async def stored(served: ServedNode, dialect: DialectCase, data: bytes = DATA) -> str:
    path = dialect.path_for(data)
    answer = await served.client.request(dialect.method, path, content=data)
    assert answer.status_code == dialect.created
    assert answer.content == (b'{"urls":[]}' if dialect is TURBOREPO else b"")
    return path


# --- writing and reading -----------------------------------------------------------------------------


@every_dialect
async def test_whole_artifact(served: ServedNode, dialect: DialectCase) -> None:
    got = await served.client.get(await stored(served, dialect))
    assert (got.status_code, got.content) == (200, DATA)
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["content-type"] == "application/octet-stream"
    # What a later write replaces must be asked for again.
    changes = dialect in REPLACING or dialect is TURBOREPO
    kept = "no-cache" if changes else "public, max-age=31536000, immutable"
    assert got.headers["cache-control"] == kept
    assert "vary" not in got.headers
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["etag"] == dialect.etag(DATA)


@every_dialect
async def test_who_asks_decides_so_nobody_else_may_get_the_copy(
    open_node: OpenNode, dialect: DialectCase
) -> None:
    """RFC 9111, 3.5: "public" would let a proxy hand one caller's artifact to another."""
    served = await open_node(auth={"mode": "tokens"})
    token = await create_token(served.node.node_database, NewToken("ci", ("*/*",), True, True, "pr"))
    served.client.headers["authorization"] = f"Bearer {token.text}"
    got = await served.client.get(await stored(served, dialect))
    assert got.status_code == 200
    assert got.headers["cache-control"].startswith("private, ")
    assert got.headers["vary"] == "authorization"


@every_dialect
async def test_stored_again(served: ServedNode, dialect: DialectCase) -> None:
    path = await stored(served, dialect)
    assert (await served.client.request(dialect.method, path, content=DATA)).status_code == dialect.again
    assert served.node.capacity.used == dialect.stored_size(DATA)


@every_dialect
async def test_acknowledged_artifact_has_its_row_in_sqlite(served: ServedNode, dialect: DialectCase) -> None:
    await stored(served, dialect)
    rows = served.rows("SELECT size_bytes, content_sha256 FROM cache_artifacts")
    assert rows == [(dialect.stored_size(DATA), dialect.etag(DATA).strip('"'))]


@every_dialect
async def test_large_artifact_in_chunks_both_ways(served: ServedNode, dialect: DialectCase) -> None:
    data = os.urandom(BIG)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    path = dialect.path_for(data)
    put = await served.client.request(dialect.method, path, content=chunks())
    assert put.request.headers["transfer-encoding"] == "chunked"
    assert put.status_code == dialect.created
    got = await served.client.get(path)
    assert got.content == data
    part = await served.client.get(path, headers={"range": "bytes=100-2999999"})
    assert part.content == (data[100:3_000_000] if dialect.ranges else data)


@every_dialect
async def test_expect_100_continue(served: ServedNode, dialect: DialectCase) -> None:
    async with served.connection() as connection:
        request = f"{dialect.method} {dialect.path_for(DATA)} HTTP/1.1\r\nhost: x\r\n"
        await connection.send(
            request.encode(), b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(DATA)
        )
        assert (await connection.answer()).status == 100
        await connection.send(DATA)
        assert (await connection.answer()).status == dialect.created
        assert await connection.is_usable()


@pytest.mark.parametrize("dialect", FREE_NAMES, ids=lambda dialect: dialect.name)
async def test_odd_names_round_trip(served: ServedNode, dialect: DialectCase) -> None:
    for name in ODD_NAMES:
        path = dialect.path(quote(name, safe=""))
        assert (await served.client.get(path)).status_code == 404, name
        put = await served.client.request(dialect.method, path, content=name.encode())
        assert put.status_code == dialect.created, name
    for name in ODD_NAMES:
        assert (await served.client.get(dialect.path(quote(name, safe="")))).content == name.encode()


def renamed(path: str, account: str, project: str) -> str:
    path = path.replace("/acc/proj/", f"/{account}/{project}/")
    return path.replace("handle=acc", f"handle={account}").replace("handle=proj", f"handle={project}")


@every_dialect
async def test_handles_ignore_case_and_keep_odd_characters(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path_for(DATA)
    odd = renamed(path, "A%20%C3%9C%25", "P~b")
    await served.client.request(dialect.method, odd, content=DATA)
    assert (await served.client.get(path)).status_code == 404
    same = renamed(path, "a%20%C3%BC%25", "p%7EB")
    assert (await served.client.get(same)).content == DATA
    assert (served.folder / "artifacts" / "a ü%" / "p~b").is_dir()


# --- HEAD, ranges, conditions ------------------------------------------------------------------------


@every_dialect
async def test_head_is_get_without_the_body(served: ServedNode, dialect: DialectCase) -> None:
    path = await stored(served, dialect)
    got = await served.client.get(path)
    async with served.connection() as connection:
        await connection.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await connection.answer("HEAD")
        assert await connection.is_usable()  # not a byte of a body came
    assert head.status == 200
    for name in ("content-length", "content-type", "etag", "accept-ranges", "cache-control"):
        assert head.headers[name] == got.headers[name]


@every_dialect
async def test_head_of_what_is_not_there(served: ServedNode, dialect: DialectCase) -> None:
    answer, usable = await served.raw(
        f"HEAD {dialect.path('0' * 64)} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), method="HEAD"
    )
    assert (answer.status, usable) == (404, True)


RANGES: list[tuple[str, int, int]] = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-", 0, 1024),
    ("bytes=100-199", 100, 200),
    ("bytes=1000-", 1000, 1024),
    ("bytes=1000-5000", 1000, 1024),
    ("bytes=1023-1023", 1023, 1024),
    ("bytes=-1", 1023, 1024),
    ("bytes=-24", 1000, 1024),
    ("bytes=-5000", 0, 1024),
]
UNSATISFIABLE = ["bytes=1024-", "bytes=1024-2000", "bytes=-0", "bytes=9999999999999999999-"]
IGNORED = [
    "bytes=",
    "bytes=-",
    "bytes=5-4",
    "bytes=a-b",
    "bytes=0-1,3-4",
    "lines=0-1",
    "0-1",
    f"bytes={'9' * 5_000}-",
]


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one.ranges], ids=lambda dialect: dialect.name)
async def test_ranges(served: ServedNode, dialect: DialectCase) -> None:
    path = await stored(served, dialect)
    for asked, start, end in RANGES:
        got = await served.client.get(path, headers={"range": asked})
        assert got.status_code == 206, asked
        assert got.content == DATA[start:end]
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/1024"
        assert got.headers["content-length"] == str(end - start)
        assert got.headers["etag"] == dialect.etag(DATA)
    for asked in UNSATISFIABLE:
        got = await served.client.get(path, headers={"range": asked})
        assert (got.status_code, got.content, got.headers["content-range"]) == (416, b"", "bytes */1024"), (
            asked
        )
    for asked in IGNORED:
        got = await served.client.get(path, headers={"range": asked})
        assert (got.status_code, got.content) == (200, DATA), asked
        assert "content-range" not in got.headers


async def test_range_of_an_empty_artifact(served: ServedNode) -> None:
    path = await stored(served, CCACHE, b"")
    assert (await served.client.get(path, headers={"range": "bytes=0-"})).status_code == 416
    assert (await served.client.get(path)).status_code == 200


async def test_range_is_for_get_only(served: ServedNode) -> None:
    path = await stored(served, CCACHE)
    assert (await served.client.head(path, headers={"range": "bytes=0-1"})).status_code == 200


@pytest.mark.parametrize(
    ("condition", "status"), [(TAG, 206), ('"other"', 200), (f"W/{TAG}", 200), ("*", 200)]
)
async def test_if_range(served: ServedNode, condition: str, status: int) -> None:
    path = await stored(served, TUIST_CAS)
    got = await served.client.get(path, headers={"range": "bytes=0-9", "if-range": condition})
    assert (got.status_code, got.content) == (status, DATA[:10] if status == 206 else DATA)


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (TAG, 304),
        (f"W/{TAG}", 304),
        ("*", 304),
        (f'"a", {TAG} ,"b"', 304),
        ('"other"', 200),
        (TAG.strip('"'), 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match(served: ServedNode, method: str, condition: str, status: int) -> None:
    path = await stored(served, TUIST_CAS)
    got = await served.client.request(method, path, headers={"if-none-match": condition})
    assert got.status_code == status
    assert got.content == (DATA if (method, status) == ("GET", 200) else b"")
    assert got.headers["etag"] == TAG
    assert got.headers["cache-control"]


async def test_if_none_match_of_what_is_not_there(served: ServedNode) -> None:
    got = await served.client.get(TUIST_CAS.path("k"), headers={"if-none-match": "*"})
    assert got.status_code == 404


# --- downloads that end early ------------------------------------------------------------------------


async def test_client_that_leaves_during_a_download(served: ServedNode) -> None:
    # More than sockets hold, so that the node is still sending.
    path = await stored(served, GRADLE, b"x" * (40 << 20))
    async with served.connection() as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert await connection.some()
        assert len(open_files(served.folder / "artifacts")) == 1
    await served.requests_ended()
    assert open_files(served.folder / "artifacts") == []


async def test_reader_that_takes_nothing(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(responses, "SEND_TIMEOUT_S", 0.2)
    told: list[tuple[str, float]] = []
    served.node.telemetry.attach(
        events.DOWNLOAD, lambda measured, of: told.append((of["result"], measured["bytes"]))
    )
    path = await stored(served, GRADLE, b"x" * (40 << 20))
    async with served.connection() as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert await connection.some()
        await served.requests_ended()
        assert open_files(served.folder / "artifacts") == []
        # What was under way still comes, and then the end.
        with suppress(ConnectionResetError):
            assert len(await connection.rest()) < 39 << 20
    assert [result for result, _ in told] == ["hit"]
    assert 0 < told[0][1] < 40 << 20
    assert "request_failed" not in capsys.readouterr().out


async def test_cancelled_read_waits_for_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> bytes:
        begun.set()
        go_on.wait(20)
        return b"x"

    monkeypatch.setattr(responses, "_is_cached", lambda *_: False)
    monkeypatch.setattr(os, "pread", slow)
    reading = asyncio.create_task(responses._read(OpenArtifact(0, 1, None), 0, 1))
    await asyncio.to_thread(begun.wait, 20)
    reading.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    # Its caller closes the descriptor as soon as it ends.
    assert not reading.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_file_cut_during_a_download_breaks_the_connection(served: ServedNode) -> None:
    path = await stored(served, GRADLE, b"x" * (40 << 20))
    (file,) = (served.folder / "artifacts").rglob("*" + path.rsplit("/", 1)[1])
    async with served.connection() as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert (await connection.some()).startswith(b"HTTP/1.1 200 ")
        os.truncate(file, 1 << 20)
        # Only a connection that ends early tells the client that this is not all.
        with suppress(ConnectionResetError):
            assert len(await connection.rest()) < 39 << 20
    await served.requests_ended()
    assert open_files(served.folder / "artifacts") == []


async def test_many_downloads_leak_nothing(served: ServedNode) -> None:
    path = await stored(served, CCACHE, b"x" * 100_000)
    for _ in range(5):
        gets = await asyncio.gather(*(served.client.get(path) for _ in range(20)))
        assert {len(got.content) for got in gets} == {100_000}
    assert open_files(served.folder / "artifacts") == []
