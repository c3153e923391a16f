"""The contract of `ObjectStore`, kept by an S3 endpoint and by a directory alike."""

import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.recorded_events import RecordedEvents
from tests.support.s3_endpoint import S3Endpoint
from undercroft.clock import now_us
from undercroft.errors import InvalidKeyError, ObjectStoreError
from undercroft.s3.object_names import key_of, object_name
from undercroft.s3.object_store import ObjectStore, ObjectStoreSettings, open_object_store
from undercroft.storage.layout import artifact_key, safe_component
from undercroft.telemetry import events

KEY = "acc/proj/xcode/ab/cd/abcd"
SHA = hashlib.sha256(b"content").hexdigest()
ODD = [
    "a b",
    " a ",
    "é",
    "ß\u0301",
    "%",
    "%2F",
    "%20",
    "?",
    "#",
    "x#1",
    "*",
    "~",
    "+",
    "[",
    "x.",
    "...",
    "日本",
    "😀",
]
ODD += ["&<>'\"", "a:b=c", "\ufffe", "^`|{}", "\u2028"]


def _is_component(value: str) -> bool:
    try:
        return bool(safe_component(value, "component"))
    except InvalidKeyError:
        return False


components = st.text(min_size=1, max_size=20).filter(_is_component)


class Rig:
    """A store and what lies behind it."""

    def __init__(self, kind: str, settings: ObjectStoreSettings, folder: Path) -> None:
        self.kind = kind
        self.settings = settings
        self.folder = folder
        """Where objects lie as files."""
        self.events = RecordedEvents()
        self.store: ObjectStore = open_object_store(settings, self.events)

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    async def put(self, key: str, data: bytes, sha: str | None = None) -> None:
        await self.store.put(key, io.BytesIO(data), len(data), sha)

    async def get(self, key: str, start: int = 0) -> bytes | None:
        body = await self.store.get(key, start)
        return None if body is None else b"".join([chunk async for chunk in body.chunks()])

    async def keys(self, prefix: str = "") -> list[str]:
        return sorted([each.key async for page in self.store.list(prefix) for each in page])

    def told(self) -> list[tuple[str, str]]:
        recorded = self.events.of(events.OBJECT_STORE_REQUEST)
        return [(each.metadata["operation"], each.metadata["result"]) for each in recorded]


@pytest.fixture(params=["s3", "directory"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "directory":
        folder = tmp_path / "made"
        yield Rig("directory", ObjectStoreSettings(f"file://{folder}"), folder)
    else:
        endpoint: S3Endpoint = request.getfixturevalue("s3_endpoint")
        yield Rig("s3", endpoint.settings(prefix="pre/fix"), endpoint.bucket / "pre" / "fix")


async def test_what_is_put_is_found(rig: Rig) -> None:
    before_us = now_us()
    await rig.put(KEY, b"content", SHA)
    kept = SHA if rig.kind == "s3" else None
    found = await rig.store.head(KEY)
    assert found is not None
    assert found[:3] == (KEY, 7, kept)
    assert before_us - 2_000_000 < found.modified_at < now_us() + 2_000_000  # S3 knows seconds only
    body = await rig.store.get(KEY)
    assert body is not None
    assert body.object == found
    assert b"".join([chunk async for chunk in body.chunks()]) == b"content"
    assert rig.files() == {KEY: b"content"}


async def test_what_was_there_is_replaced(rig: Rig) -> None:
    await rig.put(KEY, b"old", "0" * 64)
    await rig.put(KEY, b"newer", None)
    found = await rig.store.head(KEY)
    assert found is not None
    assert (found.size, found.content_sha256) == (5, None)
    assert await rig.get(KEY) == b"newer"


async def test_absent_is_none(rig: Rig) -> None:
    await rig.put(KEY, b"content")
    for absent in (f"{KEY}e", "acc/proj/xcode/ab/cd", "other/proj/xcode/ab/cd/abcd"):
        assert await rig.store.head(absent) is None
        assert await rig.store.get(absent) is None
        assert await rig.store.get(absent, 5) is None


async def test_of_another_program_no_digest_is_known(rig: Rig) -> None:
    path = rig.folder / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(b"foreign")
    found = await rig.store.head(KEY)
    assert found is not None
    assert (found.size, found.content_sha256) == (7, None)


async def test_what_is_no_digest_is_not_taken_for_one(rig: Rig) -> None:
    await rig.put(KEY, b"content", "ABC")
    found = await rig.store.head(KEY)
    assert found is not None
    assert found.content_sha256 is None


@pytest.mark.parametrize("start", [1, 6, 7_000, 2_500_000])
async def test_from_somewhere_on(rig: Rig, start: int) -> None:
    data = bytes(range(256)) * 12_000
    await rig.put(KEY, data, SHA)
    body = await rig.store.get(KEY, start)
    assert body is not None
    assert body.object.size == len(data)
    assert b"".join([chunk async for chunk in body.chunks()]) == data[start:]


@pytest.mark.parametrize("start", [7, 8])
async def test_from_behind_the_end_on_is_an_error(rig: Rig, start: int) -> None:
    await rig.put(KEY, b"content")
    with pytest.raises(ObjectStoreError):
        await rig.get(KEY, start)


async def test_empty_objects(rig: Rig) -> None:
    await rig.put(KEY, b"", SHA)
    found = await rig.store.head(KEY)
    assert found is not None
    assert found.size == 0
    assert await rig.get(KEY) == b""


async def test_large_files_come_in_small_chunks(rig: Rig, tmp_path: Path) -> None:
    data = hashlib.shake_256(b"x").digest(20_000_000)
    file = tmp_path / "large"
    file.write_bytes(data)
    with file.open("rb") as opened:
        opened.seek(5)
        await rig.store.put(KEY, opened, len(data), SHA)
    assert rig.files() == {KEY: data}
    body = await rig.store.get(KEY)
    assert body is not None
    assert body.object.content_sha256 == (SHA if rig.kind == "s3" else None)
    chunks = [chunk async for chunk in body.chunks()]
    assert b"".join(chunks) == data
    assert {type(chunk) for chunk in chunks} == {bytes}
    assert max(map(len, chunks)) <= 1 << 20


async def test_chunks_stay_small_whatever_obstore_gathers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.s3.obstore_client.GATHER_BYTES", 4 << 20)
    data = hashlib.shake_256(b"x").digest(5_000_000)
    await rig.put(KEY, data)
    body = await rig.store.get(KEY)
    assert body is not None
    chunks = [chunk async for chunk in body.chunks()]
    assert b"".join(chunks) == data
    assert max(map(len, chunks)) == 1 << 20


async def test_only_the_first_bytes_of_a_longer_file(rig: Rig) -> None:
    await rig.store.put(KEY, io.BytesIO(b"content and more"), 7, SHA)
    assert await rig.get(KEY) == b"content"


@pytest.mark.parametrize("size", [20, 20_000_000])
async def test_a_file_that_is_too_short_leaves_nothing(rig: Rig, size: int) -> None:
    with pytest.raises(OSError, match="ended 1 bytes early"):
        await rig.store.put(KEY, io.BytesIO(bytes(size - 1)), size, SHA)
    assert rig.files() == {}


async def test_a_file_that_is_closed_leaves_nothing(rig: Rig) -> None:
    file = io.BytesIO(b"content")
    file.close()
    with pytest.raises(OSError, match="closed"):
        await rig.store.put(KEY, file, 7, SHA)
    assert rig.files() == {}


async def test_a_body_given_up_ends_its_iteration(rig: Rig) -> None:
    await rig.put(KEY, bytes(3_000_000))
    body = await rig.store.get(KEY)
    assert body is not None
    chunks = body.chunks()
    await anext(chunks)
    body.close()
    body.close()
    with pytest.raises(ObjectStoreError, match="closed"):
        await anext(chunks)


async def test_deleting(rig: Rig) -> None:
    keys = [artifact_key("acc", "proj", "xcode", f"{n:04}") for n in range(5)]
    for key in keys:
        await rig.put(key, b"x")
    await rig.store.delete([])
    await rig.store.delete(["acc/none/1", *keys[:2], "acc/none/2", keys[2], keys[2]])
    assert await rig.keys() == keys[3:]
    await rig.store.delete(keys)
    assert rig.files() == {}


async def test_listing_knows_whole_components(rig: Rig) -> None:
    for key in ("acc/proj/a", "acc/proj/b/c", "acc/project/d", "acc2/proj/e", "a b/proj/f"):
        await rig.put(key, key.encode())
    assert await rig.keys("acc/proj/") == ["acc/proj/a", "acc/proj/b/c"]
    assert await rig.keys("acc/proj") == ["acc/proj/a", "acc/proj/b/c"]
    assert await rig.keys("acc") == ["acc/proj/a", "acc/proj/b/c", "acc/project/d"]
    assert await rig.keys("a b") == ["a b/proj/f"]
    assert await rig.keys("none") == []
    [page] = [page async for page in rig.store.list("acc2")]
    assert [(each.key, each.size, each.content_sha256) for each in page] == [("acc2/proj/e", 11, None)]
    found = await rig.store.head("acc2/proj/e")
    assert found is not None
    assert page[0].modified_at // 1_000_000 == found.modified_at // 1_000_000


async def test_pages_come_one_after_the_other(rig: Rig) -> None:
    folder = rig.folder / "acc"
    folder.mkdir(parents=True)
    for n in range(1_500):
        (folder / f"{n:04}").touch()
    pages = rig.store.list("acc")
    first = await anext(pages)
    assert len(first) == 1_000
    assert rig.told() == [("list", "done")]
    rest = [each.key async for page in pages for each in page]
    assert sorted([*(each.key for each in first), *rest]) == [f"acc/{n:04}" for n in range(1_500)]
    assert rig.told() == [("list", "done")] * 2


async def test_names_that_no_key_has_are_not_listed(rig: Rig) -> None:
    await rig.put("a/b", b"x")
    for foreign in ("c d", "%20x%zz", "%41"):
        (rig.folder / foreign).write_bytes(b"x")
    assert await rig.keys() == ["a/b"]


@pytest.mark.parametrize("component", ODD)
async def test_odd_characters(rig: Rig, component: str) -> None:
    await _round_trip(rig, artifact_key("acc", "proj", "gradle", safe_component(component, "id")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(component=components, group=components)
async def test_every_component_round_trips(rig: Rig, component: str, group: str) -> None:
    await _round_trip(rig, artifact_key("acc", "proj", "gradle", component, group=[group]))


async def _round_trip(rig: Rig, key: str) -> None:
    await rig.put(key, key.encode(), SHA)
    found = await rig.store.head(key)
    assert found is not None
    assert found.key == key
    assert await rig.get(key) == key.encode()
    assert await rig.keys("acc/proj") == [key]
    await rig.store.delete([key])
    assert await rig.store.head(key) is None
    assert rig.files() == {}


@given(st.lists(components, min_size=1, max_size=4).map("/".join))
def test_names_are_reversible_and_safe(key: str) -> None:
    name = object_name(key)
    assert key_of(name) == key  # so no two keys share a name
    assert name.count("/") == key.count("/")
    assert not set(name) & set("?#*~+[]\\ &<>\"'`^|{}:=@")


def test_what_no_provider_may_take_amiss() -> None:
    assert object_name("a b/x./.y..z/50%") == "a%20b/x%2E/.y..z/50%25"


@given(st.from_regex(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]", fullmatch=True))
def test_ordinary_names_stand_for_themselves(component: str) -> None:
    assert object_name(f"acc/{component}") == f"acc/{component}"


async def test_two_stores_below_one_bucket_do_not_meet(s3_endpoint: S3Endpoint) -> None:
    one, other = (
        Rig("s3", s3_endpoint.settings(prefix=prefix), s3_endpoint.bucket) for prefix in ("a", "a/b c/")
    )
    await one.put("k/1", b"1")
    await other.put("k/1", b"2")
    assert s3_endpoint.files() == {"a/k/1": b"1", "a/b c/k/1": b"2"}
    assert await one.get("k/1") == b"1"
    assert await other.keys() == ["k/1"]


async def test_every_request_is_told_of(rig: Rig) -> None:
    await rig.put(KEY, b"x")
    await rig.store.head(KEY)
    await rig.store.head("acc/none")
    await rig.get(KEY)
    await rig.get("acc/none")
    await rig.store.delete([KEY])
    await rig.store.check()
    assert rig.told() == [
        ("upload", "done"),
        ("head", "found"),
        ("head", "absent"),
        ("download", "found"),
        ("download", "absent"),
        ("delete", "done"),
        ("list", "done"),
    ]
    for recorded in rig.events.of(events.OBJECT_STORE_REQUEST):
        assert 0 < recorded.measurements["duration_ms"] < 20_000


async def test_presigned_urls(rig: Rig) -> None:
    await rig.put("acc/a b", b"content")
    url = await rig.store.presigned_url("acc/a b", 60)
    if rig.kind == "directory":
        assert url is None
        return
    assert url is not None
    assert "X-Amz-Expires=60" in url
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url)
        assert (answer.status_code, answer.content) == (200, b"content")
        assert (await client.get(url.replace("a%2520b", "other"))).status_code == 403


async def test_a_directory_that_is_gone_is_an_error_not_empty(tmp_path: Path) -> None:
    rig = Rig("directory", ObjectStoreSettings(f"file://{tmp_path}/store"), tmp_path / "store")
    await rig.put(KEY, b"x")
    rig.folder.rename(tmp_path / "elsewhere")
    for asked in (
        lambda: rig.store.head(KEY),
        lambda: rig.store.get(KEY),
        lambda: rig.put(KEY, b"x"),
        rig.keys,
        lambda: rig.store.delete([KEY]),
        rig.store.check,
    ):
        with pytest.raises(ObjectStoreError, match="is not there"):
            await asked()
    assert not rig.folder.exists()


async def test_a_directory_keeps_what_it_was_told_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    for name in ("sync_file", "sync_directory"):
        monkeypatch.setattr(f"undercroft.s3.obstore_client.{name}", synced.append)
    rig = Rig("directory", ObjectStoreSettings(f"file://{tmp_path}"), tmp_path)
    await rig.put("a/b/c", b"x")
    assert synced == [tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a", tmp_path]


async def test_after_a_restart_of_rclone_only_the_digest_is_gone(s3_endpoint: S3Endpoint) -> None:
    """Not what S3 does: whoever stops the endpoint in a test must know it."""
    rig = Rig("s3", s3_endpoint.settings(), s3_endpoint.bucket)
    await rig.put(KEY, b"content", SHA)
    s3_endpoint.stop()
    with pytest.raises(ObjectStoreError):
        await rig.store.head(KEY)
    s3_endpoint.start()
    found = await rig.store.head(KEY)
    assert found is not None
    assert (found.size, found.content_sha256) == (7, None)
