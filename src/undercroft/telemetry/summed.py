"""The series of several worker processes as those of one node."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log = structlog.get_logger(__name__)

Rule: TypeAlias = Literal["sum", "largest", "once"]

# What a gauge of the node is, of those of its workers; counters and histograms are summed. `once`: all of
# them say the same, because they ask the same database, disk or ledger.
GAUGES: Mapping[str, Rule] = {
    "tuist_cache_sqlite_writer_pending_key_values": "sum",
    "tuist_cache_sqlite_writer_pending_cas_artifacts": "sum",
    "tuist_cache_sqlite_writer_pending_s3_transfers": "sum",
    "tuist_cache_sqlite_writer_pending_total": "sum",
    "undercroft_buffer_pending_bytes": "sum",
    "undercroft_buffer_rows_in_flight": "sum",
    "undercroft_buffer_oldest_age_seconds": "largest",
    "tuist_cache_s3_transfers_pending_uploads": "once",
    "tuist_cache_s3_transfers_pending_downloads": "once",
    "tuist_cache_s3_transfers_pending_total": "once",
    "undercroft_transfers_parked": "once",
    "undercroft_transfers_in_work": "sum",
    "undercroft_transfers_limit": "sum",  # 0 in all but the one that does the background work
    "undercroft_hydrations_in_flight": "sum",
    "undercroft_multipart_uploads": "sum",
    "undercroft_multipart_parts": "sum",
    "undercroft_disk_used_bytes": "once",
    "undercroft_disk_reserved_bytes": "once",
    "undercroft_disk_limit_bytes": "once",
    "undercroft_key_values_database_bytes": "once",
    "undercroft_node_database_bytes": "once",
    "undercroft_clean_jobs_unfinished": "once",
    "undercroft_reconcile_round_duration_seconds": "largest",
    "undercroft_databases_damaged": "largest",  # each counts what it met itself
    "undercroft_workers_serving": "once",
    "undercroft_worker_starts": "once",
}


class Series(msgspec.Struct, array_like=True):
    """A family of samples: each with its name, labels and value."""

    name: str
    text: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


Report: TypeAlias = list[Series]

_decoder = msgspec.msgpack.Decoder(list[Series])


def report_of(registry: CollectorRegistry) -> Report:
    """What a registry says now."""
    return [
        Series(
            family.name,
            family.documentation,
            family.type,
            # Not what a gauge was made of: a size from the settings is an int of a kind nobody can encode.
            [(sample.name, sample.labels, float(sample.value)) for sample in family.samples],
        )
        for family in registry.collect()
    ]


def merged(first: Report, others: Iterable[Report]) -> Report:
    """The report of a node, of which the `first` worker was asked."""
    families = {series.name: (series, _by_labels(series)) for series in first}
    for report in others:
        for series in report:
            ours = families.get(series.name)
            if ours is None:
                families[series.name] = (series, _by_labels(series))
            else:
                _add(ours[1], series)
    return [msgspec.structs.replace(series, samples=_listed(found)) for series, found in families.values()]


_Samples: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _by_labels(series: Series) -> _Samples:
    return {(name, tuple(sorted(labels.items()))): value for name, labels, value in series.samples}


def _listed(samples: _Samples) -> list[tuple[str, dict[str, str], float]]:
    return [(name, dict(labels), value) for (name, labels), value in samples.items()]


def _add(samples: _Samples, series: Series) -> None:
    rule = GAUGES.get(series.name, "sum") if series.kind == "gauge" else "sum"
    for key, value in _by_labels(series).items():
        known = samples.get(key)
        if known is None:
            samples[key] = value
        elif rule != "once":
            samples[key] = known + value if rule == "sum" else max(known, value)


def counted(report: Report) -> Report:
    """Of a report what only ever grows: what of a dead worker still counts."""
    return [series for series in report if series.kind != "gauge"]


def encoded(report: Report) -> bytes:
    """For a sibling, or for whoever has the place next."""
    return msgspec.msgpack.encode(report)


def decoded(data: bytes) -> Report:
    """The report again. Raises `msgspec.MsgspecError`."""
    return _decoder.decode(data)


class _Reported(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        for series in self._report:
            metric = Metric(series.name, series.text, series.kind)
            for name, labels, value in series.samples:
                metric.add_sample(name, labels, value)
            yield metric


def rendered(report: Report) -> tuple[bytes, str]:
    """The report in the text format 0.0.4, and its content type."""
    # The library wants no more of a registry than this.
    source: Any = _Reported(report)
    return generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4


class LastWords:
    """What workers counted, on disk, so that no sum goes back when one of them dies.

    A worker writes it each time that it is asked: the sum that was shown last had no more of it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._alone = asyncio.Lock()
        self._failing = False

    def _path(self, worker: int) -> Path:
        return self._directory / f"counted-{worker}"

    def read(self, worker: int) -> Report:
        """What the last process in that place had counted; nothing if there was none. Blocks."""
        try:
            return decoded(self._path(worker).read_bytes())
        except (FileNotFoundError, msgspec.MsgspecError):
            return []

    async def write(self, worker: int, report: Report) -> None:
        """Keeps it in the place of the last one.

        What the disk refuses is told and not raised: a full volume is when figures are wanted most. Once, as
        it is asked all the time.
        """
        async with self._alone:
            try:
                await asyncio.to_thread(self._write, worker, encoded(counted(report)))
            except OSError as error:
                if not self._failing:
                    log.warning("counts_not_kept", worker=worker, error=str(error))
                self._failing = True
            else:
                self._failing = False

    def _write(self, worker: int, data: bytes) -> None:
        temporary = self._directory / f"counted-{worker}.tmp"
        temporary.write_bytes(data)
        temporary.replace(self._path(worker))
