"""The page of each build tool has what `undercroft setup` prints, and the version that is driven."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.clients.clients_table import PAGE
from undercroft.cli import app
from undercroft.cli.client_configuration import TOOLS
from undercroft.telemetry import traffic_metrics

PAGES = Path(__file__).parents[2] / "docs/tools"

each_tool = pytest.mark.parametrize("tool", TOOLS)

# Under which name the table has a tool; it has no Tuist, which needs macOS.
IN_THE_TABLE = {"turborepo": "turbo"}


def test_every_tool_has_a_page_which_is_listed() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(TOOLS)
    listed = (PAGES.parent / "README.md").read_text()
    for tool in TOOLS:
        assert f"(tools/{tool}.md)" in listed


@each_tool
def test_it_has_what_the_command_prints(tool: str) -> None:
    arguments = ["setup", tool, "--url", "http://HOST:4000", "--project", "acme/app", "--token", "TOKEN"]
    printed = CliRunner().invoke(app, arguments).output.rstrip()
    block = f"```console\n$ undercroft {' '.join(arguments)}\n{printed}\n```\n"
    assert block in (PAGES / f"{tool}.md").read_text()


@each_tool
def test_it_names_the_version_that_is_driven(tool: str) -> None:
    text = (PAGES / f"{tool}.md").read_text()
    row = re.search(rf"^\| {IN_THE_TABLE.get(tool, tool)} \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert f"Version: {row.group(1) if row else 'none: it needs macOS'}" in text
    assert (row is None) == (tool == "tuist")


@each_tool
def test_it_names_the_tool_as_it_is_counted(tool: str) -> None:
    text = (PAGES / f"{tool}.md").read_text()
    (named,) = re.findall(r"(?:hits under|requests of) (`\w+`(?: and `\w+`)?)", text.replace("\n", " "))
    assert set(re.findall(r"\w+", named)) - {"and"} <= set(traffic_metrics.TOOLS)
