"""Logs: one JSON line per record, filtered by level, without what must not be in them."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import pytest
import structlog

from undercroft.telemetry import logs

Level = Literal["debug", "info", "warning", "error"]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def written(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def fail(credentials: str) -> None:
    raise ZeroDivisionError(f"{len(credentials)} characters")


def write_all() -> None:
    log = structlog.get_logger()
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(f"happened_{level}", value=1)


def test_json_lines_have_event_level_and_timestamp(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json")
    write_all()
    records = written(capsys)
    assert [record["event"] for record in records] == [
        "happened_debug",
        "happened_info",
        "happened_warning",
        "happened_error",
    ]
    for record in records:
        assert record["level"] in record["event"]
        assert record["value"] == 1
        assert datetime.fromisoformat(record["timestamp"]).utcoffset() is not None


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels_filter(capsys: pytest.CaptureFixture[str], level: Level, count: int) -> None:
    logs.configure(level, "json")
    write_all()
    assert len(written(capsys)) == count


def test_auto_is_json_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "auto")
    structlog.get_logger().info("happened")
    assert written(capsys)[0]["event"] == "happened"


def test_console_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    structlog.get_logger().info("happened", value=1)
    line = capsys.readouterr().err
    assert "happened" in line
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(line)


def test_values_that_would_break_a_line_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().info("happened", path="a\nb\x00", object=object())
    assert written(capsys)[0]["path"] == "a\nb\x00"


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_without_local_variables(
    capsys: pytest.CaptureFixture[str], form: Literal["json", "console"]
) -> None:
    logs.configure("info", form)
    try:
        fail("secret-" + "token")
    except ZeroDivisionError:
        structlog.get_logger().exception("failed")
    line = capsys.readouterr().err
    assert "ZeroDivisionError" in line
    assert "in fail" in line or '"name": "fail"' in line
    assert "secret-token" not in line


def test_a_line_that_nobody_takes_is_lost_and_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure("info", "json")
        structlog.get_logger().error("nobody_listens", padding="x" * 100_000)
        outlet = logs.Outlet(stream)
        outlet.write("line" * 100_000)
        outlet.flush()
        assert outlet.lost > 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what is buffered has to go somewhere
