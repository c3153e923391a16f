"""The status of one process, and of several as if they were one."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
import structlog

from tests.support.served_node import served_node
from undercroft.storage.capacity import Capacity, Volume
from undercroft.telemetry import events, logs, status
from undercroft.telemetry.events import Events
from undercroft.telemetry.recent_warnings import KEPT, RECENT, RecentWarnings
from undercroft.telemetry.status import Marks, Status, StatusReport, together


async def no_transfers() -> dict[str, int]:
    return {"upload": 3, "delete": 1}


def report(telemetry: Events, *, has_object_store: bool = True, volume: Volume | None = None) -> StatusReport:
    def ask() -> Volume:
        if volume is None:
            raise OSError("the disk is gone")
        return volume

    return StatusReport(
        telemetry,
        (),
        Capacity(ask, 100, 95.0),
        ask,
        Marks(90, 80, 95),
        warnings=RecentWarnings(),
        count_transfers=no_transfers,
        in_work=lambda: 2,
        parked=lambda: 1,
        data_directory=lambda: "1-2",
        has_object_store=has_object_store,
    )


def store_request(telemetry: Events, result: str) -> None:
    telemetry.emit(events.OBJECT_STORE_REQUEST, {"duration_ms": 1}, {"operation": "head", "result": result})


async def test_transfers_and_a_disk_that_does_not_answer() -> None:
    found = await report(Events()).now()
    assert (found.transfers.uploads, found.transfers.downloads, found.transfers.deletes) == (3, 0, 1)
    assert (found.transfers.in_work, found.transfers.parked) == (2, 1)
    assert (found.disk.volume_bytes, found.disk.limit_bytes) == (0, 0)


async def test_the_age_at_eviction_is_that_of_the_last() -> None:
    telemetry = Events()
    asked = report(telemetry, volume=Volume(1_000, 500))
    assert (await asked.now()).disk.eviction_age_seconds is None
    for age in (50.0, 40.0):
        telemetry.emit(events.DISK_EVICTED, {"bytes": 1, "age_seconds": age}, {})
    disk = (await asked.now()).disk
    assert (disk.evicted, disk.eviction_age_seconds, disk.limit_bytes, disk.free_bytes) == (2, 40.0, 100, 500)


@pytest.mark.parametrize(
    ("results", "health"),
    [
        ([], "unasked"),
        (["found", "absent", "done"], "well"),
        (["error"], "well"),
        (["error", "throttled"], "failing"),
        (["error", "error", "found"], "well"),
    ],
)
async def test_health_of_the_object_store(results: list[str], health: str) -> None:
    telemetry = Events()
    asked = report(telemetry)
    for result in results:
        store_request(telemetry, result)
    store = (await asked.now()).object_store
    assert (store.health, store.requests) == (health, len(results))
    assert store.errors == sum(result in ("error", "throttled") for result in results)


async def test_old_requests_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Events()
    asked = report(telemetry)
    for _ in range(3):
        store_request(telemetry, "error")
    later = time.monotonic() + status.STORE_WINDOW_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (await asked.now()).object_store.health == "unasked"
    assert (await report(telemetry, has_object_store=False).now()).object_store.health == "none"


async def test_two_processes_as_one(tmp_path: Path) -> None:
    async with served_node(tmp_path / "data") as served:
        first = await served.node.status_report.now()
        second = msgspec.json.decode(msgspec.json.encode(first), type=Status)
        buffer, other = first.buffers[0], second.buffers[0]
        buffer.rows, other.rows = 3, 4
        buffer.oldest_age_seconds, other.oldest_age_seconds = 1.0, 2.0
        buffer.flush_ms, other.flush_ms, other.longest_flush_ms = 1.0, 3.0, 9.0
        other.stalled = "locked"
        second.object_store.health, second.object_store.requests = "failing", 5
        second.disk.evicted, second.disk.eviction_age_seconds = 7, 60.0
        second.started_at += 10
        both = together([first, second])
    assert both.workers == 2
    assert both.started_at == second.started_at
    one = both.buffers[0]
    assert (one.rows, one.oldest_age_seconds, one.flush_ms, one.longest_flush_ms) == (7, 2.0, 2.0, 9.0)
    assert one.stalled == "locked"
    assert (both.object_store.health, both.object_store.requests) == ("failing", 5)
    assert (both.disk.evicted, both.disk.eviction_age_seconds) == (7, 60.0)
    assert both.disk.limit_bytes == first.disk.limit_bytes


def test_the_last_warnings_are_kept() -> None:
    kept = RecentWarnings()
    for number in range(KEPT + 10):
        kept(None, "warning", {"level": "warning", "event": f"e{number}", "timestamp": "t", "size": number})
    kept(None, "info", {"level": "info", "event": "nothing"})
    found = kept.newest_first()
    assert len(found) == KEPT
    assert (found[0].event, found[0].values) == (f"e{KEPT + 9}", {"size": str(KEPT + 9)})


def test_an_error_says_what_it_was_and_long_values_are_cut() -> None:
    kept = RecentWarnings()
    record = {"level": "error", "event": "failed", "exc_info": OSError("disk"), "path": "x" * 1_000}
    assert kept(None, "error", record) is record
    (found,) = kept.newest_first()
    assert found.values == {"path": "x" * 300, "error": "OSError('disk')"}


async def test_what_is_logged_gets_there(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        await asyncio.to_thread(structlog.get_logger().warning, "something_is_wrong", why="a reason")
        newest = RECENT.newest_first()[0]
    finally:
        structlog.reset_defaults()
    assert (newest.level, newest.event, newest.values) == (
        "warning",
        "something_is_wrong",
        {"why": "a reason"},
    )
    assert "something_is_wrong" in capsys.readouterr().err
