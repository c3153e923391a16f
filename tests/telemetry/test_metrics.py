"""`/metrics` as a real Prometheus parser reads it: names, labels, buckets, and values that move."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.locks import lock_of_another_connection
from tests.support.page_limit import no_more_pages
from tests.support.served_node import ServedNode, served_node
from undercroft.telemetry import events

BUFFERS = {
    "key_values": ("key_values", "key_value_accesses"),
    "cas_artifacts": ("cas_accesses", "cas_deletes"),
    "s3_transfers": ("s3_inserts", "s3_deletes"),
}
BUCKETS = (
    "1.0",
    "5.0",
    "10.0",
    "25.0",
    "50.0",
    "100.0",
    "250.0",
    "500.0",
    "1000.0",
    "2000.0",
    "5000.0",
    "+Inf",
)
BACKGROUND = ("undercroft_reconcile", "undercroft_database", "undercroft_node", "undercroft_key_values_data")
"""Series that move on their own."""
QUERY = "?account_handle=acc&project_handle=proj"
KEY_VALUE = {"cas_id": "k", "entries": [{"value": "v"}]}

Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedNode]:
    async with served_node(tmp_path / "data") as served:
        yield served


async def scrape(served: ServedNode) -> dict[Sample, float]:
    got = await served.client.get("/metrics")
    assert got.status_code == 200
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[Sample, float] = {}
    for family in text_string_to_metric_families(got.text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def series(name: str, **labels: str) -> Sample:
    return name, tuple(sorted(labels.items()))


def established() -> list[Sample]:
    """Every series of design section 3 and contract section 9 that this node has."""
    found: list[Sample] = []
    writer = "tuist_cache_sqlite_writer"
    for buffer, operations in BUFFERS.items():
        for operation in operations:
            both = {"buffer": buffer, "operation": operation}
            found += [
                series(f"{writer}_retries_total", **both),
                series(f"{writer}_flush_batch_size", **both),
                series(f"{writer}_flush_duration_ms_sum", **both),
                series(f"{writer}_flush_duration_ms_count", **both),
                *(series(f"{writer}_flush_duration_ms_bucket", **both, le=le) for le in BUCKETS),
            ]
        found.append(series(f"{writer}_pending_{buffer}"))
    found.append(series(f"{writer}_pending_total"))
    for tool in ("cas", "module", "gradle"):
        start = f"tuist_cache_{tool}"
        for name in ("hits", "disk_hits", "disk_misses", "errors", "s3_hits", "s3_misses"):
            found.append(series(f"{start}_download_{name}_total"))
        found += [series(f"{start}_download_bytes"), series(f"{start}_upload_bytes")]
        for name in ("attempts", "success", "exists", "cancelled"):
            found.append(series(f"{start}_upload_{name}_total"))
        found.append(series(f"{start}_upload_errors_total", reason="DigestMismatchError"))
    for name in ("get", "get_hit", "get_miss", "put", "put_success", "put_errors", "eviction_entries"):
        found.append(series(f"cache_kv_{name}_total"))
    for name in ("uploads", "downloads", "total"):
        found.append(series(f"tuist_cache_s3_transfers_pending_{name}"))
    for operation in ("head", "download", "upload", "delete"):
        good = ("found", "absent") if operation in ("head", "download") else ("done",)
        for result in (*good, "throttled", "error"):
            found.append(series(f"cache_s3_{operation}_requests_total", result=result))
        start = f"cache_s3_{operation}_duration_milliseconds"
        found += [series(f"{start}_count"), series(f"{start}_sum")]
    return found + of_authentication()


def of_authentication() -> list[Sample]:
    single = [series(f"cache_auth_{name}_total") for name in ("cache_hit", "cache_miss", "server_request")]
    methods = ("jwt", "server", "token")
    return single + [series("cache_auth_authorized_total", method=method) for method in methods]


async def test_every_established_series_is_there_at_the_first_scrape(served: ServedNode) -> None:
    samples = await scrape(served)
    missing = [one for one in established() if one not in samples]
    assert missing == []
    assert {samples[one] for one in established()} == {0.0}


async def test_flush_durations_have_exactly_the_established_buckets(served: ServedNode) -> None:
    buckets: dict[str, list[str]] = {}
    for name, labels in await scrape(served):
        if name == "tuist_cache_sqlite_writer_flush_duration_ms_bucket":
            found = dict(labels)
            buckets.setdefault(found["operation"], []).append(found["le"])
    assert buckets == {operation: list(BUCKETS) for both in BUFFERS.values() for operation in both}


async def test_whatever_is_new_starts_with_our_name(served: ServedNode) -> None:
    old = {name for name, _ in established()}
    new = {name for name, _ in await scrape(served)} - old
    new = {name for name in new if not name.endswith("_duration_milliseconds_bucket")}
    assert {name for name in new if not name.startswith("undercroft_")} == set()
    for wanted in (
        "undercroft_buffer_oldest_age_seconds",
        "undercroft_buffer_rejected_total",
        "undercroft_buffer_shed_total",
        "undercroft_buffer_spilled_rows_total",
        "undercroft_buffer_commit_wait_seconds_count",
        "undercroft_disk_used_bytes",
        "undercroft_disk_reserved_bytes",
    ):
        assert wanted in new


async def test_no_creation_times(served: ServedNode) -> None:
    assert not [name for name, _ in await scrape(served) if name.endswith("_created")]


async def test_help_means_something_alone(served: ServedNode) -> None:
    for family in text_string_to_metric_families((await served.client.get("/metrics")).text):
        text = family.documentation
        assert " " in text, family.name
        assert "_" not in text, f"{family.name}: {text} is a name, not an explanation"


async def test_disk_that_fails_takes_only_its_limit_out_of_the_scrape(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = set(await scrape(served))
    with monkeypatch.context() as broken:
        broken.setattr(os, "statvfs", fail)
        assert before - set(await scrape(served)) == {series("undercroft_disk_limit_bytes")}
    assert set(await scrape(served)) == before


async def test_transfers_that_cannot_be_counted_stay_as_they_were(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise apsw.IOError("gone")

    await served.node.transfers.committed(await served.node.transfers.enqueue_upload("a/p/xcode/0"))
    before = await scrape(served)
    monkeypatch.setattr(served.node.node_database, "read", fail)
    after = await scrape(served)
    assert after.keys() == before.keys()
    assert after[series("tuist_cache_s3_transfers_pending_uploads")] == 1


# --- values move -------------------------------------------------------------------------------------


async def moved(served: ServedNode, act: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """What changed, without histograms' buckets and gauges of the disk."""
    before = await scrape(served)
    await act()
    return await moved_since(served, before)


async def moved_since(served: ServedNode, before: dict[Sample, float]) -> dict[str, float]:
    after = await scrape(served)
    changed = {}
    for (name, labels), value in after.items():
        difference = value - before.get((name, labels), 0.0)
        if name.startswith(BACKGROUND):
            continue
        if difference and not name.endswith(("_bucket", "_sum", "age_seconds")):
            shown = ",".join(f"{key}={text}" for key, text in labels)
            changed[f"{name}{{{shown}}}" if shown else name] = difference
    return changed


def flushed(buffer: str, operation: str, rows: int = 1) -> dict[str, float]:
    labels = f"{{buffer={buffer},operation={operation}}}"
    return {
        f"tuist_cache_sqlite_writer_flush_batch_size{labels}": rows,
        f"tuist_cache_sqlite_writer_flush_duration_ms_count{labels}": 1,
    }


def waited(buffer: str) -> dict[str, float]:
    return {f"undercroft_buffer_commit_wait_seconds_count{{buffer={buffer}}}": 1}


async def test_key_values(served: ServedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.key_values.ACCESS_RESOLUTION_US", 0)
    path = f"/api/cache/keyvalue{QUERY}"
    put = await moved(served, lambda: served.client.put(path, json=KEY_VALUE))
    assert put == {
        "cache_kv_put_total": 1,
        "cache_kv_put_success_total": 1,
        **flushed("key_values", "key_values"),
        **waited("key_values"),
    }
    failed = await moved(served, lambda: served.client.put(path, content=b"no json"))
    assert failed == {"cache_kv_put_total": 1, "cache_kv_put_errors_total": 1}
    miss = await moved(served, lambda: served.client.get(f"/api/cache/keyvalue/x{QUERY}"))
    assert miss == {"cache_kv_get_total": 1, "cache_kv_get_miss_total": 1}

    async def hit() -> None:
        await served.client.get(f"/api/cache/keyvalue/k{QUERY}")
        await served.node.key_values.flush()

    assert await moved(served, hit) == {
        "cache_kv_get_total": 1,
        "cache_kv_get_hit_total": 1,
        **flushed("key_values", "key_value_accesses"),
    }


UPLOADS = [("cas", "POST", f"/api/cache/cas/k{QUERY}"), ("gradle", "PUT", f"/api/cache/gradle/k{QUERY}")]


@pytest.mark.parametrize(("tool", "method", "path"), UPLOADS)
async def test_uploads(served: ServedNode, tool: str, method: str, path: str) -> None:
    async def send(checksum: str | None = None) -> None:
        headers = {"tuist-checksum-sha256": checksum} if checksum else {}
        await served.client.request(method, path, content=b"12345", headers=headers)

    start = f"tuist_cache_{tool}_upload"
    wrong = await moved(served, lambda: send("0" * 64))
    assert wrong == {
        f"{start}_attempts_total": 1,
        f"{start}_errors_total{{reason=DigestMismatchError}}": 1,
        f"undercroft_artifact_uploads_total{{result=error,tool={tool}}}": 1,
    }
    assert await moved(served, send) == {
        f"{start}_attempts_total": 1,
        f"{start}_success_total": 1,
        f"{start}_bytes": 5,
        f"undercroft_artifact_uploads_total{{result=created,tool={tool}}}": 1,
        f"undercroft_artifact_upload_bytes_total{{tool={tool}}}": 5,
        "undercroft_disk_used_bytes": 5,
        **flushed("cas_artifacts", "cas_accesses"),
        **waited("cas_artifacts"),
    }
    again = await moved(served, send)
    assert (again[f"{start}_attempts_total"], again[f"{start}_exists_total"]) == (1, 1)
    assert f"{start}_bytes" not in again


@pytest.mark.parametrize("there", [False, True])
async def test_upload_the_client_gives_up(served: ServedNode, there: bool) -> None:
    path = f"/api/cache/cas/k{QUERY}"
    if there:
        await served.client.post(path, content=b"12345")

    async def leave() -> None:
        async with served.connection() as connection:
            await connection.send(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n".encode())
            await connection.send(b"x")
            await served.client.get("/up")
        await served.requests_ended()

    changed = await moved(served, leave)
    assert changed["tuist_cache_cas_upload_attempts_total"] == 1
    assert changed["tuist_cache_cas_upload_cancelled_total"] == 1


@pytest.mark.parametrize(("tool", "method", "path"), UPLOADS)
async def test_downloads(served: ServedNode, tool: str, method: str, path: str) -> None:
    start = f"tuist_cache_{tool}_download"
    assert await moved(served, lambda: served.client.get(path)) == {
        f"{start}_disk_misses_total": 1,
        f"undercroft_artifact_downloads_total{{result=miss,tool={tool}}}": 1,
    }
    await served.client.request(method, path, content=b"12345")
    hit = await moved(served, lambda: served.client.get(path))
    assert (
        hit.items()
        >= {
            f"{start}_hits_total": 1,
            f"{start}_disk_hits_total": 1,
            f"{start}_bytes": 5,
            f"undercroft_artifact_downloads_total{{result=hit,tool={tool}}}": 1,
            f"undercroft_artifact_download_bytes_total{{tool={tool}}}": 5,
        }.items()
    )
    part = await moved(served, lambda: served.client.get(path, headers={"range": "bytes=0-1"}))
    assert part[f"{start}_bytes"] == 2


async def test_other_tools_have_series_of_ours(served: ServedNode) -> None:
    blob = b"blob"
    for tool, path in (
        ("bazel", f"/bazel/a/p/cas/{hashlib.sha256(blob).hexdigest()}"),
        ("ccache", "/ccache/a/p/k"),
        ("webdav", "/webdav/a/p/d/k"),
        ("nx", "/nx/a/p/v1/cache/1"),
        ("turborepo", f"/turborepo/a/p/v8/artifacts/{'0' * 16}"),
    ):

        async def round_trip(path: str = path) -> None:
            await served.client.put(path, content=blob)
            await served.client.get(path)

        changed = await moved(served, round_trip)
        assert changed[f"undercroft_artifact_uploads_total{{result=created,tool={tool}}}"] == 1
        assert changed[f"undercroft_artifact_downloads_total{{result=hit,tool={tool}}}"] == 1
        assert not [name for name in changed if name.startswith("tuist_cache_cas")]


async def test_pending_transfers(served: ServedNode) -> None:
    async def queue() -> None:
        for number in range(3):
            await served.node.transfers.enqueue_upload(f"a/p/xcode/{number}")
        await served.node.transfers.enqueue_download("a/p/xcode/0")
        await served.node.transfers.flush()

    assert (await moved(served, queue)).items() >= {
        "tuist_cache_s3_transfers_pending_uploads": 3,
        "tuist_cache_s3_transfers_pending_downloads": 1,
        "tuist_cache_s3_transfers_pending_total": 4,
        **flushed("s3_transfers", "s3_inserts", 4),
    }.items()


async def test_pending_rows(tmp_path: Path) -> None:
    quiet = {"flush_interval_ms": 3_600_000}
    async with served_node(tmp_path / "data", ack="buffered", buffers=quiet) as served:

        async def put() -> None:
            for number in range(3):
                body = KEY_VALUE | {"cas_id": str(number)}
                await served.client.put(f"/api/cache/keyvalue{QUERY}", json=body)
            await served.client.put("/ccache/a/p/k", content=b"x")

        changed = await moved(served, put)
        assert changed["tuist_cache_sqlite_writer_pending_key_values"] == 3
        assert changed["tuist_cache_sqlite_writer_pending_cas_artifacts"] == 1
        assert changed["tuist_cache_sqlite_writer_pending_total"] == 4
        assert changed["undercroft_buffer_pending_bytes{buffer=key_values}"] > 0
        ages = await scrape(served)
        assert ages[series("undercroft_buffer_oldest_age_seconds", buffer="key_values")] > 0


def happening(served: ServedNode, event: str) -> asyncio.Event:
    """Set when the node emits the event."""
    happened = asyncio.Event()
    served.node.telemetry.attach(event, lambda *_: happened.set())
    return happened


async def test_failed_flush_is_no_flush(served: ServedNode) -> None:
    big = {"cas_id": "k", "entries": [{"value": "x" * 100_000}]}

    async def fail() -> None:
        async with no_more_pages(served.node.key_value_database):
            stalled = happening(served, events.STALLED)
            putting = asyncio.create_task(served.client.put(f"/api/cache/keyvalue{QUERY}", json=big))
            await asyncio.wait_for(stalled.wait(), 20)
            changed.update(await moved_since(served, before))
        assert (await putting).status_code == 204

    changed: dict[str, float] = {}
    before = await scrape(served)
    await fail()
    assert changed["undercroft_buffer_failed_flushes_total{buffer=key_values}"] >= 1
    assert changed["tuist_cache_sqlite_writer_pending_key_values"] == 1
    assert not [name for name in changed if "flush_duration" in name or "batch_size" in name]
    after = await moved_since(served, before)
    assert after.items() >= flushed("key_values", "key_values").items()


async def test_retries_are_counted_per_operation(served: ServedNode) -> None:
    async def store() -> None:
        retrying = happening(served, events.RETRY)
        with lock_of_another_connection(served.node.node_database.path) as lock:
            putting = asyncio.create_task(served.client.put("/ccache/a/p/k", content=b"x"))
            await asyncio.wait_for(retrying.wait(), 20)
            lock.release()
            assert (await putting).status_code == 201

    changed = await moved(served, store)
    labels = "{buffer=cas_artifacts,operation=cas_accesses}"
    assert changed[f"tuist_cache_sqlite_writer_retries_total{labels}"] >= 1
    assert changed[f"tuist_cache_sqlite_writer_flush_duration_ms_count{labels}"] == 1
    assert (
        "tuist_cache_sqlite_writer_retries_total{buffer=cas_artifacts,operation=cas_deletes}" not in changed
    )


PER_BUFFER = {
    events.REJECTED: "undercroft_buffer_rejected_total",
    events.SHED: "undercroft_buffer_shed_total",
    events.SPILLED: "undercroft_buffer_spilled_rows_total",
    events.REPLAYED: "undercroft_buffer_replayed_rows_total",
    events.STALLED: "undercroft_buffer_failed_flushes_total",
}


@pytest.mark.parametrize(("event", "name"), PER_BUFFER.items())
async def test_events_of_buffers(served: ServedNode, event: str, name: str) -> None:
    async def emit() -> None:
        served.node.telemetry.emit(event, {"count": 3}, {"buffer": "key_values"})

    assert await moved(served, emit) == {f"{name}{{buffer=key_values}}": 3}


async def test_refused_rows(served: ServedNode) -> None:
    async def emit() -> None:
        metadata = {"buffer": "key_values", "operation": "key_values"}
        served.node.telemetry.emit(events.REFUSED, {"count": 1}, metadata)

    name = "undercroft_buffer_refused_rows_total{buffer=key_values,operation=key_values}"
    assert await moved(served, emit) == {name: 1}


async def test_every_download_that_fails_is_an_error(
    served: ServedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(served.node.artifacts, "read", broken)
    changed = await moved(served, lambda: served.client.get(f"/api/cache/cas/k{QUERY}"))
    assert changed["tuist_cache_cas_download_errors_total"] == 1
