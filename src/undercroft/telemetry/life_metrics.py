"""The series of what happens to bytes after they were stored: second tier, evictions, upkeep."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Counter, Gauge, Histogram

from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.prometheus import Prometheus

# Requests to the object store that existing dashboards count, with the results each may have.
REQUESTS = {
    "head": ("found", "absent", "throttled", "error"),
    "download": ("found", "absent", "throttled", "error"),
    "upload": ("done", "throttled", "error"),
    "delete": ("done", "throttled", "error"),
}
LIST_RESULTS = ("done", "throttled", "error")
REQUEST_BUCKETS_MS = (1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_000, 5_000, 30_000)

HOUR = 3_600
# From what was hardly used to what was kept for a season.
AGE_BUCKETS_SECONDS = (60, HOUR, 6 * HOUR, *(days * 24 * HOUR for days in (1, 3, 7, 14, 30, 90)))

TRANSFER_TYPES = ("upload", "download", "delete")
TRANSFER_RESULTS = ("moved", "skipped", "gone", "retried", "parked")
HYDRATION_RESULTS = ("stored", "absent", "refused", "failed")
EVICTION_REASONS = ("age", "size")
FOUND = ("agrees", "adopted", "removed", "mended", "row_without_file", "damaged", "foreign", "failed")
CLEANED = ("key_values", "artifacts", "transfers", "objects")
DATABASES = ("key_values", "node")
UPKEEP_STEPS = ("vacuum", "truncate", "optimize")

Figures = Mapping[str, tuple[str, Callable[[], float]]]
"""Gauges by name: what each means, and how to ask for it. Asked at each scrape."""


class LifeMetrics:
    """Counts what the second tier and the background workers tell of themselves."""

    def __init__(self, prometheus: Prometheus, telemetry: Events, figures: Figures) -> None:
        self._prometheus = prometheus
        self._telemetry = telemetry
        for name, (text, ask) in figures.items():
            Gauge(name, text, registry=prometheus.registry).set_function(ask)
        self._count_requests()
        self._count_transfers()
        self._count_disk_evictions()
        self._count_key_value_evictions()
        self._count_reconcile()
        self._count_upkeep()

    # --- making series ----------------------------------------------------------------------------

    def _counter(self, name: str, text: str, label: str, values: Iterable[str]) -> Counter:
        counter = Counter(name, text, (label,), registry=self._prometheus.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _single(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._prometheus.registry)

    def _ages(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=AGE_BUCKETS_SECONDS, registry=self._prometheus.registry)

    # --- second tier ------------------------------------------------------------------------------

    def _count_requests(self) -> None:
        counters = {
            operation: self._counter(
                f"cache_s3_{operation}_requests", f"Object store: {operation} requests", "result", results
            )
            for operation, results in REQUESTS.items()
        }
        counters["list"] = self._counter(
            "undercroft_object_store_list_requests", "Object store: pages listed", "result", LIST_RESULTS
        )
        durations = {
            operation: Histogram(
                f"cache_s3_{operation}_duration_milliseconds",
                f"Object store: duration of {operation} requests, in milliseconds",
                buckets=REQUEST_BUCKETS_MS,
                registry=self._prometheus.registry,
            )
            for operation in REQUESTS
        }

        def on_request(measurements: Measurements, metadata: Metadata) -> None:
            operation = metadata["operation"]
            counters[operation].labels(metadata["result"]).inc()
            if operation in durations:
                durations[operation].observe(measurements["duration_ms"])

        self._telemetry.attach(events.OBJECT_STORE_REQUEST, on_request)

    def _count_transfers(self) -> None:
        both = ("type", "result")
        transfers = Counter(
            "undercroft_transfers", "Transfers worked on", both, registry=self._prometheus.registry
        )
        for kind in TRANSFER_TYPES:
            for result in TRANSFER_RESULTS:
                transfers.labels(kind, result)
        moved = self._counter(
            "undercroft_transfer_bytes", "Bytes moved by transfers", "type", ("upload", "download")
        )
        hydrations = self._counter(
            "undercroft_hydrations",
            "Artifacts fetched from the object store because somebody asked",
            "result",
            HYDRATION_RESULTS,
        )
        hydrated = self._single("undercroft_hydration_bytes", "Bytes fetched because somebody asked")

        def on_transfer(measurements: Measurements, metadata: Metadata) -> None:
            transfers.labels(metadata["type"], metadata["result"]).inc()
            if measurements["bytes"]:
                moved.labels(metadata["type"]).inc(measurements["bytes"])

        def on_hydration(measurements: Measurements, metadata: Metadata) -> None:
            hydrations.labels(metadata["result"]).inc()
            hydrated.inc(measurements["bytes"])

        self._telemetry.attach(events.TRANSFER, on_transfer)
        self._telemetry.attach(events.HYDRATION, on_hydration)

    # --- evictions --------------------------------------------------------------------------------

    def _count_disk_evictions(self) -> None:
        artifacts = self._single("undercroft_disk_evicted_artifacts", "Artifacts evicted from the disk")
        freed = self._single("undercroft_disk_evicted_bytes", "Bytes freed by evicting artifacts")
        ages = self._ages(
            "undercroft_disk_eviction_age_seconds", "How long ago an evicted artifact was last used"
        )

        def on_evicted(measurements: Measurements, _metadata: Metadata) -> None:
            artifacts.inc()
            freed.inc(measurements["bytes"])
            ages.observe(measurements["age_seconds"])

        self._telemetry.attach(events.DISK_EVICTED, on_evicted)

    def _count_key_value_evictions(self) -> None:
        entries = self._single("cache_kv_eviction_entries", "Key values evicted")
        by_reason = self._counter(
            "undercroft_key_values_evicted", "Key values evicted, by reason", "reason", EVICTION_REASONS
        )
        ages = self._ages(
            "undercroft_key_values_eviction_age_seconds",
            "How long ago the youngest of a slice of evicted key values was last used",
        )

        def on_evicted(measurements: Measurements, metadata: Metadata) -> None:
            entries.inc(measurements["count"])
            by_reason.labels(metadata["reason"]).inc(measurements["count"])
            ages.observe(measurements["age_seconds"])

        self._telemetry.attach(events.KEY_VALUES_EVICTED, on_evicted)

    # --- upkeep -----------------------------------------------------------------------------------

    def _count_reconcile(self) -> None:
        seen = self._counter("undercroft_reconciled", "Files and rows compared, by finding", "found", FOUND)
        rounds = self._single("undercroft_reconcile_rounds", "Times that everything was compared once")
        duration = Gauge(
            "undercroft_reconcile_round_duration_seconds",
            "Duration of the last such round",
            registry=self._prometheus.registry,
        )
        cleaned = self._counter("undercroft_project_cleaned", "What clean requests removed", "what", CLEANED)

        def on_round(measurements: Measurements, _metadata: Metadata) -> None:
            rounds.inc()
            duration.set(measurements["duration_seconds"])

        self._telemetry.attach(events.RECONCILED, lambda m, d: seen.labels(d["found"]).inc(m["count"]))
        self._telemetry.attach(events.RECONCILE_ROUND, on_round)
        self._telemetry.attach(events.CLEANED, lambda m, d: cleaned.labels(d["what"]).inc(m["count"]))

    def _count_upkeep(self) -> None:
        labels = ("database", "step", "result")
        registry = self._prometheus.registry
        steps = Counter("undercroft_database_upkeep_steps", "Upkeep of databases", labels, registry=registry)
        for database in DATABASES:
            for step in UPKEEP_STEPS:
                for result in ("done", "busy"):
                    steps.labels(database, step, result)
        vacuumed = self._counter(
            "undercroft_database_vacuumed_pages", "Pages given back to the disk", "database", DATABASES
        )

        def on_upkeep(measurements: Measurements, metadata: Metadata) -> None:
            steps.labels(metadata["database"], metadata["step"], metadata["result"]).inc()
            if metadata["step"] == "vacuum":
                vacuumed.labels(metadata["database"]).inc(measurements["pages"])

        self._telemetry.attach(events.UPKEEP, on_upkeep)
