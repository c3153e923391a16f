"""The series of artifacts, key values, the disk and pending transfers."""

from collections.abc import Iterable, Mapping

from prometheus_client import Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from undercroft.storage.capacity import Capacity
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.prometheus import Prometheus
from undercroft.telemetry.tallies import Tally

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
        self._sums = prometheus.sums
        self._tallies = prometheus.tallies
        self._dashboard = {tool: self._counters_of(tool) for tool in DASHBOARD_TOOLS}
        for tool in DASHBOARD_TOOLS:
            for reason in UPLOAD_ERRORS:
                self._upload_error(tool, reason)
        self._downloads = self._by_tool(
            "undercroft_artifact_downloads", "Artifacts asked for", DOWNLOAD_RESULTS
        )
        self._uploads = self._by_tool("undercroft_artifact_uploads", "Artifacts sent", UPLOAD_RESULTS)
        self._download_bytes = self._bytes("undercroft_artifact_download_bytes", "Bytes of artifacts served")
        self._upload_bytes = self._bytes("undercroft_artifact_upload_bytes", "Bytes of artifacts stored")
        self._gets = self._tallies.declare("cache_kv_get", "Key values asked for")
        self._get_hits = self._tallies.declare("cache_kv_get_hit", "Key values found")
        self._get_misses = self._tallies.declare("cache_kv_get_miss", "Key values not found")
        self._puts = self._tallies.declare("cache_kv_put", "Key values sent")
        self._put_successes = self._tallies.declare("cache_kv_put_success", "Key values stored")
        self._put_errors = self._tallies.declare("cache_kv_put_errors", "Key values not stored")
        self._transfers = {
            name: Gauge(
                f"tuist_cache_s3_transfers_pending_{name}",
                "Transfers that wait",
                registry=prometheus.registry,
            )
            for name in ("uploads", "downloads", "total")
        }
        prometheus.registry.register(_Disk(capacity))
        telemetry.attach(events.DOWNLOAD, self._on_download)
        telemetry.attach(events.UPLOAD, self._on_upload)
        telemetry.attach(events.KEY_VALUE_GET, self._on_get)
        telemetry.attach(events.KEY_VALUE_PUT, self._on_put)

    def _counters_of(self, tool: str) -> dict[str, Tally]:
        names = [f"download_{name}" for name in DOWNLOAD_COUNTERS] + [
            f"upload_{name}" for name in UPLOAD_COUNTERS
        ]
        for direction in ("download", "upload"):
            self._sums.declare(f"tuist_cache_{tool}_{direction}_bytes", f"Bytes of {tool} {direction}s")
        return {
            name: self._tallies.declare(f"tuist_cache_{tool}_{name}", f"{tool}: {name}") for name in names
        }

    def _upload_error(self, tool: str, reason: str) -> Tally:
        name = f"tuist_cache_{tool}_upload_errors"
        return self._tallies.declare(name, f"{tool}: failed uploads", ("reason",), (reason,))

    def _by_tool(self, name: str, text: str, results: Iterable[str]) -> dict[tuple[str, str], Tally]:
        return {
            (tool, result): self._tallies.declare(name, text, ("tool", "result"), (tool, result))
            for tool in TOOLS
            for result in results
        }

    def _bytes(self, name: str, text: str) -> dict[str, Tally]:
        return {tool: self._tallies.declare(name, text, ("tool",), (tool,)) for tool in TOOLS}

    def _on_download(self, measurements: Measurements, metadata: Metadata) -> None:
        tool, result = metadata["tool"], metadata["result"]
        self._downloads[tool, result].add()
        self._download_bytes[tool].add(measurements["bytes"])
        counters = self._dashboard.get(tool)
        if counters is not None:
            for name in DOWNLOAD_MEANS[result]:
                counters[f"download_{name}"].add()
            self._sums.add(f"tuist_cache_{tool}_download_bytes", measurements["bytes"])

    def _on_upload(self, measurements: Measurements, metadata: Metadata) -> None:
        tool, result = metadata["tool"], metadata["result"]
        size = measurements["bytes"] if UPLOAD_MEANS.get(result) == "success" else 0
        self._uploads[tool, result].add()
        self._upload_bytes[tool].add(size)
        counters = self._dashboard.get(tool)
        if counters is not None:
            counters["upload_attempts"].add()
            self._sums.add(f"tuist_cache_{tool}_upload_bytes", size)
            if result == "error":
                self._upload_error(tool, metadata["reason"]).add()
            else:
                counters[f"upload_{UPLOAD_MEANS[result]}"].add()

    def _on_get(self, _measurements: Measurements, metadata: Metadata) -> None:
        self._gets.add()
        (self._get_hits if metadata["result"] == "hit" else self._get_misses).add()

    def _on_put(self, _measurements: Measurements, metadata: Metadata) -> None:
        self._puts.add()
        (self._put_successes if metadata["result"] == "success" else self._put_errors).add()

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
