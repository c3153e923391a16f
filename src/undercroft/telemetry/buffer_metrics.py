"""The series of the buffers. Names speak of a writer because dashboards did before there were buffers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from undercroft.buffers import SQLiteBuffer
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.prometheus import Prometheus
from undercroft.telemetry.tallies import Distributions

FLUSH_BUCKETS_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000)

# How long a client waits for its commit, in seconds; most waits are about a millisecond.
COMMIT_WAIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10)

BATCH_SIZE = "tuist_cache_sqlite_writer_flush_batch_size"


class BufferMetrics:
    """Counts what buffers tell of themselves."""

    def __init__(
        self, prometheus: Prometheus, telemetry: Events, buffers: Sequence[SQLiteBuffer[Any, Any]]
    ) -> None:
        registry, both = prometheus.registry, ("operation", "buffer")
        self._sums = prometheus.sums
        self._retries = Counter(
            "tuist_cache_sqlite_writer_retries", "Retries of a locked database", both, registry=registry
        )
        self._durations = Histogram(
            "tuist_cache_sqlite_writer_flush_duration_ms",
            "Duration of a committed transaction, in milliseconds",
            both,
            buckets=FLUSH_BUCKETS_MS,
            registry=registry,
        )
        self._refused = Counter(
            "undercroft_buffer_refused_rows", "Rows SQLite refused, set aside", both, registry=registry
        )
        # Counted for every write.
        commit_waits = Distributions(
            "undercroft_buffer_commit_wait_seconds",
            "How long somebody waited for a commit",
            "buffer",
            [buffer.name for buffer in buffers],
            COMMIT_WAIT_BUCKETS,
        )
        registry.register(commit_waits)
        self._commit_waits = commit_waits.by_value
        self._counters = {
            event: Counter(name, text, ("buffer",), registry=registry) for event, name, text in PER_BUFFER
        }
        registry.register(_Depths(buffers))
        self._show(buffers)
        self._attach(telemetry)

    def _show(self, buffers: Sequence[SQLiteBuffer[Any, Any]]) -> None:
        for buffer in buffers:
            for operation in buffer.operations:
                labels = {"operation": operation, "buffer": buffer.name}
                for metric in (self._retries, self._durations, self._refused):
                    metric.labels(**labels)
                self._sums.declare(BATCH_SIZE, "Rows in committed transactions", labels)
            for counter in self._counters.values():
                counter.labels(buffer.name)

    def _attach(self, telemetry: Events) -> None:
        telemetry.attach(events.FLUSH, self._on_flush)
        telemetry.attach(events.RETRY, self._on_retry)
        telemetry.attach(events.REFUSED, self._on_refused)
        telemetry.attach(events.COMMIT_WAIT, self._on_commit_wait)
        for event, counter in self._counters.items():
            telemetry.attach(event, _counting(counter))

    def _on_flush(self, measurements: Measurements, metadata: Metadata) -> None:
        labels = {"operation": metadata["operation"], "buffer": metadata["buffer"]}
        self._durations.labels(**labels).observe(measurements["duration_ms"])
        self._sums.add(BATCH_SIZE, measurements["batch_size"], labels)

    def _on_retry(self, measurements: Measurements, metadata: Metadata) -> None:
        self._retries.labels(metadata["operation"], metadata["buffer"]).inc(measurements["count"])

    def _on_refused(self, measurements: Measurements, metadata: Metadata) -> None:
        self._refused.labels(metadata["operation"], metadata["buffer"]).inc(measurements["count"])

    def _on_commit_wait(self, measurements: Measurements, metadata: Metadata) -> None:
        self._commit_waits[metadata["buffer"]].add(measurements["seconds"])


def _counting(counter: Counter) -> events.Handler:
    def count(measurements: Measurements, metadata: Metadata) -> None:
        counter.labels(metadata["buffer"]).inc(measurements["count"])

    return count


PER_BUFFER = (
    (events.REJECTED, "undercroft_buffer_rejected", "Writes refused because the buffer was full"),
    (
        events.SHED,
        "undercroft_buffer_shed",
        "Times of last access dropped because the buffer was nearly full",
    ),
    (events.STALLED, "undercroft_buffer_failed_flushes", "Transactions that failed; their rows are kept"),
    (events.SPILLED, "undercroft_buffer_spilled_rows", "Rows written to the spill file"),
    (events.REPLAYED, "undercroft_buffer_replayed_rows", "Rows replayed from a spill file"),
)


class _Depths(Collector):
    """What waits in the buffers, asked at each scrape."""

    def __init__(self, buffers: Sequence[SQLiteBuffer[Any, Any]]) -> None:
        self._buffers = buffers

    def collect(self) -> Iterable[Metric]:
        """The established gauges in rows, and new ones by buffer."""
        total = 0
        for buffer in self._buffers:
            rows = buffer.queue_stats().rows
            total += rows
            name = f"tuist_cache_sqlite_writer_pending_{buffer.name}"
            yield GaugeMetricFamily(name, "Rows that are not committed yet", value=rows)
        yield GaugeMetricFamily(
            "tuist_cache_sqlite_writer_pending_total", "Rows of all buffers not committed yet", value=total
        )
        yield self._by_buffer(
            "undercroft_buffer_pending_bytes",
            "Memory taken by rows that are not committed yet",
            lambda b: b.queue_stats().bytes,
        )
        yield self._by_buffer(
            "undercroft_buffer_rows_in_flight",
            "Rows handed to SQLite, not committed yet",
            lambda b: b.rows_in_flight,
        )
        yield self._by_buffer(
            "undercroft_buffer_oldest_age_seconds",
            "Age of the oldest event not committed",
            lambda b: b.oldest_age,
        )

    def _by_buffer(self, name: str, text: str, figure: Callable[[SQLiteBuffer[Any, Any]], float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("buffer",))
        for buffer in self._buffers:
            family.add_metric((buffer.name,), figure(buffer))
        return family
