"""Series of several workers as those of one node."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import ByteSize
from structlog.testing import capture_logs

from tests.support.served_node import served_node
from undercroft.telemetry.summed import (
    GAUGES,
    LastWords,
    counted,
    decoded,
    encoded,
    merged,
    rendered,
    report_of,
)


def registry(count: int, *, size: float = 0, age: float = 0, pending: float = 0) -> CollectorRegistry:
    """What a worker shows that counted so often."""
    made = CollectorRegistry()
    counter = Counter("asked", "Asked", ("result",), registry=made)
    counter.labels("hit").inc(count)
    if count > 1:
        counter.labels("miss").inc(1)
    histogram = Histogram("took", "Took", buckets=(1, 2), registry=made)
    for _ in range(count):
        histogram.observe(1.5)
    for name, value in (
        ("undercroft_disk_used_bytes", size),
        ("undercroft_buffer_oldest_age_seconds", age),
        ("undercroft_buffer_rows_in_flight", pending),
    ):
        Gauge(name, name, registry=made).set(value)
    return made


def lines(text: bytes) -> set[str]:
    return {line for line in text.decode().splitlines() if not line.startswith("#")}


def test_each_kind_of_series_has_its_rule() -> None:
    first = report_of(registry(1, size=7, age=1, pending=1))
    other = decoded(encoded(report_of(registry(2, size=9, age=3, pending=2))))
    body, content_type = rendered(merged(first, [other]))
    assert content_type.startswith("text/plain")
    shown = lines(body)
    assert {
        'asked_total{result="hit"} 3.0',
        'asked_total{result="miss"} 1.0',
        'took_bucket{le="1.0"} 0.0',
        'took_bucket{le="+Inf"} 3.0',
        "took_sum 4.5",
        "undercroft_disk_used_bytes 7.0",
        "undercroft_buffer_oldest_age_seconds 3.0",
        "undercroft_buffer_rows_in_flight 3.0",
    } <= shown
    assert body.count(b"# TYPE asked_total counter") == 1


async def test_every_gauge_of_a_node_has_a_rule(tmp_path: Path) -> None:
    async with served_node(tmp_path / "node") as served:
        report = report_of(served.node.prometheus.registry)
    assert {series.name for series in report if series.kind == "gauge"} == set(GAUGES)
    assert {series.kind for series in report} == {"gauge", "counter", "histogram", "unknown"}


def test_a_size_from_the_settings_is_told_like_any_other_number() -> None:
    class Limit(Collector):
        def collect(self) -> Iterable[Metric]:
            yield GaugeMetricFamily("limit", "Limit", value=ByteSize(7))

    made = CollectorRegistry()
    made.register(Limit())
    report = decoded(encoded(report_of(made)))
    assert "limit 7.0" in lines(rendered(report)[0])


async def test_what_the_dead_counted_still_counts(tmp_path: Path) -> None:
    words = LastWords(tmp_path)
    assert words.read(1) == []
    await words.write(1, report_of(registry(5, size=9)))
    inherited = words.read(1)
    assert {series.kind for series in inherited} == {"counter", "histogram"}
    shown = lines(rendered(merged(report_of(registry(1, size=7)), [inherited]))[0])
    assert {'asked_total{result="hit"} 6.0', "undercroft_disk_used_bytes 7.0"} <= shown
    await words.write(1, inherited)
    assert words.read(1) == inherited


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}"])
def test_what_cannot_be_read_counts_as_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "counted-0").write_bytes(content)
    assert LastWords(tmp_path).read(0) == []


async def test_what_cannot_be_kept_does_not_keep_from_showing_it(tmp_path: Path) -> None:
    words = LastWords(tmp_path)
    await words.write(0, report_of(registry(5)))
    kept = words.read(0)
    in_the_way = tmp_path / "counted-0.tmp"
    for times in (1, 2):
        in_the_way.mkdir()  # as good as a volume that is full
        with capture_logs() as log:
            for _ in range(3):
                await words.write(0, report_of(registry(6)))
        # Once each time that it begins.
        assert [line["event"] for line in log] == ["counts_not_kept"], times
        assert words.read(0) == kept
        in_the_way.rmdir()
        await words.write(0, report_of(registry(5)))


async def test_two_that_ask_at_once_are_both_answered(tmp_path: Path) -> None:
    words = LastWords(tmp_path)
    reports = [report_of(registry(count)) for count in range(1, 51)]
    await asyncio.gather(*(words.write(0, report) for report in reports))
    assert words.read(0) == counted(reports[-1])


def test_gauges_of_the_dead_are_gone() -> None:
    assert [series.name for series in counted(report_of(registry(1)))] == ["asked", "took"]
