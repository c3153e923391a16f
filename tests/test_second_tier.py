"""Reading through and transfers together, over HTTP, against an object store in memory."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support.folders import artifact_files
from tests.support.memory_store import MemoryBody, MemoryStore
from tests.support.served_node import ServedNode, served_node
from undercroft import read_through
from undercroft.errors import ObjectStoreError
from undercroft.node import Node

KEY = "acc/proj/ccache/ab/cd/abcdef"
PATH = "/ccache/acc/proj/abcdef"
OLD, NEW = b"old", b"new content"
LARGE = random.Random(1).randbytes(4 << 20)
BROKEN = ObjectStoreError("broken")

OpenNode = Callable[..., Awaitable[ServedNode]]


class SlowStore(MemoryStore):
    """Its objects do not come before `go`; what comes then is what was there when it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()

    async def get(self, key: str, start: int = 0) -> MemoryBody | None:
        body = await super().get(key, start)
        await self.go.wait()
        return body


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    made = SlowStore()
    monkeypatch.setattr(Node, "_object_store", lambda _node: made)
    return made


@pytest.fixture
async def open_node(store: SlowStore, tmp_path: Path) -> AsyncIterator[OpenNode]:
    async with AsyncExitStack() as stack:

        async def open_one(disk: dict[str, Any] | None = None, **settings: Any) -> ServedNode:
            usual = {
                "retry_base_delay_ms": 1,
                "retry_max_delay_ms": 20,
                "negative_ttl_ms": 3_600_000,
                "first_byte_timeout_ms": 20_000,
            }
            node = served_node(tmp_path / "node", object_store=usual | settings, disk=disk or {})
            opened = await stack.enter_async_context(node)
            store.asked.clear()  # whether it is there at all
            return opened

        yield open_one
        store.go.set()


@pytest.fixture
async def served(open_node: OpenNode) -> ServedNode:
    return await open_node()


def keep(store: MemoryStore, data: bytes, said: bytes | None = None) -> None:
    """Puts an object there that says of itself to be `said`."""
    store.keep(KEY, data, hashlib.sha256(data if said is None else said).hexdigest())


async def transferred(served: ServedNode) -> None:
    """Returns when no transfer is queued."""
    await served.node.transfers.flush()
    async with asyncio.timeout(20):
        while await served.node.transfers.count():  # noqa: ASYNC110  # the node has no event for it
            await asyncio.sleep(0.01)


async def evict(served: ServedNode) -> None:
    await served.node.artifacts.evict(KEY)
    await served.node.artifacts.flush()


# --- older bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_older_bytes_do_not_come_back(served: ServedNode, store: SlowStore, method: str) -> None:
    """The newer ones were acknowledged, and evicted before they could be uploaded."""
    keep(store, OLD)
    store.fail_on("put", KEY, BROKEN)
    store.fail_on("delete", KEY, BROKEN)
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await evict(served)
    assert (await served.client.request(method, PATH)).status_code == 404
    assert artifact_files(served.folder) == []
    store.heal()
    await transferred(served)
    assert store.contents() == {}
    assert (await served.client.request(method, PATH)).status_code == 404


async def test_the_right_bytes_come_back_after_their_upload(served: ServedNode, store: SlowStore) -> None:
    keep(store, OLD)
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await transferred(served)
    await evict(served)
    assert (await served.client.get(PATH)).content == NEW


async def test_stored_uploaded_and_evicted_while_the_older_is_fetched(
    served: ServedNode, store: SlowStore
) -> None:
    keep(store, OLD)
    store.go.clear()
    reading = asyncio.create_task(served.client.get(PATH))
    await store.wait_until_asked(1)
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await transferred(served)
    await evict(served)
    # Nobody joins who asks after that.
    assert (await served.client.get(PATH)).status_code == 404
    store.go.set()
    assert (await reading).status_code == 404
    assert artifact_files(served.folder) == []


async def test_a_delete_that_failed_hides_and_removes_nothing_newer(
    open_node: OpenNode, store: SlowStore
) -> None:
    served = await open_node(retry_base_delay_ms=3_600_000, retry_max_delay_ms=3_600_000)
    keep(store, OLD)
    store.fail_on("delete", KEY, BROKEN)
    assert (await served.client.delete(PATH)).status_code == 204
    async with asyncio.timeout(20):
        while not served.rows("SELECT 1 FROM s3_transfers WHERE attempts > 0"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    store.heal()
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await transferred(served)
    await evict(served)
    assert (await served.client.get(PATH)).content == NEW
    assert store.contents() == {KEY: NEW}


# --- wrong bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", ["bytes=0-99", "bytes=0-1048575", "bytes=1048576-2097151", "bytes=0-4194302"]
)
async def test_a_part_of_what_is_not_verified_is_not_complete(
    served: ServedNode, store: SlowStore, asked: str
) -> None:
    """It is served as the whole instead, which is not complete before it is right."""
    keep(store, LARGE, b"something else")
    with pytest.raises(httpx.RemoteProtocolError):
        await served.client.get(PATH, headers={"range": asked})
    await served.assert_nothing_stored()


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-1048575", 200, LARGE),
        ("bytes=1048576-", 206, LARGE[1048576:]),
        ("bytes=-5", 206, LARGE[-5:]),
        ("bytes=4194304-", 416, b""),
    ],
)
async def test_ranges_of_what_is_still_coming(
    served: ServedNode, store: SlowStore, asked: str, status: int, expected: bytes
) -> None:
    keep(store, LARGE)
    answer = await served.client.get(PATH, headers={"range": asked})
    assert (answer.status_code, answer.content) == (status, expected)
    await served.node.read_through._jobs.idle()
    answer = await served.client.get(PATH, headers={"range": "bytes=0-99"})
    assert (answer.status_code, answer.content) == (206, LARGE[:100])


@pytest.mark.parametrize("damaged", [bytes(len(NEW)), bytes(2 << 20)], ids=["small", "large"])
async def test_a_damaged_object_stays_until_it_is_stored_again(
    served: ServedNode, store: SlowStore, damaged: bytes
) -> None:
    keep(store, damaged, said=NEW)
    if len(damaged) > read_through.WHOLE_BYTES:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.client.get(PATH)
    for _ in range(3):
        assert (await served.client.get(PATH)).status_code == 404
    await served.node.read_through._jobs.idle()
    await transferred(served)
    assert (await served.client.head(PATH)).status_code == 404
    # Once because it was asked for, three times to be sure. It may have been right all the time.
    assert (store.count("get"), store.contents()) == (4, {KEY: damaged})
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await transferred(served)
    assert (store.count("delete"), store.contents()) == (0, {KEY: NEW})
    await evict(served)
    assert (await served.client.get(PATH)).content == NEW


async def test_wrong_bytes_are_a_miss_for_longer_than_others(open_node: OpenNode, store: SlowStore) -> None:
    served = await open_node(negative_ttl_ms=0)
    keep(store, bytes(len(NEW)), said=NEW)
    for _ in range(3):
        assert (await served.client.get(PATH)).status_code == 404
        await transferred(served)
    assert store.count("get") == 4
    # As when its time is over: what lied meanwhile does no more.
    served.node.transfers.wrong_objects.mended(KEY)
    keep(store, NEW)
    assert (await served.client.get(PATH)).content == NEW


async def test_wrong_bytes_are_replaced_by_who_stores_them_while_they_are_fetched(
    served: ServedNode, store: SlowStore
) -> None:
    """The upload takes the object for the right one, before anybody knows better."""
    keep(store, bytes(len(NEW)), said=NEW)
    store.go.clear()
    reading = asyncio.create_task(served.client.get(PATH))
    await store.wait_until_asked(1)
    assert (await served.client.put(PATH, content=NEW)).status_code == 201
    await transferred(served)
    assert store.count("put") == 0
    store.go.set()
    assert (await reading).status_code == 404
    await served.node.read_through._jobs.idle()
    await transferred(served)
    assert store.contents() == {KEY: NEW}


# --- how much is asked --------------------------------------------------------------------------------


async def test_what_does_not_fit_is_fetched_once(open_node: OpenNode, store: SlowStore) -> None:
    served = await open_node(disk={"limit_bytes": 1 << 20})
    keep(store, LARGE)
    for _ in range(3):
        assert (await served.client.get(PATH)).status_code == 404
    assert store.count("get") == 1


async def test_fetches_are_bounded(
    open_node: OpenNode, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_through, "MOST_AT_ONCE", 2)
    served = await open_node()
    paths = [f"{PATH}{number}" for number in range(3)]
    for number in range(3):
        store.keep(f"{KEY}{number}", NEW)
    store.go.clear()
    reading = [asyncio.create_task(served.client.get(path)) for path in paths[:2]]
    await store.wait_until_asked(2)
    assert (await served.client.get(paths[2])).status_code == 404
    assert (await served.client.head(paths[2])).status_code == 404
    assert served.node.read_through.in_flight == 2
    assert len(store.asked) == 2
    store.go.set()
    assert [(await answer).content for answer in reading] == [NEW, NEW]
    # That it was not asked for is not remembered.
    assert (await served.client.get(paths[2])).content == NEW


async def test_a_fetch_ends_in_time(open_node: OpenNode, store: SlowStore) -> None:
    served = await open_node(transfer_timeout_ms=20)
    keep(store, NEW)
    store.go.clear()
    assert (await served.client.get(PATH)).status_code == 404
    assert served.node.read_through.in_flight == 0
    await served.assert_nothing_stored()


async def test_a_store_that_throttles_is_asked_for_less(served: ServedNode, store: SlowStore) -> None:
    most = served.node.read_through._pace.limit
    store.fail_next(ObjectStoreError("slow down", throttled=True))
    assert (await served.client.get(PATH)).status_code == 404
    assert served.node.read_through._pace.limit == most // 2


async def test_to_ask_whether_to_ask_is_no_probe(open_node: OpenNode, store: SlowStore) -> None:
    """With redirects the question comes twice: for the URL, then for the bytes."""
    served = await open_node(redirect=True, negative_ttl_ms=0)
    store.fail_always(BROKEN)
    for number in range(3):
        assert (await served.client.get(f"{PATH}{number}")).status_code == 404
    assert served.node.read_through._pace.is_down
    store.heal()
    keep(store, NEW)
    assert [served.node.read_through._may_ask(KEY) for _ in range(3)] == [True] * 3
    assert (await served.client.get(PATH)).content == NEW


# --- bytes that were changed in the store, which has lost their digest -------------------------------


def blob(data: bytes) -> tuple[str, str]:
    """Path and key of a Bazel blob."""
    digest = hashlib.sha256(data).hexdigest()
    return f"/bazel/acc/proj/cas/{digest}", f"acc/proj/bazel_cas/{digest[:2]}/{digest[2:4]}/{digest}"


@pytest.mark.parametrize("content", [NEW, LARGE], ids=["small", "large"])
async def test_changed_bytes_are_known_by_the_name(
    served: ServedNode, store: SlowStore, content: bytes
) -> None:
    path, key = blob(content)
    assert (await served.client.put(path, content=content)).is_success
    await transferred(served)
    await served.node.artifacts.evict(key)
    store.keep(key, content[::-1])
    with suppress(httpx.RemoteProtocolError):  # a large one has begun by the time it is known
        assert (await served.client.get(path)).status_code == 404
    assert artifact_files(served.folder) == []
    await served.node.transfers.flush()
    await transferred(served)
    assert store.contents() == {key: content[::-1]}
    assert (await served.client.put(path, content=content)).is_success
    assert (await served.client.get(path)).content == content
    await transferred(served)
    assert store.contents() == {key: content}


async def test_a_row_that_is_left_does_not_speak_against_a_newer_object(
    served: ServedNode, store: SlowStore
) -> None:
    """Another node has replaced it meanwhile."""
    assert (await served.client.put(PATH, content=OLD)).is_success
    await transferred(served)
    (served.folder / "artifacts" / KEY).unlink()
    store.keep(KEY, NEW)
    assert (await served.client.get(PATH)).content == NEW
    assert store.contents() == {KEY: NEW}


async def test_right_bytes_without_a_digest_are_served(served: ServedNode, store: SlowStore) -> None:
    path, key = blob(NEW)
    store.keep(key, NEW)
    store.keep(KEY, OLD)
    assert (await served.client.get(path)).content == NEW
    assert (await served.client.get(PATH)).content == OLD  # nobody knows better


# --- without a store ------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "told"), [({"redirect": True, "region": "eu-west-1"}, 1), ({}, 0)])
async def test_settings_of_a_store_that_has_no_url_are_told_of(
    tmp_path: Path, settings: dict[str, Any], told: int
) -> None:
    with capture_logs() as logs:
        async with served_node(tmp_path / "node", object_store=settings):
            pass
    found = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry["event"] for entry in found] == ["object_store_settings_without_url"] * told
    names = [name for entry in found for name in entry["without_effect"]]
    assert names == ["object_store.redirect", "object_store.region"] * told
