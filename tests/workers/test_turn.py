"""Whose turn it is, between the processes on one data directory."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from undercroft.workers import turn
from undercroft.workers.turn import Turn

from .clean_rig import drop, until


@pytest.fixture(autouse=True)
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "ASK_EVERY_S", 0.001)


class Opened:
    """Counts how often the file is opened, and refuses it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self.error: OSError | None = None
        self._really_open = os.open
        monkeypatch.setattr("undercroft.workers.turn.os.open", self._open)

    def _open(self, *arguments: Any) -> int:
        self.times += 1
        if self.error is not None:
            raise self.error
        return self._really_open(*arguments)


async def test_one_after_the_other(tmp_path: Path) -> None:
    first, second = Turn(tmp_path / "lock"), Turn(tmp_path / "lock")
    await first.wait()
    await first.wait()
    waiting = asyncio.create_task(second.wait())
    with capture_logs() as logs:
        await until(lambda: logs)
        assert not waiting.done()
        first.give_up()
        await waiting
    assert [entry["event"] for entry in logs] == ["background_work_elsewhere"]
    second.give_up()
    second.give_up()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EACCES])
async def test_what_the_system_refuses_is_told_once_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = Opened(monkeypatch)
    opened.error = OSError(number, "not now")
    ours = Turn(tmp_path / "lock")
    with capture_logs() as logs:
        waiting = asyncio.create_task(ours.wait())
        await until(lambda: opened.times > 3)
        assert not waiting.done()
        opened.error = None
        await waiting
    assert [entry["event"] for entry in logs] == ["background_lock_failed"]
    ours.give_up()


async def test_one_asks_for_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "ASK_EVERY_S", 3_600.0)
    first, second = Turn(tmp_path / "lock"), Turn(tmp_path / "lock")
    await first.wait()
    opened = Opened(monkeypatch)
    waiting = [asyncio.create_task(second.wait()) for _ in range(5)]
    await until(lambda: opened.times)
    for _ in range(10):
        await asyncio.sleep(0)
    assert opened.times == 1
    # The one that asks may end before the others: the next one asks then.
    first.give_up()
    await drop(waiting[0])
    await asyncio.wait(waiting[1:], timeout=20)
    assert [task.done() for task in waiting] == [True] * 5
    assert opened.times == 2
    second.give_up()
