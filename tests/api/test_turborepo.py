"""Turborepo's dialect."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.folders import artifact_files
from tests.support.leaks import open_files
from tests.support.served_node import ServedNode, served_node
from tests.support.tiers import directory_store, transferred
from undercroft.api.dialects import answers_for
from undercroft.api.turborepo_labels import Labels, preamble
from undercroft.config import Settings
from undercroft.node import Node, running
from undercroft.read_through import WHOLE_BYTES

from .conftest import OpenNode

BASE = "/turborepo/acc/proj/v8/artifacts"
HASH = "0123456789abcdef"
PATH = f"{BASE}/{HASH}"
KEY = f"acc/proj/turborepo/01/23/{HASH}"
DATA = b"an archive"
LABELS = {
    "x-artifact-duration": "01234",
    "x-artifact-tag": "c2lnbmF0dXJl+/==",
    "x-artifact-sha": "980814105b16508166e94445e06ed1672282b152",
    "x-artifact-dirty-hash": "beeea039d9f34f82",
}
ABSENT = "f" * 16


def labels(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-artifact-")}


async def put(served: ServedNode, data: bytes = DATA, headers: dict[str, str] | None = None) -> int:
    answer = await served.client.put(PATH, content=data, headers=LABELS if headers is None else headers)
    if answer.status_code == 202:
        assert answer.json() == {"urls": []}
    else:
        assert set(answer.json()) == {"message"}
    return answer.status_code


async def test_status(served: ServedNode) -> None:
    answer = await served.client.get(f"{BASE}/status?teamId=team_x&slug=y")
    assert (answer.status_code, answer.json()) == (200, {"status": "enabled"})


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_labels_are_echoed_as_they_came(served: ServedNode, method: str) -> None:
    assert await put(served, headers=LABELS | {"x-artifact-client-ci": "GITHUB_ACTIONS"}) == 202
    got = await served.client.request(method, f"{PATH}?slug=other")
    assert (got.status_code, got.content) == (200, DATA if method == "GET" else b"")
    assert labels(got) == LABELS
    assert got.headers["content-length"] == str(len(DATA))
    part = await served.client.request(method, PATH, headers={"range": "bytes=3-9"})
    assert (part.content, labels(part)) == (DATA[3:] if method == "GET" else b"", LABELS)


async def test_only_labels_that_came_are_echoed(served: ServedNode) -> None:
    assert await put(served, headers={"x-artifact-duration": "0"}) == 202
    assert labels(await served.client.get(PATH)) == {"x-artifact-duration": "0"}


GOOD = [
    ("x-artifact-tag", "!" * 600),
    ("x-artifact-tag", "~"),
    ("x-artifact-duration", str(1 << 53)),
    ("x-artifact-duration", "0"),
    ("x-artifact-sha", "x" * 256),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
async def test_labels_at_their_bounds(served: ServedNode, name: str, value: str) -> None:
    assert await put(served, headers={name: value}) == 202
    assert labels(await served.client.get(PATH)) == {name: value}


BAD = [
    *(("x-artifact-tag", value) for value in ("", "a" * 601, "a b", "a\tb", "ä")),
    *(("x-artifact-duration", value) for value in ("", "-1", "1.5", "1e3", "0x1", "a", "9" * 17, "²")),
    ("x-artifact-duration", str((1 << 53) + 1)),
    *(("x-artifact-sha", value) for value in ("", "a" * 257, "a b", "ä")),
    ("x-artifact-dirty-hash", "a b"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
async def test_malformed_labels(served: ServedNode, name: str, value: str) -> None:
    answer = await served.client.put(PATH, content=DATA, headers={name.encode(): value.encode("latin-1")})
    assert answer.status_code == 400
    assert set(answer.json()) == {"message"}
    await served.assert_nothing_stored()


@pytest.mark.parametrize("bad", ["0" * 15, "0" * 17, "A" * 16, "g" * 16, "0" * 15 + "%0A", "events"])
async def test_what_is_no_hash(served: ServedNode, bad: str) -> None:
    for method in ("GET", "HEAD", "PUT"):
        answer = await served.client.request(method, f"{BASE}/{bad}", content=DATA)
        assert answer.status_code == 400


@pytest.mark.parametrize("signature", [{}, {"x-artifact-tag": "same"}])
async def test_the_first_upload_stays(served: ServedNode, signature: dict[str, str]) -> None:
    first = signature | {"x-artifact-duration": "1"}
    assert await put(served, DATA, first) == 202
    assert await put(served, b"another archive", signature | {"x-artifact-duration": "2"}) == 202
    got = await served.client.get(PATH)
    assert (got.content, labels(got)) == (DATA, first)


async def test_an_upload_with_another_signature_replaces(served: ServedNode) -> None:
    """Else whoever signs with a new key would never find anything that was stored before."""
    unsigned: dict[str, str] = {}
    for signed in (unsigned, {"x-artifact-tag": "old"}, {"x-artifact-tag": "new"}, unsigned):
        data = repr(signed).encode()
        assert await put(served, data, signed) == 202
        got = await served.client.get(PATH)
        assert (got.content, labels(got)) == (data, signed)


async def test_uploads_at_once_never_mix_labels_and_bytes(served: ServedNode) -> None:
    for number in range(8):
        path = f"{BASE}/{number:016x}"
        bodies = [os.urandom(1_000 * size) for size in range(1, 9)]
        tags = {hashlib.sha256(body).hexdigest(): body for body in bodies}
        uploads = (
            served.client.put(path, content=body, headers={"x-artifact-tag": tag})
            for tag, body in tags.items()
        )
        assert {answer.status_code for answer in await asyncio.gather(*uploads)} == {202}
        got = await served.client.get(path)
        assert got.content == tags[got.headers["x-artifact-tag"]]


# --- labels live as long as the bytes ----------------------------------------------------------------


async def test_labels_survive_a_restart(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served:
        assert await put(served) == 202
    node = Node(Settings(data_dir=tmp_path / "data", port=0))
    async with running(node), httpx.AsyncClient(base_url=node.url) as client:
        got = await client.get(PATH)
    assert (got.content, labels(got)) == (DATA, LABELS)


@pytest.mark.parametrize("data", [DATA, b"", os.urandom(WHOLE_BYTES), os.urandom(3 * WHOLE_BYTES)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_labels_come_from_the_object_store(tmp_path: Path, data: bytes, method: str) -> None:
    store = directory_store(tmp_path / "bucket")
    async with served_node(tmp_path / "one", object_store=store) as one:
        assert await put(one, data) == 202
        await transferred(one)
    async with served_node(tmp_path / "two", object_store=store) as two:
        for _ in range(2):
            got = await two.client.request(method, PATH)
            assert (got.status_code, got.content) == (200, data if method == "GET" else b"")
            assert got.headers["content-length"] == str(len(data))
            assert labels(got) == LABELS


async def test_labels_come_back_after_an_eviction(tmp_path: Path) -> None:
    store = directory_store(tmp_path / "bucket")
    async with served_node(tmp_path / "one", object_store=store) as served:
        assert await put(served) == 202
        await transferred(served)
        await served.node.artifacts.evict(KEY)
        assert artifact_files(served.folder) == []
        got = await served.client.get(PATH)
        assert (got.content, labels(got)) == (DATA, LABELS)


def framed(encoded: bytes) -> bytes:
    return b"TURBO\0\0\1" + len(encoded).to_bytes(4, "big") + encoded + DATA


WITHOUT_LABELS = {
    "nothing": b"",
    "short": b"TURBO",
    "no magic": b"X" + framed(b"{}")[1:],
    "cut": framed(b'{"tag":"x"}')[:20],
    "endless": b"TURBO\0\0\1\xff\xff\xff\xff{}",
    "longer than labels are": framed(b"{}" + b" " * 5_000),
    "no JSON": framed(b"{{"),
    "not UTF-8": framed(b'{"tag":"\xff"}'),
    "newline": framed(b'{"tag":"x\\r\\nset-cookie:"}'),
    "newline at the end": framed(b'{"tag":"x\\n"}'),
    "duration": framed(b'{"duration":"9999999999999999"}'),
    "deep": framed(b'{"x":' + b"[" * 4_000),
}


def test_framed() -> None:
    """Else each of these might be a miss for another reason."""
    assert preamble(Labels(tag="x")) + DATA == framed(b'{"tag":"x"}')


@pytest.mark.parametrize("found", WITHOUT_LABELS.values(), ids=WITHOUT_LABELS.keys())
async def test_an_object_without_valid_labels_is_a_miss_until_it_is_written(
    tmp_path: Path, found: bytes
) -> None:
    object_file = tmp_path / "bucket" / KEY
    store = directory_store(tmp_path / "bucket")
    object_file.parent.mkdir(parents=True)
    object_file.write_bytes(found)
    async with served_node(tmp_path / "one", object_store=store) as served:
        for method in ("GET", "HEAD"):
            assert (await served.client.request(method, PATH)).status_code == 404
        assert (await served.client.post(BASE, json={"hashes": [HASH]})).json() == {HASH: None}
        assert await put(served) == 202
        got = await served.client.get(PATH)
        assert (got.content, labels(got)) == (DATA, LABELS)
        await transferred(served)
    assert object_file.read_bytes().endswith(DATA)


async def test_what_was_looked_into_is_closed(tmp_path: Path) -> None:
    store = directory_store(tmp_path / "bucket")
    object_file = tmp_path / "bucket" / KEY
    object_file.parent.mkdir(parents=True)
    object_file.write_bytes(b"without labels")
    good = f"{BASE}/{'a' * 16}"
    async with served_node(tmp_path / "one", object_store=store) as served:
        await served.client.put(good, content=DATA)
        for _ in range(10):
            await served.client.get(PATH)
            await served.client.head(good)
            await served.client.put(good, content=DATA)
            await served.client.post(BASE, json={"hashes": [HASH, "a" * 16]})
        await served.requests_ended()
        # One may be open because reconcile looks at it right now.
        assert len(open_files(served.folder / "artifacts")) <= 1


# --- many at once ------------------------------------------------------------------------------------


async def test_query(served: ServedNode) -> None:
    assert await put(served) == 202
    untagged = "a" * 16
    await served.client.put(f"{BASE}/{untagged}", content=b"")
    answer = await served.client.post(BASE, json={"hashes": [HASH, ABSENT, untagged, HASH]})
    assert answer.status_code == 200
    assert answer.json() == {
        HASH: {"size": len(DATA), "taskDurationMs": 1234, "tag": LABELS["x-artifact-tag"]},
        untagged: {"size": 0, "taskDurationMs": 0},
        ABSENT: None,
    }
    assert (await served.client.post(BASE, json={"hashes": []})).json() == {}


async def test_query_of_as_many_as_are_answered(served: ServedNode) -> None:
    hashes = [f"{number:016x}" for number in range(1_001)]
    assert (await served.client.post(BASE, json={"hashes": hashes})).status_code == 400
    answer = await served.client.post(BASE, json={"hashes": hashes[1:]})
    assert answer.json() == dict.fromkeys(hashes[1:])


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"hashes": 1}', b'{"hashes": ["../x"]}', b'{"hashes": ["\xff"]}']
)
async def test_query_that_is_none(served: ServedNode, body: bytes) -> None:
    assert (await served.client.post(BASE, content=body)).status_code == 400


async def test_json_of_many_megabytes(served: ServedNode) -> None:
    for path in (BASE, f"{BASE}/events"):
        assert (await served.client.post(path, content=b" " * (5 << 20))).status_code == 413


def event(source: str, what: str, duration: Any = 0) -> dict[str, Any]:
    return {
        "sessionId": "6b9ad69c-0a42-4a61-a4e5-0f5b5f0e6a0f",
        "source": source,
        "event": what,
        "hash": HASH,
        "duration": duration,
    }


def reported(served: ServedNode, name: str, **of: str) -> float:
    value = served.node.prometheus.registry.get_sample_value(f"undercroft_turborepo_{name}_total", of)
    assert value is not None
    return value


async def test_events_are_counted(served: ServedNode) -> None:
    told = [
        event("LOCAL", "HIT", 1_500),
        event("LOCAL", "HIT", 500),
        event("LOCAL", "MISS", 700),
        event("REMOTE", "HIT", 250.0),
        event("REMOTE", "MISS"),
        event("MOON", "HIT", 1),
        event("LOCAL", "EVICTED", 1),
    ]
    assert (await served.client.post(f"{BASE}/events", json=told)).status_code == 200
    assert (await served.client.post(f"{BASE}/events", json=told[:1])).status_code == 200
    counts = [
        reported(served, "events", source=s, event=e) for s in ("local", "remote") for e in ("hit", "miss")
    ]
    assert counts == [3, 1, 1, 1]
    assert reported(served, "time_saved_seconds", source="local") == 3.5
    assert reported(served, "time_saved_seconds", source="remote") == 0.25


@pytest.mark.parametrize(
    "told",
    [{}, 1, [1], [{}], [{"source": "LOCAL"}], [event("LOCAL", "HIT", "1")], [event("LOCAL", "HIT", -1)],
     [event("LOCAL", "HIT", (1 << 53) + 2)], [event("LOCAL", "HIT", 10**400)]],
)  # fmt: skip
async def test_events_that_are_none(served: ServedNode, told: Any) -> None:
    assert (await served.client.post(f"{BASE}/events", json=[event("LOCAL", "HIT", 1)])).status_code == 200
    assert (await served.client.post(f"{BASE}/events", json=told)).status_code == 400
    assert reported(served, "events", source="local", event="hit") == 1


# --- what may be sent --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [BASE, PATH, f"{BASE}/events", f"{BASE}/status"])
async def test_preflight(served: ServedNode, path: str) -> None:
    asked = {
        "access-control-request-method": "PUT",
        "access-control-request-headers": "Authorization, User-Agent, x-artifact-duration",
        "authorization": "Bearer token",
    }
    answer = await served.client.options(f"{path}?teamId=team_x", headers=asked)
    assert answer.status_code == 204
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"Authorization", "User-Agent", *LABELS} <= set(allowed)
    assert "PUT" in answer.headers["access-control-allow-methods"].split(", ")
    # A web page must not be able to make a browser write to a node.
    assert "access-control-allow-origin" not in answer.headers


async def test_rights(served: ServedNode) -> None:
    routes = [
        route for route in served.node.application._router.routes if route.path.startswith("/turborepo/")
    ]
    base = "/turborepo/{account}/{project}/v8/artifacts"
    rights = {(route.method, route.path.removeprefix(base)): route.needs for route in routes}
    assert {place: right for place, right in rights.items() if place[0] != "OPTIONS"} == {
        ("GET", "/status"): "read",
        ("GET", "/{hash}"): "read",
        ("HEAD", "/{hash}"): "read",
        ("PUT", "/{hash}"): "write",
        ("POST", ""): "read",
        ("POST", "/events"): "read",
    }
    assert {right for (method, _), right in rights.items() if method == "OPTIONS"} == {"nothing"}


def test_an_error_of_403_is_what_turbo_reads() -> None:
    render = answers_for(PATH.encode()).render
    assert render(403, 'not "yours"') == (
        b'{"error":{"code":"forbidden","message":"not \\"yours\\""}}',
        b"application/json",
    )
    assert render(404, "nothing") == (b'{"message":"nothing"}', b"application/json")


async def test_a_node_that_is_full_is_412(open_node: OpenNode) -> None:
    served = await open_node(disk={"limit_bytes": 1_500})
    with served.node.capacity.reserve(1_000):
        assert await put(served, b"x" * 1_000) == 412
    assert await put(served, b"x" * 2_000) == 413
