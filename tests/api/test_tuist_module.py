"""Tuist's modules: exact statuses of asking for one and of uploading it in parts."""

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.folders import artifact_files, temporary_files
from tests.support.leaks import open_files
from tests.support.node_process import node_process
from tests.support.served_node import PATIENCE_S, ServedNode, served_node
from undercroft.api import app
from undercroft.api.request import Receive, Request, Scope, Send
from undercroft.auth.grants import Caller
from undercroft.errors import CommitTimeoutError

from .conftest import OpenNode
from .dialects import QUERY

BASE = "/api/cache/module"
DATA = os.urandom(3_000)
PARTS = {1: DATA[:1_000], 2: DATA[1_000:2_500], 3: DATA[2_500:]}
ODD_NAMES = ["a b", "grün 日本", "100%", "%2e%2e", "a?b", "a+b", "a&b=c", "...", "#", "é" * 127]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encoded(parameters: Mapping[str, object]) -> str:
    return "".join(f"&{name}={quote(str(value), safe='')}" for name, value in parameters.items())


class Modules:
    """The requests a client makes."""

    def __init__(self, client: httpx.AsyncClient, query: str = QUERY) -> None:
        self._client = client
        self._query = query
        self.headers: dict[str, str] = {}

    def url(self, path: str, **parameters: object) -> str:
        return f"{BASE}/{path}{self._query}{encoded(parameters)}"

    async def _send(self, method: str, url: str, **more: Any) -> httpx.Response:
        headers = self.headers | more.pop("headers", {})
        answer = await self._client.request(method, url, headers=headers, **more)
        if answer.status_code >= 400 and method != "HEAD":
            assert set(answer.json()) == {"message"}
        return answer

    async def head(self, hash: str = "abcdef", name: str = "A.zip", **more: object) -> int:  # noqa: A002
        return (await self._send("HEAD", self.url("any", hash=hash, name=name, **more))).status_code

    async def get(
        self,
        hash: str = "abcdef",  # noqa: A002
        name: str = "A.zip",
        **more: object,
    ) -> httpx.Response:
        return await self._send("GET", self.url("any", hash=hash, name=name, **more))

    async def start(
        self,
        hash: str = "abcdef",  # noqa: A002
        name: str = "A.zip",
        **more: object,
    ) -> str | None:
        answer = await self._send("POST", self.url("start", hash=hash, name=name, **more))
        assert (answer.status_code, set(answer.json())) == (200, {"upload_id"})
        upload: str | None = answer.json()["upload_id"]
        return upload

    async def part(
        self, upload: str | None, number: object, data: Any, checksum: str | None = None
    ) -> httpx.Response:
        headers = {} if checksum is None else {"tuist-checksum-sha256": checksum}
        url = self.url("part", upload_id=upload, part_number=number)
        return await self._send("POST", url, content=data, headers=headers)

    async def complete(self, upload: str | None, *numbers: object, checksum: object = None) -> httpx.Response:
        body = {"parts": list(numbers)} | ({} if checksum is None else {"checksum_sha256": checksum})
        return await self._send("POST", self.url("complete", upload_id=upload), json=body)

    async def store(self, *, hash: str = "abcdef", name: str = "A.zip", **more: object) -> None:  # noqa: A002
        upload = await self.start(hash, name, **more)
        for number, data in PARTS.items():
            assert (await self.part(upload, number, data)).status_code == 204
        answer = await self.complete(upload, *PARTS)
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.fixture
def modules(served: ServedNode) -> Modules:
    return Modules(served.client)


# --- the way through ----------------------------------------------------------------------------------


async def test_a_module_from_the_first_question_to_the_last(served: ServedNode, modules: Modules) -> None:
    assert await modules.head() == 404
    missing = await modules.get()
    assert (missing.status_code, set(missing.json())) == (404, {"message"})
    upload = await modules.start()
    for number in (2, 3, 1):
        answer = await modules.part(upload, number, PARTS[number], digest(PARTS[number]).upper())
        assert (answer.status_code, answer.content) == (204, b"")
    assert await modules.head() == 404
    assert (await modules.complete(upload, 3, 2, 1, checksum=digest(DATA).upper())).status_code == 204
    assert await modules.head() == 204
    got = await modules.get()
    assert (got.status_code, got.content) == (200, DATA)
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["tuist-checksum-sha256"] == digest(DATA)
    assert artifact_files(served.folder) == ["acc/proj/module/builds/ab/cd/abcdef/A.zip"]
    assert served.rows("SELECT key, content_sha256 FROM cache_artifacts") == [
        ("acc/proj/module/builds/ab/cd/abcdef/A.zip", digest(DATA))
    ]
    assert await modules.start() is None
    assert temporary_files(served.folder) == []
    assert served.node.capacity.reserved == 0


async def test_ranges_and_conditions(served: ServedNode, modules: Modules) -> None:
    await modules.store()
    url = modules.url("any", hash="abcdef", name="A.zip")
    part = await served.client.get(url, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, DATA[1:4])
    unchanged = await served.client.get(url, headers={"if-none-match": part.headers["etag"]})
    assert unchanged.status_code == 304


@pytest.mark.parametrize("hash_", ["a", "ab", "abc", "abcd", "...", "e" * 255])
async def test_hashes_of_any_length(modules: Modules, hash_: str) -> None:
    await modules.store(hash=hash_)
    assert (await modules.get(hash_)).content == DATA


async def test_odd_names_round_trip(modules: Modules) -> None:
    for odd in ODD_NAMES:
        for changed in ({"hash": odd}, {"name": odd}, {"cache_category": odd}):
            assert await modules.head(**changed) == 404
            await modules.store(**changed)
            assert await modules.head(**changed) == 204


async def test_category_hash_and_name_all_count(modules: Modules) -> None:
    await modules.store()
    assert await modules.head(cache_category="builds") == 204
    assert await modules.head(cache_category="tests") == 404
    assert await modules.head(hash="abcdee") == 404
    assert await modules.head(name="B.zip") == 404
    await modules.store(cache_category="tests", name="B.zip")
    assert await modules.head(cache_category="tests", name="B.zip") == 204


@pytest.mark.parametrize("name", ["hash", "name"])
@pytest.mark.parametrize(
    "bad", [None, "", ".", "..", "a/b", "../../etc/passwd", "a\\b", "a\x00", "a\n", "x" * 256, "\x7f"]
)
async def test_bad_hash_or_name(served: ServedNode, name: str, bad: str | None) -> None:
    parameters = {"hash": "h", "name": "n", name: bad}
    query = QUERY + encoded({key: value for key, value in parameters.items() if value is not None})
    for method, path in (("GET", "any"), ("HEAD", "any"), ("POST", "start")):
        assert (await served.client.request(method, f"{BASE}/{path}{query}")).status_code == 400
    await served.assert_nothing_stored()


@pytest.mark.parametrize("bad", ["", "..", "a/b"])
async def test_bad_category(modules: Modules, bad: str) -> None:
    assert await modules.head(cache_category=bad) == 400


async def test_what_lies_in_the_object_store_is_there(open_node: OpenNode, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    served = await open_node(object_store={"url": f"file://{tmp_path}/bucket"})
    modules, key = Modules(served.client), "acc/proj/module/builds/ab/cd/abcdef/A.zip"
    await modules.store()
    async with asyncio.timeout(PATIENCE_S):
        # Until then what is in the store may be older.
        while served.node.transfers.outdates(key):  # noqa: ASYNC110  # another part writes it
            await asyncio.sleep(0.005)
    assert artifact_files_in(tmp_path / "bucket")
    await served.node.artifacts.evict(key)
    assert artifact_files(served.folder) == []
    assert await modules.head() == 204
    assert await modules.start() is None
    assert artifact_files(served.folder) == []
    assert (await modules.get()).content == DATA


def artifact_files_in(bucket: Path) -> list[Path]:
    return [path for path in bucket.rglob("*") if path.is_file() and path.name == "A.zip"]


# --- parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["", "0", "-1", "10001", "99999999999999999999", "x", "1.0", "1e3", " 1", "+1", "٣", "0x1"]
)
async def test_bad_part_number(served: ServedNode, modules: Modules, number: str) -> None:
    upload = await modules.start()
    assert (await modules.part(upload, number, b"x")).status_code == 400
    assert temporary_files(served.folder) == []


async def test_missing_parameters(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    for path in (
        f"part{QUERY}&upload_id={upload}",
        f"part{QUERY}&part_number=1",
        f"part{QUERY}&upload_id=&part_number=1",
        f"complete{QUERY}",
    ):
        assert (await served.client.post(f"{BASE}/{path}", json={"parts": [1]})).status_code == 400


@pytest.mark.parametrize("number", ["1", "00001", "10000"])
async def test_good_part_number(modules: Modules, number: str) -> None:
    upload = await modules.start()
    assert (await modules.part(upload, number, b"x")).status_code == 204
    assert (await modules.complete(upload, int(number))).status_code == 204


@pytest.mark.parametrize("upload", ["x", "..", "00000000-0000-0000-0000-000000000000", "e" * 5_000])
async def test_unknown_upload(served: ServedNode, modules: Modules, upload: str) -> None:
    assert (await modules.part(upload, 1, b"x")).status_code == 404
    assert (await modules.complete(upload, 1)).status_code == 404
    await served.assert_nothing_stored()


async def test_upload_of_another_project(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    await modules.part(upload, 1, DATA)
    stranger = Modules(served.client, "?account_handle=acc&project_handle=other")
    assert (await stranger.part(upload, 1, b"evil")).status_code == 404
    assert (await stranger.complete(upload, 1)).status_code == 404
    # Handles are compared without regard to case.
    same = Modules(served.client, "?account_handle=ACC&project_handle=Proj")
    assert (await same.complete(upload, 1)).status_code == 204
    assert (await modules.get()).content == DATA


async def test_part_sent_again_replaces(modules: Modules) -> None:
    upload = await modules.start()
    for data in (b"first", b"the second", b"3rd"):
        assert (await modules.part(upload, 1, data)).status_code == 204
    await modules.complete(upload, 1)
    assert (await modules.get()).content == b"3rd"


async def test_part_sent_again_while_it_is_sent(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    url = modules.url("part", upload_id=upload, part_number=1)
    async with served.connection() as connection:
        head = f"POST {url} HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n".encode()
        await connection.send(head, b"x" * 300_000)
        await served.upload_begun()
        assert (await modules.part(upload, 1, b"newer")).status_code == 204
        await connection.send(b"x" * 200_000)
        assert (await connection.answer("POST")).status == 204
    assert (await modules.complete(upload, 1)).status_code == 204
    assert (await modules.get()).content == b"newer"


async def test_part_sent_in_chunks(modules: Modules) -> None:
    async def chunks() -> Any:
        yield DATA[:1_000]
        yield DATA[1_000:]

    upload = await modules.start()
    assert (await modules.part(upload, 1, chunks())).status_code == 204
    await modules.complete(upload, 1)
    assert (await modules.get()).content == DATA


@pytest.mark.parametrize(("checksum", "status"), [("0" * 64, 422), ("x", 400), ("g" * 64, 400), ("", 400)])
async def test_checksum_of_a_part(served: ServedNode, modules: Modules, checksum: str, status: int) -> None:
    upload = await modules.start()
    assert (await modules.part(upload, 1, DATA, checksum)).status_code == status
    assert temporary_files(served.folder) == []
    assert served.node.capacity.reserved == 0
    assert (await modules.complete(upload, 1)).status_code == 400
    assert (await modules.part(upload, 1, DATA, digest(DATA))).status_code == 204


@pytest.mark.parametrize("chunked", [False, True])
async def test_part_too_large(open_node: OpenNode, chunked: bool) -> None:
    served = await open_node(uploads={"module_part_max_bytes": 1_000})
    modules = Modules(served.client)

    async def chunks() -> Any:
        yield b"x" * 1_000
        yield b"x"

    upload = await modules.start()
    assert (await modules.part(upload, 1, chunks() if chunked else b"x" * 1_001)).status_code == 413
    assert temporary_files(served.folder) == []
    assert (await modules.part(upload, 1, b"x" * 1_000)).status_code == 204


async def test_ten_megabytes_are_a_part_and_one_byte_more_is_not(modules: Modules) -> None:
    upload = await modules.start()
    assert (await modules.part(upload, 1, bytes(10 << 20))).status_code == 204
    assert (await modules.part(upload, 1, bytes((10 << 20) + 1))).status_code == 413


async def test_all_parts_too_large(open_node: OpenNode) -> None:
    served = await open_node(uploads={"module_max_bytes": 1_500})
    modules = Modules(served.client)
    upload = await modules.start()
    assert (await modules.part(upload, 1, b"x" * 1_000)).status_code == 204
    assert (await modules.part(upload, 2, b"x" * 501)).status_code == 422
    assert (await modules.part(upload, 2, b"x" * 500)).status_code == 204
    assert (await modules.complete(upload, 1, 2)).status_code == 204


async def test_node_full(open_node: OpenNode) -> None:
    served = await open_node(disk={"limit_bytes": 5_000})
    modules = Modules(served.client)
    upload = await modules.start()
    with served.node.capacity.reserve(4_000):
        assert (await modules.part(upload, 1, bytes(1_001))).status_code == 507
        assert served.node.capacity.reserved == 4_000
    assert (await modules.part(upload, 1, bytes(1_001))).status_code == 204
    assert (await modules.part(upload, 2, bytes(5_001))).status_code == 413
    assert (await modules.part(upload, 2, bytes(3_000))).status_code == 204
    # To put them together takes room for one of them.
    assert (await modules.complete(upload, 1, 2)).status_code == 507
    assert served.node.capacity.reserved == 0
    await served.assert_nothing_stored()


async def test_client_that_goes_away_inside_a_part(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    url = modules.url("part", upload_id=upload, part_number=1)
    async with served.connection() as connection:
        await connection.send(
            f"POST {url} HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n".encode(), b"x" * 500_000
        )
        await served.upload_begun()
    await served.assert_nothing_stored()
    assert (await modules.part(upload, 1, DATA)).status_code == 204
    assert (await modules.complete(upload, 1)).status_code == 204


async def test_part_shorter_than_declared_or_slow(open_node: OpenNode) -> None:
    served = await open_node(uploads={"read_timeout_ms": 20})
    modules = Modules(served.client)
    upload = await modules.start()
    url = modules.url("part", upload_id=upload, part_number=1)
    head = f"POST {url} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n".encode()
    async with served.connection() as connection:
        await connection.send(head, b"short")
        assert (await connection.answer("POST")).status == 408
    async with served.connection() as connection:
        await connection.send(head, b"short")
        connection.end_sending()
        rest = await connection.rest()
        assert rest == b"" or rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))
    await served.assert_nothing_stored()
    assert (await modules.complete(upload, 1)).status_code == 400


# --- completing ---------------------------------------------------------------------------------------

MALFORMED = [
    b"",
    b"null",
    b"[1]",
    b"{",
    b"{}",
    b'{"parts": null}',
    b'{"parts": 1}',
    b'{"parts": ["1"]}',
    b'{"parts": [1.5]}',
    b'{"parts": [null]}',
    b'{"parts": []}',
    b'{"parts": [1, 1]}',
    b'{"parts": [0]}',
    b'{"parts": [-1]}',
    b'{"parts": [1, 2]}',
    b'{"parts": [%s]}' % (b"9" * 400),
    b'{"parts": [1], "checksum_sha256": 1}',
    b'{"parts": [1], "checksum_sha256": ""}',
    b'{"parts": [1], "checksum_sha256": "xyz"}',
    b'{"parts": [1], "checksum_sha256": "%s"}' % (b"g" * 64),
    b'{"parts": [1], "checksum_sha256": "\xff"}',
    b"[" * 100_000,
]


async def test_malformed_completions_leave_the_upload_as_it_is(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    await modules.part(upload, 1, DATA)
    for body in MALFORMED:
        answer = await served.client.post(modules.url("complete", upload_id=upload), content=body)
        assert (answer.status_code, set(answer.json())) == (400, {"message"}), body
    too_long = b'{"parts": [1]' + b" " * (1 << 20) + b"}"
    answer = await served.client.post(modules.url("complete", upload_id=upload), content=too_long)
    assert answer.status_code == 413
    body = json.dumps({"parts": [1], "checksum_sha256": None, "more": {}}).encode()
    answer = await served.client.post(modules.url("complete", upload_id=upload), content=body)
    assert answer.status_code == 204


async def test_completed_with_the_wrong_checksum(served: ServedNode, modules: Modules) -> None:
    upload = await modules.start()
    await modules.part(upload, 1, DATA)
    assert (await modules.complete(upload, 1, checksum="0" * 64)).status_code == 422
    await served.assert_nothing_stored()
    assert (await modules.complete(upload, 1)).status_code == 404


async def test_completed_twice(modules: Modules) -> None:
    upload = await modules.start()
    await modules.part(upload, 1, DATA)
    assert (await modules.complete(upload, 1)).status_code == 204
    assert (await modules.complete(upload, 1)).status_code == 404


async def test_completed_by_many_at_once(modules: Modules) -> None:
    upload = await modules.start()
    for number in (1, 2):
        await modules.part(upload, number, os.urandom(500_000))
    answers = await asyncio.gather(*(modules.complete(upload, 1, 2) for _ in range(5)))
    statuses = {answer.status_code for answer in answers}
    assert 204 in statuses
    assert statuses <= {204, 404}


async def test_two_uploads_of_one_module(served: ServedNode, modules: Modules) -> None:
    uploads = [await modules.start(), await modules.start()]
    assert len(set(uploads)) == 2
    for upload in uploads:
        await modules.part(upload, 1, DATA)
    answers = await asyncio.gather(*(modules.complete(upload, 1) for upload in uploads))
    assert [answer.status_code for answer in answers] == [204, 204]
    assert (await modules.get()).content == DATA
    assert served.node.capacity.used == len(DATA)


async def test_stored_already_is_said_only_where_that_can_be_relied_on(
    served: ServedNode, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    await modules.store()
    with monkeypatch.context() as patch:
        # Its project is being cleaned.
        patch.setattr(served.node.artifacts, "is_doomed", lambda _key: True)
        assert await modules.start() is not None

    async def late(_key: str) -> None:
        raise CommitTimeoutError("its row is not committed yet")

    monkeypatch.setattr(served.node.artifacts, "settled", late)
    answer = await served.client.post(modules.url("start", hash="abcdef", name="A.zip"))
    assert (answer.status_code, set(answer.json())) == (503, {"message"})


async def test_damaged_module_is_healed_by_another_upload(served: ServedNode, modules: Modules) -> None:
    await modules.store()
    (file,) = (path for path in (served.folder / "artifacts").rglob("*") if path.is_file())
    file.write_bytes(DATA[:-1])
    assert await modules.head() == 404
    await modules.store()
    assert (await modules.get()).content == DATA


# --- uploads nobody goes on with ----------------------------------------------------------------------


async def test_idle_upload_is_removed(open_node: OpenNode) -> None:
    served = await open_node(uploads={"multipart_idle_ms": 20})
    modules = Modules(served.client)
    upload = await modules.start()
    await modules.part(upload, 1, DATA)
    async with asyncio.timeout(PATIENCE_S):
        while len(served.node.multipart):  # noqa: ASYNC110  # the node has no event for it
            await asyncio.sleep(0.005)
    assert (await modules.complete(upload, 1)).status_code == 404
    await served.assert_nothing_stored()
    assert open_files(served.folder / "artifacts") == []


async def test_a_stop_gives_everything_back(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served:
        modules = Modules(served.client)
        await modules.part(await modules.start(), 1, DATA)
    assert (served.node.multipart.parts, served.node.capacity.reserved) == (0, 0)
    assert temporary_files(served.folder) == []


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_restart_an_upload_is_unknown_and_its_files_are_gone(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "data"
    url = f"{BASE}/{{}}{QUERY}"
    with node_process(folder) as node, httpx.Client(base_url=node.url) as client:
        begun = client.post(f"{url.format('start')}&hash=h&name=n").json()["upload_id"]
        part = f"{url.format('part')}&upload_id={begun}&part_number=1"
        assert client.post(part, content=bytes(1_000_000)).status_code == 204
        assert len(temporary_files(folder)) == 1
        node.signal(number)
        node.wait()
    with node_process(folder) as node, httpx.Client(base_url=node.url) as client:
        assert temporary_files(folder) == []
        assert client.post(part, content=b"x").status_code == 404
        completing = f"{url.format('complete')}&upload_id={begun}"
        assert client.post(completing, json={"parts": [1]}).status_code == 404
        assert "undercroft_disk_reserved_bytes 0.0" in client.get("/metrics").text


# --- trust scopes -------------------------------------------------------------------------------------


class ScopedRequest(Request):
    """Takes its trust scope from a header."""

    __slots__ = ()

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        given = self.headers.get(b"x-test-scope")
        self.caller = Caller(scope=None if given is None else given.decode())


@pytest.fixture
def _scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Request", ScopedRequest)


@pytest.mark.usefixtures("_scopes")
async def test_scopes(served: ServedNode) -> None:
    trusted, fork, other = (Modules(served.client) for _ in range(3))
    fork.headers, other.headers = {"x-test-scope": "fork"}, {"x-test-scope": "other"}
    upload = await fork.start()
    assert (await trusted.part(upload, 1, b"x")).status_code == 404
    assert (await other.complete(upload, 1)).status_code == 404
    await fork.store()
    assert artifact_files(served.folder) == ["acc/proj/~fork/module/builds/ab/cd/abcdef/A.zip"]
    assert [await one.head() for one in (trusted, fork, other)] == [404, 204, 404]
    assert await fork.start() is None
    await trusted.store()
    assert [await one.head() for one in (trusted, fork, other)] == [204, 204, 204]
    assert await other.start() is None
    assert (await other.get()).content == DATA


# --- what is counted ----------------------------------------------------------------------------------


async def test_series(served: ServedNode, modules: Modules) -> None:
    await modules.get()
    await modules.store()
    await modules.start()
    await modules.get()
    upload = await modules.start("other")
    await modules.part(upload, 1, b"x")
    await modules.complete(upload, 1, checksum="0" * 64)
    text = (await served.client.get("/metrics")).text
    lines = [line.removeprefix("tuist_cache_module_") for line in text.splitlines()]
    for expected in (
        "download_hits_total 1.0",
        "download_disk_hits_total 1.0",
        "download_disk_misses_total 1.0",
        "upload_attempts_total 3.0",
        "upload_success_total 1.0",
        "upload_exists_total 1.0",
        'upload_errors_total{reason="DigestMismatchError"} 1.0',
        f"upload_bytes {float(len(DATA))}",
        f"download_bytes {float(len(DATA))}",
        "undercroft_multipart_uploads 0.0",
        "undercroft_multipart_parts 0.0",
    ):
        assert expected in lines, expected
