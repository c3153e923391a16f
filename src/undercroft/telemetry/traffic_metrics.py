"""The series of artifacts, key values, the disk and pending transfers."""

from collections.abc import Iterable, Mapping

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from undercroft.storage.capacity import Capacity
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.prometheus import Prometheus

# Tools with series of their own on existing dashboards; native Gradle counts as gradle, too.
DASHBOARD_TOOLS = ("cas", "module", "gradle")
TOOLS = (*DASHBOARD_TOOLS, "bazel", "ccache")

DOWNLOAD_COUNTERS = ("hits", "disk_hits", "disk_misses", "errors", "s3_hits", "s3_misses")
UPLOAD_COUNTERS = ("attempts", "success", "exists", "cancelled")

# What a download counts as, on existing dashboards. Without an object store a miss on disk is a miss.
DOWNLOAD_MEANS = {"hit": ("hits", "disk_hits"), "miss": ("disk_misses",), "error": ("errors",)}
UPLOAD_MEANS = {"created": "success", "replaced": "success", "exists": "exists", "cancelled": "cancelled"}

DOWNLOAD_RESULTS = tuple(DOWNLOAD_MEANS)
UPLOAD_RESULTS = (*UPLOAD_MEANS, "error")

# The reasons there usually are; others appear when they happen.
UPLOAD_ERRORS = (
    "TooLargeError",
    "CapacityError",
    "DigestMismatchError",
    "BodyTimeoutError",
    "BufferFullError",
    "CommitTimeoutError",
    "OSError",
)


class TrafficMetrics:
    """Counts what is fetched and stored."""

    def __init__(self, prometheus: Prometheus, telemetry: Events, capacity: Capacity) -> None:
        self._registry = prometheus.registry
        self._sums = prometheus.sums
        self._dashboard = {tool: self._counters_of(tool) for tool in DASHBOARD_TOOLS}
        self._upload_errors = {tool: self._upload_errors_of(tool) for tool in DASHBOARD_TOOLS}
        self._downloads = self._by_tool(
            "undercroft_artifact_downloads", "Artifacts asked for", DOWNLOAD_RESULTS
        )
        self._uploads = self._by_tool("undercroft_artifact_uploads", "Artifacts sent", UPLOAD_RESULTS)
        self._download_bytes = self._bytes("undercroft_artifact_download_bytes", "Bytes of artifacts served")
        self._upload_bytes = self._bytes("undercroft_artifact_upload_bytes", "Bytes of artifacts stored")
        self._gets = Counter("cache_kv_get", "Key values asked for", registry=self._registry)
        self._get_hits = Counter("cache_kv_get_hit", "Key values found", registry=self._registry)
        self._get_misses = Counter("cache_kv_get_miss", "Key values not found", registry=self._registry)
        self._puts = Counter("cache_kv_put", "Key values sent", registry=self._registry)
        self._put_successes = Counter("cache_kv_put_success", "Key values stored", registry=self._registry)
        self._put_errors = Counter("cache_kv_put_errors", "Key values not stored", registry=self._registry)
        self._transfers = {
            name: Gauge(
                f"tuist_cache_s3_transfers_pending_{name}", "Transfers that wait", registry=self._registry
            )
            for name in ("uploads", "downloads", "total")
        }
        self._registry.register(_Disk(capacity))
        telemetry.attach(events.DOWNLOAD, self._on_download)
        telemetry.attach(events.UPLOAD, self._on_upload)
        telemetry.attach(events.KEY_VALUE_GET, self._on_get)
        telemetry.attach(events.KEY_VALUE_PUT, self._on_put)

    def _counters_of(self, tool: str) -> dict[str, Counter]:
        names = [f"download_{name}" for name in DOWNLOAD_COUNTERS] + [
            f"upload_{name}" for name in UPLOAD_COUNTERS
        ]
        for direction in ("download", "upload"):
            self._sums.declare(f"tuist_cache_{tool}_{direction}_bytes", f"Bytes of {tool} {direction}s")
        return {
            name: Counter(f"tuist_cache_{tool}_{name}", f"{tool}: {name}", registry=self._registry)
            for name in names
        }

    def _upload_errors_of(self, tool: str) -> Counter:
        name = f"tuist_cache_{tool}_upload_errors"
        counter = Counter(name, f"{tool}: failed uploads", ("reason",), registry=self._registry)
        for reason in UPLOAD_ERRORS:
            counter.labels(reason)
        return counter

    def _by_tool(self, name: str, text: str, results: Iterable[str]) -> dict[tuple[str, str], Counter]:
        counter = Counter(name, text, ("tool", "result"), registry=self._registry)
        return {(tool, result): counter.labels(tool, result) for tool in TOOLS for result in results}

    def _bytes(self, name: str, text: str) -> dict[str, Counter]:
        counter = Counter(name, text, ("tool",), registry=self._registry)
        return {tool: counter.labels(tool) for tool in TOOLS}

    def _on_download(self, measurements: Measurements, metadata: Metadata) -> None:
        tool, result = metadata["tool"], metadata["result"]
        self._downloads[tool, result].inc()
        self._download_bytes[tool].inc(measurements["bytes"])
        counters = self._dashboard.get(tool)
        if counters is not None:
            for name in DOWNLOAD_MEANS[result]:
                counters[f"download_{name}"].inc()
            self._sums.add(f"tuist_cache_{tool}_download_bytes", measurements["bytes"])

    def _on_upload(self, measurements: Measurements, metadata: Metadata) -> None:
        tool, result = metadata["tool"], metadata["result"]
        size = measurements["bytes"] if UPLOAD_MEANS.get(result) == "success" else 0
        self._uploads[tool, result].inc()
        self._upload_bytes[tool].inc(size)
        counters = self._dashboard.get(tool)
        if counters is not None:
            counters["upload_attempts"].inc()
            self._sums.add(f"tuist_cache_{tool}_upload_bytes", size)
            if result == "error":
                self._upload_errors[tool].labels(metadata["reason"]).inc()
            else:
                counters[f"upload_{UPLOAD_MEANS[result]}"].inc()

    def _on_get(self, _measurements: Measurements, metadata: Metadata) -> None:
        self._gets.inc()
        (self._get_hits if metadata["result"] == "hit" else self._get_misses).inc()

    def _on_put(self, _measurements: Measurements, metadata: Metadata) -> None:
        self._puts.inc()
        (self._put_successes if metadata["result"] == "success" else self._put_errors).inc()

    def set_pending_transfers(self, by_type: Mapping[str, int]) -> None:
        """Takes the numbers of rows by `upload` and `download`, read before each scrape."""
        self._transfers["uploads"].set(by_type.get("upload", 0))
        self._transfers["downloads"].set(by_type.get("download", 0))
        self._transfers["total"].set(sum(by_type.values()))


class _Disk(Collector):
    """What the artifacts take, asked at each scrape."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity

    def collect(self) -> Iterable[Metric]:
        """Bytes used, reserved, and the limit."""
        capacity = self._capacity
        yield GaugeMetricFamily("undercroft_disk_used_bytes", "Bytes of artifacts", value=capacity.used)
        yield GaugeMetricFamily(
            "undercroft_disk_reserved_bytes", "Bytes held for uploads", value=capacity.reserved
        )
        yield GaugeMetricFamily(
            "undercroft_disk_limit_bytes", "Most that artifacts may take", value=capacity.limit()
        )
