"""Trust scopes: who is not trusted reads what is, and writes where nobody trusted looks."""

import asyncio
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.folders import artifact_files
from tests.support.served_node import ServedNode
from tests.support.tiers import directory_store, transferred
from undercroft.auth.tokens import NewToken, create_token
from undercroft.read_through import Lookup, ReadThrough

from .conftest import OpenNode
from .dialects import BAZEL_CAS, CCACHE, DIALECTS, QUERY, DialectCase

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)


class Rig(NamedTuple):
    served: ServedNode
    headers: dict[str, dict[str, str]]

    async def put(self, who: str, dialect: DialectCase, path: str, content: bytes) -> int:
        answer = await self.served.client.request(
            dialect.method, path, content=content, headers=self.headers[who]
        )
        return answer.status_code

    async def get(self, who: str, path: str) -> bytes | None:
        answer = await self.served.client.get(path, headers=self.headers[who])
        assert answer.status_code in (200, 404)
        return answer.content if answer.status_code == 200 else None


@pytest.fixture
async def rig(open_node: OpenNode) -> Rig:
    return await rig_of(await open_node(auth={"mode": "tokens"}))


async def rig_of(served: ServedNode) -> Rig:
    headers = {}
    for name, scope in (("main", None), ("pr", "pr"), ("fork", "fork")):
        token = await create_token(
            served.node.node_database, NewToken(name, ("acc/*",), may_read=True, may_write=True, scope=scope)
        )
        headers[name] = {"authorization": f"Bearer {token.text}"}
    return Rig(served, headers)


@every_dialect
async def test_what_a_scope_writes_only_the_scope_reads(rig: Rig, dialect: DialectCase) -> None:
    path = dialect.path_for(b"from pr")
    assert await rig.put("pr", dialect, path, b"from pr") == dialect.created
    assert await rig.get("pr", path) == b"from pr"
    assert await rig.get("main", path) is None
    assert await rig.get("fork", path) is None
    # What is there for the scope is not there for the others.
    assert await rig.put("main", dialect, path, b"from pr") == dialect.created
    assert await rig.get("fork", path) == b"from pr"


@every_dialect
async def test_a_scope_reads_what_is_trusted_and_never_changes_it(rig: Rig, dialect: DialectCase) -> None:
    path = dialect.path_for(b"trusted")
    assert await rig.put("main", dialect, path, b"trusted") == dialect.created
    assert await rig.get("pr", path) == b"trusted"
    poison = b"trusted" if dialect is BAZEL_CAS else b"poison"
    assert await rig.put("pr", dialect, path, poison) in (dialect.created, dialect.again)
    assert await rig.get("main", path) == b"trusted"
    assert await rig.get("fork", path) == b"trusted"


async def test_a_scope_removes_only_its_own(rig: Rig) -> None:
    path = CCACHE.path("0" * 64)
    await rig.put("main", CCACHE, path, b"trusted")
    await rig.put("pr", CCACHE, path, b"own")
    for _ in range(2):
        answer = await rig.served.client.delete(path, headers=rig.headers["pr"])
        assert answer.status_code == 204
    assert await rig.get("pr", path) == b"trusted"
    assert await rig.get("main", path) == b"trusted"


async def test_key_values(rig: Rig) -> None:
    async def put(who: str, value: str, cas_id: str = "k") -> None:
        body = {"cas_id": cas_id, "entries": [{"value": value}]}
        answer = await rig.served.client.put(
            f"/api/cache/keyvalue{QUERY}", json=body, headers=rig.headers[who]
        )
        assert answer.status_code == 204

    async def get(who: str, cas_id: str = "k") -> str | None:
        answer = await rig.served.client.get(f"/api/cache/keyvalue/{cas_id}{QUERY}", headers=rig.headers[who])
        return answer.json()["entries"][0]["value"] if answer.status_code == 200 else None

    await put("pr", "poison")
    assert [await get(who) for who in ("pr", "main", "fork")] == ["poison", None, None]
    await put("main", "trusted")
    assert [await get(who) for who in ("pr", "main", "fork")] == ["poison", "trusted", "trusted"]
    # An id that is spelled like a scope's is still another.
    await put("main", "trusted", "~pr:x")
    assert await get("pr", "x") is None
    await put("pr", "poison", "x")
    assert await get("main", "~pr:x") == "trusted"


async def test_who_wrote_a_module_in_parts(rig: Rig) -> None:
    query, headers = f"{QUERY}&hash=abcd&name=n", rig.headers["main"] | {"user-agent": "tuist/4"}
    post = rig.served.client.post
    upload = (await post(f"/api/cache/module/start{query}", headers=headers)).json()["upload_id"]
    part = f"/api/cache/module/part{QUERY}&upload_id={upload}&part_number=1"
    assert (await post(part, content=b"1", headers=headers)).status_code == 204
    # Bound to who began it, in whatever scope: another's is not there.
    assert (await post(part, content=b"1", headers=rig.headers["pr"])).status_code == 404
    complete = f"/api/cache/module/complete{QUERY}&upload_id={upload}"
    assert (await post(complete, json={"parts": [1]}, headers=headers)).status_code == 204
    await rig.served.node.artifacts.flush()
    rows = rig.served.rows("SELECT written_by, tool, user_agent FROM cache_artifacts")
    (row,) = rows
    assert (row[0].split()[0], *row[1:]) == ("main", "module", "tuist/4")


async def test_who_wrote_it_is_kept_with_the_artifact(rig: Rig) -> None:
    headers = rig.headers["main"] | {"user-agent": "ccache/4.7.5 \t(test)"}
    await rig.served.client.put(CCACHE.path("0" * 64), content=b"1", headers=headers)
    await rig.get("pr", CCACHE.path("0" * 64))
    await rig.put("pr", CCACHE, CCACHE.path("0" * 64), b"22")
    await rig.served.node.artifacts.flush()
    rows = rig.served.rows("SELECT size_bytes, written_by, tool, user_agent FROM cache_artifacts ORDER BY 1")
    # With the id of the token: after a revocation its name may be another's.
    assert re.fullmatch(r"main \([0-9a-f]{12}\)", rows[0][1])
    assert (rows[0][0], *rows[0][2:]) == (1, "ccache", "ccache/4.7.5 ?(test)")
    assert (rows[1][0], rows[1][1][:3], rows[1][2]) == (2, "pr ", "ccache")
    # To be read does not change who wrote it, and to be written again does.
    await rig.get("main", CCACHE.path("0" * 64))
    await rig.served.node.artifacts.flush()
    assert rig.served.rows("SELECT written_by FROM cache_artifacts ORDER BY size_bytes")[0] == rows[0][1:2]


# --- with an object store ----------------------------------------------------------------------------


class Stalled(NamedTuple):
    """An object store that answers nothing, and what it was asked for."""

    asked: list[str]

    async def get(self, key: str, *_range: object) -> None:
        self.asked.append(key)
        await asyncio.Event().wait()

    async def head(self, key: str) -> None:
        await self.get(key)


@pytest.fixture
async def tiered(open_node: OpenNode, tmp_path: Path) -> Rig:
    store = directory_store(tmp_path / "bucket")
    return await rig_of(await open_node(auth={"mode": "tokens"}, object_store=store))


@pytest.fixture
async def impatient(open_node: OpenNode, tmp_path: Path) -> Rig:
    store = directory_store(tmp_path / "bucket") | {"first_byte_timeout_ms": 50}
    return await rig_of(await open_node(auth={"mode": "tokens"}, object_store=store))


def stall(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Stalled:
    stalled, store = Stalled([]), rig.served.node.object_store
    for name in ("get", "head"):
        monkeypatch.setattr(store, name, getattr(stalled, name))
    return stalled


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_on_disk_waits_for_no_object_store(
    tiered: Rig, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rig, path = tiered, CCACHE.path("0" * 64)
    await rig.put("main", CCACHE, path, b"trusted")
    await transferred(rig.served)
    stalled = stall(rig, monkeypatch)
    answer = await rig.served.client.request(method, path, headers=rig.headers["pr"])
    assert answer.status_code == 200
    assert stalled.asked == []


async def test_a_miss_of_a_scope_waits_once(impatient: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, path = impatient, CCACHE.path("0" * 64)
    deadlines = []
    fetch = ReadThrough.fetch

    async def noted(lookup: ReadThrough, key: str, surely: bool, deadline: float) -> Lookup:
        deadlines.append(deadline)
        return await fetch(lookup, key, surely, deadline)

    monkeypatch.setattr(ReadThrough, "fetch", noted)
    stalled = stall(rig, monkeypatch)
    assert await rig.get("pr", path) is None
    assert len(deadlines) == 2
    assert len(set(deadlines)) == 1
    stalled.asked.clear()
    # After the first question there is no time for a second.
    answer = await rig.served.client.head(CCACHE.path("1" * 64), headers=rig.headers["pr"])
    assert answer.status_code == 404
    assert len(stalled.asked) == 1


async def test_a_scope_finds_its_own_and_what_is_trusted_in_the_object_store(tiered: Rig) -> None:
    rig, own, trusted = tiered, CCACHE.path("0" * 64), CCACHE.path("1" * 64)
    await rig.put("main", CCACHE, own, b"trusted")
    await rig.put("pr", CCACHE, own, b"own")
    await rig.put("main", CCACHE, trusted, b"trusted")
    await transferred(rig.served)
    for key in artifact_files(rig.served.folder):
        await rig.served.node.artifacts.evict(key)
    for path, content in ((own, b"own"), (trusted, b"trusted")):
        head = await rig.served.client.head(path, headers=rig.headers["pr"])
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
        assert await rig.get("pr", path) == content


async def test_a_turborepo_scope_replaces_what_it_would_be_served(rig: Rig) -> None:
    """That the same is there as trusted, behind its own, is of no use to it."""
    path = f"/turborepo/acc/proj/v8/artifacts/{'a' * 16}"

    async def put(who: str, tag: str) -> None:
        headers = rig.headers[who] | {"x-artifact-tag": tag}
        answer = await rig.served.client.put(path, content=tag.encode(), headers=headers)
        assert answer.status_code == 202

    await put("pr", "X")
    await put("main", "Y")
    await put("pr", "Y")
    got = await rig.served.client.get(path, headers=rig.headers["pr"])
    assert (got.headers["x-artifact-tag"], got.content) == ("Y", b"Y")
