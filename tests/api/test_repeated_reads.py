"""The files behind artifacts that are asked for in the same words: their use, and disks that fail."""

import errno
import os
import threading
from typing import Any

import pytest

from tests.support.disk_faults import fault
from tests.support.leaks import open_files
from tests.support.locks import lock_of_another_connection
from tests.support.same_words import same_words
from tests.support.served_node import ServedNode
from undercroft import artifact_rows
from undercroft.artifact_rows import ACCESS_RESOLUTION_US
from undercroft.clock import now_us
from undercroft.errors import ClosedError
from undercroft.http.repeats import Answer, Asked, Settle

from .dialects import CCACHE, TUIST_CAS, DialectCase
from .test_repeated_artifacts import (
    DATA,
    every_dialect,
    file_of_the_only_one,
    key_of_the_only_one,
    put,
)


@every_dialect
async def test_what_is_asked_for_over_and_over_is_not_evicted(
    served: ServedNode, dialect: DialectCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, used_at = dialect.path_for(DATA), now_us()
    await put(served, dialect, path)
    key = key_of_the_only_one(served)
    monkeypatch.setattr(artifact_rows, "now_us", lambda: used_at)
    async with same_words(served, path) as ask:
        await ask.twice()
        for _ in range(3):
            used_at += 2 * ACCESS_RESOLUTION_US
            assert [(await ask()).repeated for _ in range(3)] == [True] * 3
            await served.node.artifacts.flush()
            assert served.rows("SELECT last_accessed_at FROM cache_artifacts") == [(used_at,)]
            assert await served.node.artifacts.evict(key, unless_used_after=used_at - 1) is None
            # It was recorded just now.
            assert (await ask()).repeated
            assert served.node.artifact_buffer.queue_stats().rows == 0
    assert await served.node.artifacts.evict(key, unless_used_after=used_at) == len(DATA)


async def test_who_locks_the_database_changes_no_answer(served: ServedNode) -> None:
    path = TUIST_CAS.path("k" * 8)
    await put(served, TUIST_CAS, path)
    async with same_words(served, path) as ask:
        before = await ask.twice()
        with lock_of_another_connection(served.folder / "node.sqlite", "EXCLUSIVE"):
            assert (await ask()).common == before.common
        assert (await ask()).common == before.common


@pytest.mark.parametrize("operation", ["open", "fstat", "preadv"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EAGAIN])
async def test_what_fails_once_is_asked_in_full(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    path = CCACHE.path("k" * 8)
    await put(served, CCACHE, path)
    assert served.node.server is not None
    repeats, really, struck = served.node.server.repeats, getattr(os, operation), []
    answer = repeats.answer

    def fail(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return really(*args, **kwargs)  # reconcile is at work, too
        struck.append(operation)
        raise OSError(number, os.strerror(number))

    def fail_once(request: Asked) -> Answer | Settle | None:
        monkeypatch.undo()
        with monkeypatch.context() as patched:
            patched.setattr(os, operation, fail)
            return answer(request)

    async with same_words(served, path) as ask:
        before = await ask.twice()
        assert before.repeated
        for _ in range(3):
            monkeypatch.setattr(repeats, "answer", fail_once)
            for repeated in (False, True):
                reply = await ask()
                assert (reply.common, reply.repeated) == (before.common, repeated)
    assert struck == [operation] * 3
    # One may be open because reconcile looks at it right now.
    assert len(open_files(served.folder / "artifacts")) <= 1


async def test_no_file_stays_open(served: ServedNode) -> None:
    """Neither of what is served again, nor of what is another by now, or unknown, or cannot be read."""
    path = CCACHE.path("k" * 8)
    async with same_words(served, path) as ask:
        for number in range(10):
            await put(served, CCACHE, path, b"%d" % number)
            assert [(await ask()).repeated for _ in range(3)] == [False, True, True]
            os.utime(file_of_the_only_one(served))
            with fault("preadv", errno.EIO):
                assert [(await ask()).repeated for _ in range(2)] == [False, False]
    # One may be open because reconcile looks at it right now.
    assert len(open_files(served.folder / "artifacts")) <= 1


async def test_no_file_stays_open_when_its_use_cannot_be_recorded(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise ClosedError("the buffer is closed")

    path, later = CCACHE.path("k" * 8), now_us() + 2 * ACCESS_RESOLUTION_US
    await put(served, CCACHE, path)
    async with same_words(served, path) as ask:
        monkeypatch.setattr(artifact_rows, "now_us", lambda: later)
        for _ in range(5):
            await ask()
            with monkeypatch.context() as patched:
                patched.setattr(served.node.artifacts._rows, "track_repeated_access", closed)
                assert not (await ask()).repeated
    # One may be open because reconcile looks at it right now.
    assert len(open_files(served.folder / "artifacts")) <= 1
