"""What an answer promises: read from SQLite by somebody else, at the moment the answer is there."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.locks import lock_of_another_process
from tests.support.node_process import node_process
from tests.system.client import TENANT, Client, eventually
from tests.system.data_dir import query, stored_values

VALUE = "SELECT json_payload FROM key_value_entries WHERE key = ?"
ROW = "SELECT size_bytes, content_sha256 FROM cache_artifacts WHERE key = ?"


def test_a_committed_key_value_is_in_sqlite_when_the_answer_arrives(data_dir: Path) -> None:
    # No timer helps: only the wait for the commit can have written it.
    with node_process(data_dir, {"BUFFERS__FLUSH_INTERVAL_MS": "600000"}) as node:

        def write_and_look(writer: int) -> None:
            with Client(node.url) as client:
                for version in range(40):
                    assert client.put_value(f"id{writer}", f"value{version}").status == 204
                    expected = f'{{"entries":[{{"value":"value{version}"}}]}}'
                    found = query(data_dir / "key_values.sqlite", VALUE, f"keyvalue:acme:app:id{writer}")
                    assert found == [(expected,)]

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write_and_look, range(4)))
        assert node.stop() == 0


def test_a_committed_artifact_has_file_and_row_when_the_answer_arrives(data_dir: Path) -> None:
    with node_process(data_dir, {"BUFFERS__FLUSH_INTERVAL_MS": "600000"}) as node:
        with Client(node.url) as client:
            for index, size in enumerate((0, 1, 100, 70_000, 300_000, 3_000_000)):
                body = bytes([index]) * size
                digest = hashlib.sha256(body).hexdigest()
                requests = (
                    ("POST", f"/api/cache/cas/abcd{index}?{TENANT}", "xcode/ab/cd", f"abcd{index}"),
                    ("PUT", f"/api/cache/gradle/abcd{index}?{TENANT}", "gradle/ab/cd", f"abcd{index}"),
                    ("PUT", f"/gradle/acme/app/efgh{index}", "gradle/ef/gh", f"efgh{index}"),
                    ("PUT", f"/ccache/acme/app/abcd{index}", "ccache/ab/cd", f"abcd{index}"),
                    ("PUT", f"/bazel/acme/app/cas/{digest}", f"bazel_cas/{digest[:2]}/{digest[2:4]}", digest),
                )
                for method, path, folder, name in requests:
                    assert client.request(method, path, body).status in (200, 201, 204)
                    key = f"acme/app/{folder}/{name}"
                    assert query(data_dir / "node.sqlite", ROW, key) == [(size, digest)]
                    file = data_dir / "artifacts" / key
                    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert node.stop() == 0


def test_a_replaced_artifact_has_its_new_row_when_the_answer_arrives(data_dir: Path) -> None:
    with node_process(data_dir) as node:
        with Client(node.url) as client:
            for version in range(20):
                body = b"version %d" % version * (version + 1)
                assert client.put_ccache("abcd", body).status == (200 if version else 201)
                row = (len(body), hashlib.sha256(body).hexdigest())
                assert query(data_dir / "node.sqlite", ROW, "acme/app/ccache/ab/cd/abcd") == [row]
                assert client.get_ccache("abcd") == body
        assert node.stop() == 0


def test_a_buffered_answer_does_not_wait_and_its_row_follows(data_dir: Path) -> None:
    settings = {"ACK": "buffered", "BUFFERS__FLUSH_INTERVAL_MS": "300"}
    with node_process(data_dir, settings) as node, Client(node.url) as client:
        with lock_of_another_process(data_dir / "key_values.sqlite"):
            # Answered although nothing can be committed: it did not wait.
            assert client.put_value("locked", "value").status == 204
            assert stored_values(data_dir) == {}
            assert client.get_value("locked") == "value"
        eventually(lambda: stored_values(data_dir) == {"locked": "value"}, "the row is committed")
        # Without a lock, by nothing but the timer.
        assert client.put_value("free", "value").status == 204
        eventually(lambda: "free" in stored_values(data_dir), "the row is committed", timeout_s=10)
        assert node.stop() == 0
