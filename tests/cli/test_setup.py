"""`undercroft setup`: what it prints is what the documentation has and the tests of each tool set."""

import json

import pytest
from typer.testing import CliRunner, Result

from undercroft.cli import app
from undercroft.cli.client_configuration import TOOLS

each_tool = pytest.mark.parametrize("tool", TOOLS)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["setup", *arguments])


@each_tool
def test_it_names_the_node_the_project_and_the_token(tool: str) -> None:
    done = run(tool, "--url", "https://cache.example/", "--project", "Acme/App", "--token", "uc_1.x")
    assert done.exit_code == 0
    assert "https://cache.example" in done.output
    assert "acme/app" in done.output
    assert "uc_1.x" in done.output
    assert "allowInsecureProtocol" not in done.output


@each_tool
def test_without_a_token_none_is_mentioned(tool: str) -> None:
    printed = run(tool).output
    assert "http://127.0.0.1:4000" in printed
    # Turborepo asks no remote cache without one, whatever it is.
    assert ("TOKEN" in printed) == (tool == "turborepo")


@each_tool
def test_json_has_the_same_text(tool: str) -> None:
    snippets = [json.loads(line) for line in run(tool, "--json").output.splitlines()]
    printed = run(tool).output
    for snippet in snippets:
        comment = "//" if snippet["language"] in ("groovy", "swift") else "#"
        assert f"{comment} {snippet['place']}\n{snippet['text']}\n" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make"], "no build tool is called 'make'"),
        (["ccache", "--url", "cache:4000"], "'cache:4000' is no address"),
        (["ccache", "--project", "app"], "'app' is no project"),
        (["ccache", "--project", "a/b/c"], "'a/b/c' is no project"),
        (["ccache", "--project", "../x"], "project"),
        (["ccache", "--token", "a'; rm -rf /"], "a token has no spaces"),
        (["ccache", "--token", ""], "a token has no spaces"),
    ],
)
def test_what_it_does_not_understand(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""
