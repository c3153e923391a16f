"""Reading through, over HTTP, against a real S3 endpoint and a proxy that breaks things."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.folders import artifact_files, temporary_files
from tests.support.leaks import open_files
from tests.support.s3_endpoint import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, S3Endpoint
from tests.support.served_node import ServedNode, served_node
from undercroft.errors import BufferFullError
from undercroft.s3.concurrency import DOWN_AFTER

KEY = "acc/proj/ccache/ab/cd/abcdef"
PATH = "/ccache/acc/proj/abcdef"
SMALL = b"small"
LARGE = os.urandom(5 << 20)

OpenNode = Callable[..., Awaitable[ServedNode]]


@pytest.fixture
def proxy(s3_endpoint: S3Endpoint) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint.port) as running:
        yield running


@pytest.fixture
async def open_node(proxy: FaultProxy, s3_endpoint: S3Endpoint, tmp_path: Path) -> AsyncIterator[OpenNode]:
    """Starts a node behind the proxy, in a folder of that name."""
    async with AsyncExitStack() as stack:

        async def open_one(
            name: str = "node", disk: dict[str, Any] | None = None, **store: Any
        ) -> ServedNode:
            settings = {
                "url": f"s3://{s3_endpoint.bucket_name}",
                "endpoint": proxy.url,
                "region": REGION,
                "access_key_id": ACCESS_KEY_ID,
                "secret_access_key": SECRET_ACCESS_KEY,
                "negative_ttl_ms": 3_600_000,
                "first_byte_timeout_ms": 20_000,
            }
            node = served_node(tmp_path / name, object_store=settings | store, disk=disk or {})
            return await stack.enter_async_context(node)

        yield open_one


@pytest.fixture
async def served(open_node: OpenNode) -> ServedNode:
    return await open_node()


async def put_object(served: ServedNode, data: bytes, key: str = KEY, sha256: str | None = None) -> None:
    assert served.node.object_store is not None
    digest = sha256 or hashlib.sha256(data).hexdigest()
    await served.node.object_store.put(key, io.BytesIO(data), len(data), digest)


async def hydrated(served: ServedNode) -> None:
    """Returns when nothing is being fetched."""
    await served.node.read_through._jobs.idle()


def downloads(proxy: FaultProxy) -> int:
    return len(
        [
            line
            for line in proxy.seen.requests
            if line.startswith("GET") and "/acc/proj/" in line and "?" not in line
        ]
    )


async def transferred(served: ServedNode) -> None:
    """Returns when no transfer is queued."""
    async with asyncio.timeout(20):
        while await served.node.transfers.count():  # noqa: ASYNC110  # the node has no event for it
            await asyncio.sleep(0.01)


def fetches(served: ServedNode) -> float:
    """Hydrations that have ended."""
    found = served.node.prometheus.registry.get_sample_value
    results = ("stored", "absent", "failed", "refused")
    return sum(found("undercroft_hydrations_total", {"result": result}) or 0 for result in results)


# --- found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
async def test_served_from_the_bucket_and_then_from_disk(
    served: ServedNode, s3_endpoint: S3Endpoint, proxy: FaultProxy, data: bytes
) -> None:
    await put_object(served, data)
    answer = await served.client.get(PATH)
    assert (answer.status_code, answer.content) == (200, data)
    await hydrated(served)
    proxy.refuse()
    again = await served.client.get(PATH)
    assert (again.status_code, again.content) == (200, data)
    assert artifact_files(served.folder) == [KEY]
    assert temporary_files(served.folder) == []
    assert (served.node.capacity.used, served.node.capacity.reserved) == (len(data), 0)
    digest = hashlib.sha256(data).hexdigest()
    await served.node.artifacts.flush()
    assert served.rows("SELECT size_bytes, content_sha256 FROM cache_artifacts") == [(len(data), digest)]
    # What came from there need not go back.
    assert served.rows("SELECT * FROM s3_transfers") == []


async def test_one_fetch_however_many_ask(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE)
    proxy.set(Fault(bytes_per_s=20 << 20))
    answers = await asyncio.gather(*(served.client.get(PATH) for _ in range(10)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, LARGE)}
    assert downloads(proxy) == 1


async def test_hydration_finishes_when_the_client_leaves(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE)
    proxy.set(Fault(bytes_per_s=10 << 20))
    async with served.connection() as connection:
        await connection.send(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert (await connection.some()).startswith(b"HTTP/1.1 200 ")
        assert served.node.read_through.in_flight == 1
    await hydrated(served)
    assert (served.folder / "artifacts" / KEY).read_bytes() == LARGE
    await served.requests_ended()
    assert open_files(served.folder / "artifacts") == []
    # But for the lock of the folder itself.
    assert len(open_files(served.folder / "temporary")) == 1


async def test_a_range_of_what_is_still_coming(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE)
    proxy.set(Fault(bytes_per_s=20 << 20))
    answer = await served.client.get(PATH, headers={"range": "bytes=3000000-"})
    assert (answer.status_code, answer.content) == (206, LARGE[3_000_000:])


async def test_head_fetches_nothing(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE)
    answer = await served.client.head(PATH)
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(LARGE)))
    assert answer.headers["etag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    absent = await served.client.head(PATH + "0")
    assert absent.status_code == 404
    assert not [line for line in proxy.seen.requests if line.startswith("GET") and line.endswith(KEY)]
    assert artifact_files(served.folder) == []


async def test_an_object_of_another_program_has_no_digest(
    served: ServedNode, s3_endpoint: S3Endpoint
) -> None:
    file = s3_endpoint.bucket / KEY
    file.parent.mkdir(parents=True)
    file.write_bytes(LARGE)
    assert (await served.client.get(PATH)).content == LARGE
    await hydrated(served)
    assert artifact_files(served.folder) == [KEY]


# --- absent ------------------------------------------------------------------------------------------


async def test_absence_is_remembered_but_never_longer_than_a_write(
    served: ServedNode,
) -> None:
    for _ in range(3):
        assert (await served.client.get(PATH)).status_code == 404
    assert fetches(served) == 1
    assert (await served.client.put(PATH, content=SMALL)).status_code == 201
    assert (await served.client.get(PATH)).content == SMALL
    # Gone from disk, it is asked for again.
    await transferred(served)
    await served.node.artifacts.evict(KEY)
    await put_object(served, SMALL)
    assert (await served.client.get(PATH)).content == SMALL
    assert fetches(served) == 2


async def test_absence_is_forgotten_in_time(open_node: OpenNode) -> None:
    served = await open_node(negative_ttl_ms=0)
    assert (await served.client.get(PATH)).status_code == 404
    await put_object(served, SMALL)
    assert (await served.client.get(PATH)).content == SMALL


async def test_what_was_deleted_does_not_come_back(served: ServedNode, s3_endpoint: S3Endpoint) -> None:
    await put_object(served, SMALL)
    assert (await served.client.get(PATH)).status_code == 200
    assert (await served.client.delete(PATH)).status_code == 204
    assert (await served.client.get(PATH)).status_code == 404
    assert served.node.transfers.is_queued("delete", KEY) or s3_endpoint.files() == {}


async def test_deleted_while_it_is_fetched(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE)
    proxy.set(Fault(bytes_per_s=5 << 20))
    async with served.connection() as connection:
        await connection.send(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        begun = await connection.some()
        assert (await served.client.delete(PATH)).status_code == 204
        # Who began before reads the right bytes to their end.
        assert (begun + await connection.rest()).endswith(LARGE)
        await hydrated(served)
    assert artifact_files(served.folder) == []
    assert (await served.client.get(PATH)).status_code == 404


async def test_stored_while_it_is_fetched(served: ServedNode, proxy: FaultProxy) -> None:
    """The newer bytes stay; who reads the older ones gets them whole."""
    await put_object(served, LARGE)
    proxy.set(Fault(bytes_per_s=10 << 20))
    reading = asyncio.create_task(served.client.get(PATH))
    await asyncio.to_thread(proxy.wait_for_requests, 3)
    assert (await served.client.put(PATH, content=b"newer")).status_code == 201
    assert (await reading).content == LARGE
    await hydrated(served)
    assert (await served.client.get(PATH)).content == b"newer"


# --- could not ask -----------------------------------------------------------------------------------

FAULTS = {
    "403": Fault("answer", status=403, body=b"<Error><Code>AccessDenied</Code></Error>"),
    "503": Fault("answer", status=503),
    "429": Fault("answer", status=429),
    "500": Fault("answer", status=500, body=b""),
    "stall": Fault("stall"),
    "no bucket": Fault("answer", status=404, body=b"<Error><Code>NoSuchBucket</Code></Error>"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_store_that_cannot_be_asked_is_a_miss(
    open_node: OpenNode, proxy: FaultProxy, fault: Fault, method: str
) -> None:
    served = await open_node(first_byte_timeout_ms=1_000, negative_ttl_ms=0)
    await put_object(served, SMALL)
    proxy.set(fault)
    assert (await served.client.request(method, PATH)).status_code == 404
    # It works again, and so does the node, but for who comes while the failed attempt is being ended.
    proxy.set(Fault())
    async with asyncio.timeout(20):
        while (await served.client.request(method, PATH)).status_code != 200:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.01)


async def test_refused_connections_are_misses(open_node: OpenNode, proxy: FaultProxy) -> None:
    served = await open_node()
    proxy.refuse()
    assert (await served.client.get(PATH)).status_code == 404


async def test_a_store_that_is_down_is_not_asked_for_everything(
    open_node: OpenNode, proxy: FaultProxy
) -> None:
    served = await open_node()
    proxy.set(FAULTS["500"])
    seen = len(proxy.seen.requests)
    for number in range(DOWN_AFTER + 5):
        assert (await served.client.get(f"{PATH}{number}")).status_code == 404
    assert len(proxy.seen.requests) - seen == DOWN_AFTER


async def test_one_request_finds_out_that_it_is_up_again(open_node: OpenNode, proxy: FaultProxy) -> None:
    served = await open_node(negative_ttl_ms=1)
    await put_object(served, SMALL)
    proxy.set(FAULTS["500"])
    for number in range(DOWN_AFTER):
        await served.client.get(f"{PATH}{number}")
    proxy.set(Fault())
    async with asyncio.timeout(20):
        while (await served.client.get(PATH)).status_code != 200:
            pass
    assert not served.node.read_through._pace.is_down


@pytest.mark.parametrize("mode", ["reset", "cut"])
async def test_a_body_that_breaks_off_is_taken_up_again(
    served: ServedNode, proxy: FaultProxy, mode: Any
) -> None:
    await put_object(served, LARGE)
    proxy.set(Fault(mode, after=2 << 20))
    before = len(proxy.seen.requests)
    asked = asyncio.create_task(served.client.get(PATH))
    await asyncio.to_thread(proxy.wait_for_requests, before + 1)
    # The first answer ends early, how early is up to the kernel; those that follow are good.
    proxy.set(Fault())
    answer = await asked
    assert (answer.status_code, answer.content) == (200, LARGE)
    await hydrated(served)
    assert (served.folder / "artifacts" / KEY).read_bytes() == LARGE
    assert downloads(proxy) == 2


async def test_a_body_that_never_ends_breaks_the_connection(open_node: OpenNode, proxy: FaultProxy) -> None:
    served = await open_node(read_timeout_ms=50, first_byte_timeout_ms=2_000)
    await put_object(served, LARGE)
    proxy.set(Fault("stall", after=100_000))
    async with served.connection() as connection:
        await connection.send(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        with suppress(ConnectionResetError):
            assert len(await connection.rest()) < len(LARGE)
    await served.assert_nothing_stored()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_wrong_bytes_are_never_served_whole(served: ServedNode, data: bytes) -> None:
    await put_object(served, data, sha256="0" * 64)
    async with served.connection() as connection:
        await connection.send(f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        got = b""
        with suppress(ConnectionResetError):
            got = await connection.rest()
    assert len(got) < len(LARGE)
    assert got.startswith(b"HTTP/1.1 404 ") or data is LARGE
    await served.assert_nothing_stored()


async def test_what_does_not_fit_is_a_miss(open_node: OpenNode) -> None:
    served = await open_node(disk={"limit_bytes": 1 << 20})
    await put_object(served, LARGE)
    assert (await served.client.get(PATH)).status_code == 404
    await served.assert_nothing_stored()


async def test_what_cannot_get_its_name_is_sent_to_its_end(served: ServedNode) -> None:
    """It came whole, and its digest is right: that something is in the way is no reason to break off."""
    (served.folder / "artifacts" / KEY / "somebody's").mkdir(parents=True)
    await put_object(served, LARGE)
    answer = await served.client.get(PATH)
    assert (answer.status_code, answer.content) == (200, LARGE)
    await hydrated(served)
    assert (await served.client.get(PATH)).status_code == 404
    assert temporary_files(served.folder) == []


async def full() -> None:
    raise BufferFullError("no room for a row")


async def test_what_finds_no_room_for_its_row_is_sent_to_its_end(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.node.artifact_buffer, "wait_for_room", full)
    await put_object(served, LARGE)
    answer = await served.client.get(PATH)
    assert (answer.status_code, answer.content) == (200, LARGE)
    await hydrated(served)
    await served.assert_nothing_stored()


async def test_what_is_fetched_needs_no_room_for_a_transfer(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_object(served, LARGE)
    monkeypatch.setattr(served.node.transfer_buffer, "wait_for_room", full)
    await served.client.get(PATH)
    await hydrated(served)
    assert artifact_files(served.folder) == [KEY]


async def test_a_stop_ends_what_is_being_fetched(open_node: OpenNode, proxy: FaultProxy) -> None:
    served = await open_node()
    await put_object(served, LARGE)
    proxy.set(Fault("stall", after=2 << 20))
    async with served.connection() as connection:
        await connection.send(f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        await connection.some()
        await served.node.read_through.stop()
        with suppress(ConnectionResetError):
            assert len(await connection.rest()) < len(LARGE)
    await served.assert_nothing_stored()


# --- redirects ---------------------------------------------------------------------------------------

CAS = "/api/cache/cas/abcdef?account_handle=acc&project_handle=proj"
CAS_KEY = "acc/proj/xcode/ab/cd/abcdef"


async def test_redirects(open_node: OpenNode) -> None:
    served = await open_node(redirect=True)
    await put_object(served, LARGE, CAS_KEY)
    answer = await served.client.get(CAS)
    assert answer.status_code == 307
    fetched = await served.client.get(answer.headers["location"])
    assert fetched.content == LARGE
    assert answer.headers["cache-control"] == "no-store"
    # Tools that are not known to follow get the bytes.
    await put_object(served, SMALL)
    assert (await served.client.get(PATH)).content == SMALL
    assert (await served.client.get(CAS.replace("abcdef", "absent"))).status_code == 404


async def test_no_redirect_for_what_is_on_disk(open_node: OpenNode) -> None:
    served = await open_node(redirect=True)
    assert (await served.client.post(CAS, content=SMALL)).status_code == 204
    assert (await served.client.get(CAS)).content == SMALL


# --- counted -----------------------------------------------------------------------------------------


async def test_counted(served: ServedNode) -> None:
    await put_object(served, SMALL, CAS_KEY)
    for path in (CAS, CAS, CAS.replace("abcdef", "absent")):
        await served.client.get(path)
    text = (await served.client.get("/metrics")).text
    for line in (
        "tuist_cache_cas_download_hits_total 2.0",
        "tuist_cache_cas_download_disk_hits_total 1.0",
        "tuist_cache_cas_download_disk_misses_total 2.0",
        "tuist_cache_cas_download_s3_hits_total 1.0",
        "tuist_cache_cas_download_s3_misses_total 1.0",
    ):
        assert line in text.splitlines()


# --- for a tool that fails at an answer which ends too soon -------------------------------------------

NX_KEY = "acc/proj/nx/12/34/1234"
NX_PATH = "/nx/acc/proj/v1/cache/1234"


async def test_surely_whole_or_a_miss(served: ServedNode, proxy: FaultProxy) -> None:
    await put_object(served, LARGE, NX_KEY, sha256="0" * 64)
    # Others hear that it is wrong by a connection that breaks before the last byte.
    assert (await served.client.get(NX_PATH)).status_code == 404
    await hydrated(served)
    assert artifact_files(served.folder) == []


async def test_surely_whole_of_what_comes_late_is_for_the_next(
    open_node: OpenNode, proxy: FaultProxy
) -> None:
    served = await open_node(first_byte_timeout_ms=200)
    await put_object(served, LARGE, NX_KEY)
    proxy.set(Fault(bytes_per_s=10 << 20))
    assert (await served.client.get(NX_PATH)).status_code == 404
    await hydrated(served)
    got = await served.client.get(NX_PATH)
    assert (got.status_code, got.content) == (200, LARGE)
    assert downloads(proxy) == 1


async def test_surely_whole_of_what_comes_in_time(served: ServedNode) -> None:
    await put_object(served, LARGE, NX_KEY)
    got = await served.client.get(NX_PATH)
    assert (got.status_code, got.content) == (200, LARGE)
