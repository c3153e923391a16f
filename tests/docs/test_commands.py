"""The page of commands has every command, and every command is as the page says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from undercroft.cli import app

PAGE = (Path(__file__).parents[2] / "docs/commands.md").read_text()

# They print what is asked for as it is, or run for as long as a node does.
NO_JSON = {"serve"}
NO_DATA = {"serve", "setup", "config show", "config check"}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_page_has_every_command() -> None:
    rows = re.findall(r"^\| (`[a-z].*?) \|", PAGE.partition("## Exit status")[0], re.MULTILINE)
    named = {re.sub(r" [A-Z]+", "", name) for row in rows for name in re.findall(r"`(.*?)`", row)}
    assert named == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_explains_itself(name: str) -> None:
    done = CliRunner().invoke(app, [*name.split(), "--help"])
    assert done.exit_code == 0
    assert len(COMMANDS[name].help or "") > 40
    options = {option for one in COMMANDS[name].params for option in one.opts}
    assert name in NO_JSON or "--json" in options
    assert name in NO_DATA or "--data-dir" in options


def test_the_options_on_the_page_exist() -> None:
    options = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    for option in re.findall(r"`(--[a-z-]+)", PAGE):
        assert option in options, option
