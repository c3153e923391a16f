"""Files and rows that a death or a person has put apart, found by the real process."""

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from tests.support.folders import artifact_files
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import TENANT, Client, eventually
from tests.system.data_dir import query, stored_artifacts

# Nothing is committed before the node dies.
UNCOMMITTED = {"ACK": "buffered", "BUFFERS__FLUSH_INTERVAL_MS": "600000"}

EAGER = {"RECONCILE__PAUSE_MS": "0", "RECONCILE__FILES_PER_SECOND": "100000"}

ROWS = 500_000


def contents() -> dict[str, bytes]:
    """Bodies by path, a few in each dialect."""
    found: dict[str, bytes] = {}
    for number in range(10):
        body = f"{number} ".encode() * (10 ** (number % 6))
        digest = hashlib.sha256(body).hexdigest()
        found[f"/bazel/acme/app/cas/{digest}"] = body
        found[f"/bazel/acme/app/some/instance/ac/{digest}"] = body
        found[f"/ccache/acme/app/{digest[:40]}"] = body
        found[f"/gradle/acme/app/{digest[:32]}"] = body
    return found


def killed_with_uncommitted(data_dir: Path, bodies: Mapping[str, bytes]) -> None:
    """Leaves the files of what a node acknowledged, and none of their rows."""
    with node_process(data_dir, UNCOMMITTED) as node:
        with Client(node.url) as client:
            for path, body in bodies.items():
                assert client.request("PUT", path, body).status in (200, 201)
        node.kill()
    assert stored_artifacts(data_dir) == {}
    assert len(artifact_files(data_dir)) == len(bodies)


def whole_round(node: NodeProcess) -> dict[str, object]:
    """The summary of the next round that began at the beginning."""
    while (line := node.wait_for("reconcile_round"))["resumed"]:
        pass
    return line


def test_what_lost_its_row_with_the_process_is_served_again(data_dir: Path) -> None:
    bodies = contents()
    killed_with_uncommitted(data_dir, bodies)
    with node_process(data_dir, EAGER) as node:
        line = whole_round(node)
        assert (line["adopted"], line["removed"], line["errors"]) == (len(bodies), 0, 0)
        with Client(node.url) as client:
            for path, body in bodies.items():
                assert client.get_bytes(path) == body
        assert node.stop() == 0
    digests = sorted(hashlib.sha256(body).hexdigest() for body in bodies.values())
    assert sorted(digest for _, digest in stored_artifacts(data_dir).values()) == digests


def test_what_lost_its_row_with_the_power_is_served_only_if_its_bytes_prove_it(data_dir: Path) -> None:
    bodies = contents()
    killed_with_uncommitted(data_dir, bodies)
    torn = [
        next(file for file in artifact_files(data_dir) if kind in file) for kind in ("bazel_cas", "ccache")
    ]
    for name in torn:
        with (data_dir / "artifacts" / name).open("r+b") as file:
            file.write(b"\0")
    execute(data_dir, "UPDATE boots SET boot_id = 'an earlier boot'")
    with node_process(data_dir, EAGER) as node:
        line = whole_round(node)
        assert (line["adopted"], line["removed"], line["errors"]) == (38, 2, 0)
        with Client(node.url) as client:
            served = [path for path, body in bodies.items() if client.get_bytes(path) == body]
            assert len(served) == 38
            missing = [path for path in bodies if client.get_bytes(path) is None]
            assert len(missing) == 2
        assert node.stop() == 0
    assert len(artifact_files(data_dir)) == 38


def test_rows_without_files_and_files_without_rows_after_a_person_was_there(data_dir: Path) -> None:
    with node_process(data_dir) as node:
        node.wait_for("reconcile_round")  # or the next node would go on with it
        with Client(node.url) as client:
            for name in ("kept", "row", "file", "both"):
                assert (
                    client.request("POST", f"/api/cache/cas/{name}0000?{TENANT}", name.encode()).status == 204
                )
        assert node.stop() == 0
    files = {Path(file).name: data_dir / "artifacts" / file for file in artifact_files(data_dir)}
    files["file0000"].unlink()
    files["both0000"].write_bytes(b"other")
    execute(data_dir, "DELETE FROM cache_artifacts WHERE key LIKE '%row0000'")
    with node_process(data_dir, EAGER) as node:
        line = whole_round(node)
        assert (line["adopted"], line["rows_without_file"], line["damaged"]) == (1, 1, 1)
        with Client(node.url) as client:
            found = {name: client.get_bytes(f"/api/cache/cas/{name}?{TENANT}") for name in files}
        assert found == {"kept0000": b"kept", "row0000": b"row", "file0000": None, "both0000": None}
        assert node.stop() == 0
    assert len(list((data_dir / "quarantine").iterdir())) == 1


def test_half_a_million_rows_do_not_delay_the_start(data_dir: Path) -> None:
    start_and_stop(data_dir)  # makes the databases
    empty_s = start_and_stop(data_dir)
    with closing(sqlite3.connect(data_dir / "node.sqlite")) as connection, connection:
        connection.executemany(INSERT, rows())
    began = time.monotonic()
    with node_process(data_dir, EAGER) as node:
        full_s = time.monotonic() - began
        print(f"listening after {empty_s:.2f} s, with {ROWS} rows after {full_s:.2f} s")  # noqa: T201
        node.wait_for("reconcile_begins")
        names = [line["event"] for line in node.log]
        first = next(name for name in names if name.startswith("reconcile_"))
        assert names.index("listening") < names.index(first)
        with Client(node.url) as client:
            # It does its work, and the node its own.
            eventually(lambda: row_count(data_dir) < ROWS, "rows without files are forgotten")
            assert client.put_value("id", "value").status == 204
            assert client.get_value("id") == "value"
        assert node.stop() == 0


def row_count(data_dir: Path) -> int:
    ((count,),) = query(data_dir / "node.sqlite", "SELECT count(*) FROM cache_artifacts")
    return int(count)


def start_and_stop(data_dir: Path) -> float:
    """Seconds until a node on the directory listens."""
    began = time.monotonic()
    with node_process(data_dir) as node:
        seconds = time.monotonic() - began
        assert node.stop() == 0
    return seconds


def rows() -> Iterator[tuple[str, int]]:
    for number in range(ROWS):
        name = f"{number:06}"
        yield f"acme/app/xcode/{name[:2]}/{name[2:4]}/{name}", 1_000


def execute(data_dir: Path, sql: str) -> None:
    with closing(sqlite3.connect(data_dir / "node.sqlite")) as connection, connection:
        connection.execute(sql)


INSERT = """
INSERT INTO cache_artifacts (key, size_bytes, last_accessed_at, inserted_at, updated_at)
VALUES (?, ?, 1, 1, 1)
"""
