"""Cleaning a project with the real process, and through its death."""

import json
from pathlib import Path
from typing import Any

from tests.support.folders import artifact_files
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from tests.system.data_dir import query

ACME, OTHER = "account_handle=acme&project_handle=app", "account_handle=acme&project_handle=app2"

# In several slices, each far longer than the poll that looks for the middle.
MANY = 3_000


def write(client: Client, tenant: str, numbers: range) -> None:
    for number in numbers:
        body = json.dumps({"cas_id": f"k{number}", "entries": [{"value": "v"}]}).encode()
        assert client.request("PUT", f"/api/cache/keyvalue?{tenant}", body).status == 204
        assert client.request("POST", f"/api/cache/cas/a{number:05}?{tenant}", b"bytes").status == 204


def progress(client: Client, tenant: str = ACME) -> dict[str, Any]:
    answer = client.request("GET", f"/api/cache/clean?{tenant}")
    assert answer.status == 200, answer
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def count(client: Client, tenant: str, numbers: range) -> int:
    """How many of them are there, key values and artifacts together."""
    paths = [f"/api/cache/{path}?{tenant}" for n in numbers for path in (f"keyvalue/k{n}", f"cas/a{n:05}")]
    return sum(client.request("GET", path).status == 200 for path in paths)


def test_a_project_is_cleaned_and_another_is_not(data_dir: Path) -> None:
    numbers = range(50)
    with node_process(data_dir) as node, Client(node.url) as client:
        write(client, ACME, numbers)
        write(client, OTHER, numbers)
        assert client.request("GET", f"/api/cache/clean?{ACME}").status == 404
        assert client.request("DELETE", f"/api/cache/clean?{ACME}").status == 204
        eventually(lambda: progress(client)["state"] == "done", "the project is clean")
        done = progress(client)
        assert (done["key_values"], done["artifacts"], done["last_error"]) == (50, 50, None)
        assert count(client, ACME, numbers) == 0
        assert count(client, OTHER, numbers) == 100
        assert client.request("GET", f"/api/cache/clean?{OTHER}").status == 404
        write(client, ACME, range(2))
        assert count(client, ACME, numbers) == 4
        assert node.stop() == 0
    assert len(artifact_files(data_dir)) == 52


def killed_in_the_middle(node: NodeProcess, client: Client) -> None:
    assert client.request("DELETE", f"/api/cache/clean?{ACME}").status == 204
    eventually(lambda: 0 < progress(client)["artifacts"] < MANY, "the middle is reached")
    node.kill()


def test_a_node_that_is_killed_goes_on_when_it_is_started_again(data_dir: Path) -> None:
    numbers = range(MANY)
    with node_process(data_dir) as node, Client(node.url) as client:
        write(client, ACME, numbers)
        write(client, OTHER, range(50))
        killed_in_the_middle(node, client)
    left = len(artifact_files(data_dir))
    assert 50 < left < MANY + 50
    with node_process(data_dir) as node, Client(node.url) as client:
        eventually(lambda: progress(client)["state"] == "done", "the project is clean")
        assert count(client, ACME, range(0, MANY, 100)) == 0
        assert count(client, OTHER, range(50)) == 100
        assert node.stop() == 0
    assert len(artifact_files(data_dir)) == 50
    assert query(data_dir / "node.sqlite", "SELECT count(*) FROM cache_artifacts") == [(50,)]
    assert query(data_dir / "key_values.sqlite", "SELECT count(*) FROM key_value_entries") == [(50,)]
