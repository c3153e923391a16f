"""Artifacts that are asked for in the same words: what is on the disk is served, and nothing else."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.action_results import output_file, sha256
from tests.support.artifact_rig import ArtifactRig
from tests.support.folders import artifact_files, files_under
from tests.support.same_words import Reply, SameWords, same_words
from tests.support.served_node import ServedNode
from undercroft.api.responses import SMALL_BYTES
from undercroft.telemetry import events

from .conftest import OpenNode
from .dialects import BAZEL_AC, CCACHE, DIALECTS, GRADLE, TURBOREPO, WEBDAV, DialectCase
from .test_repeats import clean

DATA = b"first bytes"
OTHER = b"other bytes"  # of the same size

IN_FULL = (BAZEL_AC, TURBOREPO)
"""Those that look into what they serve, each time."""

REPEATED = [dialect for dialect in DIALECTS if dialect not in IN_FULL]

every_dialect = pytest.mark.parametrize("dialect", REPEATED, ids=lambda dialect: dialect.name)
replacing = pytest.mark.parametrize("dialect", [GRADLE, CCACHE, WEBDAV], ids=lambda dialect: dialect.name)
deleting = pytest.mark.parametrize("dialect", [CCACHE, WEBDAV], ids=lambda dialect: dialect.name)


async def put(served: ServedNode, dialect: DialectCase, path: str, data: bytes = DATA) -> None:
    assert (await served.client.request(dialect.method, path, content=data)).is_success


def key_of_the_only_one(served: ServedNode) -> str:
    (key,) = artifact_files(served.folder)
    return key


def file_of_the_only_one(served: ServedNode) -> Path:
    return served.folder / "artifacts" / key_of_the_only_one(served)


async def is_miss(ask: SameWords) -> bool:
    return [((await ask()).status, (await ask()).repeated) for _ in range(2)] == [(404, False)] * 2


def told_of_downloads(served: ServedNode) -> list[tuple[str, str, str, float]]:
    told: list[tuple[str, str, str, float]] = []
    served.node.telemetry.attach(
        events.DOWNLOAD,
        lambda measured, of: told.append((of["tool"], of["project"], of["result"], measured["bytes"])),
    )
    return told


# --- what is the same --------------------------------------------------------------------------------


@every_dialect
async def test_answers_differ_in_nothing_but_id_and_date(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path_for(DATA)
    await put(served, dialect, path)
    async with same_words(served, path) as ask, same_words(served, path) as other:
        replies = [await ask(), await ask(), await other(), await ask()]
    assert [reply.repeated for reply in replies] == [False, True, True, True]
    assert {(reply.status, reply.body) for reply in replies} == {(200, DATA)}
    assert len({reply.common for reply in replies}) == 1
    assert len({reply.headers["x-request-id"] for reply in replies}) == 4
    assert all(reply.headers["date"].endswith(" GMT") for reply in replies)
    assert replies[1].headers["etag"] == dialect.etag(DATA)


@every_dialect
async def test_each_download_is_counted_once(served: ServedNode, dialect: DialectCase) -> None:
    told, path = told_of_downloads(served), dialect.path_for(DATA)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        assert sum([(await ask()).repeated for _ in range(5)]) == 4
        file_of_the_only_one(served).unlink()
        assert (await ask()).status == 404
    of = (dialect.tool, "acc/proj")
    assert told == [(*of, "hit", len(DATA))] * 5 + [(*of, "miss", 0)]
    metrics = (await served.client.get("/metrics")).text.splitlines()
    downloads = f'undercroft_artifact_downloads_total{{result="hit",tool="{dialect.tool}"}} 5.0'
    size = f'undercroft_artifact_download_bytes_total{{tool="{dialect.tool}"}} {5.0 * len(DATA)}'
    assert {downloads, size} <= {*metrics}


@every_dialect
async def test_who_names_the_request_gets_that_name(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path_for(DATA)
    await put(served, dialect, path)
    async with same_words(served, path, x_request_id="mine") as ask:
        assert {(await ask()).headers["x-request-id"] for _ in range(3)} == {"mine"}


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 3 << 20])
async def test_artifacts_of_any_size(served: ServedNode, size: int) -> None:
    told, path, data = told_of_downloads(served), CCACHE.path("k"), os.urandom(size)
    await put(served, CCACHE, path, data)
    async with same_words(served, path) as ask:
        assert (await ask()).body == data
        reply = await ask.twice()
    assert (reply.body, reply.repeated) == (data, size <= SMALL_BYTES)
    assert [measured for *_, measured in told] == [size] * 3


@every_dialect
async def test_head(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path_for(DATA)
    await put(served, dialect, path)
    async with same_words(served, path, method="HEAD") as ask, same_words(served, path) as get:
        assert (await get.twice()).body == DATA
        reply = await ask.twice()
        assert (reply.status, reply.headers["content-length"]) == (200, str(len(DATA)))
        file_of_the_only_one(served).unlink()
        assert (await ask()).status == (await get()).status == 404


@pytest.mark.parametrize("dialect", IN_FULL, ids=lambda dialect: dialect.name)
async def test_what_is_looked_into_is_asked_in_full(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path("0" * 64)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        reply = await ask.twice()
        assert (reply.status, reply.body, reply.repeated) == (200, DATA, False)
        file_of_the_only_one(served).unlink()
        assert (await ask()).status == 404


async def test_an_action_result_whose_blob_went_away_is_a_miss(served: ServedNode) -> None:
    action, blob = BAZEL_AC.path("0" * 64), sha256(DATA)
    await served.client.put(f"/bazel/acc/proj/cas/{blob}", content=DATA)
    await served.client.put(action, content=output_file(DATA))
    async with same_words(served, action) as ask:
        assert (await ask.twice()).body == output_file(DATA)
        await served.node.artifacts.evict(f"acc/proj/bazel_cas/{blob[:2]}/{blob[2:4]}/{blob}")
        assert await is_miss(ask)
        await served.client.put(f"/bazel/acc/proj/cas/{blob}", content=DATA)
        assert (await ask.twice()).body == output_file(DATA)


async def test_what_a_proxy_sends_is_asked_for_in_full(open_node: OpenNode) -> None:
    served = await open_node(http={"accel_redirect": "/files/"})
    path = CCACHE.path("k" * 8)
    await put(served, CCACHE, path)
    async with same_words(served, path) as ask:
        reply = await ask.twice()
        assert (reply.status, reply.body, reply.repeated) == (200, b"", False)
        assert reply.headers["x-accel-redirect"] == f"/files/{key_of_the_only_one(served)}"
        file_of_the_only_one(served).unlink()
        assert await is_miss(ask)


# --- what is another, or gone ------------------------------------------------------------------------


def is_new(reply: Reply, dialect: DialectCase, data: bytes) -> bool:
    return (reply.status, reply.body, reply.headers["etag"]) == (200, data, dialect.etag(data))


@replacing
@pytest.mark.parametrize("data", [OTHER, b"longer than the first bytes", b""])
async def test_the_newest_bytes_are_served(served: ServedNode, dialect: DialectCase, data: bytes) -> None:
    path = dialect.path("k" * 8)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        assert is_new(await ask.twice(), dialect, DATA)
        await put(served, dialect, path, data)
        replies = [await ask(), await ask()]
        assert all(is_new(reply, dialect, data) for reply in replies)
        assert [reply.repeated for reply in replies] == [False, True]


@replacing
async def test_bytes_that_come_back_are_served(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path("k" * 8)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        first = await ask.twice()
        await put(served, dialect, path, OTHER)
        await put(served, dialect, path)
        assert (await ask()).common == first.common


@replacing
async def test_what_another_process_stored_is_served(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path("k" * 8)
    await put(served, dialect, path)
    key = key_of_the_only_one(served)
    other = await ArtifactRig(served.folder).open()
    try:
        async with same_words(served, path) as ask:
            assert is_new(await ask.twice(), dialect, DATA)
            await other.store(OTHER, key=key, replace=True)
            assert is_new(await ask.twice(), dialect, OTHER)
            await other.artifacts.delete(key)
            assert await is_miss(ask)
            await other.store(DATA, key=key)
            reply = await ask.twice()
            assert (reply.common, reply.repeated) == ((await ask()).common, True)
            assert is_new(reply, dialect, DATA)
    finally:
        await other.close()


async def evict(served: ServedNode) -> None:
    assert await served.node.artifacts.evict(key_of_the_only_one(served)) == len(DATA)


async def take_away(served: ServedNode) -> None:
    file_of_the_only_one(served).unlink()


async def damage(served: ServedNode) -> None:
    file_of_the_only_one(served).write_bytes(OTHER)


async def cut(served: ServedNode) -> None:
    os.truncate(file_of_the_only_one(served), 3)


async def quarantine(served: ServedNode) -> None:
    file = file_of_the_only_one(served)
    assert served.node.disk.quarantine(key_of_the_only_one(served), file.stat().st_ino)


async def put_a_link_there(served: ServedNode) -> None:
    file = file_of_the_only_one(served)
    file.rename(served.folder / "elsewhere")
    file.symlink_to(served.folder / "elsewhere")


@every_dialect
@pytest.mark.parametrize(
    "go", [clean, evict, take_away, damage, cut, quarantine, put_a_link_there], ids=lambda go: go.__name__
)
async def test_what_is_gone_is_a_miss_until_it_is_stored_anew(
    served: ServedNode, dialect: DialectCase, go: Callable[[ServedNode], Awaitable[None]]
) -> None:
    path = dialect.path_for(DATA)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        first = await ask.twice()
        assert first.repeated
        await go(served)
        assert await is_miss(ask)
        quarantined = len(files_under(served.folder / "quarantine"))
        assert quarantined == (go in (damage, cut, quarantine))
        await put(served, dialect, path)
        reply = await ask.twice()
        assert (reply.common, reply.repeated) == (first.common, True)


@deleting
async def test_what_was_deleted_is_a_miss(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path("k" * 8)
    await put(served, dialect, path)
    async with same_words(served, path) as ask:
        assert (await ask.twice()).repeated
        assert (await served.client.delete(path)).status_code == 204
        assert await is_miss(ask)
        await put(served, dialect, path, OTHER)
        assert is_new(await ask.twice(), dialect, OTHER)


# --- parts and conditions ----------------------------------------------------------------------------


@replacing
async def test_a_part_that_is_asked_for_in_the_same_words(served: ServedNode, dialect: DialectCase) -> None:
    path = dialect.path("k" * 8)
    await put(served, dialect, path)
    async with same_words(served, path, range="bytes=2-5") as ask, same_words(served, path) as whole:
        for data in (DATA, OTHER, b"other bytes, and more", b"01", DATA):
            await put(served, dialect, path, data)
            reply, all_of_it = await ask.twice(), await whole.twice()
            assert is_new(all_of_it, dialect, data)
            assert (reply.status, reply.body) == ((206, data[2:6]) if len(data) > 2 else (416, b""))
            assert reply.headers["content-range"].endswith(f"/{len(data)}")
            assert (reply.headers["etag"], reply.repeated) == (dialect.etag(data), False)


@replacing
@pytest.mark.parametrize("condition", ["if_range", "if_none_match"])
async def test_a_condition_in_the_same_words(
    served: ServedNode, dialect: DialectCase, condition: str
) -> None:
    """It is met by some of the bytes that come and go under the key."""
    path = dialect.path("k" * 8)
    headers = {condition: dialect.etag(DATA)} | ({"range": "bytes=2-5"} if condition == "if_range" else {})
    met = (206, DATA[2:6]) if condition == "if_range" else (304, b"")
    await put(served, dialect, path)
    async with same_words(served, path, body=b"", **headers) as ask:
        for data in (DATA, OTHER, DATA, b"third", DATA):
            await put(served, dialect, path, data)
            reply = await ask.twice()
            assert (reply.status, reply.body) == (met if data is DATA else (200, data))
            assert (reply.headers["etag"], reply.repeated) == (dialect.etag(data), data is not DATA)
