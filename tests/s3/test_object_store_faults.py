"""What the client says when the store, or the way there, fails. Never that something is absent."""

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from time import monotonic

import httpx
import obstore
import pytest

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.recorded_events import RecordedEvents
from tests.support.s3_endpoint import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Endpoint
from undercroft.errors import ObjectStoreError, SettingsError
from undercroft.s3.object_store import ObjectStore, RemoteBody, open_object_store
from undercroft.s3.providers import open_provider
from undercroft.telemetry import events

KEY = "acc/proj/xcode/ab/cd/abcd"
DATA = bytes(range(256)) * 12_000
SHA = "ab" * 32
LARGE = 30_000_000
Ask = Callable[[ObjectStore], Awaitable[object]]


async def read(body: RemoteBody | None) -> bytes:
    assert body is not None
    return b"".join([chunk async for chunk in body.chunks()])


async def download(store: ObjectStore) -> bytes:
    return await read(await store.get(KEY))


async def upload(store: ObjectStore) -> None:
    await store.put(KEY, io.BytesIO(DATA), len(DATA), SHA)


async def upload_large(store: ObjectStore) -> None:
    await store.put(KEY, io.BytesIO(bytes(LARGE)), LARGE, SHA)


async def list_all(store: ObjectStore) -> list[str]:
    return [each.key async for page in store.list("") for each in page]


ASKS: dict[str, Ask] = {
    "head": lambda store: store.head(KEY),
    "download": download,
    "upload": upload,
    "upload in parts": upload_large,
    "list": list_all,
    "delete": lambda store: store.delete([KEY]),
    "check": lambda store: store.check(),
}
each_ask = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)


@pytest.fixture
def proxy(s3_endpoint: S3Endpoint) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint.port) as proxy:
        yield proxy


@pytest.fixture
def telemetry() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
def store(s3_endpoint: S3Endpoint, proxy: FaultProxy, telemetry: RecordedEvents) -> ObjectStore:
    return open_object_store(s3_endpoint.settings(endpoint=proxy.url), telemetry)


async def refused(asked: Awaitable[object]) -> ObjectStoreError:
    """The error it ends with, which is one line and keeps the credentials to itself."""
    with pytest.raises(ObjectStoreError) as caught:
        await asked
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    assert SECRET_ACCESS_KEY not in text
    assert ACCESS_KEY_ID not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@each_ask
async def test_signed_for_the_proxy_it_passes(store: ObjectStore, ask: Ask) -> None:
    await upload(store)
    await ask(store)


@each_ask
@pytest.mark.parametrize("status", [429, 503])
async def test_asked_to_slow_down(
    store: ObjectStore, proxy: FaultProxy, telemetry: RecordedEvents, ask: Ask, status: int
) -> None:
    proxy.set(Fault("answer", status=status))
    error = await refused(ask(store))
    assert error.throttled
    assert f": {status} " in str(error)
    [told] = telemetry.of(events.OBJECT_STORE_REQUEST)
    assert told.metadata["result"] == "throttled"
    assert len(proxy.seen.requests) == 1  # not tried again


@each_ask
@pytest.mark.parametrize("status", [400, 500, 502])
async def test_other_answers(
    store: ObjectStore, proxy: FaultProxy, telemetry: RecordedEvents, ask: Ask, status: int
) -> None:
    proxy.set(Fault("answer", status=status, body=b"<html>status: 503, <b>SlowDown</b></html>"))
    error = await refused(ask(store))
    assert not error.throttled
    assert f": {status} " in str(error)
    [told] = telemetry.of(events.OBJECT_STORE_REQUEST)
    assert told.metadata["result"] == "error"


@each_ask
async def test_nobody_there(store: ObjectStore, proxy: FaultProxy, ask: Ask) -> None:
    await store.check()
    proxy.refuse()
    await refused(ask(store))  # perhaps over the connection it had, when it does not know yet that it is gone
    error = await refused(ask(store))
    assert not error.throttled
    assert str(error).endswith(": Connection refused")
    proxy.accept()
    await upload(store)
    await ask(store)


async def test_no_such_host(s3_endpoint: S3Endpoint) -> None:
    settings = s3_endpoint.settings(endpoint="http://no-such-host.invalid:9")
    error = await refused(open_object_store(settings, RecordedEvents()).head(KEY))
    assert "lookup" in str(error)


@each_ask
@pytest.mark.parametrize("mode", ["reset", "cut"])
async def test_gone_before_an_answer(store: ObjectStore, proxy: FaultProxy, ask: Ask, mode: str) -> None:
    proxy.set(Fault(mode))  # type: ignore[arg-type]
    await refused(ask(store))


@pytest.mark.parametrize("mode", ["reset", "cut"])
@pytest.mark.parametrize("after", [0, 1, 1_000_000, len(DATA) - 1])
@pytest.mark.parametrize("start", [0, 1_000])
async def test_gone_inside_the_body(
    store: ObjectStore, proxy: FaultProxy, mode: str, after: int, start: int
) -> None:
    await upload(store)
    proxy.set(Fault(mode, after=min(after, len(DATA) - start - 1)))  # type: ignore[arg-type]
    body = await store.get(KEY, start)
    assert body is not None
    assert body.object.size == len(DATA)
    came = b""

    async def take() -> None:
        nonlocal came
        async for chunk in body.chunks():
            came += chunk

    error = await refused(take())
    assert str(error).startswith(f"download of {KEY}: ")
    assert DATA[start:].startswith(came)
    proxy.set(Fault())
    assert came + await read(await store.get(KEY, start + len(came))) == DATA[start:]


async def test_of_a_range_only_the_range_is_sent(store: ObjectStore, proxy: FaultProxy) -> None:
    await upload(store)
    proxy.seen.body_bytes_down = 0
    assert await read(await store.get(KEY, len(DATA) - 10)) == DATA[-10:]
    await asyncio.to_thread(proxy.wait_for_bytes, 10)  # it counts what it has sent
    assert proxy.seen.body_bytes_down == 10


async def test_a_store_without_ranges_sends_all(store: ObjectStore, proxy: FaultProxy) -> None:
    await upload(store)
    proxy.answer_ranges_with_206 = False
    assert await read(await store.get(KEY, 1_000_000)) == DATA[1_000_000:]


async def test_a_store_without_ranges_is_asked_for_bytes_behind_the_end(
    store: ObjectStore, proxy: FaultProxy
) -> None:
    proxy.set(Fault("answer", status=200, body=b"content"))
    assert await read(await store.get(KEY, 6)) == b"t"
    for start in (7, 8):
        assert f"byte {start} is not in it" in str(await refused(store.get(KEY, start)))


async def test_an_interrupted_list_is_an_error(store: ObjectStore, proxy: FaultProxy) -> None:
    await upload(store)
    proxy.set(Fault("cut", after=30))
    await refused(list_all(store))


@each_ask
async def test_cancelled_while_the_store_is_silent(
    store: ObjectStore, proxy: FaultProxy, telemetry: RecordedEvents, s3_endpoint: S3Endpoint, ask: Ask
) -> None:
    proxy.set(Fault("stall"))
    asking = asyncio.ensure_future(ask(store))
    await asyncio.to_thread(proxy.wait_for_requests, 1)
    began = monotonic()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert monotonic() - began < 5
    assert telemetry.of(events.OBJECT_STORE_REQUEST) == []
    assert s3_endpoint.files() == {}
    proxy.set(Fault())
    await upload(store)
    assert await download(store) == DATA


async def test_cancelled_inside_a_silent_body(store: ObjectStore, proxy: FaultProxy) -> None:
    await upload(store)
    proxy.set(Fault("stall", after=2_000_000))
    body = await store.get(KEY)
    reading = asyncio.ensure_future(read(body))
    await asyncio.to_thread(proxy.wait_for_bytes, 2_000_000)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert body is not None
    body.close()
    proxy.set(Fault())
    assert await download(store) == DATA


class HeldFile(io.BytesIO):
    """A file whose third piece can be read only when `go` is set."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.third = threading.Event()
        self.go = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads == 3:
            self.third.set()
            assert self.go.wait(20)
        return super().read(size)


async def test_cancelled_between_parts_it_takes_back_those_that_are_there(
    store: ObjectStore, proxy: FaultProxy, s3_endpoint: S3Endpoint
) -> None:
    file = HeldFile(bytes(LARGE))
    uploading = asyncio.ensure_future(store.put(KEY, file, LARGE, SHA))
    await asyncio.to_thread(file.third.wait, 20)
    uploading.cancel()
    await asyncio.sleep(0)  # the order to cancel, then its arrival
    await asyncio.sleep(0)
    file.go.set()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    await asyncio.to_thread(proxy.wait_for_requests, 1, "DELETE ")
    assert file.reads == 3
    assert s3_endpoint.files() == {}


@pytest.mark.parametrize("what", ["partNumber=2", "uploadId=", "uploads"])
async def test_parts_that_fail_are_taken_back(
    store: ObjectStore, proxy: FaultProxy, s3_endpoint: S3Endpoint, what: str
) -> None:
    proxy.set(Fault("answer", status=500, only=f"{what}"))
    await refused(upload_large(store))
    if what == "partNumber=2":
        assert any(request.startswith("DELETE ") for request in proxy.seen.requests)
    assert s3_endpoint.files() == {}


async def test_half_an_upload_is_none(store: ObjectStore, proxy: FaultProxy, s3_endpoint: S3Endpoint) -> None:
    """The node dies, as the store sees it: the connection ends inside the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    url = httpx.URL(await _presigned_put(s3_endpoint, proxy))
    head = f"PUT {url.raw_path.decode()} HTTP/1.1\r\nhost: 127.0.0.1:{proxy.port}\r\n"
    writer.write(f"{head}content-length: 1000\r\n\r\n".encode() + bytes(500))
    await writer.drain()
    await asyncio.to_thread(proxy.wait_for_requests, 1)
    writer.close()
    await writer.wait_closed()
    del reader
    assert await store.head(KEY) is None
    assert KEY not in s3_endpoint.files()


async def _presigned_put(endpoint: S3Endpoint, proxy: FaultProxy) -> str:
    signer = open_provider(endpoint.settings(endpoint=proxy.url)).signer
    assert signer is not None
    return await obstore.sign_async(signer, "PUT", KEY, timedelta(seconds=60))


NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code></Error>"
NO_SUCH_KEY = b"<Error><Code>NoSuchKey</Code></Error>"


@pytest.mark.parametrize("ask", ["head", "download"])
async def test_404_of_something_else_is_not_absent(store: ObjectStore, proxy: FaultProxy, ask: str) -> None:
    await upload(store)
    for body in (NO_SUCH_BUCKET, b"<html>not found</html>"):
        proxy.set(Fault("answer", status=404, body=body))
        assert "404 Not Found" in str(await refused(ASKS[ask](store)))


@pytest.mark.parametrize("body", [NO_SUCH_KEY, b"<Error><Code>BlobNotFound</Code></Error>", b""])
async def test_404_of_the_object_is_absent(store: ObjectStore, proxy: FaultProxy, body: bytes) -> None:
    proxy.set(Fault("answer", status=404, body=body))
    assert await store.head(KEY) is None
    assert await store.get(KEY) is None


@each_ask
async def test_a_bucket_that_is_gone(s3_endpoint: S3Endpoint, store: ObjectStore, ask: Ask) -> None:
    s3_endpoint.bucket.rmdir()
    with pytest.raises((ObjectStoreError, SettingsError), match="404 Not Found \\(NoSuchBucket\\)"):
        await ask(store)


async def test_one_of_many_cannot_be_deleted(store: ObjectStore, proxy: FaultProxy) -> None:
    key = f"<Key>{KEY}</Key><Code>SlowDown</Code><Message>slow</Message>"
    body = f"<DeleteResult><Error>{key}</Error></DeleteResult>".encode()
    proxy.set(Fault("answer", status=200, body=body))
    error = await refused(store.delete([KEY]))
    assert (str(error), error.throttled) == (f"delete of {KEY}: SlowDown", True)


async def test_checked_with_wrong_credentials(s3_endpoint: S3Endpoint) -> None:
    right = s3_endpoint.settings(prefix="some")
    wrong_id = "AKIAWRONGWRONGWRONG1"
    for settings, code in (
        (replace(right, secret_access_key="wrong-but-just-as-secret"), "SignatureDoesNotMatch"),
        (replace(right, access_key_id=wrong_id), "InvalidAccessKeyId"),
    ):
        store = open_object_store(settings, RecordedEvents())
        with pytest.raises(SettingsError) as caught:
            await store.check()
        text = str(caught.value)
        assert right.url in text
        assert f"403 Forbidden ({code}); check access_key_id" in text
        assert "\n" not in text
        for secret in (SECRET_ACCESS_KEY, "wrong-but-just-as-secret", wrong_id):
            assert secret not in text
        assert "403" in str(await refused(store.head(KEY)))
        assert "403" in str(await refused(store.get(KEY)))


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, b"", "check access_key_id"),
        (403, b"", "check access_key_id"),
        (404, NO_SUCH_BUCKET, "create the bucket"),
        (404, b"<html>", "create the bucket"),
        (301, b"<Error><Code>PermanentRedirect</Code></Error>", "set region"),
        (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", "set region"),
    ],
)
async def test_checked_with_settings_to_blame(
    store: ObjectStore, proxy: FaultProxy, status: int, body: bytes, advice: str
) -> None:
    proxy.set(Fault("answer", status=status, body=body))
    with pytest.raises(SettingsError, match=advice):
        await store.check()


@pytest.mark.parametrize("fault", [Fault("answer", status=500), Fault("answer"), Fault("cut")])
async def test_checked_while_it_cannot_answer(store: ObjectStore, proxy: FaultProxy, fault: Fault) -> None:
    proxy.set(fault)
    await refused(store.check())


async def test_the_body_may_take_its_time(store: ObjectStore, proxy: FaultProxy) -> None:
    await upload(store)
    proxy.set(Fault(latency_s=0.1, bytes_per_s=len(DATA) * 4))
    began = monotonic()
    assert await download(store) == DATA
    assert monotonic() - began > 0.2
