"""Uploads in parts: whole or nothing, in order, each once, and everything is given back on every path."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifact_rig import QUIET, ArtifactRig, body
from tests.support.disk_faults import ERRORS, fault
from tests.support.folders import artifact_files, temporary_files
from tests.support.leaks import open_files
from undercroft.errors import (
    BadRequestError,
    BufferFullError,
    CapacityError,
    CommitTimeoutError,
    DigestMismatchError,
    IncompleteBodyError,
    PartsTooLargeError,
    RowRefusedError,
    TooLargeError,
    UnknownUploadError,
)
from undercroft.multipart import MultipartUploads, Owner, bounds, session
from undercroft.settings_sections import UploadsSection
from undercroft.storage.capacity import Capacity, Volume
from undercroft.storage.upload import Stored
from undercroft.telemetry import events

KEY = "acc/proj/module/builds/ab/cd/abcdef/name"
OWNER = Owner("acc", "proj", None)
BIG = 700_000  # more than a spool
IDLE_S = 300


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class MultipartRig:
    """Uploads in parts over the artifact service, with a clock of the test's."""

    def __init__(self, rig: ArtifactRig, **limits: Any) -> None:
        self.rig = rig
        self.now = 1_000.0
        self.slept = asyncio.Event()
        self.awake = asyncio.Event()
        self.uploads = MultipartUploads(
            rig.artifacts,
            rig.capacity,
            rig.telemetry,
            UploadsSection(**limits),
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _sleep(self, _seconds: float) -> None:
        self.slept.set()
        await self.awake.wait()
        self.awake.clear()

    def start(self, owner: Owner = OWNER, key: str = KEY) -> str:
        return self.uploads.start(owner, key)

    async def put(
        self,
        upload: str,
        number: int,
        *chunks: bytes,
        owner: Owner = OWNER,
        declared: int | None = None,
        digest: str | None = None,
    ) -> None:
        await self.uploads.put_part(
            owner, upload, number, body(*chunks), declared_size=declared, expected_sha256=digest
        )

    async def complete(
        self, upload: str, *numbers: int, digest: str | None = None, owner: Owner = OWNER
    ) -> Stored:
        return await self.uploads.complete(owner, upload, numbers, digest)

    def told(self) -> list[tuple[str, str, float]]:
        """Result, reason and bytes of each upload that ended."""
        ended = self.rig.telemetry.of(events.UPLOAD)
        return [(e.metadata["result"], e.metadata["reason"], e.measurements["bytes"]) for e in ended]

    def open_parts(self) -> list[str]:
        """Temporary files that are open; the directory itself, which is locked, does not count."""
        (mine,) = (self.rig.folder / "temporary").iterdir()
        return [file for file in open_files(mine) if file != str(mine)]

    def assert_empty(self, used: int = 0) -> None:
        """Nothing is left of any upload but what was stored."""
        assert len(self.uploads) == 0
        self.assert_no_parts(used)

    def assert_no_parts(self, used: int = 0) -> None:
        assert self.uploads.parts == 0
        assert temporary_files(self.rig.folder) == []
        assert self.rig.accounts == (used, 0)
        assert self.rig.capacity.written == 0
        assert self.open_parts() == []


class Slow:
    """A body that stops in its middle until it is let go on, or breaks."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self._pieces = (first, rest)
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._pieces[0]
        self.begun.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        yield self._pieces[1]


async def full() -> None:
    raise BufferFullError("no room for a row")


async def nothing() -> None:
    pass


OpenMultipart = Callable[..., Awaitable[MultipartRig]]


@pytest.fixture
async def open_multipart(tmp_path: Path) -> AsyncIterator[OpenMultipart]:
    opened: list[MultipartRig] = []

    async def open_one(limits: dict[str, Any] | None = None, **options: Any) -> MultipartRig:
        rig = await ArtifactRig(tmp_path, **options).open()
        opened.append(MultipartRig(rig, **limits or {}))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.uploads.stop()
        one.assert_no_parts(one.rig.capacity.used)
        await one.rig.close()
    assert open_files(tmp_path) == []


@pytest.fixture
async def rig(open_multipart: OpenMultipart) -> MultipartRig:
    return await open_multipart()


# --- storing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3], [3, 1, 2], [10_000, 7]])
@pytest.mark.parametrize("size", [1, BIG])
async def test_parts_become_one_artifact_in_numeric_order(
    rig: MultipartRig, numbers: list[int], size: int
) -> None:
    upload = rig.start()
    parts = {number: os.urandom(size + number) for number in numbers}
    for number in numbers:
        await rig.put(upload, number, parts[number][:100], parts[number][100:])
    assert rig.open_parts() == []  # thousands may wait
    data = b"".join(parts[number] for number in sorted(parts))
    assert rig.rig.accounts == (0, len(data))
    assert await rig.complete(upload, *numbers, digest=sha256(data)) is Stored.CREATED
    assert await rig.rig.content(KEY) == data
    assert rig.rig.rows() == {KEY: (len(data), sha256(data))}
    assert rig.told() == [("created", "", len(data))]
    rig.assert_empty(len(data))


async def test_empty_parts_make_an_empty_artifact(rig: MultipartRig) -> None:
    upload = rig.start()
    for number in (1, 2):
        await rig.put(upload, number)
    await rig.complete(upload, 1, 2)
    assert await rig.rig.content(KEY) == b""
    rig.assert_empty()


async def test_it_is_queued_for_the_object_store(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(uploads=True)
    upload = rig.start()
    await rig.put(upload, 1, b"data")
    await rig.complete(upload, 1)
    assert rig.rig.transfers.is_queued("upload", KEY)


async def test_a_part_sent_again_replaces(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"x" * BIG)
    await rig.put(upload, 2, b"end")
    await rig.put(upload, 1, b"new ")
    assert rig.rig.accounts == (0, 7)
    await rig.complete(upload, 1, 2)
    assert await rig.rig.content(KEY) == b"new end"
    rig.assert_empty(7)


@pytest.mark.parametrize("older_ends_first", [True, False])
async def test_of_two_senders_of_a_part_the_one_that_began_later_counts(
    rig: MultipartRig, older_ends_first: bool
) -> None:
    upload = rig.start()
    older, newer = Slow(b"o" * BIG, b"o"), Slow(b"n" * BIG, b"n")
    sending = []
    for slow in (older, newer):
        put = rig.uploads.put_part(OWNER, upload, 1, slow.chunks(), declared_size=None)
        sending.append(asyncio.ensure_future(put))
        await slow.begun.wait()
    order = [0, 1] if older_ends_first else [1, 0]
    for index in order:
        (older, newer)[index].go_on.set()
        await sending[index]
    await rig.complete(upload, 1)
    assert await rig.rig.content(KEY) == b"n" * (BIG + 1)
    rig.assert_empty(BIG + 1)


async def test_an_older_part_stays_when_the_newer_breaks_off(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"older")
    slow = Slow(b"n" * BIG, b"n")
    slow.error = IncompleteBodyError("the client left")
    sending = asyncio.ensure_future(rig.uploads.put_part(OWNER, upload, 1, slow.chunks(), declared_size=None))
    await slow.begun.wait()
    slow.go_on.set()
    with pytest.raises(IncompleteBodyError):
        await sending
    await rig.complete(upload, 1)
    assert await rig.rig.content(KEY) == b"older"


async def test_parts_sent_at_once(rig: MultipartRig) -> None:
    upload = rig.start()
    parts = {number: os.urandom(300_000) for number in range(1, 13)}
    await asyncio.gather(*(rig.put(upload, number, part) for number, part in parts.items()))
    await rig.complete(upload, *parts)
    assert await rig.rig.content(KEY) == b"".join(parts.values())


# --- completing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[], [1], [2], [1, 2, 3], [1, 3], [1, 1, 2], [1, 2, 2**70], [-1]])
async def test_other_parts_than_arrived_and_the_upload_goes_on(rig: MultipartRig, numbers: list[int]) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    await rig.put(upload, 2, b"2")
    with pytest.raises(BadRequestError, match="part"):
        await rig.complete(upload, *numbers)
    assert rig.told() == []
    assert await rig.complete(upload, 1, 2) is Stored.CREATED


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1], "1 of the parts that arrived are not listed: 2"),
        ([1, 2, 3], "1 of the parts listed did not arrive: 3"),
        ([3], "1 of the parts listed did not arrive: 3; 2 of the parts that arrived are not listed: 1, 2"),
        ([*range(1, 9)], "6 of the parts listed did not arrive: 3, 4, 5, 6, 7, ..."),
    ],
)
async def test_what_is_wrong_with_the_list_is_named(
    rig: MultipartRig, numbers: list[int], message: str
) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    await rig.put(upload, 2, b"2")
    with pytest.raises(BadRequestError) as caught:
        await rig.complete(upload, *numbers)
    assert str(caught.value) == message


async def test_mismatch_ends_the_upload(rig: MultipartRig) -> None:
    upload = rig.start()
    for number in (1, 2):
        await rig.put(upload, number, b"x" * BIG)
    with pytest.raises(DigestMismatchError):
        await rig.complete(upload, 1, 2, digest="0" * 64)
    with pytest.raises(UnknownUploadError):
        await rig.complete(upload, 1, 2)
    assert rig.rig.rows() == {}
    assert artifact_files(rig.rig.folder) == []
    assert rig.told() == [("error", "DigestMismatchError", 2 * BIG)]
    rig.assert_empty()


async def test_who_asks_again_gets_the_same_answer(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    await rig.put(upload, 2, b"2")
    assert await rig.complete(upload, 1, 2) is Stored.CREATED
    rig.assert_empty(2)
    rig.now += IDLE_S - 1
    assert await rig.uploads.remove_idle() == 0
    assert await rig.complete(upload, 2, 1) is Stored.CREATED
    for other in (rig.complete(upload, 1), rig.complete(upload, 1, 2, digest=sha256(b"12"))):
        with pytest.raises(UnknownUploadError, match="other parts"):
            await other
    with pytest.raises(UnknownUploadError):
        await rig.put(upload, 2, b"2")
    with pytest.raises(UnknownUploadError):
        await rig.complete(upload, 1, 2, owner=OWNER._replace(scope="forks"))
    assert rig.told() == [("created", "", 2)]


async def test_a_finished_upload_is_forgotten_after_a_while_however_often_it_is_asked_for(
    rig: MultipartRig,
) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    await rig.complete(upload, 1)
    rig.now += IDLE_S - 1
    await rig.complete(upload, 1)
    rig.now += 1
    await rig.uploads.remove_idle()
    with pytest.raises(UnknownUploadError):
        await rig.complete(upload, 1)
    assert rig.told() == [("created", "", 1)]


async def test_so_many_finished_uploads_are_remembered(
    rig: MultipartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OWNER_MAX_UPLOADS", 2)
    monkeypatch.setattr(session, "MAX_UPLOADS", 3)
    other = OWNER._replace(project="other")

    async def finished(owner: Owner) -> str:
        upload = rig.start(owner)
        await rig.put(upload, 1, owner=owner)
        await rig.complete(upload, 1, owner=owner)
        return upload

    async def is_remembered(owner: Owner, upload: str) -> bool:
        try:
            await rig.complete(upload, 1, owner=owner)
        except UnknownUploadError:
            return False
        return True

    mine = [await finished(OWNER) for _ in range(3)]
    theirs = [await finished(other) for _ in range(2)]
    assert [await is_remembered(OWNER, upload) for upload in mine] == [False, True, True]
    assert [await is_remembered(other, upload) for upload in theirs] == [False, True]


async def test_a_late_commit_is_waited_for_again(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(settings=replace(QUIET, commit_timeout_ms=20))
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    rig.rig.table.shut_gate()
    for _ in range(2):
        with pytest.raises(CommitTimeoutError):
            await rig.complete(upload, 1)
    rig.assert_empty(1)
    rig.rig.table.open_gate()
    await rig.rig.buffer.flush()
    assert await rig.complete(upload, 1) is Stored.CREATED
    assert rig.rig.rows() == {KEY: (1, sha256(b"1"))}
    assert rig.told() == [("error", "CommitTimeoutError", 1)]


async def test_a_late_commit_that_is_refused_in_the_end(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(settings=replace(QUIET, commit_timeout_ms=20))
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    rig.rig.table.shut_gate()
    with pytest.raises(CommitTimeoutError):
        await rig.complete(upload, 1)
    rig.rig.table.refused_keys.add(KEY)
    rig.rig.table.open_gate()
    await rig.rig.buffer.flush()
    for _ in range(2):
        with pytest.raises(RowRefusedError):
            await rig.complete(upload, 1)


async def test_a_full_buffer_leaves_the_upload_as_it_is(
    rig: MultipartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"x" * BIG)
    await rig.put(upload, 2, b"y")
    with monkeypatch.context() as patch:
        patch.setattr(rig.rig.buffer, "wait_for_room", full)
        for _ in range(2):
            with pytest.raises(BufferFullError):
                await rig.complete(upload, 1, 2)
    assert rig.rig.accounts == (0, BIG + 1)
    assert (rig.told(), rig.open_parts()) == ([], [])
    await rig.put(upload, 3, b"z")
    assert await rig.complete(upload, 1, 2, 3) is Stored.CREATED
    assert await rig.rig.content(KEY) == b"x" * BIG + b"yz"
    rig.assert_empty(BIG + 2)


@pytest.mark.parametrize("ends", ["completed", "given up"])
async def test_a_buffer_that_is_filled_while_parts_are_moved(
    rig: MultipartRig, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    upload = rig.start()
    for number in (1, 2, 3):
        await rig.put(upload, number, b"%d" % number * BIG)
    questions = iter([nothing(), full()])
    with monkeypatch.context() as patch:
        patch.setattr(rig.rig.buffer, "wait_for_room", lambda: next(questions))
        with pytest.raises(BufferFullError):
            await rig.complete(upload, 1, 2, 3)
    assert rig.rig.accounts == (0, 3 * BIG)
    assert (rig.uploads.parts, rig.open_parts()) == (1, [])
    with pytest.raises(UnknownUploadError):
        await rig.put(upload, 2, b"y")
    with pytest.raises(UnknownUploadError):
        await rig.complete(upload, 1)
    if ends == "given up":
        rig.now += IDLE_S
        assert await rig.uploads.remove_idle() == 1
        assert rig.told() == [("error", "BufferFullError", 0)]
        rig.assert_empty()
        return
    data = b"1" * BIG + b"2" * BIG + b"3" * BIG
    assert await rig.complete(upload, 1, 2, 3) is Stored.CREATED
    assert rig.rig.rows() == {KEY: (3 * BIG, sha256(data))}
    assert await rig.rig.content(KEY) == data
    rig.assert_empty(3 * BIG)


async def test_it_is_completed_once_however_many_ask(rig: MultipartRig) -> None:
    upload = rig.start()
    for number in (1, 2):
        await rig.put(upload, number, b"x" * BIG)
    answers = await asyncio.gather(*(rig.complete(upload, *order) for order in ((1, 2), (2, 1), (1, 2))))
    assert answers == [Stored.CREATED] * 3
    assert rig.told() == [("created", "", 2 * BIG)]
    rig.assert_empty(2 * BIG)


async def test_who_asks_for_something_else_meanwhile_is_told_that_it_is_gone(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"x")
    answers = await asyncio.gather(
        rig.complete(upload, 1), rig.complete(upload, 1, digest="0" * 64), return_exceptions=True
    )
    assert answers[0] is Stored.CREATED
    assert isinstance(answers[1], UnknownUploadError)


async def test_a_part_that_is_late_for_the_completion(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    slow = Slow(b"n" * BIG, b"n")
    sending = asyncio.ensure_future(rig.uploads.put_part(OWNER, upload, 1, slow.chunks(), declared_size=None))
    await slow.begun.wait()
    await rig.complete(upload, 1)
    slow.go_on.set()
    with pytest.raises(UnknownUploadError):
        await sending
    assert await rig.rig.content(KEY) == b"1"
    rig.assert_empty(1)


async def test_two_uploads_of_one_artifact(rig: MultipartRig) -> None:
    uploads = [rig.start(), rig.start()]
    for upload in uploads:
        await rig.put(upload, 1, b"x" * BIG)
        await rig.put(upload, 2, b"y")
    answers = await asyncio.gather(*(rig.complete(upload, 1, 2) for upload in uploads))
    assert sorted(answer.value for answer in answers) == ["created", "exists"]
    rig.assert_empty(BIG + 1)


async def test_it_is_completed_though_the_client_has_gone(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"data")
    rig.rig.table.shut_gate()
    asking = asyncio.ensure_future(rig.complete(upload, 1))
    while rig.uploads._sessions[upload].completion is None:  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    again = asyncio.ensure_future(rig.complete(upload, 1))
    await asyncio.sleep(0)
    rig.rig.table.open_gate()
    assert await again is Stored.CREATED
    assert await rig.rig.content(KEY) == b"data"


async def test_a_stop_while_it_is_completed_leaves_nothing(
    rig: MultipartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    await rig.put(upload, 2, b"2")
    never = asyncio.Event()
    began = asyncio.Event()

    async def grow(*_: object) -> None:
        began.set()
        await never.wait()

    monkeypatch.setattr(rig.rig.artifacts.intake, "grow", grow)
    asking = asyncio.ensure_future(rig.complete(upload, 1, 2))
    await began.wait()
    await rig.uploads.stop()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert rig.told() == [("cancelled", "", 2)]
    rig.assert_empty()


# --- whose it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "owner",
    [Owner("acc", "other", None), Owner("other", "proj", None), Owner("acc", "proj", "forks")],
)
async def test_to_everybody_else_it_does_not_exist(rig: MultipartRig, owner: Owner) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    with pytest.raises(UnknownUploadError):
        await rig.put(upload, 1, b"2", owner=owner)
    with pytest.raises(UnknownUploadError):
        await rig.complete(upload, 1, owner=owner)
    with pytest.raises(UnknownUploadError):
        rig.uploads.expect(owner, upload)
    await rig.complete(upload, 1)
    assert await rig.rig.content(KEY) == b"1"


# --- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [4, None])
async def test_all_parts_together_are_bounded(open_multipart: OpenMultipart, declared: int | None) -> None:
    rig = await open_multipart({"module_max_bytes": 10})
    upload = rig.start()
    await rig.put(upload, 1, b"1234")
    await rig.put(upload, 2, b"123")
    with pytest.raises(PartsTooLargeError):
        await rig.put(upload, 3, b"1234", declared=declared)
    await rig.put(upload, 1, b"1", declared=1)
    await rig.put(upload, 3, b"1234", declared=declared)
    await rig.put(upload, 1, b"abc", declared=3)  # in the place of the one byte
    await rig.complete(upload, 1, 2, 3)
    assert await rig.rig.content(KEY) == b"abc1231234"


async def test_uploads_and_parts_are_counted(rig: MultipartRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_UPLOADS", 2)
    monkeypatch.setattr(bounds, "MAX_PARTS", 3)
    uploads = [rig.start(), rig.start()]
    with pytest.raises(CapacityError):
        rig.start()
    for number in (1, 2, 3):
        await rig.put(uploads[0], number)
    with pytest.raises(CapacityError):
        await rig.put(uploads[1], 1)
    await rig.complete(uploads[0], 1, 2, 3)
    await rig.put(uploads[1], 1)
    rig.start()


async def test_uploads_and_parts_of_one_owner_are_counted(
    rig: MultipartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "OWNER_MAX_UPLOADS", 2)
    monkeypatch.setattr(bounds, "OWNER_MAX_PARTS", 3)
    uploads = [rig.start(), rig.start()]
    with pytest.raises(CapacityError, match="2 uploads in parts of acc/proj are going on"):
        rig.start()
    for number in (1, 2, 3):
        await rig.put(uploads[0], number)
    with pytest.raises(CapacityError, match="3 parts of acc/proj are waiting"):
        await rig.put(uploads[1], 1)
    for owner in (OWNER._replace(scope="forks"), OWNER._replace(project="other")):
        await rig.put(rig.start(owner), 1, owner=owner)
    # What is finished counts no more.
    await rig.complete(uploads[0], 1, 2, 3)
    await rig.put(uploads[1], 1)
    rig.start()


@pytest.mark.parametrize("declared", [BIG, None])
async def test_bytes_of_one_owner_are_counted_and_nothing_is_evicted_for_what_is_beyond(
    open_multipart: OpenMultipart, monkeypatch: pytest.MonkeyPatch, declared: int | None
) -> None:
    rig = await open_multipart({"module_max_bytes": BIG}, limit_bytes=4_000_000)

    async def evict(_size: int) -> bool:
        raise AssertionError("asked for an eviction")

    monkeypatch.setattr(rig.rig.artifacts.intake, "make_room", evict)
    first, second = rig.start(), rig.start()
    await rig.put(first, 1, b"x" * BIG)
    with pytest.raises(CapacityError, match=r"parts of acc/proj hold .* and 1000000 are the most"):
        await rig.put(second, 1, b"y" * (BIG // 2), b"y" * (BIG // 2), declared=declared)
    assert rig.rig.accounts == (0, BIG)
    other = OWNER._replace(scope="forks")
    await rig.put(rig.start(other), 1, b"x" * BIG, owner=other)
    await rig.complete(first, 1)
    await rig.put(second, 1, b"y" * BIG, declared=declared)


@pytest.mark.parametrize(
    ("limit", "module", "bound"),
    [(1_000, 100, 250), (1_000, 400, 400), (1_000, 501, 500), (1_000, 5_000, 500)],
)
def test_an_owner_has_a_quarter_but_room_for_a_module_up_to_half(limit: int, module: int, bound: int) -> None:
    capacity = Capacity(lambda: Volume(10**12, 10**12), limit, 100.0)
    assert bounds.MultipartBounds(capacity, module).owner_max_bytes() == bound


async def test_no_room_for_a_part(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(limit_bytes=1_000_000)
    upload = rig.start()
    await rig.put(upload, 1, b"x" * 300_000)
    held = rig.rig.capacity.reserve(600_000)
    for declared in (190_000, None):
        with pytest.raises(CapacityError, match="reserved"):
            await rig.put(upload, 2, b"y" * 190_000, declared=declared)
    with pytest.raises(TooLargeError):
        await rig.put(upload, 2, declared=2_000_000)
    assert rig.rig.accounts == (0, 900_000)
    await rig.complete(upload, 1)
    held.release()


async def test_completing_needs_room_for_one_part_more_than_all(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(limit_bytes=8_000_000)
    upload = rig.start()
    data = [bytes([number]) * 1_000_000 for number in range(4)]
    for number, part in enumerate(data):
        await rig.put(upload, number + 1, part)
    with rig.rig.capacity.reserve(3_000_000):
        await rig.complete(upload, 1, 2, 3, 4)
    assert await rig.rig.content(KEY) == b"".join(data)


async def test_no_room_to_complete_ends_the_upload(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(limit_bytes=2_000_000)
    upload = rig.start()
    for number in (1, 2):
        await rig.put(upload, number, b"x" * 500_000)
    with rig.rig.capacity.reserve(1_000_000), pytest.raises(CapacityError):
        await rig.complete(upload, 1, 2)
    assert rig.told() == [("error", "CapacityError", 1_000_000)]
    rig.assert_empty()


# --- a bad disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("operation", ["open", "write"])
async def test_a_bad_disk_while_a_part_is_sent(rig: MultipartRig, operation: str, number: int) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"older")
    expected = OSError if number == errno.EIO else CapacityError
    with fault(operation, number), pytest.raises(expected):
        await rig.put(upload, 1, b"x" * BIG)
    assert rig.rig.accounts == (0, 5)
    await rig.complete(upload, 1)
    assert await rig.rig.content(KEY) == b"older"
    rig.assert_empty(5)


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize(("operation", "after"), [("open", 0), ("write", 0), ("write", 1), ("link", 0)])
async def test_a_bad_disk_while_it_is_completed(
    rig: MultipartRig, operation: str, after: int, number: int
) -> None:
    upload = rig.start()
    for part in (1, 2, 3):
        await rig.put(upload, part, b"x" * BIG)
    expected = OSError if number == errno.EIO else CapacityError
    with fault(operation, number, after=after) as struck, pytest.raises(expected):
        await rig.complete(upload, 1, 2, 3)
    assert struck.struck
    assert rig.rig.rows() == {}
    assert artifact_files(rig.rig.folder) == []
    rig.assert_empty()


async def test_a_part_that_was_cut_on_disk_is_never_served(rig: MultipartRig) -> None:
    upload = rig.start()
    for part in (1, 2):
        await rig.put(upload, part, b"x" * BIG)
    os.truncate(max((rig.rig.folder / "temporary").rglob("*")), 10)
    with pytest.raises(OSError, match="not the bytes"):
        await rig.complete(upload, 1, 2)
    rig.assert_empty()


# --- uploads nobody goes on with ----------------------------------------------------------------------


async def test_idle_uploads_are_removed_with_their_files(rig: MultipartRig) -> None:
    idle, busy = rig.start(), rig.start()
    await rig.put(idle, 1, b"x" * BIG)
    await rig.put(busy, 1, b"y")
    rig.now += IDLE_S - 1
    assert await rig.uploads.remove_idle() == 0
    await rig.put(busy, 2, b"z")
    rig.now += 1
    assert await rig.uploads.remove_idle() == 1
    assert rig.rig.accounts == (0, 2)
    assert len(temporary_files(rig.rig.folder)) == 2
    with pytest.raises(UnknownUploadError):
        await rig.put(idle, 2, b"x")
    await rig.complete(busy, 1, 2)
    assert rig.told() == [("cancelled", "", 0), ("created", "", 2)]


async def test_an_upload_is_not_idle_while_a_part_comes_however_slowly(rig: MultipartRig) -> None:
    upload = rig.start()
    slow = Slow(b"a", b"b")
    sending = asyncio.ensure_future(rig.uploads.put_part(OWNER, upload, 1, slow.chunks(), declared_size=None))
    await slow.begun.wait()
    rig.now += 10 * IDLE_S
    assert await rig.uploads.remove_idle() == 0
    slow.go_on.set()
    await sending
    rig.now += IDLE_S - 1
    assert await rig.uploads.remove_idle() == 0
    rig.now += 1
    assert await rig.uploads.remove_idle() == 1
    rig.assert_empty()


async def test_what_fails_keeps_no_upload_alive(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"1")
    rig.now += IDLE_S - 1
    with pytest.raises(DigestMismatchError):
        await rig.put(upload, 2, b"2", digest="0" * 64)
    with pytest.raises(BadRequestError):
        await rig.complete(upload, 2)
    rig.uploads.expect(OWNER, upload)
    rig.now += 1
    assert await rig.uploads.remove_idle() == 1
    rig.assert_empty()


async def test_an_upload_given_up_for_an_error_counts_as_that_error(open_multipart: OpenMultipart) -> None:
    rig = await open_multipart(limit_bytes=1_000)
    upload, other = rig.start(), rig.start()
    held = rig.rig.capacity.reserve(990)
    for one in (upload, other):
        with pytest.raises(CapacityError):
            await rig.put(one, 1, b"x" * 100)
    await rig.put(other, 1, b"x")
    rig.now += IDLE_S
    assert await rig.uploads.remove_idle() == 2
    assert rig.told() == [("error", "CapacityError", 0), ("cancelled", "", 0)]
    held.release()


async def test_the_worker_looks_again_and_again(rig: MultipartRig) -> None:
    worker = asyncio.ensure_future(rig.uploads.run())
    for _ in range(2):
        rig.start()
        await rig.slept.wait()
        rig.slept.clear()
        rig.now += IDLE_S
        rig.awake.set()
        await rig.slept.wait()
        assert len(rig.uploads) == 0
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker


async def test_a_stop_removes_everything(rig: MultipartRig) -> None:
    upload = rig.start()
    await rig.put(upload, 1, b"x" * BIG)
    await rig.uploads.stop()
    rig.assert_empty()
    await rig.uploads.stop()
