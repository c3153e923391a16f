"""WebDAV: exactly the statuses sccache knows, and as much as other clients need."""

import asyncio
import errno
import xml.etree.ElementTree as ET
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote

import httpx
import pytest

from tests.support.disk_faults import fault
from tests.support.served_node import ServedNode
from undercroft.api import app, webdav_probes
from undercroft.api.request import Receive, Request, Scope, Send
from undercroft.auth.grants import Caller
from undercroft.storage import collections
from undercroft.storage.capacity import Volume

from .conftest import OpenNode

BASE = "/webdav/acc/proj"
ENTRY = f"{BASE}/prefix/0/1/2/{'0' * 64}"
CHECK = f"{BASE}/prefix/.sccache_check"
ALLPROP = b'<?xml version="1.0"?><D:propfind xmlns:D="DAV:"><D:allprop/></D:propfind>'

DAV = "{DAV:}"


class Described(NamedTuple):
    """One response of a multistatus; collections have no size."""

    href: str
    size: int | None
    modified: str


async def propfind(
    served: ServedNode, path: str, depth: str | None = "0", body: bytes = ALLPROP
) -> httpx.Response:
    headers = {} if depth is None else {"depth": depth}
    return await served.client.request("PROPFIND", path, headers=headers, content=body)


def described(answer: httpx.Response) -> list[Described]:
    assert answer.status_code == 207
    assert answer.headers["content-type"] == "application/xml; charset=utf-8"
    return [one(response) for response in ET.fromstring(answer.content)]


def one(response: ET.Element) -> Described:
    propstat = response.find(f"{DAV}propstat")
    assert propstat is not None
    assert propstat.findtext(f"{DAV}status") == "HTTP/1.1 200 OK"
    href, size = response.findtext(f"{DAV}href"), propstat.findtext(f"*/{DAV}getcontentlength")
    modified = propstat.findtext(f"*/{DAV}getlastmodified")
    assert href is not None
    assert modified is not None
    is_collection = propstat.find(f"*/{DAV}resourcetype/{DAV}collection") is not None
    assert propstat.find(f"*/{DAV}resourcetype") is not None
    assert is_collection == href.endswith("/") == (size is None)
    return Described(href, None if size is None else int(size), modified)


def listed(answer: httpx.Response) -> dict[str, int | None]:
    return {found.href: found.size for found in described(answer)}


# --- what sccache does -------------------------------------------------------------------------------


async def test_start_of_sccache_on_a_fresh_node(served: ServedNode) -> None:
    assert (await served.client.get(CHECK)).status_code == 404
    described(await propfind(served, f"{BASE}/prefix/"))
    assert (await served.client.put(CHECK, content=b"Hello, World!")).status_code == 201
    got = await served.client.get(CHECK)
    assert (got.status_code, got.content) == (200, b"Hello, World!")
    assert (await served.client.put(CHECK, content=b"Hello again!")).status_code == 201
    assert (await served.client.get(CHECK)).content == b"Hello again!"
    await served.assert_nothing_stored()


def _limit(served: ServedNode) -> None:
    served.node.capacity._limit_bytes = 1


def _volume(served: ServedNode) -> None:
    served.node.capacity._volume = lambda: Volume(1_000_000, 0)


@pytest.mark.parametrize("fill", [_limit, _volume])
async def test_check_succeeds_on_a_full_node(served: ServedNode, fill: Callable[[ServedNode], None]) -> None:
    fill(served)
    for content in (b"first", b"second"):
        with fault("write", errno.ENOSPC):
            assert (await served.client.put(CHECK, content=content)).status_code == 201
        assert (await served.client.get(CHECK)).content == content
    assert (await served.client.put(ENTRY, content=b"entry")).status_code == 413
    await served.assert_nothing_stored()


async def test_check_asks_neither_disk_nor_object_store(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise AssertionError

    for name in ("on_disk", "fetch", "ask", "delete"):
        monkeypatch.setattr(served.node.read_through, name, fail)
    assert (await served.client.get(CHECK)).status_code == 404
    assert (await propfind(served, CHECK)).status_code == 404
    assert (await served.client.delete(CHECK)).status_code == 404
    assert (await served.client.put(CHECK, content=b"x")).status_code == 201
    assert (await served.client.get(CHECK)).status_code == 200
    assert (await served.client.delete(CHECK)).status_code == 204


async def test_check_is_of_one_project_and_prefix(served: ServedNode) -> None:
    await served.client.put(CHECK, content=b"x")
    others = (f"{BASE}/.sccache_check", "/webdav/acc/other/prefix/.sccache_check", f"{CHECK}/.sccache_check")
    for other in others:
        assert (await served.client.get(other)).status_code == 404
    assert (await served.client.get(CHECK.replace("acc", "ACC"))).status_code == 200


async def test_check_is_found_described_and_removed(served: ServedNode) -> None:
    assert (await propfind(served, CHECK)).status_code == 404
    await served.client.put(CHECK, content=b"12345")
    assert listed(await propfind(served, CHECK)) == {CHECK: 5}
    async with served.connection() as connection:
        await connection.send(f"HEAD {CHECK} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await connection.answer("HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "5")
        assert await connection.is_usable()
    assert (await served.client.delete(CHECK)).status_code == 204
    assert (await served.client.get(CHECK)).status_code == 404


async def test_memory_for_checks_is_bounded(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await served.client.put(CHECK, content=b"x" * 4_097)).status_code == 413
    assert (await served.client.put(CHECK, content=b"x" * 4_096)).status_code == 201
    monkeypatch.setattr(webdav_probes, "MAX_PROBES", 2)
    checks = [f"{BASE}/{number}/.sccache_check" for number in range(3)]
    for check in (checks[0], checks[1], checks[0], checks[2]):
        assert (await served.client.put(check, content=b"x")).status_code == 201
    assert [(await served.client.get(check)).status_code for check in checks] == [200, 404, 200]


async def test_miss_and_write(served: ServedNode) -> None:
    assert (await served.client.get(ENTRY)).status_code == 404
    parent = ENTRY.rpartition("/")[0]
    (found,) = described(await propfind(served, f"{parent}/"))
    assert (found.href, found.size) == (f"{parent}/", None)
    parsedate_to_datetime(found.modified)
    assert (await served.client.put(ENTRY, content=b"first")).status_code == 201
    assert (await served.client.put(ENTRY, content=b"second")).status_code == 201
    assert (await served.client.get(ENTRY)).content == b"second"


async def test_mkcol_before_and_after_something_is_there(served: ServedNode) -> None:
    parents = [f"{BASE}/prefix/", f"{BASE}/prefix/0/", f"{BASE}/prefix/0/1/2"]
    for path in parents:
        assert (await served.client.request("MKCOL", path)).status_code == 201
    await served.client.put(ENTRY, content=b"x")
    for path in (*parents, f"{BASE}/", BASE):
        assert (await served.client.request("MKCOL", path)).status_code == 405
    assert (await served.client.request("MKCOL", f"{BASE}/other/")).status_code == 201
    for size in (1, 100_000):
        answer = await served.client.request("MKCOL", f"{BASE}/other/", content=b"x" * size)
        assert answer.status_code == 415


# --- what others do ----------------------------------------------------------------------------------


async def test_project_is_there_before_anything_is(served: ServedNode) -> None:
    for path in (f"{BASE}/", BASE):
        assert (await served.client.request("MKCOL", path)).status_code == 405


async def test_options(served: ServedNode) -> None:
    for path in (BASE, f"{BASE}/", ENTRY):
        got = await served.client.options(path)
        assert (got.status_code, got.content, got.headers["dav"]) == (200, b"", "1")
        assert {"PROPFIND", "MKCOL", "PUT"} <= set(got.headers["allow"].split(", "))


async def test_paths_of_any_depth_are_different_files(served: ServedNode) -> None:
    paths = [
        "a",
        "b/a",
        "b+a/a",
        "b%2Ba/a",
        "%40b/a",
        "b/a/a",
        "b/b/a",
        "%252B/a",
        "aa/bb/aabb",
        "aabb",
        "aabb/aa/bb/a",
    ]
    for path in paths:
        assert (await served.client.put(f"{BASE}/{path}", content=path.encode())).status_code == 201
    contents = {(await served.client.get(f"{BASE}/{path}")).content for path in paths}
    assert contents == {path.encode() for path in paths if path != "b+a/a"}  # the same as b%2Ba/a
    for path in paths:
        assert (await served.client.head(f"{BASE}/{path}/deeper")).status_code == 404


async def test_delete(served: ServedNode) -> None:
    assert (await served.client.delete(ENTRY)).status_code == 404
    await served.client.put(ENTRY, content=b"x")
    gone = await served.client.delete(ENTRY)
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await served.client.get(ENTRY)).status_code == 404
    await served.assert_nothing_stored()


async def test_collection_is_not_deleted_with_all_that_is_in_it(served: ServedNode) -> None:
    await served.client.put(ENTRY, content=b"x")
    assert (await served.client.delete(f"{BASE}/prefix/")).status_code == 403
    assert (await served.client.get(ENTRY)).status_code == 200


async def test_file_is_described(served: ServedNode) -> None:
    await served.client.put(ENTRY, content=b"12345")
    (file,) = (served.folder / "artifacts").rglob("0" * 64)
    for depth in ("0", "1"):
        (found,) = described(await propfind(served, ENTRY, depth))
        assert (found.href, found.size) == (ENTRY, 5)
        assert parsedate_to_datetime(found.modified).timestamp() == int(file.stat().st_mtime)


async def test_nothing_is_404_unless_the_path_ends_in_a_slash(served: ServedNode) -> None:
    await served.client.put(ENTRY, content=b"x")
    for path in (f"{BASE}/pre", f"{BASE}/prefix/0/1/2/3", f"{ENTRY}/x", f"{BASE}/{'a' * 255}"):
        assert (await propfind(served, path)).status_code == 404
    assert listed(await propfind(served, f"{BASE}/prefix/0")) == {f"{BASE}/prefix/0/": None}
    assert listed(await propfind(served, BASE)) == {f"{BASE}/": None}
    assert listed(await propfind(served, f"{BASE}/pre/", "1")) == {f"{BASE}/pre/": None}


async def test_listing(served: ServedNode) -> None:
    for path in ("x", "dir/y", "dir/sub/z", "dir/sub/deep/z"):
        await served.client.put(f"{BASE}/{path}", content=path.encode())
    assert listed(await propfind(served, f"{BASE}/", "1")) == {
        f"{BASE}/": None,
        f"{BASE}/dir/": None,
        f"{BASE}/x": 1,
    }
    below = {f"{BASE}/dir/": None, f"{BASE}/dir/sub/": None, f"{BASE}/dir/y": 5}
    assert listed(await propfind(served, f"{BASE}/dir", "1")) == below
    assert listed(await propfind(served, f"{BASE}/dir/", "1")) == below
    await served.client.delete(f"{BASE}/dir/y")
    assert listed(await propfind(served, f"{BASE}/dir/", "1")) == {
        f"{BASE}/dir/": None,
        f"{BASE}/dir/sub/": None,
    }


async def test_names_are_encoded_in_the_answer(served: ServedNode) -> None:
    name = "a&b <c> \"d\" 'e' ü+%2F?#;\ufffe]]>"
    path = "/webdav/A&c/Pröj/".replace("&", "%26").replace("ö", "%C3%B6")
    target = f"{path}{quote(name, safe='')}/{quote(name, safe='')}"
    assert (await served.client.put(target, content=b"x")).status_code == 201
    directory = target.rpartition("/")[0]
    assert listed(await propfind(served, path, "1")) == {path: None, f"{directory}/": None}
    assert listed(await propfind(served, f"{directory}/", "1")) == {f"{directory}/": None, target: 1}
    assert (await served.client.get(target)).content == b"x"


@pytest.mark.parametrize("depth", ["infinity", "Infinity", None])
async def test_infinite_depth_is_refused(served: ServedNode, depth: str | None) -> None:
    got = await propfind(served, f"{BASE}/", depth)
    assert got.status_code == 403
    assert ET.fromstring(got.content).find(f"{DAV}propfind-finite-depth") is not None


async def test_other_depths_are_400(served: ServedNode) -> None:
    for depth in ("2", "", "1,noroot"):
        assert (await propfind(served, f"{BASE}/", depth)).status_code == 400


async def test_too_long_a_listing_is_refused_whole(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await served.client.put(f"{BASE}/{name}", content=b"x")
    monkeypatch.setattr(collections, "MAX_NAMES", 2)
    assert (await propfind(served, f"{BASE}/", "1")).status_code == 403
    assert (await propfind(served, f"{BASE}/", "0")).status_code == 207


HOSTILE = {
    "nothing": b"",
    "no XML": b"\x00\xff<<<",
    "not closed": b"<D:propfind",
    "entities": b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><x>&b;</x>',
    "external entity": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    "deep": b"<a>" * 100_000,
    "long": b"<!--" + b"x" * (3 << 20),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
async def test_body_of_propfind_does_no_harm(served: ServedNode, body: bytes) -> None:
    request = f"PROPFIND {BASE}/ HTTP/1.1\r\nhost: x\r\ndepth: 0\r\ncontent-length: {len(body)}\r\n\r\n"
    answer, usable = await served.raw(request.encode(), body)
    assert (answer.status, usable) == (207, True)
    assert b"root:" not in answer.body


async def test_endless_body_of_propfind_is_cut_off(served: ServedNode) -> None:
    async with served.connection() as connection:
        request = f"PROPFIND {BASE}/ HTTP/1.1\r\nhost: x\r\ndepth: 0\r\ncontent-length: {1 << 40}\r\n\r\n"
        await connection.send(request.encode())
        assert (await connection.answer()).status == 207
        assert await connection.rest() == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "PROPFIND", "MKCOL", "DELETE"])
async def test_path_too_long_for_a_key_is_400(served: ServedNode, method: str) -> None:
    path = f"{BASE}/{'a' * 127}/{'b' * 127}/"
    # A collection that is too long is refused, deleting any collection is not about its length.
    targets = {"MKCOL": [path], "DELETE": [f"{path}c"]}.get(method, [path, f"{path}c"])
    for target in targets:
        for headers in ({"depth": "0"}, {"depth": "1"}):
            assert (await served.client.request(method, target, headers=headers)).status_code == 400
    await served.assert_nothing_stored()


async def test_disk_that_cannot_be_listed_is_no_error_sccache_does_not_know(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("undercroft.api.webdav.list_collection", fail)
    monkeypatch.setattr("undercroft.api.webdav.collection_exists", fail)
    assert (await propfind(served, f"{BASE}/a/", "0")).status_code == 207
    assert (await propfind(served, f"{BASE}/a/", "1")).status_code == 404
    assert (await propfind(served, f"{BASE}/a", "0")).status_code == 404


async def test_scope_sees_its_own_and_what_is_trusted(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scoped(Request):
        def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
            super().__init__(scope, receive, send)
            self.caller = Caller(scope=self.headers.get(b"x-scope", b"").decode() or None)

    monkeypatch.setattr(app, "Request", Scoped)
    scoped = {"x-scope": "pr"}
    for path in ("both", "trusted", ".sccache_check"):
        await served.client.put(f"{BASE}/d/{path}", content=b"1")
    for path in ("both", "own", "own-dir/x"):
        await served.client.put(f"{BASE}/d/{path}", content=b"22", headers=scoped)

    async def names(headers: dict[str, str]) -> dict[str, int | None]:
        answer = await served.client.request("PROPFIND", f"{BASE}/d/", headers={"depth": "1", **headers})
        return {href.removeprefix(f"{BASE}/d/"): size for href, size in listed(answer).items()}

    assert await names({}) == {"": None, "both": 1, "trusted": 1}
    assert await names(scoped) == {"": None, "both": 2, "own": 2, "own-dir/": None, "trusted": 1}
    check = f"{BASE}/d/.sccache_check"
    assert (await served.client.get(check, headers=scoped)).content == b"1"
    await served.client.put(check, content=b"22", headers=scoped)
    assert (await served.client.get(check, headers=scoped)).content == b"22"
    assert (await served.client.get(check)).content == b"1"


async def test_many_writers_into_one_collection(served: ServedNode) -> None:
    puts = (served.client.put(f"{BASE}/d/{number}", content=b"x") for number in range(50))
    assert {answer.status_code for answer in await asyncio.gather(*puts)} == {201}
    assert len(described(await propfind(served, f"{BASE}/d/", "1"))) == 51


async def test_largest_file_is_a_setting(open_node: OpenNode) -> None:
    served = await open_node(uploads={"webdav_max_bytes": 10})
    assert (await served.client.put(ENTRY, content=b"x" * 11)).status_code == 413
    assert (await served.client.put(ENTRY, content=b"x" * 10)).status_code == 201
