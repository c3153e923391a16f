"""`undercroft purge`: what fits is shown, and only that goes."""

import json
from pathlib import Path

import apsw
import pytest
from typer.testing import CliRunner, Result

from tests.support.folders import artifact_files
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from undercroft.cli import app
from undercroft.database.connection import open_connection

DAY_US = 86_400_000_000


def run(data_dir: Path, *arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["purge", "--data-dir", str(data_dir), *arguments], input=answer)


def fill(node: NodeProcess) -> None:
    with Client(node.url) as client:
        for project in ("app", "web"):
            for number in range(3):
                client.request("PUT", f"/ccache/acme/{project}/{number:040x}", b"x" * 1_000)
                client.request("PUT", f"/nx/acme/{project}/v1/cache/{number}", b"y" * 2_000)
            query = f"account_handle=acme&project_handle={project}"
            body = b'{"cas_id": "k", "entries": [{"value": "v"}]}'
            assert client.request("PUT", f"/api/cache/keyvalue?{query}", body).status == 204


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    with node_process(tmp_path / "node") as node:
        fill(node)
        assert node.stop() == 0
    return tmp_path / "node"


def outcome(done: Result) -> tuple[int, int]:
    found = json.loads(done.stdout)
    return found["artifacts"], found["key_values"]


@pytest.mark.parametrize(
    ("arguments", "artifacts", "key_values"),
    [
        (["--project", "ACME/app"], 6, 1),
        (["--kind", "nx"], 6, 0),
        (["--kind", "key_values"], 0, 2),
        (["--project", "acme/app", "--kind", "ccache"], 3, 0),
        (["--project", "acme/app", "--kind", "key_values"], 0, 1),
        (["--prefix", "acme/web/"], 6, 0),
        (["--project", "acme/web", "--prefix", "nx/"], 3, 0),
        (["--project", "acme/ap"], 0, 0),
        (["--unused", "30d"], 0, 0),
        (["--everything"], 12, 2),
    ],
)
def test_what_fits(stopped: Path, arguments: list[str], artifacts: int, key_values: int) -> None:
    assert outcome(run(stopped, *arguments, "--dry-run", "--json")) == (artifacts, key_values)
    assert len(artifact_files(stopped)) == 12
    done = run(stopped, *arguments, "--yes", "--json")
    assert done.exit_code == 0, done.output
    assert outcome(done) == (artifacts, key_values)
    assert len(artifact_files(stopped)) == 12 - artifacts
    assert outcome(run(stopped, *arguments, "--yes", "--json")) == (0, 0)


def test_by_age(stopped: Path) -> None:
    connection = open_connection(stopped / "node.sqlite")
    connection.execute(
        "UPDATE cache_artifacts SET last_accessed_at = last_accessed_at - ? WHERE key LIKE 'acme/app/nx%'",
        (40 * DAY_US,),
    )
    connection.close()
    connection = open_connection(stopped / "key_values.sqlite")
    connection.execute("UPDATE key_value_entries SET last_accessed_at = 1 WHERE key LIKE '%:web:%'")
    connection.close()
    assert outcome(run(stopped, "--unused", "30d", "--yes", "--json")) == (3, 1)


def test_a_person_is_shown_and_asked(stopped: Path) -> None:
    done = run(stopped, "--project", "acme/app", answer="n\n")
    assert done.exit_code == 1
    lines = [line.split() for line in done.output.splitlines()]
    assert ["acme/app", "ccache", "3", "3.0", "kB"] in [line[:5] for line in lines]
    assert "6 artifacts and 1 key values fit" in done.output
    assert "Remove all of this?" in done.output
    assert len(artifact_files(stopped)) == 12
    done = run(stopped, "--project", "acme/app", answer="y\n")
    assert done.exit_code == 0
    assert "removed 6 artifacts, 9.0 kB, and 1 key values" in done.output


def test_nothing_is_asked_unseen(stopped: Path) -> None:
    done = run(stopped, "--project", "acme/app", "--json")
    assert done.exit_code == 2
    assert "--dry-run" in done.output
    assert len(artifact_files(stopped)) == 12


def test_beside_a_running_node_and_in_the_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", bucket.as_uri())
    with node_process(tmp_path / "node", {"OBJECT_STORE__URL": bucket.as_uri()}) as node:
        fill(node)
        done = run(node.data_dir, "--project", "acme/app", "--kind", "nx", "--yes", "--json")
        assert outcome(done) == (3, 0)
        with Client(node.url) as client:
            assert client.request("GET", "/nx/acme/app/v1/cache/1").status == 404
            assert client.request("GET", "/nx/acme/web/v1/cache/1").status == 200
    connection = apsw.Connection(str(tmp_path / "node" / "node.sqlite"))
    waiting = set(connection.execute("SELECT key FROM s3_transfers WHERE type = 'delete'"))
    connection.close()
    gone = [path for path in bucket.rglob("*") if path.is_file() and "acme/app/nx" in str(path)]
    # Each object is gone, was never made, or its delete still waits.
    assert len(gone) <= len(waiting)


def objects_in(bucket: Path) -> set[str]:
    """Keys without their shards."""
    return {
        f"{path.relative_to(bucket).parts[1]} {path.relative_to(bucket).parts[2]} {path.name}"
        for path in bucket.rglob("*")
        if path.is_file()
    }


def test_what_only_the_object_store_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", bucket.as_uri())
    with node_process(tmp_path / "first", {"OBJECT_STORE__URL": bucket.as_uri()}) as first:
        fill(first)
        eventually(lambda: len(objects_in(bucket)) == 12, "all are uploaded")
    (bucket / "acme/app/.clean-1").write_bytes(b"a marker is no artifact")
    with node_process(tmp_path / "node", {"OBJECT_STORE__URL": bucket.as_uri()}) as node:
        with Client(node.url) as client:
            assert client.request("GET", "/nx/acme/app/v1/cache/1").status == 200
        here = ["--project", "acme/app", "--dry-run", "--json"]
        eventually(lambda: outcome(run(node.data_dir, *here)) == (1, 0), "its row is committed")
        assert json.loads(run(node.data_dir, *here).stdout)["objects"] == 5
        assert json.loads(run(node.data_dir, *here, "--unused", "1m").stdout)["objects"] == 0
        assert len(objects_in(bucket)) == 13
        done = run(node.data_dir, "--project", "acme/app", "--kind", "ccache", "--yes")
        assert done.exit_code == 0
        assert "removed 0 artifacts, 0 B, 3 objects, and 0 key values" in done.output
        eventually(lambda: len(objects_in(bucket)) == 10, "the node removes the objects")
        done = run(node.data_dir, "--project", "acme/app", "--yes", "--json")
        assert (json.loads(done.stdout)["artifacts"], json.loads(done.stdout)["objects"]) == (1, 2)
        eventually(lambda: len(objects_in(bucket)) == 7, "the objects are removed")
        assert {name.split()[0] for name in objects_in(bucket) if ".clean" not in name} == {"web"}


def test_an_object_store_that_is_away_is_told(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__URL", "s3://bucket")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__ENDPOINT", "http://127.0.0.1:9")
    done = run(stopped, "--everything", "--yes")
    assert done.exit_code == 1
    assert "what only the object store has stays: " in done.stderr
    assert "removed 12 artifacts" in done.stdout
    assert artifact_files(stopped) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what is to go"),
        (["--everything", "--kind", "nx"], "say what is to go"),
        (["--kind", "jar"], "'jar' is no kind"),
        (["--project", "acme"], "'acme' is no project"),
        (["--unused", "long"], "'long' is no age"),
    ],
)
def test_what_it_does_not_understand(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
