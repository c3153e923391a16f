"""Bazel's dialect."""

import asyncio
import hashlib
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.action_results import digest, field, output_directory, output_file, sha256, tree
from tests.support.leaks import open_files
from tests.support.served_node import ServedNode, served_node
from tests.support.tiers import directory_store, transferred
from undercroft.api import complete_actions
from undercroft.api.action_result import named_by_tree
from undercroft.api.artifact_routes import ArtifactRoutes
from undercroft.api.complete_actions import MAX_ACTION_BYTES, PARSED_AT_ONCE_BYTES
from undercroft.api.request import Request
from undercroft.errors import ObjectStoreError
from undercroft.read_through import ReadThrough
from undercroft.storage.open_artifact import OpenArtifact

from .conftest import OpenNode

EMPTY = hashlib.sha256().hexdigest()
BLOB = b"a blob"
DIGEST = hashlib.sha256(BLOB).hexdigest()
CAS = f"/bazel/acc/proj/cas/{DIGEST}"
AC = f"/bazel/acc/proj/ac/{DIGEST}"


async def test_blob(served: ServedNode) -> None:
    assert (await served.client.get(CAS)).status_code == 404
    assert (await served.client.head(CAS)).status_code == 404
    assert (await served.client.put(CAS, content=BLOB)).status_code == 200
    got = await served.client.get(CAS)
    assert (got.status_code, got.content) == (200, BLOB)
    head = await served.client.head(CAS)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BLOB)))


async def test_blob_sent_again(served: ServedNode) -> None:
    for _ in range(2):
        assert (await served.client.put(CAS, content=BLOB)).status_code == 200
    assert served.node.capacity.used == len(BLOB)


async def test_blob_sent_again_heals_one_that_was_damaged_and_not_read_since(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    (file,) = (path for path in (served.folder / "artifacts").rglob("*") if path.is_file())
    file.write_bytes(BLOB[:-1] + b"?")
    assert (await served.client.put(CAS, content=BLOB)).status_code == 200
    assert (await served.client.get(CAS)).content == BLOB
    assert served.node.capacity.used == len(BLOB)


async def test_blob_is_verified(served: ServedNode) -> None:
    refused = await served.client.put(CAS, content=b"another blob")
    assert refused.status_code == 400
    assert "SHA-256" in refused.json()["message"]
    await served.assert_nothing_stored()


async def test_wrong_blob_does_not_hurt_the_one_that_is_there(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    assert (await served.client.put(CAS, content=b"another")).status_code == 400
    assert (await served.client.get(CAS)).content == BLOB


async def test_action_results_take_any_body_and_are_overwritten(served: ServedNode) -> None:
    for body in (b"\x0a\x00", b'{"json": true}', b""):
        assert (await served.client.put(AC, content=body)).status_code == 200
        assert (await served.client.get(AC)).content == body


async def test_actions_and_blobs_are_apart(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    assert (await served.client.get(AC)).status_code == 404


async def test_empty_blob_always_exists(served: ServedNode) -> None:
    path = f"/bazel/acc/proj/cas/{EMPTY}"
    for method in ("GET", "HEAD"):
        got = await served.client.request(method, path)
        assert (got.status_code, got.headers["content-length"], got.content) == (200, "0", b"")
    assert (await served.client.put(path, content=b"")).status_code == 200
    # moon sends it without saying how long it is.
    answer, usable = await served.raw(f"PUT {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert (answer.status, usable) == (200, True)
    assert (await served.client.get(f"/bazel/acc/proj/ac/{EMPTY}")).status_code == 404


async def test_instances_have_actions_of_their_own_and_share_blobs(served: ServedNode) -> None:
    names = [
        "",
        "one/",
        "two/",
        "one/two/",
        "one+two/",
        "o%20ne/",
        "on%C3%A9/",
        "%252F/",
        "ac/",
        "cas/",
        ".../",
    ]
    for name in names:
        path = f"/bazel/acc/proj/{name}ac/{DIGEST}"
        assert (await served.client.get(path)).status_code == 404, name
        assert (await served.client.put(path, content=name.encode())).status_code == 200
    for name in names:
        assert (await served.client.get(f"/bazel/acc/proj/{name}ac/{DIGEST}")).content == name.encode()
    await served.client.put(f"/bazel/acc/proj/one/cas/{DIGEST}", content=BLOB)
    assert (await served.client.get(CAS)).content == BLOB


@pytest.mark.parametrize(
    "rest",
    [
        f"cas/{DIGEST.upper()}",
        f"cas/{DIGEST[:63]}",
        f"cas/{DIGEST}0",
        f"cas/{'g' * 64}",
        f"other/{DIGEST}",
        "cas",
        "cas/",
        f"cas/{DIGEST}/",
        f"/cas/{DIGEST}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_what_is_no_entry_is_400(served: ServedNode, method: str, rest: str) -> None:
    refused = await served.client.request(method, f"/bazel/acc/proj/{rest}", content=BLOB)
    assert refused.status_code == 400
    assert refused.json()["message"]
    await served.assert_nothing_stored()


async def test_long_instance_name(served: ServedNode) -> None:
    assert (await served.client.put(f"/bazel/a/p/{'i' * 250}/ac/{DIGEST}", content=b"x")).status_code == 200
    assert (
        await served.client.put(f"/bazel/a/p/{'i' * 200}/{'j' * 200}/ac/{DIGEST}", content=b"x")
    ).status_code == 400


async def test_a_hundred_uploads_at_once(served: ServedNode) -> None:
    blobs = [b"blob %d" % number for number in range(100)]
    paths = [f"/bazel/acc/proj/cas/{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
    puts = await asyncio.gather(*(served.client.put(p, content=b) for p, b in zip(paths, blobs, strict=True)))
    assert {put.status_code for put in puts} == {200}
    assert [(await served.client.get(path)).content for path in paths] == blobs


async def test_offered_compression_is_not_used(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    got = await served.client.get(CAS, headers={"accept-encoding": "zstd,gzip"})
    assert "content-encoding" not in got.headers
    assert got.content == BLOB


# --- action results whose blobs are gone --------------------------------------------------------------


async def put_blobs(served: ServedNode, *blobs: bytes) -> None:
    for blob in blobs:
        path = f"/bazel/acc/proj/cas/{sha256(blob)}"
        assert (await served.client.put(path, content=blob)).status_code == 200


async def put_action(served: ServedNode, result: bytes) -> None:
    assert (await served.client.put(AC, content=result)).status_code == 200


async def is_served(served: ServedNode, result: bytes) -> bool:
    """Whether GET and HEAD, which must agree, give the action result."""
    got = await served.client.get(AC)
    head = await served.client.head(AC)
    assert got.status_code == head.status_code
    assert got.status_code in (200, 404)
    assert got.status_code == 404 or got.content == result
    return got.status_code == 200


async def evict(served: ServedNode, blob: bytes) -> None:
    digest_ = sha256(blob)
    await served.node.artifacts.evict(f"acc/proj/bazel_cas/{digest_[:2]}/{digest_[2:4]}/{digest_}")


FILE, DEEP, OUTPUT = b"a file", b"a file deep inside", b"what it printed"
TREE = tree([FILE], [], [DEEP])
NAMING = {
    "file": (output_file(FILE), [FILE]),
    "tree": (output_directory(TREE), [TREE, FILE, DEEP]),
    "stdout": (field(6, digest(OUTPUT)), [OUTPUT]),
    "stderr": (field(8, digest(OUTPUT)), [OUTPUT]),
    "all": (
        output_file(FILE) + output_directory(TREE) + field(6, digest(OUTPUT)),
        [TREE, DEEP, FILE, OUTPUT],
    ),
}


@pytest.mark.parametrize(("result", "blobs"), NAMING.values(), ids=NAMING.keys())
async def test_an_action_result_with_all_its_blobs(
    served: ServedNode, result: bytes, blobs: list[bytes]
) -> None:
    await put_action(served, result)
    for missing in blobs:
        await put_blobs(served, *blobs)
        assert await is_served(served, result)
        await evict(served, missing)
        assert not await is_served(served, result), missing
    await put_blobs(served, *blobs)
    assert await is_served(served, result)


async def test_what_was_looked_into_is_closed(served: ServedNode) -> None:
    await put_blobs(served, TREE, FILE)
    await put_action(served, output_directory(TREE))
    for _ in range(10):
        assert not await is_served(served, b"")
    await served.requests_ended()
    # One may be open because reconcile looks at it right now.
    assert len(open_files(served.folder / "artifacts")) <= 1


async def test_what_needs_no_blob(served: ServedNode) -> None:
    for result in (
        output_file(b""),
        output_file(FILE, contents=FILE),
        field(5, OUTPUT) + field(6, digest(OUTPUT)),
        output_file(FILE)[:-1],
        b'{"exitCode": 0}',
    ):
        await put_action(served, result)
        assert await is_served(served, result), result


async def test_blobs_of_another_project_do_not_count(served: ServedNode) -> None:
    await served.client.put(f"/bazel/acc/other/cas/{sha256(FILE)}", content=FILE)
    await put_action(served, output_file(FILE))
    assert not await is_served(served, output_file(FILE))


async def test_instances_share_the_blobs_that_their_actions_name(served: ServedNode) -> None:
    path = f"/bazel/acc/proj/one/ac/{DIGEST}"
    await served.client.put(path, content=output_file(FILE))
    assert (await served.client.get(path)).status_code == 404
    await put_blobs(served, FILE)
    assert (await served.client.get(path)).status_code == 200


async def test_blobs_named_by_a_tree_that_is_none(served: ServedNode) -> None:
    await put_blobs(served, b"no tree")
    await put_action(served, output_directory(b"no tree"))
    assert await is_served(served, output_directory(b"no tree"))


async def test_so_many_outputs_that_they_are_not_counted(served: ServedNode) -> None:
    padding = field(20, b"x" * MAX_ACTION_BYTES)
    await put_action(served, output_file(FILE) + padding)
    assert await is_served(served, output_file(FILE) + padding)
    # A shorter one is read, beside the event loop.
    await put_action(served, field(20, b"x" * (MAX_ACTION_BYTES // 2)) + output_file(FILE))
    assert not await is_served(served, b"")


async def test_trees_so_large_that_they_are_not_read(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complete_actions, "MAX_TREE_BYTES", len(TREE))
    second = tree([OUTPUT])
    result = output_directory(TREE) + output_directory(second)
    await put_action(served, result)
    await put_blobs(served, TREE, FILE, DEEP, second)
    assert await is_served(served, result)
    await evict(served, second)
    assert not await is_served(served, result)
    # Nor is one checked for more because it is known from elsewhere.
    await put_blobs(served, second, OUTPUT)
    other = f"/bazel/acc/proj/ac/{'0' * 64}"
    await served.client.put(other, content=output_directory(second))
    assert (await served.client.get(other)).status_code == 200
    await evict(served, OUTPUT)
    assert (await served.client.get(other)).status_code == 404
    assert await is_served(served, result)


def large_tree(number: int) -> bytes:
    """One that is not read on the event loop."""
    return tree([b"file of %d" % number] * (PARSED_AT_ONCE_BYTES // 64), [FILE])


@pytest.mark.parametrize("blob", [TREE, large_tree(0), b"no tree", b"no tree" * PARSED_AT_ONCE_BYTES])
async def test_a_tree_is_parsed_once(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, blob: bytes
) -> None:
    parsed = []
    content, all_have_it = ArtifactRoutes.content, asyncio.Barrier(8)

    def noted(data: bytes) -> list[str]:
        parsed.append(data)
        return named_by_tree(data)

    async def together(routes: ArtifactRoutes, request: Request, key: str, max_bytes: int) -> bytes | None:
        data = await content(routes, request, key, max_bytes)
        await all_have_it.wait()
        return data

    monkeypatch.setattr(complete_actions, "named_by_tree", noted)
    monkeypatch.setattr(ArtifactRoutes, "content", together)
    result = output_directory(blob)
    await put_blobs(served, blob, FILE, DEEP, b"file of 0")
    await put_action(served, result)
    await asyncio.gather(*(served.client.get(AC) for _ in range(8)))
    assert await is_served(served, result)
    assert len(parsed) == 1
    # Known or not, it must be there.
    await evict(served, blob)
    assert not await is_served(served, result)


async def test_one_parse_at_a_time(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    parsing, most = 0, 0
    to_thread = asyncio.to_thread

    async def slow(*call: Any) -> Any:
        nonlocal parsing, most
        parsing += 1
        most = max(most, parsing)
        for _ in range(3):
            await asyncio.sleep(0)
        try:
            return await to_thread(*call)
        finally:
            parsing -= 1

    monkeypatch.setattr(asyncio, "to_thread", slow)
    padding = field(20, b"x" * PARSED_AT_ONCE_BYTES)
    paths = [f"/bazel/acc/proj/ac/{number:064x}" for number in range(8)]
    for number, path in enumerate(paths):
        await put_blobs(served, large_tree(number), b"file of %d" % number, FILE)
        await served.client.put(path, content=output_directory(large_tree(number)) + padding)
    answers = await asyncio.gather(*map(served.client.get, paths))
    assert {answer.status_code for answer in answers} == {200}
    assert most == 1


async def test_many_blobs_are_asked_for_a_few_at_a_time(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [b"blob %d" % number for number in range(100)]
    result = b"".join(map(output_file, blobs))
    await put_blobs(served, *blobs)
    await put_action(served, result)
    asking, most = 0, 0
    on_disk = ReadThrough.on_disk

    async def slow(lookup: ReadThrough, key: str, surely: bool = False) -> OpenArtifact | None:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        for _ in range(3):
            await asyncio.sleep(0)
        asking -= 1
        return await on_disk(lookup, key, surely)

    monkeypatch.setattr(ReadThrough, "on_disk", slow)
    assert (await served.client.get(AC)).status_code == 200
    assert most == complete_actions.BLOBS_AT_ONCE
    await evict(served, blobs[-1])
    assert (await served.client.get(AC)).status_code == 404


async def test_blobs_in_the_object_store_count(tmp_path: Path) -> None:
    result, blobs = NAMING["all"]
    store = directory_store(tmp_path / "bucket")
    async with served_node(tmp_path / "one", object_store=store) as one:
        await put_blobs(one, *blobs)
        await put_action(one, result)
        await transferred(one)
    async with served_node(tmp_path / "two", object_store=store) as two:
        assert await is_served(two, result)
        digest_ = sha256(DEEP)
        (tmp_path / f"bucket/acc/proj/bazel_cas/{digest_[:2]}/{digest_[2:4]}/{digest_}").unlink()
        assert not await is_served(two, result)


async def test_an_object_store_that_cannot_be_asked_has_no_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served_node(tmp_path / "one", object_store=directory_store(tmp_path / "bucket")) as served:
        await put_blobs(served, FILE, OUTPUT)
        await transferred(served)
        assert served.node.object_store is not None

        async def down(_key: str) -> None:
            raise ObjectStoreError("down")

        monkeypatch.setattr(served.node.object_store, "head", down)
        await put_action(served, output_file(FILE) + output_file(OUTPUT))
        assert await is_served(served, output_file(FILE) + output_file(OUTPUT))
        await evict(served, FILE)
        assert not await is_served(served, b"")


# --- moon --------------------------------------------------------------------------------------------


async def test_status(served: ServedNode) -> None:
    assert (await served.client.get("/bazel/acc/status")).status_code == 200
    assert (await served.client.get("/bazel/acc/other")).status_code == 404
    (route,) = (
        route
        for route in served.node.application._router.routes
        if route.path == "/bazel/{account}/{project}"
    )
    assert route.needs == "nothing"


async def test_a_project_may_be_called_status(served: ServedNode) -> None:
    path = f"/bazel/acc/status/cas/{DIGEST}"
    assert (await served.client.put(path, content=BLOB)).status_code == 200
    assert (await served.client.get(path)).content == BLOB


# --- uploads that are compressed ---------------------------------------------------------------------

ZSTD = {"content-encoding": "zstd"}


def compressed(data: bytes, **parameters: Any) -> bytes:
    return zstandard.ZstdCompressor(**parameters).compress(data)


@pytest.mark.parametrize("size", [0, 1, 1_000, 300_000, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_compressed_uploads(served: ServedNode, size: int, chunked: bool) -> None:
    data = os.urandom(size // 2) + b"x" * (size - size // 2)
    sent = compressed(data)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(sent), 997):
            yield sent[start : start + 997]

    for path in (f"/bazel/acc/proj/cas/{sha256(data)}", AC):
        put = await served.client.put(path, content=pieces() if chunked else sent, headers=ZSTD)
        assert put.status_code == 200
        got = await served.client.get(path, headers={"accept-encoding": "zstd"})
        assert got.content == data
        assert "content-encoding" not in got.headers


async def test_compressed_upload_of_several_frames(served: ServedNode) -> None:
    frames = [b"one", b"", b"two" * 1_000]
    sent = b"".join(map(compressed, frames))
    path = f"/bazel/acc/proj/cas/{sha256(b''.join(frames))}"
    assert (
        await served.client.put(path, content=sent, headers={"content-encoding": "ZSTD"})
    ).status_code == 200
    assert (await served.client.get(path)).content == b"".join(frames)


WIDE = zstandard.ZstdCompressionParameters(window_log=27)
BROKEN = {
    "another encoding": (b"\x1f\x8b\x08\x00 no zstd", "not zstd"),
    "as it is": (BLOB, "not zstd"),
    "cut": (compressed(BLOB)[:-1], "no end"),
    "garbage behind": (compressed(BLOB) + b"garbage", "not zstd"),
    "too much memory": (compressed(os.urandom(9 << 20), compression_params=WIDE), "memory"),
    "damaged": (compressed(BLOB * 10)[:-3] + b"xyz", "not zstd"),
}


@pytest.mark.parametrize(("sent", "why"), BROKEN.values(), ids=BROKEN.keys())
async def test_compressed_upload_that_is_broken(served: ServedNode, sent: bytes, why: str) -> None:
    refused = await served.client.put(AC, content=sent, headers=ZSTD)
    assert refused.status_code == 400
    assert why in refused.json()["message"]
    await served.assert_nothing_stored()


async def test_compressed_blob_is_verified(served: ServedNode) -> None:
    refused = await served.client.put(CAS, content=compressed(b"another blob"), headers=ZSTD)
    assert refused.status_code == 400
    assert "SHA-256" in refused.json()["message"]
    await served.assert_nothing_stored()


@pytest.mark.parametrize("size", [4_001, 100_000_000])
async def test_decompression_ends_at_the_limit(open_node: OpenNode, size: int) -> None:
    served = await open_node(uploads={"bazel_max_bytes": 4_000}, disk={"limit_bytes": 1_000_000})
    bomb = compressed(bytes(size))
    assert len(bomb) < 4_000
    for path in (f"/bazel/acc/proj/cas/{'0' * 64}", AC):
        tracemalloc.start()
        refused = await served.client.put(path, content=bomb, headers=ZSTD)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert refused.status_code == 413
        assert "more than 4000 bytes" in refused.json()["message"]
        assert peak < 40 << 20
    await served.assert_nothing_stored()


async def test_content_at_the_limit(open_node: OpenNode) -> None:
    served = await open_node(uploads={"bazel_max_bytes": 1_000})
    assert (await served.client.put(AC, content=compressed(b"x" * 1_000), headers=ZSTD)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd, gzip", "br"])
async def test_other_encodings(served: ServedNode, encoding: str) -> None:
    refused = await served.client.put(AC, content=BLOB, headers={"content-encoding": encoding})
    assert refused.status_code == 415
    assert refused.json()["message"]
    await served.assert_nothing_stored()
    same = await served.client.put(AC, content=BLOB, headers={"content-encoding": "identity"})
    assert same.status_code == 200
