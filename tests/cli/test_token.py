"""`undercroft token` and `undercroft inspect`, beside a stopped and a running node."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from tests.support.node_process import node_process
from undercroft.auth.tokens import FRESH_S
from undercroft.cli import app
from undercroft.database.connection import open_connection, transaction
from undercroft.database.schema import NODE, is_older, migrations

PATH = "/ccache/acme/app/" + "0" * 40
KEY = "acme/app/ccache/00/00/" + "0" * 40


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "COLUMNS", "UNDERCROFT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--data-dir", str(data_dir)])


def create(data_dir: Path, *options: str) -> str:
    made = run(data_dir, "token", "create", "--project", "acme/*", *options)
    assert made.exit_code == 0
    return made.stdout.strip()


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + FRESH_S + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_running_node_follows(tmp_path: Path) -> None:
    with node_process(tmp_path, {"AUTH__MODE": "tokens"}) as node, httpx.Client(base_url=node.url) as client:
        assert client.put(PATH, content=b"bytes").status_code == 401
        token = create(tmp_path, "--read", "--write", "--name", "ci")
        headers = {"authorization": f"Bearer {token}", "user-agent": "ccache/4.7.5"}
        assert client.put(PATH, content=b"bytes", headers=headers).status_code == 201
        assert run(tmp_path, "token", "revoke", "ci").stdout == "revoked ci\n"
        wait_until(lambda: client.get(PATH, headers=headers).status_code == 401)
        shown = json.loads(run(tmp_path, "inspect", KEY, "--json").stdout)
        assert shown["written_by"] == f"ci ({token.split('_')[1]})"
        assert (shown["tool"], shown["user_agent"]) == ("ccache", "ccache/4.7.5")
        assert (shown["size_bytes"], shown["file_bytes"]) == (5, 5)
        text = run(tmp_path, "inspect", KEY).stdout
        assert "written by: ci (" in text
        for asked in ("0" * 40, PATH, f"{node.url}{PATH}?query"):
            assert "written by: ci (" in run(tmp_path, "inspect", asked).stdout
        assert token.rpartition("_")[2] not in "\n".join(str(record) for record in node.log)


def test_tokens_are_listed_without_their_secrets(tmp_path: Path) -> None:
    token = create(
        tmp_path / "new", "--read", "--name", "[bold]ci[/bold]", "--expires", "30d", "--scope", "pr"
    )
    table, as_json = (run(tmp_path / "new", "token", "list", *more).stdout for more in ([], ["--json"]))
    assert "[bold]ci[/bold]" in table
    assert "valid until" in table
    shown = json.loads(as_json)
    assert (shown["projects"], shown["may_read"], shown["may_write"]) == (["acme/*"], True, False)
    assert shown["scope"] == "pr"
    assert token.split("_", 2)[2] not in table + as_json  # the secret may have underscores, too


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--project", "acme/*"], "--read"),
        (["--project", "acme", "--read"], "'acme' is no pattern"),
        (["--project", "acme/*", "--read", "--expires", "soon"], "'soon' is no lifetime"),
        (["--project", "acme/*", "--read", "--scope", "A B"], "'A B' is no name of a scope"),
        (["--project", "acme/*", "--read", "--name", "\n"], "is no name"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], says: str) -> None:
    refused = run(tmp_path, "token", "create", *options)
    assert refused.exit_code == 2
    assert says in refused.stderr
    assert refused.stdout == ""


def test_names_that_are_taken_and_tokens_that_are_not_there(tmp_path: Path) -> None:
    create(tmp_path, "--read", "--name", "ci")
    again = run(tmp_path, "token", "create", "--project", "acme/*", "--read", "--name", "ci")
    assert (again.exit_code, "'ci' already" in again.stderr) == (2, True)
    gone = run(tmp_path, "token", "revoke", "nobody")
    assert (gone.exit_code, "'nobody'" in gone.stderr) == (1, True)
    unknown = run(tmp_path, "inspect", KEY)
    assert (unknown.exit_code, KEY in unknown.stderr) == (1, True)
    assert run(tmp_path / "no node", "token", "list").exit_code == 2


def test_several_artifacts_of_one_name(tmp_path: Path) -> None:
    with node_process(tmp_path) as node, httpx.Client(base_url=node.url) as client:
        for tool in ("gradle", "ccache"):
            assert client.put(f"/{tool}/acme/app/abcdef", content=b"bytes").status_code == 201
        several = run(tmp_path, "inspect", "abcdef")
        # An address says which; ccache's default layout has the first letters in a directory of their own.
        one = run(tmp_path, "inspect", f"{node.url}/gradle/acme/app/abcdef").stdout
        assert client.put("/ccache/acme/app/ab/012345", content=b"bytes").status_code == 201
        parted = run(tmp_path, "inspect", f"{node.url}/ccache/acme/app/ab/012345").stdout
    assert one.startswith("key:        acme/app/gradle/ab/cd/abcdef\n")
    assert parted.startswith("key:        acme/app/ccache/")
    assert several.exit_code == 1
    assert "acme/app/gradle/ab/cd/abcdef\n" in several.stderr
    assert "acme/app/ccache/ab/cd/abcdef\n" in several.stderr


def test_an_empty_data_directory_is_not_the_one_we_are_in() -> None:
    for command in (["serve"], ["config", "check"], ["token", "list"]):
        refused = CliRunner().invoke(app, [*command, "--data-dir", ""])
        assert (refused.exit_code, "it is empty" in refused.stderr) == (2, True)


@pytest.mark.parametrize("command", [["token", "list"], ["transfers", "list"], ["inspect", KEY]])
def test_looking_does_not_migrate(tmp_path: Path, command: list[str]) -> None:
    """The older node that wrote the file could not start again."""
    path = tmp_path / "node.sqlite"
    connection = open_connection(path)
    with transaction(connection):
        for step in migrations(NODE)[:2]:
            connection.execute(step).fetchall()
        connection.pragma("application_id", NODE.application_id)
        connection.pragma("user_version", 2)
    connection.close()
    refused = run(tmp_path, *command)
    assert refused.exit_code == 2
    assert "older Undercroft" in refused.stderr
    assert is_older(path, NODE)


def test_a_node_tells_of_tokens_it_does_not_ask_for(tmp_path: Path) -> None:
    with node_process(tmp_path, {"AUTH__MODE": "tokens"}) as node:
        assert node.logged("no_tokens")
        assert node.logged("listening")[0]["auth"] == "tokens"
    create(tmp_path, "--read")
    with node_process(tmp_path) as node:
        assert node.logged("tokens_not_asked_for")
