"""Nodes and their bucket as processes: what one stored another serves, and outages lose nothing."""

import hashlib
import signal
from pathlib import Path

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.node_process import NodeProcess, node_process
from tests.support.s3_endpoint import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, S3Endpoint
from tests.system.client import Client, eventually
from tests.system.data_dir import query

EVENTUALLY_S = 60


def settings(endpoint: S3Endpoint, url: str | None = None, **more: str) -> dict[str, str]:
    """The environment of a node on the endpoint's bucket, by way of `url` if something stands in front."""
    return {
        "OBJECT_STORE__URL": f"s3://{endpoint.bucket_name}/cache",
        "OBJECT_STORE__ENDPOINT": url or endpoint.url,
        "OBJECT_STORE__REGION": REGION,
        "OBJECT_STORE__ACCESS_KEY_ID": ACCESS_KEY_ID,
        "OBJECT_STORE__SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "OBJECT_STORE__NEGATIVE_TTL_MS": "200",
        **more,
    }


def bodies(count: int, size: int = 2_000) -> dict[str, bytes]:
    """Bodies that differ, by key."""
    return {f"{number:040x}": (f"{number} ".encode() * size)[:size] for number in range(count)}


def in_bucket(endpoint: S3Endpoint) -> dict[str, bytes]:
    """Bytes by the last part of the key."""
    return {name.rsplit("/", 1)[1]: body for name, body in endpoint.files().items()}


def store_all(client: Client, artifacts: dict[str, bytes]) -> None:
    for key, body in artifacts.items():
        assert client.put_ccache(key, body).status in (200, 201)


def nothing_is_queued(node: NodeProcess) -> bool:
    return query(node.data_dir / "node.sqlite", "SELECT id FROM s3_transfers") == []


def test_two_nodes_on_one_bucket(tmp_path: Path, s3_endpoint: S3Endpoint) -> None:
    artifacts = bodies(20) | {"f" * 40: b"large" * 1_000_000}
    with node_process(tmp_path / "one", settings(s3_endpoint)) as one:
        with Client(one.url) as client:
            store_all(client, artifacts)
        eventually(lambda: in_bucket(s3_endpoint) == artifacts, "everything is in the bucket", EVENTUALLY_S)
        with node_process(tmp_path / "two", settings(s3_endpoint)) as two, Client(two.url) as client:
            assert {key: client.get_ccache(key) for key in artifacts} == artifacts
            eventually(
                lambda: client.metric("undercroft_hydrations_in_flight") == 0, "the last one is on disk"
            )
            s3_endpoint.stop()
            # Now from its own disk.
            assert {key: client.get_ccache(key) for key in artifacts} == artifacts
            assert client.metric("undercroft_artifact_downloads_total", result="s3_hit") == len(artifacts)
            assert client.metric("undercroft_artifact_downloads_total", result="hit") == len(artifacts)
            assert two.stop() == 0
        assert one.stop() == 0


def test_an_outage_of_the_endpoint(data_dir: Path, s3_endpoint: S3Endpoint) -> None:
    before, during = bodies(10), {f"d{key[1:]}": body for key, body in bodies(200).items()}
    with (
        FaultProxy(s3_endpoint.port) as proxy,
        node_process(data_dir, settings(s3_endpoint, proxy.url)) as node,
        Client(node.url) as client,
    ):
        store_all(client, before)
        eventually(lambda: in_bucket(s3_endpoint) == before, "all are uploaded", EVENTUALLY_S)
        proxy.refuse()
        s3_endpoint.stop()
        store_all(client, during)
        assert {key: client.get_ccache(key) for key in before | during} == before | during
        assert client.get_ccache("e" * 40) is None
        assert client.request("GET", "/up").status == 200
        uploads = len([line for line in proxy.seen.requests if line.startswith("PUT")])
        s3_endpoint.start()
        proxy.accept()
        eventually(lambda: in_bucket(s3_endpoint) == before | during, "all are uploaded", EVENTUALLY_S)
        eventually(lambda: nothing_is_queued(node), "all transfers are resolved")
        sent = len([line for line in proxy.seen.requests if line.startswith("PUT")]) - uploads
        # None twice, but for those that were on their way when the endpoint went.
        assert sent <= len(during) + 8
        assert client.metric("undercroft_transfers_parked") == 0
        assert node.stop() == 0


def test_kill_in_the_middle_of_a_thousand_uploads(data_dir: Path, s3_endpoint: S3Endpoint) -> None:
    artifacts = bodies(1_000)
    with node_process(data_dir, settings(s3_endpoint)) as node:
        with Client(node.url) as client:
            store_all(client, artifacts)
        uploaded = len(s3_endpoint.files())
        node.signal(signal.SIGKILL)
        assert node.wait() == -9
    print(f"killed with {uploaded} to {len(s3_endpoint.files())} of 1000 uploaded")  # noqa: T201
    assert len(s3_endpoint.files()) < 1_000
    with node_process(data_dir, settings(s3_endpoint)) as node:
        eventually(lambda: nothing_is_queued(node), "all transfers are resolved", EVENTUALLY_S)
        assert in_bucket(s3_endpoint) == artifacts
        assert node.stop() == 0


def test_a_stop_in_the_middle_keeps_the_rest_for_the_next_start(
    data_dir: Path, s3_endpoint: S3Endpoint
) -> None:
    artifacts = bodies(300)
    with node_process(data_dir, settings(s3_endpoint)) as node:
        with Client(node.url) as client:
            store_all(client, artifacts)
        assert node.stop() == 0
        assert node.printed == []
    with node_process(data_dir, settings(s3_endpoint)) as node:
        eventually(lambda: in_bucket(s3_endpoint) == artifacts, "everything is in the bucket", EVENTUALLY_S)
        assert node.stop() == 0


def test_a_damaged_artifact_is_healed_from_the_bucket(data_dir: Path, s3_endpoint: S3Endpoint) -> None:
    body = b"whole" * 1_000
    with node_process(data_dir, settings(s3_endpoint)) as node, Client(node.url) as client:
        store_all(client, {"a" * 40: body})
        eventually(lambda: nothing_is_queued(node), "it is uploaded")
        (file,) = (path for path in (data_dir / "artifacts").rglob("a" * 40))
        file.write_bytes(b"x" * len(body))
        assert client.get_ccache("a" * 40) == body
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(body).digest()
        assert node.wait_for("artifact_damaged")["key"].endswith("a" * 40)


BAD_SETTINGS = {
    "unknown scheme": ({"OBJECT_STORE__URL": "ftp://bucket"}, "ftp://bucket"),
    "missing bucket": ({"OBJECT_STORE__URL": "s3://nowhere"}, "nowhere"),
    "wrong secret": (
        {"OBJECT_STORE__SECRET_ACCESS_KEY": "wrong-but-long-enough-to-be-one"},
        "secret_access_key",
    ),
    "target above high watermark": ({"DISK__TARGET_PERCENT": "95"}, "disk.high_watermark_percent"),
}


@pytest.mark.parametrize(("wrong", "named"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_reported_in_one_line(
    data_dir: Path, s3_endpoint: S3Endpoint, wrong: dict[str, str], named: str
) -> None:
    node = NodeProcess(data_dir, settings(s3_endpoint) | wrong)
    try:
        assert node.wait() == 2
    finally:
        node.kill()
    (line,) = node.printed
    assert named in line
    assert "wrong-but-long" not in line
    assert SECRET_ACCESS_KEY not in line


def test_a_bucket_that_is_away_does_not_keep_the_node_from_starting(
    data_dir: Path, s3_endpoint: S3Endpoint
) -> None:
    s3_endpoint.stop()
    with node_process(data_dir, settings(s3_endpoint)) as node, Client(node.url) as client:
        assert node.logged("object_store_not_reached")
        assert client.put_ccache("a" * 40, b"stored").status == 201
        assert client.get_ccache("a" * 40) == b"stored"
        assert client.get_ccache("b" * 40) is None
        s3_endpoint.start()
        eventually(lambda: list(in_bucket(s3_endpoint)) == ["a" * 40], "it is uploaded", EVENTUALLY_S)
        assert node.stop() == 0
