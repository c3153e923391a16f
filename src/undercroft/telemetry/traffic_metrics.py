"""The series of artifacts, key values, the disk and pending transfers."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

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
TOOLS = (*DASHBOARD_TOOLS, "bazel", "ccache", "webdav", "turborepo", "nx")

# What each counter of a dashboard's tool says, after the tool's name.
DOWNLOAD_COUNTERS = {
    "hits": "downloads served",
    "disk_hits": "downloads served from disk",
    "disk_misses": "downloads of what is not on disk",
    "errors": "downloads that failed",
    "s3_hits": "downloads served from the object store",
    "s3_misses": "downloads of what the object store does not have",
}
UPLOAD_COUNTERS = {
    "attempts": "uploads begun, however they ended",
    "success": "uploads stored",
    "exists": "uploads of what was there already",
    "cancelled": "uploads cut off by the client or by a stop of the node",
}
TRANSFERS = {
    "uploads": "Uploads to the object store that wait or are being made",
    "downloads": "Downloads from the object store that wait or are being made",
    "total": "Transfers to and from the object store that wait or are being made",
}

# What a download counts as, on existing dashboards. A "miss" is on no disk, and the object store was not
# asked or did not answer in time.
DOWNLOAD_MEANS = {
    "hit": ("hits", "disk_hits"),
    "s3_hit": ("hits", "disk_misses", "s3_hits"),
    "miss": ("disk_misses",),
    "s3_miss": ("disk_misses", "s3_misses"),
    "error": ("errors",),
}
UPLOAD_MEANS = {"created": "success", "replaced": "success", "exists": "exists", "cancelled": "cancelled"}

DOWNLOAD_RESULTS = tuple(DOWNLOAD_MEANS)
UPLOAD_RESULTS = (*UPLOAD_MEANS, "error")

# What Turborepo tells of itself: where it looked, and what it found.
TURBOREPO_SOURCES = ("local", "remote")
TURBOREPO_EVENTS = ("hit", "miss")

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
        self._turborepo_events = self._turborepo_tallies()
        self._turborepo_saved = {
            source: self._tallies.declare(
                "undercroft_turborepo_time_saved_seconds",
                "Run time of tasks that Turborepo took from a cache instead",
                ("source",),
                (source,),
            )
            for source in TURBOREPO_SOURCES
        }
        self._transfers = {
            name: Gauge(f"tuist_cache_s3_transfers_pending_{name}", text, registry=prometheus.registry)
            for name, text in TRANSFERS.items()
        }
        prometheus.registry.register(_Disk(capacity))
        telemetry.attach(events.DOWNLOAD, self._on_download)
        telemetry.attach(events.UPLOAD, self._on_upload)
        telemetry.attach(events.KEY_VALUE_GET, self._on_get)
        telemetry.attach(events.KEY_VALUE_PUT, self._on_put)
        telemetry.attach(events.TURBOREPO, self._on_turborepo)

    def _counters_of(self, tool: str) -> dict[str, Tally]:
        self._sums.declare(f"tuist_cache_{tool}_download_bytes", f"{tool}: bytes served")
        self._sums.declare(f"tuist_cache_{tool}_upload_bytes", f"{tool}: bytes stored")
        texts = {f"download_{name}": text for name, text in DOWNLOAD_COUNTERS.items()}
        texts |= {f"upload_{name}": text for name, text in UPLOAD_COUNTERS.items()}
        return {
            name: self._tallies.declare(f"tuist_cache_{tool}_{name}", f"{tool}: {text}")
            for name, text in texts.items()
        }

    def _upload_error(self, tool: str, reason: str) -> Tally:
        name = f"tuist_cache_{tool}_upload_errors"
        return self._tallies.declare(name, f"{tool}: uploads that failed", ("reason",), (reason,))

    def _by_tool(self, name: str, text: str, results: Iterable[str]) -> dict[tuple[str, str], Tally]:
        return {
            (tool, result): self._tallies.declare(name, text, ("tool", "result"), (tool, result))
            for tool in TOOLS
            for result in results
        }

    def _turborepo_tallies(self) -> dict[tuple[str, str], Tally]:
        name, text = "undercroft_turborepo_events", "What Turborepo told of its local and remote cache"
        return {
            (source, event): self._tallies.declare(name, text, ("source", "event"), (source, event))
            for source in TURBOREPO_SOURCES
            for event in TURBOREPO_EVENTS
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

    def _on_turborepo(self, measurements: Measurements, metadata: Metadata) -> None:
        source = metadata["source"]
        self._turborepo_events[source, metadata["event"]].add(measurements["count"])
        self._turborepo_saved[source].add(measurements["saved_seconds"])

    def set_pending_transfers(self, by_type: Mapping[str, int]) -> None:
        """Takes the numbers of rows by type, read before each scrape."""
        self._transfers["uploads"].set(by_type.get("upload", 0))
        self._transfers["downloads"].set(by_type.get("download", 0))
        self._transfers["total"].set(sum(by_type.values()))


class _Disk(Collector):
    """What the artifacts take, asked at each scrape."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity

    def collect(self) -> Iterable[Metric]:
        """Bytes used, reserved, and the limit while the file system says how large it is."""
        capacity = self._capacity
        yield GaugeMetricFamily("undercroft_disk_used_bytes", "Bytes of artifacts", value=capacity.used)
        yield GaugeMetricFamily(
            "undercroft_disk_reserved_bytes", "Bytes held for uploads", value=capacity.reserved
        )
        # A disk that fails is when the other figures are needed most.
        with suppress(OSError):
            yield GaugeMetricFamily(
                "undercroft_disk_limit_bytes", "Most that artifacts may take", value=capacity.limit()
            )
